"""examples/adam_to_sgd.py: it runs, and shows what it says."""

import importlib
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.helpers import EXAMPLES, run_quickly
from tests.test_examples import count_colors, table_row

NAMES = ("AdamW", "SGD, momentum", "SGD after 10 %", "SGD after 80 %")


@pytest.mark.slow
def test_quick_run(tmp_path):
    printed = run_quickly("adam_to_sgd.py", tmp_path)
    for name in NAMES:
        numbers = table_row(printed, name, "Separable: error")
        assert len(numbers) == (6 if "after" in name else 4)
        assert all(0 <= x <= 100 for x in numbers[:2])
        assert "after" not in name or numbers[2] > 0
    assert re.search(r"Mean over 2 seeds", printed)
    image = plt.imread(tmp_path / "adam_to_sgd.png")
    height, width = image.shape[:2]
    assert 1200 <= width <= 2000
    assert 500 <= height <= 1200
    assert count_colors(image) > 50


def test_on_the_separable_problem_only_an_early_hand_over_helps():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        example = importlib.import_module("adam_to_sgd")
    makers = example.make_optimizers(600, 0.0, lambda rate: rate)
    adam, momentum = example.RATES["separable"]
    ends = {}
    for name, make_tx in makers.items():
        rate = momentum if name == "SGD, momentum" else adam
        run = example.train_separable(make_tx, rate, seeds=2, steps=600)
        assert run.error.shape == (600, 2)
        ends[name] = run.error[-1]
        if "after" in name:
            assert run.switch_step == (60 if "10" in name else 480)
            assert run.sgd_rate > 0
    share = ends["AdamW"]
    assert np.all((share > 35) & (share < 45))  # all negative examples
    np.testing.assert_array_equal(ends["SGD after 80 %"], share)
    for name in ("SGD, momentum", "SGD after 10 %"):
        np.testing.assert_array_equal(ends[name], 0)
    for name in ("adam_to_sgd", "digits", "_style"):
        sys.modules.pop(name, None)
