"""Which axes of a mesh divide which dimensions of an array: arithmetic on tuples.

`Dims` is a PartitionSpec written out: for each dimension the names of the mesh axes
that divide it, major first, () where it is whole.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

Dims = tuple[tuple[str, ...], ...]
Shape = tuple[int, ...]

# A piece of so many rows fills a tile of the accelerators; longer ones gain nothing.
_LONG = 8


def pieces(axes: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Into how many pieces some axes divide a dimension."""
    return math.prod(sizes[axis] for axis in axes)


def share(shape: Shape, dims: Dims, sizes: Mapping[str, int]) -> int:
    """How many of an array's elements are on one device."""
    pairs = zip(shape, dims, strict=True)
    return math.prod(n // pieces(axes, sizes) for n, axes in pairs)


def as_spec(dims: Dims) -> PartitionSpec:
    """The PartitionSpec, without what says nothing at its end."""
    length = max((i + 1 for i, axes in enumerate(dims) if axes), default=0)
    entries = [
        None if not axes else axes[0] if len(axes) == 1 else axes
        for axes in dims[:length]
    ]
    return PartitionSpec(*entries)


def divided(
    shape: Shape,
    dims: Dims,
    axes: Sequence[str],
    sizes: Mapping[str, int],
    *,
    only_whole: bool = False,
) -> Dims:
    """An array divided by further axes, as many of them as divide it evenly.

    All of them along one dimension where that can be: then one gather makes it whole.

    Args:
      shape, dims: of the array as it is.
      axes: further axes; those that divide it already are left out.
      sizes: of the mesh's axes.
      only_whole: leaves alone what is divided already: with explicit axes, arrays whose
        dimension is divided in two ways do not add up.

    Returns:
      The new dims; the old ones where nothing divides.
    """
    used = {axis for own in dims for axis in own}
    allowed = [not (only_whole and own) for own in dims]
    axes = [axis for axis in axes if axis not in used and sizes[axis] > 1]
    groups = [
        group
        for length in range(len(axes), 0, -1)
        for group in itertools.combinations(axes, length)
    ]
    for group in sorted(groups, key=lambda g: -pieces(g, sizes)):
        at = _best_dimension(shape, dims, group, sizes, allowed)
        if at is not None:
            dims = (*dims[:at], (*dims[at], *group), *dims[at + 1 :])
            return divided(shape, dims, axes, sizes, only_whole=only_whole)
    return dims


def _best_dimension(
    shape: Shape,
    dims: Dims,
    axes: Sequence[str],
    sizes: Mapping[str, int],
    allowed: Sequence[bool],
) -> int | None:
    """Of those that divide evenly: a whole one, with long pieces, the first.

    The first, since its pieces are contiguous in memory: a gather only appends them.
    """
    best = None
    for at, (n, own) in enumerate(zip(shape, dims, strict=True)):
        count = pieces((*own, *axes), sizes)
        if allowed[at] and n and n % count == 0:
            rank = (bool(own), -min(n // count, _LONG), at)
            best = rank if best is None else min(best, rank)
    return None if best is None else best[-1]


def projected(shape: Shape, like: Shape, dims: Dims, sizes: Mapping[str, int]) -> Dims:
    """How an array of a state is divided, beside a parameter divided by `dims`.

    Dimension by dimension: its own are divided alike; numbers of blocks where every
    device has whole blocks; the rest is whole. Leading dimensions that the parameter
    has not (a history of it) are whole.

    Args:
      shape: of the state's array.
      like, dims: of the parameter.
      sizes: of the mesh's axes.
    """
    extra = len(shape) - len(like)
    if extra < 0 or (extra > 0 and shape[extra:] != like):
        return ((),) * len(shape)
    rest = zip(shape[extra:], like, dims, strict=True)
    return ((),) * extra + tuple(_along(d, n, axes, sizes) for d, n, axes in rest)


def _along(
    blocks: int, length: int, axes: tuple[str, ...], sizes: Mapping[str, int]
) -> tuple[str, ...]:
    if blocks == length:
        return axes
    if not blocks or length % blocks:
        return ()
    while axes and blocks % pieces(axes, sizes):
        axes = axes[:-1]
    return axes
