"""Bad input to `guard`, `accumulate` and `fused`; the style of test_bad_input.py."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.test_bad_input import _check

NAN, INF = float("nan"), float("inf")
SCHEDULE = lambda step: 2.0  # noqa: E731

# (argument, value, exception, what the message must contain, in any order)
GUARD = [
    ("spike_zscore", 0.0, ValueError, "`spike_zscore` finite number > 0 0.0 6.0"),
    ("spike_zscore", -3, ValueError, "`spike_zscore` -3"),
    ("spike_zscore", INF, ValueError, "`spike_zscore` inf None"),
    ("spike_zscore", SCHEDULE, TypeError, "`spike_zscore` schedule is not accepted"),
    ("spike_zscore", "6", TypeError, "`spike_zscore` '6' number"),
    ("spike_zscore", jnp.ones(2), ValueError, "`spike_zscore` (2,) 0-d"),
    ("spike_zscore", True, TypeError, "`spike_zscore` flag"),
    ("spike_decay", 1.0, ValueError, "`spike_decay` (0, 1.0 0.99"),
    ("spike_decay", 0.0, ValueError, "`spike_decay` (0, 0.0"),
    ("spike_decay", NAN, ValueError, "`spike_decay` nan"),
    ("spike_decay", SCHEDULE, TypeError, "`spike_decay` schedule"),
    ("spike_decay", jnp.bfloat16(0.9), TypeError, "`spike_decay` bfloat16 float32"),
    ("spike_warmup", 1, ValueError, "`spike_warmup` >= 2 1 two norms"),
    ("spike_warmup", 2.5, ValueError, "`spike_warmup` whole number 2.5"),
    ("spike_warmup", SCHEDULE, TypeError, "`spike_warmup` function"),
    ("spike_warmup", 2**31, ValueError, "`spike_warmup` <= 2147483647"),
    ("max_consecutive", 2**31, ValueError, "`max_consecutive` <= 2147483647"),
    ("max_consecutive", 0, ValueError, "`max_consecutive` >= 1 0"),
    ("max_consecutive", -2, ValueError, "`max_consecutive` >= 1 -2"),
    ("max_consecutive", 1.5, ValueError, "`max_consecutive` whole number 1.5"),
    ("max_consecutive", True, TypeError, "`max_consecutive` flag"),
    ("max_consecutive", SCHEDULE, TypeError, "`max_consecutive` function int"),
]
ACCUMULATE = [
    (0, ValueError, "`every` whole number >= 1 function of the step 0"),
    (-4, ValueError, "`every` >= 1 -4"),
    (2**31, ValueError, "`every` <= 2147483647 2147483648"),
    (2.0, TypeError, "`every` whole number float 2.0 int"),
    (np.float32(2), TypeError, "`every` whole number int, e.g. 4"),
    (True, TypeError, "`every` bool True int"),
    (np.bool_(True), TypeError, "`every` whole number True"),
    (None, TypeError, "`every` None int"),
    ("4", TypeError, "`every` '4' int"),
    (NAN, TypeError, "`every` nan"),
    (np.int32(0), ValueError, "`every` >= 1 0"),
    (jnp.int32(-1), ValueError, "`every` >= 1 -1"),
    (jnp.float32(2), TypeError, "`every` whole number"),
    (jnp.array([2, 3]), ValueError, "`every` (2,) 0-d"),
]


@pytest.mark.parametrize("case", GUARD, ids=lambda c: f"{c[0]}={c[1]!r:.20}")
def test_guard(case):
    name, value, exception, expected = case
    options = {"spike_zscore": 6.0, name: value}
    _check(lambda: adamx.guard(adamx.sgd(1.0), **options), exception, expected)


@pytest.mark.parametrize("case", ACCUMULATE, ids=lambda c: f"{c[0]!r:.20}")
def test_accumulate(case):
    value, exception, expected = case
    _check(lambda: adamx.accumulate(adamx.sgd(1.0), value), exception, expected)


def test_no_transformation():
    for bad in (1e-3, adamx.adamw, None):
        for wrap in (adamx.guard, lambda tx: adamx.accumulate(tx, 2), adamx.fused):
            with pytest.raises(
                TypeError, match=r"`tx` must be a gradient transf.*pass"
            ):
                wrap(bad)


@pytest.mark.parametrize(
    ("tx", "kind"),
    [
        (adamx.guard(adamx.adamw(1e-3)), "GuardState"),
        (adamx.accumulate(adamx.adamw(1e-3), 2), "AccumulateState"),
    ],
    ids=["guard", "accumulate"],
)
def test_update_and_step(tx, kind):
    params = {"a": jnp.ones(2)}
    state = tx.init(params)

    def fused(gradients, state, params):
        return adamx.fused(tx).step(gradients, state, params)

    for run in (tx.update, fused):
        with pytest.raises(TypeError, match=r"gradient at 'a'.*int32"):
            run({"a": jnp.arange(2)}, state, params)
        with pytest.raises(TypeError, match=rf"`state` must be the .*{kind}"):
            run(params, adamx.adamw(1e-3).init(params), params)
        with pytest.raises(ValueError, match=r"gradient at 'a' must have shape \(2,\)"):
            run({"a": jnp.ones(1)}, state, params)
        with pytest.raises(ValueError, match=r"missing: 'a'; unexpected: 'b'"):
            run({"b": jnp.ones(2)}, state, params)
        with pytest.raises(ValueError, match="`params` must be the current parameters"):
            run(params, state, None)


def test_accumulate_wants_floats():
    tx = adamx.accumulate(optax.sgd(1.0), 2)
    with pytest.raises(TypeError, match=r"parameter at 'i'.*int32"):
        tx.init({"i": jnp.arange(2)})
    state = tx.init(jnp.ones(2))
    with pytest.raises(TypeError, match=r"gradient at '\(root\)'.*complex.*real"):
        tx.update(jnp.ones(2, jnp.complex64), state, jnp.ones(2))


def test_a_guard_keeps_its_kind():
    params = jnp.ones(2)
    with_spikes = adamx.guard(adamx.sgd(1.0), spike_zscore=6.0)
    without = adamx.guard(adamx.sgd(1.0))
    with pytest.raises(ValueError, match=r"`spike_zscore`.*got one without"):
        with_spikes.update(params, without.init(params), params)
    with pytest.raises(ValueError, match=r"`spike_zscore`.*got one with statistics"):
        without.update(params, with_spikes.init(params), params)


def test_orders_that_cannot_work():
    params = jnp.ones(2, jnp.float16)
    scaled = adamx.loss_scaling(adamx.sgd(1.0))
    for inner in (scaled, optax.chain(scaled), adamx.accumulate(scaled, 2)):
        with pytest.raises(ValueError, match=r"loss_scaling.*loss_scaling\(guard\(tx"):
            adamx.guard(inner).init(params)
    for wrapper in (adamx.master_weights, adamx.compensated):
        name = wrapper.__name__
        inner = adamx.guard(wrapper(adamx.sgd(1.0)))
        with pytest.raises(ValueError, match=rf"hold {name}.*{name}\(loss_scaling\(tx"):
            adamx.loss_scaling(inner).init(params)
        wrapper(adamx.loss_scaling(adamx.sgd(1.0))).init(params)
