"""The question: what does it cost to save a byte of optimizer state or of weights.

A row is a way to store AdamW's moments (a dtype or a codec, for both) and the weights
(float32, or bfloat16 written in one of several ways). Measured, and fixed beforehand:

- bytes: of the state per parameter of GPT-2 small (124M parameters): from `eval_shape`,
  where a 4-bit number counts half a byte; from `nbytes`; and by how much the process's
  memory (an accelerator: its memory in use) grows by a state that has made a step.
- time: of a donated step on the same shapes, by update and apply_updates and, where
  weights are rounded to nearest, by `fused` with either kernel; against float32 AdamW
  by update in turns with them; and the temporaries of the steps, in bytes of the row's
  parameters.
- digits, characters: the training loss at the end, over ten seeds, and its distance to
  float32's from the same seed (same start, same batches): mean, and 95 % interval of
  Student's t. A row is inside where the mean distance is at most half the width of the
  interval of float32's own mean. Rate 3e-3, a tenth of the steps of warmup, cosine to
  0; weights are widened to float32 before the model computes: nothing but the storage
  differs. Digits: an MLP 64-128-128-10, 500 steps of 64 images. Characters: a
  transformer of two blocks of width 64 on the texts of Python's own help, 300 steps of
  8 windows of 64 characters.
- rates: float32, and bfloat16 weights rounded to nearest and at random, at five rates,
  three seeds: does another rate rescue plain bfloat16?

    python benchmarks/memory.py [--parts bytes time digits characters rates] [--quick]
"""

import argparse
import ctypes
import functools
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import _tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import step_time
from _tables import show
from rich.console import Console
from rich.progress import track
from scipy import stats

import adamx
from adamx import codecs

PARTS = ("bytes", "time", "digits", "characters", "rates")
RATE, SEEDS = 3e-3, 10
RATES, RATES_SEEDS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 3
TASKS: dict[str, tuple[Callable[[], _tasks.Task], int]] = {
    "digits": (functools.partial(_tasks.digits, 128), 500),
    "characters": (functools.partial(_tasks.characters, 64, 64, 8), 300),
}
QUICK_STEPS, QUICK_SEEDS, QUICK_SHAPES = 5, 2, (64, 1, 512, 64)
QUICK_ROWS = ("int8; weights bfloat16, stochastic",)

progress = functools.partial(track, console=Console(stderr=True), transient=True)

# ---------------------------------------------------------------------------- the rows


class Row(NamedTuple):
    """A way to store.

    Attributes:
      name: moments, then weights.
      make_tx: learning rate -> AdamW.
      dtype: of the weights.
      write: (params, updates, key) -> params; to nearest it is Optax's, bit for bit.
    """

    name: str
    make_tx: Callable[[Any], Any]
    dtype: Any = jnp.float32
    write: Callable[..., Any] = _tasks.write_nearest


def stochastic(params: Any, updates: Any, key: jax.Array) -> Any:
    return adamx.apply_updates(params, updates, rounding="stochastic", key=key)


def both(storage: Any) -> Callable[[Any], Any]:
    """AdamW with both moments in `storage`; None: as the library does by itself."""
    return lambda rate: adamx.adamw(rate, mu_dtype=storage, nu_dtype=storage)


def rows() -> list[Row]:
    """Every storage format with float32 weights, every way to write bfloat16, pairs."""
    half, fine = jnp.bfloat16, both(None)
    int8, int4 = both(codecs.int8()), both(codecs.int4())
    columns, nearest = codecs.int8("column"), codecs.int8("column", rounding="nearest")
    split = functools.partial(adamx.master_weights, storage="split")
    return [
        Row("float32", fine),
        Row("mu bfloat16", lambda rate: adamx.adamw(rate, mu_dtype=half)),
        Row("bfloat16, stochastic", both(codecs.bfloat16_stochastic())),
        Row("fp8", both(codecs.fp8())),
        Row("int8", int8),
        Row("int8, columns", both(columns)),
        Row("int8, columns, nearest", both(nearest)),
        Row("int4", int4),
        Row("weights bfloat16, Optax", optax.adamw, half),
        Row("weights bfloat16, nearest", fine, half),
        Row("weights bfloat16, stochastic", fine, half, stochastic),
        Row("weights bfloat16, compensated", wrap(adamx.compensated, fine), half),
        Row("weights bfloat16, master", wrap(adamx.master_weights, fine), half),
        Row("weights bfloat16, split master", wrap(split, fine), half),
        Row("int8; weights bfloat16, stochastic", int8, half, stochastic),
        Row("int8; weights bfloat16, compensated", wrap(adamx.compensated, int8), half),
        Row("int4; weights bfloat16, stochastic", int4, half, stochastic),
    ]


