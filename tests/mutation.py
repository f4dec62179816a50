"""Mutation run: every single slip in what computes must make a test fail.

    python -m tests.mutation --write          all files; writes tests/MUTATION.md
    python -m tests.mutation adam _layout     some files; with --write, only their lines

    --wide          every function that computes, not only leaf rules and updates
    --no-baseline   where the tests have just passed
    --sample=20     so many mutants of each file at most, drawn at random (seed 0)

A mutant is the library with one operator, operand order, exponent, comparison, function
or bias correction changed. Where: in `optimizers/` and in `_cautious` and `_narrow` of
`compose/`, the functions whose name ends in `_leaf` and the `update` functions that
compute their scalars, with --wide all others too; in the files of `moments/` that hold
arithmetic, all functions. Checks of arguments are left alone. A mutant is killed when a
test fails: of its own optimizers, or those that `TESTS` names; the tests are run in a
child process on a copy of the package.
"""

import ast
import collections
import contextlib
import copy
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).parent.parent
OPTIMIZERS = ROOT / "adamx" / "optimizers"
MOMENTS = ("ema", "look_ahead", "codec", "codes", "layout", "rounding")
FILES = [*sorted(OPTIMIZERS.glob("*.py"))]
FILES += [ROOT / "adamx" / "compose" / f"_{name}.py" for name in ("cautious", "narrow")]
FILES += [ROOT / "adamx" / "moments" / f"_{name}.py" for name in MOMENTS]
# Arithmetic that many optimizers share is judged by the tests of a few.
SHARED = {"_look_ahead": ["nadam", "radam"], "_cautious": ["cautious"]}
SHARED |= {"_curvature": ["sophia_h", "sophia_g"]}
# What no optimizer's own tests are about: arguments of pytest, the quickest first.
# EVERY: the cases of the slow run too.
EVERY = ["-m", ""]
CODECS, BOUNDS = "tests/test_codecs.py", "tests/test_codecs_bounds.py"
MASTERS, PRECISION = "tests/test_master_weights.py", "tests/test_precision.py"
TESTS = {
    "_ema": [
        [PRECISION, "-k", "(adam- or nadamw- or rmsprop-) and float64"],
        [PRECISION, "tests/test_sparse.py"],
        [PRECISION, "-k", "x64 or beta or momentum", *EVERY],
    ],
    "_codec": [
        [CODECS, "-k", "keep_and or decode_reads or bytes_of or reproducible"],
        ["tests/test_bad_input_codecs.py"],
        ["tests/test_codecs_contract.py", "-k", "adamw-"],
        ["tests/test_codecs_contract.py", "-k", "adamw- and encoded", *EVERY],
    ],
    "_codes": [
        [CODECS, "-k", "nearest or scales_are or old_code or moves_on or reference"],
        [CODECS, "-k", "nearest or scales_are or old_code or leaves_0", *EVERY],
        [BOUNDS, "-k", "not stream"],
        [CODECS, BOUNDS, "-k", "stream or slow_changes or dies_away"],
    ],
    "_layout": [
        [CODECS, "-k", "scales_are or found_with_nan or (nearest and int8)"],
        [CODECS, "-k", "scales_are", *EVERY],
        [BOUNDS, "-k", "not stream"],
    ],
    "_rounding": [
        ["tests/test_rounding.py", "-k", "not battery and not devices"],
        [CODECS, "-k", "draw_apart or old_code or reproducible"],
        ["tests/test_rounding.py"],
    ],
    "_narrow": [
        [MASTERS, "-k", "definition or numpys or zeros_nan or two_bytes or one_ulp"],
        [MASTERS, "-k", "definition", *EVERY],
        [MASTERS, "-k", "missed or drifts or other_hands or derivatives"],
    ],
}
RESULT = pathlib.Path(__file__).parent / "MUTATION.md"
WORKERS = 2
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
PYTEST += ["-c", "pyproject.toml"]

SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
ORDERED = (ast.Sub, ast.Div, ast.Pow)
CALLS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "update_square": "update_average",
}
# Calls that are replaced by their first argument: the function is left out.
DROPPED = {"sqrt", "abs", "abs_squared", "sign", "mean", "sum", "reciprocal", "expm1"}
# Fields that are replaced by one: the bias correction is left out.
NEUTRAL = {"correction"}
OTHER_MOMENT = {"mu": "nu", "nu": "mu"}
# Shapes, dtypes and checks: no arithmetic.
IGNORED_CALLS = re.compile(r"check|assert|astype|zeros|ones|Error|record|join")


