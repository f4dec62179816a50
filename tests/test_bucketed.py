"""`bucketed`: the numbers of the bare optimizer, from few flat arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx._packed import Packed
from tests.optimizers_table import LR, NAMES, ROWS


def make_params(dtype=jnp.float32, seed=0):
    """Small leaves of all ranks, one that is too large, of a further dtype, a -0."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (5,), (), (2, 3, 2), (1,), (7, 1)]
    small = {f"layer_{i}": rng.standard_normal(s) for i, s in enumerate(shapes)}
    params = {"blocks": small, "large": rng.standard_normal((30, 40))}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return params | {"wide": [jnp.ones((2, 2)), jnp.full(3, -0.0)]}


def gradients(params, seed):
    rng = np.random.default_rng(seed + 10)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params
    )


def flat(tree, dtype):
    """What an independent packing of a tree's small leaves gives."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.ravel() for x in leaves if x.dtype == dtype and x.size < 999])


def packed_nodes(state):
    is_packed = lambda x: isinstance(x, Packed)  # noqa: E731
    return [x for x in jax.tree.leaves(state, is_leaf=is_packed) if is_packed(x)]


def run(tx, params, steps=3, **extra):
    """Updates of each step, and the last state; eagerly."""
    state, found = tx.init(params), []
    for seed in range(steps):
        updates, state = tx.update(gradients(params, seed), state, params, **extra)
        params = adamx.apply_updates(params, updates)
        found.append(updates)
    return found, params, state


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_updates_and_state_are_those_of_the_bare_optimizer(row):
    params = make_params()
    want = run(row.make(), params, 2)
    got = run(adamx.bucketed(row.make(), max_size=999), params, 2)
    chex.assert_trees_all_equal(got[:2], want[:2])
    flat_want, flat_got = (adamx.interop.to_flat(x[2]) for x in (want, got))
    assert list(flat_got) == list(flat_want)
    chex.assert_trees_all_equal(flat_got, flat_want)
    assert adamx.read(got[2]).scalars() == adamx.read(want[2]).scalars()
