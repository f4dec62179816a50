"""The question: what a run needs that is killed, and goes on as if it had not been.

A character-level transformer in Flax nnx learns the texts of Python's own help with
AdamW: warmup and cosine, clipping, no decay on scales, a guard, diagnostics. Run it
from the repository root, after `pip install -e '.[examples]'`; it needs no network and
takes about a minute:

    python examples/char_lm.py              # samples, table, picture, report
    python examples/char_lm.py --quick      # a smaller model, fewer steps

With `--resume` (and `pip install -e '.[checkpoints]'`) it saves as it goes, and the
same command goes on from the newest checkpoint that is whole, whenever and however
often the run was killed, in the middle of a save too:

    python examples/char_lm.py --resume     # Ctrl-C or kill -9, and once more

What to see: `outputs/char_lm.png` and `outputs/char_lm.html`; a text before training
and after it. A resumed run ends with the bits of the run that was never killed, and so
does its history, because everything is in the checkpoint or follows from it:

    parameters, moments, counters      the model and the optimizer
    rate, skipped steps                the optimizer's state
    order of the data                  the step and the key, by fold_in
    history of readings                a file; its length is in the checkpoint, and
                                       what was written after it is cut off
"""

import argparse
import inspect
import math
import os
import shutil
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

import _style
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import adamx
from adamx.interop import restore, save, steps

HEADS, LENGTH, BATCH = 4, 64, 32
RATE, EVERY, VALIDATE = 8e-3, 10, 50
SAMPLE, WARMTH = 320, 0.7
# Flax below 0.11 has the model inside the optimizer.
TAKES_MODEL = "model" in inspect.signature(nnx.Optimizer.update).parameters


# ------------------------------------------------------------------------------ text


class Text(NamedTuple):
    """Codes of the characters to train on, those held out, and the characters."""

    train: jax.Array
    held_out: jax.Array
    alphabet: str


def load_text() -> Text:
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    alphabet, codes = np.unique(letters, return_inverse=True)
    data = jnp.asarray(codes, jnp.int32)
    return Text(data[:-20_000], data[-20_000:], "".join(map(chr, alphabet)))


