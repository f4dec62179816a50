"""`bucketed`: the numbers of the bare optimizer, from few flat arrays."""

import copy
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx._packed import Packed, unpacked
from adamx.interop import from_flat, migrate, restore, save, to_flat
from adamx.sharding import describe_shardings, state_shardings
from tests.compiling import as_users
from tests.helpers import some
from tests.optimizers_table import LR, NAMES, ROWS

SMALL = 999  # elements: "large" is more


def make_params(dtype=jnp.float32, seed=0):
    """Small leaves of all ranks, one that is too large, one of another dtype, a -0."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (5,), (), (2, 3, 2), (1,), (7, 1), (4, 0)]
    small = {f"layer_{i}": rng.standard_normal(s) for i, s in enumerate(shapes)}
    params = {"blocks": small, "large": rng.standard_normal((30, 40))}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return params | {"wide": [jnp.ones((2, 2)), jnp.full(3, -0.0)]}


def random_like(params, seed):
    rng = np.random.default_rng(seed + 10)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params
    )


def many(n=40):
    """More leaves than a split has that XLA makes one loop for each of."""
    rng = np.random.default_rng(1)
    shapes = [[(3, 4), (5,), (6,), (2, 2)][i % 4] for i in range(n)]
    drawn = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]
    return {f"l{i:02}": x for i, x in enumerate(drawn)} | {"large": jnp.ones((40, 50))}


def adamw(**kwargs):
    return adamx.adamw(LR, weight_decay=0.1, mask=adamx.decay_mask(), **kwargs)


def bucketed(tx):
    return adamx.bucketed(tx, max_size=SMALL)


def end_to_end(tree, dtype):
    """The small leaves of a tree one behind the other, by NumPy."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate(
        [x.ravel() for x in leaves if x.dtype == dtype and x.size <= SMALL]
    )


def packed_in(state):
    is_packed = lambda x: isinstance(x, Packed)  # noqa: E731
    nodes = jax.tree.leaves(state, is_leaf=is_packed)
    return [node for node in nodes if is_packed(node)]


def run(tx, params, steps=3, way=lambda update: update):
    """Updates of each step, parameters and state; nothing is compiled but by `way`."""
    state, found, update = tx.init(params), [], way(tx.update)
    for seed in range(steps):
        updates, state = update(random_like(params, seed), state, params)
        params = adamx.apply_updates(params, updates)
        found.append(updates)
    return found, params, state


def compiled(tx, params, steps=3, kernel=None):
    """The same, compiled and donated; parameters and state."""

    def step(params, state, g):
        if kernel is not None:
            return adamx.fused(tx, kernel=kernel).step(g, state, params)
        updates, state = tx.update(g, state, params)
        return adamx.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    carry = (jax.tree.map(jnp.copy, params), tx.init(params))
    for seed in range(steps):
        carry = step(*carry, random_like(params, seed))
    return carry


def assert_close(got, want, rtol=1e-5):
    """Two programs: a product and a sum may be rounded once or twice."""
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=1e-7)


# --------------------------------------------------------------------------- numbers


# Quickly: of each kind of state one.
QUICK = ("adamw", "sparse_adam")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=row.id,
            marks=() if row in NAMES and row.name in QUICK else pytest.mark.slow,
        )
        for row in ROWS
    ],
)
def test_updates_and_state_are_those_of_the_bare_optimizer(row):
    """Of every optimizer, bit for bit: nothing needs to be refused."""
    params = make_params()
    want, got = run(row.make(), params, 2), run(bucketed(row.make()), params, 2)
    chex.assert_trees_all_equal(got[:2], want[:2])
    flat_want, flat_got = to_flat(want[2]), to_flat(got[2])
    assert list(flat_got) == list(flat_want)
    chex.assert_trees_all_equal(flat_got, flat_want)
    assert adamx.read(got[2]).scalars() == adamx.read(want[2]).scalars()


