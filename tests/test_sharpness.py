"""sharpness against explicit matrices: spectra, denominators, thresholds, clients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamx
from adamx import codecs
from adamx.diagnostics._steps_model import Motion, at_work, motions
from tests import reference_sharpness as reference
from tests.helpers import enable_x64, some

N = 35
RNG = np.random.default_rng(0)
# Gradients over four decades, so that the denominators matter.
GRADIENTS = RNG.standard_normal((7, N)) * 10.0 ** RNG.uniform(-3, 1, N)
SPECTRA = {
    "spread": np.geomspace(1e-4, 10, N),
    "clustered": np.r_[np.linspace(-1, 0.9, N - 4), 3.0, 3.001, 3.002, 3.003],
    "negative": -np.linspace(0.5, 1, N),
    "ridge": np.r_[-100 * np.ones(3), np.linspace(0, 1, N - 3)],
    "equal": np.ones(N),
    "huge": 1e12 * np.geomspace(1e-4, 10, N),
    "tiny": 1e-12 * np.geomspace(1e-4, 10, N),
}


def matrix(spectrum):
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((N, N)))[0]
    return ((q * spectrum) @ q.T).astype(np.float32)


def tree(flat, dtype=jnp.float32):
    """A vector as parameters of odd shapes, with a None."""
    x = np.asarray(flat, dtype)
    return {"a": x[:15].reshape(3, 5), "b": [None, x[15:].reshape(1, 20, 1)]}


def quadratic(params, a):
    parts = [x.ravel() for x in jax.tree.leaves(params)]
    p = jnp.concatenate(parts).astype(a.dtype)
    unit = jnp.where(jnp.any(a != 0), jnp.max(jnp.abs(a)), 1)
    return 0.5 * unit * jnp.dot(p, (a / unit) @ p)


def trained(tx, dtype=jnp.float32):
    """The state after steps with GRADIENTS, and the last update."""
    params = tree(np.ones(N), dtype)

    def run(gradients):
        state, u = tx.init(params), params
        step = lambda carry, g: (tx.update(g, carry[1], params), None)  # noqa: E731
        return jax.lax.scan(step, (u, state), gradients)[0]

    grads = [tree(g, dtype) for g in GRADIENTS]
    u, state = jax.jit(run)(jax.tree.map(lambda *g: np.stack(g), *grads))
    return params, state, u


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(float)


@pytest.fixture(scope="module")
def adam():
    return trained(adamx.adam(lambda t: 1e-2 / (t + 1), 0.8, 0.97, 1e-3))[:2]


@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name, adam):
    a = matrix(SPECTRA[name])
    d = reference.adam_denominator(GRADIENTS, 0.97, 1e-3)
    found = adamx.sharpness(quadratic, *adam, a)
    top = reference.largest(a.astype(float))
    divided = reference.preconditioned(a.astype(float), d)
    assert found.hessian == pytest.approx(top, rel=1e-4)
    if name == "negative":  # float32: 1e-6 of the width of the spectrum
        width = -reference.largest(-(a / np.sqrt(d) / np.sqrt(d)[:, None]))
        assert found.preconditioned == pytest.approx(divided, abs=-1e-6 * width)
        assert found.preconditioned < 0
        assert found.edge < 0
        assert "No upward curvature" in str(found)
    else:
        assert found.converged
        assert found.preconditioned == pytest.approx(divided, rel=1e-4)
        assert found.residual < 2e-4  # the tolerance, or rounding's part of the width
    assert found.learning_rate == pytest.approx(1e-2 / 7)
    assert found.threshold == pytest.approx(3.6 / 0.2 / (1e-2 / 7), rel=1e-6)
    assert found.edge == pytest.approx(found.preconditioned / found.threshold)


def test_what_float32_does_not_resolve_has_not_converged():
    """Beside a curvature of -1e6, rounding is as large as the largest eigenvalue."""
    params = tree(np.ones(N))
    state = adamx.sgd(1e-2).init(params)
    a = matrix(np.r_[-1e6, np.linspace(0, 1, N - 1)])
    found = adamx.sharpness(quadratic, params, state, a)
    assert not found.converged
    assert found.residual > 0.1
    assert "Not converged" in str(found)


def test_no_curvature_is_zero(adam):
    found = adamx.sharpness(quadratic, *adam, np.zeros((N, N), np.float32))
    assert (found.hessian, found.preconditioned, found.edge) == (0, 0, 0)
    assert found.converged


def test_one_parameter():
    tx = adamx.rmsprop(0.1, decay=0.5, eps=0.0)
    state = tx.init(jnp.ones(()))
    _, state = tx.update(jnp.asarray(4.0), state)
    found = adamx.sharpness(lambda p, s: s * p**2, jnp.ones(()), state, 3.0)
    assert found.hessian == pytest.approx(6)
    assert found.preconditioned == pytest.approx(6 / np.sqrt(8))
    assert found.threshold == pytest.approx(20)
    assert found.iterations == 1


def network_loss(params, batch):
    x, y = batch
    w1, b1, w2, b2 = params
    out = jnp.tanh(x @ w1 + b1) @ w2 + b2
    return 0.5 * jnp.sum((out - y) ** 2) / len(x)


@pytest.mark.parametrize(
    "is_double", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_network_against_an_explicit_hessian(is_double):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((7, 4)), rng.standard_normal((7, 3))
    at = rng.standard_normal(43)
    h = reference.network_hessian(at, x, y)
    g = [reference.network_gradient(at * s, x, y) for s in (1.0, 0.9)]
    d = reference.adam_denominator(g, 0.97, 1e-3)
    with enable_x64() if is_double else jax.numpy_dtype_promotion("strict"):
        make = lambda v: tuple(  # noqa: E731
            jnp.asarray(part, jnp.float64 if is_double else jnp.float32)
            for part in reference.split(v)
        )
        tx = adamx.adamw(1e-2, 0.9, 0.97, 1e-3)
        params = make(at)
        state = tx.init(params)
        for gradient in g:
            _, state = tx.update(make(gradient), state, params)
        batch = make_batch(x, y, is_double)
        tolerance = 1e-10 if is_double else 1e-4
        found = adamx.sharpness(network_loss, params, state, batch, tolerance=tolerance)
    rel = 1e-8 if is_double else 1e-5
    assert found.hessian == pytest.approx(reference.largest(h), rel=rel)
    top = reference.preconditioned(h, d)
    assert found.preconditioned == pytest.approx(top, rel=rel)
    assert abs(found.preconditioned / found.hessian - 1) > 0.1  # no accident


def make_batch(x, y, is_double):
    dtype = jnp.float64 if is_double else jnp.float32
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


# ------------------------------------------------------------------------ thresholds

RATE, B1 = 1e-2, 0.7
THRESHOLDS = {
    "adam": (adamx.adam(RATE, B1), reference.adam_step(RATE, B1), False),
    "adam, b1 = 0": (adamx.adam(RATE, 0.0), reference.adam_step(RATE, 0.0), False),
    "nadam": (
        adamx.nadam(RATE, B1),
        reference.adam_step(RATE, B1, True),
        True,
    ),
    "nadam, warming": (
        adamx.nadam(RATE, B1, momentum_decay=4e-3),
        reference.adam_step(RATE, B1, True),
        False,
    ),
    "rmsprop": (adamx.rmsprop(RATE), reference.adam_step(RATE, 0.0), False),
    "rmsprop, momentum": (
        adamx.rmsprop(RATE, momentum=B1),
        reference.momentum_step(RATE, B1),
        False,
    ),
    "sgd": (adamx.sgd(RATE), reference.momentum_step(RATE, 0.0), False),
    "momentum": (adamx.momentum(RATE, B1), reference.momentum_step(RATE, B1), False),
    "nesterov": (
        adamx.sgd(RATE, B1, nesterov=True),
        reference.momentum_step(RATE, B1, True),
        True,
    ),
    "ademamix": (
        adamx.ademamix(RATE, b1=B1, b3=0.99, alpha=4.0),
        reference.ademamix_step(RATE, B1, 0.99, 4.0),
        False,
    ),
    "schedule_free": (
        adamx.schedule_free_adamw(RATE, b1=B1, weight_decay=0.0),
        reference.schedule_free_step(RATE, B1),
        False,
    ),
}


def half_square(params, h):
    return 0.5 * h * sum(jnp.sum(p * p) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds_are_where_the_linear_step_grows(name):
    tx, step, is_nesterov = THRESHOLDS[name]
    params = {"w": jnp.ones(2)}
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    moves = motions(at_work(state), params, is_nesterov)["w"]
    size = 3 if name == "ademamix" else 2
    limit = 2 / float(moves.rate * moves.gain)
    assert limit == pytest.approx(reference.threshold(step, size), rel=1e-5)


def test_nesterov_lowers_the_threshold():
    params = {"w": jnp.ones(2)}
    state = adamx.sgd(RATE, 0.9, nesterov=True).init(params)
    found = adamx.sharpness(half_square, params, state, 2.0, nesterov=True)
    assert found.threshold == pytest.approx(2 * 1.9 / 2.8 / RATE, rel=1e-5)
    assert found.hessian == found.preconditioned == pytest.approx(2)
    assert found.edge == pytest.approx(2 / found.threshold, rel=1e-5)


def test_a_frozen_adam_diverges_above_the_threshold_and_not_below():
    for factor, grows in ((0.95, False), (1.05, True)):
        tx = adamx.scale_by_adam(0.6, 0.0, eps=1.0)
        # eps = 1 rules over gradients of 1e-6: the denominator is 1.
        rate = factor * 2 * 1.6 / 0.4
        p = jnp.full((), 1e-6)
        state = tx.init(p)
        for _ in range(300):
            u, state = tx.update(p, state)
            p = p - rate * u
            p = jnp.clip(p, -1e-3, 1e-3)
        assert (abs(p) > 1e-6) == grows


# -------------------------------------------------------------------- denominators

# Without a first moment, rate * g / update is what was divided by.
DIVIDES = {
    "adam": adamx.adam(RATE, 0.0, 0.97, 1e-3),
    "adam, eps_root": adamx.adam(RATE, 0.0, 0.97, 1e-3, 1e-2),
    "adamax": adamx.adamax(RATE, 0.0, 0.9, 1e-3),
    "amsgrad": adamx.amsgrad(RATE, 0.0, 0.5, 1e-3),
    "adam_mini": adamx.adam_mini(RATE, 0.0, 0.97, 1e-3),
    "rmsprop": adamx.rmsprop(RATE, 0.9, 1e-3),
    "adabound": adamx.adabound(RATE, 0.0, 0.97, 1e-3, gamma=1.0),
    "radam": adamx.radam(RATE, 0.0, 0.97, 1e-3, threshold=60.0),
    "radam, rectified": adamx.radam(RATE, 0.0, 0.97, 1e-3, threshold=4.0),
    "sparse_adam": adamx.sparse_adam(RATE, 0.0, 0.97, 1e-3),
    "sgd": adamx.sgd(RATE),
    "adam_to_sgd, before": adamx.adam_to_sgd(RATE, 9, b1=0.0, b2=0.97, eps=1e-3),
    "adam_to_sgd, behind": adamx.adam_to_sgd(
        RATE, 2, b1=0.0, sgd_learning_rate=RATE, momentum=0.0
    ),
    "stages": adamx.stages(
        [(adamx.sgd(1.0), 2), (adamx.adam(RATE, 0.0, 0.97, 1e-3), None)]
    ),
    "guard": adamx.guard(
        optax.chain(adamx.clip_by_global_norm(1e9), adamx.adam(RATE, 0.0, 0.97, 1e-3))
    ),
    "with_hyperparams": adamx.with_hyperparams(
        adamx.adam, learning_rate=RATE, b1=0.0, b2=0.97, eps=1e-3
    ),
}


def read_motions(state, params):
    """`motions`, compiled as one."""
    names = {}

    def run(state):
        found = motions(state, params, False)
        names.update({name: (m.label, m.stages) for name, m in found.items()})
        return [m[1:4] for m in found.values()]

    found = jax.jit(run)(state)
    return [
        Motion(label, *numbers, stages)
        for (label, stages), numbers in zip(names.values(), found, strict=True)
    ]


# Quickly: eps in the root, a mean of many, rectified, none, of a stage, in a wrapper.
@pytest.mark.parametrize(
    "name",
    some(
        DIVIDES,
        *("adam, eps_root", "adam_mini", "radam, rectified", "sgd", "stages", "guard"),
    ),
)
def test_denominators_are_those_of_the_step(name):
    params, state, updates = trained(DIVIDES[name])
    d = -RATE * GRADIENTS[-1] / flat(updates)
    assert np.all(d > 0)
    found = read_motions(at_work(state), params)
    got = [np.ones(15 if i == 0 else 20) for i in range(2)]
    if found[0].denominator is not None:
        got = [np.ravel(motion.denominator) for motion in found]
    np.testing.assert_allclose(np.concatenate(got), d, rtol=1e-5)
    for motion in found:
        assert float(motion.rate) == pytest.approx(RATE)
        assert float(motion.gain) == pytest.approx(1)


def test_codes_are_decoded():
    codec = codecs.int8(min_size=0)
    tx = adamx.adam(RATE, 0.9, 0.97, 1e-3, mu_dtype=codec, nu_dtype=codec)
    params, state, _ = trained(tx)
    nu = flat(adamx.moments.decoded(state[0].nu))
    d = np.sqrt(nu / (1 - 0.97**7)) + 1e-3
    found = read_motions(state, params)
    got = np.concatenate([np.ravel(motion.denominator) for motion in found])
    np.testing.assert_allclose(got, d, rtol=1e-5)


def test_before_the_first_step(adam):
    params, a = adam[0], matrix(SPECTRA["spread"])
    state = adamx.adam(lambda t: 1e-2 / (t + 1), 0.8, 0.97, 1e-3).init(params)
    found = adamx.sharpness(quadratic, params, state, a)
    assert found.hessian == pytest.approx(10, rel=1e-4)
    assert np.isnan(found.preconditioned)
    assert "no step was taken" in str(found)


def test_a_step_with_an_unknown_factor_has_no_threshold():
    tx, params = adamx.lamb(RATE), {"w": jnp.ones(2)}
    _, state = tx.update(params, tx.init(params), params)
    found = adamx.sharpness(half_square, params, state, 2.0)
    assert found.preconditioned == pytest.approx(2, rel=1e-4)
    assert np.isnan(found.threshold)
    assert "no threshold" in str(found)


# --------------------------------------------------------------------------- groups


def grouped(rules, default):
    return trained(adamx.groups(rules, default))[:2]


def test_groups_share_one_edge():
    first, second = adamx.adam(1e-2, 0.5, 0.97, 1e-1), adamx.adam(3e-3, 0.9, 0.9, 1e-3)
    params, state = grouped([("^a", first)], second)
    a = matrix(SPECTRA["spread"]).astype(float)
    is_first = np.arange(N) < 15
    d = np.where(
        is_first,
        reference.adam_denominator(GRADIENTS, 0.97, 1e-1),
        reference.adam_denominator(GRADIENTS, 0.9, 1e-3),
    )
    limit = np.where(is_first, 3 / 0.5 / 1e-2, 3.8 / 0.1 / 3e-3)
    found = adamx.sharpness(quadratic, params, state, a.astype(np.float32))
    top = reference.preconditioned(a, d)
    assert found.preconditioned == pytest.approx(top, rel=1e-4)
    edge = reference.preconditioned(a, d * limit)
    assert found.edge == pytest.approx(edge, rel=1e-4)
    assert found.threshold == pytest.approx(
        {"^a": limit[0], "default": limit[-1]}, rel=1e-5
    )
    assert found.learning_rate == pytest.approx(adamx.read(state).learning_rate)
    assert "^a: " in str(found)


@pytest.mark.parametrize(
    "other",
    [
        "sgd",
        pytest.param("freeze", marks=pytest.mark.slow),
        pytest.param("both", marks=pytest.mark.slow),
    ],
)
def test_groups_without_moments(other):
    adam = adamx.adam(1e-2, 0.5, 0.97, 1e-1)
    if other == "sgd":
        params, state = grouped([("^a", adamx.sgd(1e-3))], adam)
    elif other == "freeze":
        params, state = grouped([("^a", adamx.freeze())], adam)
    else:  # no moments anywhere: which is which is said by the rules
        params, state = grouped([("^a", adamx.freeze())], adamx.sgd(1e-3))
    a = matrix(SPECTRA["spread"])
    found = adamx.sharpness(quadratic, params, state, a)
    h, d = a.astype(float), reference.adam_denominator(GRADIENTS, 0.97, 1e-1)
    assert found.hessian == pytest.approx(10, rel=1e-4)
    if other == "sgd":
        d = np.where(np.arange(N) < 15, 1.0, d)
        limit = np.where(np.arange(N) < 15, 2e3, 600)
    else:
        h, d = h[15:, 15:], d[15:] if other == "freeze" else np.ones(20)
        limit = np.full(20, 600.0 if other == "freeze" else 2e3)
        assert found.threshold == pytest.approx(limit[0], rel=1e-5)
    top = reference.preconditioned(h, d)
    assert found.preconditioned == pytest.approx(top, rel=1e-4)
    edge = reference.preconditioned(h, d * limit)
    assert found.edge == pytest.approx(edge, rel=1e-4)


@pytest.mark.slow
def test_a_mask_around_the_moments_alone_leaves_sgd():
    mask = {"a": True, "b": [None, False]}
    tx = optax.chain(
        optax.masked(adamx.scale_by_adam(0.5, 0.97, 1e-1), mask),
        adamx.scale_by_learning_rate(1e-2),
    )
    params, state, _ = trained(tx)
    a = matrix(SPECTRA["spread"])
    found = adamx.sharpness(quadratic, params, state, a)
    is_adam = np.arange(N) < 15
    d = np.where(is_adam, reference.adam_denominator(GRADIENTS, 0.97, 1e-1), 1)
    limit = np.where(is_adam, 600, 200)
    edge = reference.preconditioned(a.astype(float), d * limit)
    assert found.edge == pytest.approx(edge, rel=1e-4)
    assert found.threshold == pytest.approx(200, rel=1e-5)


def test_a_parameter_that_never_had_a_gradient_is_left_out():
    tx = adamx.adam(RATE, eps=0.0)
    params = {"w": jnp.ones(3)}
    _, state = tx.update({"w": jnp.array([1.0, 2.0, 0.0])}, tx.init(params), params)
    loss = lambda p, _: jnp.sum(jnp.array([1.0, 1.0, 9.0]) * p["w"] ** 2)  # noqa: E731
    found = adamx.sharpness(loss, params, state, None)
    assert found.hessian == pytest.approx(18)
    assert found.preconditioned == pytest.approx(2)


# --------------------------------------------------------------------------- clients


def test_compiled_once_and_for_new_values():
    traced = []

    def loss(params, a):
        traced.append(1)
        return quadratic(params, a)

    for seed in range(3):
        tx = adamx.adam(10.0**-seed, 0.5 + seed / 10, eps=10.0 ** -(seed + 3))
        params, state, _ = trained(tx)
        adamx.sharpness(loss, params, state, matrix(SPECTRA["spread"]) * (seed + 1.0))
        if seed == 0:
            first = len(traced)
    assert first >= 1
    assert len(traced) == first


def test_jit_and_vmap(adam):
    params, state = adam
    a = matrix(SPECTRA["spread"])
    # 16 are enough; under vmap all are taken, and each look is at as large a matrix.
    sharpness = functools.partial(adamx.sharpness, iterations=32)
    one = sharpness(quadratic, params, state, a)
    both = jax.vmap(sharpness, in_axes=(None, None, None, 0))
    both = jax.jit(both, static_argnums=0)
    found = both(
        quadratic,
        params,
        state,
        jnp.stack([jnp.asarray(a), 3 * jnp.asarray(a), 0 * jnp.asarray(a)]),
    )
    want = one.preconditioned * np.array([1, 3, 0])
    np.testing.assert_allclose(found.preconditioned, want, rtol=1e-5)
    assert np.all(found.converged)
    assert "preconditioned" in str(found)


def test_16_bit_parameters_have_a_float32_hessian():
    params, state, _ = trained(adamx.adam(RATE, eps=1e-3), jnp.bfloat16)
    a = matrix(SPECTRA["spread"])
    found = adamx.sharpness(quadratic, params, state, a)
    assert found.hessian == pytest.approx(10, rel=1e-4)
    g = [np.asarray(jnp.asarray(g, jnp.bfloat16), float) for g in GRADIENTS]
    d = reference.adam_denominator(g, 0.999, 1e-3)
    top = reference.preconditioned(a.astype(float), d)
    assert found.preconditioned == pytest.approx(top, rel=1e-3)


def test_flax_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamx.adam(RATE, eps=1e-2), wrt=nnx.Param)
    graph, params = nnx.split(model)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)

    def loss(params, x):
        return jnp.mean(nnx.merge(graph, params)(x) ** 2), "aux"

    wide = np.c_[np.asarray(x, float), np.ones(5)]
    top = reference.largest(wide.T @ wide / 5)
    # An optimizer in the state's place: its own states, here before their first step.
    found = adamx.sharpness(loss, params, optimizer, x, has_aux=True)
    assert found.hessian == pytest.approx(top, rel=1e-4)
    assert found.threshold == pytest.approx(38 / RATE, rel=1e-5)
    assert np.isnan(found.preconditioned)


def test_few_products_are_said_to_be_too_few(adam):
    a = matrix(np.linspace(-1, 1, N))
    found = adamx.sharpness(quadratic, *adam, a, iterations=3)
    assert not found.converged
    assert found.iterations == 3
    assert "raise `iterations`" in str(found)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1e-3, "Flat for this learning rate: 1e+03 times"),
        (1.0, "at the edge of stability"),
        (2.0, "Sharp for this learning rate: 2 times"),
    ],
)
def test_flat_or_sharp_in_words(scale, words):
    params = {"w": jnp.ones(2)}
    tx = adamx.sgd(0.5)
    found = adamx.sharpness(half_square, params, tx.init(params), 4.0 * scale)
    assert words in str(found)
