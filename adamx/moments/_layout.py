"""Scales of an encoded array: which elements share one, and the largest of each group.

A scale array has the rank of its array. Along each axis it is as long as the array (one
number each), 1 (one for all) or a number of blocks of equal length (the last may be
shorter); its shape alone says which, since blocks are made as even as they can be.

    rank1    two scales, by row and by column; an element's is the smaller of its two
    column   one for each column: along the last axis but one they are shared
    row      one for each row: shared along the last axis
    block    one for each block of the last axis
    tensor   one for all

Leading axes (layers, windows of a convolution) have scales of their own.

Source: Dettmers, Lewis, Shleifer & Zettlemoyer, "8-bit Optimizers via Block-wise
Quantization" (2022), section 2.1 (blocks); Li, Chen & Zhu, "Memory Efficient Optimizers
with 4-bit States" (2023), section 4.2 (rank-1). Difference: rank-1 scales there are of
all axes, here of the last two, layer by layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

# How many scales an array has, by layout.
COUNTS = {"rank1": 2, "column": 1, "row": 1, "block": 1, "tensor": 1}
LAYOUTS = tuple(COUNTS)

# A block where the axis is not taken whole, and no other length is asked for.
_BLOCK = 256
# rank1 leaves a scale out that has more than 1 number for so many elements.
_SHARED_BY = 16
# Into so many slices an axis is cut before it is reduced; with 16, XLA gives up.
_SLICES = 8
# Each of runs from all over the axis: where it is sharded, every device has its part of
# all slices, and none is sent. Runs of so many elements in memory's own direction, of
# so many rows across it: shorter ones are slower on CPUs.
_RUN, _ROWS = 16, 8

Shape = tuple[int, ...]


def scale_shapes(
    shape: Shape, layout: str, block: int | None, rows: int | None = None
) -> tuple[Shape, ...]:
    """The shapes of the scales of an array, as many as `COUNTS` says.

    Args:
      shape: of the array.
      layout: one of `LAYOUTS`. Vectors have blocks in all but "tensor".
      block: into blocks of at most how many elements a shared axis is divided; None:
        shared as a whole, vectors and "block" in 256s.
      rows: where `block` is None, the scale of a column is for that many rows or more
        (fewer than twice as many); None: for all.

    Returns:
      One or two shapes; the second of rank1 is that of one number for all, (1, ...),
      where one array is enough: in vectors, and where it would have more than 1/16 of
      the elements.

    Raises:
      ValueError: an unknown layout.
    """
    if layout not in COUNTS:
        raise ValueError(
            f"`layout` must be one of {', '.join(map(repr, COUNTS))}, got {layout!r}; "
            "pass one of these names."
        )
    if layout == "tensor" or not shape:
        return _padded(((1,) * len(shape),), shape, layout)
    last = _blocks(shape[-1], block or _BLOCK)
    if len(shape) == 1 or layout == "block":
        return _padded(((*shape[:-1], last),), shape, layout)
    *leading, height, columns = shape
    by_row = (*leading, height, _blocks(columns, block or columns))
    if block is None and rows is not None:
        height_of_block = -(-height // max(height // rows, 1))
    else:
        height_of_block = block or height
    by_column = (*leading, _blocks(height, height_of_block), columns)
    # By name, so that a layout without shapes of its own is an error here.
    shapes = {
        "row": (by_row,),
        "column": (by_column,),
        "rank1": _affordable(shape, by_row, by_column),
    }
    return _padded(shapes[layout], shape, layout)


def _blocks(length: int, block: int) -> int:
    return -(-length // max(block, 1)) if length else 0


def _affordable(shape: Shape, by_row: Shape, by_column: Shape) -> tuple[Shape, ...]:
    """What rank1 keeps of its two scales, coarser where they would be too many."""
    limit = math.prod(shape) // _SHARED_BY
    coarse_column = (*(1 for _ in shape[:-1]), shape[-1])
    candidates = [(by_row,), (by_column, coarse_column)]
    found = [
        next((s for s in either if math.prod(s) <= limit), None)
        for either in candidates
    ]
    return tuple(s for s in found if s is not None) or ((1,) * len(shape),)


def _padded(shapes: tuple[Shape, ...], shape: Shape, layout: str) -> tuple[Shape, ...]:
    """As many shapes as the layout has, of one number where fewer are needed."""
    missing = COUNTS[layout] - len(shapes)
    return (*shapes, *(one_for_all(shape),) * missing)


def one_for_all(shape: Shape) -> Shape:
    """The shape of one number for a whole array.

    Also where nothing is to be scaled: arrays of size 0 are refused by checkpoints.
    """
    return (1,) * len(shape)


def placed_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """x with the sharding of another array, where that is a part of its type.

    So it is on a mesh with explicit axes: there a maximum by row is sharded by rows,
    whatever the state it goes into has; a gradient is whole, and with ZeRO-1 its moment
    in pieces. Elsewhere, and where the shapes differ, x as it is.
    """
    if x.shape != other.shape or not hasattr(jax.sharding, "reshard"):
        return x
    place, spec = _explicit_spec(other)
    if place is None or _explicit_spec(x)[1] == spec:
        return x
    return jax.sharding.reshard(x, NamedSharding(place.mesh, PartitionSpec(*spec)))


def placed_together(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Both with the sharding of their sum, where that is a part of the type.

    An axis that one of them has whole is cut as the other has it: nothing is sent.
    None where there is no such sharding, and one cannot be chosen in the other's place.
    """
    (place, spec), (other, own) = _explicit_spec(x), _explicit_spec(y)
    if spec == own:
        return x, y
    if x.shape != y.shape or not hasattr(jax.sharding, "reshard"):
        return None
    if not any(isinstance(a, jax.core.Tracer) for a in (x, y)):
        return None  # an operation alone, which needs no mesh and is fused with nothing
    if any(a and b and a != b for a, b in zip(spec, own, strict=True)):
        return None
    both = [a or b for a, b in zip(spec, own, strict=True)]
    names = [n for a in both if a for n in ((a,) if isinstance(a, str) else a)]
    if len(set(names)) < len(names):
        return None
    where = NamedSharding((place or other).mesh, PartitionSpec(*both))
    return jax.sharding.reshard(x, where), jax.sharding.reshard(y, where)


