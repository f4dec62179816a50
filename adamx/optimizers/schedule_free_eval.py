"""The averaged parameters of Schedule-Free AdamW, from the trained ones.

    x = (y - (1 - b1) z) / b1 = y + (1 - b1) / b1 (y - z)

Source: Defazio et al., "The Road Less Scheduled" (2024), Algorithm 1, line 5.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree, moments
from adamx._packed import unpacked
from adamx._types import PyTree, dtype_of, real_dtype
from adamx.optimizers.schedule_free import ScheduleFreeAdamWState


def schedule_free_eval_params(state: PyTree, params: PyTree) -> PyTree:
    """The averaged parameters x, to evaluate and to save, from the trained ones y.

        x = y + (1 - b1) / b1 * (y - z)

    Args:
      state: any state that holds that of `schedule_free_adamw`, however nested (chain,
        masked, partition, MultiSteps, a train state).
      params: the parameters that belong to it. Those that another optimizer trains are
        returned as they are.

    Returns:
      A tree like `params`, in its dtypes.

    Raises:
      TypeError: no such state is found.
      ValueError: its parameters are not found in `params`, or have other shapes.

    >>> import jax.numpy as jnp, adamx
    >>> tx = adamx.schedule_free_adamw(0.1)
    >>> params = jnp.array([1.0])
    >>> float(schedule_free_eval_params(tx.init(params), params)[0])
    1.0
    """
    found = list(_states(state))
    if not found:
        raise TypeError(
            "`state` must hold the state of schedule_free_adamw, got "
            f"a {type(state).__name__} without one. Pass the state that "
            "tx.update returned; are state and params swapped?"
        )
    iterates: dict[Any, tuple[jax.Array, Any]] = {}
    for each in found:
        for path, z in jax.tree_util.tree_flatten_with_path(each.z)[0]:
            iterates[path] = z, each.extrapolation
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    structure: Any = jax.tree.structure(params)
    missing = iterates.keys() - {path for path, _ in flat}
    if missing:
        name = _tree.path_name(min(missing, key=str))
        raise ValueError(
            f"`params` must be the parameters given to init, got no leaf at '{name}', "
            "for which the state holds one. Pass the whole tree that is trained; for a "
            "Flax nnx model, nnx.state(model, nnx.Param)."
        )
    held = iterates.get
    return structure.unflatten(
        [_average(path, y, *held(path, (None, None))) for path, y in flat]
    )


def _average(path: Any, y: Any, z: jax.Array | None, extrapolation: Any) -> jax.Array:
    """x of one leaf; from the difference, which rounds less than y / b1 would."""
    if z is None:
        return y
    if jnp.shape(y) != z.shape:
        raise ValueError(
            f"`params` at '{_tree.path_name(path)}' must have shape {z.shape} as in "
            f"the state, got {jnp.shape(y)}. Under vmap, map this function too."
        )
    z = _tree.wide(z)
    wide = _tree.wide(y).astype(z.dtype)
    factor = jnp.asarray(extrapolation, real_dtype(z.dtype))
    return (wide + moments.scale(wide - z, factor)).astype(dtype_of(y))


def _states(node: PyTree) -> Iterator[ScheduleFreeAdamWState]:
    is_one = lambda x: isinstance(x, ScheduleFreeAdamWState)  # noqa: E731
    nodes = jax.tree.leaves(unpacked(node), is_leaf=is_one)
    return (x for x in nodes if is_one(x))
