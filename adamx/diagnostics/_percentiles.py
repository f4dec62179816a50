"""Percentiles of many rows at once, by bisection on the bits of the numbers.

The bits of floats >= 0, read as integers, are in the order of the numbers. The k-th
smallest of a row is therefore found by 31 halvings of an interval of integers, each a
count over the row: exact, and on a CPU a quarter of the time that sorting takes.
Between two elements it is interpolated as NumPy does (method "linear").
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _varying
from adamx.diagnostics._views import joined, widths

_INFINITY = 0x7F800000  # the bits of inf; those of NaN are larger


def percentiles(
    rows: jax.Array, counts: Sequence[int] | np.ndarray, qs: Sequence[float]
) -> jax.Array:
    """The percentiles of each row.

    Args:
      rows: float32, >= 0, of shape (rows, width).
      counts: for each row, of how many leading elements it consists, > 0.
      qs: in [0, 100].

    Returns:
      float32 of shape (rows, percentiles); NaN for a row that has one.
    """
    width = rows.shape[1]
    sizes = np.asarray(counts, np.int32)[:, None]
    # Computed where it is used: a table of it would be a part of the program.
    outside = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 1) >= sizes
    if (sizes < width).any():
        rows = jnp.where(outside, 0.0, rows)
    # A sum of floats, which XLA for CPUs has ready; of flags, it would compile one.
    has_nan = jnp.isnan(jnp.sum(rows, axis=1, keepdims=True))
    bits = jax.lax.bitcast_convert_type(jnp.abs(rows), jnp.int32)
    # Behind inf: never counted.
    bits = jnp.where(outside, _INFINITY + 1, bits) if (sizes < width).any() else bits
    position = (sizes - 1) * np.asarray(qs, np.float64)[None, :] / 100.0
    first = np.floor(position).astype(np.int32)
    share = (position - first).astype(np.float32)

    low = _smallest_with(bits, first + 1)
    at_most = _count(bits, low)
    a = jax.lax.bitcast_convert_type(low, jnp.float32)
    is_above = (bits[:, None, :] > low[:, :, None]) & (bits[:, None, :] <= _INFINITY)
    values = jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None, :]
    above = jnp.min(jnp.where(is_above, values, jnp.inf), axis=2)
    b = jnp.where(at_most >= first + 2, a, above)
    between = a + (b - a) * share
    found = jnp.where((share == 0.0) | (a == b), a, between)
    return jnp.where(has_nan, jnp.nan, found)


def _count(bits: jax.Array, limit: jax.Array) -> jax.Array:
    """How many of each row are at most each limit: (rows, limits)."""
    inside = bits[:, None, :] <= limit[:, :, None]
    return jnp.sum(inside, axis=2, dtype=jnp.int32)


def _smallest_with(bits: jax.Array, wanted: np.ndarray) -> jax.Array:
    """The smallest integer that at least so many of a row do not exceed."""

    def halve(
        _: int, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        is_enough = _count(bits, middle) >= wanted
        return jnp.where(is_enough, low, middle + 1), jnp.where(is_enough, middle, high)

    shape = wanted.shape
    start = jnp.zeros(shape, jnp.int32), jnp.full(shape, _INFINITY, jnp.int32)
    return jax.lax.fori_loop(0, 31, halve, _varying.start_of(halve, start))[1]


def percentiles_of(
    matrices: Sequence[jax.Array],
    counts: Sequence[Sequence[int] | np.ndarray],
    qs: tuple[float, ...],
) -> jax.Array:
    """Those of the rows of many matrices; matrices of about one width in one go.

    Args:
      matrices: float32, >= 0.
      counts: for each row of each, of how many leading elements it consists.
      qs: in [0, 100].

    Returns:
      float32 of shape (rows of all matrices, percentiles), in their order.
    """
    groups: dict[int, list[int]] = {}
    for i, width in enumerate(widths([x.shape[1] for x in matrices])):
        groups.setdefault(width, []).append(i)
    tables, order = [], []
    for width, members in groups.items():
        padded = joined([_widened(matrices[i], width) for i in members])
        sizes = np.concatenate([counts[i] for i in members])
        tables.append(percentiles(padded, sizes, qs))
        order += members
    rows = [x.shape[0] for x in matrices]
    ends = dict(zip(order, np.cumsum([rows[i] for i in order]), strict=True))
    at = np.concatenate([ends[i] - n + np.arange(n) for i, n in enumerate(rows)])
    return tables[0] if len(tables) == 1 == len(rows) else joined(tables)[at]


def _widened(x: jax.Array, width: int) -> jax.Array:
    missing = width - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing))) if missing else x
