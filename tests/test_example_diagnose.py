"""The example on a sick layer runs as a user would run it."""

import re

import pytest

from tests.helpers import run_quickly


@pytest.mark.slow  # two runs of a network; docs/reading.md reads such a one
def test_quick_run(tmp_path):
    printed = run_quickly("diagnose.py", tmp_path)
    assert "severe: head: eps dominates the denominator\n" in printed
    sick, healed = (
        re.search(rf"{name}\W+([\d.]+)\W+(\d)", printed).groups()
        for name in ("sick", "healed")
    )
    assert float(healed[0]) < float(sick[0]) - 0.1
    assert (sick[1], healed[1]) == ("1", "0")
    for name in ("sick", "healed"):
        page = (tmp_path / f"{name}.html").read_text()
        assert f"The {name} run" in page
