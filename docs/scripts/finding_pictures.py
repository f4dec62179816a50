"""A picture for each finding of `health`, of a training run that was made ill.

The question: what does a finding look like in the numbers? The model of
`benchmarks/illnesses.py --model hidden` (digits, three hidden layers) gets one illness
a run; the number that the rule looks at is drawn over the steps, with its threshold. A
run in which `health` does not find what the picture is of is an error, not a picture.

    python docs/scripts/finding_pictures.py              # all, about a minute
    python docs/scripts/finding_pictures.py --only dead --out outputs
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

import illnesses
from _causes import ILLNESSES
from _patients import PATIENTS

import adamx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GREY, ILL, LIMIT, BLUE = "#B0B0B0", "#D55E00", "#444444", "#0072B2"
SICK = "hidden_1/kernel"


class Case(NamedTuple):
    """An ill run, and what is drawn of it.

    Attributes:
      plant: what differs from a sound run (`benchmarks/_causes.py`).
      label: of the vertical axis.
      series: (history, layer) -> steps, values; None: of the losses.
      limit: the rule's threshold, where it is one number of the axis.
      bias: added to the bias before a ReLU.
      phases: of 500 steps.
      linear: the axis.
      metrics: columns that are drawn in the place of layers.
      seed: of the run.
      last: so many steps are drawn; None: all.
    """

    plant: dict[str, float]
    label: str
    series: Callable[[adamx.History, str], Any] | None = None
    limit: float | None = None
    bias: float = 0.0
    phases: int = 1
    linear: bool = False
    metrics: Sequence[str] = ()
    seed: int = 3
    last: int | None = None


def number(name: str) -> Callable[[adamx.History, str], Any]:
    return lambda history, layer: history.series(layer, name)


def over(first: str, second: str) -> Callable[[adamx.History, str], Any]:
    def ratio(history: adamx.History, layer: str) -> Any:
        steps, above = history.series(layer, first)
        with np.errstate(all="ignore"):
            return steps, above / history.series(layer, second)[1]

    return ratio


def ill(name: str, strength: float) -> dict[str, float]:
    return ILLNESSES[name].plant(strength)


BOTH = ("loss", "val_loss")
CASES = {
    "nonfinite": Case(
        ill("nan", 2), "elements not finite", number("nonfinite"), linear=True
    ),
    "lost_loss": Case({"rate": 1e6}, "training loss", metrics=("loss",)),
    "lost_val_loss": Case(
        ill("lost validation", 1), "loss", metrics=("val_loss",), linear=True
    ),
    "diverging": Case({"rate": 1e5}, "training loss", metrics=("loss",)),
    "burst": Case({"rate": 200.0}, "training loss", metrics=("loss",)),
    "stuck": Case({}, "training loss", metrics=("loss",), bias=-100.0, linear=True),
    "exploding": Case(
        ill("exploding", 3000), "norm of the gradient", number("grad_norm")
    ),
    "growing": Case(
        ill("growing", -20), "norm of the parameters", number("param_norm")
    ),
    "dead": Case(
        {}, "norm of the gradient", number("grad_norm"), bias=-100.0, linear=True
    ),
    "ratio_high": Case(
        {"rate": 1e5}, "update / parameters", number("update_ratio"), limit=0.1
    ),
    "eps_dominates": Case(
        ill("eps", 1), "elements under eps", number("eps_share"), limit=0.5, linear=True
    ),
    "tiny_early": Case(ill("early", 1e4), "median of r", number("r/p50"), limit=0.02),
    "near_zero": Case(ill("frozen", 1e4), "median of r", number("r/p50"), limit=0.01),
    "outliers": Case(
        ill("outliers", 0.7), "r, 90th / 50th", over("r/p90", "r/p50"), limit=30
    ),
    "oscillation": Case(
        {"sorted": 2.0},
        "training loss",
        metrics=("loss",),
        linear=True,
        seed=0,
        last=60,
    ),
    "unshuffled": Case(
        ill("oscillation", 32), "training loss", metrics=("loss",), linear=True
    ),
    "skipped": Case(
        ill("nan loss", 7), "steps skipped", metrics=("skipped",), linear=True
    ),
    "ratio_low": Case(
        ill("layer slow", 1e-4), "update / parameters", number("update_ratio"), 1e-5
    ),
    "imbalance": Case(
        {"layer_rate": 5e-3, "rate": 3.0}, "update / parameters", number("update_ratio")
    ),
    "rate_apart": Case(
        ill("layer fast", 300), "step / r: the rate", over("step/p50", "r/p50")
    ),
    "gap": Case(ill("few examples", 32), "loss", phases=2, metrics=BOTH),
    "memorised": Case(ill("few examples", 32), "loss", metrics=BOTH, linear=True),
    "plateau": Case({}, "loss", phases=8, metrics=BOTH),
    "ready_for_sgd": Case(
        {"rate": 4.0}, "sqrt(v), median", number("sqrt_v/p50"), phases=12, seed=0
    ),
}


def history_of(run: Any, case: Case) -> adamx.History:
    """The history of an ill run."""
    history, seed = adamx.History(), case.seed
    carry = run.init(jax.random.key(seed))
    if case.bias:
        params, state = carry
        carry = illnesses.shifted(params, run.patient.relu, case.bias), state
    for start in range(0, case.phases * illnesses.PHASE, illnesses.PHASE):
        carry = illnesses.train(run, carry, case.plant, seed, start, history)
    return history


def found_in(history: adamx.History, kind: str) -> list[str | None]:
    """The layers in which a kind was found; raises where it was not."""
    found = adamx.health(history)
    layers = [f.layer for f in found if illnesses.KIND[f.symptom] == kind]
    if not layers:
        kinds = [illnesses.KIND[f.symptom] for f in found]
        raise AssertionError(f"health has not found {kind!r} in its run, but {kinds}")
    return layers


def draw(history: adamx.History, kind: str, case: Case, path: Path) -> None:
    """Grey: layers, or metrics, without the finding; red: with it."""
    layers = found_in(history, kind)
    figure, axes = plt.subplots(figsize=(5.6, 2.3), dpi=110, layout="constrained")
    if case.series is None:
        _draw_metrics(axes, history, case)
    else:
        _draw_layers(axes, history, case, layers)
    if not case.linear:
        axes.set_yscale("log")
    if case.limit is not None:
        axes.axhline(case.limit, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1)
        place = (1.0, case.limit)
        where = axes.get_yaxis_transform()
        axes.annotate(
            "threshold",
            place,
            xycoords=where,
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=LIMIT,
        )
    axes.set(xlabel="step", ylabel=case.label)
    if case.last:
        end = int(history.steps[-1])
        axes.set_xlim(end - case.last, end)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#EEEEEE", linewidth=0.7)
    axes.set_axisbelow(True)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    path.mkdir(parents=True, exist_ok=True)
    figure.savefig(path / f"{kind}.png")
    plt.close(figure)


def _draw_layers(axes: Any, history: adamx.History, case: Case, layers: Any) -> None:
    assert case.series is not None
    is_everywhere = None in layers
    ill = SICK if SICK in layers or is_everywhere else layers[0]
    for name in sorted(history.layers, key=lambda name: name == ill):
        steps, values = case.series(history, name)
        is_ill = is_everywhere or name == ill
        label = None
        if name == ill:
            label = "all layers" if is_everywhere else name
        elif name == next(other for other in history.layers if other != ill):
            label = None if is_everywhere else "the other layers"
        axes.plot(
            steps,
            values,
            color=ILL if is_ill else GREY,
            label=label,
            linewidth=1.6 if name == ill else 1.0,
            alpha=0.45 if is_everywhere and name != ill else 1.0,
        )


def _draw_metrics(axes: Any, history: adamx.History, case: Case) -> None:
    names = {"loss": "training", "val_loss": "validation", "skipped": None}
    is_alone = case.metrics == ("val_loss",)
    if is_alone:  # lost: what there is instead
        where = history.is_recorded("loss")
        own = history.steps[where], history.column("loss")[where]
        axes.plot(*own, color=GREY, label="training", linewidth=1.0)
    for name, color in zip(case.metrics, (ILL, BLUE), strict=False):
        where = history.is_recorded(name)
        values = history.column(name)[where]
        label = names[name] if len(case.metrics) > 1 else None
        steps = history.steps[where]
        if case.last:
            steps, values = steps[-case.last :], values[-case.last :]
        axes.plot(steps, values, color=color, label=label, linewidth=1.2)
        if not np.isfinite(values[-1]):
            finite = np.flatnonzero(np.isfinite(values))
            lost = steps[finite[-1] + 1] if len(finite) else steps[0]
            label = f"{names[name] if is_alone else ''} NaN or infinite".strip()
            axes.axvspan(lost, steps[-1], color=GREY, alpha=0.3, label=label)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    out = ROOT / "docs" / "pictures" / "findings"
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args(arguments)
    run = illnesses.prepared(PATIENTS["hidden"]())
    for kind in options.only:
        draw(history_of(run, CASES[kind]), kind, CASES[kind], options.out)
        print(options.out / f"{kind}.png", flush=True)


if __name__ == "__main__":
    main()
