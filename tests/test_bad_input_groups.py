"""Bad input to groups, freeze, decay_mask, describe; the style of test_bad_input.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.test_bad_input import _check

SGD = adamx.sgd(0.1)
ADAM = adamx.adam(1e-3)
PARAMS = {
    "encoder": {"attention": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "embedding": jnp.ones((3, 2)),
    "temperature": jnp.ones(()),
}

# label: (arguments of groups, exception, what the message must contain, in any order)
CONSTRUCTION = {
    "nothing": (([],), ValueError, "`rules` empty `default` [] add a rule"),
    "a string": (("embed",), TypeError, "`rules` list str 'embed' e.g."),
    "a dict": (({"embed": SGD},), TypeError, "`rules` list dict"),
    "None": ((None,), TypeError, "`rules` list NoneType"),
    "no pair": (([("embed", SGD, 1)],), TypeError, "`rules[0]` pair e.g."),
    "one too deep": ((["embed", SGD],), TypeError, "`rules[0]` pair 'embed'"),
    "swapped": (([(SGD, "embed")],), TypeError, "`rules[0][0]` regular expression"),
    "pattern None": (([(None, SGD)],), TypeError, "`rules[0]` pair"),
    "bad regex": (
        ([("embed", SGD), ("(embed", SGD)],), ValueError,
        "`rules[1][0]` '(embed' missing ) re.escape"),
    "a lonely star": (([("*", SGD)],), ValueError, "`rules[0][0]` '*' nothing to repeat"),
    "bytes": (([(re.compile(b"x"), SGD)],), TypeError, "`rules[0][0]` string"),
    "no transformation": (
        ([("embed", 1e-3)],), TypeError, "`rules[0][1]` transformation float 0.001"),
    "the factory": (([("embed", adamx.adam)],), TypeError, "`rules[0][1]` function"),
    "bad default": (([], 1e-3), TypeError, "`default` transformation float"),
    "twice": (
        ([("embed", SGD), ("embed", ADAM)],), ValueError,
        "`rules[1]` 'embed' an earlier rule Join"),
    "the default's name": (
        ([("default", SGD)], ADAM), ValueError, "`rules[0]` 'default' default group"),
}  # fmt: skip


@pytest.mark.parametrize("label", CONSTRUCTION)
def test_groups_construction(label):
    arguments, exception, expected = CONSTRUCTION[label]
    _check(lambda: adamx.groups(*arguments), exception, expected)


# label: (arguments of groups, what the message of init must contain)
INIT = {
    "misprint": (
        ([("atention", SGD)], ADAM),
        "`rules` 'atention' no path 'encoder/attention/bias' '/'"),
    "dots for slashes": (
        ([(r"encoder\.attention", SGD)], ADAM),
        "`rules` 'encoder\\\\.attention' 'encoder/attention/kernel' joined by"),
    "taken": (
        ([("encoder", SGD), ("bias", ADAM)], ADAM),
        "`rules` 'bias' 'encoder/attention/bias' earlier rules take 'encoder' first"),
    "taken by two": (
        ([("kernel", SGD), ("bias", ADAM), ("encoder", SGD)], ADAM),
        "`rules` 'encoder' take: 'bias', 'kernel'. first"),
    "left over": (
        ([("encoder", SGD), ("embed", ADAM)],),
        "`rules` `default` 'temperature' 'encoder', 'embed' Add a rule"),
    "many left over": (
        ([("embed", SGD)],),
        "'encoder/attention/bias', 'encoder/attention/kernel', 'temperature'"),
}  # fmt: skip


@pytest.mark.parametrize("label", INIT)
def test_groups_init(label):
    arguments, expected = INIT[label]
    tx = adamx.groups(*arguments)
    _check(lambda: tx.init(PARAMS), ValueError, expected)
    wrapped = optax.chain(adamx.clip_by_global_norm(1.0), tx)
    _check(lambda: jax.eval_shape(wrapped.init, PARAMS), ValueError, expected)


def test_errors_inside_name_the_group():
    tx = adamx.groups([("embed", ADAM)], default=adamx.adamw(1e-3))
    params = {**PARAMS, "count": jnp.arange(3)}
    with pytest.raises(TypeError, match=r"(?s)'count'.*int32.*group 'default'"):
        tx.init(params)


def test_groups_update():
    tx = adamx.groups([("embed", ADAM), ("encoder", adamx.freeze())], default=SGD)
    state = tx.init(PARAMS)
    _, step = adamx.fused(tx)
    for update in (tx.update, lambda g, s, p: step(g, s, p)):
        with pytest.raises(TypeError, match=r"`state` must be the .*GroupsState"):
            update(PARAMS, ADAM.init(PARAMS), PARAMS)
        other = adamx.groups([("encoder", ADAM)], default=SGD).init(PARAMS)
        with pytest.raises(ValueError, match=r"`state`.*'embed'.*got.*changed"):
            update(PARAMS, other, PARAMS)
        swapped = dict(state.inner_states)
        swapped["embed"], swapped["encoder"] = swapped["encoder"], swapped["embed"]
        with pytest.raises(TypeError, match=r"(?s)`state` must be.*group 'e\w+' of"):
            update(PARAMS, adamx.GroupsState(swapped), PARAMS)
        bad = {**PARAMS, "embedding": jnp.ones((1, 2))}
        with pytest.raises(ValueError, match=r"'embedding' must have shape \(3, 2\)"):
            update(bad, state, PARAMS)
        less = {k: v for k, v in PARAMS.items() if k != "embedding"}
        with pytest.raises(ValueError, match=r"missing: 'embedding'"):
            update(less, state, PARAMS)


@pytest.mark.parametrize("make", [adamx.adam, optax.adam], ids=["ours", "optax"])
def test_a_group_with_the_state_of_another(make):
    tx = adamx.groups([("embed", make(1e-3))], default=make(1e-3))
    state = tx.init(PARAMS)
    held = state.inner_states
    swapped = adamx.GroupsState({"embed": held["default"], "default": held["embed"]})
    for update in (tx.update, adamx.fused(tx).step):
        with pytest.raises(
            (ValueError, TypeError), match=r"(?s)group '\w+' of adamx\.groups"
        ):
            update(PARAMS, swapped, PARAMS)
    # The same rules in another order: other members, under the same names.
    first = [("encoder", make(1e-3)), ("kernel|embed", make(1e-3))]
    tx, other = (adamx.groups(rules, default=SGD) for rules in (first, first[::-1]))
    with pytest.raises((ValueError, TypeError), match="same order"):
        tx.update(PARAMS, other.init(PARAMS), PARAMS)


def test_freeze():
    tx = adamx.freeze()
    with pytest.raises(TypeError, match=r"`state` must be the .*FreezeState"):
        tx.update(PARAMS, optax.EmptyState(), PARAMS)
    bad = {**PARAMS, "embedding": jnp.ones((1, 2))}
    with pytest.raises(ValueError, match=r"'embedding' must have shape"):
        tx.update(bad, tx.init(PARAMS), PARAMS)


# ------------------------------------------------------------------------ decay_mask

# label: (arguments, exception, what the message must contain)
MASKS = {
    "exclude a number": ({"exclude": 3}, TypeError, "`exclude` regular expression int 3"),
    "exclude a function": (
        {"exclude": lambda p: True}, TypeError, "`exclude` regular expression function"),
    "bad regex": ({"exclude": "(a"}, ValueError, "`exclude` '(a' re.escape"),
    "bad regex in a list": (
        {"exclude": ["a", "[b"]}, ValueError, "`exclude[1]` '[b' re.escape"),
    "None in a list": ({"exclude": [None]}, TypeError, "`exclude` None leave it out"),
    "stacked a flag": ({"stacked": True}, TypeError, "`stacked` bool True string"),
    "min_ndim a float": ({"min_ndim": 1.5}, TypeError, "`min_ndim` whole 1.5 2"),
    "min_ndim a flag": ({"min_ndim": True}, TypeError, "`min_ndim` whole True"),
    "min_ndim negative": ({"min_ndim": -1}, ValueError, "`min_ndim` >= 0 -1"),
}  # fmt: skip


@pytest.mark.parametrize("label", MASKS)
def test_mask_construction(label):
    arguments, exception, expected = MASKS[label]
    _check(lambda: adamx.decay_mask(**arguments), exception, expected)


@pytest.mark.parametrize("name", ["exclude", "stacked"])
def test_mask_that_matches_nothing(name):
    mask = adamx.decay_mask(**{name: ["bias", "embeding"]})
    expected = f"`{name}` 'embeding' no path 'embedding' '/'"
    _check(lambda: mask(PARAMS), ValueError, expected)
    _check(lambda: adamx.adamw(1e-3, mask=mask).init(PARAMS), ValueError, expected)


def test_stacked_scalar():
    mask = adamx.decay_mask(stacked="temp")
    _check(lambda: mask(PARAMS), ValueError, "`stacked` 'temperature' scalar narrower")


def test_params_in_the_place_of_exclude():
    _check(lambda: adamx.decay_mask(PARAMS), TypeError, "`exclude` dict")
    _check(lambda: adamx.decay_mask(np.ones(2)), TypeError, "`exclude` array")
