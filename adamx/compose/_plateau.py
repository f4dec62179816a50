"""A plateau: a value that has not got better for so many values in a row.

    better   if value < best - rtol * |best| - atol
    plateau  after `patience` values in a row that were not; then the count starts anew

The rule is that of the usual learning-rate reducers (PyTorch's ReduceLROnPlateau,
Optax's reduce_on_plateau), apart from what it is used for. State: scalars only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._types import scalar_dtype


class PlateauState(NamedTuple):
    """State of `plateau`: 20 bytes.

    Attributes:
      best: float32 scalar, the lowest mean so far that was better; inf at first.
      waited: int32 scalar, means in a row that were not better.
      resting: int32 scalar, means that will not be looked at.
      total: float32 scalar, sum of the values of the mean that is being taken.
      taken: int32 scalar, how many they are.
    """

    best: Any
    waited: Any
    resting: Any
    total: Any
    taken: Any


class Plateau(NamedTuple):
    """What `plateau` returns.

    Attributes:
      init: `init() -> state`.
      update: `update(value, state) -> (is_plateau, state)`; is_plateau is a bool
        scalar, True at the value that completes a plateau.
    """

    init: Callable[[], PlateauState]
    update: Callable[[Any, PlateauState], tuple[jax.Array, PlateauState]]


def plateau(
    patience: Any = 10,
    rtol: Any = 1e-4,
    atol: Any = 0.0,
    cooldown: Any = 0,
    accumulation_size: Any = 1,
) -> Plateau:
    """Tells when a value, a validation loss say, has stopped falling.

        better  if value < best - rtol * |best| - atol;   then best <- value

    The value reaches `adam_to_sgd` as the extra argument `value` of update:
    `optimizer.update(model, grads, value=loss)` with flax.nnx. A TrainState's
    apply_gradients hands nothing on: there, call `state.tx.update(..., value=loss)` and
    `state.replace(...)`.

    Args:
      patience: >= 1: so many values in a row that are not better are a plateau.
      rtol: >= 0, in parts of the best value: what counts as better.
      atol: >= 0, in units of the value, likewise.
      cooldown: >= 0: behind a plateau, so many values do not count towards the next.
      accumulation_size: >= 1: the mean of so many values is looked at in the place of
        each. For a loss that is measured every 100 steps and handed over at each step,
        pass 100.

    Returns:
      A `Plateau`: `init() -> state`, `update(value, state) -> (is_plateau, state)`. The
      state has scalars only. A NaN is not better; in a mean it makes that mean NaN.

    Raises:
      ValueError, TypeError: an argument out of range, or no number.

    >>> detector = plateau(patience=2)
    >>> state, found = detector.init(), []
    >>> for loss in (3.0, 2.0, 2.0, 2.1, 2.0):
    ...     is_plateau, state = detector.update(loss, state)
    ...     found.append(bool(is_plateau))
    >>> found
    [False, False, False, True, False]
    """
    for name, value, least in (
        ("patience", patience, 1),
        ("cooldown", cooldown, 0),
        ("accumulation_size", accumulation_size, 1),
    ):
        if not isinstance(value, jax.core.Tracer):
            remedy = "Count values, e.g. patience=10."
            _checks.check_steps(name, value, minimum=least, remedy=remedy)
    for name, value in (("rtol", rtol), ("atol", atol)):
        _checks.check_non_negative(name, value, allow_schedule=False)

    def init() -> PlateauState:
        def count() -> jax.Array:
            return jnp.zeros((), jnp.int32)

        zero = jnp.zeros((), scalar_dtype())
        return PlateauState(
            jnp.full_like(zero, jnp.inf), count(), count(), zero, count()
        )

    def update(value: Any, state: PlateauState) -> tuple[jax.Array, PlateauState]:
        _checks.check_state(state, PlateauState, "plateau")
        value = _scalar_value(value).astype(state.best.dtype)
        total, taken = state.total + value, state.taken + 1
        is_due = taken >= jnp.asarray(accumulation_size).astype(jnp.int32)
        is_plateau, looked = _look(
            total / taken.astype(total.dtype), state, patience, rtol, atol, cooldown
        )
        best, waited, resting = (
            jnp.where(is_due, new, old)
            for new, old in zip(looked, state[:3], strict=True)
        )
        total = jnp.where(is_due, jnp.zeros_like(total), total)
        taken = jnp.where(is_due, jnp.zeros_like(taken), taken)
        after = PlateauState(best, waited, resting, total, taken)
        return is_due & is_plateau, after

    return Plateau(init, update)


def _scalar_value(value: Any) -> jax.Array:
    array = jnp.asarray(value)
    is_real = jnp.issubdtype(array.dtype, jnp.floating) | jnp.issubdtype(
        array.dtype, jnp.integer
    )
    if array.ndim or not is_real:
        raise TypeError(
            "`value` must be a real scalar, the loss to be watched, got "
            f"{_checks.describe_value(value)}; reduce it first, e.g. jnp.mean(losses)."
        )
    return array


def _look(
    value: jax.Array,
    state: PlateauState,
    patience: Any,
    rtol: Any,
    atol: Any,
    cooldown: Any,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Whether a mean completes a plateau; and best, waited and resting behind it."""
    rtol, atol = (jnp.asarray(x).astype(value.dtype) for x in (rtol, atol))
    patience, cooldown = (
        jnp.asarray(x).astype(jnp.int32) for x in (patience, cooldown)
    )
    # inf - rtol * inf would be NaN, and nothing better than it.
    margin = jnp.where(jnp.isinf(state.best), 0.0, rtol * jnp.abs(state.best) + atol)
    is_better = value < state.best - margin
    is_resting = state.resting > 0
    none = jnp.zeros_like(state.waited)
    waited = jnp.where(is_better | is_resting, none, _tree.increment(state.waited))
    is_plateau = waited >= patience
    resting = jnp.where(is_resting, state.resting - 1, none)
    return is_plateau, (
        jnp.where(is_better, value, state.best),
        jnp.where(is_plateau, none, waited),
        jnp.where(is_plateau, cooldown, resting),
    )
