"""The question: which layer is sick, and what helps it.

A character-level transformer of two blocks learns the texts of Python's own help. In
one run a layer is sick: the eps of its group is 0.1, large against its gradients, so
that they decide nothing. The loss alone does not say so; `adamx.health` names the layer
and what to try, the example does it, and the loss falls as it should.

Run it from the repository root, after `pip install -e '.[examples]'`; it needs no
network and takes about a minute:

    python examples/diagnose.py              # advice, table, reports in outputs/
    python examples/diagnose.py --quick      # fewer steps

What to see: `outputs/sick.html` and `outputs/healed.html`, one page for each run.
`--tensorboard` writes the same numbers for TensorBoard (needs `pip install
tensorboardX`), as any logger takes them: `reading.scalars()` is a flat dict.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

import _style
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import adamx

WIDTH, HEADS, BLOCKS, LENGTH, BATCH = 32, 4, 2, 32, 16
RATE = 3e-3
SICK = "head"
SICK_EPS = 0.1
EVERY = 10


def load_text() -> tuple[jax.Array, jax.Array, int]:
    """Codes of the characters to train on, those held out, and how many there are."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    alphabet = {letter: i for i, letter in enumerate(sorted(set(text)))}
    codes = jnp.array([alphabet[letter] for letter in text], jnp.int32)
    return codes[:-20_000], codes[-20_000:], len(alphabet)


def init_params(key: jax.Array, size: int) -> Any:
    def normal(*shape: int) -> jax.Array:
        nonlocal key
        key, own = jax.random.split(key)
        return 0.1 * jax.random.normal(own, shape)

    blocks = {
        f"block_{i}": {
            "qkv": normal(WIDTH, 3 * WIDTH),
            "out": normal(WIDTH, WIDTH),
            "up": normal(WIDTH, 4 * WIDTH),
            "down": normal(4 * WIDTH, WIDTH),
        }
        for i in range(BLOCKS)
    }
    ends = {"embedding": normal(size, WIDTH), "position": normal(LENGTH, WIDTH)}
    return {**ends, **blocks, "head": normal(WIDTH, size)}


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def loss_fn(params: Any, rows: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per character; rows: (batch, LENGTH + 1)."""
    x = params["embedding"][rows[:, :-1]] + params["position"]
    for i in range(BLOCKS):
        p = params[f"block_{i}"]
        parts = jnp.split(norm(x) @ p["qkv"], 3, axis=-1)
        q, k, v = (part.reshape(*part.shape[:-1], HEADS, -1) for part in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.reshape(x.shape) @ p["out"]
        x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
    logits = norm(x) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def make_optimizer(sick: Sequence[str]) -> optax.GradientTransformation:
    """AdamW, with too large an eps for the sick layers."""
    adamw = adamx.adamw(RATE, weight_decay=0.01)
    rules = [(f"^{name}$", adamx.adamw(RATE, eps=SICK_EPS)) for name in sick]
    return adamx.diagnose(adamx.groups(rules, default=adamw), every=EVERY)


def train(tx: Any, text: Any, steps: int, history: adamx.History, tick: Any) -> float:
    """Trains from the same start on the same batches; the loss held out at the end."""
    data, held_out, size = text
    params = init_params(jax.random.key(0), size)
    state = tx.init(params)
    starts = jnp.arange(128) * (len(held_out) // 132)
    fixed = held_out[starts[:, None] + jnp.arange(LENGTH + 1)]

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        starts = jax.random.randint(key, (BATCH,), 0, len(data) - LENGTH - 1)
        rows = data[starts[:, None] + jnp.arange(LENGTH + 1)]
        loss, grads = jax.value_and_grad(loss_fn)(params, rows)
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state, loss

    validate = jax.jit(loss_fn)
    for i in range(steps):
        params, state, loss = step(params, state, jax.random.key(i))
        if (i + 1) % EVERY == 0:
            val_loss = validate(params, fixed)
            history.append(adamx.read(state), loss=loss, val_loss=val_loss)
        tick()
    return float(val_loss)


def write_tensorboard(history: adamx.History, folder: Path) -> None:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise SystemExit("--tensorboard needs: pip install tensorboardX") from error
    with SummaryWriter(str(folder)) as writer:
        for record in history:
            for name, value in record.scalars().items():
                writer.add_scalar(name, value, record.step)


def run(name: str, sick: Sequence[str], text: Any, args: Any, console: Console) -> Any:
    history = adamx.History()
    with _style.progress(console, "steps") as bar:
        task = bar.add_task(name, total=args.steps)
        tx = make_optimizer(sick)
        loss = train(tx, text, args.steps, history, lambda: bar.advance(task))
    path = adamx.report(history, args.out / f"{name}.html", title=f"The {name} run")
    if args.tensorboard:
        write_tensorboard(history, args.out / "tensorboard" / name)
    return history, loss, path


def print_advice(history: adamx.History, console: Console) -> list[Any]:
    findings = adamx.health(history)
    for found in findings:
        console.print(str(found), markup=False, highlight=False)
        for cause in found.likely_causes:
            console.print(f"  because: {cause}", highlight=False)
        for advice in found.what_to_try:
            console.print(f"  try: {advice}", highlight=False)
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--quick", action="store_true", help="100 steps")
    args = parser.parse_args()
    args.steps = 100 if args.quick else args.steps
    args.out.mkdir(parents=True, exist_ok=True)
    console, text = Console(), load_text()

    history, sick_loss, page = run("sick", [SICK], text, args, console)
    console.print(
        f"\nThe sick run ends at {sick_loss:.3f} nats per character held out."
    )
    findings = print_advice(history, console)
    worst = {found.layer for found in findings if found.severity == "severe"}
    console.print(
        f"\nThe advice for {sorted(map(str, worst))} is taken: eps as elsewhere."
    )
    still = [name for name in [SICK] if name not in worst]
    healed, loss, other = run("healed", still, text, args, console)
    left = [found for found in adamx.health(healed) if found.severity == "severe"]

    table = _style.table("Held out", "run", "nats per character", "severe findings")
    severe = [found for found in findings if found.severity == "severe"]
    table.add_row("sick", f"{sick_loss:.3f}", str(len(severe)))
    table.add_row("healed", f"{loss:.3f}", str(len(left)))
    console.print(table)
    ratio = np.nanmedian(history.series(SICK, "update_ratio")[1])
    now = np.nanmedian(healed.series(SICK, "update_ratio")[1])
    console.print(f"{SICK}: update over parameter {ratio:.1e}; healed, {now:.1e}.")
    console.print(
        f"Saved {page or args.out / 'sick.html'} and {other or 'healed.html'}"
    )
    if args.tensorboard:
        console.print(f"tensorboard --logdir {args.out / 'tensorboard'} shows both.")


if __name__ == "__main__":
    main()
