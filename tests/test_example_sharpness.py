"""The example on sharpness runs as a user would run it."""

import re

import pytest

from tests.helpers import run_quickly


@pytest.mark.slow
def test_quick_run(tmp_path):
    printed = run_quickly("sharpness.py", tmp_path)
    assert re.search(r"0\.004\W+9,500", printed)
    assert "for this learning rate" in printed
    assert (tmp_path / "sharpness.png").stat().st_size > 20_000