def spread(scale: jax.Array, shape: Shape) -> jax.Array:
    """A scale by element: of a shape that broadcasts to the array's."""
    for axis, (n, d) in enumerate(zip(shape, scale.shape, strict=True)):
        if d in (1, n):
            continue
        # Not jnp.repeat, which gathers.
        span = -(-n // d)
        before, behind = scale.shape[:axis], scale.shape[axis + 1 :]
        scale = jnp.expand_dims(scale, axis + 1)
        scale = jnp.broadcast_to(scale, (*before, d, span, *behind))
        scale = scale.reshape(*before, d * span, *behind)
        scale = jax.lax.slice_in_dim(scale, 0, n, axis=axis)
    return scale


def largest(
    x: jax.Array, groups: Sequence[int], *, is_simple: bool = False
) -> jax.Array:
    """The largest element of each group of an array >= 0; NaN has no part in it.

    Args:
      x: the array.
      groups: the shape of a scale of it.
      is_simple: whether axes are reduced in one operation each, where it is known that
        they are whole.

    Returns:
      An array of that shape, >= 0.
    """
    for axis, (n, d) in enumerate(zip(x.shape, groups, strict=True)):
        if n != d and d == 1 and is_simple:
            x = jnp.max(jnp.where(jnp.isnan(x), 0, x), axis=axis, keepdims=True)
        elif n != d and is_simple and _explicit_pieces(x, axis) == 1:
            x = _by_block(jnp.where(jnp.isnan(x), 0, x), axis, d)
            x = jnp.max(x, axis=axis + 1, initial=0)
        elif n != d:
            x = _largest_along(x, axis, d)
    return jnp.where(jnp.isnan(x), 0, x)


def _by_block(x: jax.Array, axis: int, blocks: int) -> jax.Array:
    """An axis as (blocks, elements of a block), filled up with -inf."""
    n = x.shape[axis]
    span = -(-n // blocks)
    if span * blocks > n:
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (0, span * blocks - n, 0)
        x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    return x.reshape(*x.shape[:axis], blocks, span, *x.shape[axis + 1 :])


def _largest_along(x: jax.Array, axis: int, blocks: int) -> jax.Array:
    """The largest element >= 0 of each of so many blocks of one axis."""
    n = x.shape[axis]
    span = -(-n // blocks)
    if blocks % _explicit_pieces(x, axis) and blocks > 1:
        x = _whole_along(x, axis)  # no device has whole blocks
    if span * blocks > n:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, span * blocks - n)
        x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], blocks, span, *x.shape[axis + 1 :])
    axis += 1
    # The first steps as comparisons of slices: XLA fuses them with what makes x, which
    # it would write to memory for a reduction. No NaN is larger than what there is.
    part = span // _SLICES
    runs = _run_count(part, _RUN if axis == x.ndim - 1 else _ROWS)
    along = _explicit_pieces(x, axis)
    if runs % along or (span - part * _SLICES) % along:
        part = 0
    # One element alone XLA would compute anew, from the old codes, wherever the scale
    # is read; and copy them, for what is written over them.
    first = max(span - 2, 0) if part * _SLICES == span - 1 else part * _SLICES
    rest = jax.lax.slice_in_dim(x, first, span, axis=axis)
    found = jnp.max(jnp.where(jnp.isnan(rest), 0, rest), axis=axis, initial=0)
    if part:
        x = _in_runs(jax.lax.slice_in_dim(x, 0, part * _SLICES, axis=axis), axis, runs)
        pieces = [
            jax.lax.slice_in_dim(x, i, i + 1, axis=axis + 1) for i in range(_SLICES)
        ]
        # Not by a comparison with 0, which XLA takes to be true of absolute values.
        largest = jnp.where(jnp.isnan(pieces[0]), 0, pieces[0])
        for piece in pieces[1:]:
            largest = jnp.where(piece > largest, piece, largest)
        found = jnp.maximum(found, jnp.max(largest, axis=(axis, axis + 1, axis + 2)))
    return found


