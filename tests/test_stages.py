"""`stages`: one optimizer after another, what begins, what is carried, what is read."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.compose._carry import carried
from tests import reference_hand_over
from tests.compiling import AS_USERS, as_users
from tests.helpers import enable_x64, some
from tests.test_contract import assert_close, make_params, random_like, signature
from tests.test_loss_scaling import assert_same_bits

LR = 1e-3
RAMP = optax.linear_schedule(1.0, 0.0, 10)


def by_update(tx):
    """A training step by the Optax protocol, in the order of `fused`'s."""

    def step(gradients, state, params, **extra):
        updates, state = tx.update(gradients, state, params, **extra)
        return adamx.apply_updates(params, updates), state

    return step


def by_step(tx):
    return adamx.fused(tx).step


both_ways = pytest.mark.parametrize("way", [by_update, by_step])


def train(tx, params, steps, way=by_step):
    """Parameters, state and reading behind each step."""
    step, state, rows = jax.jit(way(tx)), tx.init(params), []
    for seed in range(steps):
        params, state = step(random_like(params, seed), state, params)
        rows.append((params, state, adamx.read(state)))
    return rows


# ------------------------------------------------------------------------- the plan


def three():
    return [(adamx.adamw(LR), 3), (adamx.sgd(0.1, 0.9), 2), (adamx.lion(LR), None)]


@both_ways
def test_each_stage_is_its_optimizer_started_there(way):
    params = random_like({"w": jnp.zeros((65, 33)), "b": jnp.zeros(7)}, 0)
    rows = train(adamx.stages(three()), params, 8, way)
    t = 0
    for tx, steps in three():
        state, step = tx.init(params), jax.jit(by_step(tx))
        for _ in range(steps or 3):
            params, state = step(random_like(params, t), state, params)
            if way is by_step:
                assert_same_bits(rows[t][0], params)
            else:  # the update itself is rounded too
                assert_close(rows[t][0], params, rtol=2e-7, atol=2e-7)
            params = rows[t][0]
            t += 1
    assert t == 8


def test_update_and_step_are_equal():
    params = random_like({"w": jnp.zeros((65, 33)), "b": jnp.zeros(7)}, 0)
    tx = adamx.stages(three())
    pairs = zip(train(tx, params, 8, by_update), train(tx, params, 8), strict=True)
    for (p, state, _), (q, other, _) in pairs:
        assert_close((p, state), (q, other), rtol=3e-7, atol=3e-7)


def test_one_stage_is_its_optimizer():
    params = make_params()
    rows = train(adamx.stages([(adamx.adamw(LR), None)]), params, 3)
    want = train(adamx.adamw(LR), params, 3)
    assert_close(rows[-1][0], want[-1][0], rtol=3e-7, atol=1e-9)


@both_ways
def test_only_the_stage_at_work_is_computed(way):
    calls = []

    def noted(name):
        def update(updates, state, params=None, **extra):
            jax.debug.callback(lambda: calls.append(name))
            return jax.tree.map(jnp.negative, updates), state + 1

        return optax.GradientTransformationExtraArgs(
            lambda params: jnp.zeros((), jnp.int32), update
        )

    tx = adamx.stages([(noted("a"), 2), (noted("b"), 1), (noted("c"), None)])
    rows = train(tx, jnp.ones(3), 5, way)
    jax.effects_barrier()
    assert sorted(calls) == ["a", "a", "b", "c", "c"]
    counts = [[int(c) for c in state.inner_states] for _, state, _ in rows]
    assert counts == [[1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 1, 1], [2, 1, 2]]


@both_ways
def test_extra_arguments_reach_the_stage_at_work(way):
    def scaled(factor):
        def update(updates, state, params=None, *, value, **extra):
            return jax.tree.map(lambda g: -factor * value * g, updates), state

        return optax.GradientTransformationExtraArgs(
            lambda p: optax.EmptyState(), update
        )

    tx = adamx.stages([(scaled(1.0), 1), (scaled(10.0), None)])
    step, params, state = way(tx), jnp.zeros(1), tx.init(jnp.zeros(1))
    for want in (-2.0, -22.0):
        params, state = step(jnp.ones(1), state, params, value=jnp.float32(2))
        assert float(params[0]) == want


# -------------------------------------------------------- schedules restart or go on


