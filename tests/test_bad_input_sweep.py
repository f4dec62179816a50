"""Bad input to `lr_sweep` and `lr_range_test`; the style of test_bad_input.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.test_bad_input import _check

NAN, INF = float("nan"), float("inf")
PARAMS, BATCHES = {"w": jnp.ones(2)}, {"x": jnp.ones((4, 2))}


def loss_fn(params, batch):
    return jnp.sum((params["w"] - batch["x"]) ** 2)


GIVEN = {
    "loss_fn": loss_fn,
    "params": PARAMS,
    "batches": BATCHES,
    "make_tx": adamx.sgd,
    "learning_rates": [0.1, 0.2],
}
UNEQUAL = {"x": jnp.ones((4, 2)), "y": jnp.ones(3)}
PAIR = lambda p, b: (loss_fn(p, b), 1)  # noqa: E731
BRANCH = lambda rate: adamx.sgd(rate if rate > 0 else 1.0)  # noqa: E731
FLOAT = lambda rate: adamx.sgd(float(rate))  # noqa: E731
CONSTANT = lambda rate: adamx.sgd(0.1)  # noqa: E731
HELD = lambda rate: optax.inject_hyperparams(optax.sgd)(rate)  # noqa: E731

# (argument, value, exception, what the message must contain, in any order)
BOTH = [
    ("loss_fn", 3.0, TypeError, "`loss_fn` function (params, batch) 3.0"),
    (
        "loss_fn",
        PAIR,
        ValueError,
        "`loss_fn` one scalar tuple loss_fn(params, batch)[0]",
    ),
    ("loss_fn", lambda p, b: p["w"], ValueError, "`loss_fn` one scalar (2,) mean"),
    ("loss_fn", lambda p, b: jnp.int32(1), TypeError, "`loss_fn` float int32"),
    ("params", {"w": jnp.arange(2)}, TypeError, "`params` 'w' int32 floating"),
    ("params", {}, ValueError, "`params` array jax.grad"),
    ("batches", {}, ValueError, "`batches` leading axis of steps jnp.arange(steps)"),
    ("batches", {"x": 1.0}, ValueError, "`batches` 'x' leading axis of steps"),
    ("batches", UNEQUAL, ValueError, "`batches` 4 'x' 3 'y' one length"),
    ("batches", {"x": jnp.ones((1, 2))}, ValueError, "`batches` 2 steps or more 1"),
    ("make_tx", adamx.sgd(0.1), TypeError, "`make_tx` function learning_rate"),
    (
        "make_tx",
        lambda r: r,
        TypeError,
        "`make_tx(learning_rate)` gradient transformation",
    ),
    ("make_tx", BRANCH, TypeError, "`make_tx` traced learning rate wrap it"),
    ("make_tx", FLOAT, TypeError, "`make_tx` traced learning rate wrap it"),
    ("make_tx", CONSTANT, ValueError, "`make_tx` does not depend on it"),
    ("smoothing", 1.0, ValueError, "`smoothing` [0, 1) 1.0 None"),
    ("smoothing", -0.1, ValueError, "`smoothing` [0, 1) -0.1"),
    ("smoothing", NAN, ValueError, "`smoothing` nan"),
    ("smoothing", "a", TypeError, "`smoothing` 'a'"),
    ("progress", 1, TypeError, "`progress` True or False 1"),
]
SWEEP = [
    (
        "learning_rates",
        [],
        ValueError,
        "`learning_rates` one-dimensional (0,) geomspace",
    ),
    (
        "learning_rates",
        0.1,
        ValueError,
        "`learning_rates` one-dimensional () geomspace",
    ),
    ("learning_rates", [[0.1]], ValueError, "`learning_rates` (1, 1) geomspace"),
    ("learning_rates", [0.1, 0.0], ValueError, "`learning_rates` positive 0.0"),
    ("learning_rates", [0.1, -1.0], ValueError, "`learning_rates` positive -1.0"),
    ("learning_rates", [NAN], ValueError, "`learning_rates` finite nan"),
    ("learning_rates", [INF], ValueError, "`learning_rates` finite inf"),
    ("learning_rates", "fast", TypeError, "`learning_rates` 'fast' geomspace"),
    ("refine", 0, ValueError, "`refine` >= 1 0 None"),
    ("refine", 2.5, ValueError, "`refine` whole number 2.5"),
    ("chunk", 0, ValueError, "`chunk` >= 1 0 None"),
    ("chunk", "a", TypeError, "`chunk` 'a'"),
    ("devices", [], ValueError, "`devices` jax.devices() None"),
    ("devices", ["cpu"], TypeError, "`devices` jax.devices() 'cpu'"),
]
RANGE = [
    ("low", 0.0, ValueError, "`low` positive 0.0"),
    ("low", "a", TypeError, "`low` positive 'a'"),
    ("low", lambda step: 0.1, ValueError, "`low` positive function"),
    ("high", INF, ValueError, "`high` finite inf"),
    ("high", 1e-6, ValueError, "`high` greater than `low` 1e-06"),
    (
        "make_tx",
        HELD,
        ValueError,
        "`make_tx` does not depend on it inject_hyperparams bare",
    ),
]


def _id(case):
    return f"{case[0]}: {case[3][:40]}"


@pytest.mark.parametrize("case", [*BOTH, *SWEEP], ids=_id)
def test_lr_sweep(case):
    name, value, exception, expected = case
    _check(lambda: adamx.lr_sweep(**(GIVEN | {name: value})), exception, expected)


@pytest.mark.parametrize("case", [*BOTH, *RANGE], ids=_id)
def test_lr_range_test(case):
    name, value, exception, expected = case
    given = {key: x for key, x in GIVEN.items() if key != "learning_rates"}
    _check(lambda: adamx.lr_range_test(**(given | {name: value})), exception, expected)


def test_inside_jit():
    given = [GIVEN[name] for name in ("batches", "make_tx", "learning_rates")]
    with pytest.raises(TypeError, match=r"`params` and `batches`.*outside jit"):
        jax.jit(lambda p: adamx.lr_sweep(loss_fn, p, *given).losses)(PARAMS)
    sweep = lambda r: adamx.lr_sweep(**(GIVEN | {"learning_rates": r})).losses  # noqa: E731
    with pytest.raises(TypeError, match=r"`learning_rates`.*outside jit"):
        jax.jit(sweep)(np.ones(2))
