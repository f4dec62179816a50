"""Runs Optax's own tests in a process of their own, and judges the outcomes."""

import collections
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import optax

from tests import compiling
from tests.optax_own import cases

ROOT = pathlib.Path(__file__).parents[2]
SITE = pathlib.Path(optax.__file__).parents[1]
SECONDS = 3600


def modules_of(name):
    """The test modules of a run that this version of Optax has."""
    return [m for m in cases.RUNS[name].modules if importlib.util.find_spec(m)]


def run(name, *, replace=None, only=None):
    """Runs one of `cases.RUNS`; returns the plugin's report.

    Args:
      name: of the run.
      replace: overrides the run's own `replace`.
      only: the only cases to run, instead of what the run keeps.
    """
    # JAX's settings of this process (devices, cache, x64) are not the suite's; how it
    # compiles is.
    drop = ("XLA_", "JAX_", "PYTEST_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = compiling.flags(there="")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "report.json")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--no-header"]
        command += ["-c", os.devnull, f"--rootdir={SITE}", "-p", "no:cacheprovider"]
        command += ["-p", "tests.optax_own.plugin", "--optax-own-run", name]
        command += ["--optax-own-report", str(path)]
        if replace is not None:
            command += ["--optax-own-replace", replace]
        if only is not None:
            pathlib.Path(folder, "only.json").write_text(json.dumps(only))
            command += ["--optax-own-only", str(pathlib.Path(folder, "only.json"))]
        command += ["--pyargs", *modules_of(name)]
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if not path.exists():
            raise RuntimeError((result.stdout + result.stderr)[-3000:])
        report = json.loads(path.read_text())
    if report["errors"]:
        raise RuntimeError("not collected: " + "\n".join(report["errors"]))
    return report


def cases_with(report, outcome):
    """The cases of a report that passed, failed or were skipped."""
    return [k for k, case in report["outcomes"].items() if case["outcome"] == outcome]


def find(failures, case, error=None):
    """The first entry of a table that describes the case (and its error), or None."""
    for entry in failures:
        if re.fullmatch(entry.pattern, case):
            return entry if error is None or entry.message in error else None
    return None


def known_optax_failures(report):
    """What is known to fail on Optax itself with a report's versions."""
    versions = report["versions"]
    return cases.OPTAX_FAILS.get((versions["jax"], versions["optax"]), ())


def uncalled(name, report):
    """Our names that this run is there for and whose code never returned a result."""
    optimizers = report["optimizers"]
    wanted = {
        "alias": optimizers,
        "stages": [n for n in report["shared"] if n not in optimizers],
    }.get(name.removeprefix("full "), [])
    calls = report["calls"]
    # apply_updates makes no transformation.
    keys = {n: n if n == "apply_updates" else n + ".update" for n in wanted}
    return [n for n, key in keys.items() if not calls.get(key)]


def problems(name, report):
    """Everything that is wrong with a report, as sentences; empty if nothing is."""
    found = []
    passed, failed = cases_with(report, "passed"), cases_with(report, "failed")
    on_optax = known_optax_failures(report)
    errors = {case: report["outcomes"][case]["why"] for case in failed}
    open_cases = [
        case
        for case, error in errors.items()
        if not find((*cases.INTENDED, *on_optax), case, error)
    ]
    if open_cases:
        originals = run(name, replace="none", only=open_cases)
        on_optax_too = cases_with(originals, "failed")
        open_cases = [case for case in open_cases if case not in on_optax_too]
    for case in open_cases:
        found.append(f"{case} failed: {errors[case]}")
    for case in passed:
        if entry := find(cases.INTENDED, case):
            found.append(f"{case} passes; strike it from INTENDED ({entry.reason})")
    if never := uncalled(name, report):
        found.append(f"{never} were never called: the tests are about Optax")
    if len(passed) < (floor := cases.RUNS[name].floor):
        found.append(f"only {len(passed)} cases passed, {floor} expected")
    return found


def unmatched(reports):
    """Entries of `cases.INTENDED` that describe no case of a full run."""
    known = [case for report in reports for case in report["outcomes"]]
    optax_version = reports[0]["versions"]["optax"]
    return [
        entry.pattern
        for entry in cases.INTENDED
        if optax_version not in entry.missing_in
        and not any(re.fullmatch(entry.pattern, case) for case in known)
    ]


def table(reports):
    """A summary of several runs in Markdown."""
    versions = next(iter(reports.values()))["versions"]
    lines = [", ".join(f"{k} {v}" for k, v in versions.items()), ""]
    lines += ["| run | passed | intended | fails on Optax | skipped by Optax | open |"]
    lines += ["|---|---|---|---|---|---|"]
    reasons = collections.Counter()
    for name, report in reports.items():
        failed = cases_with(report, "failed")
        intended = [c for c in failed if find(cases.INTENDED, c)]
        rest = [c for c in failed if c not in intended]
        on_optax = known_optax_failures(report)
        optax_too = [c for c in rest if find(on_optax, c)]
        reasons.update(find(cases.INTENDED, c).reason for c in intended)
        reasons.update("Optax: " + find(on_optax, c).reason for c in optax_too)
        counts = [len(cases_with(report, "passed")), len(intended), len(optax_too)]
        counts += [len(cases_with(report, "skipped")), len(rest) - len(optax_too)]
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "| cases | why they fail |", "|---|---|"]
    lines += [f"| {count} | {reason} |" for reason, count in reasons.items()]
    calls = collections.Counter()
    for report in reports.values():
        calls.update(report["calls"])
    names = sorted({n.removesuffix(".update") for n in calls})
    lines += ["", "| ours | calls | calls of its update |", "|---|---|---|"]
    lines += [f"| {n} | {calls[n]} | {calls[n + '.update'] or ''} |" for n in names]
    return "\n".join(lines)
