"""health: what a finding says, its order, its words and its sources."""

import ast
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import pytest

import adamx
from adamx import __main__ as command
from adamx.diagnostics import (
    Finding,
    _advice,
    _evidence,
    _health,
    _rules,
    _rules_data,
    _rules_run,
)
from adamx.diagnostics._probe import RANGES, Probe
from tests.helpers_health import (
    LAYERS,
    SICK,
    WELL,
    history,
    symptoms,
    with_layer,
)


def test_order_evidence_and_words():
    ill = history({"update_ratio": 0.2}, where=LAYERS[1:3], skipped=lambda k: 3 * k)
    still = {"r/p50": 1e-5, "r/p90": 1e-4}
    mixed = with_layer(ill, LAYERS[5], {**still, "step/p90": 1e-7})
    found = adamx.health(mixed)
    assert symptoms(found) == [
        ("near_zero", LAYERS[5], "severe"),
        ("skipped", None, "warning"),
        ("ratio_high", LAYERS[1], "warning"),
        ("ratio_high", LAYERS[2], "warning"),
    ]
    evidence = found[0].evidence
    assert evidence["median r"] == 1e-5
    assert evidence["threshold"] == _rules.NEAR_ZERO
    assert (evidence["first step"], evidence["last step"]) == (3100, 4000)
    assert evidence["measurements"] == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].layer = "x"


def test_a_finding_prints_in_two_lines():
    (found,) = adamx.health(history({"r/p50": 1e-5, "r/p90": 1e-4}))
    title, evidence = str(found).splitlines()
    assert title == f"severe: {SICK}: the median of r is near zero"
    assert evidence.startswith("  median r 1e-05, share with r below 0.01 0.0")
    assert evidence.endswith("measurements 10, first step 3100, last step 4000")
    bare = dataclasses.replace(found, layer=None, evidence={})
    assert str(bare) == "severe: the median of r is near zero"
    (every,) = adamx.health(history({"r/p50": 1e-5, "r/p90": 1e-4}, where=LAYERS))
    assert str(every).isascii()
    assert "\n  layers 6, shown block_0/kernel, median r" in str(every)


def test_each_kind_has_words_and_each_rule_its_source():
    for kind, words in _advice.WORDS.items():
        assert words.symptom, kind
        for text in itertools.chain(words.causes, words.remedies):
            assert text.endswith("."), text
        assert words.causes, kind
        assert words.remedies, kind
    for rule in _health.RULES:
        assert "Source: " in rule.__doc__, rule
    kinds = set(_health._IMPLIED).union(*_health._IMPLIED.values())
    assert kinds <= set(_advice.WORDS)
    assert Finding is type(adamx.health(history({"r/p50": 0.0, "r/p90": 0.0}))[0])


def calls(module, *names):
    """The calls of these functions or methods in a module, as syntax."""
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    for node in ast.walk(tree):
        function = getattr(node, "func", None)  # of a call
        if getattr(function, "attr", getattr(function, "id", "")) in names:
            yield node


def literals(module, *names):
    """What they are given first, where it is written out."""
    first = [call.args[0] for call in calls(module, *names) if call.args]
    return {node.value for node in first if isinstance(node, ast.Constant)}


def test_rules_speak_of_what_is_measured_and_are_tested():
    # A misspelt number reads as one that was not measured: the rule would be silent.
    modules = (_rules, _rules_data, _rules_run)
    measured = set(Probe((), (10.0, 50.0, 90.0)).numbers[:-1])
    assert measured == set(WELL)
    folder = pathlib.Path(__file__).parent
    files = ("test_health.py", "test_health_runs.py")
    here = "".join((folder / name).read_text() for name in files)
    for module in (*modules, _evidence):
        assert literals(module, "number", "recent") <= measured
        assert literals(module, "percentile") <= set(RANGES)
    kinds = set().union(*(literals(module, "Sign") for module in modules))
    assert kinds == set(_advice.WORDS)
    assert [kind for kind in kinds if f'"{kind}"' not in here] == []
    rules = [f for m in modules for f in vars(m).values() if is_rule(f, m)]
    assert sorted(f.__name__ for f in rules) == sorted(
        f.__name__ for f in _health.RULES
    )


def is_rule(value, module):
    is_own = getattr(value, "__module__", "") == module.__name__
    found = is_own and getattr(value, "__annotations__", {}).get("return")
    return found == Sequence[_evidence.Sign]


def test_names_in_the_advice_exist():
    import re

    text = " ".join(t for w in _advice.WORDS.values() for t in (*w.causes, *w.remedies))
    names = set(re.findall(r"adamx((?:\.\w+)+)", text))
    assert len(names) > 5
    for name in names:
        target = adamx
        for part in name[1:].split("."):
            target = getattr(target, part)


def test_the_command_reports_findings(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    stored = adamx.History(path)
    for record in history({"r/p50": 1e-5, "r/p90": 1e-4}):
        stored.append(record.reading)
    assert command.main(["report", str(path), "--terminal"]) == 0
    assert "the median of r is near zero" in capsys.readouterr().out
    assert command.main(["report", str(path)]) == 0
    assert "the median of r is near zero" in path.with_suffix(".html").read_text()
    loaded = adamx.History.load(path)
    assert adamx.health(loaded) == adamx.health(stored)
