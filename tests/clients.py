"""One network in four libraries, trained as their users train it; whole and fused.

What trains (`CLIENTS`) is a function of a `Row`; a loop over plain dictionaries says
where it must arrive. Libraries with loops of their own: `tests/test_clients_loops.py`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
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
      needs_loss: whether `update` is to be given the loss as a function.
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
    needs_loss: bool = False
    dtype: Any = jnp.float32
    tolerance: float = 1e-5
    least: float = 0.2
    every: int = 1


# --------------------------------------------------------------- the task, and the loop


def data():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (64, 2)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x[:, :1]) * x[:, 1:])


def initial_weights(dtype):
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


def apply(params, x):
    for i, name in enumerate(sorted(params)):
        layer = params[name]
        x = x.astype(layer["kernel"].dtype) @ layer["kernel"] + layer["bias"]
        x = jnp.tanh(x) if i == 0 else x
    return x


def error(predicted, y):
    return jnp.mean((predicted.astype(jnp.float32) - y) ** 2)


def factor_of(row, state):
    return adamx.loss_scale(state) if row.is_scaled else 1.0


def extra(row, loss):
    """The extra arguments of `update`."""
    return {"loss_fn": loss} if row.needs_loss else {}


def losses_of(row, step, get, put):
    """The losses of a run; the state is changed halfway, where it is kept."""
    losses = []
    for i in range(STEPS):
        if i == STEPS // 2:
            put(row.between(get()))
        losses.append(float(step()))
    return np.array(losses)


def _place(held, i):
    """How to get and to put what is in a list."""
    get, put = held.__getitem__, held.__setitem__
    return functools.partial(get, i), functools.partial(put, i)


def functional(row, tx, params, predict):
    """The plain loop: jax.grad, update, apply_updates."""
    x, y = data()
    held = [params, tx.init(params)]

    @jax.jit
    def train(params, state):
        factor = factor_of(row, state)
        loss = lambda p: factor * error(predict(p, x), y)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        more = extra(row, loss)
        updates, state = tx.update(gradients, state, params, **more)
        return adamx.apply_updates(params, updates), state, value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = losses_of(row, step, *_place(held, 1))
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
        return apply(self.weights(), x)

    def weights(self):
        layers = {"Dense_0": self.first, "Dense_1": self.second}
        return {
            k: {"kernel": m.kernel[...], "bias": m.bias[...]} for k, m in layers.items()
        }


def flax_nnx(row):
    """`nnx.Optimizer`, with wrt=nnx.Param."""
    x, y = data()
    model = _Nnx(initial_weights(row.dtype))
    optimizer = nnx.Optimizer(model, row.make(), wrt=nnx.Param)
    # Before flax 0.11 the optimizer held the model itself.
    takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters

    @nnx.jit
    def train(model, optimizer):
        factor = factor_of(row, optimizer.opt_state)
        loss = lambda model: factor * error(model(x), y)  # noqa: E731
        value, gradients = nnx.value_and_grad(loss)(model)
        graph = nnx.split(model)[0]
        more = extra(row, lambda params: loss(nnx.merge(graph, params)))
        optimizer.update(*[model] * takes_model, gradients, **more)
        return value / factor

    losses = losses_of(
        row,
        lambda: train(model, optimizer),
        lambda: optimizer.opt_state,
        functools.partial(setattr, optimizer, "opt_state"),
    )
    return losses, model.weights(), optimizer


def flax_nnx_fused(row):
    """The model is split into its graph and its parameters, and updated at the end."""
    x, y = data()
    model = _Nnx(initial_weights(row.dtype))
    init, fused_step = adamx.fused(row.make())
    graph, params = nnx.split(model, nnx.Param)
    held = [params, init(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state):
        factor = factor_of(row, state)
        loss = lambda p: factor * error(nnx.merge(graph, p)(x), y)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        after = fused_step(gradients, state, params, **extra(row, loss))
        return *after, value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = losses_of(row, step, *_place(held, 1))
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
    x, y = data()
    tx = row.make()
    held = [
        TrainState.create(
            apply_fn=_Linen(row.dtype).apply, params=initial_weights(row.dtype), tx=tx
        )
    ]

    @jax.jit
    def train(state):
        factor = factor_of(row, state)

        def loss(params):
            return factor * error(state.apply_fn({"params": params}, x), y)

        value, gradients = jax.value_and_grad(loss)(state.params)
        if not (is_fused or row.needs_loss):
            return state.apply_gradients(grads=gradients), value / factor
        held, more = (gradients, state.opt_state, state.params), extra(row, loss)
        if is_fused:
            params, opt_state = adamx.fused(state.tx).step(*held, **more)
        else:  # what apply_gradients does, which hands no extra argument on
            updates, opt_state = state.tx.update(*held, **more)
            params = adamx.apply_updates(state.params, updates)
        after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return after, value / factor

    def step():
        held[0], loss = train(held[0])
        return loss

    # `set_hyperparams` takes the whole TrainState.
    losses = losses_of(row, step, *_place(held, 0))
    return losses, held[0].params, held[0]


class _Equinox(eqx.Module):
    layers: dict[str, dict[str, jax.Array]]
    activation: Callable[..., Any] = jnp.tanh  # a leaf that is no array

    def __call__(self, x):
        return apply(self.layers, x)


def equinox(row):
    """`eqx.filter_jit`, `eqx.filter` and `eqx.apply_updates`."""
    x, y = data()
    tx = row.make()
    model = _Equinox(initial_weights(row.dtype))
    held = [model, tx.init(eqx.filter(model, eqx.is_inexact_array))]
    # eqx.apply_updates is p + u, which promotes bfloat16 to a master's float32.
    narrow = row.dtype != jnp.float32
    apply_updates = adamx.apply_updates if narrow else eqx.apply_updates

    @eqx.filter_jit
    def train(model, state):
        factor = factor_of(row, state)
        loss = lambda model: factor * error(model(x), y)  # noqa: E731
        value, gradients = eqx.filter_value_and_grad(loss)(model)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        more = extra(row, lambda params: loss(eqx.combine(params, static)))
        updates, state = tx.update(gradients, state, params, **more)
        model = eqx.combine(apply_updates(params, updates), static)
        return model, state, value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = losses_of(row, step, *_place(held, 1))
    return losses, held[0].layers, held[1]


def equinox_fused(row):
    """`eqx.partition` gives the parameters, `eqx.combine` the model."""
    x, y = data()
    init, fused_step = adamx.fused(row.make())
    model = _Equinox(initial_weights(row.dtype))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    held = [params, init(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state):
        factor = factor_of(row, state)

        def loss(params):
            return factor * error(eqx.combine(params, static)(x), y)

        value, gradients = jax.value_and_grad(loss)(params)
        after = fused_step(gradients, state, params, **extra(row, loss))
        return *after, value / factor

    def step():
        *held[:], loss = train(*held)
        return loss

    losses = losses_of(row, step, *_place(held, 1))
    return losses, eqx.combine(held[0], static).layers, held[1]


def haiku(row):
    """`hk.transform`; parameters are dictionaries, of its own names."""
    x, _ = data()
    layers = {"Dense_0": "linear", "Dense_1": "linear_1"}
    names = {"kernel": "w", "bias": "b"}
    weights = initial_weights(row.dtype)

    @hk.without_apply_rng
    @hk.transform
    def network(x):
        hidden = jnp.tanh(hk.Linear(WIDTH)(x.astype(row.dtype)))
        return hk.Linear(1)(hidden)

    params = {
        there: {names[k]: p for k, p in weights[here].items()}
        for here, there in layers.items()
    }
    made = jax.eval_shape(network.init, jax.random.key(0), x)
    assert jax.tree.structure(made) == jax.tree.structure(params)
    losses, params, state = functional(row, row.make(), params, network.apply)
    weights = {
        here: {k: params[there][name] for k, name in names.items()}
        for here, there in layers.items()
    }
    return losses, weights, state


CLIENTS = {
    "nnx": flax_nnx,
    "nnx-fused": flax_nnx_fused,
    "linen": flax_linen,
    "linen-fused": functools.partial(flax_linen, is_fused=True),
    "equinox": equinox,
    "equinox-fused": equinox_fused,
    "haiku": haiku,
}
# A step that is fused is one program, whoever keeps the parameters: one client shows
# it for all wrappers, the others for one.
