"""A run of Optax that goes on in a chain of ours: Optax itself is the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.interop import migrate, to_flat
from tests import wrapper_pairs as wp
from tests.helpers import some
from tests.test_migrate import ADAMW, PARAMS, RATE, begin, run

# Name: Optax's, ours, and the tolerance of a parameter after 20 more steps.
# In Optax's 1 - b2^t, b2 = 0.999 is rounded to float32, 1.3e-8 away: 1.3e-5 of it at
# any t, half of that of a step; 20 steps of 1e-2 come to 1.3e-6. The sum of parameter
# and update is rounded 20 times to 6e-8, in all as much at the most.
TOLERANCE = 2e-6
# RAdam takes 2 t b2^t / (1 - b2^t) from 1999, at t = 20 1980 of it: what is left, 19,
# is wrong by 1.3e-5 * 1980 = 0.026, its factor r = 0.083 by 7.7e-5, and 20 steps of
# 1e-2 by 1.5e-5.
RADAM_TOLERANCE = 1.5e-5


def _clipped(library, inner):
    return library.chain(optax.clip_by_global_norm(1.0), inner)


B1S = {"b1": 0.8, "b2": 0.99}, {"b1": 0.95, "b2": 0.9995}


def _by_group(make, other=None):
    """Two of a kind with unlike b."""
    return _halves(make(1e-2, **B1S[0]), (other or make)(1e-2, **B1S[1]))


def _injected(make):
    return lambda *args, **kwargs: optax.inject_hyperparams(make)(*args, **kwargs)


def _held(rate, **kwargs):
    return adamx.with_hyperparams(adamx.adamw, learning_rate=rate, **kwargs)


def _halves(tx, other):
    labels = {"a": "x", "b": "y"}
    return optax.partition({"x": tx, "y": other}, labels)


OPTAX = {
    "adam": (lambda: optax.adam(1e-2), lambda: adamx.adam(1e-2), TOLERANCE),
    "adamw": (
        lambda: optax.adamw(RATE, 0.8, 0.99, 1e-6, weight_decay=0.1),
        lambda: adamx.adamw(RATE, 0.8, 0.99, 1e-6, weight_decay=0.1),
        TOLERANCE,
    ),
    "clip": (
        lambda: _clipped(optax, optax.adamw(RATE)),
        lambda: adamx.guard(
            optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(RATE))
        ),
        TOLERANCE,
    ),
    "traced b": (
        lambda: optax.adamw(1e-2),
        lambda: adamx.with_hyperparams(adamx.adamw, learning_rate=1e-2),
        TOLERANCE,
    ),
    "inject": (
        lambda: optax.inject_hyperparams(optax.adamw)(RATE, b2=0.99),
        lambda: adamx.with_hyperparams(adamx.adamw, learning_rate=RATE, b2=0.99),
        TOLERANCE,
    ),
    "inject ours": (
        lambda: optax.inject_hyperparams(optax.adamw)(1e-2, b2=0.99),
        lambda: optax.inject_hyperparams(adamx.adamw)(1e-2, b2=0.99),
        TOLERANCE,
    ),
    "multi_steps": (
        lambda: optax.MultiSteps(optax.adamw(RATE), 3).gradient_transformation(),
        lambda: adamx.accumulate(adamx.adamw(RATE), 3),
        TOLERANCE,
    ),
    "partition": (
        lambda: _halves(optax.adamw(1e-2), optax.sgd(1e-2, 0.9)),
        lambda: _halves(adamx.adamw(1e-2), adamx.sgd(1e-2, 0.9)),
        TOLERANCE,
    ),
    "groups": (
        lambda: _halves(optax.adamw(1e-2), optax.adamw(RATE)),
        lambda: adamx.groups([("^a", adamx.adamw(1e-2))], default=adamx.adamw(RATE)),
        TOLERANCE,
    ),
    "b by group": (
        lambda: _by_group(optax.adamw),
        lambda: _by_group(adamx.adamw),
        TOLERANCE,
    ),
    "b by group, other labels": (
        lambda: _by_group(optax.adamw),
        lambda: adamx.groups(
            [("^a", adamx.adamw(1e-2, **B1S[0]))], default=adamx.adamw(1e-2, **B1S[1])
        ),
        TOLERANCE,
    ),
    "inject by group": (
        lambda: _by_group(_injected(optax.adamw)),
        lambda: _by_group(_held),
        TOLERANCE,
    ),
    "inject in one group": (
        lambda: _by_group(_injected(optax.adamw), optax.adamw),
        lambda: _by_group(_held, _held),
        TOLERANCE,
    ),
    "windows in one group": (
        lambda: _halves(
            optax.MultiSteps(optax.adamw(1e-2), 3).gradient_transformation(),
            optax.sgd(1e-2),
        ),
        lambda: _halves(adamx.accumulate(adamx.adamw(1e-2), 3), adamx.sgd(1e-2)),
        TOLERANCE,
    ),
    "masked": (
        lambda: optax.masked(optax.adam(1e-2), {"a": True, "b": False}),
        lambda: optax.masked(adamx.adam(1e-2), {"a": True, "b": False}),
        TOLERANCE,
    ),
    "finite": (
        lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
        lambda: adamx.guard(adamx.adam(1e-2)),
        TOLERANCE,
    ),
    "amsgrad": (lambda: optax.amsgrad(1e-2), lambda: adamx.amsgrad(1e-2), TOLERANCE),
    "radam": (lambda: optax.radam(1e-2), lambda: adamx.radam(1e-2), RADAM_TOLERANCE),
    "adamax": (lambda: optax.adamax(1e-2), lambda: adamx.adamax(1e-2), TOLERANCE),
    "nadam": (lambda: optax.nadam(1e-2), lambda: adamx.nadam(1e-2), TOLERANCE),
    "lamb": (lambda: optax.lamb(1e-2), lambda: adamx.lamb(1e-2), TOLERANCE),
    "lion": (lambda: optax.lion(1e-3), lambda: adamx.lion(1e-3), TOLERANCE),
    "sgd": (
        lambda: optax.sgd(RATE, 0.9, nesterov=True),
        lambda: adamx.sgd(RATE, 0.9, nesterov=True),
        TOLERANCE,
    ),
    "rmsprop": (
        lambda: optax.rmsprop(1e-3, momentum=0.9),
        lambda: adamx.rmsprop(1e-3, momentum=0.9),
        TOLERANCE,
    ),
    "centered": (
        lambda: optax.rmsprop(1e-3, centered=True),
        lambda: adamx.rmsprop(1e-3, centered=True),
        TOLERANCE,
    ),
}


# Quickly: a flat state, a traced b, wrappers, groups, and one of each further form.
QUICK = (
    *("adamw", "traced b", "inject", "multi_steps", "b by group", "inject by group"),
    *("masked", "amsgrad", "nadam", "lion", "centered"),
)


@pytest.mark.parametrize("name", some(OPTAX, *QUICK))
def test_an_optax_run_goes_on(name):
    theirs, ours, tolerance = OPTAX[name]
    is_flat = name in ("adamw", "multi_steps")
    theirs, ours = theirs(), ours()
    params, state = begin(theirs, 20)
    migration = migrate(to_flat(state) if is_flat else state, ours, params)
    assert wp.form(migration.state) == wp.form(ours.init(params))
    want, _ = run(theirs, params, state, 20, 20)
    got, after = run(ours, params, migration.state, 20, 20)
    wp.assert_close(got, want, tolerance, name)
    steps = adamx.read(after).count
    if name not in ("sgd", "rmsprop", "centered", "windows in one group"):
        assert steps == (40 // 3 if name == "multi_steps" else 40)


def test_steps_that_optax_has_skipped_are_counted_on():
    tx, new = optax.apply_if_finite(ADAMW, 5), adamx.guard(ADAMW)
    state = tx.init(PARAMS)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    for grads in (bad, bad, PARAMS, bad):
        _, state = tx.update(grads, state, PARAMS)
    got = migrate(state, new, PARAMS).state
    assert (int(got.skipped), int(got.skipped_in_a_row)) == (3, 1)


def test_a_schedule_goes_on_from_the_stage_that_has_seen_most_steps():
    two = [adamx.scale_by_adam(), adamx.scale_by_adam()]
    saved = optax.chain(optax.scale_by_adam(), optax.scale_by_adam()).init(PARAMS)
    saved = tuple(
        s._replace(count=jnp.int32(n)) for s, n in zip(saved, (3, 5), strict=True)
    )
    new = optax.chain(*two, adamx.scale_by_learning_rate(RATE))
    assert int(migrate(saved, new, PARAMS).state[2].count) == 5


def test_what_is_not_saved_by_group_is_not_guessed():
    """Of which group an array is, names do not say where the labels have changed."""
    params, state = begin(_by_group(_injected(optax.adamw)), 2)
    other = adamx.groups([("^a", _held(1e-2))], default=_held(1e-2))
    with pytest.raises(ValueError, match=r"places, with unlike values.*labels"):
        migrate(state, other, params)
    with pytest.raises(ValueError, match=r"unlike `b1` by group.*labels"):
        migrate(state, adamx.groups([("^a", ADAMW)], default=ADAMW), params)
    many = [optax.MultiSteps(optax.sgd(0.1), k) for k in (2, 3)]
    windows = _halves(*(tx.gradient_transformation() for tx in many))
    ours = _halves(*(adamx.accumulate(adamx.sgd(0.1), k) for k in (2, 3)))
    params, state = begin(windows, 4)
    with pytest.raises(ValueError, match=r"unlike steps.*mini_step 0"):
        migrate(state, ours, params)
    params, state = begin(windows, 6)
    assert migrate(state, ours, params).kept


@pytest.mark.parametrize("b2", [0.999, 0.5])
def test_bias_corrections_come_from_the_count(b2):
    """Against double precision; b as the traced one is: the float32 number."""
    params, state = begin(optax.adam(1e-2, b2=b2), 7)
    tx = adamx.with_hyperparams(adamx.adam, learning_rate=1e-2, b2=b2)
    got = migrate(state, tx, params).state.inner_state[0]
    for moment, b in (("mu", 0.9), ("nu", b2)):
        high, low = (
            float(getattr(got, f"{field}_{moment}"))
            for field in ("bias_correction", "correction_rest")
        )
        exact = 1 - float(np.float32(b)) ** 7
        assert abs(high - exact) <= 2**-24 * exact
        assert abs(high + low - exact) <= 1e-13
    rho = migrate(
        begin(optax.radam(1e-2, b2=b2), 7)[1], adamx.radam(1e-2, b2=b2), params
    )
    stage = rho.state[0]
    b = float(np.float32(b2))
    exact = (1 + b) / (1 - b) - 14 * b**7 / (1 - b**7)
    assert float(stage.rho) == pytest.approx(exact, rel=1e-6)
