"""Runs of PyTorch that go on here, and back; without PyTorch, from stored runs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.interop import (
    convert_torch,
    from_torch,
    to_torch,
    torch_optimizer,
)
from tests import torch_runs
from tests.torch_runs import (
    AFTER,
    BEFORE,
    CASES,
    NAME_MAP,
    NAMES,
    RATES,
    SHAPES,
    SLOW,
)

RUNS = np.load(torch_runs.PATH)
PATHS = {
    "embed.weight": ("embed", "embedding", None),
    "layers.0.weight": ("dense_0", "kernel", (1, 0)),
    "layers.1.weight": ("dense_1", "kernel", (1, 0)),
    "conv.weight": ("conv", "kernel", (2, 3, 1, 0)),
    "layers.0.bias": ("dense_0", "bias", None),
    "norm.weight": ("norm", "scale", None),
    "norm.bias": ("norm", "bias", None),
}


def placed(values, lead=0):
    """A tree here of torch's arrays, by the table above; `lead` axes stay in front."""
    tree = {}
    for name, (layer, last, axes) in PATHS.items():
        x = np.asarray(values[name])
        if axes is not None:
            x = x.transpose(*range(lead), *(i + lead for i in axes))
        tree.setdefault(layer, {})[last] = jnp.asarray(x)
    return tree


def unplaced(tree):
    """Torch's arrays of a tree here."""
    return {
        name: np.transpose(tree[layer][last], np.argsort(axes))
        if axes
        else np.asarray(tree[layer][last])
        for name, (layer, last, axes) in PATHS.items()
    }


def split(vector):
    """Torch's arrays of `together`."""
    sizes = np.cumsum([np.prod(shape) for shape in SHAPES.values()])
    parts = np.split(vector, sizes[:-1])
    return {k: x.reshape(s) for (k, s), x in zip(SHAPES.items(), parts, strict=True)}


def run(tx, state, params, gradients):
    """Parameters after each step, and the last state."""

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def go(state, params, gradients):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        (_, state), trajectory = jax.lax.scan(step, (params, state), gradients)
        return state, trajectory

    return go(state, params, gradients)


@pytest.fixture(scope="module")
def continued():
    """By label: the parameters after each of 100 steps here, and the last state."""
    found = {}

    def get(label):
        if label not in found:
            saved = torch_runs.from_arrays(f"{label}/before", RUNS)
            start = placed(split(RUNS[f"{label}/points"][0]))
            tx = torch_optimizer(saved, start, NAME_MAP, names=NAMES)
            state = from_torch(saved, start, NAME_MAP, names=NAMES)
            later = {k: g[BEFORE:] for k, g in torch_runs.gradients(label).items()}
            found[label] = run(tx, state, start, placed(later, lead=1))
        return found[label]

    return get


LABELS = [
    pytest.param(label, marks=pytest.mark.slow if label in SLOW else ())
    for label in CASES
]


@pytest.mark.parametrize("label", LABELS)
def test_a_hundred_steps_are_those_of_torch(label, continued):
    _, trajectory = continued(label)
    start = split(RUNS[f"{label}/points"][0])
    for steps, point in zip(AFTER, RUNS[f"{label}/points"][1:], strict=True):
        ours = unplaced(jax.tree.map(lambda x, i=steps - 1: x[i], trajectory))
        theirs = split(point)
        for rate, names in zip(RATES, NAMES, strict=True):
            for name in names:
                error = np.max(np.abs(ours[name] - theirs[name]))
                assert error <= 2e-5 * rate * steps, (name, steps, error / rate / steps)
    for name, rate in (
        (n, r) for r, names in zip(RATES, NAMES, strict=True) for n in names
    ):
        assert np.max(np.abs(ours[name] - start[name])) > 3 * rate


def assert_same_state_dict(ours, theirs, rates=RATES):
    """Groups equal where both have a key; numbers close, as after 100 steps."""
    for mine, yours in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        for key, value in yours.items():
            if key not in ("foreach", "fused", "capturable", "differentiable"):
                want = list(value) if isinstance(value, tuple) else value
                got = list(mine[key]) if isinstance(mine[key], tuple) else mine[key]
                assert got == want, key
    assert ours["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        expected = {
            k: x for k, x in state.items() if k != "step" or k in ours["state"][i]
        }
        assert ours["state"][i].keys() == expected.keys(), i
        for key, x in expected.items():
            scale = 1.0 if key == "mu_product" else np.max(np.abs(x))
            np.testing.assert_allclose(
                ours["state"][i][key],
                x,
                rtol=1e-4,
                atol=1e-5 * scale,
                err_msg=f"{i} {key}",
            )


@pytest.mark.parametrize("label", LABELS)
def test_the_way_back_is_torchs_own_state_dict(label, continued):
    state, trajectory = continued(label)
    params = jax.tree.map(lambda x: x[-1], trajectory)
    theirs = torch_runs.from_arrays(f"{label}/after", RUNS)
    # What stands in no state: like has it. Its own numbers must not get through.
    like = {"state": {}, "param_groups": [dict(g) for g in theirs["param_groups"]]}
    for group in like["param_groups"]:
        group |= {
            k: 0.123 for k in ("lr", "eps", "alpha", "momentum_decay") if k in group
        }
    ours = to_torch(state, params, NAME_MAP, names=NAMES, like=like, as_numpy=True)
    assert_same_state_dict(ours, theirs)


def test_the_printed_code_makes_the_transformation():
    for label in CASES:
        saved = torch_runs.from_arrays(f"{label}/before", RUNS)
        params = placed(split(RUNS[f"{label}/points"][0]))
        code = convert_torch({"optimizer": saved}, params, NAME_MAP, names=NAMES).code
        made = eval(code, {"adamx": adamx, "optax": optax})
        state = from_torch(saved, params, NAME_MAP, names=NAMES)
        like = jax.eval_shape(made.init, params)
        assert jax.tree.structure(like) == jax.tree.structure(state), label
        for x, y in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype), label
