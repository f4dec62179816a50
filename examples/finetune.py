"""The question: what of the old is left when a network learns something new.

A small Flax network learns the digits 0 to 4; then, with a new head, the digits 5 to 9
from ten images of each. Five ways to do so, 60 steps each: from scratch, with one rate
for all, the new head alone on a frozen backbone, a rate for the head and a smaller one
for the backbone (`groups`), and the same with SGD taking over from Adam for the last
30 % of the steps (`adam_to_sgd`). Measured are the new digits and, with the old head
put back, the old ones.

Run it from the repository root, after `pip install -e '.[examples]'`; it needs no
network and ends within a minute on two CPU cores:

    python examples/finetune.py             # tables, and a picture in outputs/
    python examples/finetune.py --quick     # 2 seeds
    python examples/finetune.py --search    # the rates

What to expect: the new digits alone are learned best from scratch, 96 % (what was
learned before does not help here), which leaves nothing of the old ones. What counts
is both: one small rate ends at 88 % of the new and 94 % of the old, a frozen backbone
at 72 and 100, the groups at 87 and 97: a head that begins anew may learn three times
as fast as what is to be kept. That is a point more in the mean of both than with one
rate, and less of a spread over the seeds. SGD at the end changes nothing (92.0 for
92.3 in the mean, where seeds differ by 1.3): there is little left to learn.

Rates: the same search for each (`--search`): eight seeds that are not reported, the
rates of GRID for the head, times those of SHARES for the backbone; taken is what has
the highest mean of both accuracies, on images kept for this (from scratch: of the new
digits alone). The test images played no part.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _style
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import adamx

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise ImportError(
        "This example takes its digits from scikit-learn, which is not installed. "
        "Install what it needs with: pip install 'adamx[examples]'"
    ) from error

BEFORE, STEPS, SWITCH = 300, 60, 0.7  # steps before, steps after, Adam's part of them
PER_CLASS, BATCH = 10, 20
GRID, SHARES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0.03, 0.1, 0.3)
SEARCH_SEEDS = range(100, 108)
RATES = {  # of the head, of the backbone
    "From scratch": (1e-2, 1e-2),
    "One rate": (3e-3, 3e-3),
    "Head only": (1e-1, 0.0),
    "Groups": (1e-2, 3e-3),
    "Groups, then SGD": (1e-2, 3e-3),
}
LAST = "Groups, then SGD"


def make_optimizer(name: str, head: Any, backbone: Any) -> optax.GradientTransformation:
    """One of the five; `head` and `backbone` are peaks of a warm-up and a cosine."""
    mask = adamx.decay_mask()

    def anneal(peak):
        return adamx.schedules.warmup_cosine(peak, STEPS, warmup=0.1)

    def adamw(peak):
        return adamx.adamw(anneal(peak), weight_decay=0.01, mask=mask)

    def handed_over(peak):
        options = {"switch_fraction": SWITCH, "weight_decay": 0.01, "mask": mask}
        return adamx.adam_to_sgd(anneal(peak), total_steps=STEPS, **options)

    if name in ("From scratch", "One rate"):
        return adamw(head)
    if name == "Head only":
        return adamx.groups([("^head/", adamw(head))], default=adamx.freeze())
    make = handed_over if name == LAST else adamw
    return adamx.groups([("^head/", make(head))], default=make(backbone))


# ------------------------------------------------------------------ digits and network


class Digits(NamedTuple):
    """Images of 64 pixels in [0, 1] and their classes, 0 to 4 within each half."""

    x: jax.Array
    y: jax.Array


class Data(NamedTuple):
    """Old digits to train on, to choose rates by, to test; the new ones likewise."""

    old: Digits
    old_kept: Digits
    old_test: Digits
    pool: Digits
    new_kept: Digits
    new_test: Digits


def load_data() -> Data:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order].astype(np.float32) / 16, labels[order]
    parts = []
    for is_mine in (labels < 5, labels >= 5):
        x, y = jnp.asarray(images[is_mine]), jnp.asarray(labels[is_mine] % 5)
        parts += [
            Digits(x[a:b], y[a:b]) for a, b in ((0, 500), (500, 700), (700, None))
        ]
    return Data(*parts)


def few(pool: Digits, seed: int) -> Digits:
    """PER_CLASS images of each class, drawn by the seed."""
    rng, y = np.random.default_rng(seed), np.asarray(pool.y)
    rows = [rng.permutation(np.flatnonzero(y == c))[:PER_CLASS] for c in range(5)]
    return Digits(*(x[np.concatenate(rows)] for x in pool))


class Backbone(nnx.Module):
    """Pixels -> 64 features."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 64, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        return nnx.relu(self.second(nnx.relu(self.first(x))))


