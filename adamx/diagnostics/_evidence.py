"""HISTORY -> WHAT RULES LOOK AT: the settled, recent measurements of a run.

A few numbers of our own keep passing states from being called illnesses; all rules by
layer share them. They were fixed before any run that tests them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from adamx.diagnostics._history import History

START = 50  # steps not judged: five memories of b1 = 0.9; then m_hat has forgotten 0
WARM = 0.9  # of the highest rate: below it, at first, the rate still warms up
WINDOW = 10  # the last settled measurements, which are judged
LEAST = 5  # of them that must be known; fewer: no judgement
LASTING = 0.8  # the share of the known ones that must show the symptom
SOLVED = 0.01  # of the first loss: gradients are about 0
SOLVED_RECORDS = 5
BEGAN_RECORDS = 5
BLOWN_UP = 0.5  # of the first loss, above it
NOISE_RECORDS = 20
TO_DEVIATION = 1.4826  # of Gaussian noise: its deviation over the median of its size


class Sign(NamedTuple):
    """A symptom as a rule sees it.

    Attributes:
      kind: a name in `_advice.WORDS`.
      layer: its name; None: the whole run.
      severity: "severe", "warning" or "info".
      evidence: numbers, and the steps that they come from.
    """

    kind: str
    layer: str | None
    severity: str
    evidence: dict[str, Any]


class Run:
    """The measurements of a history by number, and which of them are judged.

    Attributes:
      history: it.
      least: how many of the recent measurements must be known.
      layers: their names.
      steps: of all measurements, (n,).
      rate: the rate then in units of its highest, (n,); 1 where it is not recorded.
      settled: which are behind the start and the warmup, (n,) bool.
    """

    def __init__(self, history: "History", least: int):
        self.history = history
        self.least = least
        self.layers = history.layers
        self.steps = history.measured_steps
        self._numbers = history.numbers
        self._known: dict[str, np.ndarray] = {}
        records = history.steps
        rate, warm = relative_rate(history)
        at = np.searchsorted(records, self.steps, side="right") - 1
        self.rate = rate[np.maximum(at, 0)] if len(rate) else np.ones(len(self.steps))
        self.settled = self.steps >= max(START, warm)

    def number(self, name: str | None) -> np.ndarray:
        """All its measurements, (layers, n); NaN where there are none."""
        if name is None or name not in self._numbers:
            return np.full((len(self.layers), len(self.steps)), np.nan)
        if name not in self._known:
            self._known[name] = self.history.matrix(name)[1]
        return self._known[name]

    def percentile(self, kind: str, near: float) -> str | None:
        """The number that is the percentile nearest to one, at most 10 away."""
        found = [(abs(q - near), name) for q, name in percentiles(self.history, kind)]
        return min((f for f in found if f[0] <= 10), default=(0.0, None))[1]

    def recent(
        self, name: str | None, among: np.ndarray | None = None, last: int = WINDOW
    ) -> np.ndarray:
        """Its last settled measurements, (layers, up to `last`)."""
        return self.number(name)[:, self.places(among, last)]

    def places(self, among: np.ndarray | None = None, last: int = WINDOW) -> np.ndarray:
        """The places of the last settled measurements (`among`: of those)."""
        return np.flatnonzero(self.settled if among is None else among)[-last:]

    def lasting(
        self, ill: np.ndarray, known: np.ndarray, share: float = LASTING
    ) -> list[int]:
        """The layers that show a symptom in so much of what is known, up to now."""
        if not known.shape[1]:
            return []
        count = known.sum(1)
        is_judged = (count >= self.least) & known[:, -1]
        is_ill = (ill & known).sum(1) >= share * count
        return [int(i) for i in np.flatnonzero(is_judged & is_ill)]

    def evidence(
        self,
        i: int,
        values: Mapping[str, np.ndarray],
        places: Sequence[int] | np.ndarray,
        **limits: float,
    ) -> dict[str, Any]:
        """Medians over the window of one layer, limits, and the steps.

        What was not measured is left out.
        """
        found: dict[str, Any] = {k: median(v[i]) for k, v in values.items()}
        found = {k: v for k, v in found.items() if np.isfinite(v)}
        found |= {name.replace("_", " "): value for name, value in limits.items()}
        return found | span(self.steps[places])


def percentiles(history: "History", kind: str) -> list[tuple[float, str]]:
    """The measured ones of "r", "m", ..., in order: (10.0, "r/p10"), ..."""
    found = []
    for number in history.numbers:
        match = re.fullmatch(rf"{kind}/p(\d+(?:\.\d+)?)", number)
        if match:
            found.append((float(match[1]), number))
    return sorted(found)


def columns_named(history: "History", name: str) -> list[str]:
    """The column of that name, or those of its groups."""
    return [c for c in history.columns if c == name or c.startswith(f"{name}/")]


def span(steps: np.ndarray, what: str = "measurements") -> dict[str, int]:
    """How many measurements (or records), and from which steps."""
    return {
        what: len(steps),
        "first step": int(steps[0]),
        "last step": int(steps[-1]),
    }


def median(values: np.ndarray) -> float:
    """Of the finite ones; NaN where there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def medians(values: np.ndarray) -> np.ndarray:
    """Of each row."""
    return np.array([median(row) for row in values])


