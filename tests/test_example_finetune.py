"""examples/finetune.py runs as a user would run it, and shows what it says."""

import re

import matplotlib.pyplot as plt
import pytest

from tests.helpers import run_quickly
from tests.test_examples import count_colors

NAMES = ("From scratch", "One rate", "Head only", "Groups", "Groups, then SGD")


@pytest.mark.slow  # examples/diagnose.py trains with groups, too
def test_quick_run(tmp_path):
    printed = run_quickly("finetune.py", tmp_path)
    ends = {}
    for name in NAMES:
        row = re.search(rf"^\W*{name} *│(.*)$", printed, re.MULTILINE)[1]
        new, old, both = map(float, re.findall(r"([\d.]+) ±", row))
        assert abs(both - (new + old) / 2) < 0.1
        ends[name] = new, old
        assert 50 < new <= 100
    # What is frozen forgets nothing; who begins anew knows nothing of the old.
    assert ends["Head only"][1] > 99
    assert ends["From scratch"][1] < 70
    assert ends["From scratch"][0] > ends["Head only"][0]
    for name in ("One rate", "Groups", "Groups, then SGD"):
        assert ends[name][1] > ends["From scratch"][1] + 20
    assert re.search(r"head/kernel +f32\[64,5\] +\^head/ +yes", printed)
    assert re.search(r"backbone/first/bias +f32\[128\] +default +-", printed)
    assert printed.count("SGD since step 42") == 2
    image = plt.imread(tmp_path / "finetune.png")
    height, width = image.shape[:2]
    assert 1200 <= width <= 2000
    assert 500 <= height <= 1200
    assert count_colors(image) > 50
