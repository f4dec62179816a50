"""AdEMAMix: Adam with a second, slow mean that remembers ten thousand steps.

    mu      <- b1 mu + (1 - b1) g               mu_hat = mu / (1 - b1^t)
    mu_slow <- b3 mu_slow + (1 - b3) g          not bias-corrected
    nu      <- b2 nu + (1 - b2) |g|^2           nu_hat = nu / (1 - b2^t)
    update = (mu_hat + alpha mu_slow) / (sqrt(nu_hat + eps_root) + eps)

A slow mean that begins at its full weight is unstable, so the paper lets it grow:

    alpha_t = alpha min(t / T, 1)
    b3_t = min(b3, exp(1 / ((1 - t/T) / log(b1) + t/T / log(b3))))

(the half-life goes in a straight line from that of b1 to that of b3). `alpha_warmup`
and `b3_warmup` are the two T; 1 - b3_t is formed without rounding b3_t first.

Source: Pagliardini, Ablin & Grangier, "The AdEMAMix Optimizer: Better, Faster, Older"
(2024), Algorithm 1 and the schedulers of section 3; eps_root is Optax's.
"""

import math
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
from adamx.reading import unboxed
from adamx.transforms import descent, wide_chain


class ScaleByAdemamixState(NamedTuple):
    """State of `scale_by_ademamix`.

    Per parameter 12 bytes for float32, 10 for 16-bit dtypes (mu 2, mu_slow 4, nu 4).

    Attributes:
      count: int32 scalar, steps taken.
      mu, nu: as in `ScaleByAdamState`.
      mu_slow: tree like the parameters, the slow mean, at least float32.
      b1, b2, b3, alpha, eps, eps_root: float32 scalars, as used in the last step; b3
        and alpha as they were after the warm-up's factor.
      bias_correction_mu, bias_correction_nu, correction_rest_mu, correction_rest_nu: as
        in `ScaleByAdamState`; mu_slow has none.
    """

    count: Any
    mu: PyTree
    mu_slow: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    b3: Any
    alpha: Any
    eps: Any
    eps_root: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments; m_hat is the whole numerator: see `moments.Estimates`."""
        adam = moments.adam_estimates(self, self.mu, self.nu, eps_root=self.eps_root)
        alpha = unboxed(self.alpha)

        def rule(
            g: jax.Array, mu: jax.Array, nu: jax.Array, mu_slow: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            mean, root, denominator = adam.rule(g, mu, nu)
            return mean + moments.scale(mu_slow, alpha), root, denominator

        return moments.Estimates((self.mu, self.nu, self.mu_slow), rule)


def ademamix_leaf(
    g: jax.Array,
    mu: jax.Array,
    mu_slow: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    weight3: moments.Weight,
    mu_scale: jax.Array,
    alpha: jax.Array,
    nu_scale: jax.Array,
    eps: jax.Array,
    eps_root: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One leaf of AdEMAMix.

    Args:
      g, mu, mu_slow, nu: gradient and moments, same shape; nu is real.
      weight1, weight2, weight3: of what is new in mu, nu and mu_slow.
      mu_scale, nu_scale: 1 / (bias correction of mu, of nu).
      alpha: factor of the slow mean.
      eps, eps_root: outside and inside the root.

    Returns:
      update, mu, mu_slow, nu.
    """
    mu = moments.update_average(mu, g, weight1)
    mu_slow = moments.update_average(mu_slow, g, weight3)
    nu = moments.update_square(nu, _tree.abs_squared(g), weight2)
    numerator = moments.product(mu, mu_scale) + moments.product(mu_slow, alpha)
    denominator = jnp.sqrt(moments.product(nu, nu_scale) + eps_root) + eps
    return moments.divide_or_zero(numerator, denominator), mu, mu_slow, nu


