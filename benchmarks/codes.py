"""Which 8-bit and 4-bit code, and which scales, keep AdamW closest to float32.

Question: how far do parameters end from those of float32 AdamW where moments are stored
in a code? All follow the gradients of the float32 run, so that nothing but the storage
differs; mean |p - p32| / learning rate after 50 and 300 steps, rate 1e-3, no decay, by
kind of leaf:

    embedding, head, matrices   a transformer of width 64 on the 2,048 most frequent
                                words of Python's own help: most rows of the embedding
                                have no gradient in most steps
    convolutions                of 3 x 3, on scikit-learn's digits
    columns                     normal gradients, the scale of each column 10^U(-5, 0)

codes: scales are rank-1 (of an element: the smaller one of the largest in its row and
in its column), x is divided by them. L levels: 127 (mean) and 256 (square) in 8 bits, 7
and 16 in 4; k from 0 and from 1. Named for the mean, then, where another, the square.

    linear, sqrt, fourth   (k / L)^1, ^2, ^4
    log                    10^(7 (k / L - 1)), and 0 for the mean
    dynamic                a table: decades from 1e-7 to 1, twice as many numbers in
                           each as in the one below, evenly; and 0 and 1
    fp8                    e4m3; what is not 0 is never read as 0

time: 16M numbers in [-1, 1] into the mean's code and back, in turns with sqrt: ratio of
medians. bytes: state per parameter of GPT-2 small, both moments with scales.

layouts: of `adamx.codecs` themselves; to nearest where nothing else is said.

Source: Dettmers, Lewis, Shleifer & Zettlemoyer, "8-bit Optimizers via Block-wise
Quantization" (2022), sections 1.3 and 2.2 (dynamic; for squares, twice the numbers);
Li, Chen & Zhu, "Memory Efficient Optimizers with 4-bit States" (2023) (without 0).

    python benchmarks/codes.py [--parts codes layouts] [--only ROW] [--markdown]
    python benchmarks/codes.py --quick
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import _tasks
import exactness
import jax
import jax.numpy as jnp
import memory
import numpy as np
import optax
import step_time
from rich.console import Console
from rich.progress import track

import adamx
from adamx import codecs

QUICK = {"codes": ("4 bits: linear, sqrt",), "layouts": ("int8: rank1",)}
RATE, STEPS, CHUNK, QUICK_STEPS, DECADES = 1e-3, (50, 300), 50, (1, 2), 7
MIN_SIZE, MOVED = 1024, "float32 moved"  # all leaves that are measured are larger

progress = functools.partial(track, console=Console(stderr=True), transient=True)

# --------------------------------------------------------------------------- the codes


class Code(NamedTuple):
    """Numbers in [-1, 1] as codes of 8 bits or fewer, and back."""

    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]


def arithmetic(place: Any, value: Any, bits: int, is_signed: bool) -> Code:
    """A code from a function of [0, 1] onto itself, and its inverse."""
    levels = 2 ** (bits - 1) - 1 if is_signed else 2**bits
    dtype = jnp.dtype(f"{'' if is_signed else 'u'}int{bits}")

    def encode(x: jax.Array) -> jax.Array:
        k = jnp.clip(jnp.round(place(jnp.abs(x)) * levels), 0, levels)
        k = jnp.where(x < 0, -k, k) if is_signed else jnp.maximum(k, 1) - 1
        return k.astype(dtype)

    def decode(codes: jax.Array) -> jax.Array:
        k = codes.astype(jnp.float32) + (0 if is_signed else 1)
        return jnp.sign(k) * value(jnp.abs(k) / levels)

    return Code(encode, decode)


def power(exponent: int, bits: int, is_signed: bool) -> Code:
    def place(x: jax.Array) -> jax.Array:
        for _ in range(exponent.bit_length() - 1):
            x = jnp.sqrt(x)
        return x

    return arithmetic(place, lambda x: x**exponent, bits, is_signed)


def logarithm(bits: int, is_signed: bool) -> Code:
    slope = np.float32(DECADES * np.log2(10))
    return arithmetic(
        lambda x: 1 + jnp.log2(x) / slope,
        lambda x: jnp.exp2(slope * (x - 1)),
        bits,
        is_signed,
    )


def dynamic_numbers(is_signed: bool) -> np.ndarray:
    """The 256 numbers of the dynamic code, in order."""
    sizes = []
    for decade in range(DECADES):
        count = 2**decade * (1 if is_signed else 2)
        middles = 0.1 + 0.9 * (np.arange(count) + 0.5) / count
        sizes.append(middles * 10.0 ** (decade + 1 - DECADES))
    positive = np.concatenate(sizes)
    negative = -positive if is_signed else positive[:0]
    return np.sort(np.concatenate([negative, positive, [0.0, 1.0]]))


def dynamic(_bits: int, is_signed: bool, has_zero: bool = True) -> Code:
    """Look-up by bisection; "without 0" is so for squares only."""
    numbers = dynamic_numbers(is_signed)
    if not (has_zero or is_signed):
        numbers = numbers[numbers > 0]
    borders = jnp.asarray((numbers[1:] + numbers[:-1]) / 2, jnp.float32)
    table = jnp.asarray(numbers, jnp.float32)

    def encode(x: jax.Array) -> jax.Array:
        return jnp.searchsorted(borders, x).astype(jnp.uint8)

    return Code(encode, lambda codes: table[codes])


def fp8(_bits: int, _is_signed: bool) -> Code:
    info = jnp.finfo(jnp.float8_e4m3fn)
    largest, smallest = jnp.float32(info.max), jnp.float32(info.smallest_subnormal)

    def encode(x: jax.Array) -> jax.Array:
        size = jnp.where(x != 0, jnp.maximum(jnp.abs(x) * largest, smallest), 0)
        return (jnp.sign(x) * size).astype(jnp.float8_e4m3fn)

    return Code(encode, lambda codes: codes.astype(jnp.float32) / largest)


CODES: dict[str, Callable[[int, bool], Code]] = {
    "linear": functools.partial(power, 1),
    "sqrt": functools.partial(power, 2),
    "fourth": functools.partial(power, 4),
    "log": logarithm,
    "dynamic": dynamic,
    "dynamic without 0": functools.partial(dynamic, has_zero=False),
    "fp8": fp8,
}
_NAMES = {
    8: "linear; sqrt; fourth; log; fp8; dynamic; dynamic, dynamic without 0; "
    "linear, sqrt; sqrt, fourth",
    4: "linear; sqrt; linear, sqrt; linear, fourth",
}
# By name: bits, code of the mean, of the square.
PAIRS: dict[str, tuple[int, str, str]] = {
    f"{bits} bits: {name}": (bits, name.split(", ")[0], name.split(", ")[-1])
    for bits, names in _NAMES.items()
    for name in names.split("; ")
}


def stored(code: Code, x: jax.Array) -> jax.Array:
    """What is read of an array that was stored in a code, with rank-1 scales."""
    size = jnp.abs(x)
    row, column = size.max(-1, keepdims=True), size.max(-2, keepdims=True)
    scale = jnp.minimum(row, column)
    read = code.decode(code.encode(x / jnp.where(scale > 0, scale, 1))) * scale
    return read.astype(x.dtype)


def coded(bits: int, mean: str, square: str) -> optax.GradientTransformation:
    """AdamW whose moments are, after each step, what can be read of their codes."""
    tx = adamw(None)
    codes = {"mu": CODES[mean](bits, True), "nu": CODES[square](bits, False)}

    def update(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        for name, code in codes.items():
            exact = optax.tree_utils.tree_get(state, name)
            read = jax.tree.map(functools.partial(stored, code), exact)
            state = optax.tree_utils.tree_set(state, **{name: read})
        return updates, state

    return optax.GradientTransformation(tx.init, update)


def adamw(*storage: Any) -> Any:
    mu, nu = storage[0], storage[-1]
    return adamx.adamw(RATE, weight_decay=0.0, mu_dtype=mu, nu_dtype=nu)


# ------------------------------------------------------------------------- the layouts

_NEAREST = {"rounding": "nearest"}
# Arguments for the mean, and, where they are others, for the square.
_CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "rank1": (_NEAREST,),
    "column": ({"layout": "column", **_NEAREST},),
    "row": ({"layout": "row", **_NEAREST},),
    "block, 64": ({"layout": "block", "block": 64, **_NEAREST},),
    "block, 256": ({"layout": "block", "block": 256, **_NEAREST},),
    "tensor": ({"layout": "tensor", **_NEAREST},),
    "rank1, stochastic": ({},),
    "rank1, square stochastic": (_NEAREST, {}),
}
LAYOUTS: dict[str, tuple[Callable[..., Any], ...]] = {
    f"{make.__name__}: {name}": tuple(functools.partial(make, **own) for own in choice)
    for make in (codecs.int8, codecs.int4)
    for name, choice in _CHOICES.items()
}


def made(name: str, min_size: int = 4096) -> list[Any]:
    return [make(min_size=min_size) for make in LAYOUTS[name]]


def state_bytes(*storage: Any) -> str:
    """Bytes of state per parameter of GPT-2 small; a 4-bit number is half a byte."""
    shapes = step_time.gpt2_shapes()
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    state = jax.eval_shape(lambda p: memory.raw(adamw(*storage).init(p)), params)
    total = sum(x.size * memory.bits_of(x.dtype) / 8 for x in state)
    return f"{total / sum(p.size for p in params):.2f}"


# ------------------------------------------------------------------------- the problem


def make_problem(is_quick: bool = False) -> tuple[Any, Any]:
    """Key -> parameters, and (parameters, key) -> gradients; all problems in a tree."""
    tasks = {"pictures": _tasks.digits(batch=32, model=_tasks.convolutions())}
    if not is_quick:  # the transformer takes long to compile
        tasks["text"] = _tasks.characters(64, 32, 16, words=2048)
    shape = (128, 256)
    scale = 10 ** np.random.default_rng(0).uniform(-5, 0, shape[1]).astype(np.float32)

    def init(key: jax.Array) -> Any:
        last = 0.02 * jax.random.normal(key, shape)
        return {name: task.init(key) for name, task in tasks.items()} | {"last": last}

    def gradient(params: Any, key: jax.Array) -> Any:
        found = {
            name: jax.grad(task.loss)(params[name], task.sample(key))
            for name, task in tasks.items()
        }
        return found | {"last": scale * jax.random.normal(key, shape)}

    return init, gradient


def measured(tree: Any) -> dict[str, list[jax.Array]]:
    """The leaves that are measured, by kind: of blocks of the transformer the first."""
    found = {"convolutions": tree["pictures"][1:3], "columns": [tree["last"]]}
    if "text" not in tree:
        return found
    text = tree["text"]
    matrices = [text["block_0"][name] for name in ("qkv", "out", "up", "down")]
    ends = {name: [text[name]] for name in ("embedding", "head")}
    return {**ends, "matrices": matrices, **found}


def reference(gradient: Any, chunk: int) -> Callable[..., Any]:
    """(carry, first step) -> carry, gradients that are measured: float32 steps."""
    tx, key = adamw(None), jax.random.key(0)

    def step(carry: Any, number: jax.Array) -> Any:
        params, state = carry
        gradients = gradient(params, jax.random.fold_in(key, number))
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), measured(gradients)

    return jax.jit(lambda c, first: jax.lax.scan(step, c, first + jnp.arange(chunk)))


def follower(tx: Any) -> Callable[..., Any]:
    """(carry, gradients) -> carry: a step with each of the gradients given."""

    def step(carry: Any, gradients: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda carry, many: jax.lax.scan(step, carry, many)[0])


def errors(params: Any, other: Any) -> dict[str, float]:
    """Mean |difference| / rate of the elements of each kind of leaf."""

    def error(kind: str) -> float:
        pairs = zip(params[kind], other[kind], strict=True)
        gaps = [np.abs(np.asarray(a, np.float64) - np.asarray(b)) for a, b in pairs]
        return float(np.concatenate([gap.ravel() for gap in gaps]).mean()) / RATE

    return {kind: error(kind) for kind in params}


def compare(contestants: dict[str, Any], is_quick: bool) -> dict[str, list[str]]:
    """A row of cells for each contestant, and "", for the head: the kinds.

    In chunks of steps: so many gradients of the float32 run are kept at a time.
    """
    steps, chunk = (QUICK_STEPS, 1) if is_quick else (STEPS, CHUNK)
    init, gradient = make_problem(is_quick)
    params = jax.jit(init)(jax.random.key(1))
    run, start = reference(gradient, chunk), measured(params)
    exact = params, adamw(None).init(params)
    runs = {name: follower(tx) for name, tx in contestants.items()}
    carries = {name: (start, tx.init(start)) for name, tx in contestants.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in [MOVED, *runs]}
    for first in progress(range(0, max(steps), chunk), "steps"):
        exact, gradients = run(exact, first)
        for name, follow in runs.items():
            carries[name] = follow(carries[name], gradients)
        if first + chunk in steps:
            goal = measured(exact[0])
            found[MOVED].append(errors(start, goal))
            for name, (params, _) in carries.items():
                found[name].append(errors(params, goal))
    return {"": list(start)} | {
        name: [" / ".join(number(at[kind]) for at in points) for kind in start]
        for name, points in found.items()
    }


def number(x: float) -> str:
    """Two digits, without a power of ten where it is not needed."""
    return f"{x:.0f}" if 10 <= x < 1e5 else f"{x:.2g}"


# -------------------------------------------------------------------------- the tables


def times(ways: Any, side: int, rounds: int) -> dict[Any, str]:
    """By (bits, code of the mean): the median over that of 8 bits of sqrt."""
    x = jax.random.uniform(jax.random.key(0), (side, side), minval=-1, maxval=1)

    def contestant(bits: int, name: str) -> step_time.Contestant:
        code = CODES[name](bits, True)
        encode, decode = jax.jit(code.encode), jax.jit(code.decode)
        return step_time.Contestant(name, lambda: decode(encode(x)).block_until_ready())

    base = (8, "sqrt")
    made = {way: contestant(*way) for way in [base, *ways]}
    step_time.measure(list(made.values()), rounds, warm_up=1)
    medians = {way: statistics.median(c.times) for way, c in made.items()}
    return {way: f"{median / medians[base]:.2g}" for way, median in medians.items()}


def code_rows(names: Any, cells: Any, is_quick: bool) -> list[list[str]]:
    """By codes: errors, time of the mean's, bytes (the library's, of so many bits)."""
    size = {8: state_bytes(codecs.int8()), 4: state_bytes(codecs.int4())}
    ways = {name: PAIRS[name][:2] for name in names}
    took = times(ways.values(), *((64, 1) if is_quick else (4096, 5)))
    rows = [[MOVED, *cells[MOVED], "", state_bytes(None)]]
    for name, way in ways.items():
        rows.append([name, *cells[name], took[way], size[way[0]]])
    return rows


def layout_rows(names: Any, cells: Any) -> list[list[str]]:
    """By codec: errors, bytes."""
    rows = [[MOVED, *cells[MOVED], state_bytes(None)]]
    return rows + [[n, *cells[n], state_bytes(*made(n))] for n in names]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=[*QUICK], default=[*QUICK])
    rows = [*PAIRS, *LAYOUTS]
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke test, few rows")
    options = parser.parse_args(arguments)
    print(f"{step_time.device_name()}; {step_time.versions()}")
    began, is_quick = time.perf_counter(), options.quick
    names = QUICK if is_quick else {"codes": (*PAIRS,), "layouts": (*LAYOUTS,)}
    names = {part: [n for n in own if n in options.only] for part, own in names.items()}
    contestants: dict[str, Any] = {}
    if "codes" in options.parts:
        contestants |= {n: coded(*PAIRS[n]) for n in names["codes"]}
    if "layouts" in options.parts:
        contestants |= {n: adamw(*made(n, MIN_SIZE)) for n in names["layouts"]}
    cells = compare(contestants, is_quick)
    steps = " / ".join(map(str, QUICK_STEPS if is_quick else STEPS))
    for part in options.parts:
        head, rows = ["", *cells[""], "bytes"], layout_rows
        if part == "codes":
            head.insert(-1, "time")
            rows = functools.partial(code_rows, is_quick=is_quick)
        print(f"\n{part}: mean |p - p32| / rate after {steps} steps\n")
        exactness.show(head, rows(names[part], cells), options.markdown)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
