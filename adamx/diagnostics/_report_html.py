"""HISTORY -> HTML: the parts of the page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from adamx.diagnostics import _facts
from adamx.diagnostics._chart import (
    Scale,
    Series,
    band,
    chart,
    dots,
    escape,
    fewer,
    line,
    linked,
    scale_of,
    time_scale,
    uprights,
)
from adamx.diagnostics._evidence import columns_named

if TYPE_CHECKING:
    from adamx.diagnostics._history import History

COLUMNS = 400  # of a chart, at most


# --------------------------------------------------------------------------- the run


def tiles(history: "History") -> str:
    """The first numbers."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}"
        "</small></dd></div>"
        for name, value, remark in _facts.tiles(history)
    )
    return f'<dl class="tiles">{items}</dl>'


def findings(
    found: Sequence[_facts.Advice],
    not_judged: Sequence[str],
    layer_ids: dict[str, str],
) -> str:
    """Cards with advice, or that there are none; what could not be judged."""
    cards = "".join(
        _finding(one, first, layer_ids)
        for one, first in zip(found, _facts.first_alike(found), strict=True)
    )
    none = '<p class="good">✓ None: no rule found anything wrong.</p>'
    text = escape("; ".join(not_judged))
    rest = f"<p>Not judged: {text}.</p>" if not_judged else ""
    return (cards or none) + rest


def _finding(
    one: _facts.Advice, first: _facts.Advice | None, layer_ids: dict[str, str]
) -> str:
    sign = "▲●○"[one.rank]
    where = linked(one.layer or "the whole run", layer_ids.get(one.layer))
    evidence = "".join(
        (f"<div><dt>{escape(name)}</dt>" if name else '<div class="text">')
        + f"<dd>{escape(value)}</dd></div>"
        for name, value in one.evidence
    )
    parts = [("What may cause it", one.causes), ("What to try", one.remedies)]
    lists = "".join(
        f"<div><h4>{title}</h4><ul>"
        + "".join(f"<li>{escape(text)}</li>" for text in texts)
        + "</ul></div>"
        for title, texts in parts
        if texts
    )
    if first is not None:
        lists = f"<p>Causes and what to try: as for {escape(first.layer)}, above.</p>"
    severity = escape(one.severity or "finding")
    return (
        f'<article class="finding rank{one.rank}"><h3><span class="severity">{sign} '
        f"{severity}</span> {escape(one.symptom)}</h3><p>In <b>{where}</b></p>"
        f'<dl class="evidence">{evidence}</dl><div class="advice">{lists}</div>'
        "</article>"
    )


def losses(history: "History") -> str:
    """Training and validation loss; below them the rate, over the same steps."""
    x = time_scale(history.steps)
    names = [n for n in ("loss", "val_loss") if n in history.columns]
    rates = columns_named(history, "learning_rate")
    out = ""
    if names:
        values = np.concatenate([history.column(name) for name in names])
        y, series = scale_of(values), []
        if "loss" in names:
            series += _spread(history, "loss", x, y, "training", "one")
        if "val_loss" in names:
            column = history.column("val_loss")
            known = np.isfinite(column)
            at = fewer(history.steps[known].astype(float), COLUMNS, "mean")
            at, level = x.places(at), y.places(fewer(column[known], COLUMNS, "mean"))
            series += [
                Series("", "two thin", line(at, level)),
                Series("validation (dots)", "two dots", dots(at, level)),
            ]
        scale = "logarithmic" if y.is_log else "linear"
        label = f"Training and validation loss against the step, {scale} scale"
        out += f"<h3>Loss <small>{scale}</small></h3>"
        out += chart(series, x, y, label=label, height=260)
    else:
        out += (
            "<p>No loss was recorded: <code>history.append(reading, loss=…)</code>.</p>"
        )
    if rates:
        y = scale_of(np.concatenate([history.column(r) for r in rates]), is_log=False)
        series = _by_column(history, rates, "learning_rate", x, y)
        label = "Learning rate against the step"
        out += "<h3>Learning rate</h3>"
        out += chart(series, x, y, label=label, height=110, ticks=3)
    return out


def norms(history: "History") -> str:
    """The gradient's global norm, and the steps that were skipped."""
    x = time_scale(history.steps)
    out = ""
    found = columns_named(history, "grad_norm")
    if found:
        y = scale_of(np.concatenate([history.column(name) for name in found]))
        series = (
            _spread(history, found[0], x, y, "global norm", "one")
            if len(found) == 1
            else _by_column(history, found, "grad_norm", x, y)
        )
        scale = "logarithmic" if y.is_log else "linear"
        label = f"Global gradient norm before clipping, against the step, {scale} scale"
        out += f"<h3>Gradient norm <small>before clipping, {scale}</small></h3>"
        out += chart(series, x, y, label=label, height=180)
    found = columns_named(history, "skipped")
    if found:
        values = np.concatenate([history.column(name) for name in found])
        y = scale_of(values, is_log=False, include=(0.0, 1.0))
        series = _by_column(history, found, "skipped", x, y)
        label = "Steps skipped so far, against the step"
        out += "<h3>Skipped steps <small>so far</small></h3>"
        out += chart(series, x, y, label=label, height=110, ticks=3)
    return out or (
        "<p>No norm and no skipped steps were recorded: <code>adamx.clip_by_global_norm"
        "</code> and <code>adamx.guard</code> record them.</p>"
    )


def _spread(
    history: "History", name: str, x: Scale, y: Scale, text: str, colour: str
) -> list[Series]:
    """Mean line, and least to greatest behind it where columns hold several."""
    values, recorded = history.column(name), history.is_recorded(name)
    lost = history.steps[recorded & ~np.isfinite(values)].astype(float)
    steps, values = history.steps[recorded].astype(float), values[recorded]
    at = x.places(fewer(steps, COLUMNS, "mean"))
    series = []
    if len(values) > COLUMNS:
        low, high = (y.places(fewer(values, COLUMNS, k)) for k in ("least", "greatest"))
        named = f"{text}, least to greatest"
        series.append(Series(named, f"{colour} band", band(at, low, high), False))
    level = y.places(fewer(values, COLUMNS, "mean"))
    series.append(Series(text, colour, line(at, level)))
    if len(lost):
        marks = uprights(np.unique(x.places(lost).round(3)))
        series.append(Series("not finite", "lost", marks, False))
    return series


def _by_column(
    history: "History", names: Sequence[str], kind: str, x: Scale, y: Scale
) -> list[Series]:
    """A line for each column, told apart by dashes too; at most eight have a style."""
    series = []
    for k, name in enumerate(names):
        recorded = history.is_recorded(name)
        steps, values = history.steps[recorded], history.column(name)[recorded]
        at = x.places(fewer(steps.astype(float), COLUMNS, "mean"))
        level = y.places(fewer(values, COLUMNS, "mean"))
        text = name.removeprefix(f"{kind}/").replace("_", " ")
        series.append(Series(text, f"line{k % 8}", line(at, level)))
    return series
