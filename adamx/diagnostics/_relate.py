"""HISTORY -> TABLE: the layers that move with the validation loss.

A pair: between two records of the metric, at steps s < t, its change m(t) - m(s), and
the mean of a layer's number over its measurements since the record before s, up to s.
The number thus comes first and the change later.

Spearman's rank correlation of the pairs: Pearson's of the ranks, ties at their mean.
Early in training both r and the loss drift, and any two drifts correlate; so the rank
of the step is taken out: the partial rank correlation
(c_xy - c_xt c_yt) / sqrt((1 - c_xt^2)(1 - c_yt^2)), t the step.

A layer "moves with" the metric where that partial correlation is larger than noise is
in one table out of 20: |atanh(c)| sqrt((n - 4) / 1.06) above the normal quantile at
1 - 0.05 / (2 k), n pairs, k rows tested (Bonferroni).

Sources: Kendall, "Partial rank correlation", 1942 (the formula); Fieller, Hartley and
Pearson, "Tests for rank correlation coefficients I", 1957 (the variance 1.06 / (n - 3)
of atanh, here with one degree less for the partial one).
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from adamx import _checks
from adamx._printed import Printed
from adamx.diagnostics._record import known

if TYPE_CHECKING:
    from adamx.diagnostics._history import History

_LEVEL = 0.05  # of a false claim in a whole table
_SHOWN = 20  # rows that `print` shows


@dataclasses.dataclass(frozen=True)
class Relation:
    """One number of one layer against the later change of a metric.

    Attributes:
      layer, number: as in `History.series`.
      pairs: how many pairs there are.
      correlation: Spearman's, in [-1, 1]; NaN where there are too few pairs, or where
        one side does not change.
      partial: the same with the rank of the step taken out.
      moves: whether `partial` is beyond what noise gives in one table out of 20.
    """

    layer: str
    number: str
    pairs: int
    correlation: float
    partial: float
    moves: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Relations(Printed):
    """What `History.relate` returns: layers and the later change of a metric.

    A pair is the change of the metric between two of its records, and the mean of the
    layer's number since the record before the first of them, up to it. The correlation
    is Spearman's, of ranks; `partial` has the rank of the step taken out, since two
    drifts always correlate. Positive: a large number comes before a rise of the metric.
    A correlation is no cause, and series that change slowly have fewer independent
    pairs than are counted: a place to look at, not a verdict.

    Attributes:
      rows: `Relation`s, the largest |partial| first.
      metric: its name.
      note: why there is nothing to say, else "".
    """

    rows: tuple[Relation, ...]
    metric: str
    note: str = ""

    @property
    def moving(self) -> tuple[Relation, ...]:
        """Those that move with the metric."""
        return tuple(row for row in self.rows if row.moves)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        if self.note:
            yield Text(f"{self.metric}: {self.note}")
            return
        title = f"Layers and the later change of {self.metric}"
        table = Table(title=Text(title, "table.title"), box=None)
        table.add_column("layer", overflow="fold")
        table.add_column("number", no_wrap=True)
        for name in ("pairs", "rank corr.", "without drift", "moves with it"):
            table.add_column(name, justify="right")
        for row in self.rows[:_SHOWN]:
            figures = (f"{row.correlation:+.2f}", f"{row.partial:+.2f}")
            cells = (row.layer, row.number, str(row.pairs), *figures)
            table.add_row(*map(Text, cells), "yes" if row.moves else "-")
        yield table
        if len(self.rows) > _SHOWN:
            yield Text(f"and {len(self.rows) - _SHOWN} weaker")


def relate(
    history: "History",
    metric: str,
    *,
    numbers: Sequence[str] | None,
    ahead: int,
    min_pairs: int,
) -> Relations:
    """See `History.relate`."""
    ahead = _checks.check_steps(
        "ahead", ahead, remedy="Count records of the metric; 1 is the next one."
    )
    remedy = "Fewer pairs cannot tell a relation from noise; use e.g. 10."
    min_pairs = _checks.check_steps("min_pairs", min_pairs, minimum=5, remedy=remedy)
    if not history.layers:
        raise ValueError(
            "`history` must have diagnostics, got none in its readings; wrap the "
            "optimizer: adamx.diagnose(tx)."
        )
    if metric not in history.columns:
        raise ValueError(
            f"`metric` must be one of {known(history.columns)}, got {metric!r}; pass "
            "it to append: history.append(reading, val_loss=...)."
        )
    if numbers is None:
        numbers = [number for number in history.numbers if number.startswith("r/")]
    for number in numbers:
        if number not in history.numbers:
            raise ValueError(
                f"`numbers` must be among {known(history.numbers)}, got {number!r}; "
                "they are the columns of adamx.diagnose."
            )
    column = history.column(metric)
    is_known = np.isfinite(column)
    steps, values = history.steps[is_known], column[is_known]
    last = np.append(np.diff(steps) > 0, True)[: len(steps)]  # of records of one step
    steps, values = steps[last], values[last]
    # Halves, as the whole may leave the range; only ranks of it are used.
    change = values[ahead:] / 2 - values[:-ahead] / 2
    times = steps[: max(len(steps) - ahead, 0)]
    found = [
        (layer, number, *_correlations(x, change, times, min_pairs))
        for number in numbers
        for layer, x in zip(history.layers, _means(history, number, times), strict=True)
    ]
    if all(pairs < min_pairs for _, _, pairs, _, _ in found):
        most = max((pairs for _, _, pairs, _, _ in found), default=0)
        note = (
            f"{most} pairs are too few to relate it to the layers ({min_pairs} needed)"
        )
        return Relations((), metric, note)
    tested = sum(math.isfinite(partial) for *_, partial in found)
    limit = statistics.NormalDist().inv_cdf(1 - _LEVEL / (2 * max(tested, 1)))
    rows = [
        Relation(layer, number, pairs, plain, partial, _score(partial, pairs) > limit)
        for layer, number, pairs, plain, partial in found
    ]
    rows.sort(key=lambda row: -abs(row.partial) if row.partial == row.partial else 1)
    return Relations(tuple(rows), metric)


def _means(history: "History", number: str, times: np.ndarray) -> np.ndarray:
    """(layers, times): the mean of the measurements since the time before."""
    steps, values = history.matrix(number)
    window = np.searchsorted(times, steps)  # measured at `times[i]`: still window i
    means = np.full((len(values), len(times)), np.nan)
    for i in range(len(times)):
        inside = values[:, window == i]
        count = np.isfinite(inside).sum(1)
        parts = np.where(np.isfinite(inside), inside, 0.0)
        parts = parts / np.maximum(count, 1)[:, None]  # first: the sum may be endless
        means[:, i] = np.where(count > 0, parts.sum(1), np.nan)
    return means


def _correlations(
    x: np.ndarray, y: np.ndarray, times: np.ndarray, min_pairs: int
) -> tuple[int, float, float]:
    """Pairs, the rank correlation, and the one with the step taken out."""
    both = np.isfinite(x) & np.isfinite(y)
    pairs = int(both.sum())
    if pairs < min_pairs:
        return pairs, math.nan, math.nan
    rx, ry, rt = (ranks(v[both]) for v in (x, y, times))
    xy, xt, yt = (_pearson(a, b) for a, b in ((rx, ry), (rx, rt), (ry, rt)))
    rest = (1 - xt * xt) * (1 - yt * yt)
    partial = (xy - xt * yt) / math.sqrt(rest) if rest > 1e-9 else math.nan
    return pairs, xy, partial


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place.ravel()]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else math.nan


def _score(correlation: float, pairs: int) -> float:
    """Its distance from 0 in standard deviations; 0 where it is not known."""
    if not math.isfinite(correlation):
        return 0.0
    bounded = min(abs(correlation), 1 - 1e-12)
    return math.atanh(bounded) * math.sqrt((pairs - 4) / 1.06)
