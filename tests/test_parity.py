"""docs/parity.md: every row's code is its formula, and every formula another one."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests import pages
from tests.helpers import enable_x64
from tests.reference_parity import B1, B2, EPS, RULES, WD

STEPS = 12
ROWS = {
    cells[0]: cells for cells in pages.rows(pages.read("docs/parity.md"), first="id")
}
GRADIENTS = np.random.default_rng(5).normal(0.2, 1.0, (STEPS, 6)) * np.logspace(
    -1, 1, 6
)
START = np.linspace(-1, 1, 6)


def lr(step):
    """A rate that changes, so that where it enters a sum shows."""
    return 0.1 / (1 + 0.3 * step)


def by_formula(name):
    p, kept = START, {}
    for t, g in enumerate(GRADIENTS, 1):
        p = RULES[name](t, g, p, lr(t - 1), kept)
    return p


def by_code(name):
    (code,) = re.findall(r"`([^`]*)`", ROWS[name][3])
    known = {"adamx": adamx, "optax": optax, "lr": lr}
    known |= {"b1": B1, "b2": B2, "eps": EPS, "wd": WD}
    with enable_x64():
        tx = eval(code, known)
        p = jnp.asarray(START)
        state = tx.init(p)
        for g in GRADIENTS:
            updates, state = tx.update(jnp.asarray(g), state, p)
            p = optax.apply_updates(p, updates)
        return np.asarray(p)


def test_every_row_has_a_formula_and_four_cells():
    assert set(ROWS) == set(RULES)
    assert {len(cells) for cells in ROWS.values()} == {4}


@pytest.mark.parametrize("name", RULES)
def test_the_code_is_the_formula(name):
    error = np.max(np.abs(by_code(name) - by_formula(name)))
    if ROWS[name][3].startswith("*none*"):
        assert error > 1e-4
    else:
        assert error < 1e-12


def test_no_two_formulas_are_the_same():
    results = {name: by_formula(name) for name in RULES}
    for i, one in enumerate(results):
        for other in list(results)[:i]:
            assert np.max(np.abs(results[one] - results[other])) > 1e-4, (one, other)