def batch_of(data: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """The rows of a step: of it and the key alone, whatever ran before."""
    own = jax.random.fold_in(key, step)
    starts = jax.random.randint(own, (BATCH,), 0, len(data) - LENGTH)
    return data[starts[:, None] + jnp.arange(LENGTH + 1)]


# ----------------------------------------------------------------------------- model


class Block(nnx.Module):
    """Attention to what came before, then two layers, both added to their input."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

        self.norm_1 = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.norm_2 = nnx.RMSNorm(width, rngs=rngs)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        parts = jnp.split(self.qkv(self.norm_1(x)), 3, axis=-1)
        q, k, v = (part.reshape(*part.shape[:-1], HEADS, -1) for part in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class CharLM(nnx.Module):
    """Codes of characters, (batch, LENGTH) -> logits of the next one at each place."""

    def __init__(self, size: int, width: int, blocks: int, rngs: nnx.Rngs):
        self.blocks = blocks
        self.embed = nnx.Embed(size, width, rngs=rngs)
        self.place = nnx.Embed(LENGTH, width, rngs=rngs)
        for i in range(blocks):
            setattr(self, f"block_{i}", Block(width, rngs))
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, size, use_bias=False, rngs=rngs)

    def __call__(self, codes: jax.Array) -> jax.Array:  # noqa: D102
        x = self.embed(codes) + self.place(jnp.arange(LENGTH))
        for i in range(self.blocks):
            x = getattr(self, f"block_{i}")(x)
        return self.head(self.norm(x))


def loss_fn(model: CharLM, rows: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per character; rows: (batch, LENGTH + 1)."""
    logits = model(rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


@nnx.jit
def mean_loss(model: CharLM, data: jax.Array) -> jax.Array:
    """Over all windows of the data, one after another."""
    count = (len(data) - 1) // LENGTH
    starts = LENGTH * jnp.arange(count)
    return loss_fn(model, data[starts[:, None] + jnp.arange(LENGTH + 1)])


@nnx.jit
def continued(model: CharLM, codes: jax.Array, key: jax.Array) -> jax.Array:
    """SAMPLE characters after the given LENGTH, each drawn from the model."""
    graph, state = nnx.split(model)

    def one(codes: jax.Array, key: jax.Array) -> Any:
        logits = nnx.merge(graph, state)(codes[None])[0, -1]
        new = jax.random.categorical(key, logits / WARMTH)
        return jnp.append(codes[1:], new), new

    return jax.lax.scan(one, codes, jax.random.split(key, SAMPLE))[1]


# -------------------------------------------------------------------------- training


def make_optimizer(total: int) -> optax.GradientTransformation:
    rate = adamx.schedules.warmup_cosine(RATE, total, warmup=0.1)
    adamw = adamx.adamw(rate, weight_decay=0.1, mask=adamx.decay_mask())
    clipped = optax.chain(adamx.clip_by_global_norm(1.0), adamw)
    return adamx.diagnose(adamx.guard(clipped, spike_zscore=6.0), every=EVERY)


@nnx.jit
def train_step(
    model: CharLM, optimizer: nnx.Optimizer, batch: Any, is_bad: jax.Array
) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_fn)(model, batch_of(*batch))
    grads = jax.tree.map(lambda g: jnp.where(is_bad, jnp.nan, g), grads)
    optimizer.update(*[model] * TAKES_MODEL, grads)
    return loss


class Checkpoints:
    """The files of a run, and what is in them.

    Args:
      folder: of the run; None: nothing is saved.
      every: steps between two checkpoints.
    """

    def __init__(self, folder: Path | None, every: int):
        self.every, self.log, self.saves = every, None, None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.log, self.saves = folder / "history.jsonl", folder / "checkpoints"

    def load(self, model: CharLM, optimizer: nnx.Optimizer, key: Any) -> Any:
        """The newest checkpoint that is whole, into model and optimizer; step, key."""
        run = self._tree(model, optimizer, key, 0)
        if self.saves is not None and steps(self.saves):
            run = restore(self.saves, run, fallback=True)
            nnx.update((model, optimizer), run["state"])
        if self.saves is not None and self.log is not None:
            for later in steps(self.saves):
                if later > int(run["step"]):  # damaged: passed over, to be saved anew
                    shutil.rmtree(self.saves / str(later))
            self.log.touch()
            if self.log.stat().st_size < int(run["length"]):
                raise SystemExit(f"{self.log} was cut: delete {self.log.parent}.")
            os.truncate(self.log, int(run["length"]))
        return int(run["step"]), run["key"]

    def after(self, step: int, total: int, *run: Any) -> None:
        """Saves, where it is time to."""
        if self.saves is not None and (step % self.every == 0 or step == total):
            with open(self.log, "rb") as log:
                os.fsync(log.fileno())  # a checkpoint never knows more than the disk
            tree = self._tree(*run, step) | {"length": self.log.stat().st_size}
            save(self.saves, step, tree, keep=3)

    def _tree(self, model: Any, optimizer: Any, key: Any, step: int) -> dict[str, Any]:
        _, state = nnx.split((model, optimizer))
        return {"state": state, "key": key, "step": step, "length": 0}


def train(
    args: argparse.Namespace, text: Text, files: Checkpoints, console: Console
) -> Any:
    """Trains; the model, the optimizer and the history of readings."""

    def create() -> tuple[CharLM, nnx.Optimizer]:
        model = CharLM(len(text.alphabet), args.width, args.blocks, nnx.Rngs(0))
        return model, nnx.Optimizer(model, make_optimizer(args.steps), wrt=nnx.Param)

    model, optimizer = nnx.jit(create)()  # one program, not one for each array
    begun, key = files.load(model, optimizer, jax.random.key(1))
    history = adamx.History(files.log)
    if begun:
        console.print(f"Goes on from step {begun}, {len(history)} records.")
    print_sample(f"At step {begun}", model, text, console)
    with _style.progress(console, "steps") as bar:
        task = bar.add_task("training", total=args.steps, completed=begun)
        for i in range(begun, args.steps):
            is_bad = jnp.array(i in args.bad)
            batch = (text.train, key, jnp.array(i))
            loss = train_step(model, optimizer, batch, is_bad)
            if (i + 1) % EVERY == 0:
                is_due = (i + 1) % VALIDATE == 0 or i + 1 == args.steps
                val_loss = mean_loss(model, text.held_out) if is_due else None
                history.append(adamx.read(optimizer), loss=loss, val_loss=val_loss)
            files.after(i + 1, args.steps, model, optimizer, key)
            bar.advance(task)
    return model, optimizer, history


# --------------------------------------------------------------------------- results


def print_sample(title: str, model: CharLM, text: Text, console: Console) -> None:
    held_out = "".join(text.alphabet[code] for code in text.held_out.tolist())
    begin = held_out.index("\n\n") + 2  # where a paragraph does
    given = text.held_out[begin : begin + LENGTH]
    drawn = continued(model, given, jax.random.key(2))
    given, drawn = (
        "".join(text.alphabet[c] for c in x.tolist()) for x in (given, drawn)
    )
    console.rule(title, align="left")
    console.print(given, style="dim", end="", markup=False, highlight=False)
    console.print(drawn, markup=False, highlight=False)


def print_run(run: Any, text: Text, console: Console) -> None:
    model, optimizer, history = run
    bits = 1 / math.log(2.0)
    shown = _style.table(
        "The run", "step", "bits, training", "held out", "rate", "norm", "skipped"
    )
    for record in history:
        if (val_loss := record.metrics.get("val_loss")) is not None:
            now = record.reading
            losses = [f"{bits * x:.3f}" for x in (record.metrics["loss"], val_loss)]
            rest = (
                f"{now.learning_rate:.1e}",
                f"{now.grad_norm:.2f}",
                str(now.skipped),
            )
            shown.add_row(str(record.step), *losses, *rest)
    console.print(shown)

    counts = np.bincount(text.train, minlength=len(text.alphabet)) + 1
    seen = np.log2(counts.sum() / counts)[text.held_out].mean()
    shown = _style.table("Held out", "who guesses", "bits per character")
    shown.add_row("nobody: all characters alike", f"{math.log2(len(counts)):.3f}")
    shown.add_row("how often each one is", f"{seen:.3f}")
    loss = float(mean_loss(model, text.held_out))
    shown.add_row("the transformer", f"{bits * loss:.3f}")
    console.print(shown)
    reading = adamx.read(optimizer)
    found = [f"{x.layer}: {x.what}" for x in adamx.health(history)]
    console.print(f"{reading.skipped} steps skipped; findings: {found or 'none'}")


def draw(history: adamx.History, path: Path) -> Path:
    figure, (left, right) = _style.new_figure(2, 9, 4)
    styles = _style.line_styles(["a batch", "held out"])
    for name, column in (("a batch", "loss"), ("held out", "val_loss")):
        has = history.is_recorded(column)
        values = history.column(column)[has] / math.log(2.0)
        left.plot(history.steps[has], values, **styles[name])
    left.set(title="Loss", xlabel="step", ylabel="bits per character")
    right.plot(history.steps, history.column("learning_rate"), color="#0072B2")
    right.set(title="Learning rate", xlabel="step")
    return _style.save(figure, path, "A character-level transformer")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="40 steps, a small model")
    parser.add_argument("--resume", action="store_true", help="save, and go on")
    parser.add_argument(
        "--save-every", type=int, default=100, help="steps; 10 if quick"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument(
        "--bad",
        type=int,
        nargs="*",
        default=[],
        help="steps whose gradients become NaN, as a broken batch makes them",
    )
    args = parser.parse_args()
    if args.quick:
        args.steps, args.width, args.blocks, args.save_every = 40, 16, 1, 10
    return args


def main() -> None:
    args, console, text = parse(), Console(), load_text()
    # Another size or length is another run: the schedule has another end.
    name = f"char_lm_{args.blocks}x{args.width}_{args.steps}"
    files = Checkpoints(args.out / name if args.resume else None, args.save_every)
    run = train(args, text, files, console)
    print_sample(f"At step {args.steps}", run[0], text, console)
    print_run(run, text, console)
    picture = draw(run[2], args.out / "char_lm.png")
    page = args.out / "char_lm.html"
    adamx.report(run[2], page, title="A character-level transformer")
    console.print(f"Saved {picture} and {page}")


if __name__ == "__main__":
    main()
