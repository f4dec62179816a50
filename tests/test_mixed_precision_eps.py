"""16-bit gradients of zero and near it: no NaN and no wild step, whatever eps."""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.optimizers_table import NAMES

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
HALF = jnp.float16


@pytest.fixture(scope="module")
def script():
    """benchmarks/mixed_precision_eps.py, whose folder is importable only meanwhile."""
    names = ("mixed_precision_eps", "exactness")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module(names[0])
    for name in names:
        sys.modules.pop(name, None)


# Quickly: those that divide, each by something else. All, with an eps, in bfloat16:
# test_contract.py.
DIVIDING = ("adamw", "amsgrad", "adamax", "rmsprop", "adopt", "adam_mini", "lamb")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row.id, marks=[] if row.name in DIVIDING else pytest.mark.slow
        )
        for row in NAMES
    ],
)
def test_float16_zero_gradients_move_nothing_even_without_eps(row):
    """The fresh state of a row that is never touched, for many steps."""
    zeros = {name: 0.0 for name in ("eps", "weight_decay") if name in row.arguments}
    tx = row.make(**zeros)
    params = jnp.array([0.0, 1.0, -3.0], HALF)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        return (adamx.apply_updates(params, updates), state), updates

    run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=20))
    (after, _), updates = run((params, tx.init(params)))
    assert not np.any(np.asarray(updates, np.float32))
    np.testing.assert_array_equal(after, params)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_where_optax_has_nan(eps):
    """1e-8 is 0 in float16, as is the square of 1e-6: Optax divides 0 by 0."""
    for size in (0.0, 1e-6):
        gradient = jnp.full(3, size, HALF)
        ours, theirs = (library.adam(1.0, eps=eps) for library in (adamx, optax))
        updates, _ = theirs.update(gradient, theirs.init(gradient), gradient)
        assert not np.any(np.isfinite(np.asarray(updates)))
        updates, _ = ours.update(gradient, ours.init(gradient), gradient)
        want = -np.float64(gradient) / (np.abs(np.float64(gradient)) + max(eps, 1e-30))
        np.testing.assert_allclose(updates, want, rtol=0.1)  # mu of 1e-7 in float16


def test_a_float32_mu_is_exact_to_float16(script):
    """And with eps = 1e-7 Optax steps 25 times too far, or by NaN (old versions)."""
    stream = script.gradients(HALF)
    want = script.oracle(np.asarray(stream), 1e-7)
    ours = script.run(adamx, stream, 1e-7, jnp.float32)
    assert np.max(np.abs(ours - want)) <= 2**-11
    theirs = script.run(optax, stream, 1e-7, None)
    assert not np.max(np.abs(theirs)) <= 10


def test_the_cells_say_what_is_not_finite(script):
    assert script.cell(np.array([0.5, np.nan]), np.zeros(2)) == "NaN"
    assert script.cell(np.array([0.5, -np.inf]), np.zeros(2)) == "inf"
    assert script.cell(np.array([0.5]), np.array([0.25])) == "0.5 (2e-01)"
    assert script.cell(np.zeros(2), np.zeros(2)) == "0"
