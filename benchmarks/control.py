"""The question: what does it cost to be able to change course while training.

Each part is a donated step on the shapes of GPT-2 small (124M parameters, float32),
timed against plain AdamW in turns with it, two at a time; with the temporaries of the
step, in bytes of the parameters, and the bytes of state per parameter. A gain of less
than 15 % is within the noise of two shared cores.

- stages: AdamW and then SGD with momentum, before and behind the switch: `adam_to_sgd`
  with SGD's rate given and matched; `stages` through `fused` and through `update`; and,
  to compare with, one `lax.switch` whose branches write all states.

    python benchmarks/control.py [--parts stages] [--rounds 20] [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import step_time
from rich.console import Console
from rich.progress import track

import adamx

QUICK_SHAPES = (64, 1, 512, 64)
NEVER = 10**6

# `step(params, state, gradients) -> (params, state)`: JAX pairs donated arrays with
# results by shape, in order, so that what is changed in place must come out as it went
# in.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def by_update(tx: Any) -> Step:
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    return step


def by_step(tx: Any) -> Step:
    return lambda params, state, gradients: adamx.fused(tx).step(
        gradients, state, params
    )


def contestant(
    name: str, tx: Any, step: Step, shapes: list[tuple[int, ...]]
) -> tuple[step_time.Contestant, float]:
    """A row, and the bytes of its state per parameter."""
    keys = jax.random.split(jax.random.key(1), len(shapes))
    gradients = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    params = [jnp.ones_like(g) for g in gradients]
    state = jax.jit(tx.init)(params)
    held = sum(x.nbytes for x in jax.tree.leaves(state))
    made = step_time.make_donated(name, step, [params, state], gradients)
    return made, held / sum(g.size for g in gradients)


def compare(
    title: str,
    rows: list[tuple[str, Any, Step]],
    shapes: list[tuple[int, ...]],
    rounds: int,
) -> None:
    """Each row in turns with the first, which need not fit beside all of them."""
    base, held = contestant(*rows[0], shapes)
    table = []
    console = Console(stderr=True)
    for row in track(rows, title, console=console, transient=True):
        is_base = row is rows[0]
        other, held = contestant(
            "itself, again" if is_base else row[0], *row[1:], shapes
        )
        base.times.clear()
        step_time.measure([base, other], rounds)
        pairs = zip(other.times, base.times, strict=True)
        low, middle, high = statistics.quantiles(other.times, n=4)
        table.append(
            [
                row[0],
                f"{1e3 * middle:.1f}",
                f"{1e3 * low:.1f}-{1e3 * high:.1f}",
                f"{statistics.median(a / b for a, b in pairs):.2f}",
                f"{other.temporary:.3f}",
                f"{held:.2f}",
                f"{other.trace_s + other.compile_s:.1f}",
            ]
        )
        del other  # before the next is made
    head = ["", "median ms", "quartiles", f"ratio to {rows[0][0]}", "temporaries"]
    show(title, [*head, "state, bytes", "compile s"], table)


def show(title: str, head: list[str], table: list[list[str]]) -> None:
    print(f"\n**{title}**\n")
    for line in [head, ["---"] + ["---:"] * (len(head) - 1), *table]:
        print("| " + " | ".join(line) + " |")


# ------------------------------------------------------------------------------ stages


def one_switch(before: Any, after: Any, steps: int) -> tuple[Any, Step]:
    """Two optimizers and one conditional that writes both states: what not to do."""

    def init(params: Any) -> Any:
        return before.init(params), after.init(params), jnp.zeros((), jnp.int32)

    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        first, second, count = state

        def adam() -> Any:
            new, held = by_update(before)(params, first, gradients)
            return new, held, second

        def sgd() -> Any:
            new, held = by_update(after)(params, second, gradients)
            return new, first, held

        params, first, second = jax.lax.cond(count < steps, adam, sgd)
        return params, (first, second, count + 1)

    tx = adamx.adamw(1e-3)._replace(init=init)
    return tx, step


def stages_rows() -> list[tuple[str, Any, Step]]:
    adamw, sgd = adamx.adamw(1e-3), adamx.sgd(1e-3, 0.9)
    rows = [("adamw", adamw, by_update(adamw)), ("sgd, momentum", sgd, by_update(sgd))]
    decay = {"weight_decay": 1e-4}
    for name, rate in (("given", 1e-3), ("matched", None)):
        for phase, steps in (("before", NEVER), ("behind", 1)):
            tx = adamx.adam_to_sgd(1e-3, steps, sgd_learning_rate=rate, **decay)
            rows.append((f"adam_to_sgd, {name}: {phase}", tx, by_step(tx)))
    for name, way in (("fused", by_step), ("update", by_update)):
        for phase, steps in (("before", NEVER), ("behind", 1)):
            tx = adamx.stages([(adamw, steps), (sgd, None)])
            rows.append((f"stages, {name}: {phase}", tx, way(tx)))
    for phase, steps in (("before", NEVER), ("behind", 1)):
        rows.append((f"one switch: {phase}", *one_switch(adamw, sgd, steps)))
    return rows


def stages_part(shapes: list[tuple[int, ...]], rounds: int) -> None:
    title = f"AdamW, then SGD with momentum: {len(shapes)} leaves"
    compare(title, stages_rows(), shapes, rounds)


# -------------------------------------------------------------------------- the script

PARTS = {"stages": stages_part}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    options = parser.parse_args(arguments)
    shapes = step_time.gpt2_shapes(layers=options.layers)
    rounds = options.rounds
    if options.quick:
        shapes, rounds = step_time.gpt2_shapes(*QUICK_SHAPES), 2
    print(f"{step_time.device_name()}; {step_time.versions()}")
    for part in options.parts:
        began = time.perf_counter()
        PARTS[part](shapes, rounds)
        print(f"\n{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
