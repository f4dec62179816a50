"""A Flax nnx model with more than parameters, where parameters are wanted."""

import flax
import jax.numpy as jnp
import pytest
from flax import nnx

import adamx

pytestmark = pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="models are no trees before flax 0.12",
)
X = jnp.ones((3, 4, 2))


class Net(nnx.Module):
    def __init__(self, rngs, dropout=False, norm=False):
        self.hidden = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None

    def __call__(self, x):
        x = self.hidden(x)
        return x if self.norm is None else self.norm(x)


def loss_fn(model, x):
    return jnp.mean(model(x) ** 2)


CALLS = {
    "sharpness": lambda model: adamx.sharpness(
        loss_fn, model, adamx.adam(0.1).init(nnx.state(model, nnx.Param)), X[0]
    ),
    "lr_sweep": lambda model: adamx.lr_sweep(
        loss_fn, model, X, adamx.adam, [0.1, 0.2], progress=False
    ),
    "lr_range_test": lambda model: adamx.lr_range_test(
        loss_fn, model, X, adamx.adam, progress=False
    ),
    "describe": lambda model: adamx.describe(adamx.adam(0.1), model),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("more", "found"),
    [({"norm": True}, "BatchStat at 'norm/mean'"), ({"dropout": True}, "RngCount at")],
)
def test_what_is_not_trained_is_refused(name, more, found):
    with pytest.raises(TypeError, match=rf"`params` must .*nnx\.{found}.*nnx\.split"):
        CALLS[name](Net(nnx.Rngs(0), **more))


def test_the_remedy_works_and_a_bare_model_passes():
    bare = Net(nnx.Rngs(0))
    assert adamx.describe(adamx.adam(0.1), bare)
    graph, params, rest = nnx.split(Net(nnx.Rngs(0), norm=True), nnx.Param, ...)

    def of_params(params, x):
        return loss_fn(nnx.merge(graph, params, rest, copy=True), x)

    assert adamx.describe(adamx.adam(0.1), params)
    state = adamx.adam(0.1).init(params)
    assert adamx.sharpness(of_params, params, state, X[0]).hessian > 0
