"""`master_weights` and `compensated`: bit for bit, and in training."""

import functools
import inspect

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.compose._narrow import round_leaf
from adamx.moments import _order
from tests import reference_narrow
from tests.compiling import AS_USERS, as_users
from tests.helpers import enable_x64, some
from tests.test_contract import make_params, random_like, signature

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map

WRAPPERS = {
    "float32": adamx.master_weights,
    "split": functools.partial(adamx.master_weights, storage="split"),
    "rest": adamx.compensated,
}
BYTES = {"float32": 4, "split": 2, "rest": 2}
by_kind = pytest.mark.parametrize("kind", WRAPPERS)
by_one_kind = pytest.mark.parametrize("kind", some(WRAPPERS, "split"))


def stored_of(state):
    return state.rest if hasattr(state, "rest") else state.master


# ------------------------------------------------------------------- bit for bit

CASES = [
    *[(kind, ml_dtypes.bfloat16, largest) for kind in WRAPPERS for largest in (1, 1e9)],
    *[
        (kind, np.float16, largest)
        for kind in ("float32", "rest")
        for largest in (1, 1e4)
    ],
]


# Quickly: both ways to keep 16 bits, each dtype.
QUICK = (("split", ml_dtypes.bfloat16, 1), ("rest", np.float16, 1))


@pytest.mark.parametrize(("kind", "dtype", "largest"), some(CASES, *QUICK))
def test_a_thousand_wild_steps_are_those_of_the_definition(kind, dtype, largest):
    """Parameters after Optax's own sum, and what is stored, to the last bit."""
    rng = np.random.default_rng(1)
    start = (rng.standard_normal(301) * largest / 4).astype(dtype)
    updates = reference_narrow.wild_updates(start, 1000, largest)
    tx = WRAPPERS[kind](optax.identity())

    def step(carry, u):
        p, state = carry
        moves, state = tx.update(u, state, p)
        p = optax.apply_updates(p, moves)
        return (p, state), (p, stored_of(state), state.uncarried, moves)

    carry = (jnp.asarray(start), tx.init(jnp.asarray(start)))
    _, (ps, stored, counts, moves) = jax.jit(lambda c, u: jax.lax.scan(step, c, u))(
        carry, updates
    )
    assert moves.dtype == jnp.float32
    ps, stored, counts = map(np.asarray, (ps, stored, counts))
    smallest, old, missed_before = np.inf, start, np.zeros(301, bool)
    for t, want in enumerate(reference_narrow.run(kind, start, updates, dtype)):
        p, new, kept, missed = want
        np.testing.assert_array_equal(ps[t], p, err_msg=f"t={t}")
        np.testing.assert_array_equal(stored[t], kept, err_msg=f"t={t}")
        assert int(counts[t]) == np.sum(missed)
        target = new.astype(dtype).astype(np.float64)
        error, before = np.abs(p - target), np.abs(old.astype(np.float32))
        assert np.all(error[~missed] == 0)
        assert np.all(error[missed] <= np.spacing(before[missed]))
        assert np.all(before[missed] > 2.0**12 * np.abs(target[missed]))
        assert not np.any(missed & missed_before)
        left = np.abs(target[before > 0]) / before[before > 0]
        smallest = min(smallest, np.min(left[left > 0]))
        old, missed_before = p, missed
    assert np.sum(counts) <= 3
    assert smallest < 2.0**-20  # nearly all of a parameter was taken away


@by_kind
def test_the_master_drifts_by_no_more_than_what_is_missed(kind):
    """Against a float32 sum: exact; one ulp for each tie or miss; 2^-17 for Kahan."""
    start = np.random.default_rng(1).standard_normal(301).astype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(2)
    updates = (rng.standard_normal((1000, 301)) * 1e-3).astype(np.float32)
    exact = start.astype(np.float32)
    for u in updates:
        exact = exact + u
    *_, (p, new, _, _) = reference_narrow.run(kind, start, updates)
    bar = {"float32": 0.0, "split": 1e-5, "rest": 1e-3}[kind]
    assert np.max(np.abs(new - exact)) <= bar
    plain = start
    for u in updates:
        plain = (plain.astype(np.float32) + u).astype(ml_dtypes.bfloat16)
    assert np.max(np.abs(p.astype(np.float32) - exact)) < 1e-2
    assert np.max(np.abs(plain.astype(np.float32) - exact)) > 3e-2