def wrap(wrapper: Callable[[Any], Any], make_tx: Callable[[Any], Any]) -> Any:
    return lambda rate: wrapper(make_tx(rate))


# --------------------------------------------------------------------------- the bytes


def bits_of(dtype: Any) -> int:
    """Bits of one number; of 4-bit integers 4, where NumPy says 8."""
    if dtype == jnp.bool_:
        return 8
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    return (jnp.finfo if is_float else jnp.iinfo)(dtype).bits


def raw(state: Any) -> list[Any]:
    """Arrays of numbers: a random key's own two words in the place of the key."""

    def words(x: Any) -> Any:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.leaves(jax.tree.map(words, state))


def used() -> int:
    """Bytes in use: on the accelerator, or resident in this process."""
    gc.collect()
    memory = jax.devices()[0].memory_stats()
    if memory:
        return memory["bytes_in_use"]
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Step(NamedTuple):
    """A row's training step without a model: (params, state, count) and a gradient."""

    tx: Any
    params: Any
    gradients: Any
    step: Callable[..., Any]


def make_step(row: Row, shapes: list[tuple[int, ...]]) -> Step:
    tx = row.make_tx(1e-3)

    def step(params: Any, state: Any, count: Any, gradients: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), count)
        updates, state = tx.update(gradients, state, params)
        return row.write(params, updates, key), state, count + 1

    def normal(seed: int) -> list[jax.Array]:
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        pairs = zip(keys, shapes, strict=True)
        return [jax.random.normal(key, shape, row.dtype) for key, shape in pairs]

    return Step(tx, normal(0), normal(1), step)


def bytes_of(row: Row, shapes: list[tuple[int, ...]]) -> list[str]:
    """Bytes per parameter: weights, state three times over, weights and state."""
    made = make_step(row, shapes)
    size = sum(p.size for p in made.params)
    abstract = jax.eval_shape(lambda p: raw(made.tx.init(p)), made.params)
    weights = jnp.dtype(row.dtype).itemsize
    state_bytes = sum(x.size * bits_of(x.dtype) / 8 for x in abstract) / size
    init = jax.jit(made.tx.init)
    held = jax.eval_shape(init, made.params)
    step = jax.jit(made.step, donate_argnums=(0, 1))
    # Compiled before, since programs take memory too.
    step = step.lower(made.params, held, jnp.int32(0), made.gradients).compile()
    init = init.lower(made.params).compile()
    jax.block_until_ready((made.params, made.gradients))
    before = used()
    state = init(made.params)
    # With a step: zeros that nobody has written to need not be in memory.
    params, state, _ = step(made.params, state, jnp.int32(0), made.gradients)
    jax.block_until_ready((params, state))
    grown = (used() - before) / size
    buffers = sum(x.nbytes for x in raw(state)) / size
    numbers = (weights, state_bytes, buffers, grown, weights + state_bytes)
    return [row.name, *(f"{number:.2f}" for number in numbers)]


def storage_rows(elements: int) -> list[list[str]]:
    """What arrays of the small dtypes take: said and taken, bytes per element."""
    table = []
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn, jnp.int4):
        before = used()
        make = jax.jit(lambda dtype=dtype: jnp.full(elements, 3, dtype))
        array = make().block_until_ready()
        grown = (used() - before) / elements
        name = jnp.dtype(dtype).name
        table.append([name, f"{array.nbytes / elements:.2f}", f"{grown:.2f}"])
        del array
    return table


