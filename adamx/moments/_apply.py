"""A leaf rule over stored moments: read, compute wide, write back.

A leaf rule sees arrays in the dtype of its arithmetic only (float32, float64 or
complex); what the state holds may be narrower, or codes. Both meet in `apply_rule`, the
one place where a stored moment is read, handed to a leaf rule and written back.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._traced import traced_once
from adamx._types import (
    PyTree,
    at_least_single,
    dtype_of,
    promote,
    real_dtype,
    update_dtype,
)
from adamx.moments._layout import placed_like
from adamx.moments._order import turn_of
from adamx.moments._slots import (
    Slot,
    at_turn,
    at_turn_to_store,
    deal,
    is_in_passes,
    load,
    turn_after,
)
from adamx.moments._storage import check_gradient, check_holds_complex

Rule = Callable[..., tuple[Any, ...]]


def _check_reduced(
    updates: PyTree, moment: PyTree, name: str, axes: Sequence[Any] | None
) -> None:
    """Raises where a stored moment is not shared along the given axes."""
    flat = jax.tree_util.tree_flatten_with_path(updates)[0]
    held = _tree.leaves_below(updates, moment)
    axes = axes or [None] * len(flat)
    for (path, g), m, shared in zip(flat, held, axes, strict=True):
        want = tuple(1 if i in (shared or ()) else n for i, n in enumerate(g.shape))
        if shared is not None and m.shape != want:
            raise ValueError(
                f"`{name}` of the state at '{_tree.path_name(path)}' must have shape "
                f"{want}, got {m.shape}: it was made with other arguments (they decide "
                "what shares one number). Use those, or a new state (tx.init)."
            )


def apply_rule(
    rule: Rule,
    updates: PyTree,
    params: PyTree | None,
    signed: Mapping[str, PyTree] = MappingProxyType({}),
    unsigned: Mapping[str, PyTree] = MappingProxyType({}),
    *,
    reduced: Mapping[str, PyTree] = MappingProxyType({}),
    each: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    emits: Sequence[str] = (),
    unchanged: Sequence[str] = (),
    reads_params: bool = False,
    dtype_argument: str | None = None,
    **scalars: Any,
) -> tuple[PyTree, dict[str, PyTree]]:
    """Runs a leaf rule over the stored moments: read, compute wide, write back.

    Args:
      rule: `rule(g, *moments, **each, **scalars) -> (update, *moments, *emitted)` on
        arrays of one dtype, at least float32; moments in the order signed, unsigned,
        reduced.
      updates: the incoming gradient.
      params: the parameters, which widen the result; None: unknown.
      signed: moments that have the gradient's sign (mu, trace), by field of the State.
      unsigned: real moments that are never negative (nu, nu_max).
      reduced: real moments that are never negative and share one number among several
        elements: of the parameter's rank, each dimension its own or smaller.
        `axes` of `each`, where given, says along which axes it has length 1.
      each: by name, one static value (or None) for each leaf of `updates`.
      emits: names of what else the rule returns, an array of any shape or None.
      unchanged: moments that the rule only reads, and returns as they were given to it:
        they stay as they are stored.
      reads_params: hands the rule the parameter, as `p`, in the arithmetic's dtype.
      dtype_argument: the argument that decides the dtype of `signed`, for errors;
        `mu_dtype` for mu unless given.
      **scalars: floats or 0-d arrays (or a `Weight` of them), handed over in the leaf's
        real dtype, never in 16 bits; None and flags stay what they are.

    Returns:
      The updates (see `update_dtype`), and by name the moments, as they are stored, and
      what was emitted, a tree of its leaves.
    """
    for name, moment in signed.items():
        check_gradient(updates, moment)
        check_holds_complex(updates, moment, dtype_argument or f"{name}_dtype")
    for moment in unsigned.values():
        check_gradient(updates, moment)
    for name, moment in reduced.items():
        _check_reduced(updates, moment, name, each.get("axes"))
    if params is not None:
        _tree.check_like_params(updates, params)
    moments = {**signed, **unsigned, **reduced}
    slots = [Slot(name, held, name not in signed) for name, held in moments.items()]
    order = list(each)
    leaves = jax.tree.leaves(updates)
    rows = iter(zip(*each.values(), strict=True) if each else [()] * len(leaves))
    streams = [
        range(i, len(leaves) * len(slots), len(slots)) for i in range(len(slots))
    ]
    columns = [slot.starts(own) for slot, own in zip(slots, streams, strict=True)]
    starts = iter(zip(*columns, strict=True) if slots else [()] * len(leaves))
    turn = jnp.zeros((), jnp.float32)
    once = traced_once(rule)
    by_dtype: dict[Any, dict[str, Any]] = {}

    def leaf(g: Any, p: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        nonlocal turn
        g = jnp.asarray(g)
        held = [at_turn(turn, own) for own in deal(arrays, slots)]
        dtype = _arithmetic_dtype(g, held)
        real = real_dtype(dtype)
        if real not in by_dtype:
            by_dtype[real] = jax.tree.map(lambda v: _as_scalar(v, real), scalars)
        values = {**by_dtype[real]}
        values |= dict(zip(order, next(rows), strict=True))
        # The types of what a rule chooses between must agree.
        own_codes = held[0][0] if held else g
        if reads_params:
            values["p"] = load(placed_like(jnp.asarray(p), own_codes), dtype)
        wide = placed_like(g, own_codes).astype(dtype)

        late, held_late = turn_of(p), held
        if late is not None:
            held_late = [at_turn_to_store(late, own, dtype) for own in held]

        def run(known: Any = None) -> tuple[jax.Array, ...]:
            held_then = held_late
            if known is not None:
                held_then = [at_turn(known, own) for own in held_late]
            return compute(held_then)

        def compute(held_then: Any) -> tuple[jax.Array, ...]:
            pairs = enumerate(zip(slots, held_then, strict=True))
            inputs = [
                slot.load(own, dtype if i < len(signed) else real)
                for i, (slot, own) in pairs
            ]
            return once(wide, *inputs, **values)

        update, *new = compute(held)
        chex.assert_equal_shape([update, g])
        emitted = new[len(slots) :]
        stored: list[jax.Array] = []
        begin = next(starts)
        for i, (slot, own) in enumerate(zip(slots, held, strict=True)):
            chex.assert_equal_shape([new[i], own[0]])
            if slot.name in unchanged:
                stored += own
            elif slot.is_encoded(own):
                # Computed anew for each result, for XLA to fuse: see `Slot.load`.
                again = functools.partial(lambda i, known: run(known)[1 + i], i)
                if is_in_passes(own):
                    again = functools.partial(lambda x, known: x, new[i])
                new_own = slot.store(own, again, begin[i])
                turn = turn_after(new_own, turn)
                stored += new_own
            else:
                is_narrow = own[0].dtype.itemsize < new[i].dtype.itemsize
                x = new[i] if late is None or not is_narrow else run()[1 + i]
                stored += [x.astype(own[0].dtype), *own[1:]]
        return (update.astype(update_dtype(g, p)), *stored, *emitted)

    trees = [tree for slot in slots for tree in slot.trees]
    updates, *new = _tree.map_leaves(
        leaf, 1 + len(trees) + len(emits), updates, params, *trees
    )
    held = zip(slots, deal(new, slots), strict=True)
    stored = {slot.name: slot.state(own) for slot, own in held}
    return updates, stored | dict(zip(emits, new[len(trees) :], strict=True))


def _arithmetic_dtype(g: jax.Array, held: Sequence[Sequence[jax.Array]]) -> Any:
    """At least float32; float64 where the gradient or a moment is."""
    dtype = at_least_single(g.dtype)
    for own in held:
        is_float = jnp.issubdtype(own[0].dtype, jnp.inexact)
        if is_float and real_dtype(own[0].dtype) == jnp.float64:
            dtype = promote(dtype, jnp.float64)
    return dtype


def _as_scalar(value: Any, dtype: Any) -> Any:
    if isinstance(value, bool) or dtype_of(value) == jnp.bool_:
        return value
    return jnp.asarray(value, dtype)
