"""AdaBound and AMSBound: Adam whose learning rate per element closes in on SGD's.

    rate = clip(learning_rate / (1 - b1^t) / (sqrt(nu_hat) + eps), lower, upper)
    lower = final_learning_rate (1 - 1 / (gamma t + 1))
    upper = final_learning_rate (1 + 1 / (gamma t))
    p <- p - rate mu

AMSBound has the largest nu so far in the place of nu. With a learning rate that
changes, the final rate follows: it is multiplied by learning_rate / base_learning_rate.

Source: Luo, Xiong, Liu & Sun, "Adaptive Gradient Methods with Dynamic Bound of Learning
Rate" (2019), Algorithms 2 and 3. As in the authors' code, and not in the paper: the
bias corrections (that of mu inside the clip), eps, a `gamma` of its own (1 - b2 in the
paper's bounds), bounds that follow the schedule, and no further factor 1/sqrt(t), which
only the proof needs. Not as in their code: eps is beside the root of the corrected nu,
as in `adam`, and weight decay is decoupled, as in `adamw`; theirs joins the gradient.
"""

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


class ScaleByAdaboundState(NamedTuple):
    """State of `scale_by_adabound`.

    Per float32 parameter 8 bytes, with `amsbound` 12.

    Attributes:
      count: int32 scalar, steps taken.
      mu, nu: as in `ScaleByAdamState`.
      nu_max: tree like nu, the largest nu so far; None without `amsbound`.
      b1, b2, eps, final_learning_rate, gamma: float32 scalars, as used in the last
        step.
      base_learning_rate: float32 scalar, the rate that `final_learning_rate` belongs
        to, as it was at init; never changes.
      lower_bound, upper_bound: float32 scalars, of an element's rate over the learning
        rate, in the last step; 0 before the first.
      bias_correction_mu, bias_correction_nu, correction_rest_mu, correction_rest_nu: as
        in `ScaleByAdamState`.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    nu_max: PyTree
    b1: Any
    b2: Any
    eps: Any
    final_learning_rate: Any
    gamma: Any
    base_learning_rate: Any
    lower_bound: Any
    upper_bound: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments before the bounds: see `moments.Estimates`."""
        top = self.nu if self.nu_max is None else self.nu_max
        return moments.adam_estimates(self, self.mu, top)


def adabound_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *nu_max: jax.Array,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    nu_scale: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    eps: jax.Array,
) -> tuple[jax.Array, ...]:
    """One leaf of AdaBound, or of AMSBound where there is a nu_max.

    Args:
      g, mu, nu, nu_max: gradient and moments, same shape; nu and nu_max are real.
      weight1, weight2: of what is new in mu and nu, 1 - b1 and 1 - b2.
      mu_scale, nu_scale: 1 / (bias correction of mu, of nu).
      lower, upper: bounds of an element's rate over the learning rate.
      eps: outside the root.

    Returns:
      update, mu, nu, and nu_max where given.
    """
    mu = moments.update_average(mu, g, weight1)
    nu = moments.update_square(nu, _tree.abs_squared(g), weight2)
    nu_max = tuple(jnp.maximum(largest, nu) for largest in nu_max)
    (top,) = nu_max or (nu,)
    # A root of 0 makes the rate inf, which is the upper bound, and mu is 0 there.
    rate = mu_scale / (jnp.sqrt(top * nu_scale) + eps)
    return moments.scale(mu, jnp.clip(rate, lower, upper)), mu, nu, *nu_max