def scheduled():
    """Each applies a factor of 1 - t/10 at step t of its schedule: to 1 or to p = 1."""
    return {
        "rate": adamx.sgd(RAMP),
        "rate and momentum": adamx.sgd(RAMP, 0.0),
        "optax": optax.sgd(RAMP),
        "decay": adamx.adamw(1.0, b1=0.0, b2=0.0, weight_decay=RAMP),
        "inject": optax.inject_hyperparams(adamx.sgd)(learning_rate=RAMP),
        "inside others": optax.partition(
            {"x": optax.masked(adamx.sgd(RAMP), True)}, "x"),
    }  # fmt: skip


@pytest.mark.parametrize("label", scheduled())
def test_schedules_restart_or_continue(label):
    zero_gradient = label == "decay"
    g = jnp.zeros(1) if zero_gradient else jnp.ones(1)
    for schedules, first in (("restart", 0), ("continue", 4)):
        plan = [(adamx.sgd(1.0), 4), (scheduled()[label], None)]
        tx = adamx.stages(plan, schedules=schedules)
        state, params, found = tx.init(jnp.ones(1)), jnp.ones(1), []
        update = jax.jit(tx.update)
        for _ in range(7):
            updates, state = update(g, state, params)
            found.append(-float(updates[0]))
        want = [1 - (first + k) / 10 for k in range(3)]
        np.testing.assert_allclose(found[4:], want, rtol=1e-6, err_msg=schedules)
        np.testing.assert_allclose(found[:4], 0.0 if zero_gradient else 1.0)


def test_continuing_leaves_the_counts_of_moments_alone():
    """Bias correction starts anew: the first step of the stage has length 1."""
    plan = [(adamx.sgd(1.0), 5), (adamx.adamw(RAMP, weight_decay=RAMP), None)]
    tx = adamx.stages(plan, schedules="continue")
    rows = train(tx, jnp.zeros(3), 6)
    adam, decay, rate = rows[-1][1].inner_states[1]
    assert [int(x) for x in (adam.count, decay.step, rate.count)] == [1, 6, 6]
    change = np.abs(rows[-1][0] - rows[-2][0]) + 0.5 * 0.5 * np.abs(rows[-2][0])
    assert np.all(change > 0.2)
    assert rows[-1][2].learning_rate == pytest.approx(0.5)
    assert rows[-1][2].weight_decay == pytest.approx(0.5)
    # Stages that have not begun, and those that are over, stay as they are.
    state = tx.init(jnp.zeros(3))
    assert_same_bits(rows[3][1].inner_states[1], state.inner_states[1])
    assert_same_bits(rows[5][1].inner_states[0], rows[4][1].inner_states[0])


# --------------------------------------------------------------- moments are carried

PLAN = [(4, 1e-2, 0.9, 0.999), (3, 1e-3, 0.8, 0.99), (3, 3e-3, 0.0, 0.99)]


@both_ways
def test_adams_means_are_carried_in_their_units(way):
    gradients = np.random.default_rng(0).standard_normal((10, 17)).astype(np.float32)
    tx = adamx.stages(
        [
            (adamx.adam(lr, b1, b2), steps if i < 2 else None)
            for i, (steps, lr, b1, b2) in enumerate(PLAN)
        ],
        moments="carry",
    )
    step, params, state = jax.jit(way(tx)), jnp.zeros(17), tx.init(jnp.zeros(17))
    wants = list(reference_hand_over.carried_adam(gradients, PLAN))
    total = np.zeros(17)
    for g, want in zip(gradients, wants, strict=True):
        params, state = step(g, state, params)
        total = total + want
        np.testing.assert_allclose(params, total, rtol=5e-5, atol=5e-8)
    counts = [int(s[0].count) for s in state.inner_states]
    assert counts == [4, 7, 10]


@as_users
def test_with_the_same_bs_adam_goes_on_to_the_bit():
    params = make_params()
    plan = [(adamx.adam(LR), 3), (adamx.adam(LR), None)]
    rows = train(adamx.stages(plan, moments="carry"), params, 6)
    want = train(adamx.adam(LR), params, 6)
    held = rows[-1][1].inner_states[1][0]
    assert_close(held, want[-1][1][0], rtol=3e-7, atol=1e-9)
    assert_close(rows[-1][0], want[-1][0], rtol=3e-7, atol=1e-8)
    # Reset, it would not.
    reset = train(adamx.stages(plan), params, 6)[-1][1].inner_states[1][0]
    assert int(reset.count) == 3


