"""SWATS: when it switches, to which rate, and what it is before and behind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests import reference_switch
from tests.compiling import as_users
from tests.helpers import some

B = {"b1": 0.8, "b2": 0.9}


def run(tx, gradients, params=None):
    """Updates, readings and states of all steps, compiled as one scan."""
    gradients = jnp.asarray(gradients, jnp.float32)
    params = jnp.zeros(gradients.shape[1:]) if params is None else params

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        return (p + updates, state), (updates, p, state)

    updates, trajectory, states = jax.jit(
        lambda g: jax.lax.scan(step, (params, tx.init(params)), g)[1]
    )(gradients)
    return np.asarray(updates), np.asarray(trajectory), states[0]


def settling(steps, size=64, seed=0):
    """Gradients that tend to a constant: the estimate settles by b2 a step."""
    rng = np.random.default_rng(seed)
    limit, start = rng.standard_normal((2, size))
    return (limit + start * 0.7 ** np.arange(steps)[:, None]).astype(np.float32)


def expected(gradients, params=None, lr=1e-4, **kwargs):
    record = {}
    params = np.zeros(gradients.shape[1:]) if params is None else params
    wants = reference_switch.swats(gradients, params, lr, record=record, **kwargs)
    return np.stack(list(wants)), record


@pytest.mark.parametrize("seed", some(range(5), 0, 3))
def test_it_switches_in_the_step_of_the_reference_at_the_papers_tolerance(seed):
    gradients = settling(250, seed=seed)
    updates, _, states = run(adamx.swats(1e-4, **B), gradients)
    wants, record = expected(gradients, **B)
    assert 20 < record["switch_step"] < 200
    np.testing.assert_array_equal(
        states.switch_step,
        np.where(np.arange(1, 251) < record["switch_step"], -1, record["switch_step"]),
    )
    np.testing.assert_allclose(updates, wants, rtol=2e-5, atol=1e-10)
    np.testing.assert_allclose(states.applied_learning_rate, record["rates"], rtol=1e-6)


def test_on_a_quadratic_it_switches_and_converges():
    curvature = jnp.array([1.0, 1.5, 2.0])
    tx = adamx.swats(1e-2, b2=0.9, relative_tolerance=1e-2)

    def step(carry, _):
        p, state = carry
        g = curvature * p
        updates, state = tx.update(g, state, p)
        return (p + updates, state), (p, g)

    start = jnp.array([1.0, -1.0, 0.5])
    (p, state), (path, gradients) = jax.jit(
        lambda: jax.lax.scan(step, (start, tx.init(start)), length=2000)
    )()
    kwargs = {"b2": 0.9, "relative_tolerance": 1e-2}
    _, record = expected(np.asarray(gradients), lr=1e-2, **kwargs)
    reading = adamx.read(state)
    assert reading.switch_step == record["switch_step"] > 1
    assert reading.learning_rate == pytest.approx(record["rates"][-1], rel=1e-5)
    assert float(jnp.max(jnp.abs(p))) < 1e-6 < float(jnp.max(jnp.abs(path[0])))


def test_with_a_long_memory_the_mean_still_reaches_the_papers_tolerance():
    """In float32 a mean with b2 = 0.999 stops 500 ulp, here 6e-8, short of its goal."""
    gradients = np.ones((15_000, 1))
    gradients[:10, 0] = np.linspace(0.5, 0.9, 10)
    kwargs = {"b1": 0.0, "eps": 0.0}
    _, _, states = run(adamx.swats(1e-3, **kwargs), gradients)
    _, record = expected(gradients, lr=1e-3, **kwargs)
    step = record["switch_step"]
    assert 5_000 < step < 15_000
    assert abs(int(states.switch_step[-1]) - step) < 0.15 * step


@as_users
def test_before_the_switch_it_is_adam_to_the_bit():
    gradients = np.random.default_rng(0).standard_normal((50, 64))
    params = jnp.asarray(np.random.default_rng(1).standard_normal(64), jnp.float32)
    ours, _, states = run(
        adamx.swats(1e-2, eps=1e-8, weight_decay=0.1), gradients, params
    )
    theirs, _, adam = run(adamx.adamw(1e-2, weight_decay=0.1), gradients, params)
    assert np.all(states.switch_step == -1)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(states.mu, adam.mu)
    np.testing.assert_array_equal(states.nu, adam.nu)


def test_behind_the_switch_it_is_sgd_with_momentum_begun_there():
    gradients = settling(250)
    updates, _, states = run(adamx.swats(1e-4, **B), gradients)
    last = int(states.switch_step[-1])
    rate = float(states.switched_rate[-1])
    assert adamx.read(
        jax.tree.map(lambda x: x[-1], states)
    ).learning_rate == pytest.approx(rate)
    plain = adamx.sgd(rate * (1 - B["b1"]), B["b1"])
    wants = run_plain(plain, gradients[last:])
    np.testing.assert_allclose(updates[last:], wants, rtol=2e-6, atol=1e-12)


def run_plain(tx, gradients):
    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    state = tx.init(jnp.zeros(gradients.shape[1]))
    return np.asarray(jax.lax.scan(step, state, jnp.asarray(gradients))[1])


@pytest.mark.parametrize("independent", [False, True])
def test_decay_and_schedule_in_both_phases(independent):
    """Decay by the phase's own rate; the estimated rate moves with the schedule."""
    gradients = settling(250)
    params = np.random.default_rng(3).standard_normal(64).astype(np.float32)
    rates = np.where(np.arange(250) < 200, 1e-3, 1e-4)
    kwargs = B | {"weight_decay": 0.3, "independent_decay": independent}
    kwargs |= {"relative_tolerance": 1e-3}
    tx = adamx.swats(lambda count: jnp.where(count < 200, 1e-3, 1e-4), **kwargs)
    updates, path, states = run(tx, gradients, jnp.asarray(params))
    wants, record = expected(gradients, params, rates, trajectory=path, **kwargs)
    assert 1 < record["switch_step"] < 150
    np.testing.assert_allclose(updates, wants, rtol=1e-5, atol=1e-9)
    ratio = states.applied_learning_rate[-1] / states.applied_learning_rate[180]
    assert float(ratio) == pytest.approx(0.1, rel=1e-6)


