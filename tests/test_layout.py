"""The design, as far as a machine can check it: imports, sizes, Optax's order.

Docstrings: tests/test_docstrings.py.
"""

import ast
import inspect
import pathlib

import pytest

import adamx

PACKAGE = pathlib.Path(adamx.__file__).parent
# A room imports from those above it in this list only. Public facade modules
# (`__init__`) count as their room.
ROOMS = [
    {"_types"},
    {"_tree", "_checks", "_printed"},
    {"_scalars", "_varying", "_traced"},
    {"_packed"},
    {"_measured"},
    {"reading"},
    {"moments"},
    {"codecs"},
    {"schedules"},
    {"transforms"},
    {"optimizers"},
    {"apply"},
    {"_writes"},
    {"_steps"},
    {"compose"},
    {"native"},
    {"fused"},
    {"recipes"},
    {"diagnostics"},
    {"sharding"},
    {"interop"},
    {"catalogue"},
    {"__main__"},
    {"__init__"},
]
ALLOWED_THIRD_PARTY = {"jax", "numpy", "optax", "chex", "flax", "rich"}
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(parts):
    return parts[0] if parts else "__init__"


def _level(room):
    for level, names in enumerate(ROOMS):
        if room in names:
            return level
    raise AssertionError(f"'{room}' is not a room of the design; add it to ROOMS")


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module, [alias.name for alias in node.names], node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    tree = ast.parse(path.read_text())
    own = path.relative_to(PACKAGE).with_suffix("").parts
    room = own[0]
    for module, names, node in _imports(tree):
        package, *rest = module.split(".")
        if package != "adamx":
            continue
        targets = [rest] if rest else [[name] for name in names]
        for target in targets:
            other = _room(target)
            if other == room:
                continue
            assert _level(other) < _level(room), (
                f"line {node.lineno}: {room} -> {other}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_extras_are_imported_inside_functions(path):
    import sys

    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for module, _, node in _imports(tree):
        package = module.split(".")[0]
        if package == "adamx" or package in sys.stdlib_module_names:
            continue
        if package not in ALLOWED_THIRD_PARTY:
            assert id(node) not in top, f"line {node.lineno}: {package} at the top"
        assert "._src" not in module, f"line {node.lineno}: private module {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400, "split it"
    assert max((len(line) for line in lines), default=0) <= 88


def _public_functions():
    for name in sorted(vars(adamx)):
        value = getattr(adamx, name)
        if inspect.isfunction(value):
            yield name, value
    for room in ("schedules", "recipes", "sharding", "interop"):
        for name, value in sorted(vars(getattr(adamx, room)).items()):
            if inspect.isfunction(value) and not name.startswith("_"):
                yield f"{room}.{name}", value


FUNCTIONS = dict(_public_functions())


# Positional arguments of Optax 0.2.8 that the oldest supported version lacks.
NEWER_IN_OPTAX = {"bias_correction_mu", "bias_correction_nu"}
# Arguments of Optax that we leave out, by function, and why.
LEFT_OUT = {
    # A mask of its own would be a third way to say which leaves, beside groups and
    # optax.masked, and the other way round: True is frozen.
    "freeze": {"mask"},
    # tanh or the identity in the sign's place: not of the paper, and the step would
    # depend on the gradient's units.
    "scale_by_lion": {"mode", "smooth_beta"},
}


def test_optimizers_follow_optax_order():
    import optax
    import optax.contrib

    for name, ours in FUNCTIONS.items():
        twin = getattr(optax, name, None) or getattr(optax.contrib, name, None)
        if twin is None or not callable(twin):
            continue
        mine = list(inspect.signature(ours).parameters.values())
        theirs = list(inspect.signature(twin).parameters.values())
        for a, b in zip(mine, theirs, strict=False):
            if b.kind is b.KEYWORD_ONLY:
                break
            assert a.name == b.name, name
            assert a.default == b.default, f"{name}({a.name})"
        extra = {p.name for p in mine} - {p.name for p in theirs} - NEWER_IN_OPTAX
        kinds = {p.kind for p in mine if p.name in extra}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        left_out = LEFT_OUT.get(name, set())
        assert {p.name for p in theirs} - left_out <= {p.name for p in mine}, name
        assert not left_out & {p.name for p in mine}, name


# Public functions beside the optimizers that make no transformation.
NO_OPTIMIZERS = {"schedule_free_eval_params"}


def test_the_contract_covers_every_public_optimizer():
    from tests.optimizers_table import ROWS

    optimizers = {
        name
        for name, function in FUNCTIONS.items()
        if ".optimizers." in function.__module__ and not name.startswith("scale_by_")
    }
    assert optimizers - NO_OPTIMIZERS == {row.name for row in ROWS}
