"""Bad input to `stages`, `adam_to_sgd` and `plateau`; as in test_bad_input.py."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import codecs
from tests.test_bad_input import _check

NAN, INF = float("nan"), float("inf")
ADAM, SGD = adamx.adam(1e-3), adamx.sgd(0.1, 0.9)
SCHEDULE = lambda step: 1.0  # noqa: E731

# label: (plan, exception, what the message must contain, in any order)
PLANS = {
    "none": ([], ValueError, "`plan` pairs none at least one"),
    "no list": (ADAM, TypeError, "`plan` list of pairs [(adamx.adamw(1e-3), 1000)"),
    "a dict": ({ADAM: 3}, TypeError, "`plan` list of pairs dict"),
    "no pair": ([ADAM], TypeError, "`plan[0]` pair (tx, 1000)"),
    "three": ([(ADAM, 1, 2)], TypeError, "`plan[0]` pair (tx, None) last"),
    "swapped": ([(3, ADAM), (SGD, None)], TypeError, "`plan[0][0]` transformation 3"),
    "a factory": ([(adamx.adam, None)], TypeError, "`plan[0][0]` transformation"),
    "zero steps": ([(ADAM, 0), (SGD, None)], ValueError, "`plan[0][1]` >= 1 0 own"),
    "negative": ([(ADAM, -5), (SGD, None)], ValueError, "`plan[0][1]` -5 own number"),
    "half": ([(ADAM, 2.5), (SGD, None)], ValueError, "`plan[0][1]` whole 2.5"),
    "a flag": ([(ADAM, True), (SGD, None)], TypeError, "`plan[0][1]` whole flag"),
    "a name": ([(ADAM, "3"), (SGD, None)], TypeError, "`plan[0][1]` whole '3'"),
    "None first": (
        [(ADAM, None), (SGD, None)], ValueError,
        "`plan[0][1]` a number None would never run"),
    "None within": (
        [(ADAM, 3), (SGD, None), (ADAM, None)], ValueError, "`plan[1][1]` None last"),
    "no None": ([(ADAM, 3), (SGD, 4)], ValueError, "`plan[1][1]` None no end 4"),
    "too long": (
        [(ADAM, 2**30), (ADAM, 2**30), (SGD, None)], ValueError,
        "`plan` 2147483648 32 bits Shorten"),
}  # fmt: skip


@pytest.mark.parametrize("label", PLANS)
def test_plans(label):
    plan, exception, expected = PLANS[label]
    _check(lambda: adamx.stages(plan), exception, expected)


def test_options_of_stages():
    plan = [(ADAM, 3), (SGD, None)]
    for options in ({"schedules": "go on"}, {"moments": True}):
        (name,) = options
        _check(lambda o=options: adamx.stages(plan, **o), ValueError, f"`{name}` 're")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SGD, ADAM),
        (adamx.lion(1e-3), ADAM),
        (ADAM, adamx.sgd(0.1)),
        (adamx.adam(1e-3, mu_dtype=codecs.int8()), SGD),
        (adamx.nadam(1e-3, momentum_decay=4e-3), ADAM),
    ],
)
def test_nothing_to_carry(first, second):
    tx = adamx.stages([(first, 3), (second, None)], moments="carry")
    expected = "`moments` 'reset' 'carry' plan[1] plan[0] codec"
    _check(lambda: tx.init({"a": jnp.ones((8, 64))}), ValueError, expected)


def test_update_of_stages():
    tx, params = adamx.stages([(ADAM, 3), (SGD, None)]), {"a": jnp.ones(2)}
    state = tx.init(params)
    _check(lambda: tx.update(params, ADAM.init(params), params), TypeError,
           "`state` StagesState init of stages")  # fmt: skip
    _check(lambda: tx.update({"a": jnp.arange(2)}, state, params), TypeError,
           "gradient at 'a' int32")  # fmt: skip
    _check(lambda: tx.update({"a": jnp.ones(1)}, state, params), ValueError,
           "gradient at 'a' (2,) (1,)")  # fmt: skip
    foreign = adamx.stages([(optax.sgd(0.1), 3), (optax.sgd(0.1), None)])
    held, step = foreign.init(params), adamx.fused(foreign).step
    for run in (foreign.update, step):
        _check(lambda r=run: r({"a": jnp.arange(2)}, held, params), TypeError,
               "gradient at 'a' int32")  # fmt: skip
        _check(lambda r=run: r({"a": jnp.ones(1)}, held, params), ValueError,
               "gradient at 'a' (2,) (1,)")  # fmt: skip
        _check(lambda r=run: r({"b": jnp.ones(2)}, held, params), ValueError,
               "gradient missing: 'a'; unexpected: 'b'")  # fmt: skip
    needs = adamx.stages([(adamx.adamw(1e-3), 3), (SGD, None)])
    _check(lambda: needs.update(params, needs.init(params)), ValueError,
           "`params` current parameters None")  # fmt: skip


# label: (arguments, exception, what the message must contain)
HAND_OVERS = {
    "both": (
        {"switch_step": 3, "total_steps": 10}, ValueError,
        "`switch_step` `total_steps` 3 10 Both"),
    "step 0": ({"switch_step": 0}, ValueError, "`switch_step` >= 1 0"),
    "step -1": ({"switch_step": -1}, ValueError, "`switch_step` >= 1 -1"),
    "step 1.5": ({"switch_step": 1.5}, ValueError, "`switch_step` whole 1.5"),
    "step by a schedule": ({"switch_step": SCHEDULE}, TypeError, "`switch_step` int"),
    "step by a flag": ({"switch_step": True}, TypeError, "`switch_step` flag"),
    "step too large": ({"switch_step": 2**31}, ValueError, "`switch_step` 2147483647"),
    "run of 1": ({"total_steps": 1}, ValueError, "`total_steps` >= 2 1 whole run"),
    "run of 0": ({"total_steps": 0}, ValueError, "`total_steps` >= 2 0"),
    "fraction 0": (
        {"total_steps": 9, "switch_fraction": 0.0}, ValueError,
        "`switch_fraction` (0, 0.0 0.7 to 0.9"),
    "fraction 1": (
        {"total_steps": 9, "switch_fraction": 1.0}, ValueError, "`switch_fraction` 1)"),
    "percent": (
        {"total_steps": 9, "switch_fraction": 80}, ValueError, "`switch_fraction` 80"),
    "fraction alone": (
        {"switch_fraction": 0.5}, ValueError,
        "`switch_fraction` `total_steps` None 0.5"),
    "rate": ({"learning_rate": -1.0}, ValueError, "`learning_rate` >= 0 -1.0"),
    "SGD's rate": ({"sgd_learning_rate": -1.0}, ValueError, "`sgd_learning_rate` -1.0"),
    "SGD's rate inf": (
        {"sgd_learning_rate": INF}, ValueError, "`sgd_learning_rate` finite inf"),
    "momentum 1": ({"momentum": 1.0}, ValueError, "`momentum` [0, 1) 1.0"),
    "momentum None": ({"momentum": None}, TypeError, "`momentum` [0, 1) None"),
    "b1": ({"b1": 1.5}, ValueError, "`b1` 1.5"),
    "b2": ({"b2": jnp.bfloat16(0.9)}, TypeError, "`b2` bfloat16 float32"),
    "eps": ({"eps": -1e-8}, ValueError, "`eps` >= 0"),
    "eps_root": ({"eps_root": NAN}, ValueError, "`eps_root` nan"),
    "decay": ({"weight_decay": -0.1}, ValueError, "`weight_decay` >= 0 -0.1"),
    "flag": ({"independent_decay": 1}, TypeError, "`independent_decay` True"),
    "nu_dtype": ({"nu_dtype": jnp.int8}, ValueError, "`nu_dtype` int8"),
    "mu_dtype": ({"mu_dtype": jnp.int8}, ValueError, "`mu_dtype` int8"),
    "plateau": (
        {"on_plateau": 10}, TypeError, "`on_plateau` 10 adamx.plateau(patience=10)"),
}  # fmt: skip


@pytest.mark.parametrize("label", HAND_OVERS)
def test_hand_overs(label):
    arguments, exception, expected = HAND_OVERS[label]
    arguments = {"learning_rate": 1e-3} | arguments
    _check(lambda: adamx.adam_to_sgd(**arguments), exception, expected)


def test_update_of_a_hand_over():
    params = {"a": jnp.ones(2)}
    tx = adamx.adam_to_sgd(1e-3)
    state = tx.init(params)
    _check(lambda: tx.update(params, state, params), ValueError,
           "`switch` None `switch_step` `total_steps` `on_plateau` bool")  # fmt: skip
    for bad in (1, jnp.ones(2, bool), np.float32(1)):
        _check(lambda b=bad: tx.update(params, state, params, switch=b), TypeError,
               "`switch` bool scalar loss < 0.1")  # fmt: skip
    watching = adamx.adam_to_sgd(1e-3, on_plateau=adamx.plateau())
    held = watching.init(params)
    _check(lambda: watching.update(params, held, params), ValueError,
           "`value` `on_plateau` None value=loss")  # fmt: skip
    for bad in (jnp.ones(2), True, 1j):
        _check(lambda b=bad: watching.update(params, held, params, value=b), TypeError,
               "`value` real scalar jnp.mean")  # fmt: skip
    wrong = (adamx.adamw(1e-3).init(params)[0],)
    _check(lambda: tx.update(params, wrong, params, switch=True), TypeError,
           "`state` AdamToSgdState init of adam_to_sgd")  # fmt: skip
    decayed = adamx.adam_to_sgd(1e-3, 3, weight_decay=0.1)
    _check(lambda: decayed.update(params, decayed.init(params)), ValueError,
           "`params` decay None")  # fmt: skip
    mask = adamx.adam_to_sgd(1e-3, 3, weight_decay=0.1, mask={"b": True})
    _check(lambda: mask.init(params), ValueError, "`mask` 'b' 'a'")


# (argument, value, exception, what the message must contain)
PLATEAUS = [
    ("patience", 0, ValueError, "`patience` >= 1 0"),
    ("patience", 2.5, ValueError, "`patience` whole 2.5"),
    ("patience", SCHEDULE, TypeError, "`patience` whole"),
    ("cooldown", -1, ValueError, "`cooldown` >= 0 -1"),
    ("accumulation_size", 0, ValueError, "`accumulation_size` >= 1 0"),
    ("rtol", -0.1, ValueError, "`rtol` >= 0 -0.1"),
    ("atol", NAN, ValueError, "`atol` finite nan"),
    ("atol", SCHEDULE, TypeError, "`atol` schedule"),
]


@pytest.mark.parametrize("case", PLATEAUS, ids=lambda c: c[0])
def test_plateaus(case):
    name, value, exception, expected = case
    _check(lambda: adamx.plateau(**{name: value}), exception, expected)


def test_the_state_of_a_plateau():
    detector = adamx.plateau()
    _check(lambda: detector.update(1.0, ()), TypeError, "`state` PlateauState plateau")


@pytest.mark.parametrize("name", ["master_weights", "compensated"])
def test_what_stands_outermost_is_no_stage(name):
    wrap = getattr(adamx, name)
    tx = adamx.stages([(wrap(adamx.adamw(0.1)), 2), (adamx.sgd(0.1), None)])
    with pytest.raises(ValueError, match=rf"{name}.*{name}\(stages"):
        tx.init(jnp.ones(3, jnp.bfloat16))
    wrap(adamx.stages([(adamx.adamw(0.1), 2), (adamx.sgd(0.1), None)])).init(
        jnp.ones(3, jnp.bfloat16)
    )