def test_a_tie_costs_split_weights_one_ulp():
    tx = adamx.master_weights(optax.identity(), storage="split")
    p = jnp.array([1.0, -1.0, 1.0078125], jnp.bfloat16)
    half = jnp.array([2.0**-8, -(2.0**-8), 2.0**-8], jnp.float32)
    updates, state = tx.update(half, tx.init(p), p)
    after = optax.apply_updates(p, updates)
    assert after.astype(jnp.float32).tolist() == [1.0, -1.0, 1.015625]  # to the even
    assert state.master.tolist() == [2**15 - 1, 2**15 - 1, -(2**15)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_rounding_is_numpys(dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    x = words.view(np.float32)
    x = x[np.abs(x) >= np.finfo(np.float32).tiny]
    narrow = rng.standard_normal(1 << 16) * 10.0 ** rng.uniform(-9, 5, 1 << 16)
    x = np.concatenate([x, narrow.astype(np.float32), [np.inf, -np.inf, np.nan]])
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        want = x.astype(dtype).astype(np.float32) + np.float32(0)  # -0 becomes 0
    got = np.asarray(jax.jit(lambda x: round_leaf(x, jnp.dtype(dtype)))(x))
    want[np.abs(want) < np.finfo(np.float32).tiny] = 0
    np.testing.assert_array_equal(got, want)
    assert not np.any(np.signbit(got[got == 0]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
@by_kind
def test_a_step_of_nothing_moves_nothing(kind, dtype):
    """A rest that is rounded to half a unit would be read as the other neighbour."""
    if kind == "split" and dtype == jnp.float16:
        pytest.skip("split halves are bfloat16's")
    rng = np.random.default_rng(1)
    tx = WRAPPERS[kind](optax.identity())
    p = jnp.asarray(rng.standard_normal(1 << 17), dtype)
    step = jax.jit(tx.update)
    updates, state = step(
        0.03 * jnp.asarray(rng.standard_normal(p.size)), tx.init(p), p
    )
    p = optax.apply_updates(p, updates)
    updates, after = step(jnp.zeros(p.size), state, p)
    chex.assert_trees_all_equal(optax.apply_updates(p, updates), p)
    chex.assert_trees_all_equal(stored_of(after), stored_of(state))


@by_kind
def test_zeros_nan_and_infinity(kind):
    tx = WRAPPERS[kind](optax.identity())
    p = jnp.array([0.0, -0.0, 1.0, 1.0, 3e38, 1.0], jnp.bfloat16)
    u = jnp.array([-0.0, -1e-45, jnp.nan, jnp.inf, 3e38, -1.0], jnp.float32)
    updates, state = jax.jit(tx.update)(u, tx.init(p), p)
    after = np.asarray(optax.apply_updates(p, updates)).astype(np.float32)
    np.testing.assert_array_equal(after, [0, 0, np.nan, np.inf, np.inf, 0])
    assert np.signbit(after[[0, 1, 5]]).tolist() == [False, True, False]
    assert float(state.uncarried) == 0  # NaN reaches its target
    # A zero that was left again: nothing of its past is in it.
    updates, _ = tx.update(jnp.full(6, 2.0), state, jnp.asarray(after, jnp.bfloat16))
    assert updates[5] == 2.0


@by_kind
@pytest.mark.parametrize("large", [0, 1 << 16])
def test_a_missed_target_is_counted_read_and_right_after_the_next_step(
    kind, large, monkeypatch
):
    """1 - 3 ulp is kept as 1, and 1 is taken away: -1 - 3 ulp has a bit too many."""
    monkeypatch.setattr(_order, "LARGE", large)  # with and without the conditional
    tx, ulp = WRAPPERS[kind](optax.identity()), 2.0**-24
    p = {"w": jnp.ones(2, jnp.bfloat16)}
    state = tx.init(p)
    update = jax.jit(tx.update)
    counts = []
    for u in ([-3 * ulp, 0.0], [-1.0, -0.5], [0.0, 0.0]):
        updates, state = update({"w": jnp.array(u)}, state, p)
        p = optax.apply_updates(p, updates)
        counts.append(adamx.read(state).scalars()["uncarried"])
        if len(counts) == 2:
            assert p["w"].astype(jnp.float32).tolist() == [-4 * ulp, 0.5]
    assert counts == [0.0, 1.0, 0.0]
    want = -3 * ulp if kind == "float32" else -4 * ulp  # the master went along
    assert p["w"].astype(jnp.float32).tolist() == [want, 0.5]


def test_parameters_changed_by_other_hands_come_back_to_their_master():
    """In one step; in two where they were made 2^16 times as large and more."""
    tx = adamx.master_weights(optax.identity())
    p = {"w": jnp.array([1e-3, 1e-3, -2e-6, 1.0], jnp.bfloat16)}
    state = tx.init(p)
    u = {"w": jnp.full(4, 1e-6)}
    changed = {"w": jnp.array([1.0, 1e4, 3e7, 2.0], jnp.bfloat16)}
    updates, state = jax.jit(tx.update)(u, state, changed)
    after = optax.apply_updates(changed, updates)
    want = np.asarray(state.master["w"]).astype(ml_dtypes.bfloat16)
    missed = np.asarray(after["w"]) != want
    assert missed.tolist() == [False, True, True, False]
    error = np.abs(np.asarray(after["w"]).astype(np.float64) - want.astype(np.float64))
    assert np.all(error <= np.spacing(np.asarray(changed["w"]).astype(np.float32)))
    assert adamx.read(state).more["uncarried"] == 2
    zero = jax.tree.map(jnp.zeros_like, u)
    updates, state = jax.jit(tx.update)(zero, state, after)
    after = optax.apply_updates(after, updates)
    assert adamx.read(state).scalars()["uncarried"] == 0
    np.testing.assert_array_equal(after["w"], want)


@pytest.mark.parametrize("kind", ["split", "rest"])
@pytest.mark.parametrize("rest", [1e-3, -1e-3])
def test_two_bytes_move_with_parameters_changed_by_other_hands(kind, rest):
    """1 + rest is stored as 1; what was kept of it must not spoil another p, or a 0."""
    tx = WRAPPERS[kind](optax.identity())
    p = jnp.full(3, 1.0, jnp.bfloat16)
    updates, state = tx.update(jnp.full(3, rest), tx.init(p), p)
    assert optax.apply_updates(p, updates).astype(jnp.float32).tolist() == [1, 1, 1]
    changed = jnp.array([1e6, 0.0, 1.0], jnp.bfloat16)
    updates, state = tx.update(jnp.full(3, 2e-3), state, changed)
    after = optax.apply_updates(changed, updates).astype(jnp.float32)
    np.testing.assert_allclose(after[::2], changed[::2], rtol=4e-3)
    # The bits of a rest say nothing beside a 0; a number is added to it.
    want = 2e-3 if kind == "split" else 2e-3 + rest
    np.testing.assert_allclose(after[1], want, rtol=5e-3)
    assert float(state.uncarried) == 0


# ------------------------------------------------------------------------ training


def _task():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 16)).astype(np.float32)
    hidden = np.tanh(x @ rng.standard_normal((16, 8)))
    y = (hidden @ rng.standard_normal((8, 1))).astype(np.float32)
    first = rng.standard_normal((16, 32)) / 4
    params = {"a": first, "b": rng.standard_normal((32, 1)) / 6}

    def loss(p):
        # The model computes in float32, with the 16-bit weights: what differs between
        # the runs is how these are written.
        p = jax.tree.map(lambda w: w.astype(jnp.float32), p)
        return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params), loss


def _train(tx, dtype, key=None, steps=3000):
    params, loss = _task()
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    options = {} if key is None else {"rounding": "stochastic"}

    def step(carry, t):
        p, state = carry
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        more = {} if key is None else {"key": jax.random.fold_in(key, t)}
        p = adamx.apply_updates(p, updates, **options, **more)
        return (p, state), None

    run = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0])
    (params, _) = run((params, tx.init(params)))
    return float(loss(params))


