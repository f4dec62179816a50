"""Bad input of sharpness: what was expected, what was got, and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

PARAMS = {"w": jnp.ones(3)}


def loss(params, batch):
    return jnp.sum(params["w"] ** 2)


def call(tx=None, loss_fn=loss, params=PARAMS, state=None, **extra):
    if state is None:
        state = (tx or adamx.adam(0.1)).init(params)
    return adamx.sharpness(loss_fn, params, state, None, **extra)


class Unhashable:
    __hash__ = None

    def __call__(self, params, batch):
        return loss(params, batch)


BAD = {
    "no function": (
        {"loss_fn": PARAMS},
        TypeError,
        "`loss_fn` must be a function .* swapped",
    ),
    "unhashable": ({"loss_fn": Unhashable()}, TypeError, "`loss_fn` must be hashable"),
    "a vector": (
        {"loss_fn": lambda p, b: p["w"]},
        ValueError,
        r"real scalar.*shape \(3,\).*mean",
    ),
    "a pair": (
        {"loss_fn": lambda p, b: (loss(p, b), 1)},
        ValueError,
        "has_aux=True, got a tuple",
    ),
    "an integer": ({"loss_fn": lambda p, b: 1}, ValueError, "real scalar.*got a int"),
    "has_aux": ({"has_aux": 1}, TypeError, "`has_aux` must be True or False"),
    "nesterov": ({"nesterov": None}, TypeError, "`nesterov` must be True or False"),
    "iterations": (
        {"iterations": 0},
        ValueError,
        "`iterations` must be .* >= 1, got 0",
    ),
    "half an iteration": (
        {"iterations": 1.5},
        ValueError,
        "`iterations` .* 1.5. Use e.g. 100",
    ),
    "tolerance": ({"tolerance": 0.0}, ValueError, "`tolerance` must be .* > 0, got 0"),
    "complex": (
        {"params": {"w": jnp.ones(3, jnp.complex64)}},
        TypeError,
        "parameter at 'w' must be real",
    ),
    "integers": (
        {"params": {"w": jnp.ones(3, jnp.int32)}, "state": ()},
        TypeError,
        "parameter at 'w' .* int32",
    ),
    "no parameters": (
        {"params": {}, "state": ()},
        ValueError,
        "`params` must have at least one array",
    ),
    "another's state": (
        {"state": adamx.adam(0.1).init({"other": jnp.ones(3)})},
        ValueError,
        "`state` must be that of `params`.*'other'.*'w'",
    ),
    "no state": (
        {"state": ()},
        ValueError,
        "`state` must record a learning rate.*adamx.adamw",
    ),
    "no rate": (
        {"tx": adamx.scale_by_adam()},
        ValueError,
        "record a learning rate.*ScaleByAdamState",
    ),
    "optax": (
        {"tx": optax.adam(0.1)},
        ValueError,
        "got a optax.*ScaleByAdamState at '0'.*adamx.adamw",
    ),
    "optax, our rate": (
        {"tx": optax.chain(optax.scale_by_adam(), adamx.scale_by_learning_rate(0.1))},
        ValueError,
        "moments that say how they are read, got a optax",
    ),
    "optax momentum": (
        {"tx": optax.sgd(0.1, 0.9)},
        ValueError,
        "got a optax.*TraceState",
    ),
    "lion": ({"tx": adamx.lion(0.1)}, ValueError, "ScaleByLionState.*by signs"),
    "other parameters": (
        {"state": adamx.adam(0.1).init({"w": jnp.ones(4)})},
        ValueError,
        r"moment at 'w' must fit its parameter of shape \(3,\), got shape \(4,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(**arguments)


def test_a_batched_stage():
    tx = adamx.stages([(adamx.adam(0.1), 2), (adamx.sgd(0.1), None)])
    with pytest.raises(TypeError, match="`state` must say which of its stages"):
        jax.jit(lambda s: call(state=s))(tx.init(PARAMS))


def test_parts_that_cannot_be_told_apart():
    tx = optax.partition(
        {"a": adamx.sgd(0.1), "b": optax.set_to_zero()}, {"w": "a", "v": "b"}
    )
    params = {"w": jnp.ones(3), "v": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"parameter 'v' belongs to.*adamx.groups"):
        call(tx, params=params)


def test_a_loss_that_is_not_finite_is_said_so():
    found = call(loss_fn=lambda p, b: jnp.sum(p["w"] ** 2) * np.nan)
    assert not found.converged
    assert "not finite" in str(found)
