"""The question: how sharp does training let the loss become, and what decides it.

Adam trains a small network on the digits of scikit-learn with the whole training set at
each step, with three learning rates. Every so many steps `adamx.sharpness` measures the
largest eigenvalue of the Hessian, plain and in Adam's own measure, P^(-1/2) H P^(-1/2)
with P = sqrt(v_hat) + eps.

Run it from the repository root, after `pip install -e '.[examples]'`; it needs no
network and takes about 80 s of processor time:

    python examples/sharpness.py              # table and picture in outputs/
    python examples/sharpness.py --quick      # 60 steps

What to expect: the preconditioned sharpness rises to 38 / learning rate, the threshold
for b1 = 0.9, and stays there, whatever the rate. The plain one goes its own way, and is
lower where the rate is larger. With rates of 0.001 and less it takes longer. Cohen et
al., "Adaptive Gradient Methods at the Edge of Stability" (2022), section 4, show the
same for deep networks.

Everything is at Adam's default (b2 = 0.999) but for eps = 1e-7, as in the paper.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import _style
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import adamx

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise ImportError(
        "This example takes its digits from scikit-learn, which is not installed. "
        "Install what it needs with: pip install 'adamx[examples]'"
    ) from error

SIZES = (64, 48, 48, 10)
RATES = (2e-3, 4e-3, 8e-3)
EXAMPLES = 1000


def load_data() -> tuple[jax.Array, jax.Array]:
    """Images in [0, 1] without their mean, and labels of zeros and one 1."""
    images, labels = load_digits(return_X_y=True)
    x = (images[:EXAMPLES] / 16).astype(np.float32)
    y = np.eye(10, dtype=np.float32)[labels[:EXAMPLES]]
    return jnp.asarray(x - x.mean(axis=0)), jnp.asarray(y)


def init_params(seed: int) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(seed), len(SIZES) - 1)
    return [
        {"kernel": jax.random.normal(key, (a, b)) / jnp.sqrt(a), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def loss_fn(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Half the squared error."""
    x, y = batch
    for i, layer in enumerate(params):
        x = x @ layer["kernel"] + layer["bias"]
        if i < len(params) - 1:
            x = jnp.tanh(x)
    return 0.5 * jnp.mean(jnp.sum((x - y) ** 2, axis=-1))


def make_run(batch: Any, every: int) -> Any:
    """Compiled once for all rates: `every` steps."""

    @jax.jit
    def run(params: Any, state: Any, rate: jax.Array) -> Any:
        tx = adamx.adam(rate, eps=1e-7)

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = tx.update(gradients, state, params)
            return (adamx.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), length=every)
        return params, state, losses

    return run


def train(
    rate: float, steps: int, every: int, batch: Any, run: Any, progress: Any
) -> tuple[np.ndarray, list[adamx.Sharpness]]:
    """Losses of all steps, and what was measured behind every so many."""
    params = init_params(0)
    state = adamx.adam(jnp.float32(rate), eps=1e-7).init(params)
    losses, found = [], []
    task = progress.add_task(f"rate {rate:g}", total=steps)
    for _ in range(steps // every):
        params, state, new = run(params, state, jnp.float32(rate))
        losses.append(np.asarray(new))
        found.append(adamx.sharpness(loss_fn, params, state, batch))
        progress.advance(task, every)
    return np.concatenate(losses), found


def print_table(runs: dict[float, Any], console: Console) -> None:
    """Medians over the last third of the measurements."""
    table = _style.table(
        "Adam with whole batches",
        "Rate",
        "Threshold",
        "Precond.",
        "Edge",
        "Range",
        "Hessian",
        "Loss",
    )
    for rate, (losses, found) in runs.items():
        last = found[-max(len(found) // 3, 1) :]
        edges = [x.edge for x in last]
        table.add_row(
            f"{rate:g}",
            f"{found[-1].threshold:,.0f}",
            f"{np.median([x.preconditioned for x in last]):,.0f}",
            f"{np.median(edges):.3f}",
            f"{min(edges):.2f}-{max(edges):.2f}",
            f"{np.median([x.hessian for x in last]):.1f}",
            f"{losses[-1]:.5f}",
        )
    console.print(table)


def draw(runs: dict[float, Any], every: int, path: Path) -> Path:
    figure, (left, middle, right) = _style.new_figure(3, 12, 4.2)
    styles = _style.line_styles([f"rate {rate:g}" for rate in runs])
    for style, (losses, found) in zip(styles.values(), runs.values(), strict=True):
        steps = every * np.arange(1, len(found) + 1)
        left.plot(steps, [x.preconditioned for x in found], **style)
        left.axhline(found[-1].threshold, color=style["color"], lw=0.9, ls=":")
        middle.plot(steps, [x.hessian for x in found], **style)
        right.plot(np.arange(1, len(losses) + 1), losses, **style)
    left.set(
        title="Preconditioned sharpness;\ndotted: 38 / learning rate", xlabel="Step"
    )
    middle.set(title="Sharpness: largest eigenvalue\nof the Hessian", xlabel="Step")
    right.set(title="Training loss", xlabel="Step")
    for axes in (left, right):
        axes.set_yscale("log")
    middle.set_ylim(bottom=0)
    title = "Full-batch Adam brings the curvature up to its own threshold"
    return _style.save(figure, path, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--steps", type=int, default=2000, help="of each rate (2000)")
    parser.add_argument("--quick", action="store_true", help="60 steps")
    args = parser.parse_args()
    console, began = Console(), time.perf_counter()
    steps, every = (60, 20) if args.quick else (args.steps, 40)
    if steps < every:
        parser.error(f"--steps must be at least {every}")
    batch = load_data()
    run = make_run(batch, every)
    with _style.progress(console, "steps") as progress:
        runs = {rate: train(rate, steps, every, batch, run, progress) for rate in RATES}
    print_table(runs, console)
    for rate, (_, found) in runs.items():
        console.print(f"rate {rate:g}, at the end:\n{found[-1]}", highlight=False)
    picture = draw(runs, every, args.out / "sharpness.png")
    console.print(f"Saved {picture}", soft_wrap=True, highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


if __name__ == "__main__":
    main()
