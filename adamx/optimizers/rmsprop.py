"""RMSProp: the gradient over the root of its running mean square.

    nu <- decay nu + (1 - decay) |g|^2
    update = g / sqrt(nu + eps)             eps inside the root (Optax, TensorFlow)
    update = g / (sqrt(nu) + eps)           outside (PyTorch)
    centered: nu - |mu|^2, the variance, in the place of nu (Graves)

Adam with b1 = 0, without bias correction unless asked for.

Source: Tieleman & Hinton, "Lecture 6.5: RMSProp", Neural Networks for Machine Learning
(2012); the centred form: Graves, "Generating Sequences With Recurrent Neural Networks"
(2013), equations 38 to 41.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    PyTree,
    ScalarOrSchedule,
)
from adamx.optimizers.sgd import scale_by_momentum
from adamx.reading import unboxed
from adamx.transforms import scale_by_learning_rate, wide_chain


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`: 4 bytes per float32 parameter, 8 if centered.

    Attributes:
      count: int32 scalar, steps taken; None unless bias correction or a schedule of
        `decay` or `eps` needs it (as in Optax, whose plain form does not count).
      mu: tree like the parameters, running mean of the gradient; None unless centered.
      nu: tree like the parameters, real, running mean of |g|^2.
      decay: float32 scalar, as used in the last step.
      eps: float32 scalar, as used in the last step.
      eps_root: float32 scalar, the part of eps that was inside the root: eps or 0.
      bias_correction_nu: float32 scalar, what nu (and mu) was divided by: 1 unless bias
        correction is on. 0 before its first step.
      correction_rest_nu: float32 scalar, what rounding kept out of it.
    """

    count: Any
    mu: PyTree | None
    nu: PyTree
    decay: Any
    eps: Any
    eps_root: Any
    bias_correction_nu: Any
    correction_rest_nu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken, where they are counted."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The mean square; m_hat is the gradient: see `moments.Estimates`."""
        c, eps, eps_root = map(
            unboxed, (self.bias_correction_nu, self.eps, self.eps_root)
        )

        def rule(
            g: jax.Array, nu: jax.Array, *mu: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            v = nu / c
            for mean in mu:
                centre = _tree.abs_squared(moments.scale(mean, 1.0 / c))
                v = _variance(v, centre)
            return g, jnp.sqrt(v), jnp.sqrt(v + eps_root) + (eps - eps_root)

        held = (self.nu,) if self.mu is None else (self.nu, self.mu)
        return moments.Estimates(held, rule)


def rms_leaf(
    g: jax.Array,
    nu: jax.Array,
    *,
    weight: moments.Weight,
    correction_scale: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One leaf of RMSProp.

    Args:
      g, nu: gradient and mean square, same shape; nu is real.
      weight: 1 - decay.
      correction_scale: 1 / (bias correction).
      eps, eps_root: outside and inside the root.

    Returns:
      update, nu.
    """
    nu = moments.update_square(nu, _tree.abs_squared(g), weight)
    denominator = jnp.sqrt(moments.product(nu, correction_scale) + eps_root) + eps
    return moments.divide_or_zero(g, denominator), nu


def centered_rms_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight: moments.Weight,
    correction_scale: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of centred RMSProp; see `rms_leaf`. Returns update, mu, nu."""
    mu = moments.update_average(mu, g, weight)
    nu = moments.update_square(nu, _tree.abs_squared(g), weight)
    mean = moments.scale(mu, correction_scale)
    square = moments.product(nu, correction_scale)
    centre = _tree.abs_squared(mean)
    if not jnp.iscomplexobj(mean):  # else it is a sum, and its products are rounded
        centre = moments.rounded(centre, mu)
    denominator = jnp.sqrt(_variance(square, centre) + eps_root) + eps
    return moments.divide_or_zero(g, denominator), mu, nu


def _variance(square: jax.Array, centre: jax.Array) -> jax.Array:
    """square - centre >= 0: rounding can make that of a constant gradient negative.

    Where the square has overflowed it is inf, also where the centre has: not NaN.
    """
    overflown = square == jnp.inf
    return jnp.where(overflown, square, jnp.maximum(square - centre, 0))


def scale_by_rms(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    centered: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Divides the gradient by the root of its running mean square.

        update = g / sqrt(nu + eps), or g / (sqrt(nu) + eps) with eps_in_sqrt=False

    Args:
      decay: in [0, 1), memory of about 1/(1 - decay) steps; traced or a schedule too.
      eps: >= 0; in units of the gradient squared inside the root, of the gradient
        outside it.
      initial_scale: >= 0, nu before the first step (TensorFlow 1: 1; PyTorch: 0).
      eps_in_sqrt: where eps stands.
      bias_correction: whether nu (and mu) is divided by 1 - decay^t. With
        eps_in_sqrt=False it makes Adam with b1 = 0.
      centered: whether the variance replaces the mean square; costs a first moment.
      mu_dtype, nu_dtype: see `scale_by_adam`.

    Returns:
      The transformation; dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_rms(0.75)
    >>> updates, _ = tx.update(jnp.array([-4.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -2.0
    """
    _checks.check_decay_rate("decay", decay)
    _checks.check_epsilon("eps", eps)
    _checks.check_non_negative("initial_scale", initial_scale, allow_schedule=False)
    for name, value in [
        ("eps_in_sqrt", eps_in_sqrt),
        ("bias_correction", bias_correction),
        ("centered", centered),
    ]:
        _checks.check_flag(name, value)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, decay, "decay")
    betas = {"nu": ("decay", decay)}
    is_counted = bias_correction or callable(decay) or callable(eps)

    def init(params: PyTree) -> ScaleByRmsState:
        fill = _scalars.resolve("initial_scale", initial_scale, None)
        return ScaleByRmsState(
            count=jnp.zeros((), jnp.int32) if is_counted else None,
            mu=moments.zeros(params, mu_dtype) if centered else None,
            nu=moments.zeros_squared(params, nu_dtype, fill),
            **moments.initial_averages(betas)
            | _scalars.initial_records(
                eps=eps,
                eps_root=eps if eps_in_sqrt else 0.0,
                bias_correction_nu=0.0 if bias_correction else 1.0,
            ),
        )

    def update(
        updates: PyTree,
        state: ScaleByRmsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByRmsState]:
        del extra_args
        _checks.check_state(state, ScaleByRmsState, "scale_by_rms")
        before = state.count if is_counted else jnp.zeros((), jnp.int32)
        count = _tree.increment(before)
        average, recorded = moments.averages(state, count, betas)
        correction = average["nu"].correction if bias_correction else 1.0
        used = _scalars.resolve_all(before, eps=eps)
        inside = used["eps"] if eps_in_sqrt else 0.0
        updates, new = moments.apply_rule(
            centered_rms_leaf if centered else rms_leaf,
            updates,
            params,
            {"mu": state.mu} if centered else {},
            {"nu": state.nu},
            weight=average["nu"].weight,
            correction_scale=1.0 / correction,
            eps=0.0 if eps_in_sqrt else used["eps"],
            eps_root=inside,
        )
        used["eps_root"] = inside
        used["bias_correction_nu"] = correction
        if not bias_correction:
            used["correction_rest_nu"] = 0.0
        return updates, ScaleByRmsState(
            count=count if is_counted else None,
            **{"mu": None, **new},
            **_scalars.records(recorded | used, state.decay.dtype),
        )

    return GradientTransformationExtraArgs(init, update)


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    accumulator_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """RMSProp: the gradient over its own recent size.

        p <- p - learning_rate * g / sqrt(nu + eps)

    Args:
      learning_rate: see `scale_by_learning_rate`.
      decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction, mu_dtype,
        nu_dtype: see `scale_by_rms`.
      momentum: see `decay` of `scale_by_momentum`; None: none. It sums updates that the
        learning rate has scaled already, as in Optax and TensorFlow: a falling rate
        reaches it late. PyTorch multiplies by the rate last.
      nesterov, accumulator_dtype: see `scale_by_momentum`; unused without momentum.

    Returns:
      The optimizer. State: `ScaleByRmsState`, `ScaleByLearningRateState`,
      `ScaleByMomentumState` (or an empty one).

    Raises:
      ValueError: an `accumulator_dtype` that holds no average; see also `scale_by_rms`.
      TypeError: `nesterov` is not True or False; see also `scale_by_rms`.

    >>> import jax.numpy as jnp
    >>> tx = rmsprop(0.1, decay=0.75)
    >>> updates, _ = tx.update(jnp.array([-4.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    0.2

    Source: Tieleman & Hinton (2012); centred: Graves (2013), equations 38 to 41.
    """
    _checks.check_flag("nesterov", nesterov)
    accumulator_dtype = moments.check_moment_dtype(
        "accumulator_dtype", accumulator_dtype
    )
    last = optax.identity()
    if momentum is not None:
        last = scale_by_momentum(momentum, nesterov, accumulator_dtype)
    return wide_chain(
        scale_by_rms(
            decay,
            eps,
            initial_scale,
            eps_in_sqrt,
            bias_correction,
            centered=centered,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        scale_by_learning_rate(learning_rate),
        last,
    )
