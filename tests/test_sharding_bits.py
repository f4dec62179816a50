"""The bits of one device, whatever the shape: element-wise steps on eight.

A whole leaf and a piece of it are unlike loops to LLVM: over columns of a few elements,
over fewer than a vector has. What it fuses in one it may not in the other.
"""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx.sharding import state_shardings
from tests.compiling import as_users
from tests.helpers import IS_OLD_XLA, some
from tests.optimizers_table import LR, NAMES, ROWS

DEVICES = 8
SHAPES = [(8, 3), (129, 8), (32,), (16, 64)]
# Each has a dimension that eight devices divide: odd beside it, narrow, wide, long.
WIDE = [(8,), (16,), (24,), (56,), (120,), (264,), (1000,), (4104,)]
WIDE += [(8, 1), (8, 2), (8, 3), (1, 8), (3, 8), (129, 8), (48, 2), (5, 16), (64, 5)]
WIDE += [(16, 16), (72, 9), (17, 72), (24, 40), (40, 24), (3, 136), (16, 64), (100, 48)]
WIDE += [(130, 24), (24, 130), (8, 512), (512, 8), (7, 1024)]
WIDE += [(8, 5, 3), (2, 8, 9), (3, 3, 16), (16, 1, 7), (8, 24, 16), (2, 3, 8, 5)]
STEPS = 10
MAKE = {
    "constant b": lambda: adamx.scale_by_adam(),
    "traced b": lambda: adamx.with_hyperparams(adamx.scale_by_adam, b1=0.9, b2=0.999),
}


def divided(shape, which):
    """Along its first or last (0, -1) dimension that the devices divide."""
    axis = [i for i, n in enumerate(shape) if n % DEVICES == 0][which]
    return P(*("data" if i == axis else None for i in range(len(shape))))


# Where the parameters of a shape lie, and over what the state is divided further.
PLACES = {
    "along the first": (lambda shape: divided(shape, 0), None),
    "along the last": (lambda shape: divided(shape, -1), None),
    "zero1": (lambda shape: P(), "data"),
    "explicit zero1": (lambda shape: P(), "data"),  # shardings are a part of the types
}
# Those that can be divided in two ways; the others are not compiled twice.
EITHER = [shape for shape in WIDE if divided(shape, 0) != divided(shape, -1)]


def normal(rng, shape, dtype):
    x = rng.standard_normal(shape, np.float32)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.standard_normal(shape, np.float32)
    return x.astype(dtype)


EXPLICIT = ("explicit zero1",)


def mesh_for(place):
    if place in EXPLICIT:
        kinds = (jax.sharding.AxisType.Explicit,)
        return jax.make_mesh((DEVICES,), ("data",), axis_types=kinds)
    return Mesh(np.array(jax.devices()), ("data",))


def after(tx, shapes, place=None, steps=3, dtype=np.float32):
    """Parameters and state after some steps: on one device, or placed on eight."""

    def draw(seed):
        rngs = {s: np.random.default_rng((seed, *s)) for s in shapes}
        return {str(s): normal(r, s, dtype) for s, r in rngs.items()}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    params, own = draw(0), {}
    state = tx.init(params)
    if place is not None:
        mesh = mesh_for(place)
        spec, zero1 = PLACES[place]
        given = {str(s): NamedSharding(mesh, spec(s)) for s in shapes}
        held = state_shardings(tx, params, given, zero1)
        state = jax.device_put(state, held)
        own = {"in_shardings": (given, held, given), "out_shardings": (given, held)}
    step = jax.jit(step, **own)
    with jax.set_mesh(mesh) if place in EXPLICIT else contextlib.nullcontext():
        for i in range(steps):
            params, state = step(params, state, draw(i + 1))
    return jax.device_get((params, state))


@pytest.mark.skipif(
    IS_OLD_XLA, reason="XLA of jax 0.6 rounds a mean of (8, 3) twice on AVX-512"
)
@pytest.mark.parametrize("label", some(MAKE, "traced b"))
@as_users
def test_moments_have_the_bits_of_one_device_whatever_their_shape(label):
    tx = MAKE[label]()
    chex.assert_trees_all_equal(after(tx, SHAPES)[1], after(tx, SHAPES, "zero1")[1])


