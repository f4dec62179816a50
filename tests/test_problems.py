"""The benchmarks' problems have the optima that they claim; they show what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from tests.helpers import enable_x64, load_benchmark

problems = load_benchmark("_problems")


@pytest.mark.slow
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_optima(name):
    problem = problems.PROBLEMS[name]
    with enable_x64():
        for minimum in problem.minima:
            p = jnp.asarray(minimum)
            assert float(problem.loss(p)) == pytest.approx(problem.value, abs=1e-15)
            np.testing.assert_allclose(jax.grad(problem.loss)(p), 0.0, atol=1e-12)
            assert np.min(np.linalg.eigvalsh(jax.hessian(problem.loss)(p))) > 0
        start = jnp.asarray(problem.start)
        assert float(problem.loss(start)) > problem.value + 1e-2
        assert np.linalg.norm(jax.grad(problem.loss)(start)) > 1e-3


def test_values_and_gradients_by_hand():
    at = jnp.array([2.0, 3.0])
    assert float(problems.rosenbrock().loss(at)) == 101.0
    np.testing.assert_allclose(
        jax.grad(problems.rosenbrock().loss)(at), [802.0, -200.0]
    )
    assert float(problems.beale().loss(at)) == 5.5**2 + 18.25**2 + 54.625**2
    hessian = jax.hessian(problems.quadratic(5, 1e3).loss)(jnp.zeros(5))
    assert np.linalg.cond(hessian) == pytest.approx(1e3, rel=1e-4)


def online(tx, steps=3000):
    def step(carry, t):
        x, state = carry
        updates, state = tx.update(problems.online_counterexample(t), state, x)
        return (problems.project_to_interval(x + updates), state), None

    start = jnp.zeros(())
    (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
    return float(x)


def test_adam_goes_the_wrong_way_online_and_amsgrad_does_not():
    gradients = [float(problems.online_counterexample(t)) for t in range(6)]
    assert gradients == [3.0, -1.0, -1.0, 3.0, -1.0, -1.0]
    rate = lambda count: 0.5 / jnp.sqrt(count + 1.0)  # noqa: E731
    b2 = 1 / (1 + 3.0**2)
    assert online(adamx.adam(rate, b1=0.0, b2=b2)) > 0.9
    assert online(adamx.amsgrad(rate, b1=0.0, b2=b2)) < -0.9


def test_adaptive_methods_learn_nothing_from_separable_data():
    features, labels = problems.separable_data(40)
    assert features.shape == (40, 203)
    assert set(features.sum(axis=1) - labels) == {3.0, 7.0}
    sign = np.sign(features.T @ labels)  # their Lemma 3.1: X sign(X^T y) = 4 y
    np.testing.assert_array_equal(features @ sign, 4 * labels)
    data = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.float32)

    def fit(tx):
        def step(carry, _):
            w, state = carry
            g = jax.grad(problems.squared_loss)(w, *data)
            updates, state = tx.update(g, state, w)
            return (w + updates, state), None

        start = jnp.zeros(features.shape[1])
        return jax.lax.scan(step, (start, tx.init(start)), length=2000)[0][0]

    for tx, accuracy in (
        (adamx.adam(1e-3), np.mean(labels > 0)),
        (adamx.sgd(0.1), 1.0),
    ):
        w = np.asarray(fit(tx))
        assert np.all(np.sign(features @ w) == labels)
        scores = problems.separable_test_scores(w, labels)
        assert np.mean(np.sign(scores) == labels) == accuracy
