"""MEASUREMENT -> STEP: when layers were measured, in the steps of the records.

`adamx.diagnose` counts for itself, and not always what the records count: around
accumulation micro-steps, in a late stage the steps of that stage, from 0 again where
the optimizer was made anew, while what is passed as a step may be tokens. So a count c
of its own is brought to the records' steps between two records, at which both are known
(n counts and step s, before them n' and s'):

    step = s' + (c - n') (s - s') / (n - n')

rounded up: micro-steps belong to the step that they are for. Where both count alike
that is c; where not, it is between the records that it was measured between.
"""

from typing import NamedTuple


class Clock(NamedTuple):
    """What `diagnose` had counted at a step of the records."""

    seen: int
    step: int


def step_of(count: int, now: Clock, last: Clock) -> int:
    """The step of a measurement.

    Args:
      count: at it, of `diagnose`.
      now: at the record that first has it.
      last: at the record before, or where counting began.
    """
    if now.seen <= last.seen:  # the optimizer was made anew behind `last`
        last = Clock(0, last.step)
    if not last.seen < count < now.seen:  # at the record; or in no order that is known
        return now.step
    elapsed = (count - last.seen) * (now.step - last.step)
    return last.step - (-elapsed // (now.seen - last.seen))


def beginning(now: Clock, count: int) -> Clock:
    """Where counting began, as far as the first record tells.

    Args:
      now: at the first record.
      count: its reading's, of all steps; more than `diagnose` counts, where that
        stands in a stage that began later.
    """
    before = max(count - now.seen, 0)
    return Clock(0, now.step * before // max(count, 1))
