"""Float64 NumPy transliterations of the papers' equations, one step per loop turn.

Nothing here imports adamx, JAX or Optax. Each function takes the gradients of all steps
and yields, for each step, the update as the optimizer emits it (p <- p + update); where
the update depends on the parameter, the parameter moves along, or is read from
`trajectory` (the parameters before each step). Hyperparameters are Python floats, in
double precision.
"""

from collections.abc import Iterator, Sequence

import numpy as np

Gradients = Sequence[np.ndarray]


def _square(g: np.ndarray) -> np.ndarray:
    return np.real(g * np.conj(g))


def _wide(g: np.ndarray) -> np.ndarray:
    return np.asarray(g, np.complex128 if np.iscomplexobj(g) else np.float64)


def sgd(gradients: Gradients, p: np.ndarray, lr: float) -> Iterator[np.ndarray]:
    for g in gradients:
        yield -lr * _wide(g)


def momentum(
    gradients: Gradients,
    p: np.ndarray,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> Iterator[np.ndarray]:
    """Sutskever et al. (2013), equations 3 and 4, velocity in units of the gradient."""
    velocity = np.zeros_like(_wide(p))
    for g in map(_wide, gradients):
        velocity = momentum * velocity + g
        yield -lr * (g + momentum * velocity if nesterov else velocity)


def adam(
    gradients: Gradients,
    p: np.ndarray,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    coupled: bool = False,
    independent_decay: bool = False,
    nus: list | None = None,
    trajectory: Gradients | None = None,
) -> Iterator[np.ndarray]:
    """Kingma & Ba (2015), Algorithm 1; Loshchilov & Hutter (2019), Algorithm 2."""
    p = _wide(p)
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(map(_wide, gradients), start=1):
        p = p if trajectory is None else _wide(trajectory[t - 1])
        if coupled:
            g = g + weight_decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * _square(g)
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        if nesterov:  # Dozat (2016), with a constant b1
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        update = -lr * m_hat / (np.sqrt(v_hat + eps_root) + eps)
        if not coupled:
            update = update - (1.0 if independent_decay else lr) * weight_decay * p
        if nus is not None:
            nus.append(v)
        p = p + update
        yield update


def coupled_conditioning(
    gradients: Gradients,
    p: np.ndarray,
    trajectory: Gradients | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lr: float = 1e-2,
    **others: object,
) -> Iterator[np.ndarray]:
    """How much a rounding of weight_decay p, or of its sum with g, moves the update.

    By its share in m_hat, over the root; and in the root, by which m_hat is divided.
    """
    p = _wide(p)
    m, v = np.zeros_like(p), np.zeros(p.shape)
    first, second = np.zeros(p.shape), np.zeros(p.shape)
    updates = adam(
        gradients, p, lr, b1, b2, eps, weight_decay=weight_decay, coupled=True
    )
    for t, (g, update) in enumerate(zip(gradients, updates, strict=True), start=1):
        p = p if trajectory is None else _wide(trajectory[t - 1])
        decay = weight_decay * p
        g = _wide(g) + decay
        size = np.abs(decay)
        m, first = b1 * m + (1 - b1) * g, b1 * first + (1 - b1) * size
        v = b2 * v + (1 - b2) * _square(g)
        second = b2 * second + (1 - b2) * size**2
        c1, c2 = 1 - b1**t, 1 - b2**t
        root = np.sqrt(v / c2) + eps
        yield 1 + (first + np.abs(m) * np.sqrt(second / c2) / root) / c1 / root
        p = p + update


def amsgrad(
    gradients: Gradients,
    p: np.ndarray,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    maximum_of: str = "nu_hat",
) -> Iterator[np.ndarray]:
    """Reddi et al. (2018), Algorithm 2, with Adam's bias corrections if asked for."""
    m, v, v_max = np.zeros_like(_wide(p)), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(map(_wide, gradients), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * _square(g)
        c1 = 1 - b1**t if bias_correction_mu else 1.0
        c2 = 1 - b2**t if bias_correction_nu else 1.0
        if maximum_of == "nu_hat":
            v_max = np.maximum(v_max, v / c2)
            top = v_max
        else:
            v_max = np.maximum(v_max, v)
            top = v_max / c2
        yield -lr * (m / c1) / (np.sqrt(top + eps_root) + eps)


def adamax(
    gradients: Gradients,
    p: np.ndarray,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Iterator[np.ndarray]:
    """Kingma & Ba (2015), Algorithm 2, eps beside |g|."""
    m, u = np.zeros_like(_wide(p)), np.zeros(p.shape)
    for t, g in enumerate(map(_wide, gradients), start=1):
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, np.abs(g) + eps)
        yield -lr / (1 - b1**t) * m / u


def rmsprop(
    gradients: Gradients,
    p: np.ndarray,
    lr: float,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Iterator[np.ndarray]:
    """Tieleman & Hinton (2012); centred: Graves (2013), equations 38 to 41.

    Momentum sums what the learning rate has scaled (Graves, equation 40).
    """
    m, v = np.zeros_like(_wide(p)), np.full(p.shape, float(initial_scale))
    velocity = np.zeros_like(_wide(p))
    for t, g in enumerate(map(_wide, gradients), start=1):
        m = decay * m + (1 - decay) * g
        v = decay * v + (1 - decay) * _square(g)
        c = 1 - decay**t if bias_correction else 1.0
        spread = np.maximum(v / c - _square(m / c), 0.0) if centered else v / c
        root = np.sqrt(spread + eps) if eps_in_sqrt else np.sqrt(spread) + eps
        update = -lr * g / root
        if momentum is not None:
            velocity = momentum * velocity + update
            update = update + momentum * velocity if nesterov else velocity
        yield update


def clip_factor(gradients: Gradients, max_norm: float) -> float:
    """Pascanu et al. (2013), Algorithm 1: the factor for one step's gradients."""
    norm = np.sqrt(sum(float(np.sum(_square(_wide(g)))) for g in gradients))
    return 1.0 if norm < max_norm else max_norm / norm
