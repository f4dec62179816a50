"""State_dicts that are not what they seem: read exactly, or refused by name.

What another library, another version, a wrapper or an accident makes of a state_dict.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.interop import (
    convert_torch,
    from_torch,
    params_from_torch,
    to_torch,
    torch_optimizer,
)

ADAMS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
ADAM = ADAMS | {"weight_decay": 0.0, "amsgrad": False}
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0}
PARAMS = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
NAMES = ["a", "b"]


def adam_state(step=5.0, **more):
    ones = np.ones(3, np.float32)
    return {"step": step, "exp_avg": ones, "exp_avg_sq": ones, **more}


def saved(group, first=None, second=None, **more):
    states = {0: first, 1: second}
    return {
        "state": {i: state for i, state in states.items() if state is not None},
        "param_groups": [{**group, **more, "params": [0, 1]}],
    }


def adams(group=ADAM, **more):
    return saved(group, adam_state(), adam_state(), **more)


# --------------------------------------------------------------- of which class

ELSEWHERE = {
    "transformers' AdamW": (adams(ADAMS, correct_bias=True), "'correct_bias'"),
    "apex's FusedAdam": (adams(ADAMS, bias_correction=True), "'bias_correction'"),
    "DeepSpeed's Adam": (adams(ADAM, bias_correction=False), "'bias_correction'"),
    "ADOPT": (adams(ADAMS, clip_lambda=None, decouple=False), "'clip_lambda'"),
    "without a decay": (
        adams({k: ADAMS[k] for k in ("lr", "betas", "eps")}, nesterov=True),
        "'nesterov'",
    ),
    "LARS": (
        saved(SGD, {"momentum_buffer": np.ones(3)}, trust_coefficient=1e-3),
        "'trust_coefficient'",
    ),
    "an Adam that says nothing": (adams(ADAMS), "AdamW or Adam or RAdam"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_optimizer_from_elsewhere_is_read_only_as_what_the_user_says(name):
    state_dict, named = ELSEWHERE[name]
    with pytest.raises(ValueError, match=rf"`optimizer` must be given: .*{named}"):
        from_torch(state_dict, PARAMS, names=NAMES)
    kind = "SGD" if name == "LARS" else "Adam"
    found = convert_torch(state_dict, PARAMS, names=NAMES, optimizer=kind)
    assert "radam" not in found.code
    assert found.code.startswith(("adamx.adam", "adamx.sgd"))


def test_what_schedulers_and_users_add_is_not_from_elsewhere():
    more = {"initial_lr": 1.0, "max_lr": 1.0, "min_lr": 0.1, "base_momentum": 0.8}
    found = convert_torch(adams(**more, name="decay"), PARAMS, names=NAMES)
    assert found.code == "adamx.adam(0.1, b1=0.9, b2=0.99, eps=1e-08)"


def test_adamw_of_older_versions_with_and_without_decay():
    state_dict = adams()
    state_dict["param_groups"] = [
        {**ADAM, "weight_decay": 0.1, "params": [0]},
        {**ADAM, "params": [1]},
    ]
    arguments = {"names": [["a"], ["b"]], "optimizer": "AdamW"}
    found = convert_torch(state_dict, PARAMS, **arguments)
    assert [code for _, code in found.groups] == [
        f"adamx.adamw(0.1, b1=0.9, b2=0.99, eps=1e-08, weight_decay={decay})"
        for decay in (0.1, 0.0)
    ]


def test_a_group_of_bitsandbytes_before_its_first_step():
    tx = torch_optimizer(saved(ADAMS), PARAMS, names=NAMES, optimizer="AdamW8bit")
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert updates["a"].shape == (3,)


# ------------------------------------------------------------------------ steps


@pytest.mark.parametrize("step", [np.nan, np.inf, -3.0, 1.5, 3e9, "5", np.ones(2)])
def test_a_step_that_is_none(step):
    state_dict = saved(ADAM, adam_state(step), adam_state())
    with pytest.raises(ValueError, match="mis-typed: 'step' of 'a' is"):
        from_torch(state_dict, PARAMS, names=NAMES)


@pytest.mark.parametrize("step", [-1, 1.5, "x", True])
def test_an_argument_step_that_is_none(step):
    state_dict = saved(SGD, {"momentum_buffer": np.ones(3)})
    with pytest.raises((ValueError, TypeError), match="`step` must be"):
        from_torch(state_dict, PARAMS, names=NAMES, step=step)


def test_a_step_against_the_states_own():
    with pytest.raises(ValueError, match=r"`step` .* Adam, .* 100 where 'a' .* 5"):
        from_torch(adams(), PARAMS, names=NAMES, step=100)
    assert int(from_torch(adams(), PARAMS, names=NAMES, step=5)[0].count) == 5


def test_a_schedule_does_not_begin_anew_unasked():
    state_dict = saved(SGD, {"momentum_buffer": np.ones(3)})
    rate = adamx.schedules.linear(1.0, 0.0, 10)
    arguments = {"names": NAMES, "learning_rate": rate}
    with pytest.raises(ValueError, match=r"`step` must be given: .*SGD does not count"):
        from_torch(state_dict, PARAMS, **arguments)
    tx = torch_optimizer(state_dict, PARAMS, **arguments)
    state = from_torch(state_dict, PARAMS, **arguments, step=4)
    _, state = tx.update(PARAMS, state, PARAMS)
    assert adamx.read(state).learning_rate == pytest.approx(0.6)
    from_torch(saved(SGD), PARAMS, **arguments)  # has not begun


def test_nadams_products_may_differ_at_one_step():
    """A b1 that changed while a parameter had no gradient."""
    group = ADAM | {"momentum_decay": 4e-3}
    group.pop("amsgrad")
    states = [adam_state(mu_product=np.float32(x)) for x in (0.09, 0.015)]
    state_dict = saved(group, *states)
    tx = torch_optimizer(state_dict, PARAMS, names=NAMES)
    state = from_torch(state_dict, PARAMS, names=NAMES)
    grads = {"a": jnp.full(3, 0.5), "b": jnp.full(3, 0.5)}
    updates, _ = tx.update(grads, state, PARAMS)
    # torch's step 6, in double precision
    mu, after = (0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3)) for t in (6, 7))
    m, v = 0.9 + 0.1 * 0.5, 0.99 + 0.01 * 0.25
    for path, product in (("a", 0.09), ("b", 0.015)):
        p = product * mu
        direction = (1 - mu) / (1 - p) * 0.5 + after / (1 - p * after) * m
        expected = -0.1 * direction / (np.sqrt(v / (1 - 0.99**6)) + 1e-8)
        np.testing.assert_allclose(updates[path], expected, rtol=1e-6)


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("dtype", [np.complex64, np.int32])
def test_moments_of_other_numbers_than_the_parameter(dtype):
    params = PARAMS | {"a": jnp.zeros(3, np.complex64)}
    with pytest.raises(ValueError, match=r"complex: 'a': torch keeps squares"):
        from_torch(adams(), params, names=NAMES)
    with pytest.raises(ValueError, match=r"complex: 'a': torch keeps squares"):
        from_torch(saved(ADAM), params, names=NAMES)  # before the first step, too
    buffer = {"momentum_buffer": np.ones(3, dtype)}
    with pytest.raises(ValueError, match=r"mis-typed: .*'a' is"):
        from_torch(saved(SGD, buffer), PARAMS, names=NAMES)


def test_a_complex_momentum_is_taken_as_it_is():
    params = PARAMS | {"a": jnp.zeros(3, np.complex64)}
    buffer = {"momentum_buffer": np.full(3, 1 + 2j, np.complex64)}
    state = from_torch(saved(SGD, buffer), params, names=NAMES)
    assert state[0].trace["a"].tolist() == [1 + 2j] * 3


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.full(3, 1j), np.float32),
        (np.full(3, 1.5), np.int32),
        (np.full(3, 1e300), np.float32),
        (np.full(3, 1e5, np.float32), np.float16),
    ],
)
def test_numbers_that_the_parameter_cannot_hold(x, dtype):
    with pytest.raises(ValueError, match=r"'a' must hold the tensor's numbers"):
        params_from_torch({"a": x}, {"a": jnp.zeros(3, dtype)})


def test_numbers_that_it_can_hold():
    like = {"a": jnp.zeros(3)}
    for x in (np.arange(3), np.array([0.0, np.inf, np.nan]), np.ones(3, np.float16)):
        found = params_from_torch({"a": x}, like)["a"]
        np.testing.assert_array_equal(found, x.astype(np.float32))


# ------------------------------------------------------- what was not trained


def test_what_has_no_state_is_named_and_frozen_on_request():
    state_dict = saved(ADAM, adam_state())
    found = convert_torch(state_dict, PARAMS, names=NAMES)
    assert "from now on here: 'b'. Were they frozen?" in str(found)
    grads = {"a": jnp.ones(3), "b": jnp.ones(3)}
    updates, _ = found.tx.update(grads, found.state, PARAMS)
    assert float(updates["b"][0]) == pytest.approx(-0.1)
    found = convert_torch(state_dict, PARAMS, names=NAMES, untrained="freeze")
    updates, _ = found.tx.update(grads, found.state, PARAMS)
    assert float(updates["b"][0]) == 0.0
    assert float(updates["a"][0]) < 0.0
    assert "frozen" not in str(found)


def test_a_fresh_optimizer_freezes_nothing():
    found = convert_torch(saved(ADAM), PARAMS, names=NAMES, untrained="freeze")
    assert "freeze" not in found.code
    assert found.notes == ()


# ------------------------------------------------------------- names and parts


def test_names_in_the_place_of_numbers():
    """As torch.distributed.checkpoint gathers a state_dict."""
    state_dict = {
        "state": {"a": adam_state(), "b": adam_state(7.0)},
        "param_groups": [{**ADAM, "params": ["a", "b"]}],
    }
    assert len(convert_torch(state_dict, PARAMS).groups) == 2
    checkpoint = {"model": {"a": np.ones(3), "b": np.ones(3)}, "optimizer": state_dict}
    assert convert_torch(checkpoint, PARAMS).step == 7


def test_param_names_that_are_too_few():
    with pytest.raises(ValueError, match=r"`names` .* \[2\] by group, got \[1\]"):
        from_torch(adams(param_names=["a"]), PARAMS)


def test_no_parameters():
    state_dict = {"state": {}, "param_groups": [{**SGD, "params": []}]}
    with pytest.raises(ValueError, match="must have parameters in its groups"):
        from_torch(state_dict, {}, names=[])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_wrappers(prefix):
    model = {f"{prefix}{name}": np.ones(3) for name in NAMES}
    with pytest.raises(ValueError, match=r"all begin as .*name_map=") as error:
        params_from_torch(model, PARAMS)
    pattern = str(error.value).split("name_map={'")[1].split("'")[0]
    pattern = pattern.replace("\\\\", "\\")
    assert params_from_torch(model, PARAMS, {pattern: ""})["a"][0] == 1


def test_what_is_to_be_reshaped():
    with pytest.raises(ValueError, match=r"\(3,\) -> 'a' \(3, 1, 1\); reshape it"):
        params_from_torch({"a": np.ones(3)}, {"a": jnp.ones((3, 1, 1))})
    with pytest.raises(ValueError, match=r"has not the 3 axes .* split or reshape"):
        params_from_torch(
            {"in_proj_weight": np.ones((6, 2))},
            {"query": {"kernel": jnp.ones((2, 1, 2))}},
            {"in_proj_weight": "query.kernel"},
        )


def test_parts_of_a_checkpoint():
    model = {"a": np.ones(3), "b": np.ones(3)}
    lightning = {"state_dict": model, "optimizer_states": [adams()], "epoch": 3}
    assert convert_torch(lightning, PARAMS).step == 5
    for unread in ({"optimizer_G": adams()}, {"optimizers": [adams(), adams()]}):
        with pytest.raises((ValueError, TypeError), match=r"must (be|have a part)"):
            convert_torch({"model": model, **unread}, PARAMS)
    with pytest.raises(TypeError, match=r"`state_dict` must be .*got dict.* with g"):
        convert_torch({"model": model, "optimizer": {"g": adams()}}, PARAMS)


# --------------------------------------------------------------------- way back


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_momentum_goes_back_before_a_step_here(dampening):
    buffer = {"momentum_buffer": np.full(3, 2.0, np.float32)}
    state_dict = saved(SGD, buffer, buffer, dampening=dampening)
    state = from_torch(state_dict, PARAMS, names=NAMES)
    back = to_torch(state, PARAMS, names=NAMES, like=state_dict, as_numpy=True)
    assert back["state"][1]["momentum_buffer"].tolist() == [2.0] * 3
    assert back["param_groups"][0]["dampening"] == dampening


def test_a_b2_that_changed_does_not_go_back_as_one_that_did_not():
    """PyTorch corrects by 1 - b^t of the present b, whatever stood before."""
    tx = adamx.adamw(0.1, b2=lambda step: jnp.where(step < 3, 0.9, 0.999))
    state = tx.init(PARAMS)
    for _ in range(6):
        _, state = tx.update(PARAMS, state, PARAMS)
    with pytest.raises(
        ValueError, match=r"bias correction of nu of 0\.27.*b has chang"
    ):
        to_torch(state, PARAMS, names=NAMES, as_numpy=True)
    tx = adamx.adamw(0.1, b2=lambda step: 0.9)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    back = to_torch(state, PARAMS, names=NAMES, as_numpy=True)
    assert back["param_groups"][0]["betas"] == (0.9, 0.9)


def test_a_kernel_of_what_is_no_weight_is_asked_for_where_both_ways_fit():
    """W of x @ W lies as a kernel does; the weight of a Linear does not."""
    x, like = np.arange(4.0).reshape(2, 2), {"d": {"kernel": jnp.zeros((2, 2))}}
    with pytest.raises(ValueError, match=r"'W' -> 'd/kernel' fits .*\(0, 1\)\) or"):
        params_from_torch({"W": x}, like, {"W": "d.kernel"})
    for axes in ((0, 1), (1, 0)):
        found = params_from_torch({"W": x}, like, {"W": ("d.kernel", axes)})
        np.testing.assert_array_equal(found["d"]["kernel"], x.transpose(axes))
    found = params_from_torch({"weight_ih": x}, like, {"weight_ih": "d.kernel"})
    np.testing.assert_array_equal(found["d"]["kernel"], x.T)
    like = {"d": {"kernel": jnp.zeros((3, 2))}}
    found = params_from_torch({"W": np.ones((2, 3))}, like, {"W": "d.kernel"})
    assert found["d"]["kernel"].shape == (3, 2)


def test_like_of_another_class():
    state = adamx.adamw(0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"`like` must be of AdamW, .* group of SGD"):
        to_torch(state, PARAMS, names=NAMES, like=saved(SGD), as_numpy=True)
    to_torch(state, PARAMS, names=NAMES, like=adams(), as_numpy=True)
