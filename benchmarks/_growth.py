"""How time grows with parameters and with leaves: exponents, and a picture."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from _contestants import Result
from _tables import show
from _trees import Shapes, by_leaves, by_parameters


class Series(NamedTuple):
    """Trees of growing size.

    Attributes:
      key: what grows, "parameters" or "leaves".
      title: of all these trees.
      trees: by size.
    """

    key: str
    title: str
    trees: Mapping[int, Shapes]


def series(is_quick: bool) -> list[Series]:
    """16 leaves of growing size, and a growing number of leaves of 2,048."""
    if is_quick:
        return [
            Series("parameters", "2 leaves", by_parameters([64, 128], 2)),
            Series("leaves", "leaves of 32", by_leaves([2, 4], 32)),
        ]
    sizes = by_parameters([2**n for n in range(20, 27)])
    counts = by_leaves([62, 125, 250, 500, 1000, 2000])
    return [
        Series("parameters", "16 leaves", sizes),
        Series("leaves", "leaves of 2,048", counts),
    ]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of a * size^b: least squares of the logarithms, over the larger half."""
    half = max(2, (len(sizes) + 1) // 2)
    if len(sizes) < 2 or min(values) <= 0:
        return float("nan")
    logs = np.log(np.asarray([sizes, values], np.float64)[:, -half:])
    return float(np.polyfit(*logs, 1)[0])


# By name: what it is called, its unit, and how it is read from a result.
QUANTITIES: dict[str, tuple[str, float, Callable[[Result], float | None]]] = {
    "step": ("a step, ms", 1e3, lambda r: r.times[1]),
    "build": (
        "trace, lower and compile, s",
        1.0,
        lambda r: None if r.build is None else r.build.wall,
    ),
}
# By contestant: sizes, and the quantity at each.
Curves = dict[str, tuple[list[int], list[float]]]


def curves(quantity: str, results: Mapping[int, Sequence[Result]]) -> Curves:
    """By contestant, where it took part: not everybody is at all sizes."""
    _, scale, value_of = QUANTITIES[quantity]
    found: Curves = {}
    for size, row in results.items():
        for result in row:
            value = value_of(result)
            if value is not None:
                sizes, values = found.setdefault(result.name, ([], []))
                sizes.append(size)
                values.append(scale * value)
    return found


def table(chosen: Series, drawn: Curves, title: str) -> None:
    """Prints the values at each size, and the fitted exponent."""
    rows = []
    for name, (sizes, values) in drawn.items():
        at = dict(zip(sizes, values, strict=True))
        cells = [f"{at[size]:.3g}" if size in at else "" for size in chosen.trees]
        rows.append([name, *cells, f"{exponent(sizes, values):.2f}"])
    head = ["", *(f"{size:,}" for size in chosen.trees), "exponent"]
    show(title, head, rows)


def draw(
    panels: Sequence[tuple[str, str, str, Curves]], path: str | pathlib.Path
) -> None:
    """One panel for each (title, what grows, quantity, curves), all in logarithms."""
    import matplotlib.pyplot as plt

    height = (len(panels) + 1) // 2
    names = dict.fromkeys(name for *_, drawn in panels for name in drawn)
    styles = {  # ten colours, then the same dashed
        name: {"color": f"C{i % 10}", "linestyle": ("-", "--")[i // 10 % 2]}
        for i, name in enumerate(names)
    }
    figure, axes = plt.subplots(height, 2, figsize=(11, 4 * height), squeeze=False)
    for axis, (title, key, quantity, drawn) in zip(axes.flat, panels, strict=False):
        for name, (sizes, values) in drawn.items():
            slope = exponent(sizes, values)
            label = f"{name}: exponent {slope:.2f}"
            axis.loglog(sizes, values, marker="o", ms=3, label=label, **styles[name])
        axis.set(title=title, xlabel=key, ylabel=QUANTITIES[quantity][0])
        axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
