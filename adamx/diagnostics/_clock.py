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


def step_of(count: int, now: Clock, last: Clock, before: int = 0) -> int:
    """The step of a measurement.

    Args:
      count: at it, of `diagnose`.
      now: at the record that first has it.
      last: at the record before that has a clock, or where counting began.
      before: the step of the record before, where that knows of no `diagnose`.
    """
    if now.seen <= last.seen:  # the optimizer was made anew behind both
        last = Clock(0, max(last.step, before))
    if not last.seen < count < now.seen:  # at the record; or in no order that is known
        return now.step
    elapsed = (count - last.seen) * (now.step - last.step)
    return last.step - (-elapsed // (now.seen - last.seen))


def beginning(now: Clock, count: int, taken: int, before: int = 0) -> Clock:
    """Where counting began, as far as the first record that has a clock tells.

    A step that is passed and above all that was counted is of a run that goes on, or
    of another unit; which of them, nobody can tell. It is taken for the former, which
    errs by less: what was counted is then taken from its own end, one step for one.

    Args:
      now: at that record.
      count: its reading's, of all steps; more than `diagnose` counts, where that
        stands in a stage that began later.
      taken: steps that it says were taken, with those that a guard skipped.
      before: the step of the record before, where that knows of no `diagnose`.
    """
    own = min(now.step, taken)
    earlier = own * max(count - now.seen, 0) // max(count, 1)
    return Clock(0, max(now.step - own + earlier, before))