def test_every_seed_switches_in_its_own_step():
    gradients = np.stack([settling(250, seed=s) for s in range(4)])
    tx, params = adamx.swats(1e-4, **B), jnp.zeros(64)

    def last(g):
        def step(state, g):
            return tx.update(g, state, params)[1], None

        return jax.lax.scan(step, tx.init(params), g)[0]

    reading = adamx.read(jax.jit(jax.vmap(last))(jnp.asarray(gradients)))
    wants = [expected(g, **B)[1]["switch_step"] for g in gradients]
    assert len(set(wants)) > 1
    np.testing.assert_array_equal(reading.switch_step, wants)


@pytest.mark.parametrize(
    "shape", some([((4_000_000,),), ((2000, 2000),), ((64, 8),)], ((2000, 2000),))
)
def test_the_estimate_within_1e_5_of_float64(shape):
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-4, 2, shape)
    tx = adamx.swats(1e-2)
    gradients = [(rng.standard_normal(shape) * scales) for _ in range(3)]
    gradients = [g.astype(np.float32) for g in gradients]
    params = jnp.zeros(shape)
    state = tx.init(params)
    _, record = expected(np.stack(gradients), lr=1e-2)
    for g, (gamma, mean) in zip(gradients, record["gammas"], strict=True):
        _, state = jax.jit(tx.update)(jnp.asarray(g), state, params)
        assert float(state[0].gamma) == pytest.approx(gamma, rel=1e-5)
        assert float(state[0].gamma_mean) == pytest.approx(mean, rel=1e-5)


def test_zero_gradients_give_no_estimate():
    gradients = np.zeros((20, 3))
    updates, _, states = run(adamx.swats(1e-2, tolerance=1.0), gradients)
    assert not np.any(updates)
    assert np.all(states.switch_step == -1)
    assert not np.any(states.gamma_mean)
    # lambda keeps, as in the paper: a gradient behind zeros finds the mean too small.
    gradients[[0, 10]] = 1.0
    _, _, states = run(adamx.swats(1e-2, tolerance=1e-9), gradients)
    _, record = expected(gradients, lr=1e-2)
    assert record["switch_step"] == int(states.switch_step[-1]) == -1
    sums = np.asarray(states.gamma_mean * states.bias_correction_nu)
    np.testing.assert_allclose(sums[:10], sums[0], rtol=1e-6)
    assert float(states.gamma_mean[10]) == pytest.approx(record["gammas"][-1][1])