def relative_rate(history: "History") -> tuple[np.ndarray, int]:
    """The rate of each record over its highest, and the step at which all are warm.

    Of several groups the largest relative rate. A rate that still rises at the end is
    not warm yet.
    """
    steps, warm = history.steps, 0
    found = np.zeros(len(steps))
    for name in columns_named(history, "learning_rate"):
        values = history.column(name)
        has = np.isfinite(values)
        known, at = values[has], steps[has]
        top = known.max(initial=0.0)
        if top > 0:  # a record without it has the rate of the one before
            latest = np.cumsum(has)
            relative = np.where(latest > 0, known[np.maximum(latest, 1) - 1] / top, 0.0)
            found = np.maximum(found, relative)
            is_rising = len(known) > 1 and known[-1] == top > known[-2]
            when = steps[-1] + 1 if is_rising else at[np.argmax(known >= WARM * top)]
            warm = max(warm, int(when))
    return (found if found.any() else np.ones(len(steps))), warm


def metric(history: "History", name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have it; both empty where none has."""
    if name not in history.columns:
        return np.zeros(0, np.int64), np.zeros(0)
    has = history.is_recorded(name)
    return history.steps[has], history.column(name)[has]


def running_median(values: np.ndarray, width: int, stride: int = 1) -> np.ndarray:
    """Of so many values in a row: (n - width + 1,), or each so many-th of these."""
    rows = np.lib.stride_tricks.sliding_window_view(values, width)
    return np.median(rows[::stride], axis=1)


def fluctuation(values: np.ndarray) -> float:
    """The usual difference from one record to the next; NaN where none is known.

    A deviation: of noise without memory its own, times the root of 2.
    """
    return TO_DEVIATION * median(np.abs(np.diff(values)))


def noise_of(values: np.ndarray) -> float:
    """The `fluctuation` of the first 20 or of the last 20, whichever is less.

    What blows up on its way is quiet at one end. 0 where none is known.
    """
    ends = values[:NOISE_RECORDS], values[-NOISE_RECORDS:]
    return float(np.nan_to_num(np.fmin.reduce([fluctuation(x) for x in ends])))


def began_at(values: np.ndarray) -> float:
    """The loss before the first step: the median of 5 records, or the first one alone.

    The first where the median is half as large again: a rate far too large blows the
    loss up at the first step.
    """
    first, near = float(values[0]), median(values[:BEGAN_RECORDS])
    return first if near > first + BLOWN_UP * abs(first) else near


def around(run: Run, steps: np.ndarray) -> float:
    """The median of the training losses of these steps; NaN without."""
    at, values = metric(run.history, "loss")
    return median(values[(at >= steps[0]) & (at <= steps[-1])])


def has_gradient(run: Run) -> np.ndarray:
    """Whether half of the elements ever had a gradient; true where it is not known."""
    return ~(run.recent(run.percentile("sqrt_v", 50)) == 0)


def elements(run: Run) -> np.ndarray:
    """About how many a layer has: (|g| / median of sqrt(v_hat))^2, its median."""
    size = run.number("grad_norm") / run.number(run.percentile("sqrt_v", 50))
    return np.nan_to_num(medians(size)) ** 2


def layer_rates(run: Run) -> np.ndarray:
    """The rate of each layer: the largest percentile of its step over that of r."""
    named = [
        run.percentile(kind, 90) or run.percentile(kind, 50) for kind in ("step", "r")
    ]
    step, r = (run.recent(name) for name in named)
    return np.where(r > 0, step / np.where(r > 0, r, 1.0), np.nan)


def is_solved(run: Run) -> bool:
    """Whether the loss fell to 1% of its first: gradients go to 0 before v does."""
    _, values = metric(run.history, "loss")
    first, last = median(values[:SOLVED_RECORDS]), median(values[-SOLVED_RECORDS:])
    return bool(len(values) > SOLVED_RECORDS and 0 <= last < SOLVED * first)


Rule = Callable[[Run], Sequence[Sign]]