CODEC = adamx.codecs.int8(min_size=4)
OTHERS = {
    "optax.adamw": lambda: optax.adamw(LR, mask=adamx.decay_mask()),
    "optax.chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-LR)
    ),
    "clip, adamw": lambda: optax.chain(adamx.clip_by_global_norm(0.1), adamw()),
    "int8": lambda: adamw(mu_dtype=CODEC, nu_dtype=CODEC),
    "masked": lambda: optax.masked(
        adamw(), lambda p: jax.tree.map(lambda x: x.ndim > 0, p)
    ),
    "groups": lambda: adamx.groups(
        [("layer_[02]", adamx.lion(LR)), ("large", adamx.freeze())], adamw()
    ),
    "inject": lambda: optax.inject_hyperparams(adamx.adamw)(LR, weight_decay=0.1),
    "with_hyperparams": lambda: adamx.with_hyperparams(adamx.adamw, LR),
    "MultiSteps": lambda: optax.MultiSteps(adamw(), 2).gradient_transformation(),
    "cautious": lambda: adamx.cautious(adamw()),
    "update rms": lambda: optax.chain(adamx.clip_by_update_rms(0.1), adamw()),
    "diagnose": lambda: adamx.diagnose(adamw(), every=2),
}


@pytest.mark.parametrize("name", some(OTHERS, "optax.adamw", "masked", "groups"))
def test_chains_masks_codes_and_wrappers_inside(name):
    tx, params = OTHERS[name](), make_params()
    want, got = run(tx, params), run(bucketed(tx), params)
    assert packed_in(got[2])
    chex.assert_trees_all_equal(got[:2], want[:2])
    chex.assert_trees_all_equal(unpacked(got[2].inner_state), want[2])


@pytest.mark.parametrize(
    "name", some(["MultiSteps", "masked", "groups", "inject"], "masked")
)
def test_inside_of_others(name):
    params = make_params()
    wraps = {
        "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        "masked": lambda tx: optax.masked(
            tx, lambda p: jax.tree.map(lambda x: x.ndim > 0, p)
        ),
        "groups": lambda tx: adamx.groups([("^large", adamx.sgd(LR))], tx),
        "inject": lambda tx: optax.inject_hyperparams(lambda x: tx)(0.0),
    }
    want, got = (run(wraps[name](tx), params, 4) for tx in (adamw(), bucketed(adamw())))
    assert packed_in(got[2])
    chex.assert_trees_all_equal(got[:2], want[:2])
    assert adamx.read(got[2]).scalars() == adamx.read(want[2]).scalars()


@pytest.mark.parametrize(
    "dtype", some([jnp.bfloat16, jnp.float16, jnp.complex64], jnp.bfloat16)
)
def test_other_dtypes(dtype):
    params = make_params(dtype)
    want, got = run(adamw(), params), run(bucketed(adamw()), params)
    chex.assert_trees_all_equal(got[:2], want[:2])
    dtypes = {x.dtype for x in packed_in(got[2])[0].arrays}
    assert dtypes == {jnp.dtype(dtype), jnp.dtype(jnp.float32)}


# ------------------------------------------------------------------------- the layout


def test_each_moment_is_one_array_for_each_dtype_and_the_large_leaves():
    params = make_params(jnp.bfloat16)
    bare, state = run(adamw(), params)[2], run(bucketed(adamw()), params)[2]
    for moment, dtypes in (("mu", (jnp.bfloat16, jnp.float32)), ("nu", (jnp.float32,))):
        tree, packed = (getattr(x, moment) for x in (bare[0], state.inner_state[0]))
        own = {str(x.dtype): x for x in packed.arrays if x.ndim == 1}
        assert len(packed.arrays) == len(dtypes) + 1
        for dtype in dtypes:
            expected = end_to_end(tree, dtype)
            np.testing.assert_array_equal(own[jnp.dtype(dtype).name], expected)
        large = next(x for x in packed.arrays if x.shape == (30, 40))
        np.testing.assert_array_equal(large, tree["large"])


def test_nothing_is_put_together_where_there_are_no_two():
    params = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2000)}
    tx = adamx.momentum(LR, 0.9)
    assert jax.tree.structure(bucketed(tx).init(params).inner_state) == (
        jax.tree.structure(tx.init(params))
    )
    bare = adamx.sgd(LR)
    assert bucketed(bare).init(params).inner_state == bare.init(params)


