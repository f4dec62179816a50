"""The question: what adamx takes of a training loop in Equinox.

An Equinox network learns two interleaved spirals from 400 points: `adamw` by groups, no
decay on biases, guarded and diagnosed. Nothing is asked of Equinox but its own
`filter_jit`, `partition` and `apply_updates`. Run it from the repository root, after
`pip install -e '.[examples]'`; it needs no network and takes half a minute:

    python examples/equinox_mlp.py             # findings, table, picture, report
    python examples/equinox_mlp.py --quick     # fewer steps

What to see: `outputs/equinox_mlp.png`, what the network says of the plane before and
after, and `outputs/equinox_mlp.html`, the report of the run. One batch in the middle is
broken (its inputs are NaN): the guard leaves its step out, and says so.
"""

import argparse
from pathlib import Path
from typing import Any

import _style
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import adamx

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(
        "This example trains an Equinox network, which is not installed. "
        "Install what it needs with: pip install 'adamx[examples]'"
    ) from error

POINTS, BATCH, WIDTH, DEPTH = 400, 100, 64, 3
RATE, EVERY = 1e-2, 25


def spirals(seed: int) -> tuple[jax.Array, jax.Array]:
    """Points in the plane, and which of the two arms each one is on."""
    rng = np.random.default_rng(seed)
    turn = 3 * np.pi * np.sqrt(rng.uniform(0.03, 1, POINTS))
    arm = np.arange(POINTS) % 2
    angle = turn + np.pi * arm
    points = turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / (3 * np.pi)
    points += rng.normal(0, 0.02, points.shape)
    return jnp.asarray(points, jnp.float32), jnp.asarray(arm, jnp.float32)


def make_network(key: jax.Array) -> eqx.nn.MLP:
    """Points -> the logit of the second arm."""
    return eqx.nn.MLP(2, "scalar", WIDTH, DEPTH, jax.nn.gelu, key=key)


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """The last layer at half the rate; paths are those of the Equinox module."""
    rate = adamx.schedules.warmup_cosine(RATE, steps, warmup=0.1)
    last = adamx.schedules.warmup_cosine(RATE / 2, steps, warmup=0.1)
    mask = adamx.decay_mask()
    grouped = adamx.groups(
        [(f"layers/{DEPTH}/", adamx.adamw(last, weight_decay=0.01, mask=mask))],
        default=adamx.adamw(rate, weight_decay=0.01, mask=mask),
    )
    return adamx.diagnose(adamx.guard(grouped), every=EVERY)


def loss_fn(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def train_step(model: Any, state: Any, x: jax.Array, y: jax.Array, tx: Any) -> Any:
    loss, grads = eqx.filter_value_and_grad(loss_fn)(model, x, y)
    updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, loss


@eqx.filter_jit
def error_of(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """In %."""
    return 100 * jnp.mean((jax.vmap(model)(x) > 0) != (y > 0.5))


def train(model: Any, tx: Any, steps: int, console: Console) -> Any:
    """The trained network, the optimizer's state and the history of readings."""
    x, y = spirals(0)
    new = spirals(1)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    history, rng = adamx.History(), np.random.default_rng(2)
    measure = eqx.filter_jit(loss_fn)
    with _style.progress(console, "steps") as bar:
        task = bar.add_task("training", total=steps)
        for i in range(steps):
            rows = rng.permutation(POINTS)[:BATCH]
            inputs = x[rows] * (jnp.nan if i == steps // 2 else 1.0)
            model, state, loss = train_step(model, state, inputs, y[rows], tx)
            if (i + 1) % EVERY == 0:
                val_loss = measure(model, *new)
                history.append(adamx.read(state), loss=loss, val_loss=val_loss)
            bar.advance(task)
    return model, state, history


def print_run(before: Any, after: Any, state: Any, history: Any, out: Console) -> None:
    table = _style.table("Spirals", "Network", "Error, training, %", "new points, %")
    for name, model in (("before", before), ("after", after)):
        errors = [float(error_of(model, *spirals(seed))) for seed in (0, 1)]
        table.add_row(name, *(f"{error:.1f}" for error in errors))
    out.print(table)
    reading = adamx.read(state)
    rates = {k: f"{v:.2g}" for k, v in reading.learning_rate.items()}
    text = f"{reading.count} steps taken, {reading.skipped} left out; rates {rates}"
    out.print(text, highlight=False, markup=False)
    early = history[2].reading.diagnostics
    out.print(f"At step {early.count}, the median step in units of the rate:")
    for layer, numbers in early.layers.items():
        text = f"  {layer:<16} {numbers['r/p50']:.2f}"
        out.print(text, highlight=False, markup=False)
    found = [f"{x.layer}: {x.what}" for x in adamx.health(history)]
    out.print(f"Findings: {found or 'none'}", highlight=False, markup=False)


def draw(models: dict[str, Any], path: Path) -> Path:
    """What each network says of the plane, and the points it learned from."""
    figure, axes = _style.new_figure(len(models), 9, 4.9, sharey=True)
    grid = np.linspace(-1.2, 1.2, 161)
    plane = jnp.asarray(
        np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2), jnp.float32
    )
    x, y = map(np.asarray, spirals(0))
    styles = _style.line_styles(["one arm", "the other"]).values()
    colors = ("#0072B2", "#E69F00")
    for ax, (name, model) in zip(axes, models.items(), strict=True):
        says = jax.nn.sigmoid(jax.vmap(model)(plane)).reshape(161, 161)
        ax.contourf(grid, grid, says, np.linspace(0, 1, 11), cmap="cividis", alpha=0.45)
        ax.contour(grid, grid, says, [0.5], colors="#444444", linewidths=1.0)
        for arm, (style, color) in enumerate(zip(styles, colors, strict=True)):
            points = x[y == arm]
            ax.plot(*points.T, "o", ms=3, mec="none", color=color, label=style["label"])
        ax.set(title=name, xlabel="x", aspect="equal")
        ax.grid(False)
    axes[0].set_ylabel("y")
    return _style.save(figure, path, "Two spirals, an Equinox network")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="200 steps")
    args = parser.parse_args()
    args.steps = 200 if args.quick else args.steps
    args.out.mkdir(parents=True, exist_ok=True)
    console, before = Console(), make_network(jax.random.key(0))
    tx = make_optimizer(args.steps)
    params = eqx.filter(before, eqx.is_inexact_array)
    console.print(str(adamx.describe(tx, params)), highlight=False, markup=False)
    after, state, history = train(before, tx, args.steps, console)
    print_run(before, after, state, history, console)
    models = {"Before training": before, f"After {args.steps} steps": after}
    picture = draw(models, args.out / "equinox_mlp.png")
    page = args.out / "equinox_mlp.html"
    adamx.report(history, page, title="Two spirals, an Equinox network")
    console.print(f"Saved {picture} and {page}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
