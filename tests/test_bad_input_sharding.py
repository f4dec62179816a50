"""Bad input to `adamx.sharding`; the style of test_bad_input.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx.sharding import describe_shardings, state_shardings
from tests.test_bad_input import _check

TX = adamx.adamw(1e-3)
PARAMS = {"a": {"w": jnp.ones((8, 6))}, "b": jnp.ones(4)}
ODD = {"w": jnp.ones((3, 5)), "v": jnp.ones(7)}


def grid(names=("data", "model"), shape=(4, 2)):
    count = int(np.prod(shape))
    return Mesh(np.array(jax.devices()[:count]).reshape(shape), names)


GRID = grid()
SINGLE = jax.sharding.SingleDeviceSharding(jax.devices()[0])

# (what is said, tx, params, param_shardings, keywords, exception, the message)
BAD = [
    ("no tx", 1e-3, PARAMS, P(), {}, TypeError, "`tx` gradient transformation pass"),
    (
        "no array",
        TX,
        {"a": "text"},
        P(),
        {},
        TypeError,
        "parameter at 'a' ShapeDtypeStruct str filter",
    ),
    (
        "missing path",
        TX,
        PARAMS,
        {"a": {"w": P()}},
        {},
        ValueError,
        "`param_shardings` structure `params` missing 'b'",
    ),
    (
        "unexpected path",
        TX,
        PARAMS,
        {"a": {"w": P(), "v": P()}, "b": P()},
        {},
        ValueError,
        "`param_shardings` unexpected 'a/v'",
    ),
    (
        "one device",
        TX,
        PARAMS,
        {"a": SINGLE, "b": P()},
        {},
        TypeError,
        "`param_shardings` 'a/w' NamedSharding SingleDeviceSharding pass",
    ),
    (
        "None",
        TX,
        PARAMS,
        {"a": P(), "b": None},
        {},
        TypeError,
        "`param_shardings` 'b' NamedSharding None PartitionSpec()",
    ),
    ("no mesh", TX, PARAMS, P(), {"mesh": None}, ValueError, "`mesh` 'a/w' None pass"),
    ("no parameters", TX, {}, {}, {"mesh": None}, ValueError, "`mesh` no parameters"),
    (
        "two meshes",
        TX,
        PARAMS,
        {"a": NamedSharding(GRID, P()), "b": NamedSharding(grid(("x",), (8,)), P())},
        {"mesh": None},
        ValueError,
        "`param_shardings` 'b' mesh of the others 'data' (4) 'x' (8) one mesh",
    ),
    (
        "unknown axis",
        TX,
        PARAMS,
        {"a": {"w": P("tensor")}, "b": P()},
        {},
        ValueError,
        "`param_shardings` 'a/w' 'tensor' 'data' (4), 'model' (2)",
    ),
    (
        "indivisible",
        TX,
        PARAMS,
        {"a": {"w": P(None, "data")}, "b": P()},
        {},
        ValueError,
        "`param_shardings` 'a/w' evenly (8, 6) dimension 1 of 6 into 4 Pad",
    ),
    (
        "too many entries",
        TX,
        PARAMS,
        P(None, None),
        {},
        ValueError,
        "`param_shardings` 'b' (4,) one entry for each dimension pass",
    ),
    (
        "unconstrained",
        TX,
        PARAMS,
        P(P.UNCONSTRAINED),
        {},
        ValueError,
        "`param_shardings` 'a/w' UNCONSTRAINED replace",
    ),
    ("no name", TX, PARAMS, P(), {"zero1": True}, TypeError, "`zero1` True 'data' (4)"),
    ("no names", TX, PARAMS, P(), {"zero1": ()}, TypeError, "`zero1` () 'data' (4)"),
    (
        "unknown name",
        TX,
        PARAMS,
        P(),
        {"zero1": ("data", "fsdp")},
        ValueError,
        "`zero1` 'fsdp' 'data' (4), 'model' (2)",
    ),
    (
        "twice",
        TX,
        PARAMS,
        P(),
        {"zero1": ("data", "data")},
        ValueError,
        "`zero1` each axis once",
    ),
    (
        "a mesh of one",
        TX,
        PARAMS,
        P(),
        {"zero1": "data", "mesh": grid(("data",), (1,))},
        ValueError,
        "`zero1` two devices mesh of one device zero1=None",
    ),
    (
        "an axis of one",
        TX,
        PARAMS,
        P(),
        {"zero1": "data", "mesh": grid(("data", "model"), (1, 8))},
        ValueError,
        "`zero1` two devices 'data' (1), 'model' (8) zero1=None",
    ),
    (
        "nothing to divide",
        adamx.sgd(0.1),
        PARAMS,
        P(),
        {"zero1": "data"},
        ValueError,
        "`zero1` without arrays like the parameters leave zero1 out",
    ),
    (
        "nothing divides",
        TX,
        ODD,
        P(),
        {"zero1": "data"},
        ValueError,
        "`zero1` 4 pieces divide evenly v (7,) w (3, 5) Pad leave zero1 out",
    ),
    (
        "divided already",
        TX,
        PARAMS,
        P("data"),
        {"zero1": "data"},
        ValueError,
        "`zero1` divide already Leave zero1 out",
    ),
]


@pytest.mark.parametrize("function", [state_shardings, describe_shardings])
@pytest.mark.parametrize("case", BAD, ids=[case[0] for case in BAD])
def test_arguments(case, function):
    _, tx, params, shardings, keywords, exception, expected = case
    keywords = {"mesh": GRID} | keywords
    _check(lambda: function(tx, params, shardings, **keywords), exception, expected)


def test_the_state_of_another_tree():
    def describe(state, tx=TX):
        return describe_shardings(tx, PARAMS, P(), mesh=GRID, state=state)

    describe(TX.init(PARAMS))
    for tx, params, expected in (
        (TX, {"a": PARAMS["a"]}, "`state` structure missing: '0/mu/b'"),
        (TX, PARAMS | {"b": jnp.ones(5)}, "`state` '0/mu/b' shape (4,) (5,)"),
        (optax.adamw(1e-3), PARAMS, "`state` structure missing"),
    ):
        state = tx.init(params)
        _check(lambda state=state: describe(state), ValueError, expected)
    shapes = jax.eval_shape(TX.init, PARAMS)
    _check(lambda: describe(shapes), TypeError, "`state` jax.Array ShapeDtypeStruct")
