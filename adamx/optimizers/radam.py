"""RAdam: Adam that waits until its second moment has seen enough gradients.

    rho_t = rho_inf - 2 t b2^t / (1 - b2^t)            rho_inf = (1 + b2) / (1 - b2)
    r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
    update = r_t mu_hat / (sqrt(nu_hat + eps_root) + eps)    if rho_t >= threshold
    update = mu_hat                                          else

rho_t is the length of the plain mean whose squares are as old, in the mean, as those in
nu: 1 + 2 (mean age). It is what is computed here, since the formula above takes the
difference of two numbers near rho_inf (of 1998 and 1999 at t = 1, b2 = 0.999).

Source: Liu, Jiang, He, Chen, Liu, Gao & Han, "On the Variance of the Adaptive Learning
Rate and Beyond" (2020), Algorithm 2. The threshold is 4 there, 5 in the authors' code,
in Optax and in PyTorch; eps and the Nesterov form (Dozat, 2016) are Optax's.
"""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    PyTree,
    ScalarOrSchedule,
    scalar_dtype,
)
from adamx.transforms import descent, wide_chain

# y coth(y) - 1 in powers of y^2; to the last bit of float64 for y <= 1/2.
_SERIES = (
    (1, 3),
    (-1, 45),
    (2, 945),
    (-1, 4725),
    (2, 93555),
    (-1382, 638512875),
    (4, 18243225),
    (-3617, 162820783125),
    (87734, 38979295480125),
    (-349222, 1531329465290625),
)


class ScaleByRadamState(NamedTuple):
    """State of `scale_by_radam`: per parameter what `ScaleByAdamState` takes.

    Attributes:
      count: int32 scalar, steps taken.
      mu, nu: as in `ScaleByAdamState`.
      b1, b2, eps, eps_root, threshold: float32 scalars, as used in the last step.
      bias_correction_mu, bias_correction_nu, correction_rest_mu, correction_rest_nu: as
        in `ScaleByAdamState`.
      rho: float32 scalar, rho_t of the last step: how many squares nu is worth; 0
        before the first step.
      rho_rest: float32 scalar, what rounding kept out of it; 0 where b2 is constant.
      rectification: float32 scalar, r_t; 0 where the update was mu_hat, un-adapted.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    threshold: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any
    rho: Any
    rho_rest: Any
    rectification: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken, and the rectification."""
        return {"count": self.count, "rectification": self.rectification}

    def estimates(self) -> moments.Estimates:
        """The moments, for who reads them: see `moments.Estimates`."""
        return moments.adam_estimates(self, self.mu, self.nu, eps_root=self.eps_root)