def test_a_rate_of_zero_gives_no_estimate():
    gradients = np.ones((5, 3))
    _, _, states = run(adamx.swats(0.0, tolerance=1.0), gradients)
    assert np.all(states.switch_step == -1)
    assert np.all(np.isfinite(states.gamma_mean))


def test_a_negative_estimate_never_switches():
    """Uphill by momentum: u . g < 0, and the mean of the estimates is negative."""
    gradients = np.array([[1.0], [-0.1]])
    _, _, states = run(adamx.swats(1e-2, tolerance=1e6), gradients)
    _, record = expected(gradients, lr=1e-2, tolerance=1e6)
    assert float(states.gamma[-1]) == pytest.approx(record["gammas"][-1][0])
    assert record["gammas"][-1][1] < 0
    assert int(states.switch_step[-1]) == record["switch_step"] == -1


def test_the_first_step_never_switches_nor_does_a_tolerance_of_zero():
    gradients = np.ones((50, 3))
    _, _, states = run(adamx.swats(1e-2, tolerance=1.0), gradients)
    assert states.switch_step[:3].tolist() == [-1, 2, 2]
    _, _, states = run(adamx.swats(1e-2, tolerance=0.0), gradients)
    assert np.all(states.switch_step == -1)


def test_a_count_at_its_end_never_switches():
    """The step of a switch would be that of all steps: each would begin mu at 0."""
    largest = jnp.iinfo(jnp.int32).max
    params = jnp.array([1.0, 2.0])
    still = adamx.swats(1e-2, **B, tolerance=0.0)
    ready = adamx.swats(1e-2, **B, tolerance=1.0)
    state = still.init(params)
    for _ in range(60):
        _, state = still.update(params, state, params)
    (state,) = state
    for before, at in [(2, largest - 1), (1, -1)]:
        held = (state._replace(count=jnp.int32(largest - before)),)
        for _ in range(4):
            updates, held = ready.update(params, held, params)
        assert int(held[0].switch_step) == at
        size = -updates[0] / held[0].applied_learning_rate
        assert float(size) > 0.4  # 1 - b1^3 in SGD's phase


def test_a_nan_stops_the_estimate_and_not_the_other_elements():
    gradients = settling(100)
    gradients[5, 0] = np.nan
    updates, _, states = run(adamx.swats(1e-4, **B), gradients)
    assert np.all(states.switch_step == -1)
    assert np.all(np.isfinite(states.gamma_mean))
    np.testing.assert_array_equal(np.isnan(updates[10]), np.arange(64) == 0)


def test_an_element_that_overflowed_moves_again_as_sgd():
    """Its nu is inf for good: Adam's step is 0 there, SGD's must not be NaN."""
    gradients = np.ones((6, 2))
    gradients[0, 0] = 3e19
    tx = adamx.swats(1e-2, b1=0.0, b2=0.5, relative_tolerance=0.9)
    updates, _, states = run(tx, gradients)
    assert np.isinf(states.nu[-1, 0])
    assert np.all(np.isfinite(updates))
    assert int(states.switch_step[-1]) > 1
    assert updates[-1, 0] == updates[-1, 1] < 0


def test_none_of_the_others_reads_a_switch():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    assert adamx.read(adamx.adam(1e-3).init(params)).switch_step is None
    tx = optax.partition(
        {"x": adamx.swats(1e-2, tolerance=1.0), "y": adamx.swats(1e-2)},
        {"a": "x", "b": "y"},
    )
    state = tx.init(params)
    gradients = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([1.0, 2.0])}
    for scale in (1.0, 0.5):
        scaled = jax.tree.map(lambda g, s=scale: g * s, gradients)
        _, state = jax.jit(tx.update)(scaled, state, params)
    reading = adamx.read(state)
    assert reading.switch_step == {"x": 2, "y": -1}
    assert reading.scalars()["switch_step/x"] == 2.0
