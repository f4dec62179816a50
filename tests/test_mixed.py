"""What NAdam's warming, ADOPT and AdEMAMix promise, beyond the table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests import reference_mixed as reference
from tests.compiling import AS_USERS
from tests.helpers import TEMPORARIES, run_updates

# ----------------------------------------------------------------- NAdam's warming


@pytest.mark.parametrize("b1", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("momentum_decay", [0.0, 4e-3, 1.0])
def test_the_correction_is_one_minus_the_product_of_the_warming_b1(b1, momentum_decay):
    tx = adamx.scale_by_adam(b1, nesterov=True, momentum_decay=momentum_decay)

    def step(state, _):
        state = tx.update(jnp.ones(1), state)[1]
        return state, state.bias_correction_mu

    start = tx.init(jnp.zeros(1))
    got = jax.jit(lambda s: jax.lax.scan(step, s, None, length=5000)[1])(start)
    t = np.arange(1, 5001)
    want = 1 - np.cumprod(b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)))
    np.testing.assert_allclose(got, want, rtol=5e-7)


def test_without_decay_half_of_b1_looks_ahead_and_with_a_large_one_all_of_it():
    gradients = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    params = np.zeros(5, np.float32)
    never, _ = run_updates(adamx.nadam(0.1, momentum_decay=0.0), gradients, params)
    want = np.stack(list(reference.nadam(gradients, params, 0.1, momentum_decay=0.0)))
    np.testing.assert_allclose(never, want, rtol=1e-5, atol=1e-8)
    at_once, _ = run_updates(adamx.nadam(0.1, momentum_decay=1e4), gradients, params)
    plain, _ = run_updates(adamx.nadam(0.1), gradients, params)
    np.testing.assert_allclose(at_once, plain, rtol=1e-5, atol=1e-8)


def test_momentum_decay_may_be_traced_and_is_recorded():
    gradients = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    params = np.zeros(5, np.float32)
    traced, _ = run_updates(
        lambda decay: adamx.nadam(0.1, momentum_decay=decay),
        gradients,
        params,
        np.float32(4e-3),
    )
    constant, _ = run_updates(adamx.nadam(0.1, momentum_decay=4e-3), gradients, params)
    np.testing.assert_allclose(traced, constant, rtol=2e-6, atol=1e-8)
    tx = adamx.scale_by_adam(nesterov=True, momentum_decay=lambda step: 0.5 * step)
    state = tx.init(jnp.zeros(1))
    for want in (0.0, 0.5, 1.0):
        _, state = tx.update(jnp.ones(1), state)
        assert float(state.momentum_decay) == want
    assert adamx.scale_by_adam().init(jnp.zeros(1)).momentum_decay is None


# -------------------------------------------------------------------------- ADOPT


def test_the_first_step_only_fills_nu():
    tx = adamx.adopt(0.1)
    g = jnp.array([3.0, -1e-9, 0.0])
    updates, state = tx.update(g, tx.init(jnp.zeros(3)))
    assert not np.any(np.asarray(updates))
    np.testing.assert_array_equal(state[0].nu, g * g)
    assert not np.any(np.asarray(state[0].mu))


def test_the_divisor_is_older_than_the_gradient():
    """A gradient 1,000 times the last one is divided by the last one, then clipped."""
    for use_clipping, want in ((True, 2**0.25), (False, 1000.0)):
        tx = adamx.scale_by_adopt(b1=0.0, b2=0.0, use_clipping=use_clipping)
        state = tx.init(jnp.zeros(1))
        for g in (7.0, 1.0, 1000.0):
            updates, state = tx.update(jnp.array([g]), state)
        assert float(updates[0]) == pytest.approx(want, rel=1e-6)
        has_none = state.clip_value is None
        assert has_none != use_clipping


def test_no_quotient_exceeds_the_clip_value():
    rng = np.random.default_rng(0)
    tx = adamx.scale_by_adopt(b1=0.0, b2=0.5)
    for dtype in (jnp.float32, jnp.complex64):
        state = tx.init(jnp.zeros(64, dtype))
        for t in range(60):
            g = rng.standard_normal(64) * 10.0 ** rng.uniform(-6, 6, 64)
            if dtype == jnp.complex64:
                g = g * np.exp(1j * rng.uniform(0, 6, 64))
            updates, state = tx.update(jnp.asarray(g, dtype), state)
            assert float(state.clip_value) == pytest.approx(t**0.25, rel=1e-6)
            assert np.max(np.abs(updates)) <= t**0.25 * (1 + 1e-6)
            if t:
                assert np.max(np.abs(updates)) == pytest.approx(t**0.25, rel=1e-6)


def test_the_clip_value_may_be_a_function_a_number_or_traced():
    def second_update(tx):
        _, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))
        return float(tx.update(jnp.array([50.0]), state)[0][0])

    for value in (3.0, jnp.float32(3.0), lambda t: 3.0 * t):
        tx = adamx.scale_by_adopt(b1=0.0, clip_value_fn=value)
        assert second_update(tx) == pytest.approx(3.0)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_a_first_gradient_of_inf_or_nan_is_seen_at_once(eps):
    for use_clipping in (True, False):
        tx = adamx.adopt(0.1, eps=eps, use_clipping=use_clipping)
        g = jnp.array([1.0, jnp.nan, jnp.inf])
        updates, _ = tx.update(g, tx.init(jnp.zeros(3)))
        assert np.isnan(np.asarray(updates)).tolist() == [False, True, True]


def test_adopt_converges_where_adam_does_not():
    """Reddi et al. (2018), section 3: gradients C, -1, -1 with a small b2."""
    steps, b2 = 30_000, 0.1

    def run(tx):
        def step(carry, t):
            p, state = carry
            g = jnp.where(t % 3 == 0, 50.0, -10.0)
            rate = 1.0 / jnp.sqrt(1.0 + t)
            updates, state = tx.update(jnp.full(1, g), state, p)
            p = jnp.clip(p + 0.1 * rate * updates, -1.0, 1.0)
            return (p, state), None

        start = (jnp.zeros(1), tx.init(jnp.zeros(1)))
        return float(jax.lax.scan(step, start, jnp.arange(steps))[0][0][0])

    # The mean gradient is 10, so the minimum is at -1.
    adam = run(optax.chain(adamx.scale_by_adam(0.0, b2), optax.scale(-1.0)))
    adopt = run(optax.chain(adamx.scale_by_adopt(0.0, b2), optax.scale(-1.0)))
    assert adam > 0.5
    assert adopt < -0.5


@pytest.mark.parametrize("use_clipping", [True, False])
def test_adopt_without_nesterov_needs_no_temporaries(use_clipping):
    """The table's last row has Nesterov's form, which does."""
    params = {"a": jnp.ones((256, 256))}
    tx = adamx.adopt(0.1, use_clipping=use_clipping, weight_decay=0.1)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    compiled = donated.lower(params, tx.init(params), params).compile(AS_USERS)
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used <= TEMPORARIES * params["a"].nbytes


# ----------------------------------------------------------------------- AdEMAMix


def warm_up_records(tx, steps):
    def step(state, _):
        state = tx.update(jnp.ones(1), state)[1]
        return state, (state.b3, state.alpha, state.mu_slow[0])

    start = tx.init(jnp.zeros(1))
    return jax.jit(lambda s: jax.lax.scan(step, s, None, length=steps)[1])(start)


@pytest.mark.parametrize("b1", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("b3", [0.5, 0.999, 0.9999])
def test_the_warm_up_is_the_paper_s(b1, b3):
    """1 - b3_t is seen in the slow mean of ones: 1 - (product of all b3_t)."""
    tx = adamx.scale_by_ademamix(b1, b3=b3, alpha=8.0, b3_warmup=300, alpha_warmup=100)
    got_b3, got_alpha, mean = warm_up_records(tx, 400)
    t = np.arange(1, 401)
    start = max(b1, 1e-300)
    want = np.array([reference.warm_b3(i, b3, start, 300) for i in t])
    np.testing.assert_allclose(got_b3, want, rtol=2e-7, atol=3e-3 * (b1 == 0))
    np.testing.assert_allclose(got_alpha, 8 * np.minimum(t / 100, 1), rtol=2e-7)
    if b1:
        filled = 1 - np.cumprod(want)
        np.testing.assert_allclose(mean, filled, rtol=2e-6)


def test_half_of_the_warm_up_has_half_of_the_half_life():
    def half_life(b):
        return np.log(0.5) / np.log(b)

    tx = adamx.scale_by_ademamix(0.9, b3=0.9999, b3_warmup=1000)
    b3 = float(np.asarray(warm_up_records(tx, 500)[0])[-1])
    want = (half_life(0.9) + half_life(0.9999)) / 2
    assert half_life(b3) == pytest.approx(want, rel=2e-3)  # b3 is recorded as float32


def test_the_slow_mean_is_not_corrected_and_alpha_zero_is_adam():
    g = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    params = np.zeros(20, np.float32)
    got, _ = run_updates(adamx.ademamix(0.1, alpha=0.0), g, params)
    want, _ = run_updates(adamx.adam(0.1), g, params)
    np.testing.assert_array_equal(got, want)
    tx = adamx.scale_by_ademamix(alpha=2.0, b3=0.75)
    state = tx.init(jnp.zeros(1))
    for t in range(1, 6):
        updates, state = tx.update(jnp.full(1, -4.0), state)
        assert float(updates[0]) == pytest.approx(-1 - 2 * (1 - 0.75**t), rel=1e-6)


def test_the_slow_mean_moves_in_bfloat16_too():
    """Optax keeps it in the parameter's dtype, where a step of 1e-4 is lost."""
    params = jnp.zeros(1, jnp.bfloat16)
    gradient = jnp.ones(1, jnp.bfloat16)

    def run(tx):
        def step(state, _):
            return tx.update(gradient, state, params)[1], None

        return jax.lax.scan(step, tx.init(params), None, length=10_000)[0]

    ours = run(adamx.scale_by_ademamix())
    assert ours.mu.dtype == jnp.bfloat16
    assert ours.mu_slow.dtype == jnp.float32
    assert float(ours.mu_slow[0]) == pytest.approx(1 - np.exp(-1), rel=1e-3)
    assert float(run(optax.contrib.scale_by_ademamix()).m2[0]) < 0.1


