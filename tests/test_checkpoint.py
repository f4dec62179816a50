"""Names of a state's arrays, the way back, and files: what is saved comes back."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import adamx
from adamx import codecs
from adamx.interop import (
    FORMAT,
    CheckpointError,
    from_flat,
    migrate,
    restore,
    save,
    steps,
    to_flat,
    verify,
)
from adamx.interop._names import parsed
from tests import format_fixture as fixture
from tests import wrapper_pairs as wp

PAIRS = [pair for pair in wp.pairs() if pair not in wp.REFUSED]
# What a wrapper says of itself; every other name is that of what it wraps.
OWN = {
    "guard": "guard/",
    "accumulate": "accumulate/",
    "with_hyperparams": "with_hyperparams/",
    "loss_scaling": "loss_scaling/",
    "master_weights": "master_weights/",
    "split master": "master_weights/",
    "compensated": "compensated/",
    "cautious": "cautious/",
    "offload": "(nothing)",
    "bucketed": "(nothing)",
    "chain": "clip_by_global_norm/",
}


def _made(*names):
    """The transformation, parameters, and a state in which every array is another."""
    narrow = any(wp.WRAPPERS[name].is_narrow for name in names)
    params = wp.make_params(jnp.bfloat16 if narrow else jnp.float32)
    tx = wp.make(*names)
    leaves, structure = jax.tree.flatten(jax.eval_shape(tx.init, params))
    arrays = [np.full(x.shape, i, x.dtype) for i, x in enumerate(leaves)]
    return tx, params, jax.tree.unflatten(structure, arrays)


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "outers",
    [("groups",), pytest.param(tuple(wp.WRAPPERS), marks=pytest.mark.slow)],
    ids=["one", "all"],
)
def test_every_pair_of_wrappers_comes_back(outers):
    """From names alone: arrays themselves, and the structure of init."""
    for names in (pair for pair in PAIRS if pair[0] in outers):
        tx, params, state = _made(*names)
        flat = to_flat(state)
        if "bucketed" not in names:  # which has them in others
            held = jax.tree.leaves(state)
            assert [id(x) for x in flat.values()] == [id(x) for x in held]
        assert all(str(parsed(name)) == name for name in flat), names
        back = from_flat(flat, tx, params)
        assert jax.tree.structure(back) == jax.tree.structure(state), names
        wp.assert_same_bits(back, state, str(names))


@pytest.mark.parametrize("name", OWN)
def test_a_wrapper_changes_no_other_name(name):
    inside = wp.make_adamw(1e-2).init(wp.make_params(jnp.float32))
    flat = to_flat(_made(name)[2])
    own = [key for key in flat if key.startswith(OWN[name])]
    assert set(flat) == set(own) | set(to_flat(inside))
    assert bool(own) is (OWN[name] != "(nothing)")


def test_groups_change_no_name_with_a_path():
    want = to_flat(wp.make_adamw(1e-2).init(wp.make_params(jnp.float32)))
    got = to_flat(_made("groups")[2])
    have_path = lambda flat: {n for n in flat if n.count("/") > 1}  # noqa: E731
    assert have_path(got) == have_path(want)
    assert "scale_by_adam/count@group=default" in got
    assert "scale_by_adam/count@group=%5Eb" in got


def test_the_format_by_examples():
    """Written down: a change of one of these is a new format."""
    assert FORMAT == 1
    codec = codecs.int8(min_size=0)
    tx = optax.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.clip_by_global_norm(2.0),
        adamx.stages([(adamx.adamw(1e-3, mu_dtype=codec), 1), (adamx.sgd(1e-3), None)]),
    )
    tx = adamx.guard(adamx.groups([("k/v$", tx)], default=adamx.freeze()))
    params = {"k": {"v": jnp.ones(2)}, "b": jnp.ones(2)}
    place = "@group=k%2Fv%24"
    want = {
        f"clip_by_global_norm/grad_norm{place}",
        f"clip_by_global_norm#2/grad_norm{place}",
        f"stages/count{place}",
        f"scale_by_adam/count{place}@stage=0",
        "scale_by_adam/mu.codes/k/v@stage=0",
        "scale_by_adam/mu.scales.1/k/v@stage=0",
        f"scale_by_adam/mu.key{place}@stage=0",
        "scale_by_adam/nu/k/v@stage=0",
        f"scale_by_learning_rate/step{place}@stage=1",
        "guard/skipped",
    }
    assert want <= set(to_flat(jax.eval_shape(tx.init, params)))
    held = to_flat(_made("with_hyperparams")[2])
    assert "with_hyperparams/hyperparams.learning_rate" in held


def test_parameters_of_other_kinds():
    """A single array, lists, a bare state, two masks."""
    tx = adamx.adam(1e-3)
    assert "scale_by_adam/mu" in to_flat(tx.init(jnp.ones(2)))
    assert "scale_by_adam/mu/0" in to_flat(tx.init([jnp.ones(2)]))
    bare = optax.GradientTransformation(lambda p: {"x": p}, lambda u, s, p=None: (u, s))
    assert list(to_flat((bare.init(jnp.ones(2)), optax.EmptyState()))) == [
        "state/value/x"
    ]
    masks = [
        optax.masked(tx, {"a": True, "b": False}),
        optax.masked(tx, {"a": False, "b": True}),
    ]
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    flat = to_flat(optax.chain(*masks).init(params))
    assert {"scale_by_adam/mu/a", "scale_by_adam#2/mu/b"} <= set(flat)


def test_every_version_loads_and_steps_the_fixture():
    with np.load(fixture.PATH) as data:
        held = dict(data)
    assert held["format"] <= FORMAT
    flat = {k[6:]: x for k, x in held.items() if k.startswith("state:")}
    params = fixture.start()
    params["bias"] = jnp.asarray(held["before:bias"])
    params["decoder"]["layer_0"]["kernel"] = jnp.asarray(held["before:kernel"])
    for state in (
        from_flat(flat, fixture.make(), params),
        migrate(flat, fixture.make(), params, "error").state,
    ):
        wp.assert_same_bits(jax.tree.leaves(state), list(flat.values()), "its arrays")
    after, state = fixture.run(params, state, [3])
    kernel = after["decoder"]["layer_0"]["kernel"]
    np.testing.assert_allclose(after["bias"], held["after:bias"], rtol=1e-6)
    np.testing.assert_allclose(kernel, held["after:kernel"], rtol=1e-6)
    assert adamx.read(state).count == 4


# ------------------------------------------------------------------------------ files


@functools.cache
def _state():
    """With codes and scales, without elements, after a step."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.float32(rng.standard_normal((8, 4))),
        "none": jnp.zeros((0, 3)),
    }
    codec = codecs.int8("row", min_size=8)
    tx = adamx.guard(adamx.adamw(1e-2, mu_dtype=jnp.bfloat16, nu_dtype=codec))
    return jax.jit(tx.update)(params, tx.init(params), params)[1]