def test_a_program_is_handed_few_arrays():
    params = many()
    tx = bucketed(adamw())
    state = tx.init(params)
    bare = len(jax.tree.leaves(adamw().init(params)))
    assert len(jax.tree.leaves(state)) == bare - 2 * (len(params) - 2)
    text = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert entry.count(" parameter(") <= 2 * len(params) + len(jax.tree.leaves(state))


def test_the_layout_is_kept_by_copies_and_files_of_python():
    params = many()
    state = bucketed(adamw()).init(params)
    for other in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        assert jax.tree.structure(other) == jax.tree.structure(state)
        assert hash(jax.tree.structure(other)) == hash(jax.tree.structure(state))
    fewer = bucketed(adamw()).init({k: params[k] for k in list(params)[:-2]})
    assert jax.tree.structure(fewer) != jax.tree.structure(state)
    assert "40 leaves" in str(bucketed(adamw()).init(many(39)))


def test_a_state_that_changes_its_dtypes_apart_is_an_error():
    def update(updates, state, params=None):
        del params
        return updates, state | {"a": state["a"].astype(jnp.float16)}

    odd = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = adamx.bucketed(odd)
    with pytest.raises(TypeError, match=r"keep one dtype, got float16 and float32"):
        tx.update(params, tx.init(params), params)


# ------------------------------------------------------------------------ the protocol


def test_one_compilation_a_constant_state_and_scan():
    params, tx = many(), bucketed(adamw())
    state = tx.init(params)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for seed in range(3):
        before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
        _, state = update(random_like(params, seed), state, params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (adamx.apply_updates(params, updates), state), None

    gs = [random_like(params, seed) for seed in range(3)]
    start = (params, tx.init(params))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gs)
    got = jax.jit(lambda c, g: jax.lax.scan(step, c, g)[0])(start, stacked)
    assert jax.tree.structure(got) == jax.tree.structure(start)
    want = run(adamw(), params)
    assert_close(got[0], want[1])
    assert_close(to_flat(got[1]), to_flat(want[2]))


@pytest.mark.parametrize("first", some([0.0, np.nan, -np.inf], np.nan))
def test_compiled_and_vmapped_whatever_the_first_number_is(first):
    """Where leaves begin is hidden from XLA behind a number of the state."""
    params = many()

    def go(tx, params):
        state = tx.init(params)
        for seed in range(2):
            g = random_like(params, seed)
            g["l00"] = g["l00"].at[0, 0].set(first)
            updates, state = tx.update(g, state, params)
            params = adamx.apply_updates(params, updates)
        return params, to_flat(state)

    want = jax.jit(lambda p: go(adamw(), p))(params)
    got = jax.jit(lambda p: go(bucketed(adamw()), p))(params)
    assert_close(got, want)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    apart = jax.jit(jax.vmap(lambda p: go(bucketed(adamw()), p)[0]))(two)
    assert_close(jax.tree.map(lambda x: x[1], apart), want[0])


def test_a_batch_of_states_is_read_leaf_by_leaf():
    params = make_params()
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    tx = bucketed(adamw())
    state = jax.jit(jax.vmap(lambda p: tx.update(p, tx.init(p), p)[1]))(two)
    mu = unpacked(state.inner_state)[0].mu
    want = adamw().update(params, adamw().init(params), params)[1][0].mu
    assert_close(jax.tree.map(lambda x: x[0], mu), want)