def radam_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    g_scale: jax.Array | None,
    nu_scale: jax.Array,
    is_rectified: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of RAdam.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      weight1, weight2: of what is new in mu and nu, 1 - b1 and 1 - b2.
      mu_scale, g_scale: the numerator is mu_scale mu + g_scale g, r_t included; None
        drops g.
      nu_scale: 1 / (bias correction of nu).
      is_rectified: whether the numerator is divided by the root.
      eps, eps_root: outside and inside the root.

    Returns:
      update, mu, nu.
    """
    mu = moments.update_average(mu, g, weight1)
    nu = moments.update_square(nu, _tree.abs_squared(g), weight2)
    numerator = moments.scale(mu, mu_scale)
    if g_scale is not None:
        numerator = moments.rounded(numerator, mu) + moments.product(g, g_scale)
    root = jnp.sqrt(moments.product(nu, nu_scale) + eps_root) + eps
    denominator = jnp.where(is_rectified, root, jnp.ones_like(root))
    return moments.divide_or_zero(numerator, denominator), mu, nu


def scale_by_radam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
    strict_threshold: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam's direction times r_t, which rises from 0 to 1 in about 1/(1 - b2) steps.

        update = r_t mu_hat / (sqrt(nu_hat + eps_root) + eps)   if rho_t >= threshold
        update = mu_hat                                         else

    In the first steps (five with b2 = 0.999) the update has the gradient's size, not 1.

    Constant b2: rho_t in closed form. A traced, scheduled or injected b2: the mean age
    of what nu really holds, whatever b2 was before; r_t is at most 1 then too.

    Args:
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`. A b2 so small that
        rho_inf <= threshold (2/3 for 5) never adapts: it warns.
      threshold: >= 4, in squares: how many nu must be worth to be divided by. Below 4
        the variance of 1/sqrt(nu_hat) is not finite.
      nesterov: whether the mean looks one step ahead, see `scale_by_adam`.
      strict_threshold: whether rho_t must exceed the threshold, as in PyTorch; False:
        equality suffices, as in Optax.

    Returns:
      The transformation; dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; a threshold below 4.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_radam()
    >>> state = tx.init(jnp.zeros(1))
    >>> for _ in range(6):
    ...     updates, state = tx.update(jnp.array([50.0]), state)
    >>> [round(float(x), 4) for x in (updates[0], state.rectification, state.rho)]
    [0.0258, 0.0258, 5.9942]

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond"
    (2020), Algorithm 2.
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_epsilon("eps_root", eps_root)
    may_adapt = _check_threshold(threshold, b2)
    _checks.check_flag("nesterov", nesterov)
    _checks.check_flag("strict_threshold", strict_threshold)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    others = {"eps": eps, "eps_root": eps_root, "threshold": threshold}

    def init(params: PyTree) -> ScaleByRadamState:
        return ScaleByRadamState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(**others, rho=0, rho_rest=0, rectification=0),
        )

    def update(
        updates: PyTree,
        state: ScaleByRadamState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByRadamState]:
        del extra_args
        _checks.check_state(state, ScaleByRadamState, "scale_by_radam")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        first, second = average["mu"], average["nu"]
        used = _scalars.resolve_all(state.count, **others)
        recorded |= used
        limit = used.pop("threshold")
        rho, rest = _mean_length(second, count, state.rho, state.rho_rest)
        is_rectified = (rho > limit) if strict_threshold else (rho >= limit)
        is_rectified &= (rho > 4) & may_adapt
        r = _rectification(rho, second.b)
        factor = jnp.where(is_rectified, r, jnp.ones_like(r))
        scales: dict[str, Any] = moments.look_ahead(first, count, nesterov)
        scales = {k: None if s is None else factor * s for k, s in scales.items()}
        updates, new = moments.apply_rule(
            radam_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            weight1=first.weight,
            weight2=second.weight,
            nu_scale=1.0 / second.correction,
            is_rectified=is_rectified,
            **scales,
            **used,
        )
        recorded |= {"rho": rho, "rho_rest": rest}
        recorded |= {"rectification": jnp.where(is_rectified, r, jnp.zeros_like(r))}
        recorded = _scalars.records(recorded, state.b1.dtype)
        return updates, ScaleByRadamState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def _check_threshold(threshold: Any, b2: Any) -> bool:
    """Whether rho_t can pass the threshold, as far as the host knows; warns if not.

    (rho_t < rho_inf, but rounded to float32 it arrives there.)
    """
    _checks.check_at_least(
        "threshold",
        threshold,
        4,
        "It is compared with rho_t; below 4 the rectification r_t would be the root of "
        "a negative number. Use 5.0, or 4.0 for the paper's.",
    )
    if not (_checks.is_constant(threshold) and _checks.is_constant(b2)):
        return True
    longest = (1 + float(b2)) / (1 - float(b2))
    may_adapt = longest > float(threshold)
    if not may_adapt:
        warnings.warn(
            f"`b2`={float(b2):g} gives rho_t < {longest:.4g}, which never passes "
            f"`threshold`={float(threshold):g}: the update stays the gradient's mean, "
            "un-adapted, for ever. Use a larger b2, e.g. 0.999.",
            UserWarning,
            stacklevel=3,
        )
    return may_adapt


def _rectification(rho: jax.Array, b2: Any) -> jax.Array:
    """r_t where rho > 4; else whatever, but no NaN."""
    # A b2 that has become smaller leaves rho above its own limit: r is 1 then.
    limit = jnp.maximum(jnp.asarray((1.0 + b2) / (1.0 - b2), rho.dtype), rho)
    safe = jnp.maximum(limit - 4.0, jnp.finfo(rho.dtype).tiny)
    square = (rho - 4.0) / safe * ((rho - 2.0) / (limit - 2.0)) * (limit / rho)
    return jnp.sqrt(jnp.where(rho > 4.0, square, jnp.zeros_like(rho)))


def _mean_length(
    average: moments.Average, count: jax.Array, previous: jax.Array, rest: jax.Array
) -> tuple[Any, Any]:
    """rho_t = 1 + 2 (mean age of the squares in nu), and what rounding kept out of it.

    In closed form for a constant b2. Else by the step that every age takes: all grow by
    one, and a share w / c of the weight (c = 1 - product of the b's) has age 0.
    """
    if isinstance(average.b, float):
        return _constant_length(average.b, count), 0.0
    share = (1.0 - average.b) / average.correction
    high = jnp.asarray(previous, share.dtype)
    low = jnp.asarray(rest, share.dtype)
    step = (2.0 - share * ((high + 1.0) + low)) + low
    total = high + step
    return total, step - (total - high)


def _constant_length(b2: float, count: jax.Array) -> jax.Array:
    """rho_t for a b2 that never changed.

    With L = -log(b2) and h(y) = y coth(y) - 1:

        rho_t = t - 2/L (h(t L / 2) - h(L / 2))       for t L < 1
        rho_t = rho_inf - 2 t / (exp(t L) - 1)        for t L >= 1
    """
    dtype = scalar_dtype()
    steps = count.astype(dtype)
    if b2 == 0.0:
        return jnp.ones_like(steps)
    rate = -math.log(b2)
    x = steps * jnp.asarray(rate, dtype)
    limit = (1.0 + b2) / (1.0 - b2)
    late = limit - 2.0 * steps / jnp.expm1(jnp.maximum(x, 0.5))
    if rate >= 1.0:
        return late
    y = 0.5 * jnp.minimum(x, 1.0)
    early = steps - (_coth_rest(y) - _coth_rest(0.5 * rate)) * (2.0 / rate)
    return jnp.where(x < 1.0, early, late)


def _coth_rest(y: Any) -> Any:
    """y coth(y) - 1 for 0 <= y <= 1/2."""
    square, total = y * y, 0.0
    for numerator, denominator in reversed(_SERIES):
        total = (total + numerator / denominator) * square
    return total


def radam(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
    strict_threshold: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam with a warm-up of its own: no schedule is needed for the first steps.

        p <- p - learning_rate * (r_t mu_hat / (sqrt(nu_hat) + eps) + weight_decay * p)

    Args:
      learning_rate: see `scale_by_learning_rate`. In the first steps it multiplies the
        gradient's mean itself: with large gradients, clip.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`.
      threshold, nesterov, strict_threshold: see `scale_by_radam`.
      weight_decay, mask: see `add_decoupled_weight_decay`; decoupled, as in the
        authors' code.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; with a decay its update needs `params`. State: `ScaleByRadamState`,
      `AddDecoupledWeightDecayState`, `ScaleByLearningRateState`; the last two change
      places with `independent_decay`.

    >>> import jax.numpy as jnp
    >>> tx = radam(0.1)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.05

    Source: Liu et al. (2020), Algorithm 2.
    """
    return wide_chain(
        scale_by_radam(
            b1,
            b2,
            eps,
            eps_root,
            threshold,
            nesterov=nesterov,
            strict_threshold=strict_threshold,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )
