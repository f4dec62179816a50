"""A saved state in a chain that has changed: what is kept, and that training goes on.

Optax is the reference where a run of its own is taken over in the middle.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import codecs
from adamx.interop import migrate, to_flat
from tests import wrapper_pairs as wp
from tests.compiling import as_users

PARAMS = wp.make_params(jnp.float32)
RATE = optax.linear_schedule(1e-2, 1e-3, 40)


@functools.cache
def _stepper(update):
    @jax.jit
    def step(params, state, g):
        updates, state = update(g, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params, state, steps, start=0):
    step = _stepper(tx.update)
    for i in range(start, start + steps):
        params, state = step(params, state, wp.gradient(params, i))
    return params, state


def begin(tx, steps=3, params=PARAMS):
    return run(tx, params, tx.init(params), steps)


ADAMW = adamx.adamw(1e-2)
ONE = begin(ADAMW)  # parameters and state after three steps of it


# ------------------------------------------------------------------------ other chains

CHAINS = {
    "clip": lambda: optax.chain(adamx.clip_by_global_norm(1e6), ADAMW),
    "guard": lambda: adamx.guard(ADAMW, spike_zscore=9.0),
    "diagnose": lambda: adamx.diagnose(ADAMW, every=50),
    "accumulate": lambda: adamx.accumulate(ADAMW, 1),
    "loss_scaling": lambda: adamx.loss_scaling(ADAMW, initial_scale=1.0),
    "groups": lambda: adamx.groups([("^b", ADAMW)], default=ADAMW),
    "masked": lambda: optax.masked(ADAMW, lambda p: jax.tree.map(lambda x: True, p)),
    "several": lambda: adamx.guard(
        optax.chain(adamx.clip_by_global_norm(1e6), adamx.diagnose(ADAMW))
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_wrapper_that_is_added_loses_nothing(name):
    """Every array of the old state is kept; the next steps are those without it."""
    params, state = ONE
    tx = CHAINS[name]()
    migration = migrate(state, tx, params)
    assert not migration.dropped
    assert not migration.converted
    moments = [n for n in migration.kept if "/mu/" in n or "/nu/" in n]
    assert len(moments) == 8
    want, _ = run(ADAMW, params, state, 2, 3)
    got, _ = run(tx, params, migration.state, 2, 3)
    wp.assert_close(got, want, 1e-6, name)


@pytest.mark.parametrize("name", CHAINS)
def test_a_wrapper_that_is_removed_is_dropped(name):
    tx = CHAINS[name]()
    params, state = begin(tx)
    migration = migrate(to_flat(state), ADAMW, params, "error")
    assert not migration.initialised
    wp.assert_same_bits(
        migration.state[0].mu,
        ONE[1][0].mu if name == "clip" else migration.state[0].mu,
        name,
    )
    want, _ = run(tx, params, state, 2, 3)
    got, _ = run(ADAMW, params, migration.state, 2, 3)
    wp.assert_close(got, want, 1e-6, name)


@as_users
def test_the_same_chain_is_kept_to_the_bit():
    for names in (("guard", "groups"), ("stages",), ("with_hyperparams",)):
        tx = wp.make(*names)
        params, state = begin(tx)
        migration = migrate(state, tx, params, "error")
        assert set(migration.kept) == set(to_flat(state))
        wp.assert_same_bits(migration.state, state, str(names))


def test_stages_the_first_goes_on_and_the_one_at_work_comes_out():
    params, state = ONE
    tx = adamx.stages([(ADAMW, 2), (adamx.adamw(1e-3), None)])
    inside = migrate(state, tx, params).state
    wp.assert_same_bits(inside.inner_states[0], state, "the first stage")
    wp.assert_same_bits(inside.inner_states[1], tx.init(params).inner_states[1], "")
    params, state = begin(tx, 3)
    out = migrate(state, ADAMW, params).state
    wp.assert_same_bits(out[0].mu, state.inner_states[1][0].mu, "the stage at work")


# --------------------------------------------------------------------- other storage

# In the quick run one layout of each kind of code; all of them with `pytest -m slow`.
FORMATS = {
    "float32": (None, 0.0),
    "bfloat16": (jnp.bfloat16, 2**-8),
    "stochastic": (codecs.bfloat16_stochastic(), 2**-8),
    "int8": (codecs.int8(min_size=0, rounding="nearest"), 0.02),
    "int8 row": (codecs.int8("row", min_size=0), 0.02),
    "int4": (codecs.int4(min_size=0), 0.2),
    "fp8": (codecs.fp8(min_size=0), 0.07),
    "some": (codecs.int8(min_size=8), 0.02),
}
QUICK = {
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", "int8"),
    ("int8", "float32"),
    ("int8", "int8"),
    ("int8", "some"),
    ("int8", "fp8"),
    ("stochastic", "int4"),
}


@pytest.mark.filterwarnings("ignore:.*cannot follow an average")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(old, new, marks=() if (old, new) in QUICK else pytest.mark.slow)
        for old in FORMATS
        for new in FORMATS
    ],
)
def test_moments_in_another_form(old, new):
    """Decoded by hand, the new moment is the old one to the new form's rounding."""
    make = lambda name: adamx.adamw(  # noqa: E731
        1e-2, mu_dtype=FORMATS[name][0], nu_dtype=FORMATS[name][0]
    )
    params, state = begin(make(old))
    migration = migrate(state, make(new), params)
    for moment in ("mu", "nu"):
        a, b = (codecs.decode(getattr(s[0], moment)) for s in (state, migration.state))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            bound = 0.0 if old == new else FORMATS[new][1] * np.abs(x).max()
            np.testing.assert_array_less(np.abs(y - x), bound + 1e-30)
    assert set(migration.kept) >= {"scale_by_adam/count", "scale_by_adam/b1"}
    assert (migration.kept == tuple(to_flat(state))) is (old == new)
    assert wp.form(migration.state) == wp.form(make(new).init(params))


