"""Adam: the gradient's running mean over the root of its running mean square.

    mu  <- b1 mu + (1 - b1) g                 mu_hat = mu / (1 - b1^t)
    nu  <- b2 nu + (1 - b2) |g|^2             nu_hat = nu / (1 - b2^t)
    update = mu_hat / (sqrt(nu_hat + eps_root) + eps)

Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), Algorithm 1.
The Nesterov form: Dozat, "Incorporating Nesterov Momentum into Adam" (2016), without
its further factor b2 on nu_hat; b1 is constant as in Optax, or warms up as in PyTorch.
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


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Per parameter 8 bytes for float32, 6 for 16-bit dtypes (mu 2, nu 4), 12 for
    complex64 (nu is real); `mu_dtype` and `nu_dtype` change that.

    Attributes:
      count: int32 scalar, steps taken; stays at 2^31 - 1 once there.
      mu: tree like the parameters, running mean of the gradient, not bias-corrected.
      nu: tree like the parameters, real, running mean of |g|^2, not bias-corrected.
      b1, b2, eps, eps_root: float32 scalars, as used in the last step.
      bias_correction_mu, bias_correction_nu: float32 scalars, 1 - (product of the b's
        of all steps so far); mu_hat = mu / bias_correction_mu. 0 before the first step.
      correction_rest_mu, correction_rest_nu: float32 scalars, what rounding kept out of
        the bias corrections; 0 where b1 and b2 are constant.
      momentum_decay: float32 scalar, as used in the last step; bias_correction_mu is
        then 1 - (product of all m_t so far). None where b1 does not warm up.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any
    momentum_decay: Any = None

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments, for who reads them: see `moments.Estimates`."""
        return moments.adam_estimates(self, self.mu, self.nu, eps_root=self.eps_root)


