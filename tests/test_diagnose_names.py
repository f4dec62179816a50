"""diagnose: no layer is measured in silence for another, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

TREE = {"a": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}, "b": jnp.ones(4)}


def make(**kw):
    return adamx.diagnose(adamx.adam(1e-3), every=1, **kw)


def test_parameters_of_one_path_are_refused_and_told_apart():
    """Before, one of them was measured, and nothing said so."""
    params = {"a/b": jnp.ones(3), "a": {"b": jnp.ones(4)}, "c": jnp.ones(2)}
    message = r"got \['a'\]\['b'\] and \['a/b'\], which are both 'a/b'"
    with pytest.raises(ValueError, match=message):
        make().init(params)
    tx = make(by=lambda path: None if path == "a/b" else path)
    assert list(adamx.read(tx.init(params)).diagnostics.layers) == ["c"]
    params = {"x": jnp.ones(3), "y": jnp.ones((2, 3))}
    tx = make(by=lambda path: {"x": "L/0", "y": "L"}[path], stacked="y")
    with pytest.raises(ValueError, match=r"different names, got 'L/0' twice"):
        tx.init(params)


def test_a_function_that_leaves_out_all_is_refused():
    tx = make(by=lambda path: None)
    with pytest.raises(ValueError, match=r"`by` .* got None for all: 'a/bias', "):
        tx.init(TREE)
    optax.tree.map_params(tx, jnp.zeros_like, make().init(TREE))


@pytest.mark.parametrize(
    ("params", "layers"),
    [({}, []), ({"a": None}, []), ({"z": jnp.zeros((0, 2))}, ["z"])],
)
def test_trees_without_elements(params, layers):
    for by in ("leaf", "group", lambda path: path):
        tx = make(by=by)
        state = tx.init(params)
        updates, state = jax.jit(tx.update)(params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        found = adamx.read(state).diagnostics
        assert found.count == 1
        assert by == "group" or list(found.layers) == layers
        assert all(np.isnan(x["r/p50"]) for x in found.layers.values())


def test_a_group_without_parameters():
    both = {"none": make(), "all": adamx.adam(1e-3)}
    tx = optax.partition(both, lambda params: jax.tree.map(lambda _: "all", params))
    _, state = tx.update(TREE, tx.init(TREE), TREE)
    assert adamx.read(state).diagnostics.layers == {}
