"""What the recipes' arguments have in common."""

from typing import Any

from adamx import _checks
from adamx._types import Mask
from adamx.schedules._steps import Num as Num
from adamx.schedules._steps import Span as Span
from adamx.transforms import decay_mask


def decayed(mask: Mask) -> Mask:
    """Which parameters decay; None: matrices, as in `decay_mask`."""
    return decay_mask() if mask is None else mask


def checked_peak(learning_rate: Any) -> Any:
    """The learning rate that a recipe's own schedule rises to or starts from."""
    if _checks.is_schedule(learning_rate):
        raise TypeError(
            "`learning_rate` must be the peak of this recipe's own schedule, a finite "
            f"number >= 0, got the function {learning_rate!r}; pass the number, or "
            "write out the chain of the docstring with your schedule."
        )
    _checks.check_learning_rate("learning_rate", learning_rate)
    return learning_rate