def scale_by_ademamix(
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    b3_warmup: Any = None,
    alpha_warmup: Any = None,
    mu_slow_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam's direction from two means, the last steps' and the last ten thousands'.

        update = (mu_hat + alpha mu_slow) / (sqrt(nu_hat + eps_root) + eps)

    With steady gradients its size rises from 1 to 1 + alpha.

    Args:
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`.
      b3: in [0, 1), memory of the slow mean: about 1/(1 - b3) steps. A schedule returns
        float32, which near 0.9999 rounds 1 - b3 by up to 3e-4 of itself: prefer
        `b3_warmup`.
      alpha: >= 0, weight of the slow mean; 4 to 10 in the paper.
      b3_warmup: >= 1, steps in which b3 rises from b1 (half-life in a straight line);
        None: b3 from the start. The paper takes the run's length for both warm-ups.
      alpha_warmup: >= 1, steps in which alpha rises from 0; None: alpha from the start.
      mu_slow_dtype: dtype of mu_slow; None: float32, or the parameter's where wider. In
        bfloat16 it would not move at all.

    Returns:
      The transformation; dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; a warm-up below one step, or of a b3
        that is a schedule.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_ademamix(b3=0.99, alpha=5.0)
    >>> updates, state = tx.update(jnp.array([50.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 4)  # 1 + 5 * 0.01
    1.05

    Source: Pagliardini, Ablin & Grangier (2024), Algorithm 1.
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_decay_rate("b3", b3)
    remedy = "It is the weight of the slow mean; use e.g. 5.0, or 0 for Adam."
    _checks.check_non_negative("alpha", alpha, remedy, allow_16_bit=False)
    _checks.check_epsilon("eps", eps)
    _checks.check_epsilon("eps_root", eps_root)
    _check_warmup("b3_warmup", b3_warmup, "b3", b3)
    _check_warmup("alpha_warmup", alpha_warmup, "alpha", alpha)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    slow_dtype = moments.check_average_dtype("mu_slow_dtype", mu_slow_dtype, "b3", b3)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    others = {"eps": eps, "eps_root": eps_root}
    slow = {"b3": b3, "alpha": alpha}

    def init(params: PyTree) -> ScaleByAdemamixState:
        return ScaleByAdemamixState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            mu_slow=moments.zeros(params, slow_dtype, is_wide=True),
            nu=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(**others, **slow),
        )

    def update(
        updates: PyTree,
        state: ScaleByAdemamixState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdemamixState]:
        del extra_args
        _checks.check_state(state, ScaleByAdemamixState, "scale_by_ademamix")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        first, second = average["mu"], average["nu"]
        used = _scalars.resolve_all(state.count, **others, **slow)
        weight3 = moments.weight_of(used["b3"])
        if b3_warmup is not None:
            share = _share(count, b3_warmup)
            log_b3 = _log_slow(share, first.b, used["b3"])
            used["b3"], weight3 = jnp.exp(log_b3), moments.weight_of_log(log_b3)
        if alpha_warmup is not None:
            used["alpha"] = used["alpha"] * _share(count, alpha_warmup)
        recorded |= used
        del used["b3"]
        updates, new = moments.apply_rule(
            ademamix_leaf,
            updates,
            params,
            {"mu": state.mu, "mu_slow": state.mu_slow},
            {"nu": state.nu},
            weight1=first.weight,
            weight2=second.weight,
            weight3=weight3,
            mu_scale=1.0 / first.correction,
            nu_scale=1.0 / second.correction,
            **used,
        )
        recorded = _scalars.records(recorded, state.b1.dtype)
        return updates, ScaleByAdemamixState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def _check_warmup(name: str, steps: Any, of: str, value: Any) -> None:
    if steps is None:
        return
    if _checks.is_schedule(value):
        raise ValueError(
            f"`{name}` must be None where `{of}` is a schedule, got "
            f"{_checks.describe_value(steps)}; the schedule decides alone: leave the "
            "warm-up out, or pass the final value as a number."
        )
    remedy = "It is a number of steps, e.g. those of the run; None for no warm-up."
    _checks.check_at_least(name, steps, 1, remedy)


def _share(count: jax.Array, steps: Any) -> jax.Array:
    """min(t / T, 1)."""
    dtype = scalar_dtype()
    return jnp.minimum(count.astype(dtype) / jnp.asarray(steps, dtype), 1.0)


def _log_slow(share: jax.Array, b1: Any, b3: Any) -> jax.Array:
    """log(b3_t): its reciprocal, minus a half-life, goes in a straight line."""
    start, end = _reciprocal_log(b1), _reciprocal_log(b3)
    line = (1.0 - share) * start + share * end
    last = jnp.asarray(1.0 / end if not isinstance(end, float) or end else -math.inf)
    last = last.astype(line.dtype)
    return jnp.where(share < 1.0, jnp.minimum(1.0 / line, last), last)


def _reciprocal_log(b: Any) -> Any:
    if isinstance(b, float):
        return 1.0 / math.log(b) if b else 0.0
    return 1.0 / jnp.log1p(b - 1.0)


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    b3_warmup: Any = None,
    alpha_warmup: Any = None,
    mu_slow_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """AdamW with a slow mean beside the fast one: old gradients keep their say.

        p <- p - learning_rate * ((mu_hat + alpha mu_slow) / (sqrt(nu_hat) + eps)
                                  + weight_decay * p)

    Args:
      learning_rate: see `scale_by_learning_rate`. Steps grow to 1 + alpha times it.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`.
      b3, alpha, b3_warmup, alpha_warmup, mu_slow_dtype: see `scale_by_ademamix`. For a
        run of n steps the paper has b3_warmup=n, alpha_warmup=n.
      weight_decay, mask: see `add_decoupled_weight_decay`.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; with a decay its update needs `params`. State:
      `ScaleByAdemamixState`, `AddDecoupledWeightDecayState`,
      `ScaleByLearningRateState`; the last two change places with `independent_decay`.

    >>> import jax.numpy as jnp
    >>> tx = ademamix(1e-3, alpha_warmup=1000, b3_warmup=1000)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.001

    Source: Pagliardini, Ablin & Grangier (2024), Algorithm 1.
    """
    return wide_chain(
        scale_by_ademamix(
            b1,
            b2,
            b3,
            alpha,
            eps,
            eps_root,
            mu_dtype,
            b3_warmup=b3_warmup,
            alpha_warmup=alpha_warmup,
            mu_slow_dtype=mu_slow_dtype,
            nu_dtype=nu_dtype,
        ),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )
