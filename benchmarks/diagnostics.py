"""The question: what does it cost to see into a training step.

Donated AdamW steps on the shapes of GPT-2 small (124M parameters, float32), bare and
under `adamx.diagnose`, in turns: between two measurements, and with one at each step.
What one every 100 steps costs follows from both. Temporaries: bytes beside parameters
and state, over the bytes of the parameters.

Building: trace, lowering and compilation of both, in turns, each from empty caches;
medians by the clock and in processor seconds, and the operations of what XLA made.

    python benchmarks/diagnostics.py [--rounds 20] [--layers 12] [--quick]
    python benchmarks/diagnostics.py --parts building
"""

import argparse
import itertools
import math
import re
import statistics
import time
from typing import Any

import control
import jax
import optax
import step_time
from _tables import show

import adamx

NEVER = 2**30


def entries() -> list[control.Entry]:
    def of(every: int) -> optax.GradientTransformationExtraArgs:
        return adamx.diagnose(control.ADAMW, every=every)

    return [
        control.entry("adamw", control.ADAMW, control.protocol),
        control.entry("between", of(NEVER), control.protocol),
        control.entry("at each step", of(1), control.protocol),
        control.entry("fused: between", of(NEVER)),
        control.entry("fused: at each step", of(1)),
    ]


def shares(lines: list[list[str]], every: int) -> str:
    """What one measurement in so many steps adds to the bare optimizer's time."""
    ratio = {line[0]: float(line[4]) for line in lines}
    between, at = ratio["between"] - 1.0, ratio["at each step"] - 1.0
    return (
        f"Between: {100 * between:+.0f} % of the bare step. A measurement: {at:+.2f} "
        f"steps, that is {100 * at / every:.1f} % at one in {every}."
    )


def built(tx: Any, shapes: Any) -> tuple[list[float], float, int]:
    """Seconds by the clock and of processors for each phase; temporaries; operations.

    Operations: of the program that XLA made.
    """

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, shapes)
    jax.clear_caches()
    times = [(time.perf_counter(), time.process_time())]
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(shapes, state, shapes)
    times.append((time.perf_counter(), time.process_time()))
    lowered = traced.lower()
    times.append((time.perf_counter(), time.process_time()))
    compiled = lowered.compile()
    times.append((time.perf_counter(), time.process_time()))
    pairs = itertools.pairwise(times)
    spent = [b - a for x, y in pairs for a, b in zip(x, y, strict=True)]
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    analysis: Any = compiled.memory_analysis()
    operations = len(re.findall(r"^ +(?:ROOT )?%?[\w.-]+ = ", compiled.as_text(), re.M))
    return spent, analysis.temp_size_in_bytes / size, operations


def building(shapes: list[tuple[int, ...]], rounds: int) -> list[list[str]]:
    """The rows of the second table."""
    gradients = jax.eval_shape(lambda: control.gradients_by_path(shapes))
    entries = {"adamw": control.ADAMW, "diagnose": adamx.diagnose(control.ADAMW)}
    found: dict[str, list[Any]] = {name: [] for name in entries}
    for _ in range(rounds):
        for name, tx in entries.items():
            found[name].append(built(tx, gradients))
    rows, bare = [], None
    for name, runs in found.items():
        phases = [statistics.median(x) for x in zip(*(r[0] for r in runs), strict=True)]
        whole = [
            statistics.median(sum(r[0][k::2]) for r in runs)  # in all
            for k in (0, 1)
        ]
        bare = bare or whole
        pairs = [*zip(phases[::2], phases[1::2], strict=True), tuple(whole)]
        ratios = [a / b for a, b in zip(whole, bare, strict=True)]
        cells = [f"{clock:.2f}, {cpu:.2f}" for clock, cpu in [*pairs, tuple(ratios)]]
        rows.append([name, *cells, f"{runs[0][1]:.3f}", f"{runs[0][2]:,}"])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parts = ["steps", "building"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args(arguments)
    shapes, rounds = step_time.gpt2_shapes(layers=options.layers), options.rounds
    if options.quick:
        shapes, rounds = step_time.gpt2_shapes(*control.QUICK_SHAPES), 2
    print(f"{step_time.device_name()}; {step_time.versions()}")
    if "steps" in options.parts:
        lines = control.table(entries(), control.gradients_by_path(shapes), rounds)
        show(f"diagnose, {len(shapes)} leaves", control.HEAD, lines)
        print(f"\n{shares(lines, 100)}")
    if "building" in options.parts:
        head = ["clock s, processor s", "trace", "lower", "compile", "in all"]
        head += ["ratios", "temporaries", "operations"]
        lines = building(shapes, 1 if options.quick else 3)
        show(f"building, {len(shapes)} leaves", head, lines)


if __name__ == "__main__":
    main()
