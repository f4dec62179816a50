"""The pictures of the documentation that are of no finding.

    python docs/scripts/pictures.py              # all, less than a minute
    python docs/scripts/pictures.py --only data_flow

`bfloat16_average`: an average that stops. `schedules`: six of them. `sweep`: digits at
32 rates. `data_flow`: where the numbers go.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import adamx

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUT = Path(__file__).parents[1] / "pictures"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#666666")
SETTINGS = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EEEEEE",
    "legend.frameon": False,
    "font.size": 9,
}


def bfloat16_average() -> Any:
    """Second moments of 3,000 gradients of 1 and 3,000 of 0."""
    params = jnp.zeros(1, jnp.bfloat16)

    def moments(tx: Any) -> np.ndarray:
        def step(state: Any, gradient: jax.Array) -> Any:
            _, state = tx.update(gradient[None], state, params)
            return state, state.nu[0].astype(jnp.float32)

        gradients = (jnp.arange(6000) < 3000).astype(jnp.bfloat16)
        return np.asarray(jax.lax.scan(step, tx.init(params), gradients)[1])

    figure, axes = plt.subplots(figsize=(6.4, 2.6), dpi=110, layout="constrained")
    for (label, tx), color in zip(
        {
            "float32, the default here": adamx.scale_by_adam(),
            "bfloat16 (Optax)": optax.scale_by_adam(),
        }.items(),
        COLORS,
        strict=False,
    ):
        axes.plot(moments(tx), color=color, label=label)
    axes.set(xlabel="step", ylabel="second moment")
    axes.legend()
    return figure


def schedules() -> Any:
    """Rates of 1,000 steps."""
    make = adamx.schedules
    shown = {
        "warmup_cosine": make.warmup_cosine(1.0, 1000, warmup=0.1),
        "warmup_linear": make.warmup_linear(1.0, 1000, warmup=0.1),
        "warmup_stable_decay": make.warmup_stable_decay(1.0, 1000, 100),
        "inverse_sqrt": make.inverse_sqrt(1.0, 100),
        "one_cycle": make.one_cycle(1.0, 1000),
        "cosine_restarts": make.cosine_restarts(1.0, 250),
    }
    figure, axes = plt.subplots(
        2,
        3,
        figsize=(7.2, 3.2),
        dpi=110,
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    for (name, schedule), ax, color in zip(
        shown.items(), axes.flat, COLORS, strict=True
    ):
        ax.plot(schedule(jnp.arange(1000)), color=color)
        ax.set_title(name, fontsize=9)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("rate / peak", fontsize=9)
    return figure


def sweep() -> Any:
    """AdamW on the digits of scikit-learn at 32 rates, 200 steps."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (64, 32)) / 8,
        "last": jax.random.normal(keys[1], (32, 10)) / 6,
    }
    places = jax.random.randint(keys[2], (200, 64), 0, len(images))
    batches = jnp.asarray(images / 16, jnp.float32)[places], jnp.asarray(labels)[places]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = jnp.tanh(batch[0] @ params["first"]) @ params["last"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    rates = np.geomspace(1e-5, 3.2, 32)
    found = adamx.lr_sweep(loss_fn, params, batches, adamx.adamw, rates)
    figure, axes = plt.subplots(figsize=(6.4, 3.0), dpi=110, layout="constrained")
    found.plot(ax=axes)
    return figure


def _box(
    axes: Any,
    place: tuple[float, float],
    text: str,
    color: str,
    size: Any = (1.56, 0.62),
) -> None:
    x, y = place
    width, height = size
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0.02,rounding_size=0.08",
        facecolor=f"{color}22",
        edgecolor=color,
    )
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=1.3)


def _arrow(axes: Any, start: Any, end: Any, text: str = "", **how: Any) -> None:
    how = {"color": "#444444", "connectionstyle": "arc3,rad=0"} | how
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, **how)
    axes.add_patch(arrow)
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + 0.08, text, ha="center", va="bottom", fontsize=7.5)


def data_flow() -> Any:
    """A step from left to right; below it what the states record, and who reads it."""
    figure, axes = plt.subplots(figsize=(8.6, 4.0), dpi=120, layout="constrained")
    axes.set(xlim=(0, 10.2), ylim=(0, 4.7))
    axes.axis("off")
    blue, red, green, grey = COLORS[0], COLORS[1], COLORS[2], COLORS[5]
    step = {
        0.85: ("gradients", grey),
        2.75: ("clip\ntransforms/", blue),
        4.65: ("leaf rule\noptimizers/ moments/", blue),
        6.55: ("decay, rate\ntransforms/", blue),
        8.45: ("parameters\napply.py", grey),
    }
    for x, (text, color) in step.items():
        _box(axes, (x, 3.55), text, color)
    for x in list(step)[:-1]:
        _arrow(axes, (x + 0.78, 3.55), (x + 1.12, 3.55))
    around = FancyBboxPatch(
        (1.85, 3.05),
        5.6,
        1.25,
        boxstyle="round,pad=0.02",
        facecolor="none",
        edgecolor=green,
        linestyle=(0, (4, 2)),
    )
    axes.add_patch(around)
    axes.text(
        4.65,
        4.37,
        "compose/: groups, guard, accumulate, stages, precision",
        ha="center",
        va="bottom",
        fontsize=8,
        color=green,
    )
    _box(
        axes,
        (4.65, 2.15),
        "states: moments, and\nwhat was used: b1, b2,\neps, rate, norm",
        red,
        (2.1, 0.8),
    )
    for x in (2.75, 4.65, 6.55):
        end = (4.65 + (x - 4.65) * 0.25, 2.58)
        _arrow(axes, (x, 3.22), end, color=red)
    for x, text in {
        1.2: "reading.py\nread",
        3.5: "diagnostics/\nhealth, report",
        5.8: "sharding/\nwhere it lies, plan",
        8.1: "interop/\nfiles, PyTorch",
    }.items():
        _box(axes, (x, 0.6), text, grey)
        start = (4.65 + (x - 4.65) * 0.2, 1.73)
        _arrow(axes, start, (x, 0.94), color=red)
    axes.text(
        8.5,
        2.5,
        "fused.py, native/: all of the\nstep in one, gradients in,\nparameters out",
        ha="center",
        va="top",
        fontsize=8,
        color=grey,
    )
    return figure


PICTURES = {
    "bfloat16_average": bfloat16_average,
    "schedules": schedules,
    "sweep": sweep,
    "data_flow": data_flow,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with plt.rc_context(SETTINGS):
            figure = PICTURES[name]()
            figure.savefig(options.out / f"{name}.png")
            plt.close(figure)
        print(options.out / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
