"""The bits of one device, whatever the shape: element-wise steps on eight.

A whole leaf and a piece of it are unlike loops to LLVM: over columns of a few elements,
over fewer than a vector has. What it fuses in one it may not in the other.
"""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx.sharding import state_shardings
from tests.compiling import as_users

SHAPES = [(8, 3), (129, 8), (32,), (16, 64)]
MORE = [(8,), (24,), (56,), (264,), (1000,), (8, 1), (8, 2), (3, 8), (5, 16), (16, 16)]
MORE += [(24, 40), (130, 24), (100, 48), (8, 5, 3), (2, 8, 9), (3, 3, 16), (8, 512)]
MORE += [(37, 1024), (7, 5)]
MAKE = {
    "constant b": lambda: adamx.scale_by_adam(),
    "traced b": lambda: adamx.with_hyperparams(adamx.scale_by_adam, b1=0.9, b2=0.999),
}
# Arguments beside the learning rate, by name.
ALL = {
    "adabound": {},
    "adam": {},
    "adamax": {},
    "adamw": {"weight_decay": 0.1},
    "ademamix": {},
    "adopt": {},
    "amsgrad": {},
    "lion": {},
    "nadam": {},
    "radam": {},
    "rmsprop": {"centered": True},
    "schedule_free_adamw": {},
    "sgd": {"momentum": 0.9},
}


def both(tx, shapes):
    """Parameters and state after three steps, on one device and on eight."""
    place = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P())
    rng = np.random.default_rng(0)

    def draw():
        return {str(s): rng.standard_normal(s).astype(np.float32) for s in shapes}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    params = draw()
    held = state_shardings(tx, params, place, "data")
    own = {"in_shardings": (place, held, place), "out_shardings": (place, held)}
    whole, apart = jax.jit(step), jax.jit(step, **own)
    one = params, tx.init(params)
    eight = params, jax.jit(tx.init, out_shardings=held)(params)
    for _ in range(3):
        grads = draw()
        one, eight = whole(*one, grads), apart(*eight, grads)
    return jax.device_get((one, eight))


@pytest.mark.parametrize("label", MAKE)
@as_users
def test_moments_have_the_bits_of_one_device_whatever_their_shape(label):
    one, eight = both(MAKE[label](), SHAPES)
    chex.assert_trees_all_equal(one[1], eight[1])


@pytest.mark.slow
@pytest.mark.parametrize("is_traced", [False, True], ids=["constants", "traced"])
@pytest.mark.parametrize("name", ALL)
@as_users
def test_of_every_algorithm_that_goes_element_by_element(name, is_traced):
    """Moments and parameters to the bit; one exception, see `state_shardings`."""
    make, arguments = getattr(adamx, name), {"learning_rate": 1e-2} | ALL[name]
    held = lambda **own: adamx.with_hyperparams(make, **own)  # noqa: E731
    tx = (held if is_traced else make)(**arguments)
    one, eight = both(tx, SHAPES + MORE)
    chex.assert_trees_all_equal(one[1], eight[1])
    if name == "schedule_free_adamw":  # see `state_shardings`
        for x, y in zip(one[0].values(), eight[0].values(), strict=True):
            assert np.all(np.abs(x - y) <= 2 * np.spacing(np.maximum(np.abs(x), 1e-2)))
        return
    chex.assert_trees_all_equal(one[0], eight[0])


# Of these, pieces had other last places than the whole before products were `rounded`.
QUICK = [
    ("adamax", {}, [(1000,), (120,), (16, 16)]),
    ("ademamix", {}, [(8, 512)]),
    ("schedule_free_adamw", {}, [(8, 512)]),
]


@pytest.mark.parametrize(("name", "own", "shapes"), QUICK, ids=[q[0] for q in QUICK])
@as_users
def test_parameters_have_the_bits_of_one_device(name, own, shapes):
    one, eight = both(getattr(adamx, name)(1e-2, **own), shapes)
    chex.assert_trees_all_equal(one, eight)
