"""Small training problems for the comparisons: digits, characters, a saddle.

A task is a few pure functions; `train` runs many runs of it at once (vmap over rates
and seeds), all steps in one compiled call (scan).
"""

import collections
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx


class Task(NamedTuple):
    """A training problem.

    Attributes:
      name: for tables.
      init: key -> parameters.
      sample: key -> one minibatch.
      logits: (params, batch) -> logits, for optimizers that sample labels.
      loss: (params, batch) -> scalar, what is trained on.
      evaluate: params -> (training loss, score on held-out data).
      score: what the score is.
      kinds: how many variants of the loss there are, chosen by its third argument.
    """

    name: str
    init: Callable[..., Any]
    sample: Callable[..., Any]
    logits: Callable[..., Any]
    loss: Callable[..., Any]
    evaluate: Callable[..., Any]
    score: str
    kinds: int = 1


class Runs(NamedTuple):
    """Many runs; every field has one entry for each.

    Attributes:
      loss: training loss at the end, on a fixed set; not finite: diverged.
      score: see `Task.score`.
      curve: (runs, steps), loss of each minibatch before its step.
      state: the optimizer's last state.
    """

    loss: np.ndarray
    score: np.ndarray
    curve: np.ndarray
    state: Any


LOSSES = ("cross-entropy", "squared", "absolute")


def _mlp(sizes: Sequence[int]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def init(key: jax.Array) -> Any:
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            key, now = jax.random.split(key)
            scale = np.sqrt(2.0 / fan_in)
            kernel = scale * jax.random.normal(now, (fan_in, fan_out))
            layers.append({"kernel": kernel, "bias": jnp.zeros(fan_out)})
        return layers

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for number, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            if number < len(params) - 1:
                x = jax.nn.relu(x)
        return x

    return init, apply


def convolutions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A model for digits: three convolutions, a mean over the picture, a matrix."""
    shapes = [(3, 3, 1, 16), (3, 3, 16, 32), (3, 3, 32, 32), (32, 10)]

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(shapes))
        return [
            (2 / np.prod(shape[:-1])) ** 0.5 * jax.random.normal(key, shape)
            for key, shape in zip(keys, shapes, strict=True)
        ]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x, axes = x.reshape(-1, 8, 8, 1), ("NHWC", "HWIO", "NHWC")
        for kernel in params[:-1]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=axes
            )
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ params[-1]

    return init, apply


def _loss_of(kind: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Optax's losses: cross-entropy, and regression onto one-hot labels."""
    target = jax.nn.one_hot(labels, logits.shape[-1])
    values = jnp.stack(
        [
            optax.softmax_cross_entropy(logits, target).mean(),
            2 * optax.l2_loss(logits, target).mean(),
            jnp.abs(logits - target).mean(),
        ]
    )
    return values[kind]


def digits(width: int = 32, depth: int = 2, batch: int = 64, model: Any = None) -> Task:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels; 1,347 to train on.

    `model`: (init, apply); None: an MLP of that width and depth.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=450, random_state=0
    )
    x, x_test, y, y_test = map(jnp.asarray, parts)
    init, apply = model or _mlp([64] + [width] * depth + [10])

    def loss(params: Any, batch: Any, kind: Any = 0) -> jax.Array:
        return _loss_of(kind, apply(params, batch[0]), batch[1])

    def sample(key: jax.Array) -> Any:
        chosen = jax.random.randint(key, (batch,), 0, len(x))
        return x[chosen], y[chosen]

    def evaluate(params: Any, kind: Any = 0) -> Any:
        accuracy = (apply(params, x_test).argmax(-1) == y_test).mean()
        return loss(params, (x, y), kind), 100 * accuracy

    return Task(
        "digits",
        init,
        sample,
        lambda params, batch: apply(params, batch[0]),
        loss,
        evaluate,
        "test accuracy, %",
        kinds=len(LOSSES),
    )


