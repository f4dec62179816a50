"""The searches for a learning rate as pictures and tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from adamx._printed import as_text

if TYPE_CHECKING:
    from adamx.diagnostics._range_test import LrRangeTest
    from adamx.diagnostics._sweep import LrSweep

_GREY, _BLUE, _ORANGE, _RED = "#8A8A8A", "#0072B2", "#E69F00", "#C0392B"
_ROWS = 20
# Losses that span more than this are drawn on a logarithmic axis.
_SPAN = 20.0


def _new_axes(ax: Any) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "`plot` needs matplotlib, got an error on importing it. Install it by "
            "pip install 'adamx[plots]'"
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    ax.set(xscale="log", xlabel="learning rate")
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _mark(ax: Any, found: Any) -> None:
    """The band, the suggestion and the legend above the axes."""
    ax.axvspan(*found.band, color=_ORANGE, alpha=0.15, linewidth=0, label="band")
    label = f"suggestion {found.suggestion:.2g}"
    ax.axvline(found.suggestion, color=_ORANGE, linewidth=1.8, label=label)


def _legend(ax: Any) -> None:
    is_narrow = ax.get_figure().get_size_inches()[0] < 5
    ax.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2 if is_narrow else 5,
        frameon=False,
        fontsize="small",
        handlelength=1.5,
        columnspacing=1.2,
    )


def _scale(ax: Any, values: np.ndarray, start: float) -> None:
    """A loss axis that shows what was learned, and not how far a rate diverged."""
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = values.min(), max(values.max(), start)
    high = min(high, start + 0.5 * max(start - low, 0.0) or high)
    if low > 0 and high / low > _SPAN:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.4, high * 1.4)
    elif high > low:
        margin = 0.06 * (high - low)
        ax.set_ylim(low - margin, high + margin)


def plot_sweep(found: "LrSweep", ax: Any) -> Any:
    ax = _new_axes(ax)
    order = np.argsort(found.learning_rates, kind="stable")
    rates, final = found.learning_rates[order], found.final[order]
    is_good, is_refined = np.isfinite(final), found.refined[order]
    start = float(np.nanmean(found.losses[:, 0]))
    _scale(ax, final, start)
    if is_good.any():
        _mark(ax, found)
    line = np.where(is_good, final, np.nan)
    ax.plot(rates, line, color=_BLUE, linewidth=1.4, zorder=3)
    dots = {"color": _BLUE, "markersize": 4.5, "zorder": 4}
    ax.plot(rates[~is_refined], line[~is_refined], "o", **dots)
    if is_refined.any():
        hollow = {"markerfacecolor": "w", "label": "refined"}
        ax.plot(rates[is_refined], line[is_refined], "o", **dots, **hollow)
    if (~is_good).any():
        # Where they ended is no score: at the upper edge, in axes' coordinates.
        ax.plot(
            rates[~is_good],
            np.full((~is_good).sum(), 0.97),
            "x",
            color=_RED,
            transform=ax.get_xaxis_transform(),
            label="diverged",
            zorder=4,
        )
    if np.isfinite(start):
        ax.axhline(start, color=_GREY, linestyle=":", linewidth=1, label="start")
    ax.set_ylabel(f"loss after {found.losses.shape[1]:,} steps")
    _legend(ax)
    return ax


def plot_range(found: "LrRangeTest", ax: Any) -> Any:
    ax = _new_axes(ax)
    rates, start = found.learning_rates, float(found.losses[0])
    shown = ~found.diverged
    _scale(ax, np.append(found.smoothed[shown], found.losses[shown]), start)
    ax.plot(rates, found.losses, color=_GREY, linewidth=0.7, alpha=0.6, label="loss")
    ax.plot(rates, found.smoothed, color=_BLUE, linewidth=1.8, label="smoothed")
    if not any("did not fall" in note for note in found.notes):
        _mark(ax, found)
    ax.set_ylabel("loss")
    _legend(ax)
    return ax


# -------------------------------------------------------------------------- tables


def _text(table: Table, notes: list[str]) -> str:
    lines = as_text(table, 88).splitlines()
    return "\n".join([*(line for line in lines if line), *notes])


def _new_table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table


def _last_words(found: Any, can_suggest: bool) -> list[str]:
    lines = []
    if can_suggest:
        low, high = found.band
        band = f"band {low:.3g} to {high:.3g}"
        lines.append(f"suggestion {found.suggestion:.3g}, {band}")
    return lines + [f"note: {note}" for note in found.notes]


def sweep_table(found: "LrSweep") -> str:
    table = _new_table("learning rate", "final loss", "lowest", "")
    can_suggest = not found.diverged.all()
    low, high = found.band if can_suggest else (np.inf, -np.inf)
    for i in np.argsort(found.learning_rates, kind="stable"):
        rate = float(found.learning_rates[i])
        said = "band" if low <= rate <= high else ""
        if can_suggest and rate == found.suggestion:
            said = "suggestion"
        if found.diverged[i]:
            said = "diverged"
        curve = found.smoothed[i][np.isfinite(found.smoothed[i])]
        lowest = f"{curve.min():.4g}" if curve.size else "-"
        final = "-" if found.diverged[i] else f"{found.final[i]:.4g}"
        table.add_row(f"{rate:.3g}", final, lowest, said)
    return _text(table, _last_words(found, can_suggest))


def range_table(found: "LrRangeTest") -> str:
    table = _new_table("learning rate", "loss", "smoothed", "")
    can_suggest = not any("did not fall" in note for note in found.notes)
    steps = len(found.losses)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, _ROWS)).astype(int))
    if can_suggest:
        at = int(np.argmin(np.abs(found.learning_rates - found.suggestion)))
        chosen = np.unique([*chosen, at])
    for i in chosen:
        said = "diverged" if found.diverged[i] else ""
        if can_suggest and i == at:
            said = "suggestion"
        rate = float(found.learning_rates[i])
        loss, smoothed = found.losses[i], found.smoothed[i]
        table.add_row(f"{rate:.3g}", f"{loss:.4g}", f"{smoothed:.4g}", said)
    return _text(table, _last_words(found, can_suggest))
