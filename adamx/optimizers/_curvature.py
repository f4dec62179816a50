"""Estimates of the Hessian's diagonal from one extra pass through the model.

    Hutchinson:              h = u * (H u),   u random with E[u u^T] = 1
    Gauss-Newton-Bartlett:   h = B * g * g,   g = gradient of the mean cross-entropy
                             on labels drawn from the model's own predictions

Both have the diagonal (of the Hessian, of the Gauss-Newton matrix) as their mean.

Source: Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language
Model Pre-training" (2023), Algorithms 1 and 2; Hutchinson, "A stochastic estimator of
the trace of the influence matrix" (1989), for u of signs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks, _tree, _varying
from adamx._types import PyTree, at_least_single, dtype_of

PROBES = ("rademacher", "gaussian")
# estimator: the extra arguments of `update` that it can work from, and what they are.
# obj_fn is the name in optax.contrib.sophia, value_fn in Optax's line searches.
SOURCES = {
    "hutchinson": ("loss_fn", "obj_fn", "value_fn"),
    "gauss_newton": ("logits_fn",),
}
_MEANING = {
    "hutchinson": "a function of the parameters that returns the scalar loss",
    "gauss_newton": "a function of the parameters that returns logits (..., classes)",
}


def source(estimator: str, extra_args: Mapping[str, Any]) -> tuple[str, Any]:
    """The function to estimate with, by name; raises where none was passed."""
    names = SOURCES[estimator]
    for name in ("hessian_fn", *names):
        function = extra_args.get(name)
        if callable(function):
            return name, function
        if function is not None:
            raise TypeError(
                f"`{name}` must be a function of the parameters, got "
                f"{_checks.describe_value(function)}; pass the function itself, not "
                "its value: it is called when an estimate is due."
            )
    others = [name for name in extra_args if name != "on_direction"]
    got = f"None (but {', '.join(others)})" if others else "None"
    raise ValueError(
        f"`{names[0]}` must be {_MEANING[estimator]}, got {got}: the curvature is "
        f"estimated with it. Call tx.update(gradients, state, params, {names[0]}="
        "lambda p: ...), closing over the batch; or pass hessian_fn=, a function of "
        "the parameters and a key that returns an estimate of the Hessian's diagonal. "
        "Where another library calls `update`, it must hand the function on: "
        "flax.nnx.Optimizer does, TrainState.apply_gradients and NumPyro do not."
    )


def estimate(
    named: tuple[str, Any],
    probe: str,
    gradient: PyTree,
    params: PyTree,
    key: jax.Array,
) -> PyTree:
    """An estimate of the diagonal from what `source` returned; like the gradient."""
    name, function = named
    if not jax.tree.leaves(gradient):
        return gradient
    if name == "logits_fn":
        return gauss_newton_bartlett(function, gradient, params, key)
    if name != "hessian_fn":
        return hutchinson(function, gradient, params, key, probe)
    found = function(params, key)
    _tree.check_same_structure(found, gradient, "hessian_fn's result", "the gradient")
    _tree.check_real(found, "hessian_fn's result", "curvature is real")
    return jax.tree.map(_tree.wide, found)


def hutchinson(
    loss_fn: Callable[[PyTree], jax.Array],
    gradient: PyTree,
    params: PyTree,
    key: jax.Array,
    probe: str,
) -> PyTree:
    """u * (Hessian of the loss times u), for one random u.

    Args:
      loss_fn: function of the parameters, twice differentiable; a scalar.
      gradient: only its structure is used: what is None there is no variable.
      params: where the Hessian is taken.
      key: a key of `jax.random`.
      probe: "rademacher": u of signs, exact where the Hessian is diagonal and of the
        smallest variance; "gaussian": the paper's.

    Returns:
      A tree like the gradient, in at least float32.
    """
    arrays, rebuild = variables(gradient, params)
    draw = jax.random.rademacher if probe == "rademacher" else jax.random.normal

    def noise(index: int, p: jax.Array) -> jax.Array:
        # Pieces with the same signs would be taken for one another in the product.
        one = _varying.key_of_piece(jax.random.fold_in(key, index), p)
        drawn = draw(one, p.shape, at_least_single(p.dtype)).astype(p.dtype)
        return _varying.like(drawn, p)

    def scalar_loss(values: list[jax.Array]) -> jax.Array:
        loss = loss_fn(rebuild(values))
        if not jax.tree_util.all_leaves([loss]) or jnp.shape(loss) != ():
            raise TypeError(
                "`loss_fn` must return one scalar, got "
                f"{jax.tree.map(jnp.shape, loss)}; reduce it with jnp.mean, and for a "
                "loss with auxiliary output pass lambda p: loss_fn(p)[0]."
            )
        return loss

    probes = [noise(index, p) for index, p in enumerate(arrays)]
    products = jax.jvp(jax.grad(scalar_loss), (arrays,), (probes,))[1]
    estimate = [
        _tree.wide(u) * _tree.wide(x) for u, x in zip(probes, products, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(gradient), estimate)


def gauss_newton_bartlett(
    logits_fn: Callable[[PyTree], jax.Array],
    gradient: PyTree,
    params: PyTree,
    key: jax.Array,
) -> PyTree:
    """B times the squared gradient of the cross-entropy on labels that are drawn.

    Args:
      logits_fn: function of the parameters; logits of shape (..., classes).
      gradient, params, key: see `hutchinson`.

    Returns:
      A tree like the gradient, in at least float32, never negative.
    """
    arrays, rebuild = variables(gradient, params)
    size = 1

    def sampled_loss(values: list[jax.Array]) -> jax.Array:
        nonlocal size
        logits = logits_fn(rebuild(values))
        if not hasattr(logits, "shape") or not logits.shape:
            raise TypeError(
                "`logits_fn` must return an array of logits of shape (..., classes), "
                f"got {jax.tree.map(jnp.shape, logits)}; leave out auxiliary output, "
                "and do not reduce the logits to a loss: labels are drawn from them."
            )
        if apart := _varying.beyond(logits, arrays):
            raise ValueError(
                "`logits_fn` must return the logits of the whole batch, got those of a "
                f"device, in pieces along {', '.join(map(repr, sorted(apart)))} of the "
                "surrounding shard_map: their labels are drawn, and squared, as one. "
                "Pass hessian_fn, or put shard_map inside of logits_fn."
            )
        # In bfloat16 both the draw and the loss would be off by a percent.
        logits = _tree.wide(logits)
        labels = jax.random.categorical(key, logits)
        size = max(labels.size, 1)
        likelihood = jnp.take_along_axis(
            jax.nn.log_softmax(logits), labels[..., None], axis=-1
        )
        return -jnp.sum(likelihood) / size

    slopes = [_tree.wide(g) for g in jax.grad(sampled_loss)(arrays)]
    estimate = [g * g * jnp.asarray(size, g.dtype) for g in slopes]
    return jax.tree.unflatten(jax.tree.structure(gradient), estimate)


def variables(
    gradient: PyTree, params: PyTree
) -> tuple[list[jax.Array], Callable[[list[Any]], PyTree]]:
    """The parameters that have a gradient, and the way back to the whole tree.

    What stands in `params` where the gradient is None (the functions and numbers of a
    model that is a tree) is handed on as it is.
    """
    leaves, structure = jax.tree.flatten(gradient, is_leaf=lambda x: x is None)
    below: list[Any] = structure.flatten_up_to(params)  # type: ignore[attr-defined]
    is_variable = [leaf is not None for leaf in leaves]
    arrays = [
        jnp.asarray(x, dtype_of(x))
        for x, chosen in zip(below, is_variable, strict=True)
        if chosen
    ]

    def rebuild(values: list[Any]) -> PyTree:
        rest = iter(values)
        whole = [
            next(rest) if chosen else x
            for x, chosen in zip(below, is_variable, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    return arrays, rebuild