def published_rows() -> list[list[str]]:
    """State per parameter by the block sizes that others state, and what they saved.

    Saved: the difference of the peak memory to PyTorch's fused AdamW in torchao's own
    comparison (fine-tuning ViT-H, 630M parameters, bfloat16 autocast; 12.23 GB), over
    the parameters. Whole trainings on a GPU: their times are not the work done here.
    Sources: github.com/pytorch/ao, torchao/optim/README.md at 072500a;
    github.com/bitsandbytes-foundation/bitsandbytes, bitsandbytes/optim/optimizer.py at
    06029dd (blocks of 2,048; leaves below 4,096 elements stay float32).
    """
    stated = {  # bits, block size, peak GB
        "bitsandbytes, 8-bit": (8, 2048, 8.32),
        "torchao, 8-bit": (8, 256, 8.33),
        "torchao, FP8": (8, 256, 8.33),
        "torchao, 4-bit": (4, 128, 7.72),
    }
    table = []
    for name, (bits, block, peak) in stated.items():
        state = 2 * (bits / 8 + 4 / block)
        table.append([name, f"{state:.2f}", f"{(12.23 - peak) / 0.63:.1f}"])
    return table


def print_bytes(
    chosen: list[Row], shapes: list[tuple[int, ...]], elements: int
) -> None:
    head = ["", "weights", "state", "state, nbytes", "state, memory", "weights + state"]
    table = [bytes_of(row, shapes) for row in progress(chosen, "bytes")]
    show(f"Bytes per parameter, {len(shapes)} leaves", head, table)
    title = f"Bytes per element of one array of {elements:,}"
    show(title, ["", "nbytes", "memory"], storage_rows(elements))
    head = ["", "state, bytes per parameter", "peak saved, bytes per parameter"]
    show("Published by others", head, published_rows())


# ---------------------------------------------------------------------------- the time


def contestant(
    row: Row, shapes: list[tuple[int, ...]], kernel: str | None = None
) -> step_time.Contestant:
    """A row's step by the protocol, or by `fused` with a kernel."""
    made = make_step(row, shapes)
    carry = [made.params, jax.jit(made.tx.init)(made.params), jnp.int32(0)]

    def fused(params: Any, state: Any, count: Any, gradients: Any) -> Any:
        step = adamx.fused(made.tx, kernel=str(kernel)).step
        return *step(gradients, state, params), count + 1

    step = fused if kernel else made.step
    return step_time.make_donated(row.name, step, carry, made.gradients)


def ratio(one: step_time.Contestant, other: step_time.Contestant) -> float:
    pairs = zip(one.times, other.times, strict=True)
    return statistics.median(a / b for a, b in pairs)


def print_time(chosen: list[Row], shapes: list[tuple[int, ...]], rounds: int) -> None:
    """Each row in turns with float32, row by row: they need not fit all at once."""
    base = contestant(chosen[0], shapes)
    table = []
    for row in progress(chosen, "time"):
        other = contestant(row, shapes)
        has_fused = row.write is _tasks.write_nearest and row.make_tx is not optax.adamw
        kernels = ("xla", "native") if has_fused else ()
        fused = [contestant(row, shapes, kernel) for kernel in kernels]
        base.times.clear()
        step_time.measure([base, other, *fused], rounds)
        low, middle, high = statistics.quantiles(other.times, n=4)
        table.append(
            [
                row.name,
                f"{1e3 * middle:.1f}",
                f"{1e3 * low:.1f}-{1e3 * high:.1f}",
                f"{ratio(other, base):.2f}",
                f"{other.temporary:.3f}",
                f"{other.build_s:.1f}",
                *(
                    text
                    for one in fused
                    for text in (f"{ratio(one, base):.2f}", f"{one.temporary:.3f}")
                ),
                *("" for _ in range(4 - 2 * len(fused))),
            ]
        )
        del other, fused  # before the next are made
    head = ["", "median ms", "quartiles", "ratio to float32", "temporaries"]
    head += ["compile s", "fused: ratio", "fused: temporaries"]
    head += ["native: ratio", "native: temporaries"]
    show(f"Time of a donated step, {len(shapes)} leaves", head, table)


