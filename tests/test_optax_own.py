"""Optax's own tests, which its wheel brings along, pass on ours.

Each run is a process in which Optax's functions are replaced by ours (see
`optax_own/plugin.py`); which cases run and which fail by intention stands in
`optax_own/cases.py`.
"""

import re

import pytest

from tests.optax_own import breaks, cases, runner

FAST = [
    "sharding",
    pytest.param("alias", marks=pytest.mark.slow),
    pytest.param("others", marks=pytest.mark.slow),
    pytest.param("stages", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", FAST)
def test_optax_tests_pass_on_ours(name):
    if not runner.modules_of(name):
        pytest.skip("this version of Optax has no such test module")
    found = runner.problems(name, runner.run(name))
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_broken_functions_are_noticed():
    report = runner.run("broken")
    failed = runner.cases_with(report, "failed")
    missed = [
        f"{how.name} {how.how.__name__}"
        for how in breaks.BREAKS
        if not any(re.fullmatch(how.pattern, case) for case in failed)
    ]
    assert not missed, f"{missed} went unnoticed; {report['outcomes']}"


@pytest.mark.slow
def test_all_of_optax_tests_pass_on_ours():
    names = [n for n in cases.RUNS if n.startswith("full") and runner.modules_of(n)]
    reports = {name: runner.run(name) for name in names}
    print(runner.table(reports))
    found = [
        p for name, report in reports.items() for p in runner.problems(name, report)
    ]
    assert not found, "\n".join(found)
    assert not runner.unmatched(list(reports.values()))
