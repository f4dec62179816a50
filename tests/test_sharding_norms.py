"""What a norm spans: pieces in shard_map and pmap, whole arrays under jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import adamx
from adamx.sharding import state_shardings
from tests.test_bad_input import _check

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map

SPECS = {"w": P("data", "model"), "v": P(None, "model"), "b": P()}
NAMES = {"w": ("data", "model"), "v": "model", "b": ()}


def grid():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


def gradient(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 4), "v": (3, 4), "b": (5,)}
    return {k: jnp.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()}


def norm64(tree):
    return np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))


def clipped_in_pieces(names, g):
    tx = adamx.clip_by_global_norm(1.0, axis_name=names)

    def clip(g):
        updates, state = tx.update(g, tx.init(g))
        return updates, state.grad_norm

    shapes = {"mesh": grid(), "in_specs": (SPECS,), "out_specs": (SPECS, P())}
    return jax.jit(shard_map(clip, **shapes))(g)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_the_norm_of_pieces_and_copies_is_that_of_the_whole(dtype):
    g = jax.tree.map(lambda x: 300 * x, gradient(dtype))  # squares overflow float16
    updates, norm = clipped_in_pieces(NAMES, g)
    assert float(norm) == pytest.approx(norm64(g), rel=1e-6)
    whole = adamx.clip_by_global_norm(1.0)
    want, _ = whole.update(g, whole.init(g))
    for name, update in updates.items():
        assert update.dtype == dtype
        rtol = 1e-6 if dtype == jnp.float32 else 1e-3
        np.testing.assert_allclose(update, want[name], rtol=rtol)


def test_copies_count_as_often_as_they_are_said_to():
    """The same names for all leaves: each copy is a piece then."""
    g = gradient()
    _, norm = clipped_in_pieces(("data", "model"), g)
    times = {"w": 1, "v": 4, "b": 8}
    want = np.sqrt(sum(n * norm64(g[name]) ** 2 for name, n in times.items()))
    assert float(norm) == pytest.approx(want, rel=1e-6)


def test_pmap():
    g = gradient()["w"]  # a row for each device
    tx = adamx.clip_by_global_norm(0.5, axis_name="i")

    def clip(row):
        updates, state = tx.update(row, tx.init(row))
        return updates, state.grad_norm

    updates, norms = jax.pmap(clip, axis_name="i")(g)
    np.testing.assert_allclose(norms, norm64(g), rtol=1e-6)
    np.testing.assert_allclose(updates, g * (0.5 / norm64(g)), rtol=1e-6)
    alone = jax.pmap(lambda row: adamx.clip_by_global_norm(0.5).update(row, None)[0])(g)
    norms = np.linalg.norm(np.float64(alone), axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-6)  # row by row


# (label, transformation, a number of its state that a sum over the arrays makes)
SPANS = [
    ("lamb", lambda: adamx.lamb(1e-2), "trust_ratio_mean"),
    pytest.param(
        "update rms",
        lambda: adamx.clip_by_update_rms(0.1),
        "update_rms",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "diagnose",
        lambda: adamx.diagnose(adamx.adamw(0.1), every=1),
        "grad_norm/w",
        marks=pytest.mark.slow,  # 15 s of compilation; test_diagnose has it under jit
    ),
    ("adam_mini", lambda: adamx.adam_mini(1e-2), None),
]


@pytest.mark.parametrize(("label", "make", "name"), SPANS)
def test_whole_under_jit_and_pieces_inside_shard_map(label, make, name):
    tx = make()
    params = {"w": gradient()["w"]}
    g = {"w": 2 * params["w"][::-1] + 0.1}

    def step(g, params):
        return tx.update(g, tx.init(params), params)

    want, state = jax.jit(step)(g, params)
    spec = {"w": P("model", None)}
    zero1 = None if label == "update rms" else "data"  # it keeps no moments
    shardings = state_shardings(tx, params, spec, zero1, mesh=grid())
    spread = jax.device_put((g, params), jax.sharding.NamedSharding(grid(), spec["w"]))
    got, spread_state = jax.jit(step, out_shardings=(None, shardings))(*spread)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6, atol=1e-8)
    if name is not None:
        values = [adamx.read(s).scalars().get(name) for s in (state, spread_state)]
        if values[0] is None:
            values = [float(getattr(s, name)) for s in (state, spread_state)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)
    mapped = {"mesh": grid(), "in_specs": (spec, spec), "out_specs": spec}
    pieces = shard_map(lambda g, p: step(g, p)[0], **mapped)
    halves = [
        step({"w": g["w"][i : i + 4]}, {"w": params["w"][i : i + 4]})[0]["w"]
        for i in (0, 4)
    ]
    alone = jax.jit(pieces)(g, params)["w"]
    np.testing.assert_allclose(alone, np.concatenate(halves), rtol=1e-6, atol=1e-8)


# (label, transformation with these names)
OF_PIECES = [
    ("lamb", lambda names: adamx.lamb(1e-2, weight_decay=0.1, axis_name=names)),
    ("stable_adamw", lambda names: adamx.stable_adamw(1e-2, axis_name=names)),
    ("update rms", lambda names: adamx.clip_by_update_rms(0.1, axis_name=names)),
    ("adam_mini", lambda names: adamx.adam_mini(1e-2, axis_name=names)),
    ("guard", lambda names: adamx.guard(adamx.adamw(1e-2), axis_name=names)),
]
# A layer's own names: of adam_mini, whose blocks are columns, those of the rows.
OF_BLOCKS = {"w": "data", "v": (), "b": ()}


def two_steps(tx, gradients, params):
    state = tx.init(params)
    for g in gradients:
        updates, state = tx.update(g, state, params)
    return updates


def two_steps_in_pieces(tx, gradients, params):
    specs = {"in_specs": ([SPECS] * len(gradients), SPECS), "out_specs": SPECS}
    pieces = shard_map(lambda g, p: two_steps(tx, g, p), mesh=grid(), **specs)
    return jax.jit(pieces)(gradients, params)


@pytest.mark.parametrize(("label", "make"), OF_PIECES)
def test_axis_name_makes_pieces_a_whole(label, make):
    params = gradient()
    turned = jax.tree.map(lambda x: x[::-1] + 0.1, params)
    gradients = [turned, jax.tree.map(lambda x: 30 * x * x, turned)]
    want = jax.jit(lambda g, p: two_steps(make(None), g, p))(gradients, params)
    tx = make(OF_BLOCKS if label == "adam_mini" else NAMES)
    got = two_steps_in_pieces(tx, gradients, params)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=1e-8)
    if label != "guard":
        alone = two_steps_in_pieces(make(None), gradients, params)
        assert not np.allclose(alone["w"], want["w"], rtol=1e-4)


@pytest.mark.parametrize("is_overflow", [False, True])
def test_guard_of_pieces_judges_as_one(is_overflow):
    """One piece on one device is not finite: no device steps. Or overflows: all do."""
    g = gradient()
    g["w"] = g["w"].at[5, 2].set(1e30 if is_overflow else jnp.nan)

    def step(g, names):
        tx = adamx.guard(adamx.sgd(1.0), axis_name=names)
        updates, state = tx.update(g, tx.init(g), g)
        return updates, (state.skipped, state.grad_norm)

    specs = {"in_specs": (SPECS,), "out_specs": (SPECS, P())}
    pieces = shard_map(lambda g: step(g, NAMES), mesh=grid(), **specs)
    updates, (skipped, norm) = jax.jit(pieces)(g)
    assert int(skipped) == (not is_overflow)
    assert not np.isfinite(norm)
    for name in g:
        want = -g[name] if is_overflow else np.zeros_like(g[name])
        np.testing.assert_array_equal(updates[name], want)


def test_guard_without_names_judges_each_device():
    g = gradient()
    g["w"] = g["w"].at[5, 2].set(jnp.nan)
    tx = adamx.guard(adamx.sgd(1.0))
    pieces = shard_map(
        lambda g: tx.update(g, tx.init(g), g)[0],
        mesh=grid(),
        in_specs=({"w": SPECS["w"]},),
        out_specs={"w": SPECS["w"]},
    )
    updates = jax.jit(pieces)({"w": g["w"]})["w"]
    want = -np.array(g["w"])
    want[4:6, 2:] = 0  # the piece with the NaN
    np.testing.assert_array_equal(updates, want)


def test_bad_input():
    for bad in (3, {"w": 1.5}):
        expected = "`axis_name` name of an axis tuple pass"
        _check(
            lambda bad=bad: adamx.clip_by_global_norm(1.0, axis_name=bad),
            TypeError,
            expected,
        )
        for make in (adamx.lamb, adamx.stable_adamw, adamx.adam_mini):
            build = functools.partial(make, 1.0, axis_name=bad)
            _check(build, TypeError, expected)
        build = functools.partial(adamx.guard, adamx.sgd(1.0), axis_name=bad)
        _check(build, TypeError, expected)
        build = functools.partial(adamx.clip_by_update_rms, axis_name=bad)
        _check(build, TypeError, expected)
    g = gradient()
    guarded = adamx.guard(adamx.sgd(1.0), axis_name="data")
    expected = "`axis_name` shard_map 'data' unbound leave it out"
    _check(lambda: guarded.update(g, guarded.init(g), g), ValueError, expected)
    tx = adamx.clip_by_global_norm(1.0, axis_name="data")
    expected = "`axis_name` shard_map 'data' unbound leave it out"
    _check(lambda: tx.update(g, tx.init(g)), ValueError, expected)
    other = adamx.clip_by_global_norm(1.0, axis_name={"w": "data"})
    expected = "`axis_name` gradient Give"
    _check(lambda: other.update(g, tx.init(g)), ValueError, expected)