def test_b3_and_alpha_may_be_schedules_or_traced():
    g = np.random.default_rng(0).standard_normal((40, 20)).astype(np.float32)
    params = np.zeros(20, np.float32)
    schedules = {
        "b3": lambda step: jnp.where(step < 20, 0.5, 0.75),
        "alpha": lambda step: 0.25 * step,
    }
    ours, _ = run_updates(adamx.ademamix(0.1, **schedules), g, params)
    theirs, _ = run_updates(optax.contrib.ademamix(0.1, **schedules), g, params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    traced, _ = run_updates(
        lambda b3, alpha, steps: adamx.ademamix(
            0.1, b3=b3, alpha=alpha, b3_warmup=steps, alpha_warmup=steps
        ),
        g,
        params,
        np.float32(0.75),
        np.float32(3.0),
        np.float32(30),
    )
    warm = {"b3_warmup": 30, "alpha_warmup": 30}
    constant, _ = run_updates(
        adamx.ademamix(0.1, b3=0.75, alpha=3.0, **warm), g, params
    )
    np.testing.assert_allclose(traced, constant, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adopt", "ademamix", "radam", "adabound"])
def test_eps_zero_never_divides_zero_by_zero(name):
    tx = getattr(adamx, name)(0.1, eps=0.0)
    state = tx.init(jnp.ones(3))
    for _ in range(8):
        updates, state = jax.jit(tx.update)(jnp.array([0.0, 1.0, 1e-30]), state)
        assert float(updates[0]) == 0.0
        assert np.all(np.isfinite(np.asarray(updates)))
