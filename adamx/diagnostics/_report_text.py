"""HISTORY -> TERMINAL: the report where there is no browser."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from adamx.diagnostics import _facts
from adamx.diagnostics._chart import NO_VALUE, Scale, fewer, scale_of, short
from adamx.diagnostics._evidence import columns_named
from adamx.diagnostics._health import not_judged
from adamx.diagnostics._history import History
from adamx.diagnostics._report import check_history

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 30  # layers, before the middle is left out
_STYLES = ("bold red", "yellow", "cyan")


def print_report(
    history: History,
    *,
    findings: Iterable[Any] | None = None,
    width: int | None = None,
) -> None:
    """Prints the report in the terminal: findings, losses, a table of layers.

    In the table, `trend` is the median r over time, on one logarithmic scale for all
    layers. Of more than 30 layers, the 20 with the smallest r at the end and the 10
    with the largest are shown, and those that findings name.

    Args:
      history: with at least one record.
      findings: as in `report`.
      width: columns; None: as wide as the terminal.

    Returns:
      None; it prints.

    Raises:
      TypeError, ValueError: as in `report`.

    >>> import adamx, jax.numpy as jnp
    >>> history = adamx.History()
    >>> state = adamx.adamw(1e-3).init({"w": jnp.ones(4)})
    >>> for loss in (3.0, 2.0, 1.0):
    ...     history.append(adamx.read(state), loss=loss)
    >>> adamx.print_report(history, findings=(), width=60)
    ... # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
    steps         0     3 records
    training loss 1     best 1 at step 0
    ...
    """
    check_history(history)
    advice = _facts.find(history, findings)
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for part in _parts(history, advice, console.width):
        console.print(part)


def _parts(
    history: History, advice: Sequence[_facts.Advice], width: int
) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 1))
    for name, value, remark in _facts.tiles(history):
        table.add_row(Text(name), Text(value, "bold"), Text(remark, "dim"))
    yield table
    yield from _curves(history, width)
    yield from _findings(advice)
    if rest := not_judged(history):
        yield Text(f"  Not judged: {'; '.join(rest)}.", "dim")
    if not history.layers:
        yield Text("\nNo layer was measured: wrap the optimizer in adamx.diagnose(tx).")
        return
    named = [one.layer for one in advice]
    yield ""
    yield _layers(history, named, width)
    if history.is_recorded("val_loss").any() and _facts.percentiles(history):
        yield ""
        found = history.relate()
        if found.note or found.moving:
            yield dataclasses.replace(found, rows=found.moving)
        else:
            yield f"No layer moves with the validation loss ({len(found.rows)} rows)."


def _curves(history: History, width: int) -> Iterator[RenderableType]:
    """Each column on a scale of its own."""
    found = [n for n in history.columns if n in ("loss", "val_loss")]
    found += columns_named(history, "learning_rate")
    found += columns_named(history, "grad_norm")
    table = Table.grid(padding=(0, 1))
    for name in found:
        values = history.column(name)[history.is_recorded(name)]
        scale = scale_of(values, is_log=False if "rate" in name else None)
        bars = sparkline(values, scale, max(10, min(60, width - 45)))
        table.add_row(Text(name), Text(bars), Text(_span(values), "dim"))
    if found:
        yield ""
        yield table


def _span(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{short(known.min())} to {short(known.max())}" if len(known) else NO_VALUE


def sparkline(values: np.ndarray, scale: Scale, width: int) -> str:
    """Bars; a blank where there is no value."""
    places = scale.places(fewer(values, width))
    return "".join(
        _BARS[min(int(p * len(_BARS)), len(_BARS) - 1)] if np.isfinite(p) else " "
        for p in places
    )


def _findings(advice: Sequence[_facts.Advice]) -> Iterator[RenderableType]:
    yield Text(f"\nFindings: {len(advice) or 'none'}", "bold")
    for one, first in zip(advice, _facts.first_alike(advice), strict=True):
        sign = "▲●○"[one.rank]
        title = Text(f"{sign} {one.severity or 'finding'}: ", _STYLES[one.rank])
        yield title.append(one.symptom, "bold").append(
            f" in {one.layer or 'the whole run'}", "default"
        )
        pairs = [f"{name} {value}" if name else value for name, value in one.evidence]
        if pairs:
            yield Padding(Text(", ".join(pairs), "dim"), (0, 0, 0, 2))
        if first is not None:
            yield Text(f"  causes and what to try: as for {first.layer}, above")
            continue
        table = Table.grid(padding=(0, 1))
        table.add_column(width=8, no_wrap=True)
        for heading, texts in (("causes", one.causes), ("try", one.remedies)):
            for k, text in enumerate(texts):
                table.add_row(Text(f"  {heading if not k else ''}"), Text(text))
        yield table


def _layers(history: History, named: Sequence[str], width: int) -> Table:
    layers = history.layers
    middle = _facts.middle(history)
    is_wide = width >= 90
    numbers = [n for _, n in _facts.percentiles(history) if is_wide or n == middle]
    more = ("update_ratio", "grad_norm", "eps_share")
    numbers += [n for n in more if n in history.numbers]
    values = {number: history.matrix(number)[1] for number in numbers}
    start = _facts.common_start(layers)
    title = "Layers, last values" + (f"; in {start}" if start else "")
    table = Table(box=None, title=Text(title, "table.title"), title_justify="left")
    table.add_column("layer", overflow="fold", ratio=1, min_width=12)
    trend = 16 if is_wide and middle else 0
    if trend:
        table.add_column("trend of r", no_wrap=True)
    for number in numbers:
        heading = Text(number.replace("update_", ""))
        table.add_column(heading, justify="right", no_wrap=True)
    scale = scale_of(values[middle], is_log=True) if middle else None
    last = {number: _facts.last_values(v) for number, v in values.items()}
    chosen = _chosen(layers, last.get(middle or ""), named)
    for i in chosen:
        if i is None:
            left_out = len(layers) - len(chosen) + 1
            table.add_row(Text(f"({left_out} more)", "dim"))
            continue
        cells = [Text(layers[i][len(start) :], "bold" if layers[i] in named else "")]
        if trend and middle and scale:
            cells.append(Text(sparkline(values[middle][i], scale, trend)))
        table.add_row(*cells, *(short(float(last[n][i])) for n in numbers))
    return table


def _chosen(
    layers: Sequence[str], r: np.ndarray | None, named: Sequence[str]
) -> list[int | None]:
    """Rows to show; None stands for those that are left out."""
    if len(layers) <= _SHOWN or r is None:
        return list(_facts.natural_order(layers))
    order = [int(i) for i in np.argsort(r, kind="stable")]
    low, high = order[: 2 * _SHOWN // 3], order[-_SHOWN // 3 :]
    between = [i for i in order if layers[i] in named and i not in low + high]
    return [*low, *between, None, *high]
