"""`accumulate`: the mean of k gradients, and nothing in between."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from tests.compiling import as_users
from tests.helpers import enable_x64
from tests.test_contract import assert_close, make_params, random_like, signature
from tests.test_guard import both_ways, step_of
from tests.test_loss_scaling import _spoiled, assert_same_bits

pytestmark = pytest.mark.filterwarnings("error")

LR, NAN, INF = 1e-2, float("nan"), float("inf")
adamw = functools.partial(adamx.adamw, LR, weight_decay=0.1)


def small_params(dtype=jnp.float32):
    params = {"a": jnp.zeros((5, 7), dtype), "b": [jnp.zeros(3, dtype), None]}
    return random_like(params, 0)


def _loss(params, x, y):
    hidden = jnp.tanh(x @ params["in"])
    logits = hidden @ params["out"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def _problem(examples):
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.standard_normal((16, 12)) / 4, jnp.float32),
        "out": jnp.asarray(rng.standard_normal((12, 5)) / 4, jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((examples, 16)), jnp.float32)
    return params, x, jnp.asarray(rng.integers(0, 5, examples))


@pytest.mark.parametrize(("k", "way"), [(2, "protocol"), (4, "fused")])
def test_k_pieces_equal_the_large_batch(way, k):
    """To 1e-6 of the change, for three steps of one optimizer (Adam is scale-free)."""
    params, x, y = _problem(24)
    inner = optax.chain(adamx.clip_by_global_norm(0.05), adamx.sgd(1.0, momentum=0.9))
    tx = adamx.accumulate(inner, k)
    gradient = jax.jit(jax.grad(_loss))
    want, got = (params, inner.init(params)), (params, tx.init(params))
    large, small = step_of(inner, "protocol"), step_of(tx, way)
    for _ in range(3):
        want = large(*want, gradient(want[0], x, y))
        for i in range(k):
            piece = slice(i * 24 // k, (i + 1) * 24 // k)
            got = small(*got, gradient(got[0], x[piece], y[piece]))
    for a, b, start in zip(
        *map(jax.tree.leaves, (got[0], want[0], params)), strict=True
    ):
        change = np.linalg.norm(b - start)
        assert np.linalg.norm(a - b) <= 1e-6 * max(change, np.linalg.norm(start))
    assert int(got[1].inner_steps) == 3


@both_ways
def test_between_nothing_changes_and_updates_are_minus_zero(way):
    params = small_params()
    tx = adamx.accumulate(adamw(), 3)
    step, state, now = step_of(tx, way), tx.init(params), params
    for call in range(1, 7):
        before, held = now, state.inner_state
        gradients = random_like(params, call)
        updates, _ = jax.jit(tx.update)(gradients, state, now)
        assert signature(updates) == signature(params)
        now, state = step(now, state, gradients)
        if call % 3:
            assert_same_bits((now, state.inner_state), (before, held))
            for u in jax.tree.leaves(updates):
                assert not np.any(u)
                assert np.all(np.signbit(u))
        else:
            assert np.any(updates["a"])
        assert adamx.read(state).count == call // 3
        assert adamx.read(state).more["micro_step"] == call % 3


def test_the_mean_is_that_of_float32_whatever_the_gradients():
    """Eight float16 gradients of 6e4 overflow their sum; 1e-3 is lost beside 1."""
    seen = []

    def update(updates, state, params=None):
        seen.append(updates)
        return updates, state

    spy = optax.GradientTransformation(lambda p: optax.EmptyState(), update)
    for dtype, values, want in (
        (jnp.float16, [6e4] * 8, float(np.float16(6e4))),
        (jnp.bfloat16, [1.0, *[2.0**-9] * 7], (1 + 7 * 2.0**-9) / 8),
        (jnp.complex64, [1 + 2j] * 8, 1 + 2j),
    ):
        tx = adamx.accumulate(spy, 8)
        params = jnp.ones(2, dtype)
        state = tx.init(params)
        with jax.disable_jit():
            for value in values:
                updates, state = tx.update(jnp.full(2, value, dtype), state, params)
        assert updates.dtype == dtype
        wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
        assert seen[-1].dtype == state.accumulated.dtype == wide
        np.testing.assert_allclose(seen[-1], want, rtol=1e-7)


def lengths(tx, calls):
    """The calls at which the wrapped one made a step."""
    params = jnp.zeros(())
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for call in range(1, calls + 1):
        updates, state = update(jnp.float32(call), state, params)
        if int(state.inner_steps) > len(found):
            found.append((call, float(updates)))
    return found


def test_k_may_be_a_schedule_of_steps():
    """1 + n: windows of 1, 2, 3, ...; optax.MultiSteps agrees."""
    tx = adamx.accumulate(adamx.sgd(1.0), lambda n: 1 + n)
    want = [(1, -1.0), (3, -2.5), (6, -5.0), (10, -8.5)]
    assert lengths(tx, 10) == want
    theirs = optax.MultiSteps(optax.sgd(1.0), lambda n: 1 + n)
    state, found = theirs.init(jnp.zeros(())), []
    for call in range(1, 11):
        updates, state = theirs.update(jnp.float32(call), state)
        if theirs.has_updated(state):
            found.append((call, pytest.approx(float(updates), rel=1e-6)))
    assert found == want
    # adamx's and Optax's schedules return floats; what is below 1 is 1.
    tx = adamx.accumulate(adamx.sgd(1.0), adamx.schedules.linear(1.0, 3.0, 2))
    assert [call for call, _ in lengths(tx, 9)] == [1, 3, 6, 9]
    tx = adamx.accumulate(adamx.sgd(1.0), lambda n: 2.6)
    assert [call for call, _ in lengths(tx, 6)] == [3, 6]
    tx = adamx.accumulate(adamx.sgd(1.0), lambda n: 0)
    assert lengths(tx, 3) == [(1, -1.0), (2, -2.0), (3, -3.0)]


def test_k_may_be_traced_and_the_inner_schedule_counts_steps():
    @jax.jit
    def run(k):
        rates = optax.linear_schedule(1.0, 0.0, 4)
        tx = adamx.accumulate(adamx.sgd(rates), k)
        state, total = tx.init(jnp.zeros(())), []
        for _ in range(6):
            updates, state = tx.update(jnp.ones(()), state)
            total.append(updates)
        return jnp.stack(total)

    np.testing.assert_allclose(run(2), [0, -1, 0, -0.75, 0, -0.5])
    np.testing.assert_allclose(run(3), [0, 0, -1, 0, 0, -0.75])


# ----------------------------------------------------------------- what is not finite


WAYS = [(3, "fused"), (lambda n: 2 + n, "protocol"), (lambda n: 2 + n, "fused")]


@pytest.mark.parametrize(("k", "way"), WAYS, ids=["3", "2 + n", "2 + n, fused"])
def test_one_bad_micro_batch_is_left_out(way, k):
    """guard(accumulate): as if it had not been given; the window goes on."""
    params = small_params()
    tx = adamx.guard(adamx.accumulate(adamw(), k))
    step = step_of(tx, way)
    want = got = (params, tx.init(params))
    for call in range(8):
        good = random_like(params, call)
        want = step(*want, good)
        if call in (0, 1, 5):
            before = got
            got = step(*got, _spoiled(good, 1, (NAN, INF)[call % 2]))
            assert_same_bits((got[0], got[1].inner_state),
                             (before[0], before[1].inner_state))  # fmt: skip
        got = step(*got, good)
        assert_same_bits((got[0], got[1].inner_state), (want[0], want[1].inner_state))
    assert (adamx.read(got[1]).skipped, adamx.read(got[1]).count) == (3, 2)


WAYS = [(3, "protocol"), (lambda n: 3 + 0 * n, "fused")]


@pytest.mark.parametrize(("k", "way"), WAYS, ids=["3", "a schedule"])
def test_one_bad_micro_batch_costs_one_window(way, k):
    """accumulate(guard): as if that window had not been given; the next is clean."""
    params = small_params()
    tx = adamx.accumulate(adamx.guard(adamw()), k)
    step = step_of(tx, way)
    want = got = (params, tx.init(params))
    for window in range(3):
        for call in range(3):
            good = random_like(params, 3 * window + call)
            bad = _spoiled(good, 1, INF) if (window, call) == (1, 1) else good
            before = got
            got = step(*got, bad)
            if window == 1:
                assert_same_bits(got[0], before[0])
                continue
            want = step(*want, good)
    inner = lambda state: state.inner_state.inner_state  # noqa: E731
    assert_same_bits((got[0], inner(got[1])), (want[0], inner(want[1])))
    assert got[1].inner_state.skipped == 1
    assert int(got[1].inner_steps) == 3


def test_without_a_guard_a_bad_window_does_not_reach_the_next_sum():
    tx = adamx.accumulate(adamx.sgd(1.0), 2)
    params = jnp.zeros(())
    state, found = tx.init(params), []
    for g in (NAN, 1.0, 2.0, 4.0):
        updates, state = tx.update(jnp.float32(g), state, params)
        found.append(float(updates))
    assert np.isnan(found[1])
    assert found[3] == -3.0


# --------------------------------------------------------------- the protocol, nested


def test_compiled_once_and_stable():
    params = make_params(jnp.bfloat16)
    tx = adamx.accumulate(adamw(), 2)
    state = tx.init(params)
    before = signature(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for seed in range(4):
        updates, state = update(random_like(params, seed), state, params)
        assert signature(updates) == signature(params)
        assert signature(state) == before
    sums = jax.tree.leaves(state.accumulated)
    assert sum(x.nbytes for x in sums) == 4 * sum(x.size for x in sums)


def test_double_precision_and_strict_promotion():
    with enable_x64(), jax.numpy_dtype_promotion("strict"):
        params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.float16)}
        tx = adamx.accumulate(adamx.sgd(1.0), 3)
        state = tx.init(params)
        for value in (0.1, 0.2, 0.4):
            gradients = jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params)
            updates, new = jax.jit(tx.update)(gradients, state, params)
            assert signature(new) == signature(state)
            state = new
        np.testing.assert_allclose(updates["a"], -0.7 / 3, rtol=1e-15)


def test_16_bit_parameters_with_a_master():
    """Both orders; written in one call of k, where the master is inside."""
    params = small_params(jnp.bfloat16)
    inside = adamx.accumulate(adamx.master_weights(adamw()), 2)
    outside = adamx.master_weights(adamx.accumulate(adamw(), 2))
    found = []
    for tx in (inside, outside):
        step, carry = step_of(tx, "fused"), (params, tx.init(params))
        for seed in range(4):
            carry = step(*carry, random_like(params, seed))
        found.append(carry)
    (a, state), (b, other) = found
    chex.assert_trees_all_close(state.inner_state.master, other.master, rtol=1e-5)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.float32(p), np.float32(q), rtol=1e-2)
    for p, m in zip(*map(jax.tree.leaves, (a, state.inner_state.master)), strict=True):
        np.testing.assert_array_equal(p, m.astype(p.dtype))


def test_the_last_calls_extra_arguments_are_seen():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        jax.debug.callback(lambda v: seen.append(float(v)), value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = adamx.accumulate(inner, 2)
    params = jnp.ones(2)
    state = tx.init(params)
    step = jax.jit(lambda s, v: tx.update(params, s, params, value=v)[1])
    for value in (1.0, 2.0, 3.0, 4.0):
        state = step(state, value)
    jax.effects_barrier()
    assert seen == [2.0, 4.0]


@pytest.mark.slow
def test_inside_and_outside_of_other_wrappers():
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    gradients = random_like(params, 3)
    bare = adamw()
    want, _ = bare.update(gradients, bare.init(params), params)
    wrapped = {
        "chain": optax.chain(optax.identity(), adamx.accumulate(adamw(), 2)),
        "masked inside": adamx.accumulate(optax.masked(adamw(), True), 2),
        "masked outside": optax.masked(adamx.accumulate(adamw(), 2), True),
        "partition": adamx.accumulate(optax.partition(
            {"x": adamw(), "y": adamw()}, {"a": "x", "b": "y"}), 2),
        "inject outside": optax.inject_hyperparams(
            lambda learning_rate: adamx.accumulate(
                adamx.adamw(learning_rate, weight_decay=0.1), 2))(LR),
        "scaling": adamx.accumulate(adamx.loss_scaling(adamw(), initial_scale=1.0), 2),
        "twice": adamx.accumulate(adamx.accumulate(adamw(), 2), 1),
    }  # fmt: skip
    for label, tx in wrapped.items():
        state = tx.init(params)
        update = jax.jit(tx.update)
        for _ in range(2):
            updates, new = update(gradients, state, params)
            assert signature(new) == signature(state), label
            state = new
        assert_close(updates, want, rtol=1e-5, atol=1e-8)
        assert adamx.read(state).count == 1, label
        mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)


@pytest.mark.parametrize("params", [{}, (), None, {"a": None}, [jnp.ones((0,))]])
def test_trees_without_elements(params):
    tx = adamx.accumulate(adamw(), 2)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert int(state.micro_step) == 1


@as_users
def test_eight_devices_and_donation():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    tx = adamx.accumulate(adamw(), 2)
    spread = jax.device_put(params, place)
    one, eight = (params, tx.init(params)), (spread, tx.init(spread))
    assert eight[1].accumulated["w"].sharding.is_equivalent_to(place["w"], 2)
    step = step_of(tx, "fused")
    for seed in range(4):
        gradients = random_like(params, seed)
        one = step(*one, gradients)
        eight = step(*eight, jax.device_put(gradients, place))
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(eight))
    leaves = jax.tree.leaves(one)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)
