"""Bad input of the way back to PyTorch: states that it has no optimizer for."""

import optax
import pytest

import adamx
from adamx.interop import params_to_torch, to_torch
from tests.test_bad_input_torch import ADAM, NAMES, PARAMS


def state_of(tx):
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS)
    return state


BACK = {
    "an eps inside the root": (adamx.adam(0.1, eps_root=1e-8), r"`eps_root`"),
    "the maximum of nu_hat": (adamx.amsgrad(0.1), r"maximum_of='nu'"),
    "no corrections": (
        adamx.amsgrad(0.1, bias_correction_mu=False, bias_correction_nu=False),
        r"a bias correction of mu of 1 after 0 steps, .*or it is off",
    ),
    "eps inside RMSProp's root": (adamx.rmsprop(0.1), r"eps_in_sqrt=False"),
    "RMSProp with a correction": (
        adamx.rmsprop(0.1, eps_in_sqrt=False, bias_correction=True),
        r"RMSProp with bias correction",
    ),
    "another threshold": (adamx.radam(0.1, threshold=4.0), r"threshold other than 5"),
    "a count for each row": (adamx.sparse_adam(0.1, per_row_count=True), r"each row"),
    "ADOPT": (adamx.adopt(0.1), r"got scale_by_adopt; it has scale_by_adam"),
    "Lion with a decay in its sign": (
        optax.chain(
            adamx.add_decoupled_weight_decay(0.1),
            adamx.scale_by_lion(),
            adamx.scale_by_learning_rate(0.1),
        ),
        r"a coupled decay with Lion",
    ),
    "LAMB": (adamx.lamb(0.1), r"got scale_by_lamb_trust_ratio"),
    "cautious": (adamx.cautious(adamx.adamw(0.1)), r"got cautious"),
    "two optimizers": (
        adamx.stages([(adamx.adam(0.1), 3), (adamx.adam(0.1), None)]),
        r"one optimizer for 'dense/bias', got several",
    ),
    "a clipped update": (
        optax.chain(adamx.clip_by_update_rms(1.0), adamx.adam(0.1)),
        r"got clip_by_update_rms",
    ),
    "a decay apart": (
        adamx.adamw(0.1, independent_decay=True),
        r"behind the learning rate \(independent_decay\)",
    ),
}


@pytest.mark.parametrize("name", BACK)
def test_to_torch(name):
    tx, message = BACK[name]
    with pytest.raises(ValueError, match=message):
        to_torch(tx.init(PARAMS), PARAMS, names=NAMES, as_numpy=True)


def test_to_torch_needs_names():
    state = adamx.adam(0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"`names` must be given: .*in the order"):
        to_torch(state, PARAMS, as_numpy=True)
    with pytest.raises(ValueError, match=r"missing: 'dense/bias'"):
        to_torch(state, PARAMS, names=["dense.weight"], as_numpy=True)
    table = {"dense.weight": "dense/kernel", "dense.bias": "dense/bias"}
    found = to_torch(state, PARAMS, table, as_numpy=True)
    assert found["param_groups"][0]["param_names"] == NAMES


def test_to_torch_of_unlike_groups_in_one():
    tx = adamx.groups([("bias", adamx.adam(0.1))], default=adamx.adam(0.2))
    with pytest.raises(ValueError, match=r"unlike ones in group 0: Adam .*Give a list"):
        to_torch(tx.init(PARAMS), PARAMS, names=[NAMES], as_numpy=True)
    found = to_torch(tx.init(PARAMS), PARAMS, names=NAMES, as_numpy=True)
    assert [g["lr"] for g in found["param_groups"]] == [0.2, 0.1]


def test_to_torch_of_optax_needs_the_hyperparameters():
    state = state_of(optax.adam(0.1))
    with pytest.raises(
        ValueError, match=r"must record 'applied_learning_rate'.*`like`"
    ):
        to_torch(state, PARAMS, names=NAMES, as_numpy=True)
    like = {"state": {}, "param_groups": [{**ADAM, "params": [0, 1]}]}
    found = to_torch(state, PARAMS, names=NAMES, like=like, as_numpy=True)
    assert found["param_groups"][0]["betas"] == (0.9, 0.999)
    assert float(found["state"][0]["step"]) == 1.0


def test_params_to_torch():
    with pytest.raises(ValueError, match=r"missing: 'dense/kernel'"):
        params_to_torch(PARAMS, ["dense.bias"], as_numpy=True)
