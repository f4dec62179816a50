"""NUMBERS -> SVG: scales, fewer columns, and charts as text.

The drawing is stretched to the width of the page; axis labels are HTML beside it, so
that they keep their size on a phone.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

NO_VALUE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
UNITS = 1000  # of a drawing, across and down
_LARGE, _SMALL = 1e300, 1e-290  # a scale has room above and nine decades below


def escape(text: object) -> str:
    """For HTML, in text and in quoted attributes."""
    return html.escape(str(text), quote=True)


def linked(text: object, place: str | None) -> str:
    """Escaped, and a link to a place on the page where there is one."""
    return f'<a href="#{place}">{escape(text)}</a>' if place else escape(text)


def short(number: float) -> str:
    """1.2, 3e-5, 12,000: three digits."""
    if not math.isfinite(number):
        return NO_VALUE if math.isnan(number) else "∞" if number > 0 else f"{_MINUS}∞"
    size = abs(number)
    if size and not 1e-3 <= size < 1e5:
        mantissa, exponent = f"{number:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}".replace("-", _MINUS)
    if size >= 1000 or number == int(number):
        return f"{number:,.0f}".replace("-", _MINUS)
    return f"{number:.3g}".replace("-", _MINUS)


# ---------------------------------------------------------------------------- scales


def drawable(values: np.ndarray) -> np.ndarray:
    """float64, NaN where not finite; cut off where sums and ratios leave its range.

    Above 1e300, and to 0 below 1e-290.
    """
    values = np.asarray(values, np.float64)
    values = np.where(np.isfinite(values), np.clip(values, -_LARGE, _LARGE), np.nan)
    return np.where(np.abs(values) < _SMALL, 0.0, values)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where a value stands between `low` (0) and `high` (1)."""

    low: float
    high: float
    is_log: bool = False

    def places(self, values: np.ndarray) -> np.ndarray:
        """In [0, 1], cut off there; NaN where a value is not finite."""
        values = drawable(values)
        low, high = self.low, self.high
        if self.is_log:
            values = np.log(
                np.where(values > 0, values, np.where(values <= 0, low, values))
            )
            low, high = math.log(low), math.log(high)
        return np.clip((values - low) / (high - low), 0, 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers inside."""
        if not self.is_log:
            return _round_numbers(self.low, self.high, most)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [k * 10.0**p for p in range(first, last + 1) for k in steps]
            found = [
                x for x in found if self.low <= x * 1.001 and x <= self.high * 1.001
            ]
            if len(found) <= most:
                break
        if len(found) < 2:
            return _round_numbers(self.low, self.high, 3)
        return found[:: math.ceil(len(found) / most)]


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def scale_of(
    values: np.ndarray, *, is_log: bool | None = None, include: Sequence[float] = ()
) -> Scale:
    """A scale that holds the finite values; logarithmic where they are positive and far
    apart (`is_log=None`). A logarithmic one reaches down nine decades, no further.
    """
    found = drawable(values).ravel()
    found = np.append(found[np.isfinite(found)], include)
    positive = found[found > 0]
    if is_log is None:
        is_log = bool(
            len(found)
            and len(positive) == len(found)
            and found.max() > 20 * found.min()
        )
    if is_log:
        if not len(positive):
            return Scale(0.1, 1.0, True)
        high = float(positive.max())
        low = max(float(positive.min()), high * 1e-9)
        room = max((high / low) ** 0.05, 1.1)
        return Scale(low / room, high * room, True)
    if not len(found):
        return Scale(0.0, 1.0)
    low, high = float(found.min()), float(found.max())
    room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return Scale(0.0 if 0 <= low < 0.3 * high else low - room, high + room)


def time_scale(*steps: np.ndarray) -> Scale:
    """From the first to the last of all steps."""
    every = np.concatenate([np.asarray(s, np.float64) for s in steps] or [np.zeros(0)])
    if not len(every):
        return Scale(0.0, 1.0)
    low, high = float(every.min()), float(every.max())
    room = max(0.5, 1e-9 * abs(low))  # that a float of its size can tell
    return Scale(low, high) if high > low else Scale(low - room, high + room)


# --------------------------------------------------------------------- fewer columns


def fewer(values: np.ndarray, most: int, how: str = "median") -> np.ndarray:
    """The last axis in at most `most` runs of neighbours: their median, mean, least or
    greatest finite value, NaN where none is finite. They are to be drawn: `drawable`.
    """
    values = drawable(values)
    count = values.shape[-1]
    if count <= most:
        return values
    edges = np.linspace(0, count, most + 1).astype(int)
    runs = [_REDUCE[how](values[..., a:b]) for a, b in itertools.pairwise(edges)]
    return np.stack(runs, axis=-1)


def _median(block: np.ndarray) -> np.ndarray:
    # Not nanmedian: it warns where nothing is finite, and is slow.
    is_finite = np.isfinite(block)
    ordered = np.sort(np.where(is_finite, block, np.inf), axis=-1)
    count = is_finite.sum(-1)
    low = np.maximum(count - 1, 0) // 2
    pair = np.stack([low, np.maximum(count // 2, low)], axis=-1)
    return np.where(count, np.take_along_axis(ordered, pair, -1).mean(-1), np.nan)


def _extreme(
    pick: Callable[..., np.ndarray], empty: float
) -> Callable[..., np.ndarray]:
    def reduce(block: np.ndarray) -> np.ndarray:
        is_finite = np.isfinite(block)
        found = pick(np.where(is_finite, block, empty), axis=-1)
        return np.where(is_finite.any(-1), found, np.nan)

    return reduce


def _mean(block: np.ndarray) -> np.ndarray:
    is_finite = np.isfinite(block)
    count = is_finite.sum(-1)
    total = np.where(is_finite, block, 0).sum(-1)
    return np.where(count, total / np.maximum(count, 1), np.nan)


_REDUCE = {
    "median": _median,
    "mean": _mean,
    "least": _extreme(np.min, np.inf),
    "greatest": _extreme(np.max, -np.inf),
}


# ---------------------------------------------------------------------------- paths


def _runs(is_there: np.ndarray) -> Iterable[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_there.astype(int), [0]])))
    return (slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True))


def _points(x: np.ndarray, y: np.ndarray) -> tuple[list[int], list[int]]:
    return np.rint(x * UNITS).astype(int).tolist(), np.rint((1 - y) * UNITS).astype(
        int
    ).tolist()


def line(x: np.ndarray, y: np.ndarray) -> str:
    """The `d` of a line through places; a gap where one is NaN, a dot between two."""
    parts = []
    for run in _runs(np.isfinite(x) & np.isfinite(y)):
        xs, ys = _points(x[run], y[run])
        rest = " ".join(f"{a} {b}" for a, b in zip(xs[1:], ys[1:], strict=True))
        parts.append(f"M{xs[0]} {ys[0]}" + (f"L{rest}" if rest else "h0"))
    return "".join(parts)


def dots(x: np.ndarray, y: np.ndarray) -> str:
    """The `d` of a dot at each place: lines of no length with round ends."""
    x, y = np.broadcast_arrays(x, y)
    is_there = np.isfinite(x) & np.isfinite(y)
    xs, ys = _points(x[is_there], y[is_there])
    return "".join(f"M{a} {b}h0" for a, b in zip(xs, ys, strict=True))


def uprights(x: np.ndarray) -> str:
    """The `d` of a line from bottom to top at each place."""
    return "".join(f"M{round(UNITS * at)} {UNITS}V0" for at in x.tolist())


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """The `d` of the area between two lines."""
    parts = []
    for run in _runs(np.isfinite(x) & np.isfinite(low) & np.isfinite(high)):
        xs, tops = _points(x[run], high[run])
        _, bottoms = _points(x[run], low[run])
        there = [f"{a} {b}" for a, b in zip(xs, tops, strict=True)]
        back = [f"{a} {b}" for a, b in zip(xs[::-1], bottoms[::-1], strict=True)]
        parts.append(f"M{' '.join(there)}L{' '.join(back)}Z")
    return "".join(parts)


# --------------------------------------------------------------------------- charts


@dataclasses.dataclass(frozen=True)
class Series:
    """One drawn thing.

    Attributes:
      name: in the legend and the tooltip; "" for neither.
      kind: CSS class: colour, width and dashes.
      path: the `d`.
      is_read: whether the tooltip gives its values.
    """

    name: str
    kind: str
    path: str
    is_read: bool = True


def drawing(series: Sequence[Series], *, label: str, grid: str = "") -> str:
    """The SVG alone."""
    paths = "".join(
        f'<path class="{one.kind}" d="{one.path}"'
        + (f' data-name="{escape(one.name)}"' if one.is_read and one.name else "")
        + "/>"
        for one in series
        if one.path
    )
    return (
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{grid}{paths}</svg>'
    )


def chart(
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    *,
    label: str,
    height: int = 220,
    marks: Sequence[tuple[float, str]] = (),
    ticks: int = 5,
) -> str:
    """A chart with axes and legend; `marks`: dashed lines at a value, with a name."""
    values = y.ticks(ticks)
    levels = [(v, short(v), "grid") for v in values]
    levels += [(v, name, "mark") for v, name in marks]
    grid = "".join(
        f'<path class="{kind}" d="M0 {round(UNITS * _from_top(y, v))}H{UNITS}"/>'
        for v, _, kind in levels
    )
    named = [one for one in series if one.name and one.path]
    legend = "".join(
        f'<li><svg viewBox="0 0 24 10" aria-hidden="true"><path class="{one.kind}" '
        f'd="{"M2 5h20v4h-20z" if "band" in one.kind else _sample(one.kind)}"/></svg>'
        f"{escape(one.name)}</li>"
        for one in named
    )
    axis = "".join(
        f'<span style="top:{100 * _from_top(y, v):.1f}%">{escape(short(v))}</span>'
        for v in values
    )
    named_marks = "".join(
        f'<b style="top:{100 * _from_top(y, v):.1f}%">{escape(name)}</b>'
        for v, name in marks
    )
    return (
        f'<div class="chart" style="--h:{height}px" data-x="{x.low!r} {x.high!r}" '
        f'data-y="{y.low!r} {y.high!r} {int(y.is_log)}">'
        + (f'<ul class="legend">{legend}</ul>' if len(named) > 1 else "")
        + f'<div class="frame"><div class="ys" aria-hidden="true">{axis}</div>'
        f'<div class="plot">{drawing(series, label=label, grid=grid)}{named_marks}'
        f"</div>{x_axis(x)}</div></div>"
    )


def _from_top(y: Scale, value: float) -> float:
    return 1 - float(y.places(np.array(value)))


def _sample(kind: str) -> str:
    if "dots" in kind:
        return "M6 5h0M18 5h0"
    return "M12 0v10" if "lost" in kind else "M2 5h20"


def x_axis(x: Scale, places: Sequence[tuple[float, str]] | None = None) -> str:
    """Labels below; `places` where the axis is no scale of steps."""
    if places is None:
        places = [
            (float(x.places(np.array(v))), short(v))
            for v in x.ticks(6)
            if v == int(v) or x.high - x.low < 2
        ]
    labels = "".join(
        f'<span style="left:{100 * place:.1f}%">{escape(text)}</span>'
        for place, text in places
        if 0.0 <= place <= 0.97
    )
    return f'<div class="xs" aria-hidden="true">{labels}<i>step</i></div>'
