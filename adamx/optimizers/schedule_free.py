"""Schedule-Free AdamW: averaging of the iterates in the place of a decaying rate.

Three sequences; the gradient is taken at y, which the user holds as the parameters, z
is stored, and x, the average that is to be evaluated, follows from both:

    gamma = learning_rate sqrt(1 - b2^t) min(1, t / warmup_steps)
    nu   <- b2 nu + (1 - b2) |g|^2
    s     = gamma (g / (sqrt(nu) + eps) + weight_decay y)
    z    <- z - s
    c     = gamma^2 / (sum of all gamma^2 so far)
    x    <- (1 - c) x + c z
    y    <- b1 x + (1 - b1) z

Without x, with the new z and the old y, the last two lines are

    y <- y + c (z - y) - (1 - b1) (1 - c) s             x = y + (1 - b1) / b1 (y - z)

Source: Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky, "The Road Less Scheduled"
(2024), Algorithm 1.
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
    at_least_single,
    dtype_of,
    scalar_dtype,
)
from adamx.reading import unboxed
from adamx.transforms import expand_mask


class ScheduleFreeAdamWState(NamedTuple):
    """State of `schedule_free_adamw`.

    Per parameter 8 bytes for float32 and for 16-bit dtypes (z and nu in float32), 12
    for complex64; `state_dtype` and `nu_dtype` change that.

    Attributes:
      count: int32 scalar, steps taken.
      z: tree like the parameters, the iterate that takes the steps.
      nu: tree like the parameters, real, running mean of |g|^2, not bias-corrected.
      b1, b2, eps: float32 scalars, as used in the last step.
      extrapolation: float32 scalar, (1 - b1) / b1: x = y + extrapolation (y - z).
      bias_correction_nu, correction_rest_nu: as in `ScaleByAdamState`.
      weight_sum, weight_sum_rest: float32 scalars, the sum of the averaging weights so
        far, and what rounding kept out of it.
      applied_learning_rate: float32 scalar, the rate of the last step with its warmup,
        without the bias correction; before the first step, the rate without warmup.
      applied_weight_decay: float32 scalar, the decay of the last step.
    """

    count: Any
    z: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    extrapolation: Any
    bias_correction_nu: Any
    correction_rest_nu: Any
    weight_sum: Any
    weight_sum_rest: Any
    applied_learning_rate: Any
    applied_weight_decay: Any

    def readings(self) -> dict[str, Any]:
        """Steps, rate and decay."""
        return {
            "count": self.count,
            "learning_rate": self.applied_learning_rate,
            "weight_decay": self.applied_weight_decay,
        }

    def estimates(self) -> moments.Estimates:
        """The second moment; m_hat is the gradient: see `moments.Estimates`."""
        c, eps = map(unboxed, (self.bias_correction_nu, self.eps))

        def rule(g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            root = jnp.sqrt(nu / c)
            return g, root, root + eps

        return moments.Estimates((self.nu,), rule)


def schedule_free_leaf(
    g: jax.Array,
    z: jax.Array,
    nu: jax.Array,
    *,
    p: jax.Array,
    is_decayed: bool,
    weight2: moments.Weight,
    nu_scale: jax.Array,
    same_scale: jax.Array,
    eps: jax.Array,
    gamma: jax.Array,
    decay: jax.Array,
    z_part: jax.Array,
    step_part: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of Schedule-Free AdamW.

    Args:
      g, z, nu: gradient, iterate and second moment, same shape; nu is real.
      p: the parameter, y.
      is_decayed: whether it decays.
      weight2: of what is new in nu, 1 - b2.
      nu_scale: 1, or 1 / (bias correction of nu).
      same_scale: its equal by `moments.unrelated`: z's step is computed once for z and
        once for y, which is cheaper than to keep it.
      eps: outside the root.
      gamma: the rate of z.
      decay: the part of y that z loses.
      z_part: by which y moves towards the new z.
      step_part: part of z's step that y takes besides.

    Returns:
      update of y, z, nu.
    """
    nu = moments.update_square(nu, _tree.abs_squared(g), weight2)

    def step(nu_scale: jax.Array) -> jax.Array:
        denominator = jnp.sqrt(nu * nu_scale) + eps
        step = moments.scale(moments.divide_or_zero(g, denominator), gamma)
        step = moments.rounded(step, g)
        return step + moments.product(p, decay) if is_decayed else step

    # By the new z, not the old one: z can then be overwritten before y is. And neither
    # is rounded beside p, as their sum is in the end: see `moments.rounded`.
    z = z - step(nu_scale)
    towards = moments.rounded(moments.scale(z - p, z_part), g)
    besides = moments.rounded(moments.scale(step(same_scale), step_part), z)
    update = towards - besides
    return update, z, nu


