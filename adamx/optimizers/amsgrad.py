"""AMSGrad: Adam whose second moment never shrinks.

    mu, nu as in Adam
    nu_max <- max(nu_max, nu_hat)   update = mu_hat / (sqrt(nu_max + eps_root) + eps)

Two readings of the maximum are in use: of the bias-corrected nu_hat (Optax), or of nu
itself, corrected after the maximum (PyTorch). Without bias corrections both are the
paper's. They differ in the first steps: with nu_hat, one large first gradient is
remembered at its full size for ever.

Source: Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond" (2018),
Algorithm 2.
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
from adamx.transforms import scale_by_learning_rate, wide_chain


class ScaleByAmsgradState(NamedTuple):
    """State of `scale_by_amsgrad`: 12 bytes per float32 parameter.

    Attributes:
      count: int32 scalar, steps taken.
      mu, nu: as in `ScaleByAdamState`.
      nu_max: tree like nu, largest nu_hat (or nu, see `maximum_of`) so far.
      b1, b2, eps, eps_root: float32 scalars, as used in the last step.
      bias_correction_mu, bias_correction_nu: float32 scalars, what mu and nu were
        divided by: 1 where the correction is off; 0 before the first step where on.
      correction_rest_mu, correction_rest_nu: float32 scalars, what rounding kept out of
        the bias corrections; 0 where b1 and b2 are constant.
      max_correction: float32 scalar, what nu_max was divided by: 1 where it is the
        largest nu_hat. 0 before the first step otherwise.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    nu_max: PyTree
    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any
    max_correction: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments, for who reads them: see `moments.Estimates`."""
        return moments.adam_estimates(
            self,
            self.mu,
            self.nu_max,
            nu_correction=self.max_correction,
            eps_root=self.eps_root,
        )


def amsgrad_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    nu_max: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    scale_before_maximum: jax.Array,
    scale_after_maximum: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One leaf of AMSGrad.

    Args:
      g, mu, nu, nu_max: gradient and moments, same shape; nu and nu_max are real.
      weight1, weight2: of what is new in mu and nu, 1 - b1 and 1 - b2.
      mu_scale: 1 / (bias correction of mu).
      scale_before_maximum, scale_after_maximum: 1 / (bias correction of nu) in the one
        place, 1 in the other.
      eps, eps_root: outside and inside the root.

    Returns:
      update, mu, nu, nu_max.
    """
    mu = moments.update_average(mu, g, weight1)
    nu = moments.update_square(nu, _tree.abs_squared(g), weight2)
    nu_max = jnp.maximum(nu_max, nu * scale_before_maximum)
    nu_hat = moments.product(nu_max, scale_after_maximum)
    denominator = jnp.sqrt(nu_hat + eps_root) + eps
    update = moments.divide_or_zero(moments.scale(mu, mu_scale), denominator)
    return update, mu, nu, nu_max


def scale_by_amsgrad(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum_of: str = "nu_hat",
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam's direction over the largest second moment so far.

        update = mu_hat / (sqrt(nu_max + eps_root) + eps)

    Args:
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`.
      bias_correction_mu, bias_correction_nu: False for both is the paper's form.
      maximum_of: "nu_hat", the corrected moment, as in Optax; or "nu", corrected after
        the maximum, as in PyTorch. The same where bias_correction_nu is False.

    Returns:
      The transformation; dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_amsgrad()
    >>> state = tx.init(jnp.zeros(1))
    >>> _, state = tx.update(jnp.array([100.0]), state)
    >>> _, state = tx.update(jnp.array([0.0]), state)
    >>> round(float(state.nu_max[0]), 1)
    10000.0
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_epsilon("eps_root", eps_root)
    _checks.check_flag("bias_correction_mu", bias_correction_mu)
    _checks.check_flag("bias_correction_nu", bias_correction_nu)
    _checks.check_choice("maximum_of", maximum_of, ("nu_hat", "nu"))
    is_after = maximum_of == "nu" and bias_correction_nu
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}

    def init(params: PyTree) -> ScaleByAmsgradState:
        return ScaleByAmsgradState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            nu_max=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas)
            | _scalars.initial_records(
                bias_correction_mu=0.0 if bias_correction_mu else 1.0,
                bias_correction_nu=0.0 if bias_correction_nu else 1.0,
                max_correction=0.0 if is_after else 1.0,
            ),
            **_scalars.initial_records(eps=eps, eps_root=eps_root),
        )

    def update(
        updates: PyTree,
        state: ScaleByAmsgradState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAmsgradState]:
        del extra_args
        _checks.check_state(state, ScaleByAmsgradState, "scale_by_amsgrad")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        first, second = average["mu"], average["nu"]
        correction_mu = first.correction if bias_correction_mu else 1.0
        correction_nu = second.correction if bias_correction_nu else 1.0
        used = _scalars.resolve_all(state.count, eps=eps, eps_root=eps_root)
        updates, new = moments.apply_rule(
            amsgrad_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu, "nu_max": state.nu_max},
            weight1=first.weight,
            weight2=second.weight,
            mu_scale=1.0 / correction_mu,
            scale_before_maximum=1.0 if is_after else 1.0 / correction_nu,
            scale_after_maximum=1.0 / correction_nu if is_after else 1.0,
            **used,
        )
        used |= {"bias_correction_mu": correction_mu}
        used |= {"bias_correction_nu": correction_nu}
        used |= {"max_correction": correction_nu if is_after else 1.0}
        recorded = _scalars.records(recorded | used, state.b1.dtype)
        return updates, ScaleByAmsgradState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum_of: str = "nu_hat",
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam with a second moment that never shrinks: its steps only get shorter.

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`.
      bias_correction_mu, bias_correction_nu, maximum_of: see `scale_by_amsgrad`.

    Returns:
      The optimizer. State: `ScaleByAmsgradState`, `ScaleByLearningRateState`.

    >>> import jax.numpy as jnp
    >>> tx = amsgrad(1e-3)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.001

    Source: Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond" (2018).
    """
    return wide_chain(
        scale_by_amsgrad(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            bias_correction_mu,
            bias_correction_nu,
            maximum_of=maximum_of,
            nu_dtype=nu_dtype,
        ),
        scale_by_learning_rate(learning_rate),
    )
