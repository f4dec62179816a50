"""A pytest plugin: Optax's functions replaced by ours, everywhere, and counted.

Loaded with `-p tests.optax_own.plugin` in a process of its own; without
`--optax-own-run` it does nothing. Before a test module is imported it loads every
module of Optax and replaces each attribute that is, by identity, a function that we
have under the same name. Modules that copied the function under another home, and
functions of Optax that are built on it (lamb on scale_by_adam), then use ours too.

Every replacement counts its calls: a suite that never reached our code shows nothing.
"""

import collections
import functools
import importlib
import importlib.metadata
import json
import pathlib
import pkgutil
import re
import sys
import time
import types

import jax
import optax
import pytest

import adamx
from tests.optax_own import breaks, cases

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def pytest_addoption(parser):
    group = parser.getgroup("optax-own")
    group.addoption("--optax-own-run", choices=sorted(cases.RUNS))
    group.addoption("--optax-own-replace", choices=["all", "stages", "none"])
    group.addoption("--optax-own-only", help="a JSON file: the only cases to run")
    group.addoption("--optax-own-report", help="where the outcomes are written")


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if config.getoption("--optax-own-run"):
        config.pluginmanager.register(_Recorder(config), "optax-own-recorder")


# ------------------------------------------------------------------ replacement


def shared_names():
    """Every public function of ours that Optax has under the same name.

    Not classes: our states record more than Optax's, and several of Optax's state types
    are one and the same object under different names.
    """
    return [
        name
        for name, ours in vars(adamx).items()
        if callable(ours)
        and not isinstance(ours, type)
        and not name.startswith("_")
        and callable(getattr(optax, name, None))
        and name not in cases.OTHER_THINGS
    ]


def is_optimizer(name):
    """Whether Optax defines the name beside adam, and not as a stage of it."""
    return hasattr(sys.modules["optax._src.alias"], name)


def import_optax():
    """All modules of Optax but its tests; those that lack an extra are left out."""
    for module in pkgutil.walk_packages(optax.__path__, "optax."):
        if not module.name.endswith("_test"):
            try:
                importlib.import_module(module.name)
            except ImportError:
                continue
    return [m for name, m in sys.modules.items() if name.split(".")[0] == "optax"]


def replace(names, broken, calls):
    """Puts counting versions of ours in the place of Optax's; returns their homes."""
    modules = import_optax()
    originals = {name: getattr(optax, name) for name in names}
    ours = {
        name: _counting(name, broken.get(name, getattr(adamx, name)), calls)
        for name in names
    }
    by_identity = {id(f): ours[name] for name, f in originals.items()}

    def replaced(value):
        if id(value) in by_identity:
            return by_identity[id(value)]
        if isinstance(value, functools.partial) and id(value.func) in by_identity:
            new = by_identity[id(value.func)]
            return functools.partial(new, *value.args, **value.keywords)
        return value

    homes = collections.defaultdict(list)
    for module in modules:
        for attribute, value in list(vars(module).items()):
            new = replaced(value)
            if new is not value:
                setattr(module, attribute, new)
                homes[attribute].append(module.__name__)
    left = _remains(modules, replaced)
    if left:
        raise pytest.UsageError(f"originals of Optax are still reachable: {left}")
    return dict(homes)


def _remains(modules, replaced):
    """Originals kept where no attribute is: in containers and argument defaults."""
    found = []
    for module in modules:
        for attribute, value in vars(module).items():
            inner = []
            if isinstance(value, dict) and not attribute.startswith("__"):
                inner = list(value.values())
            elif isinstance(value, (list, tuple, set, frozenset)):
                inner = list(value)
            elif isinstance(value, types.FunctionType):
                inner = [*(value.__defaults__ or ())]
                inner += (value.__kwdefaults__ or {}).values()
            if any(replaced(x) is not x for x in inner):
                found.append(f"{module.__name__}.{attribute}")
    return found


