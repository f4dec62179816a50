"""Sums over each of many arrays, row by row."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _tree

# Many small arrays of one shape are stacked first: a reduction for each would take
# long to compile (see `_tree.global_sum`).
_SMALL = 16_384
_MANY = 4


def row_squares(
    arrays: Sequence[jax.Array], rows: Sequence[int], is_stack: Sequence[bool]
) -> jax.Array:
    """The sum of |x|^2 over each row of each array.

    Args:
      arrays: of the shape (rows, ...), or of any for one row.
      rows: how many each has.
      is_stack: whether it is of the first kind.

    Returns:
      float32 (rows of all arrays,), in their order.
    """
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        small = 0 < math.prod(x.shape) <= _SMALL
        sharding = str(getattr(jax.typeof(x), "sharding", None))
        key = (x.shape, x.dtype, is_stack[i], sharding) if small else i
        groups.setdefault(key, []).append(i)
    found, order = [jnp.zeros(0, jnp.float32)], []
    for members in groups.values():
        first = int(is_stack[members[0]])
        if len(members) < _MANY:
            own = [_minus_squares(arrays[i], first) for i in members]
        else:
            own = [_minus_squares(jnp.stack([arrays[i] for i in members]), 1 + first)]
        found += [x.reshape(-1).astype(jnp.float32) for x in own]
        order += members
    # Put in order and made positive at once: a step for each would be slow to compile.
    ends = np.cumsum([rows[i] for i in order])
    start = {i: end - rows[i] for i, end in zip(order, ends, strict=True)}
    places = [start[i] + np.arange(rows[i]) for i in range(len(arrays))]
    if not places:
        return found[0]
    return -jnp.concatenate(found)[np.concatenate(places)]


def _minus_squares(x: jax.Array, first: int) -> jax.Array:
    """-sum(|x|^2) over all axes from the first on."""
    x, axes = _tree.wide(x), tuple(range(first, x.ndim))
    if jnp.iscomplexobj(x):
        return -jnp.sum(_tree.abs_squared(x), axis=axes)
    # Not x * x, which is also a part of Adam's updates: what is read twice, XLA
    # writes to memory.
    return jnp.sum(x * -x, axis=axes)
