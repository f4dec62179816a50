"""Bad input of `bucketed`."""

import jax.numpy as jnp
import optax
import pytest

import adamx
from tests.test_bad_input import _check

PARAMS = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}


def _of_arrays(params):
    return {"sum": params["a"] + 1.0, "other": params["b"]}


ODD = optax.GradientTransformation(_of_arrays, lambda g, state, p=None: (g, state))

# label: (call, exception, what the message must contain, in any order)
CASES = {
    "no transformation": (
        lambda: adamx.bucketed(1e-3), TypeError, "`inner` gradient transformation"),
    "a factory": (
        lambda: adamx.bucketed(adamx.adamw), TypeError, "`inner` pass"),
    "a size of no elements": (
        lambda: adamx.bucketed(adamx.sgd(1.0), max_size=0), ValueError,
        "`max_size` >= 1 0 leave bucketed out"),
    "half a size": (
        lambda: adamx.bucketed(adamx.sgd(1.0), max_size=1.5), TypeError,
        "`max_size` 1.5 65536"),
    "a flag for a size": (
        lambda: adamx.bucketed(adamx.sgd(1.0), max_size=True), TypeError,
        "`max_size` True"),
    "bucketed already": (
        lambda: adamx.bucketed(adamx.guard(adamx.bucketed(adamx.adam(1.0)))).init(PARAMS),
        ValueError, "`inner` bucketed Leave one of the two out"),
    "an init of arrays alone": (
        lambda: adamx.bucketed(ODD).init(PARAMS), ValueError,
        "`inner` placeholder map_params TypeError"),
    "shardings of another structure": (
        lambda: adamx.bucketed(
            adamx.adam(1.0), shardings={"a": None, "c": None}).init(PARAMS),
        ValueError, "`shardings` like the parameters p.sharding"),
    "the bare optimizer's state": (
        lambda: adamx.bucketed(adamx.adam(1.0)).update(
            PARAMS, adamx.adam(1.0).init(PARAMS), PARAMS),
        TypeError, "BucketedState bucketed"),
    "gradients of another shape": (
        lambda: adamx.bucketed(adamx.adam(1.0)).update(
            {"a": jnp.ones((3, 2)), "b": jnp.ones(3)},
            adamx.bucketed(adamx.adam(1.0)).init(PARAMS), PARAMS),
        ValueError, "gradient 'b' (2,) (3,)"),
}  # fmt: skip


@pytest.mark.parametrize("label", CASES)
def test_errors_name_the_argument_and_a_remedy(label):
    _check(*CASES[label])
