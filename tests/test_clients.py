"""Training steps as users write them: flax.nnx, flax linen, Equinox; whole and fused.

A table of wrappers times a table of clients. All train one small network from the same
weights; a loop over plain dictionaries says where they must arrive.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import adamx

LR, STEPS, WIDTH = 2e-2, 40, 16


@dataclasses.dataclass(frozen=True)
class Row:
    """A wrapper around AdamW.

    Attributes:
      name: of the wrapper.
      make: makes the transformation.
      between: what is done to the optimizer state after half of the steps.
      is_scaled: whether the loss is to be multiplied by `loss_scale(state)`.
      dtype: of the parameters.
      tolerance: by how much losses and weights may differ from the plain loop's,
        relatively, since XLA fuses each client's program in its own way. (On CPU, jax
        0.10, all are the same bits but for loss_scaling under `fused`, 5e-7.)
      least: what the last loss may be of the first.
      every: gradients per step of the optimizer.
    """

    name: str
    make: Callable[[], Any] = lambda: adamx.adamw(LR)
    between: Callable[[Any], Any] = lambda state: state
    is_scaled: bool = False
    dtype: Any = jnp.float32
    tolerance: float = 1e-5
    least: float = 0.2
    every: int = 1


ROWS = [
    Row("none"),
    Row(
        "with_hyperparams",
        lambda: adamx.with_hyperparams(adamx.adamw, LR),
        between=lambda state: adamx.set_hyperparams(
            state, learning_rate=LR / 9, b2=0.9
        ),
    ),
    Row("loss_scaling", lambda: adamx.loss_scaling(adamx.adamw(LR)), is_scaled=True),
    Row(
        "master_weights",
        lambda: adamx.master_weights(adamx.adamw(LR)),
        dtype=jnp.bfloat16,
        tolerance=2e-2,  # a few units of bfloat16
    ),
    Row("bucketed", lambda: adamx.bucketed(adamx.adamw(LR))),
    Row("guard", lambda: adamx.guard(adamx.adamw(LR), spike_zscore=50.0)),
    Row("accumulate", lambda: adamx.accumulate(adamx.adamw(2 * LR), 2), every=2),
    Row(
        "groups",
        lambda: adamx.groups(
            [("kernel", adamx.adamw(LR, weight_decay=0.01))], adamx.adam(LR)
        ),
    ),
    Row(
        "stages",
        lambda: adamx.stages(
            [(adamx.adamw(LR), STEPS // 2), (adamx.sgd(LR / 2, 0.9), None)]
        ),
    ),
    Row("adam_to_sgd", lambda: adamx.adam_to_sgd(LR, total_steps=STEPS)),
]


# --------------------------------------------------------------- the task, and the loop


def _data():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (64, 2)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x[:, :1]) * x[:, 1:])


def _weights(dtype):
    rng = np.random.default_rng(1)
    shapes = (
        {"kernel": (2, WIDTH), "bias": (WIDTH,)},
        {"kernel": (WIDTH, 1), "bias": (1,)},
    )
    layers = [
        {k: jnp.asarray(rng.normal(0, 0.5, s), dtype) for k, s in layer.items()}
        for layer in shapes
    ]
    return {"Dense_0": layers[0], "Dense_1": layers[1]}


def _apply(params, x):
    for i, name in enumerate(sorted(params)):
        layer = params[name]
        x = x.astype(layer["kernel"].dtype) @ layer["kernel"] + layer["bias"]
        x = jnp.tanh(x) if i == 0 else x
    return x


def _error(predicted, y):
    return jnp.mean((predicted.astype(jnp.float32) - y) ** 2)


def _factor(row, state):
    return adamx.loss_scale(state) if row.is_scaled else 1.0


def _run(row, step, get, put):
    """The losses of a run; the state is changed halfway, where it is kept."""
    losses = []
    for i in range(STEPS):
        if i == STEPS // 2:
            put(row.between(get()))
        losses.append(float(step()))
    return np.array(losses)


def functional(row, tx, params, predict):
    """The plain loop: jax.grad, update, apply_updates."""
    x, y = _data()
    held = [params, tx.init(params)]

    @jax.jit
    def train(params, state):
        factor = _factor(row, state)
        loss = lambda p: factor * _error(predict(p, x), y)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state, value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = _run(row, step, lambda: held[1], functools.partial(held.__setitem__, 1))
    return losses, *held


# ---------------------------------------------------------------------- the clients
# Each: function of a row and of whether to run `fused`; returns the losses, the weights
# as plain dictionaries and what `read` is given.


class _Nnx(nnx.Module):
    def __init__(self, weights):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(2, WIDTH, rngs=rngs)
        self.second = nnx.Linear(WIDTH, 1, rngs=rngs)
        for layer, name in ((self.first, "Dense_0"), (self.second, "Dense_1")):
            layer.kernel = nnx.Param(weights[name]["kernel"])
            layer.bias = nnx.Param(weights[name]["bias"])

    def __call__(self, x):
        return _apply(self.weights(), x)

    def weights(self):
        layers = {"Dense_0": self.first, "Dense_1": self.second}
        return {
            k: {"kernel": m.kernel[...], "bias": m.bias[...]} for k, m in layers.items()
        }


def flax_nnx(row):
    """`nnx.Optimizer`, with wrt=nnx.Param."""
    x, y = _data()
    model = _Nnx(_weights(row.dtype))
    optimizer = nnx.Optimizer(model, row.make(), wrt=nnx.Param)
    # Before flax 0.11 the optimizer held the model itself.
    takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters

    @nnx.jit
    def train(model, optimizer):
        factor = _factor(row, optimizer.opt_state)
        loss = lambda model: factor * _error(model(x), y)  # noqa: E731
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(*[model] * takes_model, gradients)
        return value / factor

    losses = _run(
        row,
        lambda: train(model, optimizer),
        lambda: optimizer.opt_state,
        functools.partial(setattr, optimizer, "opt_state"),
    )
    return losses, model.weights(), optimizer


def flax_nnx_fused(row):
    """The model is split into its graph and its parameters, and updated at the end."""
    x, y = _data()
    model = _Nnx(_weights(row.dtype))
    init, fused_step = adamx.fused(row.make())
    graph, params = nnx.split(model, nnx.Param)
    held = [params, init(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state):
        factor = _factor(row, state)
        loss = lambda p: factor * _error(nnx.merge(graph, p)(x), y)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        return *fused_step(gradients, state, params), value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = _run(row, step, lambda: held[1], functools.partial(held.__setitem__, 1))
    nnx.update(model, held[0])
    return losses, model.weights(), held[1]


class _Linen(flax.linen.Module):
    dtype: Any

    @flax.linen.compact
    def __call__(self, x):
        x = jnp.tanh(flax.linen.Dense(WIDTH, dtype=self.dtype)(x))
        return flax.linen.Dense(1, dtype=self.dtype)(x)


def flax_linen(row, is_fused=False):
    """`TrainState.apply_gradients`, or `fused` and `TrainState.replace`."""
    x, y = _data()
    tx = row.make()
    held = [
        TrainState.create(
            apply_fn=_Linen(row.dtype).apply, params=_weights(row.dtype), tx=tx
        )
    ]

    @jax.jit
    def train(state):
        factor = _factor(row, state)

        def loss(params):
            return factor * _error(state.apply_fn({"params": params}, x), y)

        value, gradients = jax.value_and_grad(loss)(state.params)
        if not is_fused:
            return state.apply_gradients(grads=gradients), value / factor
        step = adamx.fused(state.tx).step
        params, opt_state = step(gradients, state.opt_state, state.params)
        after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return after, value / factor

    def step():
        held[0], loss = train(held[0])
        return loss

    # `set_hyperparams` takes the whole TrainState.
    losses = _run(row, step, lambda: held[0], functools.partial(held.__setitem__, 0))
    return losses, held[0].params, held[0]


class _Equinox(eqx.Module):
    layers: dict[str, dict[str, jax.Array]]
    activation: Callable[..., Any] = jnp.tanh  # a leaf that is no array

    def __call__(self, x):
        return _apply(self.layers, x)


def equinox(row):
    """`eqx.filter_jit`, `eqx.filter` and `eqx.apply_updates`."""
    x, y = _data()
    tx = row.make()
    model = _Equinox(_weights(row.dtype))
    held = [model, tx.init(eqx.filter(model, eqx.is_inexact_array))]
    # eqx.apply_updates is p + u, which promotes bfloat16 to a master's float32.
    narrow = row.dtype != jnp.float32
    apply_updates = adamx.apply_updates if narrow else eqx.apply_updates

    @eqx.filter_jit
    def train(model, state):
        factor = _factor(row, state)
        loss = lambda model: factor * _error(model(x), y)  # noqa: E731
        value, gradients = eqx.filter_value_and_grad(loss)(model)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        updates, state = tx.update(gradients, state, params)
        model = eqx.combine(apply_updates(params, updates), static)
        return model, state, value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = _run(row, step, lambda: held[1], functools.partial(held.__setitem__, 1))
    return losses, held[0].layers, held[1]


def equinox_fused(row):
    """`eqx.partition` gives the parameters, `eqx.combine` the model."""
    x, y = _data()
    init, fused_step = adamx.fused(row.make())
    model = _Equinox(_weights(row.dtype))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    held = [params, init(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state):
        factor = _factor(row, state)

        def loss(params):
            return factor * _error(eqx.combine(params, static)(x), y)

        value, gradients = jax.value_and_grad(loss)(params)
        return *fused_step(gradients, state, params), value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = _run(row, step, lambda: held[1], functools.partial(held.__setitem__, 1))
    return losses, eqx.combine(held[0], static).layers, held[1]


CLIENTS = {
    "nnx": flax_nnx,
    "nnx-fused": flax_nnx_fused,
    "linen": flax_linen,
    "linen-fused": functools.partial(flax_linen, is_fused=True),
    "equinox": equinox,
    "equinox-fused": equinox_fused,
}
# A step that is fused is one program, whoever keeps the parameters: one client shows
# it for all wrappers, the others for one.
QUICK = [
    (row, client)
    for row in ROWS
    for client in CLIENTS
    if (client in ("nnx-fused", "equinox") or row.is_scaled)
    or (row.name in ("none", "with_hyperparams") and not client.endswith("-fused"))
]


@functools.cache
def plain(row):
    """What the plain loop makes of a row."""
    return functional(row, row.make(), _weights(row.dtype), _apply)


@pytest.mark.parametrize(
    ("row", "client"),
    [
        pytest.param(
            row,
            client,
            id=f"{row.name}-{client}",
            marks=[] if (row, client) in QUICK else pytest.mark.slow,
        )
        for row in ROWS
        for client in CLIENTS
    ],
)
def test_a_client_trains_as_the_plain_loop_does(row, client):
    want, params, state = plain(row)
    losses, weights, after = CLIENTS[client](row)
    assert losses[-1] <= row.least * losses[0]
    np.testing.assert_allclose(losses, want, rtol=row.tolerance)
    chex.assert_trees_all_equal_shapes_and_dtypes(weights, params)
    wide = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    chex.assert_trees_all_close(
        wide(weights), wide(params), rtol=row.tolerance, atol=row.tolerance * LR
    )
    expected, reading = adamx.read(state), adamx.read(after)
    assert reading.count == expected.count == STEPS // row.every
    assert reading.learning_rate == expected.learning_rate
    assert reading.skipped == expected.skipped
    assert set(reading.more) == set(expected.more)
