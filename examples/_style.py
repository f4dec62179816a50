"""One look for the pictures, tables and progress bars of the examples."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

try:
    import matplotlib
except ImportError as error:
    raise ImportError(
        "The examples draw with matplotlib, which is not installed. "
        "Install what they need with: pip install 'adamx[examples]'"
    ) from error

matplotlib.use("Agg")  # files only: no window, no display needed
import matplotlib.pyplot as plt

# Okabe & Ito's palette, distinct under the common colour blindnesses; the dashes tell
# the curves apart in grey print too.
_COLORS = ("#666666", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), "-")

_SETTINGS = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def line_styles(names) -> dict[str, dict]:
    """A colour and a dash for each name, in order: the same in every picture."""
    return {
        name: {
            "color": _COLORS[i % len(_COLORS)],
            "linestyle": _DASHES[i % len(_DASHES)],
            "label": name,
        }
        for i, name in enumerate(names)
    }


def new_figure(columns: int, width: float, height: float, **kwargs):
    """A figure with one row of axes; sizes in inches."""
    plt.rcParams.update(_SETTINGS)
    return plt.subplots(
        1, columns, figsize=(width, height), layout="constrained", **kwargs
    )


def mean_and_range(axes, x, curves, style: dict) -> None:
    """The mean of `curves`, of shape (len(x), runs), over a band from least to most."""
    axes.plot(x, curves.mean(axis=1), **style)
    low, high = curves.min(axis=1), curves.max(axis=1)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)


def save(figure, path: Path, title: str) -> Path:
    """Adds the title and one legend for all axes, writes the picture, frees it."""
    figure.suptitle(title, fontweight="bold")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), handlelength=3
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path


def table(title: str, first: str, *numbers: str) -> Table:
    """A table with one column of names and columns of numbers."""
    result = Table(title=title)
    result.add_column(first)
    for heading in numbers:
        result.add_column(heading, justify="right")
    return result


def progress(console: Console, unit: str) -> Progress:
    """A bar that vanishes at the end, and is not drawn into files and pipes."""
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
