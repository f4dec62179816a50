"""The learning rate: the last factor of an update, recorded where it is applied.

update = -learning_rate(step) * update
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _scalars, _tree, moments
from adamx._traced import traced_once
from adamx._types import (
    GradientTransformationExtraArgs,
    PyTree,
    ScalarOrSchedule,
    real_dtype,
    scalar_dtype,
)


class ScaleByLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate` for a rate that is no schedule; 8 bytes.

    Attributes:
      step: int32 scalar, steps taken.
      applied_learning_rate: float32 scalar, the rate of the last step; before the first
        one, the rate that it will have.
    """

    step: Any
    applied_learning_rate: Any

    def readings(self) -> dict[str, Any]:
        """The rate, and the steps taken."""
        return {"count": self.step, "learning_rate": self.applied_learning_rate}


class ScaleByScheduledLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate` for a schedule; 8 bytes.

    A type of its own, so that `optax.tree.get(state, "count")` and `optax.tree.set`
    find a field named `count` exactly where Optax's states have one.

    Attributes:
      count: int32 scalar, steps taken: the schedule's position.
      applied_learning_rate: as in `ScaleByLearningRateState`.
    """

    count: Any
    applied_learning_rate: Any

    def readings(self) -> dict[str, Any]:
        """The rate, and the steps taken."""
        return {"count": self.count, "learning_rate": self.applied_learning_rate}


def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> GradientTransformationExtraArgs:
    """Multiplies the update by minus the learning rate, and records the rate.

        update = -learning_rate(count) * update

    Args:
      learning_rate: parameter units per step, >= 0; a number, an array, a tracer or a
        schedule (asked for the number of steps taken before this one). None: no
        scaling and no state.
      flip_sign: False multiplies by plus the rate.

    Returns:
      The transformation. The product is taken in at least float32 and rounded to the
      update's own dtype once.

    Raises:
      ValueError, TypeError: the rate is negative, not finite or not a number.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_learning_rate(0.5)
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> float(updates[0]), float(state.applied_learning_rate)
    (-1.0, 0.5)
    """
    _checks.check_flag("flip_sign", flip_sign)
    if learning_rate is None:
        return optax.with_extra_args_support(optax.identity())
    _checks.check_learning_rate("learning_rate", learning_rate)
    kind = (
        ScaleByScheduledLearningRateState
        if _checks.is_schedule(learning_rate)
        else ScaleByLearningRateState
    )

    def init(params: PyTree) -> tuple[Any, ...]:
        del params
        count = jnp.zeros((), jnp.int32)
        rate = _scalars.resolve("learning_rate", learning_rate, count)
        return kind(count, _scalars.record(rate, scalar_dtype()))

    def update(
        updates: PyTree,
        state: tuple[Any, ...],
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, tuple[Any, ...]]:
        del extra_args
        _checks.check_state(state, kind, "scale_by_learning_rate")
        _tree.check_inexact(updates, "update")
        if params is not None:
            _tree.check_like_params(updates, params)
        before, last = state
        rate = _scalars.resolve("learning_rate", learning_rate, before)
        scaled = scale_tree(updates, -rate if flip_sign else rate)
        return scaled, kind(_tree.increment(before), _scalars.record(rate, last.dtype))

    return GradientTransformationExtraArgs(init, update)


def scale_tree(updates: PyTree, factor: Any) -> PyTree:
    """factor * updates, in at least float32, rounded once to each leaf's own dtype."""
    scaled = traced_once(_scaled)
    return jax.tree.map(lambda u: scaled(u, factor), updates)


def _scaled(u: Any, factor: Any) -> jax.Array:
    x = _tree.wide(u)
    scalar = jnp.asarray(factor, real_dtype(x.dtype))
    return moments.scale(x, scalar).astype(jnp.asarray(u).dtype)