def mutations(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may become by one slip, with a label."""
    if isinstance(node, ast.BinOp):
        kind = type(node.op)
        if kind in SWAPPED:
            new = copy.deepcopy(node)
            new.op = SWAPPED[kind]()
            yield "operator", new
        if kind in ORDERED:
            new = copy.deepcopy(node)
            new.left, new.right = new.right, new.left
            yield "operand order", new
        if kind is ast.Pow:
            new = copy.deepcopy(node)
            new.right = ast.BinOp(new.right, ast.Add(), ast.Constant(1))
            yield "exponent", new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", copy.deepcopy(node.operand)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        new = copy.deepcopy(node)
        new.ops[0] = SWAPPED[type(node.ops[0])]()
        yield "comparison", new
    elif isinstance(node, ast.Constant) and node.value in OTHER_MOMENT:
        yield "other moment", ast.Constant(OTHER_MOMENT[node.value])
    elif isinstance(node, ast.Attribute) and node.attr in NEUTRAL:
        yield "bias correction", ast.Constant(1.0)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in CALLS:
            new = copy.deepcopy(node)
            new.func.attr = CALLS[name]
            yield "function", new
        if name in DROPPED and node.args:
            yield "function left out", copy.deepcopy(node.args[0])
        if name == "where" and len(node.args) == 3:
            new = copy.deepcopy(node)
            new.args[1], new.args[2] = new.args[2], new.args[1]
            yield "branches", new
        if name in ("update_average", "update_square", "divide_or_zero"):
            new = copy.deepcopy(node)
            new.args[0], new.args[1] = new.args[1], new.args[0]
            yield "operand order", new


def places(
    tree: ast.Module, is_wide: bool = False
) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes of the functions that compute, with their parents."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or "check" in node.name:
            continue
        if is_wide or node.name == "update" or node.name.endswith("_leaf"):
            yield from _inside(node)


def _inside(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and IGNORED_CALLS.search(
            ast.unparse(child.func)
        ):
            continue
        if isinstance(child, (ast.Raise, ast.arguments, ast.Assert, ast.Dict)):
            continue
        if isinstance(child, ast.FunctionDef) and "check" in child.name:
            continue
        yield node, child
        yield from _inside(child)


def mutants(
    path: pathlib.Path, is_wide: bool = False
) -> list[tuple[int, str, str, str]]:
    """(line, kind, what became of it, the whole mutated source) of one file."""
    source = path.read_text()
    tree = ast.parse(source)
    seen, found = set(), []
    for parent, node in places(tree, is_wide):
        for kind, new in mutations(node):
            text = f"{ast.unparse(node)}  ->  {ast.unparse(new)}"
            key = (node.lineno, node.col_offset, text)
            if key in seen:
                continue
            seen.add(key)
            with _replaced(parent, node, new):
                found.append((node.lineno, kind, text, ast.unparse(tree)))
    return found


@contextlib.contextmanager
def _replaced(parent: ast.AST, node: ast.AST, new: ast.AST) -> Iterator[None]:
    for name, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, name, new)
            yield
            setattr(parent, name, node)
            return
        if isinstance(value, list) and any(item is node for item in value):
            index = next(i for i, item in enumerate(value) if item is node)
            value[index] = new
            yield
            value[index] = node
            return
    raise AssertionError("not a child")


def names_of(path: pathlib.Path) -> list[str]:
    """The optimizers that a file makes or that are made of it."""
    from tests.optimizers_table import NAMES

    if path.stem in SHARED:
        return SHARED[path.stem]

    def uses(other: pathlib.Path) -> bool:
        return f"optimizers.{path.stem} import" in other.read_text()

    files = [path, *(other for other in OPTIMIZERS.glob("*.py") if uses(other))]
    defined = {
        node.name
        for file in files
        if file.name != "__init__.py"
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    return [row.name for row in NAMES if row.name in defined]


def selections(path: pathlib.Path) -> list[list[str]]:
    """Arguments of pytest, the quickest killers first."""
    if path.stem in TESTS:
        return TESTS[path.stem]
    names = names_of(path)
    own = " or ".join(f"{name}-" for name in names)
    special = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        if re.search(rf"\b({'|'.join(names)}|scale_by_{path.stem})\b", file.read_text())
        and file.name not in ("test_contract.py", "test_arguments.py", "test_layout.py")
        and file.name not in ("test_optax_own.py", "test_examples.py", "test_readme.py")
    ]
    float64 = ["tests/test_precision.py", "-k", f"({own}) and (float64 or x64)"]
    contract = ["tests/test_contract.py", "tests/test_arguments.py", "-k", own]
    wide = [[*chosen, "-m", "slow"] for chosen in (float64, contract)]
    return [float64, [*special, "-k", "not complex64"], contract, *wide]


def is_killed(
    path: pathlib.Path,
    source: str,
    folder: pathlib.Path,
    chosen: Sequence[list[str]] | None = None,
) -> bool:
    """Whether some test fails with the mutated file in place."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        copy_root = pathlib.Path(work)
        shutil.copytree(ROOT / "adamx", copy_root / "adamx")
        (copy_root / path.relative_to(ROOT)).write_text(source)
        for name in ("tests", "examples", "benchmarks", "README.md", "pyproject.toml"):
            if (ROOT / name).exists():
                (copy_root / name).symlink_to(ROOT / name)
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy_root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_PLATFORMS": "cpu",
        }
        for selection in chosen or selections(path):
            done = subprocess.run(
                [*PYTEST, "--rootdir", str(copy_root), *selection],
                cwd=copy_root,
                env=environment,
                capture_output=True,
                check=False,
            )
            if done.returncode not in (0, 5):  # 5: nothing selected
                return True
    return False


