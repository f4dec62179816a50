"""States of PyTorch, made by hand: names, axes, groups, counts; there and back."""

import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import __main__
from adamx.interop import (
    from_torch,
    params_from_torch,
    params_to_torch,
    restore,
    to_flat,
    to_torch,
    torch_optimizer,
)
from adamx.interop._torch_rows import rules_for
from tests.helpers import EXAMPLES

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
DENSE = {"dense": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}


def adam_state(*steps, shapes=((2, 2), (2,)), **group):
    """A state_dict of Adam with the steps that each parameter has taken."""
    states = {}
    for i, (t, shape) in enumerate(zip(steps, shapes, strict=False)):
        values = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
        states[i] = {"step": np.float32(t), "exp_avg": values, "exp_avg_sq": values**2}
    groups = [{"lr": 0.1, **ADAM, **group, "params": list(range(len(steps)))}]
    return {"state": states, "param_groups": groups}


def test_a_square_linear_is_transposed_by_rule():
    state = from_torch(adam_state(3, 3), DENSE, names=["dense.weight", "dense.bias"])
    assert state[0].mu["dense"]["kernel"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert state[0].nu["dense"]["bias"].tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("name", "path", "shape", "there"),
    [
        ("a.weight", "a/kernel", (2, 3), (3, 2)),
        ("a.weight", "a/kernel", (2, 3, 5), (5, 3, 2)),
        ("a.weight", "a/kernel", (2, 3, 5, 7), (5, 7, 3, 2)),
        ("a.weight", "a/kernel", (2, 3, 5, 7, 4), (5, 7, 4, 3, 2)),
        ("a.weight", "a/embedding", (2, 3), (2, 3)),
        ("a.weight", "a/scale", (2,), (2,)),
        ("a.weight", "a/weight", (2, 3), (2, 3)),  # Equinox has torch's axes
        ("pos_embed", "pos_embed", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_axes_follow_from_names_and_rank(name, path, shape, there):
    layer, _, last = path.rpartition("/")
    leaf = {last: jnp.zeros(there)}
    params = {layer: leaf} if layer else leaf
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = jax.tree.leaves(params_from_torch({name: x}, params))[0]
    assert found.shape == there
    back = params_to_torch(jax.tree.map(lambda _: found, params), [name], as_numpy=True)
    np.testing.assert_array_equal(back[name], x)


MAPS = {
    "regular expressions": {r"^net\.0\.": "dense.", "weight$": "kernel"},
    "a permutation": {
        r"^net\.0\.weight": ("dense/kernel", (0, 1)),
        r"^net\.0": "dense",
    },
    "a function": lambda name: "dense/" + {"w": "kernel", "b": "bias"}[name[6]],
    "a function with axes": lambda name: (
        ("dense/kernel", (0, 1)) if "weight" in name else "dense/bias"
    ),
    "a tensor left out": {"other": None, r"^net\.0": "dense"},
}


@pytest.mark.parametrize("kind", MAPS)
def test_name_maps(kind):
    model = {
        "net.0.weight": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "net.0.bias": np.ones(2),
    }
    if "left out" in kind:
        model["other.weight"] = np.ones(3)
    found = params_from_torch(model, DENSE, MAPS[kind])
    is_as_it_is = "axes" in kind or "permutation" in kind
    first_row = [1.0, 2.0] if is_as_it_is else [1.0, 3.0]
    assert found["dense"]["kernel"][0].tolist() == first_row


def test_parameters_with_unlike_steps_are_two_groups():
    saved = adam_state(3, 7)
    names = ["dense.weight", "dense.bias"]
    state = from_torch(saved, DENSE, names=names)
    flat = to_flat(state)
    label = "@group=%28%5E%7C%2F%29kernel%24"  # (^|/)kernel$
    assert int(flat[f"scale_by_adam/count{label}"]) == 3
    assert int(flat["scale_by_adam/count@group=default"]) == 7
    back = to_torch(state, DENSE, names=[names], as_numpy=True)
    assert [float(back["state"][i]["step"]) for i in (0, 1)] == [3.0, 7.0]


def test_a_parameter_without_a_state_has_taken_no_step():
    saved = adam_state(3)
    saved["param_groups"][0]["params"] = [0, 1]
    state = from_torch(saved, DENSE, names=["dense.weight", "dense.bias"])
    counts = [int(x) for k, x in to_flat(state).items() if "adam/count" in k]
    assert sorted(counts) == [0, 3]


def test_the_state_is_what_the_optimizer_would_have_recorded():
    """Against a run of our own: its state, to torch and back, is itself."""
    for tx in (
        adamx.radam(0.1, eps=1e-2),
        adamx.nadam(0.1, momentum_decay=4e-3),
        adamx.amsgrad(0.1, b2=0.99, maximum_of="nu"),
    ):
        state, params = tx.init(DENSE), jax.tree.map(jnp.ones_like, DENSE)
        for _ in range(9):
            _, state = tx.update(params, state, params)
        names = ["dense.weight", "dense.bias"]
        saved = to_torch(state, params, names=names, as_numpy=True)
        again = to_flat(from_torch(saved, params))
        for key, x in to_flat(state).items():
            # eps of RAdam: a constant here, beside the uncorrected root there
            np.testing.assert_allclose(again[key], x, rtol=2e-6, atol=1e-7, err_msg=key)


def test_names_come_from_the_state_dict_where_it_has_them():
    saved = adam_state(1, 1)
    saved["param_groups"][0]["param_names"] = ["dense.weight", "dense.bias"]
    state = from_torch(saved, DENSE)
    assert int(state[0].count) == 1


def test_names_of_a_model_leave_out_buffers_and_ties():
    weight = np.ones((2, 2), np.float32)
    model = {
        "dense.weight": weight,
        "dense.bias": np.ones(2),
        "norm.running_mean": np.ones(2),
        "norm.num_batches_tracked": np.array(3),
        "head.weight": weight,
    }
    state = from_torch(adam_state(1, 1), DENSE, names=model)
    assert state[0].mu["dense"]["bias"].tolist() == [1.0, 2.0]


def test_a_schedule_goes_on_where_torch_was():
    rate = adamx.schedules.linear(1.0, 0.0, 10)
    arguments = {"names": ["dense.weight", "dense.bias"], "learning_rate": rate}
    tx = torch_optimizer(adam_state(4, 4), DENSE, **arguments)
    state = from_torch(adam_state(4, 4), DENSE, **arguments)
    _, state = tx.update(DENSE, state, DENSE)
    assert adamx.read(state).learning_rate == pytest.approx(0.6)


def test_what_torch_does_not_train_is_frozen_on_request():
    params = {**DENSE, "extra": jnp.ones(1)}
    arguments = {"names": ["dense.weight", "dense.bias"], "untrained": "freeze"}
    tx = torch_optimizer(adam_state(4, 4), params, **arguments)
    state = from_torch(adam_state(4, 4), params, **arguments)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, state, params)
    assert float(updates["extra"][0]) == 0.0
    assert float(updates["dense"]["bias"][0]) != 0.0


def test_nothing_shares_the_memory_of_torch():
    """PyTorch writes into its tensors; JAX keeps NumPy's memory where it can."""
    room = np.zeros(4096 + 16, np.float32)  # JAX keeps memory that is aligned
    start = -room.ctypes.data % 64 // 4
    x = room[start : start + 4096].reshape(64, 64)
    x[:] = np.arange(4096).reshape(64, 64)
    saved = adam_state(1)
    saved["state"][0] |= {"exp_avg": x, "exp_avg_sq": x}
    like = {"table": {"embedding": jnp.zeros((64, 64))}}
    state = from_torch(saved, like, names=["table.weight"])
    params = params_from_torch({"table.weight": x}, like)
    x[:] = -1
    for tree in (state[0].mu, state[0].nu, params):
        assert float(tree["table"]["embedding"][-1, -1]) == 4095.0


def test_shapes_serve_as_parameters_and_hold_no_memory():
    shapes = jax.eval_shape(lambda: DENSE)
    names = ["dense.weight", "dense.bias"]
    a = from_torch(adam_state(2, 2), shapes, names=names)
    b = from_torch(adam_state(2, 2), DENSE, names=names)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("layout", ["blocks of 256", "blocks of 2048", "one scale"])
def test_eight_bit_states_are_decoded(layout):
    rng = np.random.default_rng(0)
    shape, size = (30, 20), 600
    qmap = np.linspace(-1, 1, 256).astype(np.float32)
    block = {"blocks of 256": 256, "blocks of 2048": 2048, "one scale": size}[layout]
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    scales = rng.uniform(1, 9, -(-size // block)).astype(np.float32)
    expected = np.array(
        [qmap[c] * scales[i // block] for i, c in enumerate(codes.ravel())]
    ).reshape(shape)
    part = "max" if layout == "one scale" else "absmax"
    state = {"step": 5}
    for i in (1, 2):
        state |= {f"state{i}": codes, f"qmap{i}": qmap, f"{part}{i}": scales}
    if part == "max":
        state |= {"new_max1": scales, "new_max2": scales}
    group = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    saved = {"state": {0: state}, "param_groups": [{**group, "params": [0]}]}
    params = {"table": {"embedding": jnp.zeros(shape)}}
    found = from_torch(saved, params, names=["table.weight"], optimizer="AdamW8bit")
    np.testing.assert_array_equal(found[0].mu["table"]["embedding"], expected)
    assert float(found[1].applied_weight_decay) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [0.1, optax.constant_schedule(0.1)])
@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("exp_avg", {"betas": (0.9, 0.99), "weight_decay": 0.0}),
        ("momentum_buffer", {"momentum": 0.9, "dampening": 0, "nesterov": False}),
    ],
)
def test_a_momentum_without_a_count_goes_back(key, group, rate):
    """Lion and SGD: that no step was taken here must not lose what was gathered."""
    arrays = [np.full((2, 2), 3.0, np.float32), np.full(2, 4.0, np.float32)]
    saved = {
        "state": {i: {key: x} for i, x in enumerate(arrays)},
        "param_groups": [{"lr": 0.1, **group, "params": [0, 1]}],
    }
    names = ["dense.weight", "dense.bias"]
    state = from_torch(saved, DENSE, names=names, learning_rate=rate, step=0)
    back = to_torch(state, DENSE, names=names, like=saved, as_numpy=True)
    for i, x in enumerate(arrays):
        np.testing.assert_array_equal(back["state"][i][key], x)


def test_a_wrapped_and_encoded_state_goes_back():
    tx = adamx.guard(
        optax.chain(
            adamx.clip_by_global_norm(1.0),
            adamx.adamw(0.1, mu_dtype=adamx.codecs.int8()),
        )
    )
    state, params = tx.init(DENSE), jax.tree.map(jnp.ones_like, DENSE)
    _, state = tx.update(params, state, params)
    names = ["dense.weight", "dense.bias"]
    back = to_torch(state, DENSE, names=names, as_numpy=True)
    assert back["param_groups"][0]["decoupled_weight_decay"] is True
    mean = back["state"][0]["exp_avg"]
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, 0.1 / np.sqrt(6), rtol=4e-3)


def test_a_momentum_behind_the_rate_goes_back_in_torchs_units():
    tx = adamx.rmsprop(0.5, eps_in_sqrt=False, momentum=0.9)
    state, params = tx.init(DENSE), jax.tree.map(jnp.ones_like, DENSE)
    _, state = tx.update(params, state, params)
    names = ["dense.weight", "dense.bias"]
    back = to_torch(state, DENSE, names=names, as_numpy=True)
    expected = 1 / (np.sqrt(0.1) + 1e-8)
    np.testing.assert_allclose(back["state"][1]["momentum_buffer"], expected, rtol=1e-6)


def test_bfloat16_goes_and_comes_back():
    x = np.array([[1.0, 2.5]], jnp.bfloat16)
    params = {"table": {"embedding": jnp.zeros((1, 2), jnp.bfloat16)}}
    found = params_from_torch({"table.weight": x}, params)
    assert found["table"]["embedding"].dtype == jnp.bfloat16
    back = params_to_torch(found, ["table.weight"], as_numpy=True)["table.weight"]
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(
    ("sets", "rules"),
    [
        (
            [["a/kernel", "b/c/kernel"], ["a/bias", "n/scale"]],
            ["(^|/)kernel$", "(^|/)(bias|scale)$"],
        ),
        ([["a/b/w", "a/c/w"], ["b/b/w", "b/b/v"]], ["^a(/|$)", "^b(/|$)"]),
        ([["a/b/w"], ["a/c/w"], ["a.b"]], ["^a/b(/|$)", "^a/c(/|$)", r"(^|/)a\.b$"]),
    ],
)
def test_rules_are_short_and_take_only_their_own(sets, rules):
    assert rules_for(sets) == rules


def test_rules_name_each_path_where_nothing_shorter_does():
    sets = [[f"l{i}/w" for i in range(0, 20, 2)], [f"l{i}/w" for i in range(1, 20, 2)]]
    for own, rule in zip(sets, rules_for(sets), strict=True):
        found = [p for part in sets for p in part if re.search(rule, p)]
        assert sorted(found) == sorted(own)


# ------------------------------------------------------------------------- the command


def test_the_command_writes_a_checkpoint(monkeypatch, tmp_path, capsys):
    model = {"dense.weight": np.ones((2, 3), np.float32), "dense.bias": np.ones(2)}
    checkpoint = {"model": model, "optimizer": adam_state(7, 7, shapes=((2, 3), (2,)))}
    monkeypatch.setattr("adamx.interop.load_torch", lambda path: checkpoint)
    (tmp_path / "map.json").write_text('{"weight$": "kernel"}')
    out = tmp_path / "out"
    command = ["convert", "run.pt", str(out)]
    assert __main__.main([*command, "--map", str(tmp_path / "map.json")]) == 0
    printed = capsys.readouterr().out
    assert "adamx.adam(0.1, b1=0.9, b2=0.999, eps=1e-08)" in printed
    flat = restore(out, step=7)
    assert flat["params/dense/kernel"].shape == (3, 2)
    assert flat["state/scale_by_adam/mu/dense/kernel"].tolist() == [
        [1, 4],
        [2, 5],
        [3, 6],
    ]
    shapes = tmp_path / "shapes.json"
    shapes.write_text('{"dense": {"kernel": [3, 2], "bias": [3]}}')
    assert __main__.main([*command, "--shapes", str(shapes)]) == 2
    assert "mis-shaped: 'dense.bias' (2,)" in capsys.readouterr().err
    shapes.write_text("{")
    assert __main__.main([*command, "--map", str(shapes)]) == 2
    assert "must be JSON" in capsys.readouterr().err


def test_the_example_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit, match=r"pip install 'adamx\[examples,torch\]'"):
        runpy.run_path(str(EXAMPLES / "from_torch.py"))
    sys.modules.pop("_style")
