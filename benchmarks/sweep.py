"""The question: what does `lr_sweep` save, and is the rate that it suggests a good one.

- Speed: 32 rates x 300 steps of AdamW on the digits (two hidden layers of 32; six of
  64, as in examples/digits.py), one device. Against 32 jitted runs that each compile
  their own rate, compilation included; and, in turns, against one compiled run with the
  rate as its argument, called 32 times, without compilation. Programs: how many XLA
  compiled.
- Curves: the largest difference of a loss in the first 20 steps between the sweep and
  those single runs, over the rates that do not diverge.
- Suggestion: a sweep of a third of the steps (`refine=None`), and then full runs at all
  32 rates from a seed of their own, so with other weights and batches. Reported: what
  the suggested rate lost against the best of the 32 in that full run. The rule was
  chosen on the digits' seeds 0 and 1; these are others.

    python benchmarks/sweep.py [--parts speed suggestion] [--rounds 9] [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import _tasks
import jax
import numpy as np
import step_time
from _tables import show

import adamx
from adamx.diagnostics import _sweep, _sweep_run

RATES = np.geomspace(1e-5, 3.2, 32)
SEEDS = (10, 11, 12)
TURNS = 4
COMPILED = "/jax/core/compile/backend_compile_duration"

Batches = Any
Run = Callable[[Any, Any, Batches], jax.Array]


def problem(task: _tasks.Task, steps: int, seed: int) -> tuple[Any, Any, Batches]:
    """Loss, parameters and batches for `lr_sweep`."""
    key = jax.random.key(seed)
    keys = jax.random.split(jax.random.fold_in(key, 2**31), steps)
    batches = jax.jit(jax.vmap(task.sample))(keys)
    params = jax.jit(task.init)(jax.random.fold_in(key, 2**31 + 1))
    jax.block_until_ready((params, batches))
    return lambda params, batch: task.loss(params, batch), params, batches


def single_run(loss_fn: Any, make_tx: Any) -> Run:
    """(rate, params, batches) -> losses: the loop that a user would write."""

    def run(rate: Any, params: Any, batches: Batches) -> jax.Array:
        tx = make_tx(rate)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (adamx.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    return run


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


class Compilations:
    """How many programs XLA compiled since it was made."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration: float, **kwargs: Any) -> None:
        self.count += event == COMPILED


def speed(task: _tasks.Task, steps: int, rounds: int, count: int) -> list[list[str]]:
    """The rows of the first table."""
    rates = RATES[:: 32 // count]
    loss_fn, params, batches = problem(task, steps, 0)
    heard = Compilations()
    make_tx = adamx.adamw
    whole, apart, programs = [], [], [0, 0]

    def separate(rates: Any) -> None:
        for rate in map(float, rates):
            run = single_run(loss_fn, lambda _, rate=rate: make_tx(rate))
            np.asarray(jax.jit(run)(rate, params, batches))

    # In turns, a part of the single runs between two sweeps: the machine is shared.
    for part in np.array_split(rates, TURNS):
        before = heard.count
        given = (loss_fn, params, batches, make_tx, rates)
        whole.append(seconds(lambda given=given: adamx.lr_sweep(*given).losses))
        programs[0], before = heard.count - before, heard.count
        apart.append(seconds(lambda part=part: separate(part)))
        programs[1] += heard.count - before
    found = adamx.lr_sweep(loss_fn, params, batches, make_tx, rates)

    one = jax.jit(single_run(loss_fn, make_tx))
    search = _sweep_run.checked(loss_fn, params, batches, make_tx)
    train = _sweep.Trainer(search, len(rates), None, in_cache=True)

    def together() -> Any:
        return train(found.learning_rates, None)

    def in_turn() -> list[np.ndarray]:
        return [np.asarray(one(r, params, batches)) for r in found.learning_rates]

    together()
    curves = np.stack(in_turn())
    times = [(seconds(together), seconds(in_turn)) for _ in range(rounds)]
    ratio = statistics.median(b / a for a, b in times)
    is_fine = ~found.diverged
    difference = np.abs(found.losses - curves)[is_fine, :20]
    sweep_s, apart_s = statistics.mean(whole), sum(apart)
    runs = [statistics.median(column) for column in zip(*times, strict=True)]
    quickest = [min(column) for column in zip(*times, strict=True)]
    all_in = "lr_sweep, compilation included"
    each = f"{count} jitted runs, compilation included"
    turns = f"one compiled run, called {count} times"
    label = f"largest difference in 20 steps, {is_fine.sum()} rates"
    return [
        [all_in, f"{sweep_s:.2f}", f"{min(whole):.2f}", "1.0", f"{programs[0]}"],
        [each, f"{apart_s:.2f}", "", f"{apart_s / sweep_s:.1f}", f"{programs[1]}"],
        ["lr_sweep, running", f"{runs[0]:.2f}", f"{quickest[0]:.2f}", "1.00", "0"],
        [turns, f"{runs[1]:.2f}", f"{quickest[1]:.2f}", f"{ratio:.2f}", "0"],
        [label, f"{difference.max():.1e}", "", "", ""],
    ]


def suggestion(name: str, steps: int, seeds: tuple[int, ...]) -> list[list[str]]:
    """The rows of the second table, for one task."""
    task = {"digits": _tasks.digits(64, 6), "characters": _tasks.characters()}[name]
    optimizers = {"adamw": adamx.adamw, "momentum": adamx.momentum, "sgd": adamx.sgd}
    rows = []
    for label, make_tx in optimizers.items():
        full = _tasks.make_train(make_tx, task, steps)
        for seed in seeds:
            found = adamx.lr_sweep(*problem(task, steps // 3, seed), make_tx, RATES)
            rates = np.append(RATES, found.suggestion)
            runs = full(rates, seed)
            loss = np.where(np.isfinite(runs.loss), runs.loss, np.inf)
            is_digits = name == "digits"
            score = runs.score if is_digits else loss
            best = score[:-1].max() if is_digits else score[:-1].min()
            lost = best - score[-1] if is_digits else 100 * (score[-1] / best - 1)
            low, high = found.band
            rows.append(
                [
                    f"{name}, {label}, seed {seed}",
                    f"{found.suggestion:.2g}",
                    f"{low:.2g}-{high:.2g}",
                    f"{RATES[loss[:-1].argmin()]:.2g}",
                    f"{best:.2f}" if is_digits else f"{best:.3f}",
                    f"{score[-1]:.2f}" if is_digits else f"{score[-1]:.3f}",
                    f"{lost:.2f}",
                ]
            )
            print(rows[-1], flush=True)
    return rows


HEADS = {
    "speed": ["", "s", "least s", "ratio", "programs"],
    "suggestion": [
        "",
        "suggestion",
        "band",
        "lowest loss at",
        "best score",
        "its score",
        "lost, %",
    ],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    print(f"{step_time.device_name()}; {step_time.versions()}")
    if "speed" in options.parts:
        steps, count = (30, 4) if options.quick else (300, 32)
        for name, task in (
            ("64-32-32-10", _tasks.digits()),
            ("64-64x6-10", _tasks.digits(64, 6)),
        ):
            rows = speed(task, steps, 1 if options.quick else options.rounds, count)
            show(f"{name}, {count} rates, {steps} steps", HEADS["speed"], rows)
    if "suggestion" in options.parts:
        rows = suggestion("digits", 60 if options.quick else 600, SEEDS)
        if not options.quick:
            rows += suggestion("characters", 240, SEEDS[:1])
        title = "What the suggested rate loses in a full run"
        show(title, HEADS["suggestion"], rows)


if __name__ == "__main__":
    main()
