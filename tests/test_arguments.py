"""Every argument of every optimizer arrives where it is used."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.optimizers_table import NAMES, ROWS

DTYPES = ("mu_dtype", "nu_dtype", "accumulator_dtype", "state_dtype")
PARAMS = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}


def arguments(row):
    return inspect.signature(getattr(adamx, row.name)).parameters


def one_step(tx):
    """Not compiled: its operations are those of the optimizers before."""
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def having(rows, names):
    """Each row with each of the arguments that its optimizer has.

    Quickly, of each name the row that stands for it.
    """
    cases = [
        pytest.param(
            row,
            name,
            id=f"{row.id}-{name}",
            marks=[] if row in NAMES else pytest.mark.slow,
        )
        for row in rows
        for name in names
        if name in arguments(row)
    ]
    return pytest.mark.parametrize(("row", "name"), cases)


@pytest.mark.filterwarnings("ignore:.*cannot follow")
@having([row for row in NAMES if row.label != "defaults" or row.name != "sgd"], DTYPES)
def test_moments_are_stored_as_asked(row, name):
    tx = row.make(**{name: jnp.bfloat16})
    _, state = jax.eval_shape(lambda: one_step(tx))
    assert jnp.dtype(jnp.bfloat16) in {x.dtype for x in jax.tree.leaves(state)}


@having(NAMES, ["mask"])
def test_the_mask_decides_what_decays(row, name):
    free, _ = one_step(row.make(weight_decay=0.0))
    got, _ = one_step(row.make(weight_decay=0.5, **{name: {"a": True, "b": False}}))
    np.testing.assert_array_equal(got["b"], free["b"])
    full, _ = one_step(row.make(weight_decay=0.5))
    np.testing.assert_array_equal(got["a"], full["a"])
    assert np.any(full["b"] != free["b"])


@having(ROWS, ["b1", "b2", "eps", "eps_root", "decay"])
def test_hyperparameters_are_recorded_as_used(row, name):
    value = row.hyperparameters.get(name, arguments(row)[name].default)
    asked = []

    def schedule(step):
        asked.append(int(step))
        return value if step == 1 else 0.5

    tx = row.make(**{name: schedule})
    state = tx.init(PARAMS)
    asked.clear()
    for _ in range(2):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert asked == [0, 1]
    found = optax.tree.get_all_with_path(state, name)
    assert np.float32(value) in [float(x) for _, x in found]


# Quickly, with a decay and without; `asked` above is by the count of every optimizer.
COUNTING = ("sgd", "adamw", "adam_l2", "lamb", "sophia_g", "schedule_free_adamw")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row.id, marks=[] if row.name in COUNTING else pytest.mark.slow
        )
        for row in NAMES
    ],
)
def test_every_stage_that_counts_counts_every_step(row):
    _, state = one_step(row.make())
    counts = optax.tree.get_all_with_path(state, "count")
    assert all(int(count) == 1 for _, count in counts if count is not None)
