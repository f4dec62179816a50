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


def row_sums(
    term: Callable[[jax.Array], jax.Array],
    arrays: Sequence[jax.Array],
    rows: Sequence[int],
    is_stack: Sequence[bool],
) -> list[jax.Array]:
    """The sum of a real term over each row of each array.

    Args:
      term: of one array, at least float32.
      arrays: of the shape (rows, ...), or of any for one row.
      rows: how many each has.
      is_stack: whether it is of the first kind.

    Returns:
      For each array, float32 (float64) of shape (rows,).
    """
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
            for i in members:
                found[i] = _sum(term, arrays[i], first).reshape(rows[i])
        else:
            total = _sum(term, jnp.stack([arrays[i] for i in members]), 1 + first)
            for k, i in enumerate(members):
                found[i] = total[k].reshape(rows[i])
    return [found[i] for i in range(len(arrays))]


def count_by_row(
    is_so: Callable[[jax.Array], jax.Array],
    arrays: Sequence[jax.Array],
    rows: Sequence[int],
    is_stack: Sequence[bool],
) -> list[jax.Array]:
    """How many elements of each row are so; one index of the leading axis at a time.

    XLA writes what it counts to memory: so that this is not an array of all.

    Args:
      is_so: of an array, bools.
      arrays, rows, is_stack: as of `row_sums`.
    """

    def count(x: jax.Array, stacked: bool) -> jax.Array:
        if x.ndim < 2 and not stacked:
            return jnp.sum(is_so(x), dtype=jnp.int32)
        each = jax.lax.map(lambda row: jnp.sum(is_so(row), dtype=jnp.int32), x)
        return each if stacked else jnp.sum(each)

    triples = zip(arrays, is_stack, rows, strict=True)
    return [count(x, stacked).reshape(n) for x, stacked, n in triples]


def _sum(term: Callable[[jax.Array], jax.Array], x: jax.Array, first: int) -> jax.Array:
    return jnp.sum(term(_tree.wide(x)), axis=tuple(range(first, x.ndim)))
