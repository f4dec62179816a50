"""Bad input of conversions from and to PyTorch: what is wrong, where, what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.interop import (
    convert_torch,
    from_torch,
    load_torch,
    params_from_torch,
    params_to_torch,
    torch_optimizer,
    uncorrected_eps,
)

PARAMS = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
MODEL = {"dense.weight": np.zeros((2, 3)), "dense.bias": np.zeros(2)}
NAMES = ["dense.weight", "dense.bias"]
BETAS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
ADAM = {**BETAS, "weight_decay": 0.0, "amsgrad": False}
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.0}


def moments(shape, step=1.0, dtype=np.float32):
    zeros = np.zeros(shape, dtype)
    return {"step": np.float32(step), "exp_avg": zeros, "exp_avg_sq": zeros}


def saved(group=ADAM, first=None, second=None, **more):
    first = moments((2, 3)) if first is None else first
    second = moments((2,)) if second is None else second
    groups = [{**group, **more, "params": [0, 1]}]
    return {"state": {0: first, 1: second}, "param_groups": groups}


BITS = {"step": 1, "state1": np.zeros((2, 3), np.uint8), "qmap1": np.zeros(256)}
BAD = {
    "no state_dict": (
        {"w": 1},
        {},
        TypeError,
        r"`state_dict` must be .*with w; .*part",
    ),
    "a model's": (MODEL, {}, TypeError, r"`state_dict` must be optimizer\.state_dict"),
    "no names": (
        saved(),
        {"names": None},
        ValueError,
        r"`names` must be given: .*number",
    ),
    "too few names": (
        saved(),
        {"names": ["dense.weight"]},
        ValueError,
        r"`names` must have .*\[2\] by group, got \[1\]",
    ),
    "a name twice": (
        saved(),
        {"names": ["a", "a"]},
        ValueError,
        r"must differ, got 'a'",
    ),
    "names of what": (
        saved(),
        {"names": [1, 2]},
        TypeError,
        r"`names` must be of text",
    ),
    "names as text": (saved(), {"names": "ab"}, TypeError, r"`names` must be a list"),
    "a model's names for two groups": (
        saved() | {"param_groups": [{**ADAM, "params": [i]} for i in (0, 1)]},
        {"names": MODEL},
        ValueError,
        r"`names` must be a list of names for each of 2 groups",
    ),
    "all at once": (
        saved(first=moments((4, 4))),
        {"names": ["dense.weight", "other.bias"]},
        ValueError,
        r"(?s)nothing was converted.*missing: 'dense/bias'; untrained='freeze'.*"
        r"extra: 'other\.bias' -> 'other/bias', no such.*mis-shaped: 'dense\.weight' "
        r"\(4, 4\), by \(1, 0\) \(4, 4\) -> 'dense/kernel' \(3, 2\).*`name_map`",
    ),
    "axes that fit another way": (
        saved(first=moments((3, 2))),
        {},
        ValueError,
        r"\(3, 2\), by \(1, 0\) \(2, 3\).*other axes fit: give \(path, permutation\)",
    ),
    "axes of another rank": (
        saved(first=moments((2, 3, 1, 1))),
        {},
        ValueError,
        r"'dense\.weight' \(2, 3, 1, 1\) has not the 2 axes",
    ),
    "two for one": (
        saved(),
        {"name_map": {"bias": "weight"}},
        ValueError,
        r"ambiguous: 'dense\.bias' and 'dense\.weight' -> 'dense/kernel'",
    ),
    "left out, but trained": (
        saved(),
        {"name_map": {"bias": None}},
        ValueError,
        r"'dense\.bias', trained there",
    ),
    "Adam or AdamW": (
        saved(weight_decay=0.1),
        {},
        ValueError,
        r"`optimizer` must be given: .* Adam or AdamW.*optimizer='AdamW'",
    ),
    "another class": (
        saved(),
        {"optimizer": "SGD"},
        ValueError,
        r"is of, Adam or AdamW, got 'SGD'",
    ),
    "no class": (
        saved(),
        {"optimizer": "LBFGS"},
        ValueError,
        r"`optimizer` .* 'LBFGS'",
    ),
    "a class without a counterpart": (
        saved({"lr": 0.1, "rho": 0.9, "eps": 1e-6}),
        {},
        ValueError,
        r"must be of Adam, .*got a group with lr, rho, eps",
    ),
    "a moment is missing": (
        saved(first={"step": 1.0, "exp_avg": np.zeros((2, 3))}, amsgrad=True),
        {},
        ValueError,
        r"(?s)missing: 'exp_avg_sq' of 'dense\.weight'.*missing: 'max_exp_avg_sq' of",
    ),
    "of timm, cautious": (
        saved(caution=True),
        {},
        ValueError,
        r"without 'caution', got a group with it on.*adamx\.cautious",
    ),
    "a moment is missing, of Lion": (
        saved({"lr": 0.1, "betas": (0.9, 0.99)}, {"step": 3}, {"step": 3}),
        {},
        ValueError,
        r"missing: 'exp_avg' of 'dense\.weight'",
    ),
    "no Lion": (
        saved({"lr": 0.1, "betas": (0.9, 0.99)}),
        {},
        ValueError,
        r"must be of Adam, .* Lion, got a group with lr, betas",
    ),
    "a moment is unknown": (
        saved(first=moments((2, 3)) | {"other": np.zeros(3)}),
        {},
        ValueError,
        r"unknown: 'other' of 'dense\.weight'",
    ),
    "moments of two shapes": (
        saved(first=moments((2, 3)) | {"exp_avg": np.zeros((2, 2))}),
        {},
        ValueError,
        r"mis-shaped: 'dense\.weight' has moments of shapes",
    ),
    "complex": (
        saved(second=moments((2,), dtype=np.complex64)),
        {},
        ValueError,
        r"complex: 'exp_avg' of 'dense\.bias': torch keeps squares",
    ),
    "a state of nobody": (
        saved() | {"state": {7: moments((2,))}},
        {},
        ValueError,
        r"states of the parameters in its groups, got some of others: '7'",
    ),
    "dampening before its first step": (
        {"state": {}, "param_groups": [{**SGD, "params": [0, 1]}]},
        {},
        ValueError,
        r"momentum_buffer of 'dense\.weight': with dampening",
    ),
    "bitsandbytes without a class": (
        saved(BETAS, first=BITS),
        {},
        ValueError,
        r"`optimizer` must be given for a state_dict of bitsandbytes.*AdamW8bit",
    ),
    "bitsandbytes without scales": (
        saved({**BETAS, "weight_decay": 0.0}, first=BITS | {"state2": BITS["state1"]}),
        {"optimizer": "Adam8bit"},
        ValueError,
        r"'qmap1' and 'absmax1' beside 'state1' of 'dense\.weight'",
    ),
    "rates of other groups": (
        saved(),
        {"learning_rate": [0.1, 0.2]},
        ValueError,
        r"`learning_rate` must be one for all, or a list of 1",
    ),
    "untrained": (saved(), {"untrained": "skip"}, ValueError, r"`untrained` must be"),
    "a map of what": (
        saved(),
        {"name_map": 3},
        TypeError,
        r"`name_map` must be a dict",
    ),
    "a pattern": (saved(), {"name_map": {"(": "a"}}, ValueError, r"`name_map` .*'\('"),
    "a permutation": (
        saved(),
        {"name_map": {"w": ("a", (0, 0))}},
        TypeError,
        r"`name_map` at 'w' must give a path, \(path, permutation",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_from_torch(name):
    state_dict, arguments, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        from_torch(state_dict, PARAMS, **{"names": NAMES, **arguments})
    with pytest.raises(kind, match=message):
        torch_optimizer(state_dict, PARAMS, **{"names": NAMES, **arguments})


def test_a_scale_for_each_block():
    codes = np.zeros((30, 20), np.uint8)
    state = {"step": 1}
    for i in (1, 2):
        state |= {
            f"state{i}": codes,
            f"qmap{i}": np.zeros(256),
            f"absmax{i}": np.ones(7),
        }
    group = {**BETAS, "weight_decay": 0.0, "params": [0]}
    with pytest.raises(ValueError, match=r"each block of \(256, .* got 7 for 600"):
        from_torch(
            {"state": {0: state}, "param_groups": [group]},
            {"t": {"embedding": jnp.zeros((30, 20))}},
            names=["t.weight"],
            optimizer="Adam8bit",
        )


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (MODEL | {"n.running_mean": np.ones(2)}, PARAMS, r"extra: 'n\.running_mean'"),
        ({"dense.bias": np.ones(2)}, PARAMS, r"missing: 'dense/kernel'"),
        (
            {"a.weight": np.ones((2, 2))},
            {"a": {"v": np.ones((2, 2))}},
            r"missing: 'a/v'",
        ),
        (
            {"a.weight": np.ones((2, 2))},
            {"a": {"kernel": jnp.ones((2, 2)), "embedding": jnp.ones((2, 2))}},
            r"ambiguous: 'a\.weight' -> 'a/kernel', 'a/embedding'",
        ),
        (
            {"a.in_proj": np.ones((2, 2))},
            {"a": {"kernel_in": jnp.ones((2, 2))}},
            r"missing: 'a/kernel_in'",
        ),
    ],
)
def test_params_from_torch(model, params, message):
    with pytest.raises(ValueError, match=message):
        params_from_torch(model, params)


def test_axes_without_a_rule():
    with pytest.raises(ValueError, match=r"no rule for the 2 axes of 'v'; give"):
        params_from_torch(
            {"a.weight": np.ones((2, 2))},
            {"a": {"v": jnp.ones((2, 2))}},
            {"weight": "v"},
        )


def test_without_a_tree_two_axes_are_ambiguous():
    with pytest.raises(
        ValueError, match=r"'a\.weight' \(2, 3\) -> 'a/kernel' of a Linear"
    ):
        convert_torch({"model": {"a.weight": np.ones((2, 3))}})


@pytest.mark.parametrize(
    ("checkpoint", "kind", "message"),
    [
        (3, TypeError, r"`checkpoint` must be a dict"),
        ({"epoch": 3}, ValueError, r"part 'model' or 'optimizer', got epoch"),
        ({"model": {"a": 3}}, TypeError, r"`checkpoint` must be a model's state_dict"),
        (
            {"optimizer": saved()},
            ValueError,
            r"`params` must be given for a checkpoint",
        ),
    ],
)
def test_convert_torch(checkpoint, kind, message):
    with pytest.raises(kind, match=message):
        convert_torch(checkpoint, names=NAMES)


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_a_missing_extra_is_named(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    suffix = {"torch": ".pt", "safetensors": ".safetensors"}[missing]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install .*(torch|safetensors)"):
        load_torch(path)
    if missing == "torch":
        with pytest.raises(ImportError, match=r"adamx\[torch\].*as_numpy"):
            params_to_torch(PARAMS, NAMES)


def test_uncorrected_eps():
    with pytest.raises(ValueError, match="`eps` must be"):
        uncorrected_eps(-1.0)
    with pytest.raises(ValueError, match="`b2` must be"):
        uncorrected_eps(1e-8, 1.0)
    with pytest.raises(TypeError, match="`b2` must be a number that is known"):
        jax.jit(lambda b: uncorrected_eps(1e-8, b)(0))(0.9)
