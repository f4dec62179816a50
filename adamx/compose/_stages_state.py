"""The state of `stages`, and what is read of it: only of the stage at work."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx.reading import Diagnostics, Reading, read, unboxed


class StagesState(NamedTuple):
    """State of `stages`: those of all stages, and 16 bytes.

    Attributes:
      inner_states: tuple, one state for each stage; those of the stages that have not
        begun are as their init made them.
      count: int32 scalar, steps taken in all; stays at 2^31 - 1 once there.
      stage: int32 scalar, the stage of the last step, from 0.
      since: int32 scalar, steps taken before that stage's first.
      before: int32 scalar, steps taken before the first of these, where they are in a
        stage of others whose schedules continue; else 0.
    """

    inner_states: Any
    count: Any
    stage: Any
    since: Any
    before: Any

    @property
    def answers_for_inner(self) -> bool:
        """Only the stage at work is to be read."""
        return True

    def readings(self) -> dict[str, Any]:
        """Steps, stage, and what the stage of the last step has recorded."""
        found = _of_stage(unboxed(self.stage), [read(s) for s in self.inner_states])
        own = {"count": self.count, "stage": self.stage, "stage_since": self.since}
        if "skipped" in found:
            own["unseen"] = 0  # what a guard within skips is counted here
        return found | own


def _of_stage(stage: Any, found: list[Reading]) -> dict[str, Any]:
    """What one of several readings says, by kind.

    Where the stage is not one number (a tracer, or one for each member of a batch),
    every kind that any of them has is there, and NaN stands for nothing.
    """
    said = [_numbers(reading) for reading in found]
    if isinstance(stage, jax.ShapeDtypeStruct):
        return said[0]
    if not isinstance(stage, jax.core.Tracer) and np.ndim(stage) == 0:
        return said[int(stage)]
    xp: Any = jnp if isinstance(stage, jax.core.Tracer) else np
    result: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for each in said for kind in each):
        values = [each.get(kind) for each in said]
        measured = [value for value in values if isinstance(value, Diagnostics)]
        if measured:  # with the step of the measurement beside it
            result[kind] = _measured(xp, stage, values)
            continue
        dicts = [value for value in values if isinstance(value, dict)]
        if not dicts:
            result[kind] = _select(xp, stage, values)
            continue
        # A stage without groups has the same number for all of them.
        result[kind] = {
            group: _select(
                xp,
                stage,
                [v.get(group) if isinstance(v, dict) else v for v in values],
            )
            for group in dict.fromkeys(group for each in dicts for group in each)
        }
    return result


def _measured(xp: Any, stage: Any, values: list[Any]) -> Diagnostics:
    """What each member's stage has measured; NaN where that measures nothing.

    What all have counted is known where every stage that measures says it.
    """
    nothing = Diagnostics(0, {}, 0, 0)
    each = [nothing if value is None else value for value in values]
    names: dict[str, dict[str, None]] = {}
    for one in each:
        for layer, numbers in one.layers.items():
            names.setdefault(layer, {}).update(dict.fromkeys(numbers))
    layers = {
        layer: {
            number: _select(
                xp, stage, [one.layers.get(layer, {}).get(number) for one in each]
            )
            for number in numbers
        }
        for layer, numbers in names.items()
    }
    count = _select(xp, stage, [one.count for one in each])
    counted = [one.seen for one in each]
    is_said = all(value is not None for value in counted)
    seen = _select(xp, stage, counted) if is_said else None
    unseen = [0 if one.unseen is None else one.unseen for one in each]
    has_unseen = any(one.unseen is not None for one in values if one is not None)
    own = _select(xp, stage, unseen) if has_unseen else None
    return Diagnostics(count, layers, own, seen)


def _select(xp: Any, stage: Any, values: list[Any]) -> Any:
    """The value of each member's stage; NaN where it is None."""
    known = [xp.asarray(value) for value in values if value is not None]
    is_whole = len(known) == len(values)
    dtype = known[0].dtype
    if not is_whole and not xp.issubdtype(dtype, xp.floating):
        dtype = xp.float32
    result = xp.full(np.shape(stage), 0 if is_whole else xp.nan, dtype)
    for i, value in enumerate(values):
        if value is not None:
            result = xp.where(stage == i, xp.asarray(value).astype(dtype), result)
    return result


def _numbers(reading: Reading) -> dict[str, Any]:
    """All that a reading says, by kind."""
    named = {f.name: getattr(reading, f.name) for f in dataclasses.fields(reading)}
    named |= named.pop("more")
    return {kind: value for kind, value in named.items() if value is not None}
