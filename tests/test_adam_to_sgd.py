"""`adam_to_sgd`: its two phases, when it switches, and what that costs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx import codecs
from tests import reference_hand_over
from tests.compiling import AS_USERS, as_users
from tests.helpers import TEMPORARIES, enable_x64, some
from tests.test_contract import assert_close, make_params, random_like, signature
from tests.test_loss_scaling import assert_same_bits

LR = 1e-3
OFF = {"b1": 0.8, "b2": 0.95, "eps": 1e-4, "eps_root": 1e-6, "momentum": 0.7}
GIVEN = {"sgd_learning_rate": 0.03}
# Quickly: where the rate is found by the optimizer itself.
by_rate = pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, id="matched"),
        pytest.param(GIVEN, marks=pytest.mark.slow, id="given"),
    ],
)


def run(tx, gradients, params, *traced, **extra):
    """Updates, parameters before each step, and states of all steps: one scan.

    `extra`: arrays with one value for each step. `tx`: or a function of `traced`.
    """

    def all_steps(gradients, extra, *traced):
        made = tx(*traced) if traced else tx

        def step(carry, row):
            p, state = carry
            g, more = row
            updates, state = made.update(g, state, p, **more)
            p_new = adamx.apply_updates(p, updates)
            return (p_new, state), (updates, p, state)

        rows = (gradients, extra)
        return jax.lax.scan(step, (params, made.init(params)), rows)[1]

    updates, trajectory, states = jax.jit(all_steps)(gradients, extra, *traced)
    return np.asarray(updates), np.asarray(trajectory), states[0]


def noise(steps, size=33, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, size)).astype(np.float32)


def expected(gradients, params, lr, switch_step, **kwargs):
    record = {}
    wants = reference_hand_over.adam_to_sgd(
        gradients, params, lr, switch_step, record=record, **kwargs
    )
    return np.stack(list(wants)), record


# ------------------------------------------------------------------ the two phases

SCHEDULE = optax.linear_schedule(2e-3, 5e-4, 20)
SCHEDULE_64 = [2e-3 + (5e-4 - 2e-3) * min(t / 20, 1) for t in range(30)]
FADING = optax.linear_schedule(0.05, 0.0, 25)
FADING_64 = [0.05 * (1 - t / 25) for t in range(30)]
CASES = {
    "matched": ({}, {}),
    "given": (GIVEN, {"sgd_lr": 0.03}),
    "off default, matched": (OFF, OFF),
    "off default, given": (OFF | GIVEN, OFF | {"sgd_lr": 0.03}),
    "decay": ({"weight_decay": 0.3}, {"weight_decay": 0.3}),
    "independent decay": (
        GIVEN | {"weight_decay": 1e-3, "independent_decay": True},
        {"sgd_lr": 0.03, "weight_decay": 1e-3, "independent_decay": True}),
    "schedule, matched": ({"learning_rate": SCHEDULE}, {"lr": SCHEDULE_64}),
    "schedules": (
        {"learning_rate": SCHEDULE, "sgd_learning_rate": FADING, "weight_decay": 0.1},
        {"lr": SCHEDULE_64, "sgd_lr": FADING_64, "weight_decay": 0.1}),
}  # fmt: skip


BOTH = [(label, 9) for label in CASES] + [("matched", 1), ("given", 1)]


# Quickly: each rate by itself, a schedule of both, and a switch in the first step.
@pytest.mark.parametrize(
    ("label", "switch_step"), some(BOTH, ("schedules", 9), *BOTH[-2:])
)
def test_both_phases_are_those_of_the_reference(label, switch_step):
    kwargs, wanted = ({**case} for case in CASES[label])
    gradients, params = noise(30), noise(1, seed=1)[0]
    lr = kwargs.pop("learning_rate", LR)
    tx = adamx.adam_to_sgd(lr, switch_step, **kwargs)
    updates, trajectory, states = run(tx, gradients, jnp.asarray(params))
    wanted.setdefault("lr", LR)
    wants, record = expected(
        gradients, params, switch_step=switch_step, trajectory=trajectory, **wanted
    )
    sizes = np.max(np.abs(wants), axis=1, keepdims=True)
    assert np.max(np.abs(updates - wants) / sizes) < 5e-7
    np.testing.assert_allclose(
        states.applied_learning_rate, record["rates"], rtol=2e-6, atol=1e-9
    )
    np.testing.assert_allclose(states.matched_rate[-1], record["matched"], rtol=1e-6)
    steps = np.arange(1, 31)
    want = np.where(steps < switch_step, -1, switch_step)
    np.testing.assert_array_equal(states.switch_step, want)


@pytest.mark.parametrize("decay", some([0.0, 0.1], 0.1))
@as_users
def test_the_phases_are_adamw_and_sgd_to_the_bit(decay):
    """Compiled as a training step is; SGD starts where AdamW ends."""
    params = random_like({"w": jnp.zeros((65, 33)), "b": jnp.zeros(7)}, 0)
    # SGD's rate times this is AdamW's rate times its decay.
    beside = float(np.float32(decay) * np.float32(LR) / np.float32(0.03))
    txs = {
        "both": adamx.adam_to_sgd(LR, 4, weight_decay=decay, **GIVEN),
        "adamw": adamx.adamw(LR, weight_decay=decay),
        "sgd": optax.chain(
            adamx.scale_by_momentum(0.9),
            adamx.add_decoupled_weight_decay(beside),
            adamx.scale_by_learning_rate(0.03),
        ),
    }
    if not decay:
        txs["sgd"] = adamx.sgd(0.03, 0.9)
    steps = {name: jax.jit(adamx.fused(tx).step) for name, tx in txs.items()}
    got, state = params, txs["both"].init(params)
    want, plain = params, txs["adamw"].init(params)
    for t in range(10):
        gradients, name = random_like(params, t + 1), "adamw" if t < 4 else "sgd"
        if t == 4:
            plain = txs["sgd"].init(want)
        want, plain = steps[name](gradients, plain, want)
        got, state = steps["both"](gradients, state, got)
        assert_same_bits(got, want)
    assert_same_bits(state[0].mu, plain[0].trace)


def test_the_trace_starts_at_zero_and_nu_stays():
    gradients, params = noise(8), jnp.zeros(33)
    _, _, states = run(adamx.adam_to_sgd(LR, 5, **GIVEN), gradients, params)
    np.testing.assert_array_equal(states.mu[5], gradients[5])
    np.testing.assert_array_equal(states.nu[5:], [states.nu[4]] * 3)
    for name in ("b1", "eps", "bias_correction_mu", "bias_correction_nu"):
        kept = getattr(states, name)
        np.testing.assert_array_equal(kept[4:], [kept[4]] * 4)


@pytest.mark.parametrize("sgd_rate", [50.0, 0.0, None])
def test_the_decay_does_not_change_at_the_switch(sgd_rate):
    """By rate times decay a step, where the gradient is zero, in both phases."""
    params = jnp.ones(3)
    zeros = np.zeros((6, 3), np.float32)
    tx = adamx.adam_to_sgd(0.1, 3, sgd_learning_rate=sgd_rate, weight_decay=0.5)
    _, trajectory, _ = run(tx, zeros, params)
    np.testing.assert_allclose(trajectory[:, 0], 0.95 ** np.arange(6), rtol=1e-6)


def test_sgds_schedules_begin_with_its_first_step():
    falling = optax.linear_schedule(0.9, 0.0, 9)
    tx = adamx.adam_to_sgd(LR, 3, momentum=falling, sgd_learning_rate=falling)
    _, _, states = run(tx, noise(6, 3), jnp.zeros(3))
    want = np.float32([0.9, 0.9, 0.9, 0.9, 0.8, 0.7])
    np.testing.assert_allclose(states.momentum, want, rtol=1e-6)
    np.testing.assert_allclose(states.applied_learning_rate[3:], want[3:], rtol=1e-6)


def test_nothing_moves_in_adams_phase_at_a_rate_of_zero():
    tx = adamx.adam_to_sgd(0.0, 3, weight_decay=0.1, **GIVEN)
    updates, _, _ = run(tx, noise(4, 3), jnp.zeros(3))
    assert not np.any(updates[:3])
    assert np.all(updates[3])


# ---------------------------------------------------------------- the matched rate


def test_the_matched_step_is_as_long_as_adams_last():
    """Under the constant gradient mu_hat, SGD's step tends to Adam's last length."""
    gradients = np.tile(noise(1), (200, 1))
    tx = adamx.adam_to_sgd(LR, 20, momentum=0.8)
    updates, _, states = run(tx, gradients, jnp.zeros(33))
    lengths = np.linalg.norm(updates, axis=1)
    np.testing.assert_allclose(lengths[-1], lengths[19], rtol=1e-5)
    np.testing.assert_allclose(lengths[20], 0.2 * lengths[19], rtol=1e-5)
    assert np.all(states.matched_rate[:20] == 0)
    assert np.all(states.matched_rate[20:] == states.matched_rate[20])
    assert np.all(states.base_rate[20:] == np.float32(LR))


def test_the_matched_rate_sees_all_leaves_and_large_ones():
    """Leaves above and below the size from which they are summed one by one."""
    shapes = {"a": (300, 300), "b": (300, 300), "c": (65, 3), "d": (), "e": (0, 2)}
    params = {k: jnp.zeros(s) for k, s in shapes.items()}
    tx = adamx.adam_to_sgd(LR, 1, b1=0.5)
    state, step = tx.init(params), jax.jit(tx.update)
    first, second = (random_like(params, seed) for seed in (1, 2))
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in first.values()])
    _, state = step(first, state, params)
    _, state = step(second, state, params)
    want = 0.1 * LR * np.sqrt(flat.size / np.sum(flat**2))
    assert float(state[0].matched_rate) == pytest.approx(want, rel=1e-6)


def test_the_matched_rate_without_eps_leaves_out_what_had_no_gradient():
    gradients = np.tile(np.float32([0.0, 1.0, 2.0]), (2, 1))
    _, _, states = run(adamx.adam_to_sgd(LR, 1, eps=0.0), gradients, jnp.zeros(3))
    want = 0.1 * LR * np.sqrt(2 / 5)  # u is 0, 1, 1
    np.testing.assert_allclose(states.matched_rate[-1], want, rtol=1e-6)


def test_the_matched_rate_of_nothing_is_zero():
    zeros = np.zeros((4, 3), np.float32)
    for lr, gradients in ((LR, zeros), (0.0, noise(4, 3))):
        updates, _, states = run(adamx.adam_to_sgd(lr, 2), gradients, jnp.ones(3))
        assert np.all(states.matched_rate == 0)
        assert not np.any(updates[2:])


# --------------------------------------------------------------- when it switches


@pytest.mark.parametrize(
    ("kwargs", "want"),
    [
        ({"total_steps": 10}, 8),
        ({"total_steps": 100, "switch_fraction": 0.29}, 29),
        ({"total_steps": 10, "switch_fraction": 0.01}, 1),
        ({"total_steps": 2, "switch_fraction": 0.99}, 1),
        ({"switch_step": 7.0}, 7),
    ],
    ids=str,
)
def test_the_step_is_given_or_a_part_of_the_run(kwargs, want):
    tx = adamx.adam_to_sgd(LR, **kwargs, **GIVEN)
    _, _, states = run(tx, noise(30, 3), jnp.zeros(3))
    assert int(states.switch_step[-1]) == want


def test_the_step_may_be_traced_and_mapped():
    gradients = noise(12, 3)

    def last(switch_step, rate):
        tx = adamx.adam_to_sgd(rate, switch_step, sgd_learning_rate=10 * rate)
        state, p = tx.init(jnp.zeros(3)), jnp.zeros(3)
        for g in gradients:
            updates, state = tx.update(g, state, p)
            p = p + updates
        return p, state[0].switch_step

    steps, rates = jnp.array([2, 5, 9]), jnp.array([1e-3, 2e-3, 3e-3])
    got, switched = jax.jit(jax.vmap(last))(steps, rates)
    np.testing.assert_array_equal(switched, steps)
    for i in range(3):
        tx = adamx.adam_to_sgd(
            float(rates[i]), int(steps[i]), sgd_learning_rate=10 * float(rates[i])
        )
        _, trajectory, _ = run(tx, np.append(gradients, gradients[:1], 0), jnp.zeros(3))
        np.testing.assert_allclose(got[i], trajectory[-1], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_signal_hands_over_behind_its_step_and_for_good():
    signal = np.zeros(12, bool)
    signal[[4, 8]] = True
    want = run(adamx.adam_to_sgd(LR, 5), noise(12), jnp.zeros(33))[0]
    got, _, states = run(adamx.adam_to_sgd(LR), noise(12), jnp.zeros(33), switch=signal)
    np.testing.assert_array_equal(got, want)
    assert int(states.switch_step[-1]) == 5


@pytest.mark.slow
def test_the_first_reason_counts():
    def switched(tx, **extra):
        return int(run(tx, noise(12), jnp.zeros(33), **extra)[2].switch_step[-1])

    at = lambda step: np.arange(1, 13) == step  # noqa: E731
    value = np.ones(12, np.float32)
    both = adamx.adam_to_sgd(LR, 6, on_plateau=adamx.plateau(3), **GIVEN)
    assert switched(both, switch=at(2), value=value) == 2
    assert switched(both, switch=at(9), value=value) == 4  # the first is the best
    assert switched(both, value=-np.arange(12.0)) == 6
    assert switched(adamx.adam_to_sgd(LR, 6, **GIVEN), switch=at(9)) == 6


def test_a_plateau_of_the_validation_loss_switches():
    value = np.concatenate([np.linspace(3, 1, 8), np.full(8, 1.0)]).astype(np.float32)
    tx = adamx.adam_to_sgd(LR, on_plateau=adamx.plateau(patience=4), **GIVEN)
    _, _, states = run(tx, noise(16), jnp.zeros(33), value=value)
    assert int(states.switch_step[-1]) == 12
    want = run(adamx.adam_to_sgd(LR, 12, **GIVEN), noise(16), jnp.zeros(33))[1]
    got = run(tx, noise(16), jnp.zeros(33), value=value)[1]
    np.testing.assert_array_equal(got, want)


PLATEAUS = {
    "defaults": {},
    "patience 2": {"patience": 2},
    "tolerances": {"patience": 3, "rtol": 0.05, "atol": 0.02},
    "cooldown": {"patience": 2, "cooldown": 3},
    "accumulated": {"patience": 2, "accumulation_size": 4, "cooldown": 1},
}


@pytest.mark.parametrize("label", PLATEAUS)
def test_plateaus_are_those_of_the_reference_and_of_optax(label):
    options = PLATEAUS[label]
    rng = np.random.default_rng(1)
    values = (3 * np.exp(-np.arange(300) / 40) + 0.2 + 0.2 * rng.random(300)).astype(
        np.float32
    )
    detector = adamx.plateau(**options)

    def look(state, value):
        is_plateau, state = detector.update(value, state)
        return state, is_plateau

    got = jax.jit(lambda v: jax.lax.scan(look, detector.init(), v)[1])(values)
    want = list(reference_hand_over.plateaus(values, **options))
    np.testing.assert_array_equal(got, want)
    assert 2 <= sum(want) <= 120
    twin = optax.contrib.reduce_on_plateau(
        factor=0.5, **({"patience": 10, "rtol": 1e-4} | options)
    )

    def reduce(state, value):
        before = state.scale
        _, state = twin.update(jnp.ones(()), state, value=value)
        return state, state.scale != before

    theirs = jax.jit(lambda v: jax.lax.scan(reduce, twin.init(jnp.ones(())), v)[1])
    np.testing.assert_array_equal(theirs(values), want)


def test_plateaus_of_negative_values_and_of_nan():
    detector = adamx.plateau(patience=2, rtol=0.1)
    state, found = detector.init(), []
    for value in (-1.0, -1.05, -1.05, -1.2, jnp.nan, jnp.nan, jnp.inf, 3):
        is_plateau, state = detector.update(value, state)
        found.append(bool(is_plateau))
    assert found == [False, False, True, False, False, True, False, True]


# ------------------------------------------------------------------- state and cost


@pytest.mark.parametrize(
    "dtype",
    some((jnp.float16, jnp.bfloat16, jnp.float32), jnp.bfloat16, jnp.float32),
    ids=str,
)
def test_state_is_stable_and_has_adamws_bytes(dtype):
    params = make_params(dtype)
    tx = adamx.adam_to_sgd(LR, 2, weight_decay=0.1, on_plateau=adamx.plateau())
    state, before = tx.init(params), signature(tx.init(params))
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves(t.init(params)))
        for t in (adamx.adam_to_sgd(LR), tx, adamx.adamw(LR))
    ]
    assert sizes[0] - sizes[2] == 12
    assert sizes[1] - sizes[0] == 20
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    chex.clear_trace_counter()
    for seed in range(4):
        gradients = random_like(params, seed)
        updates, state = update(gradients, state, params, value=jnp.float32(1))
        assert signature(updates) == signature(gradients)
        assert signature(state) == before
        params = adamx.apply_updates(params, updates)
    assert all(np.all(np.isfinite(np.asarray(p))) for p in jax.tree.leaves(params))
    assert int(state[0].switch_step) == 2


def test_double_precision_in_x64_mode():
    with enable_x64():
        gradients = noise(30).astype(np.float64)
        params = jnp.asarray(noise(1, seed=1)[0], jnp.float64)
        tx = adamx.adam_to_sgd(LR, 9, weight_decay=0.1)
        updates, trajectory, states = run(tx, gradients, params)
        wants, record = expected(
            gradients, params, LR, 9, weight_decay=0.1, trajectory=trajectory
        )
        assert updates.dtype == np.float64
        assert np.max(np.abs(updates - wants)) < 1e-12 * np.max(np.abs(wants[:9]))
        np.testing.assert_allclose(
            states.matched_rate[-1], record["matched"], rtol=1e-12
        )


@by_rate
@as_users
def test_a_donated_step_needs_no_temporaries(kwargs):
    """In both phases: it is one program. Leaves of one shape, and small ones."""
    params = {k: jnp.ones((300, 512)) for k in "abc"} | {"d": jnp.ones(512)}
    tx = adamx.adam_to_sgd(LR, 2, weight_decay=0.1, **kwargs)

    def step(params, state, gradients):
        return adamx.fused(tx).step(gradients, state, params)

    donated = jax.jit(step, donate_argnums=(0, 1))
    state, gradients = tx.init(params), random_like(params, 1)
    want = jax.jit(step)(params, state, gradients)
    donated = donated.lower(params, state, gradients).compile(AS_USERS)
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    limit = 0.02 if kwargs else TEMPORARIES
    assert donated.memory_analysis().temp_size_in_bytes <= limit * size
    assert_same_bits(donated(params, state, gradients), want)


def test_one_compilation_for_all_rates_and_both_phases():
    params = make_params()
    tx = optax.inject_hyperparams(adamx.adam_to_sgd)(
        learning_rate=LR, switch_step=3, sgd_learning_rate=0.1
    )
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(params)
    for t in range(6):
        state.hyperparams["learning_rate"] = jnp.float32(LR * (t + 1))
        state.hyperparams["sgd_learning_rate"] = jnp.float32(0.1 * (t + 1))
        _, state = update(params, state, params)
        reading = adamx.read(state)
        want = LR * (t + 1) if t < 3 else 0.1 * (t + 1)
        assert reading.learning_rate == pytest.approx(want)
    assert reading.switch_step == 3


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param(codecs.int8(), marks=pytest.mark.slow, id="int8"),
        pytest.param(codecs.bfloat16_stochastic(), id="bfloat16 at random"),
        pytest.param(jnp.bfloat16, marks=pytest.mark.slow, id="bfloat16"),
    ],
)
def test_moments_may_be_stored_in_fewer_bytes(storage):
    gradients = noise(20, 64 * 64).reshape(20, 64, 64)
    kwargs = {"mu_dtype": storage, "nu_dtype": storage}
    if storage == jnp.bfloat16:
        kwargs["nu_dtype"] = None
    params = jnp.zeros((64, 64))
    got = run(adamx.adam_to_sgd(LR, 10, **kwargs), gradients, params)[1][-1]
    want = run(adamx.adam_to_sgd(LR, 10), gradients, params)[1][-1]
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 0 < error < 0.1


def test_reading_in_both_phases_and_traced():
    params = jnp.ones(3)
    tx = optax.chain(adamx.adam_to_sgd(LR, 2, weight_decay=0.1, **GIVEN))
    state, found = tx.init(params), []
    for _ in range(4):
        reading = adamx.read(state)
        traced = jax.jit(lambda s: adamx.read(s).scalars())(state)
        assert traced == pytest.approx(reading.scalars())
        found.append((reading.count, reading.learning_rate, reading.switch_step,
                      reading.more["stage"]))  # fmt: skip
        _, state = tx.update(params, state, params)
    assert adamx.read(state).weight_decay == pytest.approx(0.1)
    assert found == [(0, LR, -1, 0), (1, LR, -1, 0), (2, LR, 2, 0), (3, 0.03, 2, 1)]


# --------------------------------------------------------------------- the protocol


@by_rate
@as_users
def test_eight_devices_equal_one(kwargs):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((512, 136)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    tx = adamx.adam_to_sgd(LR, 2, **kwargs)
    one, eight = (params, tx.init(params)), jax.device_put(params, place)
    eight = (eight, tx.init(eight))
    step = jax.jit(lambda p, s, g: adamx.fused(tx).step(g, s, p))
    for seed in range(4):
        gradients = random_like(params, seed)
        one = step(*one, gradients)
        eight = step(*eight, jax.device_put(gradients, place))
    if kwargs:
        chex.assert_trees_all_equal(one, jax.device_get(eight))
    else:
        assert_close(one, jax.device_get(eight), rtol=1e-6, atol=1e-6)
    assert eight[0]["w"].sharding.is_equivalent_to(place["w"], 2)


@pytest.mark.slow
def test_inside_wrappers():
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    make = functools.partial(adamx.adam_to_sgd, LR, 2, weight_decay=0.1)
    wrapped = {
        "bare": make(),
        "partition": optax.partition({"all": make()}, "all"),
        "loss scaling": adamx.loss_scaling(
            make(), initial_scale=1.0, growth_interval=2**30),
        "stages": adamx.stages([(make(), None)]),
    }  # fmt: skip
    ends = {}
    for label, tx in wrapped.items():
        p, state = params, tx.init(params)
        for seed in range(4):
            updates, state = jax.jit(tx.update)(random_like(params, seed), state, p)
            p = adamx.apply_updates(p, updates)
        ends[label] = p
        assert adamx.read(state).switch_step == 2, label
        mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
    for p in ends.values():
        assert_close(p, ends["bare"], rtol=1e-6)
    tx = optax.MultiSteps(make(), 2)
    state = tx.init(params)
    for seed in range(6):
        _, state = tx.update(random_like(params, seed), state, params)
    assert adamx.read(state).switch_step == 2
    assert adamx.read(state).count == 3


def test_cautious_masks_the_step_and_not_the_decay():
    params = jnp.array([1.0, 1.0])
    tx = adamx.cautious(adamx.adam_to_sgd(0.1, 1, weight_decay=0.1, **GIVEN))
    state = tx.init(params)
    for g in ([1.0, 1.0], [1.0, 3.0], [1.0, -0.5]):
        updates, state = tx.update(jnp.array(g), state, params)
    # The trace still points up in both elements; the second gradient has turned.
    np.testing.assert_allclose(updates[1], -0.1 * 0.1, rtol=1e-6)
    assert float(updates[0]) < -0.03


def test_a_mask_says_what_decays():
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    tx = adamx.adam_to_sgd(0.1, 1, weight_decay=0.5, mask={"w": True, "b": False})
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        updates, state = tx.update(zeros, state, params)
        np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["b"], 0)


@pytest.mark.parametrize("params", [{}, (), None, {"a": None}, [jnp.ones((0,))]])
def test_trees_without_elements(params):
    tx = adamx.adam_to_sgd(LR, 1, weight_decay=0.1)
    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert int(state[0].switch_step) == 1


def test_counts_saturate():
    """And do not switch once there: the trace would start anew at every step."""
    limit = np.iinfo(np.int32).max
    tx = adamx.adam_to_sgd(LR, 2**31 - 1, **GIVEN)
    (state,) = tx.init(jnp.ones(3))
    for far, switched, want in ((limit, -1, -1), (limit, 7, 7)):
        held = (state._replace(count=jnp.int32(far), switch_step=jnp.int32(switched)),)
        for _ in range(2):
            _, held = tx.update(jnp.ones(3), held, jnp.ones(3))
        assert (int(held[0].count), int(held[0].switch_step)) == (limit, want)
    np.testing.assert_allclose(held[0].mu, 1.9, rtol=1e-6)


@pytest.mark.slow
def test_strict_promotion_and_eval_shape():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.bfloat16, jnp.complex64):
            params = make_params(dtype)
            tx = adamx.adam_to_sgd(LR, 1, weight_decay=0.1)
            state = tx.init(params)
            for _ in range(2):
                updates, state = jax.jit(tx.update)(params, state, params)
            assert signature(adamx.apply_updates(params, updates)) == signature(params)
            shapes = jax.eval_shape(tx.init, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)


def test_a_bad_value_stays_in_its_element_where_the_rate_is_given():
    gradients = noise(6, 3)
    gradients[1, 0], gradients[4, 1] = np.nan, np.inf
    updates, _, _ = run(adamx.adam_to_sgd(LR, 3, **GIVEN), gradients, jnp.zeros(3))
    assert np.all(np.isfinite(updates[:, 2]))
    assert np.all(np.isfinite(updates[3, 0]))  # the trace starts anew
    assert not np.any(np.isfinite(updates[4:, 1]))