def test_traced_bs_are_carried_with_their_products():
    """Where b may change, the correction is a product, which goes on too."""
    gradients = np.random.default_rng(0).standard_normal((10, 17)).astype(np.float32)

    @jax.jit
    def run(b1s, b2s):
        plan = [
            (adamx.adam(lr, b1s[i], b2s[i]), steps if i < 2 else None)
            for i, (steps, lr, _, _) in enumerate(PLAN)
        ]
        tx = adamx.stages(plan, moments="carry")
        state, p = tx.init(jnp.zeros(17)), jnp.zeros(17)
        for g in gradients:
            updates, state = tx.update(g, state, p)
            p = p + updates
        return p

    got = run(*(jnp.array([row[i] for row in PLAN]) for i in (2, 3)))
    want = sum(reference_hand_over.carried_adam(gradients, PLAN))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


def test_momentum_is_carried_as_a_mean():
    """A constant gradient 2: all of them move by rate * 2 / (1 - momentum)."""
    cases = {
        "adam, momentum": (adamx.adam(LR), 3, 0.8),
        "momentum, momentum": (adamx.sgd(1.0, 0.5), 60, 0.8),
    }
    for first, steps, momentum in cases.values():
        second = adamx.sgd(1.0, momentum)
        tx = adamx.stages([(first, steps), (second, None)], moments="carry")
        state, params = tx.init(jnp.zeros(3)), jnp.zeros(3)
        update = jax.jit(tx.update)
        for _ in range(steps + 1):
            updates, state = update(jnp.full(3, 2.0), state, params)
        np.testing.assert_allclose(updates, -2 / (1 - momentum), rtol=1e-6)


def test_what_is_carried_fits():
    """By tree, in order; what has no like starts anew."""
    params = {"a": jnp.ones(2), "b": jnp.ones((2, 3))}
    labels = {"a": "x", "b": "y"}

    def parted(make):
        return optax.partition({"x": make(), "y": make()}, labels)

    plan = [
        (parted(lambda: adamx.adam(LR)), 2),
        (parted(lambda: adamx.sgd(0.1, 0.9)), None),
    ]
    tx = adamx.stages(plan, moments="carry")
    rows = train(tx, params, 2)
    ended = adamx.read(rows[-1][1]).count
    assert ended == 2
    state, zeros = rows[-1][1], jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, state, params)
    for group, name in (("x", "a"), ("y", "b")):
        old, new = (s.inner_states[group].inner_state for s in state.inner_states)
        mean = old[0].mu[name] / old[0].bias_correction_mu
        np.testing.assert_allclose(new[0].trace[name], 0.9 * mean / 0.1, rtol=1e-6)


def test_moments_of_one_tree_are_carried_in_order():
    def two():
        return optax.chain(adamx.scale_by_adam(0.5), adamx.scale_by_momentum(0.9),
                           adamx.scale_by_momentum(0.5))  # fmt: skip

    tx = adamx.stages([(two(), 2), (two(), None)], moments="carry")
    rows = train(tx, jnp.zeros(5), 3, by_update)
    want = train(two(), jnp.zeros(5), 3, by_update)
    assert_close(rows[-1][1].inner_states[1], want[-1][1], rtol=1e-6, atol=1e-7)


def test_a_stage_without_a_step_gives_nothing():
    """Its guard has skipped them all: what begins starts as it would alone."""
    for begins in (adamx.sgd(0.1, 0.9), adamx.adam(LR, 0.5, 0.9)):
        plan = [(adamx.guard(adamx.adam(LR)), 2), (begins, None)]
        tx, params = adamx.stages(plan, moments="carry"), jnp.ones(3)
        state, update = tx.init(params), jax.jit(tx.update)
        for value in (np.nan, np.nan, 1.0):
            updates, state = update(jnp.full(3, value), state, params)
        want, _ = begins.update(jnp.ones(3), begins.init(params), params)
        assert_close(updates, want, rtol=1e-6, atol=0)


