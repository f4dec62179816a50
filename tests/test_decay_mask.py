"""`decay_mask`: by own dimensions, by path, inside groups, in any container."""

import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamx
from tests.test_groups import Module, flat

SHAPES = {
    "embed": {"table": (9, 4)},
    "layers": {"kernel": (2, 4, 4), "scale": (2, 4), "gain": (2,)},
    "conv": (3, 3, 2, 2),
    "head": [(4, 2), (2,), ()],
}
IS_SHAPE = lambda x: isinstance(x, tuple)  # noqa: E731
PARAMS = jax.tree.map(jnp.ones, SHAPES, is_leaf=IS_SHAPE)
ALWAYS = {"conv", "layers/kernel", "head/0"}

# label: (arguments, paths of PARAMS that decay)
CASES = {
    "defaults": ({}, ALWAYS | {"embed/table", "layers/scale"}),
    "stacked": ({"stacked": "^layers/"}, ALWAYS | {"embed/table"}),
    "exclude": ({"exclude": "embed"}, ALWAYS | {"layers/scale"}),
    "a list": ({"exclude": ["embed", "^head/0$"]},
               ALWAYS - {"head/0"} | {"layers/scale"}),
    "compiled": ({"exclude": re.compile("EMBED|conv", re.I)},
                 ALWAYS - {"conv"} | {"layers/scale"}),
    "stacked list": ({"stacked": ["scale$", "gain$"], "exclude": ("embed",)}, ALWAYS),
    "three": ({"min_ndim": 3}, {"conv", "layers/kernel"}),
    "three, stacked": ({"min_ndim": 3, "stacked": "layers"}, {"conv"}),
    "none": ({"min_ndim": 0, "exclude": "head"},
             {"conv", "embed/table", "layers/kernel", "layers/scale", "layers/gain"}),
    "one": ({"min_ndim": 1, "stacked": "layers"},
            ALWAYS | {"embed/table", "layers/scale", "head/1"}),
}  # fmt: skip


@pytest.mark.parametrize("label", CASES)
def test_what_decays(label):
    arguments, expected = CASES[label]
    mask = adamx.decay_mask(**arguments)
    abstract = jax.eval_shape(lambda: PARAMS)
    for params in (PARAMS, abstract, jax.tree.map(np.asarray, PARAMS)):
        got = mask(params)
        assert jax.tree.structure(got) == jax.tree.structure(params)
        assert {name for name, value in flat(got).items() if value} == expected
        assert {type(value) for value in jax.tree.leaves(got)} == {bool}


@pytest.mark.parametrize(
    "make", [adamx.adamw, adamx.lion, adamx.lamb], ids=lambda f: f.__name__
)
def test_optimizers_decay_by_it(make):
    mask = adamx.decay_mask(exclude="embed", stacked="layers")
    tx = make(0.1, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = jax.jit(tx.update)(zero, tx.init(PARAMS), PARAMS)
    assert {name for name, u in flat(updates).items() if np.any(u)} == ALWAYS


def test_optax_takes_it():
    mask = adamx.decay_mask(exclude="embed", stacked="layers")
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    for tx in (
        optax.adamw(0.1, weight_decay=0.5, mask=mask),
        optax.masked(optax.add_decayed_weights(0.5), mask),
    ):
        state = tx.init(PARAMS)
        assert (
            jax.tree.leaves(optax.tree.map_params(tx, lambda x: x, state)) is not None
        )
        updates, _ = tx.update(zero, state, PARAMS)
        assert {name for name, u in flat(updates).items() if np.any(u)} == ALWAYS


def test_one_mask_serves_all_groups():
    """In its group, `exclude` may match nothing: what it means is in another."""
    mask = adamx.decay_mask(exclude="embed", stacked="layers")
    make = lambda rate: adamx.adamw(rate, weight_decay=0.5, mask=mask)  # noqa: E731
    tx = adamx.groups([("embed", make(0.1)), ("layers", make(0.2))], default=make(0.4))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = jax.jit(tx.update)(zero, tx.init(PARAMS), PARAMS)
    sizes = {name: float(np.max(-u)) for name, u in flat(updates).items() if np.any(u)}
    assert sizes == {
        "conv": pytest.approx(0.2),
        "layers/kernel": pytest.approx(0.1),
        "head/0": pytest.approx(0.2),
    }


def test_containers():
    mask = adamx.decay_mask(exclude="^embed")
    module = Module(jnp.ones((3, 2)), {"w": jnp.ones((2, 2)), "b": jnp.ones(2)})
    got = mask(module)
    assert (got.embed, got.layer, got.function) == (
        False,
        {"w": True, "b": False},
        None,
    )
    linear = flax.linen.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
    assert adamx.decay_mask(exclude="bias")(linear) == {
        "params": {"bias": False, "kernel": True}
    }
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    assert flat(jax.tree.map(int, adamx.decay_mask("^kernel$")(state))) != {}
    assert jax.tree.leaves(adamx.decay_mask("^kernel$")(state)) == [False, False]
    assert jax.tree.leaves(adamx.decay_mask("^bias$")(state)) == [False, True]


def test_a_module_that_was_not_filtered():
    """Functions and numbers beside the arrays do not decay, and do not raise."""
    model = {"w": jnp.ones((2, 2)), "activation": jax.nn.relu, "size": 3}
    got = adamx.decay_mask()(model)
    assert got == {"w": True, "activation": False, "size": False}


def test_nothing_there_says_nothing():
    mask = adamx.decay_mask(exclude="embed", stacked="layers")
    assert mask({}) == {}
    assert mask(None) is None
    partly = {"a": jnp.ones((2, 2)), "b": optax.MaskedNode()}
    assert mask(partly) == {"a": True, "b": optax.MaskedNode()}
    tx = adamx.adamw(1e-3, mask=mask)
    state = tx.init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal,
                 optax.tree.map_params(tx, lambda x: x, state), state)  # fmt: skip