def _run_count(part: int, shortest: int) -> int:
    """Into how many runs a slice is divided, all of a length."""
    most = max(part // shortest, 1)
    return next(n for n in range(most, 0, -1) if part % n == 0)


def _in_runs(x: jax.Array, axis: int, runs: int) -> jax.Array:
    """An axis as (runs, slices, elements of a run)."""
    before, n, behind = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    shape = (*before, runs, _SLICES, n // (runs * _SLICES), *behind)
    if _explicit_pieces(x, axis) == 1:
        return x.reshape(shape)
    place, spec = _explicit_spec(x)
    spec = [*spec[: axis + 1], None, None, *spec[axis + 1 :]]
    place = NamedSharding(place.mesh, PartitionSpec(*spec))
    lax: Any = jax.lax
    return lax.reshape(x, shape, out_sharding=place)


def _whole_along(x: jax.Array, axis: int) -> jax.Array:
    """An array with one axis on every device, on a mesh with explicit axes."""
    place, spec = _explicit_spec(x)
    spec[axis] = None
    return jax.sharding.reshard(x, NamedSharding(place.mesh, PartitionSpec(*spec)))


def _explicit_spec(x: jax.Array) -> tuple[Any, list[Any]]:
    """The sharding that is a part of an array's type; and its spec, axis by axis."""
    place: Any = getattr(jax.typeof(x), "sharding", None)
    if place is None or place.mesh.empty:
        return None, [None] * x.ndim
    spec = getattr(place.spec, "partitions", place.spec)
    return place, [*spec, *[None] * (x.ndim - len(spec))]


def _explicit_pieces(x: jax.Array, axis: int) -> int:
    """How many devices divide an axis, where that is a part of the array's type."""
    place, spec = _explicit_spec(x)
    names = spec[axis] or ()
    names = (names,) if isinstance(names, str) else names
    return math.prod(place.mesh.shape[name] for name in names)
