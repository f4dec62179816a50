"""Small models to fall ill: pictures of digits, characters of Python's help.

`hidden` serves to set the illnesses and the rules up; the others are looked at for the
result alone.
"""

from collections.abc import Callable
from pydoc_data import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

WIDTH = 32
LENGTH = 32


class Patient(NamedTuple):
    """A model with its data.

    Attributes:
      init: key -> parameters.
      losses: (params, batch) -> the loss of each example.
      train, held_out: arrays with a leading axis of examples; train is sorted, by label
        or by how much of a row is blank.
      sick: path of the matrix that falls ill.
      relu: path of the layer before a ReLU, whose bias can kill it.
      augment: (key, batch) -> batch.
      batch: examples in a step.
      rate: a sound learning rate.
      seed: of its runs.
      too_fast: a rate at which the loss soon stands, in units of the sound one.
    """

    init: Callable[..., Any]
    losses: Callable[..., Any]
    train: Any
    held_out: Any
    sick: str
    relu: str
    augment: Callable[..., Any]
    batch: int = 64
    rate: float = 2e-3
    seed: int = 0
    too_fast: float = 15.0


def _dense(key: jax.Array, fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    kernel = np.sqrt(2.0 / fan_in) * jax.random.normal(key, (fan_in, fan_out))
    return {"kernel": kernel, "bias": jnp.zeros(fan_out)}


def _apply(layer: Any, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def _digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=450, random_state=0
    )
    order = np.argsort(y, kind="stable")
    return (x[order], y[order].astype(np.int32)), (x_test, y_test.astype(np.int32))


def _moved(key: jax.Array, batch: Any) -> Any:
    """Pictures moved by up to a pixel, with noise: 1,347 alone are soon learnt."""
    x, labels = batch
    where, noise = jax.random.split(key)
    by = jax.random.randint(where, (len(x), 2), -1, 2)
    pictures = jax.vmap(lambda p, s: jnp.roll(p, s, (0, 1)))(x.reshape(-1, 8, 8), by)
    return pictures.reshape(x.shape) + 0.2 * jax.random.normal(noise, x.shape), labels


def _as_it_is(key: jax.Array, batch: Any) -> Any:
    del key
    return batch


def hidden() -> Patient:
    """Digits by three hidden layers with ReLU."""
    names = ["hidden_0", "hidden_1", "hidden_2", "head"]
    sizes = [64, WIDTH, WIDTH, WIDTH, 10]

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(names))
        return {
            name: _dense(keys[i], sizes[i], sizes[i + 1])
            for i, name in enumerate(names)
        }

    def losses(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        for name in names[:-1]:
            x = jax.nn.relu(_apply(params[name], x))
        logits = _apply(params["head"], x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return Patient(init, losses, *_digits(), "hidden_1/kernel", "hidden_1", _moved)


def convolutions() -> Patient:
    """Digits by four convolutions with normalisation over the channels, and a mean."""
    channels = [1, 16, 32, 32, 32]
    names = [f"conv_{i}" for i in range(4)]

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 5)
        params = {}
        for i, name in enumerate(names):
            shape = (3, 3, *channels[i : i + 2])
            scale = np.sqrt(2.0 / np.prod(shape[:3]))
            params[name] = {
                "kernel": scale * jax.random.normal(keys[i], shape),
                "bias": jnp.zeros(shape[3]),
                "scale": jnp.ones(shape[3]),
            }
        return {**params, "head": _dense(keys[4], channels[-1], 10)}

    def losses(params: Any, batch: Any) -> jax.Array:
        x, labels = batch[0].reshape(-1, 8, 8, 1), batch[1]
        for name in names:
            p, axes = params[name], ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, p["kernel"], (1, 1), "SAME", dimension_numbers=axes
            )
            x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
            x = jax.nn.relu(p["scale"] * x + p["bias"])
        logits = _apply(params["head"], x.mean((1, 2)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    data = _digits()
    return Patient(init, losses, *data, "conv_2/kernel", "conv_2", _moved, too_fast=4.0)


def _characters() -> tuple[int, np.ndarray, np.ndarray]:
    """How many letters; rows to train on, by how much is blank; rows held out."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    alphabet = {letter: i for i, letter in enumerate(sorted(set(text)))}
    codes = np.array([alphabet[letter] for letter in text], np.int32)
    rows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    train, held_out = rows[:-400], rows[-400:]
    blanks = (train == alphabet[" "]).sum(1)
    return len(alphabet), train[np.argsort(blanks, kind="stable")], held_out


def recurrent() -> Patient:
    """The next character by a gated recurrent unit and a hidden layer with ReLU.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014).
    """
    size, train, held_out = _characters()

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 5)
        return {
            "embedding": 0.1 * jax.random.normal(keys[0], (size, WIDTH)),
            "gate_input": _dense(keys[1], WIDTH, 3 * WIDTH),
            "gate_hidden": _dense(keys[2], WIDTH, 3 * WIDTH),
            "mixer": _dense(keys[3], WIDTH, 2 * WIDTH),
            "head": _dense(keys[4], 2 * WIDTH, size),
        }

    def losses(params: Any, batch: Any) -> jax.Array:
        x = _apply(params["gate_input"], params["embedding"][batch[:, :-1]])

        def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = jnp.split(_apply(params["gate_hidden"], h), 3, -1)
            reset, update, new = jnp.split(now, 3, -1)
            keep = jax.nn.sigmoid(update + own[1])
            new = jnp.tanh(new + jax.nn.sigmoid(reset + own[0]) * own[2])
            h = keep * h + (1 - keep) * new
            return h, h

        start = jnp.zeros((len(batch), WIDTH))
        hidden = jax.lax.scan(step, start, x.swapaxes(0, 1))[1].swapaxes(0, 1)
        logits = _apply(params["head"], jax.nn.relu(_apply(params["mixer"], hidden)))
        labels = batch[:, 1:]
        found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return found.mean(-1)

    sick = "gate_hidden/kernel"
    return Patient(init, losses, train, held_out, sick, "mixer", _as_it_is, 32, seed=1)


def attention() -> Patient:
    """The next character by a transformer of two blocks, with ReLU.

    Vaswani et al., "Attention Is All You Need" (2017), the norms before the layers.
    """
    size, train, held_out = _characters()
    heads, blocks = 2, 2
    names = ["attend", "mix", "up", "down"]
    sizes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3 + blocks)
        params = {
            "embedding": 0.1 * jax.random.normal(keys[0], (size, WIDTH)),
            "position": 0.1 * jax.random.normal(keys[1], (LENGTH, WIDTH)),
            "head": {**_dense(keys[2], WIDTH, size), "scale": jnp.ones(WIDTH)},
        }
        for i in range(blocks):
            own = jax.random.split(keys[3 + i], len(names))
            for name, shape, key in zip(names, sizes, own, strict=True):
                params[f"{name}_{i}"] = _dense(key, *shape)
            params[f"attend_{i}"]["scale"] = jnp.ones(WIDTH)
            params[f"up_{i}"]["scale"] = jnp.ones(WIDTH)
        return params

    def normed(layer: Any, x: jax.Array) -> jax.Array:
        size = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        return _apply(layer, layer["scale"] * x * size)

    def losses(params: Any, batch: Any) -> jax.Array:
        x = params["embedding"][batch[:, :-1]] + params["position"]
        is_seen = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        for i in range(blocks):
            own = normed(params[f"attend_{i}"], x)
            own = own.reshape(*x.shape[:2], 3, heads, WIDTH // heads)
            query, key, value = jnp.moveaxis(own, 2, 0)
            scores = jnp.einsum("bihd,bjhd->bhij", query, key)
            scores = jnp.where(is_seen, scores / np.sqrt(WIDTH // heads), -1e9)
            weights = jax.nn.softmax(scores)
            found = jnp.einsum("bhij,bjhd->bihd", weights, value).reshape(x.shape)
            x = x + _apply(params[f"mix_{i}"], found)
            up = jax.nn.relu(normed(params[f"up_{i}"], x))
            x = x + _apply(params[f"down_{i}"], up)
        logits = normed(params["head"], x)
        labels = batch[:, 1:]
        found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return found.mean(-1)

    own = "mix_0/kernel", "up_0", _as_it_is
    return Patient(init, losses, train, held_out, *own, 32, seed=2, too_fast=20.0)


PATIENTS = {
    "hidden": hidden,
    "convolutions": convolutions,
    "recurrent": recurrent,
    "attention": attention,
}
