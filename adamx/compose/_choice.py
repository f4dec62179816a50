"""One choice around everything that a step changes: take it, or leave all as it is.

These are conditionals, not selects: a step that is not taken is not computed,
and no old moments are kept beside new ones. Under `jax.vmap` with a predicate by member
a conditional becomes a select: both sides are computed, and kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree, _varying, moments
from adamx._steps import StepIf, own_step_if, step_of
from adamx._types import GradientTransformation, PyTree, update_dtype

Taken = tuple[PyTree, Any]


def update_if(
    is_taken: jax.Array,
    take: Callable[[], Taken],
    updates: PyTree,
    state: PyTree,
    params: PyTree | None,
    like: PyTree | None = None,
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
      like: a tree with the dtypes of the emitted updates, where they are not the wider
        ones of gradient and parameter (see `emitted_like`).

    Returns:
      Updates and state. One tree of temporaries: the updates.
    """

    def as_emitted(values: PyTree) -> PyTree:
        def leaf(g: Any, u: Any, p: Any, x: Any) -> tuple[jax.Array]:
            u = u.astype(update_dtype(g, p) if x is None else x.dtype)
            return (moments.placed_like(u, g),)

        return _tree.map_leaves(leaf, 1, updates, values, params, like)[0]

    def taken() -> Taken:
        new, after = take()
        return as_emitted(new), as_stored(after, state)

    def skipped() -> Taken:
        nothing = jax.tree.map(lambda g: -jnp.zeros_like(g), updates)
        return as_emitted(nothing), state

    return _varying.cond(is_taken, taken, skipped)


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
        # A model's other leaves are no arrays.
        new = jax.tree.map(
            lambda x, p: moments.placed_like(x, p) if hasattr(p, "dtype") else x,
            new,
            params,
        )
        return new, as_stored(after, state)

    return _varying.cond(is_taken, taken, lambda: (params, state))


def step_if_of(tx: GradientTransformation) -> StepIf:
    """The conditional step of a transformation: its own, or a choice around its step.

    Args:
      tx: any transformation.

    Returns:
      step(is_taken, grads, state, params, **extra_args) -> (params, state), where
      `grads` is a function that returns them, and is_taken None stands for "always".
    """
    own = own_step_if(tx)
    if own is not None:
        return own
    inner = step_of(tx)

    def step(
        is_taken: jax.Array | None,
        grads: Callable[[], PyTree],
        state: Any,
        params: PyTree,
        **extra_args: Any,
    ) -> Taken:
        def take() -> Taken:
            return inner(grads(), state, params, **extra_args)

        return take() if is_taken is None else step_if(is_taken, take, params, state)

    return step


def emitted_like(
    update: Callable[..., Taken],
    updates: PyTree,
    state: Any,
    params: PyTree | None,
    **extra_args: Any,
) -> PyTree | None:
    """A tree with the dtypes of what `update` emits; None: those of `update_dtype`.

    With 16-bit gradients or parameters they are asked for, at the price of tracing
    `update` once more: `master_weights` and stages of others emit float32 there.
    """
    known = [*jax.tree.leaves(updates), *jax.tree.leaves(params)]
    # A whole model may stand where the parameters do, functions included.
    if all(x.dtype.itemsize >= 4 for x in known if hasattr(x, "dtype")):
        return None
    run = lambda: update(updates, state, params, **extra_args)[0]  # noqa: E731
    return jax.eval_shape(run)


def as_stored(after: PyTree, before: PyTree) -> PyTree:
    """A new state in the dtypes of the old one, and where that was.

    Optax's moments of float16 parameters are float16, and would widen with a float32
    gradient.
    """

    def leaf(new: Any, old: Any) -> Any:
        new = moments.placed_like(new, old)
        return new if new.dtype == old.dtype else new.astype(old.dtype)

    return jax.tree.map(leaf, after, before)


def scalars_if(is_taken: jax.Array | None, compute: Callable[[], Any]) -> Any:
    """A tree of scalars, computed where they are needed, else zeros. None: always."""
    if is_taken is None:
        return compute()
    like = jax.eval_shape(compute)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return _varying.cond(is_taken, compute, lambda: zeros)


def chosen(is_taken: jax.Array | None, new: Any, before: Any) -> Any:
    """A State, or the one before; the inner state of the new one is chosen already."""
    if is_taken is None:
        return new
    ours = new._replace(inner_state=()), before._replace(inner_state=())
    return choose(is_taken, *ours)._replace(inner_state=new.inner_state)


def choose(condition: jax.Array, a: Any, b: Any) -> Any:
    """One of two trees of scalars."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
