"""Schedule-Free AdamW: the average, its recovery, and where Optax differs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adamx
from tests import reference_schedule_free
from tests.helpers import run_updates, some

RATE = 1e-2


def inputs(steps=200, size=64, seed=0):
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((steps, size)) * 10 ** rng.uniform(-3, 1, size)
    return gradients.astype(np.float32), rng.standard_normal(size).astype(np.float32)


def averages_of(tx, gradients, params, evaluate=adamx.schedule_free_eval_params):
    """x behind every step, with the parameters moved in float32."""

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), (evaluate(state, p), p)

    params = jnp.asarray(params)
    return jax.jit(lambda g: jax.lax.scan(step, (params, tx.init(params)), g)[1])(
        jnp.asarray(gradients)
    )


def expected_averages(gradients, params, lr=RATE, **kwargs):
    averages = []
    list(
        reference_schedule_free.schedule_free_adamw(
            gradients, params, lr, averages=averages, **kwargs
        )
    )
    return np.stack(averages)


@pytest.mark.parametrize(
    ("power", "b1", "correction"),
    some(
        itertools.product([0.0, 1.0, 2.0], [0.5, 0.9, 0.99], ["rate", "nu"]),
        *[(0.0, 0.5, "rate"), (1.0, 0.9, "nu"), (2.0, 0.99, "rate"), (2.0, 0.9, "nu")],
    ),
)
def test_the_average_follows_the_reference(b1, power, correction):
    gradients, params = inputs()
    kwargs = {"b1": b1, "weight_lr_power": power, "bias_correction_of": correction}
    kwargs |= {"weight_decay": 0.1, "warmup_steps": 20}
    got, _ = averages_of(adamx.schedule_free_adamw(RATE, **kwargs), gradients, params)
    want = expected_averages(gradients, params, **kwargs)
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-6)


def test_a_schedule_weighs_each_step_by_its_own_rate():
    gradients, params = inputs(50)
    rates = np.where(np.arange(50) < 25, 1e-2, 1e-3)
    tx = adamx.schedule_free_adamw(lambda count: jnp.where(count < 25, 1e-2, 1e-3))
    got, _ = averages_of(tx, gradients, params)
    want = expected_averages(gradients, params, rates)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_with_equal_weights_the_average_is_the_mean_of_z():
    gradients, params = inputs(30)
    tx = adamx.schedule_free_adamw(RATE, weight_lr_power=0.0)
    got, _ = averages_of(tx, gradients, params)
    zs, _ = averages_of(tx, gradients, params, evaluate=lambda state, p: state.z)
    np.testing.assert_allclose(got[-1], np.mean(zs, axis=0), rtol=1e-6, atol=1e-6)


def test_a_changing_b1_keeps_the_average():
    """y moves to the new mixture of the same x and z."""
    gradients, params = inputs(40)
    b1 = lambda count: jnp.where(count < 20, 0.9, 0.6)  # noqa: E731
    got, y = averages_of(adamx.schedule_free_adamw(RATE, b1=b1), gradients, params)
    want = expected_averages(gradients, params)  # z and x know nothing of b1
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    zs, _ = averages_of(
        adamx.schedule_free_adamw(RATE, b1=b1),
        gradients,
        params,
        evaluate=lambda state, p: state.z,
    )
    mixed = np.where(np.arange(40) < 20, 0.9, 0.6)[:, None]
    np.testing.assert_allclose(y, mixed * want + (1 - mixed) * zs, atol=3e-6)


def test_a_b1_from_a_schedule_of_floats_keeps_the_average():
    """Outside of jit a schedule may answer with floats, another one each time."""
    gradients, params = inputs(6)

    def run(b1):
        tx, p = adamx.schedule_free_adamw(RATE, b1=b1), jnp.asarray(params)
        state = tx.init(p)
        for g in jnp.asarray(gradients):
            updates, state = tx.update(g, state, p)
            p = p + updates
        return p, adamx.schedule_free_eval_params(state, p)

    got = run(lambda count: 0.9 if count < 3 else 0.6)
    want = run(lambda count: jnp.where(count < 3, 0.9, 0.6))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_the_sum_of_weights_never_stalls(traced):
    """20,000 weights on top of 2^24 of them: c must still be 1 / t."""
    rate = jnp.float32(1.0) if traced else 1.0
    tx = adamx.schedule_free_adamw(rate, weight_lr_power=0.0)
    params = jnp.zeros(1)
    start = 2.0**24
    state = tx.init(params)._replace(weight_sum=jnp.float32(start))

    def step(state, _):
        return tx.update(params, state, params)[1], None

    state = jax.jit(lambda s: jax.lax.scan(step, s, None, length=20_001)[0])(state)
    total = float(state.weight_sum) + float(state.weight_sum_rest)
    assert total == start + 20_001


def test_the_average_of_a_noisy_quadratic_is_nearer_than_the_iterates():
    rng = np.random.default_rng(0)
    curvature = jnp.asarray(10 ** rng.uniform(-1, 1, 256), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((2000, 256)) * 0.3, jnp.float32)
    tx = adamx.schedule_free_adamw(RATE)

    def step(carry, n):
        p, state = carry
        updates, state = tx.update(curvature * p + n, state, p)
        return (p + updates, state), None

    start = jnp.ones(256)
    (p, state), _ = jax.jit(
        lambda: jax.lax.scan(step, (start, tx.init(start)), noise)
    )()
    x = adamx.schedule_free_eval_params(state, p)
    sizes = [float(jnp.mean(curvature * v**2)) for v in (x, p, state.z)]
    assert sizes[0] < sizes[1] < 0.5 * sizes[2]


def test_the_average_is_recovered_better_than_by_optax():
    gradients, params = inputs(1000)
    kwargs = {"bias_correction_of": "nu"}
    want = expected_averages(gradients, params, **kwargs)[-1]
    ours, _ = averages_of(adamx.schedule_free_adamw(RATE, **kwargs), gradients, params)
    theirs, _ = averages_of(
        optax.contrib.schedule_free_adamw(RATE),
        gradients,
        params,
        optax.contrib.schedule_free_eval_params,
    )
    ours, theirs = (np.mean(np.abs(x[-1] - want)) for x in (ours, theirs))
    assert ours < 1e-6
    assert ours < theirs


def test_z_in_bfloat16_loses_the_small_steps():
    gradients, params = inputs(1000)
    kwargs = {"bias_correction_of": "nu"}
    want = expected_averages(gradients, params, **kwargs)[-1]

    def error(**more):
        tx = adamx.schedule_free_adamw(RATE, **kwargs, **more)
        return np.mean(np.abs(averages_of(tx, gradients, params)[0][-1] - want))

    assert error(state_dtype=jnp.bfloat16) > 1e3 * error()
    state = adamx.schedule_free_adamw(RATE).init(jnp.ones(3, jnp.bfloat16))
    assert state.z.dtype == state.nu.dtype == jnp.float32


@pytest.mark.parametrize(
    ("kwargs", "ours"),
    [
        ({"warmup_steps": 10}, {"bias_correction_of": "nu"}),  # ours: no step at rate 0
        ({}, {}),  # the paper's c_t, which Optax takes without its bias correction
    ],
)
def test_where_optax_differs_from_the_paper(kwargs, ours):
    gradients, params = inputs(20)
    tx = adamx.schedule_free_adamw(RATE, **kwargs, **ours)
    got, _ = run_updates(tx, gradients, params)
    twin = optax.contrib.schedule_free_adamw(RATE, **kwargs)
    theirs, _ = run_updates(twin, gradients, params)
    want = reference_schedule_free.schedule_free_adamw(
        gradients, params, RATE, **kwargs, **ours
    )
    np.testing.assert_allclose(got, list(want), atol=3e-6)
    assert np.max(np.abs(got - theirs)) > 1e-4


def test_without_weights_and_eps_the_two_corrections_and_optax_agree():
    gradients, params = inputs(100)
    kwargs = {"weight_lr_power": 0.0, "eps": 0.0}
    runs = [
        run_updates(tx, gradients, params)[0]
        for tx in (
            adamx.schedule_free_adamw(RATE, **kwargs),
            adamx.schedule_free_adamw(RATE, bias_correction_of="nu", **kwargs),
            optax.contrib.schedule_free_adamw(RATE, **kwargs),
        )
    ]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)
    np.testing.assert_allclose(runs[0], runs[2], atol=1e-5)


# ------------------------------------------------------- where the state may sit

PARAMS = {"a": jnp.arange(1.0, 4.0), "b": [jnp.ones((2, 2)), None], "c": jnp.ones(())}
TX = adamx.schedule_free_adamw(0.1, weight_decay=0.1)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(adamx.clip_by_global_norm(1e9), TX),
        pytest.param(optax.masked(TX, True), marks=pytest.mark.slow),
        optax.partition({"all": TX}, "all"),
        pytest.param(optax.named_chain(("x", optax.chain(TX))), marks=pytest.mark.slow),
        optax.apply_if_finite(TX, 2),
        optax.inject_hyperparams(adamx.schedule_free_adamw)(0.1, weight_decay=0.1),
        optax.MultiSteps(TX, 1).gradient_transformation(),
    ],
    ids=lambda tx: str(tx)[:20],
)
def test_the_average_is_found_wherever_the_state_sits(tx):
    params, bare = PARAMS, PARAMS
    state, bare_state = tx.init(params), TX.init(bare)
    for _ in range(4):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = adamx.apply_updates(params, updates)
        updates, bare_state = jax.jit(TX.update)(bare, bare_state, bare)
        bare = adamx.apply_updates(bare, updates)
    got = jax.jit(adamx.schedule_free_eval_params)(state, params)
    want = adamx.schedule_free_eval_params(bare_state, bare)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    for a, b, y in zip(*map(jax.tree.leaves, (got, want, params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        assert np.any(np.abs(a - y) > 1e-4)


def test_the_parameters_of_other_optimizers_stay_as_they_are():
    tx = optax.partition(
        {"free": TX, "slow": adamx.schedule_free_adamw(0.01), "rest": adamx.adam(0.1)},
        {"a": "free", "b": "slow", "c": "rest"},
    )
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = adamx.apply_updates(params, updates)
    x = adamx.schedule_free_eval_params(state, params)
    assert x["c"] is params["c"]
    assert np.all(x["a"] != params["a"])
    assert np.all(x["b"][0] != params["b"][0])
    model = {**params, "activation": jax.nn.relu}
    assert adamx.schedule_free_eval_params(state, model)["activation"] is jax.nn.relu


def test_the_average_has_the_parameters_dtype_and_maps():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    state = jax.vmap(TX.init)(params)
    _, state = jax.vmap(TX.update)(params, state, params)
    x = jax.vmap(adamx.schedule_free_eval_params)(state, params)
    assert x["w"].dtype == jnp.bfloat16
    assert x["w"].shape == (3, 2)
