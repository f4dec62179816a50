"""A saved state in a chain that has changed: what is kept, and how it goes on."""

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
from tests.helpers import some

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


# Quickly: one beside, one around that counts, leaves apart, and several.
SOME_CHAINS = some(CHAINS, "clip", "accumulate", "groups", "several")


@pytest.mark.parametrize("name", SOME_CHAINS)
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


@pytest.mark.parametrize("name", SOME_CHAINS)
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
    ("float32", "bfloat16"),
    ("float32", "int8"),
    ("int8", "float32"),
    ("int8", "some"),
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


def test_in_fp8_a_square_beside_others_is_never_0():
    """mu / sqrt(nu) with nu = 0 is a step of any size. Means and curvatures may be."""
    params = {"w": jnp.ones((32, 32))}
    moment = {"w": jnp.ones((32, 32)).at[0, 0].set(0.0)}
    fp8 = codecs.fp8(min_size=0)
    smallest = {adamx.scale_by_adam: 2.0**-9 / 448, adamx.scale_by_sophia: 0.0}
    for make, square in smallest.items():
        state = make().init(params)._replace(mu=moment, nu=moment)
        new = migrate(state, make(mu_dtype=fp8, nu_dtype=fp8), params).state
        for encoded, want in ((new.mu, 0.0), (new.nu, square)):
            got = codecs.decode(encoded)["w"]
            assert float(got[0, 0]) == pytest.approx(want, rel=1e-6)
            assert np.all(got.ravel()[1:] == 1)


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
