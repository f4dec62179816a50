"""Every optimizer against its float64 reference, and the numbers that always hold."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests import reference
from tests.helpers import enable_x64, run_updates, some
from tests.optimizers_table import LR, NAMES, ROWS

STEPS = (1, 2, 10, 100, 1000)
# All rows; in the quick run, of each name the one that stands for it.
BY_NAME = [
    pytest.param(row, marks=[] if row in NAMES else pytest.mark.slow, id=row.id)
    for row in ROWS
]
# Of what takes long and depends on little but the kind of rule: a mean of squares, a
# sign, a norm of the leaf, a rectified step, rows, parameters held in the state.
FEW = ("adamw", "lion", "lamb", "radam", "sparse_adam", "schedule_free_adamw")


def few(rows, quick):
    """All of these rows; but for those called so in `quick`, in the slow run only."""
    return [
        pytest.param(
            row,
            marks=[] if row in quick and row.name in FEW else pytest.mark.slow,
            id=row.id,
        )
        for row in rows
    ]


SIZE = 4099


@functools.cache
def _gradients(steps, size=SIZE, seed=0, dtype=np.float32):
    """Columns of unlike scale, signs that change, and some exact zeros."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-4, 2, size)
    out = rng.standard_normal((steps, size)) * scales
    out[:, :: size // 16] = 0.0
    if np.issubdtype(dtype, np.complexfloating):
        out = out + 1j * rng.standard_normal((steps, size)) * scales
    out = out.astype(dtype)
    out.flags.writeable = False  # one array for all who ask
    return out


def _scaled_error(got, want, lr=LR, size=None):
    size = np.abs(want) if size is None else size
    return np.max(np.abs(got - want) / lr / np.maximum(1.0, size / lr))


def _expected(row, gradients, params, trajectory=None):
    """The reference's updates, each with the size that its error is measured by."""
    wants = row.expected(gradients, params, trajectory)
    if row.conditioning is not None:
        return _decided(row, gradients, wants, params, trajectory)
    if not row.is_sum:
        return ((want, np.abs(want)) for want in wants)
    # Of the same parameters: those that follow |g| would decay from elsewhere.
    there = None if trajectory is None else np.abs(trajectory)
    sizes = row.expected(np.abs(gradients), np.abs(params), there)
    return ((want, np.abs(size)) for want, size in zip(wants, sizes, strict=True))


def _decided(row, gradients, wants, params, trajectory):
    """Updates that jump or amplify: each error over what a rounding may do to it."""
    given = {"p": params, "trajectory": trajectory, **row.reference_arguments}
    steps = row.conditioning(gradients, **given)
    for want, conditioning in zip(wants, steps, strict=True):
        # Within 8 units in the last place of the terms is either side of the jump.
        is_undecided = conditioning * 8 * np.finfo(gradients.dtype).eps > 1
        assert np.mean(is_undecided) <= 1e-3
        size = np.maximum(LR * conditioning, np.abs(want))
        yield want, np.where(is_undecided, np.inf, size)


@pytest.mark.parametrize("row", BY_NAME)
def test_update_error_against_float64(row):
    gradients = _gradients(max(STEPS))
    params = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    updates, trajectory = run_updates(row.make(), gradients, params)
    wants = _expected(row, gradients, params, trajectory)
    for t, (want, size) in enumerate(wants, start=1):
        if t in STEPS:
            assert _scaled_error(updates[t - 1], want, size=size) <= row.bar, f"t={t}"


@pytest.mark.parametrize("row", few(ROWS, NAMES))
def test_x64_is_exact(row):
    steps = 1000
    gradients = _gradients(steps, size=67, dtype=np.float64)
    params = np.random.default_rng(1).standard_normal(67)
    with enable_x64():
        updates, _ = run_updates(row.make(), gradients, params)
    assert updates.dtype == np.float64
    for t, (want, size) in enumerate(_expected(row, gradients, params), start=1):
        if t in STEPS:
            assert _scaled_error(updates[t - 1], want, size=size) <= 1e-12, f"t={t}"


@pytest.mark.parametrize("row", few([row for row in ROWS if row.is_complex], NAMES))
def test_complex64_against_complex128(row):
    gradients = _gradients(100, size=257, dtype=np.complex64)
    params = _gradients(1, size=257, seed=3, dtype=np.complex64)[0]
    if row.holds_params:  # a copy is rounded in proportion to its size
        params = params / np.maximum(1.0, np.abs(params)).astype(np.float32)
    updates, _ = run_updates(row.make(), gradients, params)
    assert updates.dtype == np.complex64
    for t, (want, size) in enumerate(_expected(row, gradients, params), start=1):
        if t in STEPS:
            bar = max(row.bar, 3e-6)
            assert _scaled_error(updates[t - 1], want, size=size) <= bar, f"t={t}"


def test_centred_rmsprop_with_bias_correction_and_eps_outside():
    """In double precision: the corrected variance of few gradients nearly cancels."""
    options = {"decay": 0.9, "eps": 1e-2, "initial_scale": 0.5, "eps_in_sqrt": False}
    options |= {"centered": True, "bias_correction": True}
    gradients = np.random.default_rng(0).standard_normal((50, 31))
    params = np.zeros(31)
    with enable_x64():
        updates, _ = run_updates(adamx.rmsprop(LR, **options), gradients, params)
    wants = list(reference.rmsprop(gradients, params, LR, **options))
    np.testing.assert_allclose(updates, wants, rtol=1e-9)


def test_a_centred_square_that_overflows_stops_its_element_too():
    tx = adamx.rmsprop(1.0, centered=True)
    state = tx.init(jnp.zeros(1))
    for size in (1e20, 1.0, 1.0):
        updates, state = jax.jit(tx.update)(jnp.array([size]), state)
        assert float(updates[0]) == 0.0


@pytest.mark.parametrize("b2", [0.999, 0.97, 0.9999])
def test_second_moment_within_five_ulp(b2):
    gradients = _gradients(1000)
    params = np.zeros(SIZE, np.float32)
    tx = adamx.scale_by_adam(b2=b2)

    def step(state, g):
        return tx.update(g, state)[1], None

    state, _ = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(
        tx.init(jnp.asarray(params)), gradients
    )
    nus = []
    list(reference.adam(gradients, params, 1.0, b2=b2, nus=nus))
    want = nus[-1][nus[-1] > 0]
    got = np.asarray(state.nu)[nus[-1] > 0].astype(np.float64)
    ulp = np.abs(got - want) / np.spacing(want.astype(np.float32))
    assert np.median(ulp) <= 5


@pytest.mark.parametrize(
    ("is_traced", "b"),
    some(
        itertools.product([False, True], [0.0, 1e-3, 0.1, 0.49, 0.51, 0.9]),
        *[(False, 0.0), (False, 0.51), (True, 1e-3), (True, 0.49), (True, 0.9)],
    ),
)
def test_any_beta_is_exact_whatever_came_before(b, is_traced):
    """After a gradient of 1e3 one of 1e-5: moved from the far side, mu would be 0."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((50, 64)) * 10.0 ** rng.uniform(-5, 3, (50, 64))
    gradients = gradients.astype(np.float32)
    params, b = np.zeros(64, np.float32), float(np.float32(b))

    def make(beta):
        return adamx.adam(LR, b1=beta, b2=beta, eps=1e-12)

    traced = (np.float32(b),) if is_traced else ()
    ours, _ = run_updates(make if is_traced else make(b), gradients, params, *traced)
    wants = reference.adam(gradients, params, LR, b1=b, b2=b, eps=1e-12)
    for t, want in enumerate(wants, start=1):
        assert _scaled_error(ours[t - 1], want) <= 2e-6, f"t={t}"


@pytest.mark.parametrize("b1", [0.5, 0.9])
def test_nesterov_looks_ahead_by_the_next_correction_of_a_traced_b1_too(b1):
    gradients = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    params, b1 = np.zeros(64, np.float32), float(np.float32(b1))
    traced, _ = run_updates(
        lambda beta: adamx.nadam(LR, b1=beta), gradients, params, np.float32(b1)
    )
    constant, _ = run_updates(adamx.nadam(LR, b1=b1), gradients, params)
    np.testing.assert_allclose(traced, constant, rtol=0, atol=5e-6 * LR)


@pytest.mark.parametrize("b", [0.25, 0.49, 0.51, 0.9])
@pytest.mark.parametrize("is_traced", [False, True])
def test_momentum_decays_below_one_half_too(b, is_traced):
    """What is left of the sum is formed in another way than above one half."""
    gradients = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    params, b = np.zeros(64, np.float32), float(np.float32(b))

    def make(beta):
        return adamx.momentum(LR, momentum=beta)

    traced = (np.float32(b),) if is_traced else ()
    ours, _ = run_updates(make if is_traced else make(b), gradients, params, *traced)
    want = np.stack(list(reference.momentum(gradients, params, LR, momentum=b)))
    np.testing.assert_allclose(ours, want, rtol=0, atol=5e-6 * LR)


@pytest.mark.parametrize("b2", [0.99, 0.999, 0.9999])
def test_carried_bias_correction_never_stalls(b2):
    tx, steps = adamx.scale_by_adam, 20_000
    b2 = np.float32(b2)

    def corrections(b):
        def step(state, _):
            state = tx(b2=b).update(jnp.ones(1), state)[1]
            return state, state.bias_correction_nu

        return jax.lax.scan(step, tx(b2=b).init(jnp.ones(1)), None, length=steps)[1]

    want = -np.expm1(np.arange(1, steps + 1) * np.log(np.float64(b2)))
    error = np.abs(np.asarray(jax.jit(corrections)(b2)) - want) / want
    assert np.max(error) <= 2e-7


def test_a_schedule_that_returns_floats_is_corrected_by_what_was_applied():
    tx = adamx.scale_by_adam(b1=lambda count: 0.9 if count < 2 else 0.5)
    state = tx.init(jnp.zeros(1))
    for g in (1.0, 2.0, 3.0, -4.0):
        _, state = tx.update(jnp.array([g]), state)
    assert float(state.bias_correction_mu) == pytest.approx(1 - 0.9**2 * 0.5**2)


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999])
def test_traced_betas_are_as_exact_as_constant_ones(b2):
    # The truth for a traced b2 is the float32 that was passed.
    gradients = _gradients(100, size=257)
    params = np.zeros(257, np.float32)
    updates, _ = run_updates(
        lambda b: adamx.adam(LR, b2=b, b1=b), gradients, params, np.float32(b2)
    )
    exact = float(np.float32(b2))
    for t, want in enumerate(
        reference.adam(gradients, params, LR, b1=exact, b2=exact), start=1
    ):
        if t in STEPS:
            assert _scaled_error(updates[t - 1], want) <= 2e-6, f"t={t}"


def test_bias_correction_follows_a_changing_b2():
    """From 0.999 to 0.99 at step 10, gradient 1: nu_hat stays 1 (closed form: 0.19)."""
    tx = optax.inject_hyperparams(adamx.scale_by_adam)(b2=0.999)
    state = tx.init(jnp.zeros(1))
    update = jax.jit(tx.update)
    for t in range(20):
        if t == 10:
            state.hyperparams["b2"] = jnp.float32(0.99)
        _, state = update(jnp.ones(1), state, jnp.zeros(1))
        inner = state.inner_state
        assert abs(float(inner.nu[0] / inner.bias_correction_nu) - 1) < 1e-5
    scheduled = adamx.scale_by_adam(b2=lambda step: jnp.where(step < 10, 0.999, 0.99))
    state = scheduled.init(jnp.zeros(1))
    for _ in range(20):
        _, state = jax.jit(scheduled.update)(jnp.ones(1), state)
    assert abs(float(state.nu[0] / state.bias_correction_nu) - 1) < 1e-5
    assert float(state.b2) == np.float32(0.99)


def test_bfloat16_parameters_keep_an_exact_second_moment():
    """10,000 steps with b2 = 0.999: within 1% all the way; Optax's nu stays at 0.5."""
    steps = 10_000
    rng = np.random.default_rng(0)
    gradients = np.ones((steps, 4), np.float32)
    gradients[:, 1] = np.where(np.arange(steps) < steps // 2, 1.0, 0.0)
    gradients[:, 2:] = rng.standard_normal((steps, 2))
    gradients = np.asarray(jnp.asarray(gradients, jnp.bfloat16))
    wants = []
    list(reference.adam(gradients.astype(np.float64), np.zeros(4), 1.0, nus=wants))

    def run(tx):
        def step(state, g):
            state = tx.update(g, state)[1]
            return state, state.nu

        start = tx.init(jnp.zeros(4, jnp.bfloat16))
        return np.asarray(jax.jit(lambda g: jax.lax.scan(step, start, g)[1])(gradients))

    nu = run(adamx.scale_by_adam())
    assert nu.dtype == np.float32
    np.testing.assert_allclose(nu, np.stack(wants), rtol=1e-2)
    theirs = run(optax.scale_by_adam()).astype(np.float64)
    assert theirs[-1, 0] < 0.6  # why nu is not 16-bit here
    assert wants[-1][0] > 0.99


# Of each name the last row with a twin: with its hyperparameters off default.
TWINS = list({row.name: row for row in ROWS if row.twin}.values())


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row in TWINS else pytest.mark.slow, id=row.id)
        for row in ROWS
        if row.twin
    ],
)
def test_parity_with_optax(row):
    gradients = _gradients(100)
    params = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    ours, _ = run_updates(row.make(), gradients, params)
    theirs, _ = run_updates(row.make_twin(), gradients, params)
    sizes = [size for _, size in _expected(row, gradients, params)]
    for t in (1, 2, 10, 100):
        size = np.maximum(sizes[t - 1], np.abs(theirs[t - 1]))
        error = _scaled_error(ours[t - 1], theirs[t - 1], size=size)
        assert error <= row.parity, f"t={t}"