def _tree(devices):
    """The state, sharded over devices, and what else is saved."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda x: jax.device_put(  # noqa: E731
        x, rows if x.ndim and x.shape[0] == 8 else whole
    )
    return {"state": jax.tree.map(place, _state()), "key": jax.random.key(1), "step": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of steps 3 and 7, written from eight devices."""
    directory = tmp_path_factory.mktemp("run")
    for step in (3, 7):
        save(directory, step, _tree(8) | {"step": step})
    return directory


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_saved_on_eight_devices_restored_on_fewer(saved, devices):
    want = _tree(devices)
    got = restore(saved, want)
    assert int(got["step"]) == 7
    assert jax.random.key_data(got["key"]).tolist() == [0, 1]
    wp.assert_same_bits(got["state"], want["state"], "bits")
    for a, b in zip(*map(jax.tree.leaves, (got["state"], want["state"])), strict=True):
        assert a.dtype == b.dtype
        assert a.size == 0 or a.sharding.is_equivalent_to(b.sharding, a.ndim)
    nu = got["state"].inner_state[0].nu.codes["kernel"]
    assert len(nu.addressable_shards) == devices


def test_arrays_without_a_tree_for_another_chain(saved, tmp_path):
    """like=None gives names; under 'state' a flat dict, for migrate."""
    flat = restore(saved)
    assert flat["step"] == 7
    assert flat["state/inner_state/0/mu/none"].shape == (0, 3)
    assert flat["state/inner_state/0/mu/kernel"].dtype == jnp.bfloat16
    params = {"w": jnp.ones((3, 2))}
    old = adamx.adamw(1e-2).init(params)
    save(tmp_path, 0, {"state": to_flat(old)})
    held = restore(tmp_path, {"state": to_flat(old)})["state"]
    new = migrate(held, adamx.guard(adamx.adamw(1e-2)), params).state
    wp.assert_same_bits(new.inner_state, old, "through a file")