def test_gradients_through_a_step():
    params = {f"l{i}": jnp.arange(1.0, 4.0) for i in range(20)}

    def after(tx, scale):
        g = jax.tree.map(lambda p: scale * p, params)
        updates, state = tx.update(g, tx.init(params), params)
        updates, _ = tx.update(params, state, params)
        return sum(jnp.sum(u) for u in jax.tree.leaves(updates))

    got, want = (
        jax.jit(jax.grad(lambda s, tx=tx: after(tx, s)))(1.5)
        for tx in (bucketed(adamw()), adamw())
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_map_params_goes_over_the_flat_arrays():
    params, tx = make_params(), bucketed(adamw())
    state = run(tx, params)[2]
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    want = optax.tree.map_params(adamw(), lambda x: 2 * x, run(adamw(), params)[2])
    chex.assert_trees_all_equal(unpacked(doubled.inner_state), want)
    with pytest.raises(ValueError, match="Packed"):
        optax.tree.map_params(tx, lambda x, p: x, state, params)


# ------------------------------------------------------------------- who looks into it


def test_describe_and_diagnose_see_the_leaves():
    params = make_params()
    want, got = (adamx.describe(tx, params) for tx in (adamw(), bucketed(adamw())))
    assert got == want
    state = bucketed(adamw()).init(params)
    assert adamx.describe(bucketed(adamw()), params, state).rows[0].learning_rate == LR
    # Two that are put together and one that is not: each layer is some 40 numbers.
    few = {name: params["blocks"][name] for name in ("layer_0", "layer_1")}
    few["large"] = params["large"]
    ends = [
        adamx.read(run(adamx.diagnose(tx, every=1), few, 2, jax.jit)[2]).scalars()
        for tx in (adamw(), bucketed(adamw()))
    ]
    assert ends[0].keys() == ends[1].keys()
    np.testing.assert_allclose(*(list(x.values()) for x in ends), rtol=1e-5)


@pytest.mark.slow
def test_what_else_reads_moments():
    params = make_params()
    del params["blocks"]["layer_6"]  # sharpness takes no empty leaf
    tx = adamx.schedule_free_adamw(LR)
    ends = [run(x, params) for x in (tx, bucketed(tx))]
    chex.assert_trees_all_equal(
        *(adamx.schedule_free_eval_params(state, p) for _, p, state in ends)
    )
    loss = lambda p, batch: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
    found = [
        adamx.sharpness(loss, params, run(x, params)[2], None)
        for x in (adamw(), bucketed(adamw()))
    ]
    np.testing.assert_allclose(
        found[0].preconditioned, found[1].preconditioned, rtol=1e-4
    )


def test_the_flat_format_and_migrate_go_both_ways(tmp_path):
    params = make_params()
    bare, state = run(adamw(), params)[2], run(bucketed(adamw()), params)[2]
    for saved, tx in ((bare, bucketed(adamw())), (state, adamw())):
        wanted = tx.init(params)
        made = from_flat(to_flat(saved), tx, params)
        moved = migrate(saved, tx, params)
        assert len(moved.kept) == len(moved.fates) == len(to_flat(saved))
        for new in (made, moved.state):
            assert jax.tree.structure(new) == jax.tree.structure(wanted)
            chex.assert_trees_all_equal(to_flat(new), to_flat(saved))
    save(tmp_path, 3, {"state": to_flat(state)})
    made = migrate(restore(tmp_path), bucketed(adamw()), params).state
    chex.assert_trees_all_equal(made, state)


# --------------------------------------------------------------------------- devices


def mesh():
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))


def test_shardings_of_the_flat_arrays():
    params, tx = many(), adamx.bucketed(adamw(), max_size=SMALL)
    specs = state_shardings(tx, params, P(), mesh=mesh())
    assert jax.tree.structure(specs) == jax.tree.structure(tx.init(params))
    assert all(x.spec == P() for x in jax.tree.leaves(specs))
    packed = state_shardings(tx, params, P(), zero1="data", mesh=mesh()).inner_state[0]
    sizes = [x.shape for x in tx.init(params).inner_state[0].mu.arrays]
    assert [x.spec for x in packed.mu.arrays] == [P("data"), P("data")]
    assert sizes[0][0] % 2 == 0
    odd = params | {"one": jnp.ones(1)}
    packed = state_shardings(tx, odd, P(), zero1="data", mesh=mesh()).inner_state[0]
    assert [x.spec for x in packed.nu.arrays] == [P(), P("data")]
    table = describe_shardings(tx, odd, P(), zero1="data", mesh=mesh())
    bare = describe_shardings(adamw(), odd, P(), mesh=mesh())
    assert [r.state_bytes for r in table.rows] == [r.state_bytes for r in bare.rows]
    assert set(table.undivided) == odd.keys() - {"large"}