class Network(nnx.Module):
    """Pixels -> logits of five classes."""

    def __init__(self, rngs: nnx.Rngs):
        self.backbone = Backbone(rngs)
        self.head = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        return self.head(self.backbone(x))


# The first axis of what follows is the seeds.
@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def init_params(key: jax.Array, fold: int) -> nnx.State:
    return nnx.split(Network(nnx.Rngs(jax.random.fold_in(key, fold))), nnx.Param)[1]


def logits_of(params: nnx.State, x: jax.Array) -> jax.Array:
    graph = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))[0]
    return nnx.merge(graph, params)(x)


def loss_fn(params: nnx.State, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = logits_of(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params: nnx.State, digits: Digits) -> jax.Array:
    """In %."""
    return 100 * (logits_of(params, digits.x).argmax(-1) == digits.y).mean()


def with_head(params: nnx.State, head: nnx.State) -> nnx.State:
    changed = jax.tree.map(lambda x: x, params)  # a copy
    changed["head"] = head
    return changed


# -------------------------------------------------------------------------- training


def make_run(make_tx: Callable[..., Any], steps: int, batch: int, look: Any) -> Any:
    """Trains for all seeds at once; `look(params, head)` is asked before each step."""

    def run(rates, params, old_head, digits, key):
        tx = make_tx(*rates)

        def step(carry, i):
            params, state = carry
            seen = look(params, old_head)
            rows = jax.random.randint(
                jax.random.fold_in(key, i), (batch,), 0, len(digits.x)
            )
            grads = jax.grad(loss_fn)(params, digits.x[rows], digits.y[rows])
            updates, state = tx.update(grads, state, params)
            return (adamx.apply_updates(params, updates), state), seen

        start = (params, tx.init(params))
        (params, state), seen = jax.lax.scan(step, start, jnp.arange(steps))
        last = look(params, old_head)
        curves = jax.tree.map(lambda a, b: jnp.append(a, b), seen, last)
        return params, state, curves

    return jax.jit(jax.vmap(run, in_axes=(None, 0, 0, 0, 0)))


def pretrain(data: Data, keys: jax.Array) -> nnx.State:
    def make_tx(peak):
        rate = adamx.schedules.warmup_cosine(peak, BEFORE, warmup=0.1)
        return adamx.adamw(rate, weight_decay=0.01, mask=adamx.decay_mask())

    params = init_params(keys, 0)
    run = make_run(make_tx, BEFORE, 64, lambda params, head: ())
    same = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(keys), *x.shape)), data.old)
    return run((jnp.float32(3e-3),), params, params["head"], same, keys)[0]


class Start(NamedTuple):
    """What all five start from: parameters, the images of each seed, keys."""

    old: nnx.State
    scratch: nnx.State
    images: Digits
    keys: jax.Array


def make_start(data: Data, seeds: Any) -> Start:
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    drawn = zip(*(few(data.pool, seed) for seed in seeds), strict=True)
    images = Digits(*map(jnp.stack, drawn))
    return Start(pretrain(data, keys), init_params(keys, 1), images, keys)


def finetuner(name: str, new: Digits, old: Digits) -> Callable[..., Any]:
    """A function of the rates and of the start: the state, and curves by step."""

    def look(params, head):
        return accuracy(params, new), accuracy(with_head(params, head), old)

    run = make_run(functools.partial(make_optimizer, name), STEPS, BATCH, look)

    def finetune(rates, start):
        params = with_head(start.old, start.scratch["head"])  # the head is new
        params = start.scratch if name == "From scratch" else params
        rates = tuple(map(jnp.float32, rates))
        _, state, curves = run(
            rates, params, start.old["head"], start.images, start.keys
        )
        return state, [np.asarray(curve).T for curve in curves]

    return finetune