def scale_by_adabound(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    final_learning_rate: Any = 0.1,
    gamma: Any = 1e-3,
    *,
    base_learning_rate: ScalarOrSchedule = 1e-3,
    amsbound: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam's direction with each element's factor between bounds that close in.

        update = clip(1 / (1 - b1^t) / (sqrt(nu_hat) + eps), lower, upper) mu
        lower = final_learning_rate / base_learning_rate (1 - 1 / (gamma t + 1))
        upper = final_learning_rate / base_learning_rate (1 + 1 / (gamma t))

    It stands before a learning rate; when that is the base rate, an element's rate ends
    at `final_learning_rate`, and when it is half of it, at half of that.

    Args:
      b1, b2, eps, mu_dtype, nu_dtype: see `scale_by_adam`. With eps = 0, an element
        whose second moment is 0 has the upper bound's rate.
      final_learning_rate: > 0, that of SGD with momentum b1, in its units: parameter
        per gradient, per step.
      gamma: > 0, how fast the bounds close in: after 1/gamma steps they are 1/2 and 2
        times the final rate.
      base_learning_rate: > 0, the learning rate that `final_learning_rate` belongs to.
        It is read once, at init, and kept in the state; a schedule is asked for step 0.
      amsbound: whether the largest nu so far takes the place of nu (AMSBound).

    Returns:
      The transformation; dtypes as in `scale_by_adam`. A |g| whose square overflows
      leaves its element the lower bound's rate.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; a rate or gamma that is not positive; a
        base rate whose schedule begins at 0, or that is an array of 0 at init.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_adabound(final_learning_rate=0.5, gamma=1e6, base_learning_rate=1)
    >>> updates, _ = tx.update(jnp.array([50.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 4)  # 0.5 mu, mu = 0.1 * 50
    2.5
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _check_rates(final_learning_rate, gamma, base_learning_rate)
    _checks.check_flag("amsbound", amsbound)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    others = {"eps": eps, "final_learning_rate": final_learning_rate, "gamma": gamma}

    def init(params: PyTree) -> ScaleByAdaboundState:
        return ScaleByAdaboundState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            nu_max=moments.zeros_squared(params, nu_dtype) if amsbound else None,
            **moments.initial_averages(betas),
            **_scalars.initial_records(**others, lower_bound=0, upper_bound=0),
            base_learning_rate=_initial_base(base_learning_rate),
        )

    def update(
        updates: PyTree,
        state: ScaleByAdaboundState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdaboundState]:
        del extra_args
        _checks.check_state(state, ScaleByAdaboundState, "scale_by_adabound")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, **others)
        lower, upper = _bounds(count, state.base_learning_rate, used)
        unsigned = {"nu": state.nu}
        if amsbound:
            unsigned["nu_max"] = state.nu_max
        updates, new = moments.apply_rule(
            adabound_leaf,
            updates,
            params,
            {"mu": state.mu},
            unsigned,
            weight1=average["mu"].weight,
            weight2=average["nu"].weight,
            mu_scale=1.0 / average["mu"].correction,
            nu_scale=1.0 / average["nu"].correction,
            lower=lower,
            upper=upper,
            eps=used["eps"],
        )
        recorded |= used | {"lower_bound": lower, "upper_bound": upper}
        recorded |= {"base_learning_rate": state.base_learning_rate}
        recorded = _scalars.records(recorded, state.b1.dtype)
        new.setdefault("nu_max", None)
        return updates, ScaleByAdaboundState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def _check_rates(final: Any, gamma: Any, base: Any) -> None:
    remedy = "It is the rate that SGD would have, e.g. 0.1."
    _checks.check_positive("final_learning_rate", final, remedy, allow_schedule=True)
    remedy = "1/gamma is a number of steps: use e.g. 1e-3."
    _checks.check_positive("gamma", gamma, remedy, allow_schedule=True)
    _checks.check_learning_rate("base_learning_rate", base)
    if _checks.is_schedule(base):
        with jax.ensure_compile_time_eval():
            _initial_base(base)


def _initial_base(base: Any) -> jax.Array:
    """The base rate as a State keeps it; raises where it is 0 and may yet change.

    Not at construction for an array: `optax.inject_hyperparams` constructs at every
    step, with the rate of that step; its init has that of step 0.
    """
    first = _scalars.resolve("base_learning_rate", base, jnp.zeros((), jnp.int32))
    number = _checks.host_value("base_learning_rate", first, "a number")
    if number is not None and not (_checks.is_constant(base) or number > 0):
        raise ValueError(
            "`base_learning_rate` must be > 0, got a schedule or an array that begins "
            f"at {number!r}. The final rate is multiplied by the present rate "
            "over this one; with a warm-up from 0, pass the schedule's peak, e.g. "
            "base_learning_rate=1e-3."
        )
    return _scalars.record(first, scalar_dtype())


def _bounds(
    count: jax.Array, base: jax.Array, used: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Of an element's rate over the learning rate; 0 for a base rate of 0."""
    is_empty = base == 0
    safe = jnp.where(is_empty, jnp.ones_like(base), base)
    final = jnp.asarray(used["final_learning_rate"], base.dtype)
    ratio = jnp.where(is_empty, jnp.zeros_like(base), final / safe)
    passed = count.astype(base.dtype) * jnp.asarray(used["gamma"], base.dtype)
    # Quotients of sums: 1 - 1 / (passed + 1) would cancel in the first steps.
    return ratio * (passed / (passed + 1.0)), ratio * ((passed + 1.0) / passed)


def adabound(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    final_learning_rate: Any = 0.1,
    gamma: Any = 1e-3,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    base_learning_rate: ScalarOrSchedule | None = None,
    amsbound: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam at first, SGD with momentum in the end, with no switch in between.

        p <- p - clip(learning_rate / (sqrt(nu_hat) + eps), lower, upper) * mu

    Args:
      learning_rate: Adam's, of the first steps; see `scale_by_learning_rate`. When it
        changes by a factor, SGD's final rate does too.
      b1, b2, eps, mu_dtype, nu_dtype: see `scale_by_adam`.
      final_learning_rate, gamma, amsbound: see `scale_by_adabound`.
      weight_decay, mask: see `add_decoupled_weight_decay`. The authors' code adds
        weight_decay * p to the gradient instead: in a chain, put
        `add_decoupled_weight_decay` before `adabound`.
      base_learning_rate: the learning rate that `final_learning_rate` belongs to. None:
        the learning rate at init, a schedule's at step 0, as in the authors' code; a
        schedule that warms up from 0 needs its peak here.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; with a decay its update needs `params`. State:
      `ScaleByAdaboundState`, `AddDecoupledWeightDecayState`,
      `ScaleByLearningRateState`; the last two change places with `independent_decay`.

    Raises:
      ValueError: a rate below 0, or a base rate that is not above 0; see also
        `scale_by_adabound`.
      TypeError: not a number; see also `scale_by_adabound`.

    >>> import jax.numpy as jnp
    >>> tx = adabound(1e-3)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.001

    Source: Luo et al. (2019), Algorithm 2.
    """
    base: Any = learning_rate if base_learning_rate is None else base_learning_rate
    _checks.check_learning_rate("learning_rate", learning_rate)
    if base_learning_rate is not None:
        remedy = (
            "Pass the learning rate that final_learning_rate belongs to, e.g. 1e-3."
        )
        _checks.check_positive("base_learning_rate", base, remedy, allow_schedule=True)
    return wide_chain(
        scale_by_adabound(
            b1,
            b2,
            eps,
            final_learning_rate,
            gamma,
            base_learning_rate=base,
            amsbound=amsbound,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )


def amsbound(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    final_learning_rate: Any = 0.1,
    gamma: Any = 1e-3,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    base_learning_rate: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """AdaBound over the largest second moment so far.

    Args:
      learning_rate, b1, b2, eps, final_learning_rate, gamma, weight_decay, mask,
        base_learning_rate, mu_dtype, nu_dtype, independent_decay: see `adabound`.

    Returns:
      The optimizer, with the state of `adabound` and 4 bytes per parameter more.

    >>> import jax.numpy as jnp
    >>> tx = amsbound(1e-3)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.001

    Source: Luo et al. (2019), Algorithm 3.
    """
    return adabound(
        learning_rate,
        b1,
        b2,
        eps,
        final_learning_rate,
        gamma,
        weight_decay,
        mask,
        base_learning_rate=base_learning_rate,
        amsbound=True,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        independent_decay=independent_decay,
    )