def test_the_rest_of_a_correction_goes_with_its_b():
    ends = adamx.scale_by_adam(0.9).init(jnp.ones(3))
    ends = ends._replace(
        count=jnp.int32(3),
        bias_correction_mu=jnp.float32(0.271),
        bias_correction_nu=jnp.float32(0.003),
        correction_rest_mu=jnp.float32(1e-9),
    )
    for b1, want in ((0.9, 1e-9), (0.8, 0.0)):
        begins = adamx.scale_by_adam(b1).init(jnp.ones(3))
        got = carried(ends, begins, jnp.array(True))
        assert float(got.correction_rest_mu) == np.float32(want)


def test_dtypes_of_what_is_carried():
    params = jnp.ones(3, jnp.bfloat16)
    plan = [
        (adamx.adam(LR, mu_dtype=jnp.float32), 1),
        (adamx.adam(LR), 1),
        (optax.chain(adamx.adamw(LR)), None),
    ]
    tx = adamx.stages(plan, moments="carry")
    before = signature(tx.init(params))
    rows = train(tx, params, 3)
    assert all(signature(state) == before for _, state, _ in rows)
    np.testing.assert_allclose(rows[-1][1].inner_states[2][0][0].count, 3)


# --------------------------------------------------------------------------- reading


def test_only_the_stage_at_work_is_read():
    plan = [
        (adamx.adamw(LR), 2),
        (optax.chain(adamx.clip_by_global_norm(1.0), adamx.sgd(0.1)), 1),
        (adamx.lion(0.3, weight_decay=0.7), None),
    ]
    tx = adamx.stages(plan)
    params = jnp.ones(4)
    fresh = adamx.read(tx.init(params))
    assert (fresh.count, fresh.learning_rate) == (0, LR)
    found = [reading for _, _, reading in train(tx, params, 5)]
    assert [r.count for r in found] == [1, 2, 3, 4, 5]
    assert [r.learning_rate for r in found] == [LR, LR, 0.1, 0.3, 0.3]
    assert [r.weight_decay for r in found] == pytest.approx(
        [1e-4, 1e-4, None, 0.7, 0.7]
    )
    assert [r.grad_norm is None for r in found] == [True, True, False, True, True]
    assert [r.more["stage"] for r in found] == [0, 0, 1, 2, 2]
    assert [r.more["stage_since"] for r in found] == [0, 0, 2, 3, 3]


def test_groups_are_read_by_name_inside_a_stage():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    parted = optax.partition(
        {"x": adamx.sgd(0.1), "y": adamx.sgd(0.2)}, {"a": "x", "b": "y"}
    )
    tx = optax.chain(adamx.stages([(adamx.sgd(1.0), 1), (parted, None)]))
    rows = train(tx, params, 2)
    assert rows[0][2].learning_rate == 1.0
    assert rows[1][2].learning_rate == {"x": 0.1, "y": 0.2}
    traced = jax.jit(lambda s: adamx.read(s).scalars())(rows[1][1])
    assert traced["learning_rate/x"] == pytest.approx(0.1)
    traced = jax.jit(lambda s: adamx.read(s).scalars())(rows[0][1])
    assert traced["learning_rate/x"] == traced["learning_rate/y"] == 1.0


def test_a_traced_state_is_read():
    clipped = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(LR))
    plan = [(clipped, 1), (adamx.adam_to_sgd(0.1, 1), None)]
    rows = train(adamx.stages(plan), jnp.ones(3), 3)
    read_it = jax.jit(lambda s: adamx.read(s).scalars())
    for _, state, reading in rows:
        traced = {k: float(v) for k, v in read_it(state).items()}
        known = reading.scalars()
        assert {k: traced[k] for k in known} == pytest.approx(known)
        assert all(np.isnan(v) for k, v in traced.items() if k not in known)
    abstract = jax.eval_shape(lambda s: s, rows[0][1])
    assert adamx.read(abstract).learning_rate.shape == ()


def test_batched_states_are_read_member_by_member():
    def run(seed, rate):
        tx = adamx.stages([(adamx.sgd(rate), 2), (adamx.adamw(10 * rate), None)])
        state, params = tx.init(jnp.ones(2)), jnp.ones(2)
        for _ in range(3):
            updates, state = tx.update(jnp.ones(2) * seed, state, params)
            params = params + updates
        return state

    rates = jnp.array([0.1, 0.2])
    state = jax.jit(jax.vmap(run))(jnp.arange(2.0), rates)
    reading = adamx.read(state)
    np.testing.assert_allclose(reading.learning_rate, 10 * rates, rtol=1e-6)
    np.testing.assert_array_equal(reading.more["stage"], [1, 1])
    # Members in unlike stages: of one that says nothing, NaN.
    mixed = state._replace(stage=jnp.array([0, 1]))
    reading = adamx.read(mixed)
    np.testing.assert_allclose(reading.learning_rate, [0.1, 2.0], rtol=1e-6)
    np.testing.assert_allclose(reading.weight_decay, [np.nan, 1e-4], rtol=1e-6)


