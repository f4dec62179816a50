"""Adamax: Adam with a decaying maximum in the place of the mean square.

    mu <- b1 mu + (1 - b1) g          nu <- max(b2 nu, |g| + eps)
    update = mu / ((1 - b1^t) nu)

nu is in units of the gradient, not of its square, and needs no bias correction.

Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), Algorithm 2;
eps is added to |g| as in PyTorch and Optax (the paper has none).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    PyTree,
    ScalarOrSchedule,
)
from adamx.reading import unboxed
from adamx.transforms import scale_by_learning_rate, wide_chain


class ScaleByAdamaxState(NamedTuple):
    """State of `scale_by_adamax`: 8 bytes per float32 parameter.

    Attributes:
      count: int32 scalar, steps taken.
      mu: tree like the parameters, running mean of the gradient.
      nu: tree like the parameters, real, decaying maximum of |g| + eps.
      b1, b2, eps: float32 scalars, as used in the last step.
      bias_correction_mu: float32 scalar, 1 - b1^t; 0 before the first step.
      correction_rest_mu: float32 scalar, what rounding kept out of it; 0 where b1 is
        constant.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    bias_correction_mu: Any
    correction_rest_mu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments; the size is the decaying largest |g|: `moments.Estimates`."""
        correction = unboxed(self.bias_correction_mu)

        def rule(
            g: jax.Array, mu: jax.Array, nu: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            del g
            return moments.scale(mu, 1.0 / correction), nu, nu  # eps is part of nu

        return moments.Estimates((self.mu, self.nu), rule)


def adamax_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    eps: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of Adamax.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      weight1, weight2: 1 - b1 and 1 - b2, the parts that are new or lost.
      mu_scale: 1 / (bias correction of mu).
      eps: added to |g|.

    Returns:
      update, mu, nu.
    """
    mu = moments.update_average(mu, g, weight1)
    # b2 rounded to float32 would drift by 1.3e-5 in 1,000 steps: see moments.decay.
    nu = jnp.maximum(moments.decay(nu, weight2), jnp.abs(g) + eps)
    return moments.divide_or_zero(moments.scale(mu, mu_scale), nu), mu, nu


def scale_by_adamax(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Divides the gradient's running mean by a decaying maximum of its size.

        update = mu_hat / nu,   nu = max(b2 nu, |g| + eps)

    Args:
      b1: see `scale_by_adam`.
      b2: in [0, 1), the part of the maximum that is left after a step.
      eps: >= 0, in units of the gradient.
      mu_dtype, nu_dtype: see `scale_by_adam`.

    Returns:
      The transformation; dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_adamax()
    >>> updates, _ = tx.update(jnp.array([-50.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 3)
    -1.0
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1)}

    def init(params: PyTree) -> ScaleByAdamaxState:
        return ScaleByAdamaxState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(b2=b2, eps=eps),
        )

    def update(
        updates: PyTree,
        state: ScaleByAdamaxState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdamaxState]:
        del extra_args
        _checks.check_state(state, ScaleByAdamaxState, "scale_by_adamax")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, b2=b2, eps=eps)
        updates, new = moments.apply_rule(
            adamax_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            weight1=average["mu"].weight,
            weight2=moments.weight_of(used["b2"]),
            mu_scale=1.0 / average["mu"].correction,
            eps=used["eps"],
        )
        recorded = _scalars.records(recorded | used, state.b1.dtype)
        return updates, ScaleByAdamaxState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def adamax(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam over the largest recent gradient: no step exceeds the learning rate by much.

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, mu_dtype, nu_dtype: see `scale_by_adamax`.

    Returns:
      The optimizer. State: `ScaleByAdamaxState`, `ScaleByLearningRateState`.

    >>> import jax.numpy as jnp
    >>> tx = adamax(2e-3)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.002

    Source: Kingma & Ba (2015), Algorithm 2.
    """
    return wide_chain(
        scale_by_adamax(b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype),
        scale_by_learning_rate(learning_rate),
    )
