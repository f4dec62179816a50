"""examples/equinox_mlp.py runs as a user would run it, and shows what it says."""

import re

import matplotlib.pyplot as plt
import pytest

from tests.helpers import run_quickly


@pytest.mark.slow  # tests/test_clients.py trains models of Equinox
def test_quick_run(tmp_path):
    printed = run_quickly("equinox_mlp.py", tmp_path)
    before, after = (
        float(re.search(rf"{name}\W+([\d.]+)", printed)[1])
        for name in ("before", "after")
    )
    assert after < before - 10
    assert "199 steps taken, 1 left out" in printed
    assert re.search(r"layers/3/bias +f32\[1\] +layers/3/ +-", printed)
    assert len(re.findall(r"^  layers/\d/\w+ +\d\.\d\d$", printed, re.M)) == 8
    assert plt.imread(tmp_path / "equinox_mlp.png").shape[1] >= 1200
    assert "Two spirals" in (tmp_path / "equinox_mlp.html").read_text()