def test_orbax_itself_takes_the_flat_dict(tmp_path):
    """Nothing of ours is needed where its own CheckpointManager is at work."""
    ocp = pytest.importorskip("orbax.checkpoint")
    params = {"w": jnp.ones((3, 2))}
    tx = adamx.adamw(1e-2)
    flat = to_flat(tx.init(params))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.StandardSave(flat))
        manager.wait_until_finished()
        back = manager.restore(1, args=ocp.args.StandardRestore(flat))
    wp.assert_same_bits(from_flat(back, tx, params), tx.init(params), "bits")


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_random_key_comes_back_of_its_kind(tmp_path, impl):
    key = jax.random.key(5, impl=impl)
    save(tmp_path, 1, {"key": key})
    got = restore(tmp_path, {"key": jax.random.key(0, impl=impl)})["key"]
    assert jax.random.key_impl(got) == jax.random.key_impl(key)
    assert jax.random.key_data(got).tolist() == jax.random.key_data(key).tolist()


def test_only_the_last_ones_are_kept(tmp_path):
    for step in range(4):
        save(tmp_path, step, {"w": np.arange(3)}, keep=2)
    assert steps(tmp_path) == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert restore(tmp_path)["w"].dtype == np.int64


def test_a_save_that_was_cut_short_is_none(tmp_path):
    save(tmp_path, 1, {"w": jnp.ones(3)})
    folder = save(tmp_path, 2, {"w": jnp.zeros(3)})
    (folder / "manifest.json").unlink()  # as a kill before its end leaves it
    assert steps(tmp_path) == [1]
    assert restore(tmp_path)["w"].tolist() == [1, 1, 1]
    save(tmp_path, 2, {"w": jnp.full(3, 2.0)})
    assert restore(tmp_path)["w"].tolist() == [2, 2, 2]


def _files(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]


def _damage(path, how, rng):
    data = bytearray(path.read_bytes())
    place = int(rng.integers(len(data)))
    if how == "cut":
        data = data[:place]
    else:
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damaged_files_are_refused_and_the_one_before_is_taken(
    saved, tmp_path, how, count
):
    rng = np.random.default_rng(len(how))
    like = _tree(1)
    for i in range(count):
        directory = tmp_path / f"{i}"
        shutil.copytree(saved, directory)
        files = _files(directory / "7")
        path = files[i % len(files)]
        _damage(path, how, rng)
        with pytest.raises(CheckpointError, match=path.name) as error:
            restore(directory, like)
        assert str(path) in str(error.value)
        assert "fallback=True" in str(error.value)
        is_counted = "were written" in str(error.value)
        assert is_counted == (how == "cut" and path.name != "manifest.json")
        with pytest.warns(UserWarning, match="is damaged.*one before"):
            got = restore(directory, like, fallback=True)
        assert int(got["step"]) == 3
        shutil.rmtree(directory)


def test_a_missing_file_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    path = _files(tmp_path / "run" / "7" / "arrays")[0]
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name}.* missing"):
        verify(tmp_path / "run", 7)
    (tmp_path / "run" / "3" / "manifest.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"no checkpoint is whole.*manifest"),
    ):
        restore(tmp_path / "run", fallback=True)


@pytest.mark.skipif(
    not hasattr(nnx.Variable, "get_value"), reason="nnx.Optimizer was another one"
)
def test_a_whole_checkpoint_and_an_nnx_optimizer_migrate():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    old = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    old.update(model, grads)
    params = nnx.state(model, nnx.Param)
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-2))
    found = adamx.interop.migrate(old, tx, params)
    flat = adamx.interop.to_flat(old)
    assert "scale_by_adam/count" in flat
    whole = {f"state/{k}": x for k, x in flat.items()} | {"params/kernel": jnp.ones(3)}
    again = adamx.interop.migrate(whole, tx, params)
    for state in (found.state, again.state):
        assert int(adamx.read(state).count) == 1
        np.testing.assert_allclose(state[1][0].mu["bias"].get_value(), 0.1, rtol=1e-7)
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    new.opt_state = jax.tree.map(
        lambda box, x: box.replace(x),
        new.opt_state,
        found.state,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    new.update(model, grads)
    assert int(adamx.read(new).count) == 2