def search(data: Data, console: Console) -> None:
    start = make_start(data, SEARCH_SEEDS)
    for name in RATES:
        finetune = finetuner(name, data.new_kept, data.old_kept)
        shares = (
            SHARES if name.startswith("Groups") else (0.0 if "only" in name else 1.0,)
        )
        found = {}
        for head, share in itertools.product(GRID, shares):
            new, old = (x[-1].mean() for x in finetune((head, head * share), start)[1])
            score = new if name == "From scratch" else (new + old) / 2
            found[head, head * share] = score, new, old
        best = max(found, key=found.get)
        console.print(name, best, [f"{x:.1f}" for x in found[best]])


# ------------------------------------------------------------------ tables and picture


def print_table(runs: dict[str, Any], console: Console) -> None:
    headings = ("Head", "Backbone", "New", "Old", "Both")
    table = _style.table(f"Test accuracy after {STEPS} steps, %", "Training", *headings)
    for name, (_, (new, old)) in runs.items():
        cells = [f"{rate:g}" if rate else "frozen" for rate in RATES[name]]
        for x in (new[-1], old[-1], (new[-1] + old[-1]) / 2):
            cells.append(f"{x.mean():.1f} ± {x.std():.1f}")
        table.add_row(name, *cells)
    console.print(table)
    note = f"""Mean over {new.shape[1]} seeds; ±: standard deviation over the seeds.
Head, backbone: their rates. Old: digits 0 to 4, with the old head put back.
"""
    console.print(note, soft_wrap=True, highlight=False)


def print_groups(start: Start, state: Any, console: Console) -> None:
    """The table of the parameters, and what the state says at the end."""
    params = jax.tree.map(lambda x: x[0], start.old)
    tx = make_optimizer(LAST, *RATES[LAST])
    console.print(f"adamx.describe of {LAST!r}:", highlight=False)
    console.print(str(adamx.describe(tx, params)), highlight=False, markup=False)
    reading = adamx.read(state)
    for group, step in reading.switch_step.items():
        rate = float(np.mean(reading.learning_rate[group]))
        text = f"{group}: SGD since step {int(step[0])}, its last rate {rate:.2g}"
        console.print(text, highlight=False, markup=False)


def draw(runs: dict[str, Any], path: Path) -> Path:
    figure, (left, right) = _style.new_figure(2, 10, 4.7, sharey=True)
    for name, style in _style.line_styles(runs).items():
        for axes, curve in zip((left, right), runs[name][1], strict=True):
            _style.mean_and_range(axes, np.arange(len(curve)), curve, style)
    for axes, title in ((left, "New digits, 5 to 9"), (right, "Old digits, 0 to 4")):
        axes.set(title=title, xlabel="Step", ylim=(0, 103))
        axes.axvline(round(SWITCH * STEPS), color="#B0B0B0", linewidth=1.0, zorder=0)
    left.set_ylabel("Test accuracy (%)")
    words = {"fontsize": 8, "color": "#707070", "ha": "left", "va": "bottom"}
    right.annotate("SGD takes over", (round(SWITCH * STEPS) + 1, 60), **words)
    seeds = runs[LAST][1][0].shape[1]
    title = f"Ten images of each new digit: mean and range of {seeds} seeds"
    return _style.save(figure, path, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10, help="of each training (10)")
    parser.add_argument("--quick", action="store_true", help="2 seeds")
    parser.add_argument("--search", action="store_true", help="search the rates, stop")
    args = parser.parse_args()
    args.seeds = 2 if args.quick else args.seeds
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    console, data, began = Console(), load_data(), time.perf_counter()
    if args.search:
        search(data, console)
        return
    runs = {}
    with _style.progress(console, unit="trainings") as progress:
        task = progress.add_task("the old digits", total=1 + len(RATES))
        start = make_start(data, range(args.seeds))
        for name, rates in RATES.items():
            progress.update(task, description=name, advance=1)
            runs[name] = finetuner(name, data.new_test, data.old_test)(rates, start)
    print_table(runs, console)
    print_groups(start, runs[LAST][0], console)
    picture = draw(runs, args.out / "finetune.png")
    console.print(f"Saved {picture}", soft_wrap=True, highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


if __name__ == "__main__":
    main()