# ------------------------------------------------------------------- state and cost


@pytest.mark.parametrize("carry", some(["reset", "carry"], "carry"))
def test_temporaries_of_a_donated_step(carry):
    """None through `fused`; through `update` one tree, the updates.

    Parameters and state enter in the order in which they come out: JAX pairs donated
    arrays with results by shape, in order.
    """
    params = {"a": jnp.ones((512, 256)), "b": jnp.ones(256), "c": jnp.ones((256, 256))}
    plan = [(adamx.adamw(LR), 2), (adamx.adamw(0.1), 2), (adamx.sgd(0.1, 0.9), None)]
    tx = adamx.stages(plan, moments=carry, schedules="continue")
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    for way, limit in ((by_step, 0.02), (by_update, 1.02)):

        def step(params, state, gradients, way=way):
            return way(tx)(gradients, state, params)

        state, gradients = tx.init(params), random_like(params, 1)
        donated = jax.jit(step, donate_argnums=(0, 1))
        compiled = donated.lower(params, state, gradients).compile(AS_USERS)
        temporary = compiled.memory_analysis().temp_size_in_bytes
        assert temporary <= limit * size
        got = compiled(jax.tree.map(jnp.array, params), state, gradients)
        want = jax.jit(step)(params, tx.init(params), gradients)
        assert_close(got, want, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32], ids=str)
def test_state_is_stable_and_compiled_once(dtype):
    params = make_params(dtype)
    plan = [
        (optax.adam(LR), 1),
        (adamx.adamw(LR), 1),
        (adamx.sgd(0.1, 0.9), None),
    ]
    tx = adamx.stages(plan, schedules="continue")
    state = tx.init(params)
    before = signature(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for seed in range(4):
        # float32 gradients would widen the float16 moments of Optax.
        gradients = random_like(jax.tree.map(jnp.float32, params), seed)
        updates, state = update(gradients, state, params)
        assert signature(state) == before
        assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))
    assert int(state.stage) == 2
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(tx.init, params), state
    )


def test_in_a_scan_and_mapped_over_rates():
    gradients = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)

    def run(rate):
        tx = adamx.stages([(adamx.adam(rate), 2), (adamx.sgd(rate, 0.9), None)])
        init, step = adamx.fused(tx)

        def body(carry, g):
            return step(g, *carry[::-1]), None

        return jax.lax.scan(body, (jnp.zeros(5), init(jnp.zeros(5))), gradients)[0]

    rates = jnp.array([1e-3, 1e-2])
    mapped = jax.jit(jax.vmap(run))(rates)
    single = jax.jit(run)
    for i in range(2):
        picked = jax.tree.map(lambda x, i=i: x[i], mapped)
        assert_close(picked, single(rates[i]), rtol=1e-6, atol=1e-8)


def test_x64():
    with enable_x64():
        params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.float32)}
        plan = [(adamx.adam(LR), 1), (adamx.sgd(0.1, 0.9), None)]
        tx = adamx.stages(plan, moments="carry", schedules="continue")
        before = signature(tx.init(params))
        rows = train(tx, params, 2)
        assert all(signature(state) == before for _, state, _ in rows)
        assert signature(rows[-1][0]) == signature(params)


@as_users
def test_eight_devices_equal_one():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    plan = [(adamx.adamw(LR), 2), (adamx.sgd(0.1, 0.9), None)]
    tx = adamx.stages(plan, moments="carry")
    one, eight = (params, tx.init(params)), jax.device_put(params, place)
    eight = (eight, tx.init(eight))
    step = jax.jit(lambda p, s, g: adamx.fused(tx).step(g, s, p))
    for seed in range(4):
        gradients = random_like(params, seed)
        one = step(*one, gradients)
        eight = step(*eight, jax.device_put(gradients, place))
    chex.assert_trees_all_equal(one, jax.device_get(eight))
    assert eight[0]["w"].sharding.is_equivalent_to(place["w"], 2)