# ------------------------------------------------------------------------- the training


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval (Student's t)."""
    quantile = stats.t.ppf(0.975, len(values) - 1)
    half_width = quantile * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half_width)


def train(row: Row, task: _tasks.Task, steps: int, rates: Any, seeds: Any) -> Any:
    def make_tx(rate: Any) -> Any:
        return row.make_tx(adamx.schedules.warmup_cosine(rate, steps, warmup=0.1))

    run = _tasks.make_train(make_tx, task, steps, dtype=row.dtype, write=row.write)
    return run(rates, seeds)


def compare(
    chosen: list[Row], task: _tasks.Task, steps: int, seeds: int
) -> list[list[str]]:
    """One line for each row; the first is what the others are compared with."""
    table: list[list[str]] = []
    base, allowed = None, 0.0
    for row in progress(chosen, task.name):
        runs = train(row, task, steps, np.full(seeds, RATE), np.arange(seeds))
        if base is None:
            base, allowed = runs, interval(runs.loss)[1]
        gap, gap_width = interval(runs.loss - base.loss)
        score_gap, score_width = interval(runs.score - base.score)
        mean, width = interval(runs.loss)
        table.append(
            [
                row.name,
                f"{mean:.4f} ± {width:.4f}",
                f"{gap:+.4f} ± {gap_width:.4f}",
                "yes" if abs(gap) <= allowed else "NO",
                f"{runs.score.mean():.3f}",
                f"{score_gap:+.3f} ± {score_width:.3f}",
            ]
        )
    return table


def print_training(name: str, chosen: list[Row], is_quick: bool) -> None:
    make_task, steps = TASKS[name]
    task, seeds = make_task(), SEEDS
    if is_quick:
        steps, seeds = QUICK_STEPS, QUICK_SEEDS
    size = sum(p.size for p in jax.tree.leaves(task.init(jax.random.key(0))))
    head = ["", "loss", "gap to float32", "inside", task.score, "its gap"]
    table = compare(chosen, task, steps, seeds)
    show(f"{name}: {size:,} parameters, {steps} steps, {seeds} seeds", head, table)


def print_rates(chosen: list[Row], is_quick: bool) -> None:
    """Loss by rate: a larger rate loses less to rounding, and may lose otherwise."""
    names = ("float32", "weights bfloat16, nearest", "weights bfloat16, stochastic")
    rates, seeds, tasks = np.asarray(RATES), RATES_SEEDS, dict(TASKS)
    if is_quick:
        rates, seeds = rates[:2], QUICK_SEEDS
        del tasks["characters"]
    for name, (make_task, steps) in tasks.items():
        task, table = make_task(), []
        for row in (row for row in chosen if row.name in names):
            many = np.repeat(rates, seeds), np.tile(np.arange(seeds), len(rates))
            runs = train(row, task, QUICK_STEPS if is_quick else steps, *many)
            means = runs.loss.reshape(len(rates), seeds).mean(axis=1)
            table.append([row.name, *(f"{mean:.4f}" for mean in means)])
        head = ["", *(f"{rate:g}" for rate in rates)]
        show(f"{name}: loss by rate, mean of {seeds} seeds", head, table)


# --------------------------------------------------------------------------- the script


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = rows()
    names = [row.name for row in chosen]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test, few rows")
    options = parser.parse_args(arguments)
    # float32 always: it is what all others are compared with.
    chosen = [r for r in chosen if r is chosen[0] or r.name in options.only]
    shapes = step_time.gpt2_shapes(layers=options.layers)
    rounds, elements = options.rounds, 2**28
    if options.quick:
        shapes = step_time.gpt2_shapes(*QUICK_SHAPES)
        rounds, elements = 2, 2**20
        chosen = [r for r in chosen if r is chosen[0] or r.name in QUICK_ROWS]
    print(f"{step_time.device_name()}; {step_time.versions()}")
    for part in options.parts:
        began = time.perf_counter()
        if part == "bytes":
            print_bytes(chosen, shapes, elements)
        elif part == "time":
            print_time(chosen, shapes, rounds)
        elif part == "rates":
            print_rates(chosen, options.quick)
        else:
            print_training(part, chosen, options.quick)
        print(f"\n{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
