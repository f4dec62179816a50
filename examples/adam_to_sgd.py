"""The question: does Adam learn better if SGD takes over before the end.

AdamW, SGD with momentum, and `adamx.adam_to_sgd` with the hand-over after a tenth and
after four fifths of the steps, on two problems:

- A least-squares problem of Wilson et al. (2017), made so that adaptive methods fit it
  and learn nothing: the one feature that tells the classes apart is dwarfed by features
  that occur in a single example each. New examples, without those, are all called
  positive. 100 examples, 1,000 steps, full batches; every seed draws its own.
- scikit-learn's 1,797 handwritten digits, the network of digits.py; 20 epochs of 21
  steps, warm-up over a tenth and cosine decay to 0 for all four.

Run it from the repository root, after `pip install -e '.[examples]'`; it needs no
network and ends within a minute on two CPU cores:

    python examples/adam_to_sgd.py            # table, and a picture in outputs/
    python examples/adam_to_sgd.py --quick    # 2 seeds, few steps

What to expect: on the first problem AdamW ends at 39 % test error, as bad as calling
everything positive, and SGD at 0. Handing over after a tenth of the steps ends at 0
too. Handing over after four fifths changes nothing: the training loss is gone by then,
and with it the gradient that could undo what Adam has learnt. On the digits a hand-over
gains nothing: AdamW ends at 2.5 %, momentum at 3.1 %; after four fifths the hand-over
stays at AdamW's 2.5 %, after a tenth it comes to 2.9 %, in between (seeds differ by
some 0.5 %). A hand-over helps where Adam leads to another solution than SGD, and only
while there is something left to learn.

Rates: on the digits AdamW's and momentum's are those that the search of digits.py
found; on the first problem they are those of benchmarks/paper_tables.py. The hand-over
has AdamW's, and SGD's is matched to Adam's last step (`sgd_learning_rate=None`): no
rate was searched for it.

Source: Wilson, Roelofs, Stern, Srebro & Recht, "The Marginal Value of Adaptive Gradient
Methods in Machine Learning" (2017), section 3.3.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _style
import digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import adamx

EXAMPLES, POSITIVE, TESTS, STEPS = 100, 0.6, 4000, 1000
FRACTIONS = {"SGD after 10 %": 0.1, "SGD after 80 %": 0.8}
RATES = {"separable": (1e-3, 0.01), "digits": (0.01, 0.032)}  # AdamW's, momentum's

MakeOptimizer = Callable[[Any], optax.GradientTransformation]  # from a learning rate


class Run(NamedTuple):
    """One optimizer on one problem, all seeds.

    Attributes:
      error: test error in %, shape (points, seeds).
      switch_step: the last step of Adam's phase; None: it has none.
      sgd_rate: matched, mean over the seeds; None likewise.
    """

    error: np.ndarray
    switch_step: int | None
    sgd_rate: float | None


def make_optimizers(
    steps: int, weight_decay: float, anneal: Callable[[Any], Any]
) -> dict[str, MakeOptimizer]:
    """The four; `anneal` makes a rate a schedule, or leaves it as it is."""

    def handed_over(rate, fraction):
        return adamx.adam_to_sgd(
            anneal(rate),
            total_steps=steps,
            switch_fraction=fraction,
            weight_decay=weight_decay,
        )

    return {
        "AdamW": lambda rate: adamx.adamw(anneal(rate), weight_decay=weight_decay),
        "SGD, momentum": lambda rate: adamx.momentum(anneal(rate)),
        **{
            name: functools.partial(handed_over, fraction=fraction)
            for name, fraction in FRACTIONS.items()
        },
    }


def make_run(error: np.ndarray, state: Any) -> Run:
    reading = adamx.read(state)
    if reading.switch_step is None:
        return Run(error, None, None)
    (held,) = state  # the rate behind the switch; its schedule goes on from there
    return Run(error, int(reading.switch_step[0]), float(np.mean(held.matched_rate)))


# --- The separable problem ------------------------------------------------------------


def separable_data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels, +1 or -1.

    Of the features the first is the label; the next two are always 1; then come five of
    each example's own, of which the first is 1 for a positive one, and all are for a
    negative one.
    """
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(EXAMPLES) < POSITIVE, 1.0, -1.0)
    features = np.zeros((EXAMPLES, 3 + 5 * EXAMPLES))
    features[:, 0], features[:, 1:3] = labels, 1.0
    own = features[:, 3:].reshape(EXAMPLES, EXAMPLES, 5)
    for i, label in enumerate(labels):
        own[i, i, : 1 if label > 0 else 5] = 1.0
    return features, labels


def separable_error(w: jax.Array, labels: jax.Array) -> jax.Array:
    """In %, on new examples, whose own features have never had a gradient."""
    scores = w[0] * labels + w[1] + w[2]
    return 100 * jnp.mean(jnp.sign(scores) != labels)


