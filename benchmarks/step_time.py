"""The time of one optimizer step, against Optax, PyTorch and the memory itself.

Question: how long does the tail of a training step take (update and apply, everything
donated), and how long does it take to trace and compile? Of these trees of parameters:

    one         one leaf of 64M elements
    gpt2        GPT-2 small: 148 leaves, 124M parameters
    many        500 leaves of 2,048
    many2000    2,000 leaves of 2,048
    experts     a mixture of experts: 3,000 leaves, 43M elements, few of them large

Subjects: AdamW without and with clipping at norm 1.0, with the mean in bfloat16, 8-bit
AdamW (as it comes; and with scales by column, rounded to the nearest), Lion, LAMB, and
AdamW under `diagnose` between two measurements. Contestants:

    stream                      a bound: a loop in C over the bytes that must be moved
    identity                    a bound: a donated program that returns its arguments
    optax, adamx                update and apply_updates
    fused, native               `adamx.fused`, with XLA's loops and with compiled C
    bucketed, bucketed_native   as adamx and native, around `adamx.bucketed`
    torch_fused, torch_foreach  AdamW of PyTorch, where it is installed

Contestants run in one process, in turns and each round in another order, so that a slow
moment of the machine hits all of them. Medians over the rounds, and medians of the
rounds' ratios. Where they do not fit into `--memory` together, they are measured in
groups, each with all that others are compared with in it. "dispatch" is until the call
returns. Tracing, lowering and compiling are measured once, in a warm process and with
an empty cache of compiled C; the processor seconds of the C compiler, where a program
is new in this run, are apart ("C") and in no other number. "temporaries" are over the
bytes of the parameters; "calls" of compiled C are 0 where adamx fell back to XLA.

    python benchmarks/step_time.py [--trees one gpt2 many] [--subjects adamw adamw_clip]
        [--contestants ...] [--skip 'many2000:*clip:optax'] [--rounds 30] [--memory 10]
    python benchmarks/step_time.py --norm [--trees ...]    the global norm alone
    python benchmarks/step_time.py --growth [--plot growth.png]
"""

import argparse
import contextlib
import fnmatch
import math

import _growth
import _norms
import optax
from _contestants import Build, Contestant, Result, compare, make_donated, measure
from _machine import Seconds, device_name, empty_cache, heading, versions
from _subjects import (
    CONTESTANTS,
    SUBJECTS,
    by_protocol,
    entries,
    make_jax,
    random_gradients,
)
from _tables import show
from _trees import QUICK_TREES, TREES, Shapes, gpt2_shapes

import adamx

# What other benchmarks import from here.
__all__ = [
    "Contestant",
    "device_name",
    "gpt2_shapes",
    "main",
    "make_donated",
    "measure",
    "versions",
]

DEFAULT_TREES = ("one", "gpt2", "many")
DEFAULT_SUBJECTS = ("adamw", "adamw_clip")
MANY_LEAVES = 400  # from here, what JAX takes for the arrays alone is a bound
HELD = 4  # trees of the parameters' size that a contestant may hold


def chosen_for(name: str, subject: str, options: argparse.Namespace, n: int) -> list:
    """Names of contestants for a tree of n leaves."""
    names = options.contestants
    if names is None:
        names = [x for x in CONTESTANTS if x != "identity" or n >= MANY_LEAVES]

    def is_left_out(x: str) -> bool:
        place = f"{name}:{subject}:{x}"
        return any(fnmatch.fnmatch(place, pattern) for pattern in options.skip)

    return [x for x in names if not is_left_out(x)]


def warm_up(subject: str, shapes: Shapes) -> None:
    """JAX's own first-use costs and each library's, on a leaf."""
    gradients = random_gradients(shapes[-1:])
    for library, make in ((optax, "theirs"), (adamx, "ours")):
        tx = getattr(SUBJECTS[subject], make)()
        make_jax("", tx, lambda tx, x=library: by_protocol(x, tx), gradients)


def steps(
    name: str, shapes: Shapes, subject: str, options: argparse.Namespace
) -> list[Result]:
    """All contestants in turns, for one tree and one optimizer."""
    gradients = random_gradients(shapes)
    names = chosen_for(name, subject, options, len(shapes))
    made = entries(SUBJECTS[subject], gradients, names)
    tree = sum(g.nbytes for g in gradients) / 2**30
    references = sum(entry.is_reference for entry in made)
    left = options.memory - tree * (1 + HELD * references)
    return compare(made, options.rounds, max(1, int(left / (HELD * tree))))


# -------------------------------------------------------------------------- the tables


def described(shapes: Shapes) -> str:
    count = sum(math.prod(shape) for shape in shapes)
    return f"{len(shapes):,} leaves, {count / 1e6:.3g}M elements"