def main(wanted: list[str], flags: set[str]) -> None:
    files = [
        path
        for path in FILES
        if path.stem != "__init__" and (not wanted or path.stem in wanted)
    ]
    unknown = set(wanted) - {path.stem for path in FILES}
    assert not unknown, f"no such file: {sorted(unknown)}"
    jobs = [(path, *mutant) for path in files for mutant in drawn(path, flags)]
    started, killed, survivors = time.time(), collections.Counter(), []
    total = collections.Counter(path.stem for path, *_ in jobs)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        unchanged = files[0], files[0].read_text(), pathlib.Path(folder)
        assert "--no-baseline" in flags or not is_killed(*unchanged, baseline(files))
        results = pool.map(
            lambda job: is_killed(job[0], job[4], pathlib.Path(folder)), jobs
        )
        for number, (job, dead) in enumerate(zip(jobs, results, strict=True), 1):
            path, line, kind, text, _ = job
            killed[path.stem] += dead
            if not dead:
                survivors.append((path.stem, line, kind, text))
            verdict = "killed" if dead else "SURVIVED"
            print(f"{number}/{len(jobs)} {verdict} {path.stem}:{line} {kind}: {text}")
            sys.stdout.flush()
    rows = {name: (total[name], killed[name]) for name in total}
    lines = [f"- {n}.py line {i}, {k}: `{t}`" for n, i, k, t in survivors]
    text = report(rows, lines)
    print(text, f"\n{time.time() - started:.0f} s")
    if "--write" in flags:
        RESULT.write_text(merged(RESULT.read_text(), rows, lines) if wanted else text)


def drawn(path: pathlib.Path, flags: set[str]) -> list[tuple[int, str, str, str]]:
    """The mutants of a file that are tried: all, or a sample."""
    found = mutants(path, "--wide" in flags or path.parent.name == "moments")
    sizes = [int(f.partition("=")[2]) for f in flags if f.startswith("--sample=")]
    size = min([len(found), *sizes])
    places = sorted(random.Random(0).sample(range(len(found)), size))
    return [found[i] for i in places]


def baseline(files: Sequence[pathlib.Path]) -> list[list[str]]:
    """What unchanged sources must pass, or every mutant would count as killed."""
    own = [row for path in files for row in TESTS.get(path.stem, [])]
    rest = [path for path in files if path.stem not in TESTS]
    used = [word for path in rest for row in selections(path) for word in row]
    tests = sorted({word for word in used if word.endswith(".py")})
    return [["-n", str(WORKERS), *row] for row in (*own, *([tests] if tests else []))]


Rows = dict[str, tuple[int, int]]


def report(rows: Rows, survivors: Sequence[str]) -> str:
    """The result as Markdown: by file, how many mutants there are and were killed."""
    total, killed = (sum(row[i] for row in rows.values()) for i in (0, 1))
    share = killed / max(1, total)
    lines = ["# Mutation run", ""]
    lines += [f"{killed} of {total} mutants killed ({share:.1%}).", ""]
    lines += ["| file | mutants | killed |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {of} | {dead} |" for name, (of, dead) in rows.items()]
    return "\n".join([*lines, "", "Survivors:", "", *survivors]) + "\n"


def merged(old: str, rows: Rows, survivors: Sequence[str]) -> str:
    """An earlier result with other lines for some files; the rest, notes too, stays."""
    head, _, below = old.partition("Survivors:\n")
    kept = {
        name: (int(of), int(dead))
        for name, of, dead in re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|$", head, re.M)
    }
    listed, notes = re.match(r"\n*((?:- [^\n]*\n)*)(.*)", below, re.S).groups()
    own = [f"- {name}.py " for name in rows]
    stay = [line for line in listed.splitlines() if not line.startswith(tuple(own))]
    return report({**kept, **rows}, [*stay, *survivors]) + notes


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        [x for x in given if not x.startswith("--")],
        {x for x in given if x.startswith("--")},
    )
