"""Adam with coupled L2: the decay joins the gradient and passes through the moments.

    g <- g + weight_decay p, then Adam on g

This is the gradient of loss + weight_decay |p|^2 / 2, what "weight decay" meant in
torch.optim.Adam. Adam divides it by sqrt(nu): a parameter with large gradients hardly
decays, one with small gradients decays by about learning_rate a step. To shrink weights
evenly use `adamw`; this form is here for what needs it (old recipes, comparisons).

Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019),
Algorithm 2, line 6 (the coupled variant).
"""

from typing import Any

from adamx import _checks
from adamx._types import GradientTransformationExtraArgs, Mask, ScalarOrSchedule
from adamx.optimizers.adam import scale_by_adam
from adamx.transforms import (
    add_coupled_weight_decay,
    scale_by_learning_rate,
    wide_chain,
)


def adam_l2(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam on the gradient of the loss plus weight_decay |p|^2 / 2.

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, eps_root, mu_dtype, nesterov, nu_dtype: see `scale_by_adam`.
      weight_decay: >= 0, in units of gradient per unit of parameter; not the quantity
        of the same name in `adamw`, and not to be carried over from there.
      mask: which parameters are penalised: see `add_decoupled_weight_decay`.

    Returns:
      The optimizer; its update needs `params`. State: `AddDecoupledWeightDecayState`
      (the same sum, placed before the moments), `ScaleByAdamState`,
      `ScaleByLearningRateState`.

    Raises:
      ValueError: a decay below 0; no `params` in update; see also `scale_by_adam`.
      TypeError: a decay that is not a number; see also `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx, params = adam_l2(0.1, weight_decay=0.5), jnp.array([1.0, 100.0])
    >>> updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
    >>> [round(float(u), 6) for u in updates]  # the size of the decay is divided away
    [-0.1, -0.1]

    Source: Loshchilov & Hutter (2019), Algorithm 2, line 6.
    """
    _checks.check_weight_decay("weight_decay", weight_decay)
    return wide_chain(
        add_coupled_weight_decay(weight_decay, mask),
        scale_by_adam(
            b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, nu_dtype=nu_dtype
        ),
        scale_by_learning_rate(learning_rate),
    )
