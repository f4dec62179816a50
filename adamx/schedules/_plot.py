"""A schedule as a curve."""

from typing import Any

import jax
import numpy as np

from adamx._types import Schedule
from adamx.schedules import _steps


def plot(
    schedule: Schedule, total_steps: int, *, ax: Any = None, label: str | None = None
) -> Any:
    """Draws the rate against the step, at some 1,000 of steps 0 to `total_steps`.

    Args:
      schedule: function step -> rate, one of this package or any other.
      total_steps: last step of the curve, in [1, 2^31 - 1].
      ax: the matplotlib axes to draw on; None: new axes in a new figure. Drawing on
        the same axes again compares schedules.
      label: name of the curve in the legend; None: no legend.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is missing; the extra `adamx[plots]` brings it.

    >>> from adamx import schedules
    >>> cosine = schedules.warmup_cosine(3e-4, 1000, warmup=0.1)
    >>> ax = plot(cosine, 1000, label="cosine")  # doctest: +SKIP
    >>> ax.figure.savefig("cosine.png")  # doctest: +SKIP
    """
    if not callable(schedule):
        raise TypeError(
            f"`schedule` must be a function of the step, got {schedule!r}. Pass e.g. "
            "adamx.schedules.warmup_cosine(3e-4, 1000)."
        )
    total_steps = _steps.check_steps("total_steps", total_steps)
    try:
        import matplotlib.pyplot as plt
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError(
            "`plot` needs matplotlib, got an error on importing it. Install it by "
            "pip install 'adamx[plots]'"
        ) from error
    steps = np.unique(np.linspace(0, total_steps, 1001).astype(np.int32))
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    ax.plot(steps, np.asarray(jax.vmap(schedule)(steps)), label=label)
    ax.set(xlabel="step", ylabel="learning rate")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        ax.set_ylim(bottom=0, auto=True)  # auto: the next curve may be higher
    if label is not None:
        ax.legend(framealpha=0.9, edgecolor="none")
    return ax