def _counting(name, function, calls):
    """The function with its signature; what it and its update return is counted.

    functools.wraps, since inject_hyperparams reads the signature.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        calls[name] += 1
        if not isinstance(result, optax.GradientTransformation):
            return result

        @functools.wraps(result.update)
        def update(*args, **kwargs):
            updated = result.update(*args, **kwargs)
            calls[name + ".update"] += 1
            return updated

        return result._replace(update=update)

    return wrapper


# --------------------------------------------------------------------- recording


class _Version(str):
    """A version that compares by its numbers.

    Optax asks for jax >= "0.7.2" as text, so that its sharding tests skip themselves on
    0.10; with this they run.
    """

    def __lt__(self, other):
        return _numbers(self) < _numbers(other)

    def __le__(self, other):
        return _numbers(self) <= _numbers(other)

    def __gt__(self, other):
        return _numbers(self) > _numbers(other)

    def __ge__(self, other):
        return _numbers(self) >= _numbers(other)


def _numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


class _Recorder:
    """Selects the cases of a run and writes down what became of them."""

    def __init__(self, config):
        self.run = cases.RUNS[config.getoption("--optax-own-run")]
        self.report_path = config.getoption("--optax-own-report")
        only = config.getoption("--optax-own-only")
        self.only = only and set(json.loads(pathlib.Path(only).read_text()))
        self.calls = collections.Counter()
        self.outcomes, self.keys, self.errors = {}, {}, []
        self.start = time.monotonic()
        mode = config.getoption("--optax-own-replace") or self.run.replace
        import_optax()
        jax.__version__ = _Version(jax.__version__)
        self.shared = shared_names()
        names = {
            "all": self.shared,
            "stages": [n for n in self.shared if not is_optimizer(n)],
            "none": [],
        }[mode]
        broken = {}
        if self.run.breaks:
            broken = {b.name: b.how(getattr(adamx, b.name)) for b in breaks.BREAKS}
        self.homes = replace(names, broken, self.calls)
        self.optimizers = [n for n in self.shared if is_optimizer(n)]

    def pytest_collection_modifyitems(self, config, items):
        kept, dropped, seen = [], [], set()
        for item in items:
            key = _key(item)
            if key in seen:
                key += f" #{item.name}"
            seen.add(key)
            self.keys[item.nodeid] = key
            if self.only is None:
                is_kept = self.run.keep(key, self.optimizers)
            else:
                is_kept = key in self.only
            (kept if is_kept else dropped).append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)

    def pytest_collectreport(self, report):
        if report.failed:
            self.errors.append(f"{report.nodeid}: {report.longreprtext[-500:]}")

    def pytest_runtest_logreport(self, report):
        # A subtest reports under its test's id; its failure is the test's.
        if report.when != "call" and not report.failed and not report.skipped:
            return
        key = self.keys[report.nodeid]
        case = self.outcomes.setdefault(
            key, {"outcome": report.outcome, "why": "", "seconds": 0.0}
        )
        case["seconds"] = round(max(case["seconds"], report.duration), 3)
        rank = ["passed", "skipped", "failed"].index
        case["outcome"] = max(case["outcome"], report.outcome, key=rank)
        if report.failed and not case["why"]:
            case["why"] = _why(report)

    def pytest_sessionfinish(self, session):
        if not self.report_path:
            return
        report = {
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("jax", "jaxlib", "optax", "numpy", "absl-py", "pytest")
            },
            "shared": self.shared,
            "optimizers": self.optimizers,
            "homes": self.homes,
            "calls": dict(self.calls),
            "outcomes": self.outcomes,
            "errors": self.errors,
            "seconds": round(time.monotonic() - self.start, 1),
        }
        pathlib.Path(self.report_path).write_text(json.dumps(report, indent=1))


def _key(item):
    """'Class::method(parameters)': ids of parameterised cases are bare indices."""
    parameters = getattr(item.obj, "__x_params_repr__", None)
    name = item.name
    if parameters:
        name = re.sub(r"\d+$", "", name) + parameters
    return f"{item.cls.__name__}::{_ADDRESS.sub('', name)}"


def _why(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:6])[:400]