def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: Any = 2.0,
    state_dtype: Any = None,
    *,
    mask: Mask = None,
    nu_dtype: Any = None,
    bias_correction_of: str = "rate",
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """AdamW that averages its iterates, and needs no decaying learning rate.

        z <- z - gamma (g / (sqrt(nu) + eps) + weight_decay y)
        x <- (1 - c) x + c z,   c = gamma^2 / (sum of all gamma^2)
        y <- b1 x + (1 - b1) z

    Keep the parameters in float32 and cast them in the loss: the average lives in y,
    and a y held in 16 bits loses the small steps towards it.

    The parameters that you train are y. Evaluate and save x; training goes on from y:

        updates, state = tx.update(jax.grad(loss)(params), state, params)   # at y
        params = adamx.apply_updates(params, updates)
        score = evaluate(adamx.schedule_free_eval_params(state, params))    # at x

    Args:
      learning_rate: parameter units per step; usually 1 to 10 times AdamW's. A schedule
        is multiplied by the warmup too; a falling one defeats the purpose.
      warmup_steps: >= 0, length of the linear warmup: the first step has the rate
        learning_rate / warmup_steps. None or 0: none.
      b1: in (0, 1), how near y is to the average; takes the place of momentum. With
        0, y would be z, and x unknown.
      b2: see `scale_by_adam`.
      eps: see `scale_by_adam`; beside the uncorrected sqrt(nu), so that it acts like
        eps / sqrt(1 - b2^t) in Adam.
      weight_decay: see `add_decoupled_weight_decay`; a multiple of y, taken off z.
      weight_lr_power: >= 0, an average weighs step t by gamma_t to this power; 0: all
        alike.
      state_dtype: dtype of z; None: the parameter's, but at least float32: in bfloat16
        z, which takes the small steps, would stand still.
      mask: which parameters decay; see `add_decoupled_weight_decay`.
      nu_dtype: see `scale_by_adam`.
      bias_correction_of: "rate": gamma holds sqrt(1 - b2^t), as in the paper, so that
        decay and averaging weight begin small. "nu": nu is divided by 1 - b2^t, as in
        the authors' later code and in Optax.
      independent_decay: whether z loses `weight_decay` times y a step, not gamma times
        that.

    Returns:
      The optimizer; its update needs `params`, and is the change of y. State:
      `ScheduleFreeAdamWState`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; b1 = 0; no `params`.

    >>> import jax.numpy as jnp, optax
    >>> tx = schedule_free_adamw(0.1)
    >>> params = jnp.array([1.0])
    >>> updates, state = tx.update(jnp.array([3.0]), tx.init(params), params)
    >>> round(float(optax.apply_updates(params, updates)[0]), 6)
    0.9

    Source: Defazio et al. (2024), Algorithm 1. Against
    `optax.contrib.schedule_free_adamw`: the bias correction (see above), the averaging
    weight of the step's own rate and not of the largest so far, a warmup that begins at
    1 / warmup_steps and not at 0, and z in float32 for 16-bit parameters.
    """
    _checks.check_learning_rate("learning_rate", learning_rate)
    _check_warmup(warmup_steps)
    _check_interpolation(b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_weight_decay("weight_decay", weight_decay)
    _checks.check_non_negative("weight_lr_power", weight_lr_power)
    _checks.check_choice("bias_correction_of", bias_correction_of, ("rate", "nu"))
    _checks.check_flag("independent_decay", independent_decay)
    moments.refuse_codec(
        "state_dtype",
        state_dtype,
        "z holds parameters, to which small steps are added. Pass a codec as nu_dtype "
        "only.",
    )
    state_dtype = _checks.check_dtype("state_dtype", state_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"nu": ("b2", b2)}
    is_free = _checks.is_zero(weight_decay)

    def init(params: PyTree) -> ScheduleFreeAdamWState:
        count = jnp.zeros((), jnp.int32)
        if jax.tree.leaves(params):  # not for the placeholder of map_params
            expand_mask("mask", mask, params)
        b = _scalars.resolve("b1", b1, count, allow_16_bit=False)
        rate = _scalars.resolve("learning_rate", learning_rate, count)
        lost = _scalars.resolve("weight_decay", weight_decay, count)
        rates = {"applied_learning_rate": rate, "applied_weight_decay": lost}
        return ScheduleFreeAdamWState(
            count=count,
            z=_copy(params, state_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(eps=eps, weight_sum=0.0, weight_sum_rest=0.0),
            **_scalars.records(
                rates | {"b1": b, "extrapolation": (1.0 - b) / b}, scalar_dtype()
            ),
        )

    def update(
        updates: PyTree,
        state: ScheduleFreeAdamWState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScheduleFreeAdamWState]:
        del extra_args
        _checks.check_state(state, ScheduleFreeAdamWState, "schedule_free_adamw")
        if jax.tree.leaves(updates):
            _checks.check_has_params(params, "the step depends on them")
        count, dtype = _tree.increment(state.count), state.weight_sum.dtype
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, eps=eps, b1=b1)
        power = _scalars.resolve("weight_lr_power", weight_lr_power, state.count)
        lost = _scalars.resolve("weight_decay", weight_decay, state.count)
        rate = _scalars.resolve("learning_rate", learning_rate, state.count)
        rate = jnp.asarray(rate, dtype)
        if warmup_steps is not None:
            warmup = _scalars.resolve("warmup_steps", warmup_steps, state.count)
            whole = jnp.maximum(jnp.asarray(warmup, dtype), 1.0)
            rate = rate * jnp.minimum(count.astype(dtype) / whole, 1.0)
        correction = jnp.asarray(average["nu"].correction, dtype)
        is_of_rate = bias_correction_of == "rate"
        gamma = rate * jnp.sqrt(correction) if is_of_rate else rate
        nu_scale = jnp.ones_like(correction) if is_of_rate else 1.0 / correction
        c, sums = _averaging(state, gamma, power)
        b = used.pop("b1")
        if _checks.is_schedule(b1):  # it may return a float, another one next time
            b = jnp.asarray(b, dtype)
        z_part, step_part = c, (1.0 - b) * (1.0 - c)
        if not isinstance(b, float):  # it may have changed since y was formed
            z_part = c + (1.0 - c) * ((state.b1 - b) / state.b1)
            step_part = (1.0 - c) * b * state.extrapolation
        updates, new = moments.apply_rule(
            schedule_free_leaf,
            updates,
            params,
            {"z": state.z},
            {"nu": state.nu},
            each={"is_decayed": _decayed(mask, params, updates, is_free)},
            reads_params=True,
            dtype_argument="state_dtype",
            weight2=average["nu"].weight,
            nu_scale=nu_scale,
            same_scale=moments.unrelated(nu_scale),
            gamma=gamma,
            decay=lost if independent_decay else gamma * lost,
            z_part=z_part,
            step_part=step_part,
            **used,
        )
        recorded |= used | sums | {"b1": b, "extrapolation": (1.0 - b) / b}
        recorded |= {"applied_learning_rate": rate, "applied_weight_decay": lost}
        recorded = _scalars.records(recorded, dtype)
        return updates, ScheduleFreeAdamWState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def _copy(params: PyTree, dtype: Any) -> PyTree:
    """z at the start: the parameters, in buffers of its own, in at least float32."""
    _tree.check_inexact(params, "parameter")

    def leaf(p: Any) -> jax.Array:
        kind = dtype or at_least_single(dtype_of(p))
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.zeros(p.shape, kind)
        return jnp.array(p, kind, copy=True)

    return jax.tree.map(leaf, params)


def _decayed(mask: Mask, params: PyTree, updates: PyTree, is_free: bool) -> list[bool]:
    """For each leaf of the gradient, whether it decays."""
    if is_free:
        return [False] * len(jax.tree.leaves(updates))
    return _tree.leaves_below(updates, expand_mask("mask", mask, params))


def _averaging(
    state: ScheduleFreeAdamWState, gamma: jax.Array, power: Any
) -> tuple[jax.Array, dict[str, Any]]:
    """c of this step; and the sum of weights, which without its rest would stall."""
    is_square = isinstance(power, float) and power == 2.0
    weight = gamma * gamma if is_square else gamma ** jnp.asarray(power, gamma.dtype)
    change = weight + state.weight_sum_rest
    total = state.weight_sum + change
    rest = change - (total - state.weight_sum)
    return moments.divide_or_zero(weight, total), {
        "weight_sum": total,
        "weight_sum_rest": rest,
    }


def _check_interpolation(b1: Any) -> None:
    _checks.check_decay_rate("b1", b1)
    value = None if callable(b1) else _checks.host_value("b1", b1, "in (0, 1)")
    if value == 0.0:
        raise ValueError(
            "`b1` must be in (0, 1), got 0.0: y would be z, and the average x could "
            "not be recovered from them. Use e.g. 0.9."
        )


def _check_warmup(warmup_steps: Any) -> None:
    if warmup_steps is None or isinstance(warmup_steps, jax.core.Tracer):
        return
    _checks.check_steps("warmup_steps", warmup_steps, minimum=0)