def adam_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    g_scale: jax.Array | None,
    nu_scale: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of Adam.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      weight1, weight2: of what is new in mu and nu, 1 - b1 and 1 - b2.
      mu_scale, g_scale: the numerator is mu_scale mu + g_scale g; None drops g.
      nu_scale: 1 / (bias correction of nu).
      eps, eps_root: outside and inside the root.

    Returns:
      update, mu, nu.
    """
    mu, nu = adam_averages_leaf(g, mu, nu, weight1=weight1, weight2=weight2)
    update = adam_direction_leaf(
        g,
        mu,
        nu,
        mu_scale=mu_scale,
        g_scale=g_scale,
        nu_scale=nu_scale,
        eps=eps,
        eps_root=eps_root,
    )
    return update, mu, nu


def adam_averages_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
) -> tuple[jax.Array, jax.Array]:
    """The moments of one leaf after a step; see `adam_leaf`. Returns mu, nu."""
    mu = moments.update_average(mu, g, weight1)
    return mu, moments.update_square(nu, _tree.abs_squared(g), weight2)


def adam_direction_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    mu_scale: jax.Array,
    g_scale: jax.Array | None,
    nu_scale: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> jax.Array:
    """The update of one leaf from the moments after the step; see `adam_leaf`."""
    numerator = moments.scale(mu, mu_scale)
    if g_scale is not None:
        numerator = moments.rounded(numerator, mu) + moments.product(g, g_scale)
    denominator = jnp.sqrt(moments.product(nu, nu_scale) + eps_root) + eps
    return moments.divide_or_zero(numerator, denominator)


def scale_by_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    nu_dtype: Any = None,
    momentum_decay: Any = None,
) -> GradientTransformationExtraArgs:
    """Replaces the gradient by Adam's direction, of size about 1 per element.

        mu <- b1 mu + (1 - b1) g,      mu_hat = mu / (1 - b1^t)
        nu <- b2 nu + (1 - b2) |g|^2,  nu_hat = nu / (1 - b2^t)
        update = mu_hat / (sqrt(nu_hat + eps_root) + eps)

    With `nesterov`, mu_hat is b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t); with
    `momentum_decay` too, b1^t is in both terms the product of the m_t so far, and the
    other b1 is m_(t+1), then m_t, of m_t = b1 (1 - 0.96^(t momentum_decay) / 2).

    The hyperparameters may be numbers, arrays, tracers or schedules of the step count.
    Constant b1 and b2 use the closed form of the bias correction, changing ones the
    product of what was applied; both are exact to float32.

    Args:
      b1: in [0, 1), memory of the mean: about 1/(1 - b1) steps.
      b2: in [0, 1), memory of the mean square: about 1/(1 - b2) steps.
      eps: >= 0, in units of the gradient: elements whose root mean square is far below
        it move like eps-scaled SGD. With eps = 0, an element whose second moment is 0
        gets the update 0: its gradient was always 0, or below float32's range, which
        begins at |g| = sqrt(1.2e-38 / (1 - b2)), 3e-18 for b2 = 0.999.
      eps_root: >= 0, in units of the gradient squared; keeps the root differentiable.
      mu_dtype: dtype of mu; None: the parameter's own.
      nesterov: whether the mean looks one step ahead (NAdam).
      nu_dtype: dtype of nu; None: float32, or float64 for float64 parameters. 16-bit
        parameters have a float32 nu too: in bfloat16 it would stop moving.
      momentum_decay: >= 0, with `nesterov` only: how fast the look-ahead's b1 rises
        from half of b1; 4e-3 (PyTorch's) takes 4,000 steps for half of the rest. None:
        b1 is constant.

    Returns:
      The transformation; updates have the wider dtype of gradient and parameter,
      arithmetic is in at least float32. A |g| above 1.8e19 overflows nu (float32): the
      element then stays at inf, with an update of 0; clip or guard first. NaN in, NaN
      out, in that element.

    Raises:
      ValueError: a hyperparameter out of range; a gradient of another structure or
        shape than the parameters.
      TypeError: not a number; a 16-bit array for b1, b2 or eps; another state;
        parameters that are no floats.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_adam()
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([1e-3, -50.0]), state)
    >>> [round(float(u), 3) for u in updates]
    [1.0, -1.0]
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_epsilon("eps_root", eps_root)
    _checks.check_flag("nesterov", nesterov)
    _checks.check_momentum_decay("momentum_decay", momentum_decay, nesterov)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    others = {"eps": eps, "eps_root": eps_root}
    warming = {} if momentum_decay is None else {"momentum_decay": momentum_decay}

    def init(params: PyTree) -> ScaleByAdamState:
        return ScaleByAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(**others, **warming),
        )

    def update(
        updates: PyTree,
        state: ScaleByAdamState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdamState]:
        del extra_args
        _checks.check_state(state, ScaleByAdamState, "scale_by_adam")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        first, second = average["mu"], average["nu"]
        numerator: dict[str, Any] = moments.look_ahead(first, count, nesterov)
        if warming:
            decay = _scalars.resolve_all(state.count, **warming)
            numerator, warmed = moments.warming_look_ahead(first, count, state, **decay)
            recorded |= decay | warmed
        used = _scalars.resolve_all(state.count, **others)
        updates, new = moments.apply_rule(
            adam_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            weight1=first.weight,
            weight2=second.weight,
            nu_scale=1.0 / second.correction,
            **numerator,
            **used,
        )
        recorded = _scalars.records(recorded | used, state.b1.dtype)
        return updates, ScaleByAdamState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def adam(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    nu_dtype: Any = None,
    momentum_decay: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam: every element moves by about the learning rate, whatever its gradient.

        p <- p - learning_rate * mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, eps_root, mu_dtype, nesterov, nu_dtype, momentum_decay: see
        `scale_by_adam`.

    Returns:
      The optimizer. State: `ScaleByAdamState`, `ScaleByLearningRateState`.

    >>> import jax.numpy as jnp, optax
    >>> tx = adam(1e-3)
    >>> params = jnp.array([1.0])
    >>> updates, state = tx.update(jnp.array([0.5]), tx.init(params), params)
    >>> round(float(optax.apply_updates(params, updates)[0]), 6)
    0.999

    Source: Kingma & Ba (2015), Algorithm 1; see `scale_by_adam`.
    """
    return wide_chain(
        scale_by_adam(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            nesterov=nesterov,
            nu_dtype=nu_dtype,
            momentum_decay=momentum_decay,
        ),
        scale_by_learning_rate(learning_rate),
    )
