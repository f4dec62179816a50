"""HISTORY -> WHAT A REPORT SHOWS: shared by the page and the terminal."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adamx import _checks
from adamx.diagnostics import _evidence
from adamx.diagnostics._chart import NO_VALUE, fewer, short
from adamx.diagnostics._evidence import columns_named
from adamx.diagnostics._health import health

if TYPE_CHECKING:
    from adamx.diagnostics._history import History

_PARTS = ("layer", "symptom", "evidence", "likely_causes", "what_to_try", "severity")
_RANKS = {
    **dict.fromkeys(("critical", "severe", "error", "high"), 0),
    **dict.fromkeys(("warning", "medium", "moderate"), 1),
    **dict.fromkeys(("info", "note", "low", "mild"), 2),
}


@dataclasses.dataclass(frozen=True)
class Advice:
    """A finding as text.

    Attributes:
      layer, symptom: as in the finding; layer "" where it is about the whole run.
      severity: its text; rank: 0 severe, 1 worth a look, 2 for information.
      evidence: pairs of name and value; the name "" where it was one text.
      causes, remedies: sentences.
    """

    layer: str
    symptom: str
    severity: str
    rank: int
    evidence: tuple[tuple[str, str], ...]
    causes: tuple[str, ...]
    remedies: tuple[str, ...]


def find(history: "History", findings: Iterable[Any] | None) -> list[Advice]:
    """The findings as text, the severest first; None: those of `adamx.health`."""
    found = health(history) if findings is None else findings
    return sorted((_advice(finding) for finding in found), key=lambda a: a.rank)


def first_alike(advice: Sequence[Advice]) -> list[Advice | None]:
    """For each, the earlier one whose causes and remedies it repeats, else None."""
    seen: dict[Any, Advice] = {}
    found = []
    for one in advice:
        same = (one.symptom, one.causes, one.remedies)
        is_text = bool(one.layer and (one.causes or one.remedies))
        found.append(seen.get(same) if is_text else None)
        if is_text:
            seen.setdefault(same, one)
    return found


def _advice(finding: Any) -> Advice:
    missing = [name for name in _PARTS if not hasattr(finding, name)]
    if missing:
        raise TypeError(
            "`findings` must be findings as adamx.health gives them, got "
            f"{_checks.describe_value(finding)} without {', '.join(missing)}; pass "
            "health(history), or () for none."
        )
    severity = finding.severity
    severity = "" if severity is None else str(getattr(severity, "value", severity))
    evidence = finding.evidence
    if hasattr(evidence, "items"):
        pairs = tuple((str(name), _value(value)) for name, value in evidence.items())
    else:
        pairs = tuple(("", _value(value)) for value in _several(evidence))
    return Advice(
        layer="" if finding.layer is None else str(finding.layer),
        symptom=str(finding.symptom),
        severity=severity,
        rank=_RANKS.get(severity.lower(), 1),
        evidence=pairs,
        causes=tuple(map(str, _several(finding.likely_causes))),
        remedies=tuple(map(str, _several(finding.what_to_try))),
    )


def _several(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return (value,) if isinstance(value, (str, int, float)) else tuple(value)


def _value(value: Any) -> str:
    is_float = isinstance(value, (float, np.floating))
    return short(float(value)) if is_float else str(value)


def natural_order(names: Sequence[str]) -> list[int]:
    """Places of the names with layer_2 before layer_10."""

    def key(i: int) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", names[i])
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]

    return sorted(range(len(names)), key=key)


def common_start(names: Sequence[str]) -> str:
    """What all layers' names begin with, up to a '/'; "" where that is nothing."""
    if len(names) < 2:
        return ""
    split = [name.split("/")[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}/" for part in shared)


def block(name: str) -> str:
    """The name up to its first part with a number: "decoder/layer_3"."""
    parts = name.split("/")
    numbered = [i for i, part in enumerate(parts) if re.search(r"\d", part)]
    return "/".join(parts[: numbered[0] + 1]) if numbered else parts[0]


def elided(name: str, most: int) -> str:
    """The middle left out, so that at most so many characters remain."""
    if len(name) <= most:
        return name
    start = (most - 1) // 2
    return f"{name[:start]}…{name[len(name) - (most - 1 - start) :]}"


def percentiles(history: "History") -> list[tuple[float, str]]:
    """The measured percentiles of r: (10.0, "r/p10"), ... in order."""
    return _evidence.percentiles(history, "r")


def middle(history: "History") -> str | None:
    """The percentile of r nearest to the median."""
    found = percentiles(history)
    return min(found, key=lambda pair: abs(pair[0] - 50))[1] if found else None


def last_values(values: np.ndarray) -> np.ndarray:
    """The last finite value of each row; NaN where there is none."""
    is_finite = np.isfinite(values)
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)
    at = values.shape[-1] - 1 - np.argmax(is_finite[..., ::-1], axis=-1)
    found = np.take_along_axis(values, at[..., None], -1)[..., 0]
    return np.where(is_finite.any(-1), found, np.nan)


def median_of_layers(values: np.ndarray) -> np.ndarray:
    """Of the finite values of each column; NaN where there is none."""
    return fewer(values.T, 1)[:, 0] if values.shape[0] > 1 else values[0]


def tiles(history: "History") -> list[tuple[str, str, str]]:
    """What a look at a run wants first: name, value, remark."""
    steps = history.steps
    out = [("steps", f"{int(steps[-1]):,}", f"{len(history):,} records")]
    for name, text in (("loss", "training loss"), ("val_loss", "validation loss")):
        if name not in history.columns:
            continue
        values = history.column(name)
        known = np.flatnonzero(np.isfinite(values))
        lost = int(np.sum(~np.isfinite(values) & history.is_recorded(name)))
        remark = "never finite"
        if len(known):
            best = known[np.argmin(values[known])]
            remark = f"best {short(values[best])} at step {int(steps[best]):,}"
        if lost:
            remark += f"; {lost:,} not finite"
        out.append((text, short(values[known[-1]]) if len(known) else NO_VALUE, remark))
    for name in columns_named(history, "learning_rate"):
        values = history.column(name)
        text = name.replace("learning_rate", "learning rate").replace("/", ", ", 1)
        top = np.nanmax(values) if np.isfinite(values).any() else np.nan
        out.append((text, short(float(last_values(values))), f"highest {short(top)}"))
    for name in columns_named(history, "skipped"):
        count = float(last_values(history.column(name)))
        text = name.replace("skipped", "skipped steps").replace("/", ", ", 1)
        out.append((text, short(count), f"of {int(steps[-1]):,}"))
    if history.layers:
        measured = len(history.measured_steps)
        out.append(("layers", f"{len(history.layers):,}", f"{measured:,} measurements"))
    return out