@pytest.mark.parametrize("pair", [("split", "full"), ("full", "split")], ids="-".join)
def test_masters_change_their_storage_and_lose_nothing(pair):
    made = {
        kind: adamx.master_weights(ADAMW, storage=storage)
        for kind, storage in (("split", "split"), ("full", "float32"))
    }
    old, new = (made[kind] for kind in pair)
    params = wp.make_params(jnp.bfloat16)
    step = jax.jit(adamx.fused(old).step)
    state = old.init(params)
    for i in range(3):
        params, state = step(wp.gradient(params, i), state, params)
    there = migrate(state, new, params)
    assert sum("/master/" in name for name in there.converted) == 4
    back = migrate(there.state, old, params)
    wp.assert_same_bits(back.state, state, "there and back")


# ------------------------------------------------------------------ other parameters


def test_a_parameter_that_is_added_or_removed():
    params, state = ONE
    more = params | {"c": jnp.ones(2)}
    added = migrate(state, ADAMW, more)
    assert added.initialised == ("scale_by_adam/mu/c", "scale_by_adam/nu/c")
    assert "new at count 3" in str(added)
    wp.assert_same_bits(added.state[0].mu["a"], state[0].mu["a"], "what was there")
    removed = migrate(added.state, ADAMW, params, "error")
    assert removed.dropped == ("scale_by_adam/mu/c", "scale_by_adam/nu/c")
    wp.assert_same_bits(removed.state, state, "there and back")


def test_a_parameter_of_another_shape_begins_anew():
    params, state = ONE
    params = params | {
        "b": jax.tree.map(lambda p: jnp.ones((7, *p.shape)), params["b"])
    }
    migration = migrate(state, ADAMW, params)
    assert len(migration.initialised) == 4
    assert "the shape was (3,), is (7, 3)" in str(migration)


def test_another_constant_rate_keeps_the_corrected_moment():
    """nu / c stays: with b2 = 0.99 the count alone would make it 0.1 of that."""
    params, state = ONE
    new = adamx.adamw(1e-2, b2=0.99)
    got = migrate(state, new, params).state
    for s, b2 in ((state, 0.999), (got, 0.99)):
        assert float(s[0].bias_correction_nu) == pytest.approx(1 - b2**3, rel=1e-4)
    for x, y in zip(*(jax.tree.leaves(s[0].nu) for s in (state, got)), strict=True):
        np.testing.assert_allclose(x / (1 - 0.999**3), y / (1 - 0.99**3), rtol=1e-4)


def test_another_algorithms_second_moment_is_not_taken():
    """Adam's nu is a mean of squares, Adamax's a largest size."""
    params, state = ONE
    migration = migrate(state, adamx.adamax(1e-2), params)
    begun = migration.state[0]
    assert int(begun.count) == 0
    assert not any(np.any(x) for x in jax.tree.leaves((begun.mu, begun.nu)))
    assert any(name.startswith("scale_by_adam/nu/") for name in migration.dropped)


def test_what_with_hyperparams_holds_is_kept():
    make = lambda rate: adamx.with_hyperparams(  # noqa: E731
        adamx.adamw, learning_rate=rate, b2=0.99
    )
    params, state = begin(make(1e-2))
    state = adamx.set_hyperparams(state, learning_rate=3e-3, b2=0.9)
    params, state = run(make(1e-2), params, state, 2)
    migration = migrate(state, adamx.guard(make(1e-4)), params)
    inner = migration.state.inner_state
    wp.assert_same_bits(inner, state, "all of it, corrections too")


def test_groups_that_differ_stay_apart():
    """What differs by group goes to the group of that label, or nowhere."""
    one = adamx.groups([("^b", ADAMW)], default=adamx.adamw(1e-2, b2=0.9))
    params, state = begin(one)
    same = migrate(state, one, params)
    wp.assert_same_bits(same.state, state, "the same labels")
    with pytest.raises(ValueError, match=r"'scale_by_adam/b2'.* 2 places.*labels"):
        migrate(state, ADAMW, params)


# ----------------------------------------------------------------- an Optax run goes on

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


@pytest.mark.parametrize("name", OPTAX)
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


def test_the_table_says_everything():
    params, state = ONE
    tx = adamx.guard(adamx.adamw(1e-2, mu_dtype=codecs.int8(min_size=0)))
    migration = migrate(state, tx, params | {"c": jnp.ones(2)})
    text = migration.text(120)
    for part in ("kept", "converted", "float32 -> int8, 2 scales", "initialised"):
        assert part in text
    assert "guard/skipped" in text
    fates = [f.name for f in migration.fates if f.action != "dropped"]
    assert fates == list(to_flat(migration.state))
    named = (migration.kept, migration.converted, migration.initialised)
    assert sorted(sum(named, ())) == sorted(fates)
