"""Bad input to `loss_scaling`; the style of test_bad_input.py."""

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from tests.test_bad_input import _check

NAN, INF = float("nan"), float("inf")
SCHEDULE = lambda step: 2.0  # noqa: E731
ORDER = "min_scale <= initial_scale <= max_scale"

# (argument, value, exception, what the message must contain, in any order)
BAD = [
    ("initial_scale", 0.5, ValueError, f"`min_scale` `initial_scale` 1.0 0.5 {ORDER}"),
    ("initial_scale", 2.0**25, ValueError, f"`max_scale` 33554432.0 {ORDER}"),
    ("initial_scale", NAN, ValueError, "`initial_scale` nan powers of two"),
    ("initial_scale", SCHEDULE, TypeError, "`initial_scale` schedule is not accepted"),
    ("initial_scale", "8", TypeError, "`initial_scale` '8' number"),
    ("initial_scale", jnp.ones(2), ValueError, "`initial_scale` (2,) 0-d"),
    ("growth_interval", 0, ValueError, "`growth_interval` whole number >= 1 0"),
    ("growth_interval", 2.5, ValueError, "`growth_interval` whole number 2.5"),
    ("growth_interval", SCHEDULE, TypeError, "`growth_interval` function int"),
    ("growth_interval", 2**31, ValueError, "`growth_interval` <= 2147483647"),
    ("growth_interval", jnp.array(-1), ValueError, "`growth_interval` >= 1 -1"),
    ("growth_factor", 1.0, ValueError, "`growth_factor` (1, 1.0 2.0"),
    ("growth_factor", 0.5, ValueError, "`growth_factor` (1, 0.5"),
    ("growth_factor", INF, ValueError, "`growth_factor` inf"),
    ("growth_factor", SCHEDULE, TypeError, "`growth_factor` schedule"),
    ("growth_factor", jnp.float16(2), TypeError, "`growth_factor` float16 float32"),
    ("backoff_factor", 1.0, ValueError, "`backoff_factor` (0, 1) 1.0 0.5"),
    ("backoff_factor", 0.0, ValueError, "`backoff_factor` (0, 1) 0.0"),
    ("backoff_factor", True, TypeError, "`backoff_factor` flag"),
    ("backoff_factor", SCHEDULE, TypeError, "`backoff_factor` schedule"),
    ("min_scale", 0.0, ValueError, "`min_scale` 0.0 powers of two"),
    ("min_scale", np.float32(-1), ValueError, "`min_scale` -1.0"),
    ("min_scale", 2.0**16, ValueError, f"`min_scale` 65536.0 32768.0 {ORDER}"),
    ("min_scale", SCHEDULE, TypeError, "`min_scale` schedule"),
    ("max_scale", INF, ValueError, "`max_scale` inf"),
    ("max_scale", 2.0, ValueError, f"`initial_scale` `max_scale` 2.0 {ORDER}"),
    ("max_scale", SCHEDULE, TypeError, "`max_scale` schedule"),
]


def _id(case):
    return f"{case[0]}={'function' if callable(case[1]) else case[1]}"


@pytest.mark.parametrize("case", BAD, ids=_id)
def test_construction(case):
    name, value, exception, expected = case
    expected = expected.replace("(0, 1)", "(0,")
    _check(
        lambda: adamx.loss_scaling(adamx.sgd(1.0), **{name: value}), exception, expected
    )


def test_no_transformation():
    for bad in (1e-3, adamx.adamw, None):
        with pytest.raises(TypeError, match=r"`inner` must be a gradient transf.*pass"):
            adamx.loss_scaling(bad)


def test_update():
    tx = adamx.loss_scaling(adamx.adamw(1e-3))
    params = {"a": jnp.ones(2)}
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"gradient at 'a'.*int32"):
        tx.update({"a": jnp.arange(2)}, state, params)
    with pytest.raises(TypeError, match=r"`state` must be the .*LossScalingState"):
        tx.update(params, adamx.adamw(1e-3).init(params), params)
    with pytest.raises(ValueError, match=r"gradient at 'a' must have shape \(2,\)"):
        tx.update({"a": jnp.ones(1)}, state, params)
    with pytest.raises(ValueError, match="`params` must be the current parameters"):
        tx.update(params, state)
