"""Sums over each of many arrays, row by row."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree

# Many small arrays of one shape are stacked first: a reduction for each would take
# long to compile (see `_tree.global_sum`).
_SMALL = 16_384
_MANY = 4


def row_squares(
    arrays: Sequence[jax.Array], is_stack: Sequence[bool]
) -> list[jax.Array]:
    """The sum of |x|^2 over each row of each array; see `_by_row`."""

    def total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        x = _tree.wide(x)
        if jnp.iscomplexobj(x):
            return jnp.sum(_tree.abs_squared(x), axis=axes)
        # Not x * x, which is also a part of Adam's updates: what is read twice, XLA
        # writes to memory.
        return -jnp.sum(x * -x, axis=axes)

    return _by_row(total, arrays, is_stack)


def _by_row(
    reduce: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    arrays: Sequence[jax.Array],
    is_stack: Sequence[bool],
) -> list[jax.Array]:
    """Each row of each array as one number.

    Args:
      reduce: of an array and the axes to reduce.
      arrays: of the shape (rows, ...), or of any for one row.
      is_stack: whether it is of the first kind.

    Returns:
      For each array, float32 (float64) of shape (rows,).
    """

    def total(x: jax.Array, first: int) -> jax.Array:
        return reduce(x, tuple(range(first, x.ndim)))

    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        small = 0 < math.prod(x.shape) <= _SMALL
        sharding = str(getattr(jax.typeof(x), "sharding", None))
        key = (x.shape, x.dtype, is_stack[i], sharding) if small else i
        groups.setdefault(key, []).append(i)
    found: dict[int, jax.Array] = {}
    for members in groups.values():
        first = int(is_stack[members[0]])
        if len(members) < _MANY:
            found |= {i: total(arrays[i], first) for i in members}
        else:
            table = total(jnp.stack([arrays[i] for i in members]), 1 + first)
            found |= {i: table[k] for k, i in enumerate(members)}
    return [jnp.atleast_1d(found[i]) for i in range(len(arrays))]