def train_separable(make_tx: MakeOptimizer, rate: float, seeds: int, steps: int) -> Run:
    pairs = [separable_data(seed) for seed in range(seeds)]
    features, labels = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*pairs))  # noqa: B905
    drawn = np.random.default_rng(seeds).random(TESTS) < POSITIVE
    unseen = jnp.where(drawn, 1.0, -1.0)
    tx = make_tx(rate)

    def run(features, labels):
        def loss(w):
            return 0.5 * jnp.mean((features @ w - labels) ** 2)

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            w = adamx.apply_updates(w, updates)
            return (w, state), separable_error(w, unseen)

        w = jnp.zeros(features.shape[1])
        (_, state), errors = jax.lax.scan(step, (w, tx.init(w)), length=steps)
        return errors, state

    errors, state = jax.jit(jax.vmap(run))(features, labels)
    return make_run(np.asarray(errors).T, state)


def train_all(args: argparse.Namespace, console: Console) -> dict[str, dict[str, Run]]:
    """All runs, by problem and by name."""
    data = digits.load_data()
    steps = args.epochs * digits.steps_per_epoch(data)
    warm = functools.partial(
        adamx.schedules.warmup_cosine, total_steps=steps, warmup=0.1
    )
    makers = {
        "separable": make_optimizers(args.steps, 0.0, lambda rate: rate),
        "digits": make_optimizers(steps, 0.01, warm),
    }
    runs: dict[str, dict[str, Run]] = {problem: {} for problem in makers}
    with _style.progress(console, unit="runs") as progress:
        task = progress.add_task("", total=2 * len(makers["digits"]))
        for problem, names in makers.items():
            adam, momentum = RATES[problem]
            for name, make_tx in names.items():
                progress.update(task, description=name)
                rate = momentum if name == "SGD, momentum" else adam
                if problem == "separable":
                    run = train_separable(make_tx, rate, args.seeds, args.steps)
                else:
                    rates, seeds = np.full(args.seeds, rate), range(args.seeds)
                    found = digits.train(make_tx, rates, seeds, args.epochs, data)
                    run = make_run(100 * (1 - found.accuracy), found.opt_state)
                runs[problem][name] = run
                progress.advance(task)
    return runs


# --- Table and picture ----------------------------------------------------------------


def print_table(runs: dict[str, dict[str, Run]], console: Console) -> None:
    headings = ("Separable: error", "SGD's rate", "Digits: error", "SGD's rate")
    table = _style.table("Test error at the end, %", "Optimizer", *headings)
    for name in runs["digits"]:
        row = []
        for problem in runs.values():
            run = problem[name]
            last = run.error[-1]
            rate = "" if run.sgd_rate is None else f"{run.sgd_rate:.2g}"
            row += [f"{last.mean():.2f} ± {last.std():.2f}", rate]
        table.add_row(name, *row)
    console.print(table)
    note = f"""Mean over {len(last)} seeds; ±: standard deviation over the seeds.
SGD's rate: as matched at the hand-over, mean over the seeds.
"""
    console.print(note, soft_wrap=True, highlight=False)


def draw(runs: dict[str, dict[str, Run]], epoch: int, path: Path) -> Path:
    figure, (left, right) = _style.new_figure(2, 10, 4.7)
    styles = _style.line_styles(runs["digits"])
    for axes, problem in ((left, "separable"), (right, "digits")):
        for name, style in styles.items():
            run = runs[problem][name]
            points = np.arange(len(run.error))
            at = points + 1 if problem == "separable" else epoch * points
            _style.mean_and_range(axes, at, run.error, style)
            if run.switch_step is not None:
                mark_switch(axes, run.switch_step, style["color"])
    left.set(title="Separable least squares", xlabel="Step (log scale)")
    left.set(xscale="log", ylabel="Test error (%)", ylim=(-2, 50))
    right.set(title="Digits", xlabel="Step", ylabel="Test error (%)")
    worst = max(run.error[-1].max() for run in runs["digits"].values())
    right.set_ylim(0, 12 if worst < 10 else 100)
    seeds = runs["digits"]["AdamW"].error.shape[1]
    return _style.save(figure, path, f"Adam, then SGD: mean and range of {seeds} seeds")


def mark_switch(axes: Any, step: int, color: str) -> None:
    axes.axvline(step, color=color, linewidth=1.0, alpha=0.7)
    axes.annotate(
        "hand-over",
        (step, 0.98),
        (-4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=8,
        color=color,
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=8, help="of each run (8)")
    parser.add_argument("--quick", action="store_true", help="2 seeds, few steps")
    args = parser.parse_args()
    args.steps, args.epochs = STEPS, 20
    if args.quick:
        args.seeds, args.steps, args.epochs = 2, 100, 1
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    return args


def main() -> None:
    args, console, began = parse_args(), Console(), time.perf_counter()
    runs = train_all(args, console)
    print_table(runs, console)
    epoch = digits.steps_per_epoch(digits.load_data())
    picture = draw(runs, epoch, args.out / "adam_to_sgd.png")
    console.print(f"Saved {picture}", soft_wrap=True, highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


if __name__ == "__main__":
    main()
