"""HISTORY -> HTML: the parts of the page that go layer by layer."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from adamx.diagnostics import _facts, _heat
from adamx.diagnostics._chart import (
    Scale,
    Series,
    band,
    chart,
    drawable,
    drawing,
    escape,
    fewer,
    line,
    linked,
    scale_of,
    short,
    time_scale,
    x_axis,
)
from adamx.diagnostics._relate import Relations
from adamx.diagnostics._rules import RATIO as TARGET_RATIO

if TYPE_CHECKING:
    from adamx.diagnostics._history import History

COLUMNS = 400  # of a heat map and of a chart, at most
CARD_COLUMNS = 100  # of a layer's small charts
CARDS_SHOWN = 24  # before the rest is folded away


@dataclasses.dataclass(frozen=True)
class Layers:
    """What all parts share: names in natural order, and their values in that order.

    Attributes:
      names, short_names: in full, and without what all begin with.
      ids: of the layers' cards on the page; empty where there are none.
      steps: of the measurements, (n,).
      values: by number, (layers, n).
    """

    names: list[str]
    short_names: list[str]
    ids: dict[str, str]
    steps: np.ndarray
    values: dict[str, np.ndarray]


def gather(history: "History") -> Layers:
    """All measured numbers of a history."""
    order = _facts.natural_order(history.layers)
    names = [history.layers[i] for i in order]
    start = len(_facts.common_start(names))
    values = {n: history.matrix(n)[1][order] for n in history.numbers}
    has_cards = bool(_facts.percentiles(history))
    ids = {name: f"layer-{i}" for i, name in enumerate(names) if has_cards}
    short_names = [name[start:] for name in names]
    return Layers(names, short_names, ids, history.measured_steps, values)


# ------------------------------------------------------------------------- heat maps

# Number, title, its explanation; the scale: "log", "share" (0 to 1), "sign" (-1 to 1),
# "ratio" (around 1e-3).
_MAPS = [
    ("update_ratio", "Update ratio", "|update| / |parameter|; 1e-3 is grey", "ratio"),
    ("grad_norm", "Gradient norm", "of the layer's gradient", "log"),
    ("still_share", "Still", "share of elements with r &lt; 0.01", "share"),
    ("eps_share", "eps", "share of elements whose √v̂ is below eps", "share"),
    ("cosine", "Cosine", "of gradient and m̂", "sign"),
]


def heat_maps(layers: Layers, middle: str | None) -> str:
    """Layer x time for several numbers, one shown at a time (without a script)."""
    title = "Median r" if middle == "r/p50" else str(middle)
    maps = [(middle, title, "|m̂| / (√v̂ + eps)", "log")] if middle else []
    maps += [one for one in _MAPS if one[0] in layers.values]
    radios = labels = figures = ""
    for k, (number, title, meaning, kind) in enumerate(maps):
        checked = " checked" if not k else ""
        radios += (
            f'<input type="radio" name="map" id="map{k}" class="map-choice"{checked}>'
        )
        labels += f'<label for="map{k}">{escape(title)}</label>'
        figures += _heat_map(layers, number, title, meaning, kind)
    tabs = f'<div class="tabs">{labels}</div>'
    return f'<div class="maps">{radios}{tabs}{figures}</div>'


def _map_scale(values: np.ndarray, kind: str) -> Scale:
    if kind == "share":
        return Scale(0.0, 1.0)
    if kind == "sign":
        return Scale(-1.0, 1.0)
    found = drawable(values)
    found = found[found > 0]
    if kind == "ratio":  # symmetric around the rule of thumb, one to three decades
        off = np.abs(np.log10(found / TARGET_RATIO)) if len(found) else np.ones(1)
        reach = 10.0 ** float(np.clip(np.ceil(np.quantile(off, 0.98)), 1, 3))
        return Scale(TARGET_RATIO / reach, TARGET_RATIO * reach, True)
    if not len(found):
        return Scale(0.1, 1.0, True)
    # A few outliers shall not take all the colours.
    low, high = (float(x) for x in np.quantile(found, (0.001, 0.999)))
    return Scale(low, max(high, low * 1.5), True)


def _heat_map(layers: Layers, number: str, title: str, meaning: str, kind: str) -> str:
    values = fewer(layers.values[number], COLUMNS)
    scale = _map_scale(layers.values[number], kind)
    palette = _heat.DIVERGING if kind in ("ratio", "sign") else _heat.SEQUENTIAL
    cells = _heat.quantized(scale.places(values))
    rows = len(layers.names)
    row_height = 20 if rows <= 32 else max(4.0, 640 / rows)
    names = "".join(
        f'<span style="top:{100 * (i + 0.5) / rows:.2f}%" '
        f'title="{escape(layers.names[i])}"><bdi class="wide">{escape(name)}</bdi>'
        f'<bdi class="narrow">{escape(_facts.elided(name, 17))}</bdi></span>'
        for i, name in _row_labels(layers.short_names, row_height)
    )
    steps = fewer(layers.steps.astype(float), COLUMNS, "mean")
    label = (
        f"Heat map of {title} ({number}), {rows} layers from top to bottom by "
        f"{len(steps)} times from left to right; the table of layers below has figures"
    )
    legend = (
        f'<div class="key"><span>≤ {short(scale.low)}</span>'
        f'<i style="background:linear-gradient(90deg,{_heat.css_gradient(palette)})">'
        f"</i><span>≥ {short(scale.high)}</span>"
        f"<small>{'logarithmic' if scale.is_log else 'linear'}</small>"
        '<i class="none"></i><span>no value</span></div>'
    )
    return (
        f'<figure class="heat" data-cells="{_heat.packed(cells)}" '
        f'data-shape="{rows} {len(steps)}" data-name="{escape(number)}" '
        f'data-steps="{" ".join(f"{s:.0f}" for s in steps)}" '
        f'data-y="{scale.low!r} {scale.high!r} {int(scale.is_log)}">'
        f"<figcaption>{escape(title)} <small>{meaning}</small></figcaption>{legend}"
        f'<div class="frame"><div class="ys names" aria-hidden="true">{names}</div>'
        f'<div class="plot" style="--h:{rows * row_height:.0f}px">'
        f'<img alt="{escape(label)}" src="{_heat.data_uri(cells, palette)}"></div>'
        f"{x_axis(time_scale(steps), _column_labels(steps))}</div></figure>"
    )


def _row_labels(names: Sequence[str], row_height: float) -> list[tuple[int, str]]:
    """Every row where there is room, else the first row of each block of layers."""
    if row_height >= 15:
        return list(enumerate(names))
    blocks = [_facts.block(name) for name in names]
    starts = [i for i, name in enumerate(blocks) if i == 0 or name != blocks[i - 1]]
    if len(starts) < 4:
        starts, blocks = list(range(len(names))), list(names)
    kept: list[int] = []
    for i in starts:
        if not kept or (i - kept[-1]) * row_height >= 14:
            kept.append(i)
    return [(i, blocks[i]) for i in kept]


def _column_labels(steps: np.ndarray) -> list[tuple[float, str]]:
    """Round steps at the columns nearest to them: measurements need not be even."""
    places = []
    for tick in time_scale(steps).ticks(6):
        column = int(np.argmin(np.abs(steps - tick)))
        places.append(((column + 0.5) / len(steps), short(tick)))
    return places


# ---------------------------------------------------------------------------- ratios


def ratios(layers: Layers) -> str:
    """Update/parameter ratios of all layers, their median, and the 1e-3 line."""
    if "update_ratio" not in layers.values:
        return "<p>No update/parameter ratios were measured.</p>"
    values = layers.values["update_ratio"]
    x = time_scale(layers.steps)
    low = drawable(values)
    low = low[low > 0]
    floor = np.quantile(low, 0.001) if len(low) else TARGET_RATIO
    y = scale_of(
        np.maximum(values, floor), is_log=True, include=(TARGET_RATIO, TARGET_RATIO / 3)
    )
    most = COLUMNS if len(layers.names) <= 50 else COLUMNS // 4
    at = x.places(fewer(layers.steps.astype(float), most, "mean"))
    places = y.places(fewer(values, most))
    style = "layer-line" if len(layers.names) <= 50 else "layer-line many"
    thin = [
        Series("each layer" if i == 0 else "", style, line(at, row))
        for i, row in enumerate(places)
    ]
    middle = y.places(fewer(_facts.median_of_layers(values), most))
    return chart(
        [*thin, Series("median of the layers", "two", line(at, middle))],
        x,
        y,
        label="Update/parameter ratio of each layer against the step; a line at 1e-3",
        height=260,
        marks=[(TARGET_RATIO, "1e-3")],
    )


# ----------------------------------------------------------------------------- cards


def cards(
    layers: Layers, bands: Sequence[tuple[float, str]], named: Sequence[str]
) -> str:
    """A small chart of r's percentiles for each layer, and of its ratio below it.

    Those that findings name and those with the smallest r come first; the rest is
    folded away.
    """
    if not bands:
        return "<p>No percentiles of r were measured.</p>"
    middle = min(bands, key=lambda pair: abs(pair[0] - 50))[1]
    order = np.argsort(_facts.last_values(layers.values[middle]), kind="stable")
    first = [i for i, name in enumerate(layers.names) if name in named]
    first += [int(i) for i in order if int(i) not in first]
    chosen = set(first[:CARDS_SHOWN])
    y = _card_scale(np.concatenate([layers.values[n].ravel() for _, n in bands]))
    ratio = layers.values.get("update_ratio")
    ratio_y = ratio if ratio is None else _card_scale(ratio, TARGET_RATIO)
    used = [*(n for _, n in bands), *(["update_ratio"] if ratio_y else [])]
    columns = {n: fewer(layers.values[n], CARD_COLUMNS) for n in used}
    last = {n: _facts.last_values(layers.values[n]) for n in used}
    x = time_scale(layers.steps)
    at = x.places(fewer(layers.steps.astype(float), CARD_COLUMNS, "mean"))
    parts: tuple[list[str], list[str]] = ([], [])
    for i in range(len(layers.names)):
        lines = {n: (at, column[i]) for n, column in columns.items()}
        now = {n: short(float(values[i])) for n, values in last.items()}
        card = _card(layers, i, bands, lines, now, (x, y, ratio_y))
        parts[0 if i in chosen else 1].append(card)
    out = f'<div class="cards">{"".join(parts[0])}</div>'
    if parts[1]:
        out += (
            f'<details class="more"><summary>{len(parts[1])} more layers</summary>'
            f'<div class="cards">{"".join(parts[1])}</div></details>'
        )
    return out


def _card_scale(values: np.ndarray, include: float | None = None) -> Scale:
    """One for all cards: so that heights compare; outliers are cut off."""
    found = drawable(values)
    found = found[found > 0]
    if not len(found):
        return Scale(1e-4, 1.0, True)
    low, high = (float(x) for x in np.quantile(found, (0.001, 0.999)))
    if include is not None:
        low, high = min(low, include / 2), max(high, include * 2)
    return Scale(low, max(high, low * 3), True)


def _card(
    layers: Layers,
    i: int,
    bands: Sequence[tuple[float, str]],
    lines: dict[str, tuple[np.ndarray, np.ndarray]],
    now: dict[str, str],
    scales: tuple[Scale, Scale, Scale | None],
) -> str:
    x, y, ratio_y = scales
    middle = min(bands, key=lambda pair: abs(pair[0] - 50))[1]
    series = []
    if len(bands) > 1:
        (at, low), (_, high) = lines[bands[0][1]], lines[bands[-1][1]]
        series.append(Series("", "one band", band(at, y.places(low), y.places(high))))
    at, values = lines[middle]
    series.append(Series(middle, "one", line(at, y.places(values))))
    text = " · ".join(now[n] for _, n in bands)
    label = f"Percentiles of r of {layers.names[i]} against the step; last {text}"
    out = _small(series, x, y, label, 84)
    figures = f"<span>r <b>{text}</b></span>"
    if ratio_y is not None:
        at, values = lines["update_ratio"]
        mark = 1 - float(ratio_y.places(np.array(TARGET_RATIO)))
        last = now["update_ratio"]
        label = f"Update ratio of {layers.names[i]} against the step; last {last}"
        drawn = [Series("update_ratio", "two", line(at, ratio_y.places(values)))]
        grid = f'<path class="mark" d="M0 {round(1000 * mark)}H1000"/>'
        out += _small(drawn, x, ratio_y, label, 40, grid)
        figures += f" <span>ratio <b>{last}</b></span>"
    name = escape(layers.short_names[i]).replace("/", "/<wbr>")
    return (
        f'<article class="layer" id="{layers.ids[layers.names[i]]}" '
        f'data-layer="{escape(layers.names[i])}"><h3>{name}</h3>{out}'
        f"<p>{figures}</p></article>"
    )


def _small(
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    label: str,
    height: int,
    grid: str = "",
) -> str:
    lines = "".join(
        f'<path class="grid" d="M0 {round(1000 * (1 - float(y.places(np.array(v)))))}'
        f'H1000"/>'
        for v in y.ticks(4)
    )
    return (
        f'<div class="chart small" style="--h:{height}px" '
        f'data-x="{x.low!r} {x.high!r}" data-y="{y.low!r} {y.high!r} {int(y.is_log)}">'
        f'<div class="plot">{drawing(series, label=label, grid=grid + lines)}</div>'
        f'<div class="ends" aria-hidden="true"><span>{short(float(f"{y.high:.2g}"))}'
        f"</span><span>{short(float(f'{y.low:.2g}'))}</span></div></div>"
    )


# ---------------------------------------------------------------------------- tables


def table(layers: Layers, bands: Sequence[tuple[float, str]]) -> str:
    """Last values of every layer; of percentiles, r's."""
    names = [n for _, n in bands] + [n for n in layers.values if "/" not in n]
    last = [_facts.last_values(layers.values[n]) for n in names]
    head = "".join(f'<th scope="col">{escape(n).replace("_", " ")}</th>' for n in names)
    rows = "".join(
        f'<tr><th scope="row">{linked(short_name, layers.ids.get(name))}'
        "</th>"
        + "".join(f"<td>{short(float(column[i]))}</td>" for column in last)
        + "</tr>"
        for i, (name, short_name) in enumerate(
            zip(layers.names, layers.short_names, strict=True)
        )
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of layers">'
        f'<table><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def relations(found: Relations, layers: Layers) -> str:
    """The layers that move with the metric, or the five that come nearest to it."""
    if found.note:
        return f"<p>{escape(found.note[:1].upper() + found.note[1:])}.</p>"
    rows = found.moving[:20] or found.rows[:5]
    body = "".join(
        f'<tr><th scope="row">{linked(r.layer, layers.ids.get(r.layer))}'
        f"</th><td>{escape(r.number)}</td><td>{r.pairs}</td>"
        f"<td>{r.correlation:+.2f}</td><td>{r.partial:+.2f}</td>"
        f"<td>{'yes' if r.moves else 'no'}</td></tr>"
        for r in rows
    )
    verdict = (
        f"{len(found.moving)} of {len(found.rows)} rows move with it."
        if found.moving
        else f"None of {len(found.rows)} rows does beyond noise; the nearest five:"
    )
    heads = ("layer", "number", "pairs", "rank corr.", "without drift", "moves with it")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<p>{verdict}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Relations"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
