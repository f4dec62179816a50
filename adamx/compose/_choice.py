"""One choice around everything that a step changes: take it, or leave all as it is.

Both functions are conditionals, not selects: a step that is not taken is not computed,
and no old moments are kept beside new ones. Under `jax.vmap` with a predicate by member
a conditional becomes a select: both sides are computed, and kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._types import PyTree, update_dtype

Taken = tuple[PyTree, Any]


def update_if(
    is_taken: jax.Array,
    take: Callable[[], Taken],
    updates: PyTree,
    state: PyTree,
    params: PyTree | None,
) -> Taken:
    """`take()`, or updates of -0.0 and the state as it is.

    -0.0 added to a parameter gives that parameter, -0.0 included.

    Args:
      is_taken: bool scalar.
      take: returns updates and state. Called inside the conditional: what only it needs
        should be computed in it.
      updates: the gradient, whose shapes and, with the parameters', dtypes the emitted
        updates have.
      state: the state that stays.
      params: the parameters; None: unknown.

    Returns:
      Updates and state. One tree of temporaries: the updates.
    """

    def as_emitted(values: PyTree) -> PyTree:
        def leaf(g: Any, u: Any, p: Any) -> tuple[jax.Array]:
            return (u.astype(update_dtype(g, p)),)

        return _tree.map_leaves(leaf, 1, updates, values, params)[0]

    def taken() -> Taken:
        new, after = take()
        return as_emitted(new), as_stored(after, state)

    def skipped() -> Taken:
        nothing = jax.tree.map(lambda g: -jnp.zeros_like(g), updates)
        return as_emitted(nothing), state

    return jax.lax.cond(is_taken, taken, skipped)


def step_if(
    is_taken: jax.Array, take: Callable[[], Taken], params: PyTree, state: PyTree
) -> Taken:
    """`take()`, or parameters and state as they are, which copies nothing.

    Args:
      is_taken: bool scalar.
      take: returns parameters and state; called inside the conditional.
      params, state: what stays.
    """

    def taken() -> Taken:
        new, after = take()
        return as_stored(new, params), as_stored(after, state)

    return jax.lax.cond(is_taken, taken, lambda: (params, state))


def as_stored(after: PyTree, before: PyTree) -> PyTree:
    """A new state in the dtypes of the old one.

    Optax's moments of float16 parameters are float16, and would widen with a float32
    gradient.
    """

    def leaf(new: Any, old: Any) -> Any:
        return new if new.dtype == old.dtype else new.astype(old.dtype)

    return jax.tree.map(leaf, after, before)