def check_everywhere(tx, places):
    """All shapes end with the bits of one device, wherever they lie."""
    params, state = after(tx, WIDE, steps=STEPS)
    for place in places:
        eight = after(tx, WIDE, place, STEPS)
        chex.assert_trees_all_equal((params, state), eight)
    few, _ = after(tx, EITHER, "along the last", STEPS)
    chex.assert_trees_all_equal({name: params[name] for name in few}, few)


ELEMENTWISE = [row for row in ROWS if row.reduces == "nothing"]
ONE_OF_EACH = [row for row in NAMES if row.reduces == "nothing"]


@pytest.mark.slow
@pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.id)
@as_users
def test_of_every_algorithm_that_goes_element_by_element(row):
    """Parameters and state; ZeRO-1 with one row of each algorithm, for time."""
    own = ("zero1",) if row in ONE_OF_EACH else ()
    check_everywhere(row.make(), ("along the first", *own))


@pytest.mark.slow
@pytest.mark.parametrize("row", ONE_OF_EACH, ids=lambda row: row.id)
@as_users
def test_of_every_algorithm_whose_hyperparameters_are_traced(row):
    numbers = {"learning_rate": LR, **row.hyperparameters}
    tx = adamx.with_hyperparams(row.factory, **numbers)
    check_everywhere(tx, ("along the first",))


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="no explicit axes before 0.7")
@pytest.mark.parametrize("name", some([r.name for r in ONE_OF_EACH], "adamw", "lion"))
@as_users
def test_zero1_on_explicit_axes_has_the_bits_of_one_device(name):
    """Though parameters and moments have unlike types there: whole, and in pieces."""
    (row,) = [r for r in ONE_OF_EACH if r.name == name]
    shapes = [(16, 16), (8, 3), (1000,), (24, 130)]
    one = after(row.make(), shapes, steps=STEPS)
    chex.assert_trees_all_equal(one, after(row.make(), shapes, "explicit zero1", STEPS))


# Of these, pieces had other last places than the whole before products were `rounded`.
QUICK = [
    ("adamax", {}, "zero1", [(1000,), (120,), (16, 16)]),
    ("ademamix", {}, "zero1", [(8, 512)]),
    ("schedule_free_adamw", {}, "zero1", [(8, 512)]),
    ("schedule_free_adamw", {}, "along the last", [(130, 24)]),
]


@pytest.mark.parametrize(("name", "own", "place", "shapes"), QUICK)
@as_users
def test_parameters_have_the_bits_of_one_device(name, own, place, shapes):
    tx = getattr(adamx, name)(1e-2, **own)
    chex.assert_trees_all_equal(after(tx, shapes), after(tx, shapes, place))


# The same where the parameters are no float32.
OTHERS = {
    "complex": (lambda: adamx.nadam(1e-2), np.complex64, [(8, 3), (16, 24)]),
    "complex, centred": (
        lambda: adamx.rmsprop(1e-2, eps=1e-3, centered=True, momentum=0.9),
        np.complex64,
        [(8, 3)],
    ),
    "split masters": (
        lambda: adamx.master_weights(
            adamx.nadamw(1e-2, weight_decay=0.1), storage="split"
        ),
        jnp.bfloat16,
        [(40,), (1000,)],
    ),
}


@pytest.mark.parametrize("label", some(OTHERS, "complex, centred", "split masters"))
@as_users
def test_other_dtypes_have_the_bits_of_one_device(label):
    make, dtype, shapes = OTHERS[label]
    one = after(make(), shapes, steps=STEPS, dtype=dtype)
    for place in ("zero1", *(EXPLICIT if hasattr(jax, "set_mesh") else ())):
        eight = after(make(), shapes, place, STEPS, dtype)
        chex.assert_trees_all_equal(one, eight)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="no explicit axes before 0.7")
def test_updates_are_added_one_by_one_whatever_lies_where():
    """Outside jit, and without a mesh around, where nothing can be placed anew."""
    mesh = mesh_for("explicit zero1")
    x = np.ones((16, 8), np.float32)
    apart = jax.device_put(x, NamedSharding(mesh, P("data")))
    for p, u in ((apart, x), (x, apart), (apart, jnp.asarray(x)), (apart, apart)):
        found = adamx.apply_updates(p, u)
        assert found.sharding.spec[0] == "data"
        np.testing.assert_array_equal(found, 2 * x)