def time_table(title: str, results: list[Result]) -> None:
    if not results:  # nobody there for this subject
        return
    references, rows = list(results[0].ratios), []
    for r in results:
        low, middle, high = (1e3 * x for x in r.times)
        dispatch = "" if r.dispatch is None else f"{1e3 * r.dispatch:.2f}"
        cells = [f"{middle:.2f}", f"{low:.2f}-{high:.2f}", dispatch]
        rows.append([r.name, *cells, *(f"{r.ratios[x]:.2f}" for x in references)])
    head = ["", "median ms", "quartiles", "dispatch ms"]
    show(title, head + [f"to {x}" for x in references], rows)


def build_table(title: str, results: list[Result], base: str) -> None:
    """What was compiled, compared with the first whose name begins with `base`."""
    built = [(r.name, r.build) for r in results if r.build is not None]
    whole = next((b.wall for name, b in built if name.startswith(base)), None)
    rows = [[name, *build_cells(b, whole)] for name, b in built]
    head = ["", *(f"{x} s, wall / processor" for x in ("trace", "lower", "compile"))]
    head += ["all s", f"to {base}", "C s", "calls", "temporaries"]
    if rows:
        show(title, head, rows)


def build_cells(build: Build, whole: float | None) -> list[str]:
    def both(part: Seconds) -> str:
        return f"{part.wall - part.children:.2f} / {part.processor:.2f}"

    return [
        *map(both, build[:3]),
        f"{build.wall:.2f}",
        "" if whole is None else f"{build.wall / whole:.2f}",
        f"{build.children:.2f}",
        f"{build.calls}",
        # NaN where nothing is counted against the parameters.
        f"{build.temporary:.3f}" if build.temporary == build.temporary else "",
    ]


# --------------------------------------------------------------------------- the parts


def run(name: str, shapes: Shapes, subject: str, options: argparse.Namespace) -> None:
    """One tree and one optimizer: both tables."""
    warm_up(subject, shapes)
    results = steps(name, shapes, subject, options)
    title = f"{name} ({described(shapes)}), {SUBJECTS[subject].title}"
    time_table(title, results)
    build_table(f"{title}: compiled", results, "optax")


def run_norm(name: str, shapes: Shapes, options: argparse.Namespace) -> None:
    gradients = random_gradients(shapes)
    names = chosen_for(name, "norm", options, len(shapes))
    results = _norms.results(gradients, names, options.rounds)
    title = f"{name} ({described(shapes)}), global norm"
    time_table(title, results)
    build_table(f"{title}: compiled", results, _norms.PER_LEAF)


def run_growth(subject: str, options: argparse.Namespace) -> list:
    """One optimizer's curves, as tables; returns the panels of the picture."""
    warm_up(subject, [(2048,)])
    panels = []
    for chosen in _growth.series(options.quick):
        results = {
            size: steps(f"{chosen.key}{size}", shapes, subject, options)
            for size, shapes in chosen.trees.items()
        }
        for quantity, (label, *_) in _growth.QUANTITIES.items():
            drawn = _growth.curves(quantity, results)
            title = f"{SUBJECTS[subject].title}, {chosen.title}"
            _growth.table(chosen, drawn, f"{title}: {label}, by {chosen.key}")
            panels.append((title, chosen.key, quantity, drawn))
    return panels


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices, subjects, names = list(TREES), list(SUBJECTS), list(CONTESTANTS)
    parser.add_argument("--trees", nargs="+", choices=choices, default=DEFAULT_TREES)
    parser.add_argument(
        "--subjects", nargs="+", choices=subjects, default=DEFAULT_SUBJECTS
    )
    parser.add_argument("--contestants", nargs="+", choices=names)
    parser.add_argument(
        "--skip",
        nargs="+",
        default=(),
        metavar="TREE:SUBJECT:CONTESTANT",
        help="patterns; Optax takes minutes to compile 'many2000:*clip:optax'. The "
        "subject of --norm is norm; trees of --growth are parameters<n>, leaves<n>",
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--memory", type=float, default=10, help="GiB for a group of contestants (10)"
    )
    parser.add_argument("--norm", action="store_true", help="the global norm instead")
    parser.add_argument("--growth", action="store_true", help="curves instead")
    parser.add_argument("--plot", help="file for a picture of the curves")
    parser.add_argument(
        "--markdown", action="store_true", help="taken, and no longer of any effect"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    if options.quick:
        options.rounds = 2
    trees = QUICK_TREES if options.quick else TREES
    print(f"{heading()}, {options.rounds} rounds in turns")
    with contextlib.nullcontext() if options.quick else empty_cache():
        if options.norm:
            for name in options.trees:
                run_norm(name, trees[name](), options)
        if options.growth or options.plot:
            panels = [p for s in options.subjects for p in run_growth(s, options)]
            if options.plot:
                _growth.draw(panels, options.plot)
        if not (options.norm or options.growth or options.plot):
            for name in options.trees:
                for subject in options.subjects:
                    run(name, trees[name](), subject, options)


if __name__ == "__main__":
    main()
