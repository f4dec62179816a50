"""A run of PyTorch goes on in JAX, and is the run that PyTorch would have made.

A small convolutional network learns the digits of scikit-learn in PyTorch, with AdamW
in two groups: matrices decay, biases and norms do not and have twice the rate. Half-way
its checkpoint is written; `adamx.interop.convert_torch` makes parameters, optimizer and
state of it, and the second half is run from there in PyTorch and in Flax, on the same
batches.

Run it from the repository root, after `pip install -e '.[examples,torch]'`; it needs no
network and takes about 45 s of processor time:

    python examples/from_torch.py              # tables and picture in outputs/
    python examples/from_torch.py --quick      # 20 steps

What to expect: both losses are the same to five digits; the parameters differ by a
thousandth of a step, since the gradients are summed in another order. Compare `fresh
state`, the same weights with a new state of the optimizer, which is what one has
without the conversion: it is tens of steps away.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import _style
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import adamx

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit(
        "This example begins in PyTorch, which is not installed. Install what it needs "
        "with: pip install 'adamx[examples,torch]'"
    )
try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise ImportError(
        "This example takes its digits from scikit-learn, which is not installed. "
        "Install what it needs with: pip install 'adamx[examples]'"
    ) from error

RATE, BATCH, WIDTH = 3e-3, 64, 16


class TorchNet(nn.Module):
    """Convolutions, mean over the image, a norm, two Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.conv_out = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Any) -> Any:
        """Logits."""
        x = nn.functional.silu(self.conv_in(x[:, None]))
        # Not flattened: channels come first there and last here.
        x = nn.functional.silu(self.conv_out(x)).mean((2, 3))
        return self.head(torch.tanh(self.hidden(self.norm(x))))


class FlaxNet(nnx.Module):
    """The same; the layers have the same names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        pads = {"padding": ((1, 1), (1, 1)), "rngs": rngs}
        self.conv_in = nnx.Conv(1, WIDTH, (3, 3), strides=2, **pads)
        self.conv_out = nnx.Conv(WIDTH, WIDTH, (3, 3), **pads)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)  # torch's eps
        self.hidden = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        x = jax.nn.silu(self.conv_in(x[..., None]))
        x = jax.nn.silu(self.conv_out(x)).mean((1, 2))
        return self.head(jnp.tanh(self.hidden(self.norm(x))))


def batches(steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images in [0, 1] and labels, for each step."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(images), (steps, BATCH))
    return [(images[own], labels[own]) for own in rows]


def torch_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW in two groups, told the parameters' names."""
    named = list(model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": 0.1},
            {
                "params": [(n, p) for n, p in named if p.ndim < 2],
                "weight_decay": 0.0,
                "lr": 2 * RATE,
            },
        ],
        lr=RATE,
    )


def torch_steps(model: nn.Module, optimizer: Any, data: Any, advance: Any) -> list:
    """Trains in PyTorch; the losses."""
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(torch.from_numpy(x)), torch.from_numpy(y)
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        advance()
    return losses


def flax_step(tx: Any) -> Any:
    """A compiled step of training in Flax."""
    graph = nnx.split(FlaxNet(nnx.Rngs(0)), nnx.Param)[0]

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state, loss

    return step


def flax_steps(step: Any, params: Any, state: Any, data: Any, advance: Any) -> Any:
    """Trains in Flax; parameters and losses."""
    losses = []
    for x, y in data:
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
        advance()
    return params, losses


def apart(params: Any, model: nn.Module) -> float:
    """The largest difference of a parameter, in learning rates."""
    theirs = adamx.interop.params_from_torch(model.state_dict(), params)
    found = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), params, theirs)
    return float(max(jax.tree.leaves(found))) / RATE


def draw(losses: dict[str, list], begin: int, path: Path) -> Path:
    figure, axes = _style.new_figure(1, 7, 4.2)
    for name, style in _style.line_styles(losses).items():
        axes.plot(begin + np.arange(len(losses[name])), losses[name], **style)
    axes.set(xlabel="Step", ylabel="Training loss", yscale="log")
    return _style.save(figure, path, "From the same checkpoint of PyTorch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--steps", type=int, default=200, help="of each half (200)")
    parser.add_argument("--quick", action="store_true", help="20 steps")
    args = parser.parse_args()
    steps = 20 if args.quick else args.steps
    if steps < 1:
        parser.error("--steps must be at least 1")
    console, began = Console(), time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = batches(2 * steps)
    torch.manual_seed(0)
    model = TorchNet()
    optimizer = torch_optimizer(model)
    with _style.progress(console, "steps") as progress:

        def bar(name: str) -> Any:
            task = progress.add_task(name, total=steps)
            return lambda: progress.advance(task)

        torch_steps(model, optimizer, data[:steps], bar("PyTorch"))
        saved = args.out / "run.pt"
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(parts, saved)

        params = nnx.state(FlaxNet(nnx.Rngs(0)), nnx.Param)
        run = adamx.interop.convert_torch(adamx.interop.load_torch(saved), params)
        rest, losses = data[steps:], {}
        losses["PyTorch"] = torch_steps(model, optimizer, rest, bar("PyTorch goes on"))
        ended, differences = {}, {}
        step = flax_step(run.tx)
        starts = {"Flax": run.state, "fresh state": run.tx.init(run.params)}
        for name, state in starts.items():
            ended[name], losses[name] = flax_steps(
                step, run.params, state, rest, bar(name)
            )
            differences[name] = apart(ended[name], model)

    console.print(str(run), highlight=False, markup=False, soft_wrap=True)
    at = sorted({0, steps // 4, steps // 2, steps - 1})
    table = _style.table(
        f"Loss at step {steps} + ...",
        "run",
        *(str(i + 1) for i in at),
        "apart (rates)",
    )
    for name, values in losses.items():
        gap = differences.get(name)
        shown = "" if gap is None else f"{gap:.2g}"
        table.add_row(name, *(f"{values[i]:.5f}" for i in at), shown)
    console.print(table)
    picture = draw(losses, steps, args.out / "from_torch.png")
    console.print(f"Saved {saved} and {picture}", soft_wrap=True, highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


if __name__ == "__main__":
    main()