def test_what_is_divided_stays_by_itself_or_is_an_error():
    params = {"a": jnp.ones((4, 2)), "b": jnp.ones(3), "c": jnp.ones((2, 2))}
    specs = {"a": P("model"), "b": P(), "c": P()}
    with pytest.raises(ValueError, match=r"divides 'a'.*shardings=param_shardings"):
        state_shardings(bucketed(adamw()), params, specs, mesh=mesh())
    places = {k: NamedSharding(mesh(), spec) for k, spec in specs.items()}
    there = jax.device_put(params, places)
    with pytest.raises(ValueError, match=r"`shardings` must be given .*'a'.*Pass buck"):
        bucketed(adamw()).init(there)
    for given in (specs, places):
        tx = adamx.bucketed(adamw(), shardings=given)
        found = state_shardings(tx, params, specs, mesh=mesh()).inner_state[0].mu
        assert [x.spec for x in found.arrays] == [P("model"), P()]
        state = tx.init(there)
        assert [x.shape for x in state.inner_state[0].mu.arrays] == [(4, 2), (7,)]


@pytest.mark.parametrize("zero1", some([None, "data"], "data"))
def test_values_on_several_devices_are_those_of_one(zero1):
    params = many()
    specs = {k: P() for k in params} | {"l00": P(None, "model"), "large": P("data")}
    places = {k: NamedSharding(mesh(), spec) for k, spec in specs.items()}
    tx = adamx.bucketed(adamw(), max_size=SMALL, shardings=specs)
    want = compiled(tx, params)
    own = state_shardings(tx, params, places, zero1=zero1)
    carry = jax.device_put(
        jax.tree.map(jnp.copy, (params, tx.init(params))), (places, own)
    )

    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        new = (adamx.apply_updates(params, updates), state)
        return jax.lax.with_sharding_constraint(new, (places, own))

    for seed in range(3):
        carry = step(*carry, jax.device_put(random_like(params, seed), places))
    assert_close(jax.device_get(carry), jax.device_get(want))


# ------------------------------------------------------------------- passes in place

CALL = re.compile(r'custom_call_target="adamx_')
NATIVE = {
    "adamw": adamw,
    "clip, adamw": lambda: optax.chain(adamx.clip_by_global_norm(0.1), adamw()),
    "optax": lambda: optax.adamw(LR),
    "lion": lambda: adamx.lion(LR),
    "lamb": lambda: adamx.lamb(LR),
    "int8": lambda: adamw(mu_dtype=CODEC, nu_dtype=CODEC),
    "guard": lambda: adamx.guard(adamw()),
}


@pytest.mark.parametrize("name", some(NATIVE, "clip, adamw"))
def test_passes_give_the_bits_of_the_bare_ones(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path))
    params, tx = many(), NATIVE[name]()
    want = compiled(tx, params, kernel="native")
    got = compiled(bucketed(tx), params, kernel="native")
    chex.assert_trees_all_equal(got[0], want[0])
    chex.assert_trees_all_equal(to_flat(got[1]), to_flat(want[1]))


@pytest.mark.slow
@as_users
@pytest.mark.parametrize("outer", ["none", "guard"])
def test_passes_work_in_place(outer, tmp_path, monkeypatch):
    """No copy of a flat array is made, and no loop of XLA's goes over one."""
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path))
    params = {f"l{i}": jnp.ones(600 + i) for i in range(20)}
    tx = bucketed(NATIVE["clip, adamw"]())
    tx = adamx.guard(tx) if outer == "guard" else tx
    state = tx.init(params)
    size = end_to_end(params, np.float32).size
    step = adamx.fused(tx, kernel="native").step
    ordered = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
    program = ordered.lower(params, state, params).compile()
    text = program.as_text()
    assert CALL.search(text)
    of_flat = rf"f32\[{size}\]\S* "
    assert not re.search(of_flat + r"(copy|fusion|concatenate)\(", text)
    assert program.memory_analysis().temp_size_in_bytes < size  # bytes, of 4 size