@pytest.mark.slow
def test_inside_and_around_wrappers():
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}

    def make():
        return adamx.stages([(adamx.adamw(LR), 2), (adamx.sgd(0.1, 0.9), None)])

    wrapped = {
        "bare": make(),
        "partition": optax.partition({"all": make()}, "all"),
        "loss scaling": adamx.loss_scaling(
            make(), initial_scale=1.0, growth_interval=2**30),
        "nested": adamx.stages([(make(), 3), (adamx.sgd(0.5), None)]),
    }  # fmt: skip
    for label, tx in wrapped.items():
        rows = train(tx, params, 3, by_step if label != "partition" else by_update)
        if label == "bare":
            want = rows[-1][0]
        assert_close(rows[-1][0], want, rtol=1e-6)
        reading = rows[-1][2]
        assert (reading.count, reading.learning_rate) == (3, 0.1)
        state = rows[-1][1]
        mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
    tx = optax.MultiSteps(make(), 2)
    state = tx.init(params)
    for seed in range(6):
        _, state = tx.update(random_like(params, seed), state, params)
    assert adamx.read(state).learning_rate == 0.1


@pytest.mark.parametrize("params", [{}, (), None, {"a": None}, [jnp.ones((0,))]])
def test_trees_without_elements(params):
    tx = adamx.stages(three())
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    adamx.stages([(adamx.adam(LR), 1), (adamx.adam(LR), None)], moments="carry").init(
        params
    )
    assert int(state.count) == 1


def test_counts_saturate():
    limit = np.iinfo(np.int32).max
    tx = adamx.stages(three())
    state = tx.init(jnp.ones(3))._replace(
        count=jnp.int32(limit), stage=jnp.int32(2), since=jnp.int32(5)
    )
    _, state = tx.update(jnp.ones(3), state, jnp.ones(3))
    assert [int(x) for x in (state.count, state.stage, state.since)] == [limit, 2, 5]


def test_no_two_leaves_share_a_buffer():
    tx = adamx.stages([(adamx.adamw(LR), 1), (adamx.adamw(LR), None)], moments="carry")
    state = tx.init(jnp.ones(3))
    for _ in range(2):
        leaves = jax.tree.leaves(state)
        assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
        _, state = tx.update(jnp.ones(3), state, jnp.ones(3))


def test_schedules_in_hyperparams_continue():
    rate = lambda t: 1.0 / (1.0 + t)  # noqa: E731
    held = adamx.with_hyperparams(adamx.sgd, rate)
    tx = adamx.stages([(adamx.sgd(rate), 2), (held, None)], schedules="continue")
    state, steps = tx.init(jnp.zeros(1)), []
    for _ in range(4):
        updates, state = tx.update(jnp.ones(1), state)
        steps.append(float(updates[0]))
    np.testing.assert_allclose(steps, [-1.0, -1 / 2, -1 / 3, -1 / 4], rtol=1e-6)


@both_ways
def test_stages_in_a_stage_continue_if_they_too_are_to(way):
    """Ours begin at step 2; theirs at 2 and 4 in all, or each at a 0 of its own."""
    for inner, want in (
        ("continue", [0.8, 0.7, 0.6, 0.5]),
        ("restart", [1.0, 0.9, 1.0, 0.9]),
    ):
        nested = adamx.stages(
            [(adamx.sgd(RAMP), 2), (adamx.sgd(RAMP), None)], schedules=inner
        )
        plan = [(adamx.sgd(1.0), 2), (adamx.guard(nested), None)]
        tx = adamx.stages(plan, schedules="continue")
        step, params, found = jax.jit(way(tx)), jnp.zeros(1), []
        state = tx.init(params)
        for _ in range(6):
            before = params
            params, state = step(jnp.ones(1), state, params)
            found.append(float(before[0] - params[0]))
        np.testing.assert_allclose(found, [1.0, 1.0, *want], rtol=1e-5)
        assert int(state.inner_states[1].inner_state.before) == 2


def test_what_all_stages_freeze_depends_on_no_gradient():
    frozen = adamx.groups([("a", adamx.freeze())], default=adamx.sgd(0.1))
    tx = adamx.guard(adamx.stages([(frozen, 2), (frozen, None)]))
    table = adamx.describe(tx, {"a": jnp.ones(2), "b": jnp.ones(2)})
    assert [row.frozen for row in table.rows[:-1]] == [True, False]
