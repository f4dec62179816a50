"""benchmarks/control.py: what it compares computes the same, and is tabled."""

import importlib
import sys

import jax
import jax.numpy as jnp
import pytest

from tests.test_benchmarks import FOLDER
from tests.test_contract import assert_close, random_like


@pytest.fixture(scope="module")
def control():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("control")
    for name in ("control", "step_time"):
        sys.modules.pop(name, None)


def test_the_ways_to_hand_over_are_one_optimizer(control):
    rows = {name: (tx, step) for name, tx, step in control.stages_rows()}
    ways = ("adam_to_sgd, given", "stages, fused", "stages, update", "one switch")
    names = [f"{way}: behind" for way in ways]
    ends = []
    for name in names:
        tx, step = rows[name]
        params = [jnp.ones((5, 3)), jnp.ones(3)]
        state, compiled = tx.init(params), jax.jit(step)
        for seed in range(4):
            params, state = compiled(params, state, random_like(params, seed))
        ends.append(params)
    for end in ends[1:-1]:
        assert_close(end, ends[-1], rtol=1e-6)
    # Decay: SGD's of `stages` has none.
    assert_close(ends[0], ends[-1], rtol=1e-5)


def test_a_part_is_tabled(control, capsys):
    rows = control.stages_rows()
    control.compare("a title", [rows[0], rows[-1]], [(64, 64), (64,)], 2)
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[2:]] == [
        f"| {rows[0][0]}",
        f"| {rows[-1][0]}",
    ]
    assert "nan" not in printed
    assert set(control.PARTS) >= {"stages"}