def characters(
    width: int = 32, length: int = 32, batch: int = 16, words: int = 0
) -> Task:
    """A character-level transformer of two blocks on the texts of Python's own help.

    With `words`, of words and punctuation: so many, all but the most frequent as one.
    """
    from pydoc_data import topics

    text: Any = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    if words:
        text = re.findall(r"\w+|[^\w\s]", text)
        known = {w for w, _ in collections.Counter(text).most_common(words - 1)}
        text = [w if w in known else "" for w in text]
    alphabet = sorted(set(text))
    codes = {letter: code for code, letter in enumerate(alphabet)}
    data = np.array([codes[letter] for letter in text], np.int32)
    data, held_out = jnp.asarray(data[:-20_000]), jnp.asarray(data[-20_000:])
    size, heads, blocks = len(alphabet), 4, 2

    def init(key: jax.Array) -> Any:
        def normal(number: int, *shape: int) -> jax.Array:
            return 0.1 * jax.random.normal(jax.random.fold_in(key, number), shape)

        params = {
            "embedding": normal(0, size, width),
            "position": normal(1, length, width),
        }
        for i in range(blocks):
            params[f"block_{i}"] = {
                "qkv": normal(10 * i + 2, width, 3 * width),
                "out": normal(10 * i + 3, width, width),
                "up": normal(10 * i + 4, width, 4 * width),
                "down": normal(10 * i + 5, 4 * width, width),
                "scale": jnp.ones((2, width)),
            }
        params["head"] = normal(99, width, size)
        return params

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return scale * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embedding"][tokens] + params["position"]
        for i in range(blocks):
            p = params[f"block_{i}"]
            qkv = norm(x, p["scale"][0]) @ p["qkv"]
            q, k, v = (
                part.reshape(*part.shape[:-1], heads, -1)
                for part in jnp.split(qkv, 3, axis=-1)
            )
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.reshape(x.shape) @ p["out"]
            x = x + jax.nn.gelu(norm(x, p["scale"][1]) @ p["up"]) @ p["down"]
        return norm(x, jnp.ones(())) @ params["head"]

    def windows(source: jax.Array, starts: jax.Array) -> Any:
        rows = source[starts[:, None] + jnp.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(params: Any, batch: Any, kind: Any = 0) -> jax.Array:
        del kind
        return optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch[0]), batch[1]
        ).mean()

    def sample(key: jax.Array) -> Any:
        starts = jax.random.randint(key, (batch,), 0, len(data) - length - 1)
        return windows(data, starts)

    def evaluate(params: Any, kind: Any = 0) -> Any:
        del kind
        starts = jnp.arange(256) * (len(held_out) // 260)
        fixed = jnp.arange(256) * (len(data) // 260)
        bits = loss(params, windows(held_out, starts)) / jnp.log(2.0)
        return loss(params, windows(data, fixed)), bits

    return Task(
        "characters",
        init,
        sample,
        lambda params, batch: apply(params, batch[0]),
        loss,
        evaluate,
        "held-out bits per character",
    )


def evaluation_params(state: Any, params: Any) -> Any:
    """The parameters to be judged: schedule-free optimizers average on the side."""
    try:
        return adamx.schedule_free_eval_params(state, params)
    except (TypeError, ValueError, AttributeError):
        return params


def write_nearest(params: Any, updates: Any, key: jax.Array) -> Any:
    """Parameters after a step, each rounded to the nearest value of its dtype."""
    del key
    return adamx.apply_updates(params, updates)


def make_train(
    make_tx: Callable[[Any], Any],
    task: Task,
    steps: int,
    *,
    dtype: Any = jnp.float32,
    write: Callable[..., Any] = write_nearest,
) -> Callable[..., Any]:
    """A compiled function (rates, seeds, kinds) -> Runs; all runs at once.

    Rate, seed and kind of loss are traced: one compilation for any number of searches
    of the same size.

    Args:
      make_tx: learning rate -> optimizer.
      task: what to train.
      steps: how long.
      dtype: in which the parameters are stored. The model computes in float32 all the
        same, so that nothing but the storage differs.
      write: (params, updates, key) -> params, the last sum of a step.
    """

    def widen(params: Any) -> Any:
        return jax.tree.map(lambda p: p.astype(jnp.float32), params)

    def run(rate: Any, seed: Any, kind: Any) -> Any:
        key = jax.random.key(seed)
        writer = jax.random.fold_in(key, 2**32 - 1)  # beyond the batches' numbers
        params = task.init(jax.random.fold_in(key, 0))
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        tx = make_tx(rate)

        def step(carry: Any, number: Any) -> Any:
            params, state = carry
            batch = task.sample(jax.random.fold_in(key, 1 + number))

            def loss_fn(p: Any) -> jax.Array:
                return task.loss(widen(p), batch, kind)

            loss, gradients = jax.value_and_grad(loss_fn)(params)
            updates, state = tx.update(
                gradients,
                state,
                params,
                loss_fn=loss_fn,
                logits_fn=lambda p: task.logits(widen(p), batch),
            )
            params = write(params, updates, jax.random.fold_in(writer, number))
            return (params, state), loss

        carry, curve = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        params, state = carry
        loss, score = task.evaluate(widen(evaluation_params(state, params)), kind)
        return Runs(loss, score, curve, state)

    compiled = jax.jit(jax.vmap(run))

    def many(rates: Any, seeds: Any, kinds: Any = 0) -> Runs:
        rates = np.asarray(
            rates
        )  # (runs,), or (runs, numbers) for make_tx to take apart
        seeds, kinds = (np.broadcast_to(x, rates.shape[:1]) for x in (seeds, kinds))
        runs = compiled(
            jnp.asarray(rates, jnp.float32), jnp.asarray(seeds), jnp.asarray(kinds)
        )
        return jax.tree.map(np.asarray, runs)

    return many


def lowest(rates: Any, losses: Any) -> float:
    """The rate of the lowest loss; a run that diverged is no candidate."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    return float(np.asarray(rates)[int(np.argmin(losses))])
