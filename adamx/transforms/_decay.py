"""Decoupled weight decay: the parameter itself joins the update.

    update = update + weight_decay * p

Placed after the moments and before the learning rate, so that the parameter shrinks by
the factor (1 - learning_rate * weight_decay) a step whatever its gradient's size. Put
before the moments it is the coupled form (L2), which Adam divides away: see `adam_l2`.

Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019),
Algorithm 2, line 12. Difference: their decay is multiplied by the schedule multiplier
only; here, as in PyTorch and Optax, by the whole learning rate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, moments
from adamx._traced import traced_once
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    PyTree,
    ScalarOrSchedule,
    real_dtype,
    scalar_dtype,
    update_dtype,
)
from adamx.transforms._mask import expand_mask


class AddDecoupledWeightDecayState(NamedTuple):
    """State of `add_decoupled_weight_decay`; 4 or 8 bytes in all.

    Attributes:
      step: int32 scalar, the schedule's position; None where the rate is no schedule.
      applied_weight_decay: float32 scalar, the rate of the last step.
    """

    step: Any
    applied_weight_decay: Any

    def readings(self) -> dict[str, Any]:
        """The decay rate."""
        return {"count": self.step, "weight_decay": self.applied_weight_decay}


def add_decoupled_weight_decay(
    weight_decay: ScalarOrSchedule = 0.0, mask: Mask = None
) -> GradientTransformationExtraArgs:
    """Adds weight_decay * parameter to the update.

        update = update + weight_decay * p      where the mask is True

    Args:
      weight_decay: with the learning rate behind it, the part of a parameter that is
        lost per step and per unit of learning rate. A number, array, tracer or
        schedule. The number 0 costs nothing and needs no `params`. Behind the learning
        rate the sign is yours: -1e-5 there shrinks by 1e-5 a step. (Optimizers take
        only >= 0.)
      mask: which parameters decay: a tree of bools with the parameters' structure or a
        prefix of it, or a function from the parameters to one. None: all of them.

    Returns:
      The transformation; its update needs `params`. A wrapper that changes directions
      but not their decay (`cautious`) passes the extra argument `on_direction`: a
      function of the update before decay is added and of its sign (1; -1 behind the
      learning rate) that returns the update to add to.

    Raises:
      ValueError, TypeError: a rate that is not finite, no `params`, a mask of another
        structure or with leaves that are not bools.

    >>> import jax.numpy as jnp
    >>> tx = add_decoupled_weight_decay(0.1, mask={"w": True, "b": False})
    >>> params = {"w": jnp.ones(1), "b": jnp.ones(1)}
    >>> zero = {"w": jnp.zeros(1), "b": jnp.zeros(1)}
    >>> updates, _ = tx.update(zero, tx.init(params), params)
    >>> [round(float(updates[k][0]), 6) for k in ("w", "b")]
    [0.1, 0.0]
    """
    return _weight_decay(weight_decay, mask, sign=1.0)


def subtract_weight_decay(
    weight_decay: ScalarOrSchedule, mask: Mask = None
) -> GradientTransformationExtraArgs:
    """Decay behind the learning rate and independent of it: update - weight_decay * p.

    The state is that of `add_decoupled_weight_decay`, and records the rate as given.
    """
    return _weight_decay(weight_decay, mask, sign=-1.0)


def add_coupled_weight_decay(
    weight_decay: ScalarOrSchedule, mask: Mask = None
) -> GradientTransformationExtraArgs:
    """The same sum with a gradient, not with a direction: before the moments (L2)."""
    return _weight_decay(weight_decay, mask, sign=1.0, is_coupled=True)


def _weight_decay(
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    *,
    sign: float,
    is_coupled: bool = False,
) -> GradientTransformationExtraArgs:
    _checks.check_finite("weight_decay", weight_decay)
    scheduled = _checks.is_schedule(weight_decay)
    is_nothing = _checks.is_zero(weight_decay)

    def init(params: PyTree) -> AddDecoupledWeightDecayState:
        if jax.tree.leaves(params):  # not for the placeholder of map_params
            _tree.check_inexact(params, "parameter")
            expand_mask("mask", mask, params)
        count = jnp.zeros((), jnp.int32)
        rate = _scalars.resolve("weight_decay", weight_decay, count)
        return AddDecoupledWeightDecayState(
            step=count if scheduled else None,
            applied_weight_decay=_scalars.record(rate, scalar_dtype()),
        )

    def update(
        updates: PyTree,
        state: AddDecoupledWeightDecayState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AddDecoupledWeightDecayState]:
        if not jax.tree.leaves(updates):
            return updates, state
        _checks.check_state(
            state, AddDecoupledWeightDecayState, "add_decoupled_weight_decay"
        )
        if not is_nothing:
            _checks.check_has_params(params, "weight decay is a multiple of them")
        if params is not None:
            _tree.check_like_params(updates, params)
        _tree.check_inexact(updates, "gradient")
        rate = _scalars.resolve("weight_decay", weight_decay, state.step)
        recorded = _scalars.record(rate, state.applied_weight_decay.dtype)
        after = _tree.increment(state.step) if scheduled else None
        on_direction = extra_args.get("on_direction")
        if on_direction is not None and not is_coupled:
            updates = on_direction(updates, sign)
        if not is_nothing:
            decays = expand_mask("mask", mask, params)
            decay_once = traced_once(decay_leaf)

            def leaf(u: Any, p: Any, is_decayed: bool) -> tuple[Any]:
                if is_decayed:
                    return (decay_once(u, p, sign * rate),)
                return (jnp.asarray(u, update_dtype(u, p)),)

            (updates,) = _tree.map_leaves(leaf, 1, updates, params, decays)
        return updates, AddDecoupledWeightDecayState(after, recorded)

    return GradientTransformationExtraArgs(init, update)


def decay_leaf(u: Any, p: Any, rate: Any) -> jax.Array:
    """u + rate * p in at least float32, rounded to the wider dtype of both."""
    dtype = update_dtype(u, p)
    x = _tree.wide(jnp.asarray(u, dtype))
    decayed = moments.scale(
        jnp.asarray(p).astype(x.dtype), jnp.asarray(rate, real_dtype(x.dtype))
    )
    return (x + moments.rounded(decayed, x)).astype(dtype)
