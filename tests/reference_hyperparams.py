"""AdamW in float64 whose hyperparameters are others at every step.

Nothing here imports adamx, JAX or Optax.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np


def adamw(
    gradients: Sequence[np.ndarray],
    trajectory: Sequence[np.ndarray],
    values: Sequence[Mapping[str, float]],
    correction: str = "product",
) -> Iterator[np.ndarray]:
    """Kingma & Ba (2015), Algorithm 1; Loshchilov & Hutter (2019), Algorithm 2.

    m is the sum of (1 - b1_i) b1_(i+1) ... b1_t g_i, whose weights add up to
    1 - b1_1 ... b1_t (Kingma & Ba, section 3, with a b1 by step): that is the bias.

    Args:
      gradients: by step.
      trajectory: the parameters before each step.
      values: by step, learning_rate, b1, b2, eps, eps_root, weight_decay.
      correction: "product", or "closed": 1 - b^t with the b of the step, which is wrong
        where b changes.
    """
    m, v = np.zeros(trajectory[0].shape), np.zeros(trajectory[0].shape)
    product1 = product2 = 1.0
    for t, (g, p, at) in enumerate(zip(gradients, trajectory, values, strict=True), 1):
        g, p = np.float64(g), np.float64(p)
        m = at["b1"] * m + (1 - at["b1"]) * g
        v = at["b2"] * v + (1 - at["b2"]) * g**2
        product1, product2 = product1 * at["b1"], product2 * at["b2"]
        if correction == "closed":
            product1, product2 = at["b1"] ** t, at["b2"] ** t
        root = np.sqrt(v / (1 - product2) + at["eps_root"])
        direction = m / (1 - product1) / (root + at["eps"])
        yield -at["learning_rate"] * (direction + at["weight_decay"] * p)