@pytest.mark.slow
def test_training_in_bfloat16_reaches_the_loss_of_float32():
    """Where plain sums do not: their steps of 1e-4 are below half an ulp."""
    make = lambda: adamx.adam(1e-4)  # noqa: E731
    want = _train(make(), jnp.float32)
    plain = _train(make(), jnp.bfloat16)
    assert plain > 3 * want
    for kind, wrapper in WRAPPERS.items():
        assert _train(wrapper(make()), jnp.bfloat16) < 1.05 * want, kind
    for kind in ("float32", "rest"):
        assert _train(WRAPPERS[kind](make()), jnp.float16) < 1.05 * want, kind
    stochastic = _train(make(), jnp.bfloat16, jax.random.key(0))
    assert stochastic < 1.3 * want


# ----------------------------------------------------- the protocol, whatever is inside


def _mixed(dtype=jnp.bfloat16):
    params = make_params(dtype)
    return {**params, "single": jnp.linspace(-1.0, 1.0, 5), "one": jnp.ones(())}


def _steps(tx, params, seeds=range(4), jit=True):
    update = jax.jit(tx.update) if jit else tx.update
    state = tx.init(params)
    for seed in seeds:
        updates, state = update(random_like(params, seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _make(kind, learning_rate=1e-2):
    return WRAPPERS[kind](adamx.adamw(learning_rate, b1=0.8))


@by_kind
def test_state_is_stable_compiled_once_and_as_large_as_stated(kind):
    params, tx = _mixed(), _make(kind)
    state = tx.init(params)
    before = signature(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    with jax.numpy_dtype_promotion("strict"):
        for seed in range(3):
            updates, state = update(random_like(params, seed), state, params)
            assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))
            assert signature(state) == before
            params = adamx.apply_updates(params, updates)
    assert signature(params) == signature(_mixed())
    narrow = sum(p.size for p in jax.tree.leaves(params) if p.dtype == jnp.bfloat16)
    size = sum(s.nbytes for s in jax.tree.leaves(stored_of(state)))
    wide = sum(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    assert size == BYTES[kind] * (narrow + wide)  # one number for each wide leaf
    assert adamx.read(state).count == 3
    assert adamx.read(state).learning_rate == pytest.approx(1e-2)
    shapes = jax.eval_shape(tx.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(abstract), state)


@by_one_kind
def test_leaves_of_32_bits_and_more_are_as_without(kind):
    for params in (make_params(), make_params(jnp.complex64)):
        got, state = _steps(_make(kind), params)
        want, plain = _steps(adamx.adamw(1e-2, b1=0.8), params)
        chex.assert_trees_all_close(got, want, rtol=1e-6)
        chex.assert_trees_all_close(state.inner_state, plain, rtol=1e-6)
    with enable_x64():
        params = {"d": jnp.ones(3, jnp.float64), "h": jnp.ones(3, jnp.bfloat16)}
        tx = _make(kind)
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates["d"].dtype == jnp.float64
        assert updates["h"].dtype == jnp.float32


@pytest.mark.parametrize("kind", ["float32", "split"])
def test_training_is_that_of_float32_parameters(kind):
    """The wrapped optimizer sees the master, and a gradient widened to float32."""
    params = make_params(jnp.bfloat16)
    gradients = [random_like(params, seed) for seed in range(5)]
    tx, plain = _make(kind), adamx.adamw(1e-2, b1=0.8)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    state, plain_state = tx.init(params), plain.init(wide)
    for g in gradients:
        updates, state = jax.jit(tx.update)(g, state, params)
        params = optax.apply_updates(params, updates)
        wide_g = jax.tree.map(lambda x: x.astype(jnp.float32), g)
        updates, plain_state = jax.jit(plain.update)(wide_g, plain_state, wide)
        wide = optax.apply_updates(wide, updates)
    if kind == "float32":
        chex.assert_trees_all_close(state.master, wide, rtol=2e-6, atol=1e-7)
    rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(rounded), strict=True)
    same = np.concatenate([np.asarray(a == b).ravel() for a, b in pairs])
    assert np.mean(same) > 0.99


@pytest.mark.slow
@by_one_kind
def test_eager_scan_and_vmap_agree(kind):
    params, tx = _mixed(), _make(kind)
    want = _steps(tx, params)
    gradients = [random_like(params, seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)

    def run(params, stacked):
        def step(carry, g):
            updates, state = tx.update(g, carry[1], carry[0])
            return (adamx.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]

    two = jax.tree.map(lambda x: jnp.stack([x, x]), (params, stacked))
    batched = jax.tree.map(lambda x: x[1], jax.jit(jax.vmap(run))(*two))
    others = _steps(tx, params, jit=False), jax.jit(run)(params, stacked), batched
    for got in others:
        chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
        chex.assert_trees_all_close(got[0], want[0], rtol=1e-2, atol=1e-6)
        held = got[1].inner_state, want[1].inner_state
        chex.assert_trees_all_close(*held, rtol=1e-5, atol=1e-6)
        if kind == "float32":
            held = got[1].master, want[1].master
            chex.assert_trees_all_close(*held, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("kind", some(WRAPPERS, "float32", "split"))
@as_users
def test_temporaries_of_a_donated_step(kind):
    """At most the largest leaf twice in float32: its new master, and who missed.

    Here a leaf is a quarter of the tree, and two float32 leaves one tree of bfloat16.
    """
    params = {name: jnp.ones((256, 256), jnp.bfloat16) for name in "abcd"}
    tx = _make(kind)
    state, gradients = tx.init(params), random_like(params, 1)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    want = jax.jit(step)(params, state, gradients)
    donated = jax.jit(step, donate_argnums=(0, 1))
    donated = donated.lower(params, state, gradients).compile(AS_USERS)
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    trees = {"float32": 0.5, "split": 1.0, "rest": 1.0}[kind]
    assert donated.memory_analysis().temp_size_in_bytes <= (trees + 0.02) * size
    got = donated(params, state, gradients)
    assert params["a"].is_deleted()
    chex.assert_trees_all_equal(got, want)
    leaves = jax.tree.leaves(tx.init(got[0]))
    pointers = [x.unsafe_buffer_pointer() for x in leaves if x.size]
    assert len(set(pointers)) == len(pointers)


@by_one_kind
@as_users
def test_eight_devices_equal_one(kind):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = {"w": jnp.zeros((64, 24), jnp.bfloat16), "v": jnp.zeros((16, 8))}
    params = random_like({**params, "b": jnp.zeros(24, jnp.bfloat16)}, 0)
    place = {"w": PartitionSpec("data"), "v": PartitionSpec(None, "data")}
    place = jax.tree.map(
        lambda s: NamedSharding(mesh, s), {**place, "b": PartitionSpec()}
    )
    tx = _make(kind)
    one = _steps(tx, params)
    spread = jax.device_put(params, place)
    state, update = tx.init(spread), jax.jit(tx.update)
    # What is stored has the parameter's sharding; or is one number.
    everywhere = NamedSharding(mesh, PartitionSpec())
    stored = jax.device_put(stored_of(state), {**place, "v": everywhere})
    field = "rest" if kind == "rest" else "master"
    state = state._replace(**{field: stored})
    for seed in range(4):
        gradients = jax.device_put(random_like(params, seed), place)
        updates, state = update(gradients, state, spread)
        spread = adamx.apply_updates(spread, updates)
    chex.assert_trees_all_equal(one, jax.device_get((spread, state)))
    assert stored_of(state)["w"].sharding.is_equivalent_to(place["w"], 2)


@by_kind
def test_what_is_stored_is_made_where_the_parameters_are(kind):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(jnp.ones((64, 24), jnp.bfloat16), place)
    stored = stored_of(_make(kind).init(params))
    assert stored.sharding.is_equivalent_to(place, 2)


@by_one_kind
@pytest.mark.parametrize("size", [100, _order.LARGE], ids=["small", "large"])
def test_each_device_its_own_part_under_shard_map(kind, size):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like(jnp.zeros(8 * size, jnp.bfloat16), 0)
    tx = _make(kind)
    state = tx.init(params)

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return adamx.apply_updates(params, updates), state

    def own(params, state, gradient):
        params, state = step(params, state, gradient)
        total = jax.lax.psum(state.uncarried, "data")
        return params, state._replace(uncarried=total)

    shared = PartitionSpec("data")
    specs = jax.tree.map(lambda x: shared if x.ndim else PartitionSpec(), state)
    ours = shard_map(
        own, mesh=mesh, in_specs=(shared, specs, shared), out_specs=(shared, specs)
    )
    gradient = random_like(params, 1)
    got = jax.jit(ours)(params, state, gradient)
    chex.assert_trees_all_equal(got, jax.jit(step)(params, state, gradient))


@pytest.mark.parametrize("kind", some(WRAPPERS, "split", "rest"))
def test_derivatives_go_through_several_steps(kind):
    """Twice -0.1 per unit of gradient: that of the bits of "split" was 0."""
    tx = WRAPPERS[kind](adamx.sgd(0.1))

    def after_two(gradient):
        params = jnp.ones(4, jnp.bfloat16)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jnp.full(4, gradient), state, params)
            params = adamx.apply_updates(params, updates)
        return params.astype(jnp.float32).mean()

    np.testing.assert_allclose(jax.grad(after_two)(1.0), -0.2, rtol=1e-2)


@by_one_kind
def test_map_params_and_checkpoint(kind):
    params, tx = _mixed(), _make(kind)
    params, state = _steps(tx, params)
    named = optax.tree.map_params(
        tx,
        lambda _, name: name,
        state,
        jax.tree.map(lambda p: str(p.dtype), params),
        transform_non_params=lambda _: "scalar",
    )
    assert named.uncarried == "scalar"
    assert stored_of(named)["scalar"] == "bfloat16"
    raw = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(tx.init(params), raw)
    restored = jax.tree.map(jnp.asarray, restored)
    assert signature(restored) == signature(state)
    gradients = random_like(params, 9)
    update = jax.jit(tx.update)
    one, two = (update(gradients, s, params) for s in (state, restored))
    chex.assert_trees_all_equal(one, two)


@pytest.mark.slow  # quickly: tests/test_wrapper_pairs.py, tests/test_fused.py
@by_one_kind
def test_other_transformations_inside_and_around(kind):
    params = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    gradients = {"a": jnp.full(4, 0.5, jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    wrap, inner = WRAPPERS[kind], adamx.adam(1e-3)
    want, _ = wrap(inner).update(gradients, wrap(inner).init(params), params)
    insides = [
        optax.inject_hyperparams(adamx.adam)(1e-3),
        optax.chain(optax.identity(), inner),
        optax.partition({"x": inner}, "x"),
        optax.masked(inner, True),
        adamx.cautious(inner),
        optax.adam(1e-3),
        optax.MultiSteps(inner, 1).gradient_transformation(),
        optax.apply_if_finite(inner, 3),
    ]
    for tx in [wrap(inside) for inside in insides] + [
        optax.partition({"x": wrap(inner)}, "x"),
        optax.chain(optax.identity(), wrap(inner)),
        optax.MultiSteps(wrap(inner), 1).gradient_transformation(),
    ]:
        updates, state = jax.jit(tx.update)(gradients, tx.init(params), params)
        chex.assert_trees_all_close(updates, want, rtol=1e-6)
        assert adamx.read(state).more["uncarried"] == 0
    around = optax.masked(wrap(inner), {"a": True, "b": False})
    updates, _ = around.update(gradients, around.init(params), params)
    np.testing.assert_array_equal(updates["a"], want["a"])
    np.testing.assert_array_equal(updates["b"], gradients["b"])
    seen = wrap(adamx.sophia_h(1e-3))  # extra arguments are handed on
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
    seen.update(gradients, seen.init(params), params, loss_fn=loss)


@by_one_kind
def test_flax_clients(kind):
    from flax import nnx
    from flax.training.train_state import TrainState

    tx = WRAPPERS[kind](adamx.sgd(1e-3))
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    train = TrainState.create(apply_fn=None, params=params, tx=tx)
    for _ in range(3):
        train = train.apply_gradients(grads=params)
    assert train.params["w"].dtype == jnp.bfloat16
    assert float(train.params["w"][0]) == 0.99609375  # 0.997
    model = nnx.Linear(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model.kernel = nnx.Param(jnp.ones((2, 2), jnp.bfloat16))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters
    for _ in range(3):
        optimizer.update(*[model] * takes_model, gradients)
    (kernel,) = jax.tree.leaves(nnx.state(model, nnx.Param)["kernel"])
    assert kernel.dtype == jnp.bfloat16
    assert float(kernel[0, 0]) == 0.99609375


def test_a_client_that_promotes_is_told():
    """Equinox's apply_updates is p + u, float32: the next step says what to do."""
    tx = adamx.compensated(adamx.sgd(0.1))
    p = {"w": jnp.ones(3, jnp.bfloat16)}
    updates, state = tx.update(p, tx.init(p), p)
    promoted = jax.tree.map(lambda a, b: a + b, p, updates)
    with pytest.raises(
        ValueError, match=r"'w' must hold.*float32.*adamx.apply_updates"
    ):
        tx.update(p, state, promoted)
    kept = adamx.apply_updates(p, updates)
    tx.update(p, state, kept)


# ----------------------------------------------------------------------- bad input


def test_bad_input():
    p = {"w": jnp.ones(3, jnp.bfloat16)}
    for make in WRAPPERS.values():
        for bad in (1e-3, adamx.adamw, None):
            with pytest.raises(TypeError, match=r"`inner` must be a gradient.*pass"):
                make(bad)
        tx = make(adamx.sgd(0.1))
        with pytest.raises(TypeError, match=r"parameter at 'i'.*int32.*optax.masked"):
            tx.init({"i": jnp.arange(3)})
        with pytest.raises(TypeError, match=r"'w' must be bfloat16, float16.*float8"):
            tx.init({"w": jnp.ones(3, jnp.float8_e4m3fn)})
        state = tx.init(p)
        with pytest.raises(ValueError, match=r"`params` must be the current.*None"):
            tx.update(p, state)
        with pytest.raises(TypeError, match=r"`state` must be the .*State.*got"):
            tx.update(p, adamx.sgd(0.1).init(p), p)
        with pytest.raises(ValueError, match=r"gradient at 'w' must have shape"):
            tx.update({"w": jnp.ones(4)}, state, p)
        with pytest.raises(ValueError, match=r"same tree structure.*missing: 'w'"):
            tx.update({"v": jnp.ones(3)}, state, p)
        with pytest.raises(ValueError, match=r"same tree structure.*optimizer state"):
            tx.update({"v": jnp.ones(3)}, state, {"v": jnp.ones(3)})
        with pytest.raises(TypeError, match=r"gradient at 'w'.*int32"):
            tx.update({"w": jnp.arange(3)}, state, p)
    for storage in ("float16", jnp.float16, jnp.bfloat16, None):
        with pytest.raises(ValueError, match=r"`storage` must be 'float32' or 'split'"):
            adamx.master_weights(adamx.sgd(0.1), storage=storage)
    tx = WRAPPERS["split"](adamx.sgd(0.1))
    with pytest.raises(TypeError, match=r"'w' must be bfloat16.*'split'.*float16"):
        tx.init({"w": jnp.ones(3, jnp.float16)})
    other = WRAPPERS["float32"](adamx.sgd(0.1)).init(p)
    with pytest.raises(ValueError, match=r"state at 'w' must hold int16.*float32"):
        tx.update(p, other, p)
