"""What States say of their moments: m_hat over the denominator is their step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import moments
from tests.helpers import some

SHAPE = (6, 5)
# By factory, arguments; and what the update is of m_hat / denominator.
WHOLE = {
    "adam": (adamx.scale_by_adam, {"b2": 0.97, "eps": 1e-3}),
    "adam, eps_root": (adamx.scale_by_adam, {"eps_root": 1e-2}),
    "amsgrad": (adamx.scale_by_amsgrad, {"eps": 1e-3}),
    "amsgrad, of nu": (adamx.scale_by_amsgrad, {"maximum_of": "nu", "eps": 1e-3}),
    "amsgrad, uncorrected": (
        adamx.scale_by_amsgrad,
        {"bias_correction_mu": False, "bias_correction_nu": False},
    ),
    "adamax": (adamx.scale_by_adamax, {"b2": 0.9, "eps": 1e-2}),
    "adopt": (adamx.scale_by_adopt, {"b2": 0.97}),
    "ademamix": (adamx.scale_by_ademamix, {"alpha": 4.0, "eps": 1e-3}),
    "adam_mini": (adamx.scale_by_adam_mini, {"eps": 1e-3}),
    "sparse_adam": (adamx.scale_by_sparse_adam, {"eps": 1e-3}),
    "sparse_adam, by row": (adamx.scale_by_sparse_adam, {"per_row_count": True}),
    "rms": (adamx.scale_by_rms, {"eps": 1e-3}),
    "rms, outside": (adamx.scale_by_rms, {"eps": 1e-3, "eps_in_sqrt": False}),
    "rms, centered": (adamx.scale_by_rms, {"centered": True, "bias_correction": True}),
    "int8": (
        adamx.scale_by_adam,
        {
            "mu_dtype": adamx.codecs.int8("column", rounding="nearest", min_size=0),
            "nu_dtype": adamx.codecs.int8("column", rounding="nearest", min_size=0),
        },
    ),
}


def run(tx, steps=4):
    params = {"a": {"w": jnp.ones(SHAPE)}}
    state = tx.init(params)
    for seed in range(steps):
        noise = np.random.default_rng(seed).standard_normal(SHAPE)
        noise *= 10.0 ** np.arange(-4, 1)
        grads = {"a": {"w": jnp.asarray(noise, jnp.float32)}}
        updates, state = jax.jit(tx.update)(grads, state, params)
    return grads["a"]["w"], updates["a"]["w"], state


def estimate(state, gradient):
    like = {"a": {"w": gradient}}
    return moments.estimates_by_path(state.estimates(), like, like)["a/w"]


# Quickly: of each way to a denominator, the one with the most in it.
QUICK = (
    *("adam, eps_root", "amsgrad, uncorrected", "adopt", "ademamix", "adam_mini"),
    *("sparse_adam, by row", "rms, centered", "int8"),
)


@pytest.mark.parametrize("name", some(WHOLE, *QUICK))
def test_the_step_is_the_mean_over_the_denominator(name):
    factory, arguments = WHOLE[name]
    gradient, update, state = run(factory(**arguments))
    mean, root, denominator = estimate(state, gradient)
    # Codes are rounded behind the step that was taken with what they stand for.
    tolerance = {"atol": 0.05} if name == "int8" else {"rtol": 3e-6, "atol": 3e-9}
    np.testing.assert_allclose(mean / denominator, update, **{"rtol": 0} | tolerance)
    assert np.all(np.asarray(root) >= 0)
    assert np.all(np.asarray(denominator) >= np.asarray(root) * (1 - 1e-6))
