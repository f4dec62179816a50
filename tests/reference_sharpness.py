"""Curvature and thresholds from their definitions, in float64 NumPy."""

import numpy as np

SIZES = (4, 5, 3)  # of a small network with tanh


def largest(matrix):
    return np.linalg.eigvalsh(matrix)[-1]


def preconditioned(matrix, denominator):
    """Largest eigenvalue of P^(-1/2) H P^(-1/2)."""
    root = 1 / np.sqrt(denominator)
    return largest(root[:, None] * matrix * root)


def split(flat):
    a, b, c = SIZES
    ends = np.cumsum([a * b, b, b * c, c])
    w1, b1, w2, b2 = np.split(flat, ends[:-1])
    return w1.reshape(a, b), b1, w2.reshape(b, c), b2


def network_gradient(flat, x, y):
    """Of half the mean squared error of tanh(x w1 + b1) w2 + b2."""
    w1, b1, w2, b2 = split(flat)
    h = np.tanh(x @ w1 + b1)
    error = (h @ w2 + b2 - y) / len(x)
    back = (error @ w2.T) * (1 - h * h)
    parts = (x.T @ back, back.sum(0), h.T @ error, error.sum(0))
    return np.concatenate([part.ravel() for part in parts])


def network_hessian(flat, x, y, width=1e-5):
    """Central differences of the gradient: right to about 1e-9."""
    columns = [
        (network_gradient(flat + e, x, y) - network_gradient(flat - e, x, y))
        / (2 * width)
        for e in width * np.eye(len(flat))
    ]
    matrix = np.stack(columns)
    return (matrix + matrix.T) / 2


def adam_denominator(gradients, b2, eps):
    nu = np.zeros_like(gradients[0])
    for g in gradients:
        nu = b2 * nu + (1 - b2) * g * g
    return np.sqrt(nu / (1 - b2 ** len(gradients))) + eps


def threshold(step, size, high=1e6):
    """The h from which on steps on h p^2 / 2 grow.

    `step(state, h) -> state` is linear on vectors of `size`; by bisection on the
    spectral radius of its matrix.
    """

    def radius(h):
        matrix = np.stack([step(e, h) for e in np.eye(size)], axis=1)
        return np.abs(np.linalg.eigvals(matrix)).max()

    low, high = 0.0, high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(middle) <= 1 + 1e-9 else (low, middle)
    return low


def adam_step(rate, b1, nesterov=False):
    """(p, m) with a denominator of 1 and corrections of 1."""

    def step(state, h):
        p, m = state
        g = h * p
        m = b1 * m + (1 - b1) * g
        return np.array([p - rate * (b1 * m + (1 - b1) * g if nesterov else m), m])

    return step


def momentum_step(rate, decay, nesterov=False):
    def step(state, h):
        p, trace = state
        g = h * p
        trace = decay * trace + g
        return np.array([p - rate * (g + decay * trace if nesterov else trace), trace])

    return step


def ademamix_step(rate, b1, b3, alpha):
    def step(state, h):
        p, m, slow = state
        g = h * p
        m, slow = b1 * m + (1 - b1) * g, b3 * slow + (1 - b3) * g
        return np.array([p - rate * (m + alpha * slow), m, slow])

    return step


def schedule_free_step(rate, b1):
    """(z, x) long after the start, when x no longer moves."""

    def step(state, h):
        z, x = state
        y = b1 * x + (1 - b1) * z
        return np.array([z - rate * h * y, x])

    return step
