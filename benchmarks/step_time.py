"""The time of one AdamW step, against Optax, PyTorch and the memory itself.

Question: how long does the tail of a training step take (update and apply, everything
donated) for three trees of parameters, with and without clipping at norm 1.0:

    one     one leaf of 64M elements
    gpt2    GPT-2 small: 148 leaves, 124M parameters
    many    500 leaves of 2,048

Contestants run in one process and alternate step by step, so that a slow moment of the
machine hits all of them; medians over the rounds, and the median of the round-by-round
ratio to Optax, are printed. `stream` is a bound, not an optimizer: NumPy multiplying in
place as many bytes as AdamW must move (read p, m, v, g; write p, m, v), on as many
threads as the machine has cores; where everything fits the caches, it is that of the
caches. PyTorch takes part where it is installed (extra `torch`).

    python benchmarks/step_time.py [--trees one gpt2 many] [--rounds 30] [--markdown]
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx


def gpt2_shapes(
    width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024
) -> list[tuple[int, ...]]:
    """The 148 parameter shapes of GPT-2 small, 124M elements; or of a smaller one."""
    block = [
        *((width,), (width,), (width, 3 * width), (3 * width,)),
        *((width, width), (width,), (width,), (width,)),
        *((width, 4 * width), (4 * width,), (4 * width, width), (width,)),
    ]
    ends = [(vocabulary, width), (context, width), (width,), (width,)]
    return ends[:2] + block * layers + ends[2:]


TORCH_KINDS = ("fused", "foreach")
TREES: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "one": lambda: [(64 * 2**20,)],
    "gpt2": gpt2_shapes,
    "many": lambda: [(2048,)] * 500,
}


@dataclasses.dataclass
class Contestant:
    """One way to make a step: `step` runs it once and waits for the result."""

    name: str
    step: Callable[[], None]
    trace_s: float | None = None
    compile_s: float | None = None
    temporary: float | None = None  # bytes of temporaries / bytes of the parameters
    times: list[float] = dataclasses.field(default_factory=list)


def make_jax(name: str, library: Any, clip: bool, gradients: Any) -> Contestant:
    """A jit-compiled, donated step of `library.adamw`."""
    tx = library.adamw(1e-3)
    if clip:
        tx = optax.chain(library.clip_by_global_norm(1.0), tx)

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return library.apply_updates(params, updates), state

    params = jax.tree.map(jnp.ones_like, gradients)
    return make_donated(name, step, [params, tx.init(params)], gradients)


def make_donated(
    name: str, step: Callable[..., Any], carry: list[Any], gradients: Any
) -> Contestant:
    """`step(*carry, gradients) -> carry`, compiled, with all of `carry` donated."""
    donated = tuple(range(len(carry)))
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=donated).lower(*carry, gradients)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()

    def run() -> None:
        carry[:] = compiled(*carry, gradients)
        jax.block_until_ready(carry)

    size = sum(p.nbytes for p in jax.tree.leaves(gradients))
    analysis = compiled.memory_analysis()
    temporary = getattr(analysis, "temp_size_in_bytes", float("nan")) / size
    return Contestant(name, run, middle - start, end - middle, temporary)


def make_torch(kind: str, clip: bool, gradients: Any) -> Contestant:
    """torch.optim.AdamW, `fused` or `foreach`."""
    import torch

    params = [torch.nn.Parameter(torch.ones(g.shape)) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.from_numpy(np.array(g))
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, **{kind: True})

    def run() -> None:
        if clip:
            # Scales p.grad in place: later rounds find a norm below 1 and scale by 1.
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimizer.step()

    return Contestant(f"torch {kind}", run)


def make_stream(elements: int) -> Contestant:
    """NumPy moving the bytes of AdamW in place: 7 float32 accesses per element."""
    threads = os.cpu_count() or 1
    stream = np.ones(elements * 7 // 2, np.float32)  # each is read and written: 3.5
    chunks, one = np.array_split(stream, threads), np.float32(1)
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def run() -> None:
        list(pool.map(lambda chunk: np.multiply(chunk, one, out=chunk), chunks))

    return Contestant("stream (bound)", run)


def measure(contestants: list[Contestant], rounds: int, warm_up: int = 3) -> None:
    """Times all contestants in turn, round by round; the first rounds do not count.

    Each round begins with another one: nobody always runs behind the same neighbour.
    """
    for turn in range(warm_up + rounds):
        first = turn % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            start = time.perf_counter()
            contestant.step()
            if turn >= warm_up:
                contestant.times.append(time.perf_counter() - start)


def table(contestants: list[Contestant]) -> list[list[str]]:
    """One row per contestant: times, ratio to Optax, compilation, memory."""
    base = next(c for c in contestants if c.name == "optax")
    rows = []
    for c in contestants:
        ratio = statistics.median(
            a / b for a, b in zip(c.times, base.times, strict=True)
        )
        low, middle, high = statistics.quantiles(c.times, n=4)
        rows.append(
            [
                c.name,
                f"{1e3 * middle:.1f}",
                f"{1e3 * low:.1f}-{1e3 * high:.1f}",
                f"{ratio:.2f}",
                "" if c.trace_s is None else f"{c.trace_s:.2f}",
                "" if c.compile_s is None else f"{c.compile_s:.2f}",
                "" if c.temporary is None else f"{c.temporary:.3f}",
            ]
        )
    return rows


HEADER = [
    "",
    "median ms",
    "quartiles",
    "ratio",
    "trace s",
    "compile s",
    "temporaries",
]


def show(title: str, rows: list[list[str]], markdown: bool) -> None:
    """Prints one table, as Markdown or with rich."""
    if markdown:
        print(f"\n**{title}**\n")
        for row in [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1), *rows]:
            print("| " + " | ".join(row) + " |")
        return
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title, title_justify="left")
    for i, column in enumerate(HEADER):
        view.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    Console(width=100).print(view)


def device_name() -> str:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} ({device.platform})"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        model = next(line for line in file if "model name" in line).split(":")[1]
    return f"{model.strip()}, {os.cpu_count()} cores"


def versions() -> str:
    """The packages that took part, and Python, whose own texts `_tasks` trains on."""
    names = [f"jax {jax.__version__}", f"optax {optax.__version__}"]
    names.append(f"python {platform.python_version()}")
    try:
        import torch

        names.append(f"torch {torch.__version__}")
    except ImportError:
        names.append("torch not installed")
    return ", ".join([f"adamx {adamx.__version__}", *names])


def run(tree: str, clip: bool, rounds: int, markdown: bool) -> None:
    """One tree, with or without clipping: all contestants in turns."""
    shapes = TREES[tree]()
    rng = np.random.default_rng(0)
    gradients = [
        jnp.asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes
    ]
    make_jax("warm-up", optax, clip, gradients[-1:])  # JAX's own first-use costs
    contestants = [
        make_jax("adamx", adamx, clip, gradients),
        make_jax("optax", optax, clip, gradients),
    ]
    if importlib.util.find_spec("torch"):
        contestants += [make_torch(kind, clip, gradients) for kind in TORCH_KINDS]
    elements = sum(g.size for g in gradients)
    contestants.append(make_stream(elements))
    measure(contestants, rounds)
    title = f"{tree}: {len(shapes)} leaves, {elements / 1e6:.0f}M elements, " + (
        "clipped at 1.0" if clip else "not clipped"
    )
    show(title, table(contestants), markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=list(TREES), default=list(TREES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(f"{device_name()}; {versions()}; float32, {options.rounds} rounds in turns")
    for tree in options.trees:
        for clip in (False, True):
            run(tree, clip, options.rounds, options.markdown)


if __name__ == "__main__":
    main()
