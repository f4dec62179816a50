"""Many small arrays of a tree as few flat ones, and back.

JAX takes a few microseconds for each array that enters or leaves a compiled function,
whatever its size. A `Packed` stands in a state where a tree was, and holds the tree's
small leaves end to end, those of one dtype in one array:

    {"a": f32[2,3], "b": f32[4], "c": f32[1000,1000]}  <->  f32[10], f32[1000,1000]

Which part of which array a leaf is, is static, and goes wherever the arrays go. What
looks into a state for a tree sees it with `unpacked`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamx import _varying
from adamx._traced import is_for_passes
from adamx._types import PyTree

# So many leaves, and a loop of its own for each takes long to compile.
_MANY = 16
# Elements of an array: 32 bits can count them.
_LONGEST = 2**30


class Place(NamedTuple):
    """Where a leaf is.

    Attributes:
      array: the number of the array.
      offset: of its first element there; None: it is the whole array, as it was.
      shape: of the leaf.
    """

    array: int
    offset: int | None
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which leaf is where.

    Attributes:
      structure: of the tree.
      places: of its leaves, in order.
    """

    structure: Any
    places: tuple[Place, ...]

    # Both are asked for in each call of a compiled function.
    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Layout):
            return self is other
        return self.places == other.places and self.structure == other.structure

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.structure, self.places))

    def __deepcopy__(self, memo: Any) -> "Layout":
        return self

    def __repr__(self) -> str:
        return f"Layout({len(self.places)} leaves)"

    @functools.cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """For each array the numbers of its leaves, in their order in it."""
        found: dict[int, list[int]] = {}
        for i, place in enumerate(self.places):
            found.setdefault(place.array, []).append(i)
        return tuple(tuple(found[array]) for array in sorted(found))

    def is_joined(self, array: int) -> bool:
        """Whether an array holds leaves end to end."""
        return self.places[self.members[array][0]].offset is not None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """In the place of a tree: its small leaves end to end, the others as they were.

    Attributes:
      arrays: flat ones, and single leaves.
      layout: static; which leaf is where.
    """

    arrays: tuple[Any, ...]
    layout: Layout = dataclasses.field(metadata={"static": True})


def is_packed(node: Any) -> bool:
    """Whether a node of a tree is a `Packed`."""
    return isinstance(node, Packed)


# ------------------------------------------------------------------------------ there


def packed(tree: PyTree, is_small: Callable[[int, Any], bool]) -> PyTree:
    """The tree with its small leaves end to end; itself where no two can be.

    Args:
      tree: of arrays.
      is_small: of a leaf's number and the leaf.
    """
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    lengths: dict[Any, int] = {}
    for i, x in enumerate(leaves):
        key = _kind(x) if is_small(i, x) else None
        if key is not None:
            lengths[key] = lengths.get(key, 0) + math.prod(np.shape(x))
            key = (key, lengths[key] // _LONGEST)
        groups.setdefault(i if key is None else key, []).append(i)
    if len(groups) == len(leaves):
        return tree
    places: list[Any] = [None] * len(leaves)
    for number, own in enumerate(groups.values()):
        offset = 0
        for i in own:
            shape = tuple(np.shape(leaves[i]))
            places[i] = Place(number, offset if len(own) > 1 else None, shape)
            offset += places[i].size
    return _filled(Layout(structure, tuple(places)), leaves)


def _kind(x: Any) -> Any:
    """Leaves that can be put end to end have the same; None: by itself."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):  # random keys
        return None
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is not None and any(axes for axes in sharding.spec):
        return None  # a dimension that a mesh's explicit axis divides
    return x.dtype, _varying.axes_of(x)


def packed_like(tree: PyTree, like: PyTree) -> PyTree:
    """A tree of trees with each packed where a `Packed` is in `like`."""
    nodes = jax.tree.leaves(like, is_leaf=is_packed)
    structure: Any = jax.tree.structure(like, is_leaf=is_packed)
    if not any(map(is_packed, nodes)):
        return tree
    below = structure.flatten_up_to(tree)
    pairs = zip(below, nodes, strict=True)
    return structure.unflatten(
        [
            _filled(old.layout, _leaves_of(new, old.layout)) if is_packed(old) else new
            for new, old in pairs
        ]
    )


def _leaves_of(tree: PyTree, layout: Layout) -> Sequence[Any]:
    """The leaves of what was unpacked, with the boxes around them or without."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) != len(layout.places):
        return list(layout.structure.flatten_up_to(tree))  # says what is unlike
    return leaves


def _filled(layout: Layout, leaves: Sequence[Any]) -> Packed:
    arrays = []
    for number, own in enumerate(layout.members):
        parts = [leaves[i] for i in own]
        joined = layout.is_joined(number)
        arrays.append(_joined(layout, own, parts) if joined else parts[0])
    return Packed(tuple(arrays), layout)


def _joined(layout: Layout, own: Sequence[int], parts: Sequence[Any]) -> Any:
    sizes = [layout.places[i].size for i in own]
    lead = np.shape(parts[0])[: np.ndim(parts[0]) - len(layout.places[own[0]].shape)]
    if len({x.dtype for x in parts}) > 1:
        found = sorted({str(x.dtype) for x in parts})
        raise TypeError(
            "arrays of a state that were put together must keep one dtype, got "
            f"{' and '.join(found)}: the wrapped transformation returns a state of "
            "other dtypes than its init makes. Give it gradients of the parameters' "
            "dtype, or fix the dtype of its moments (mu_dtype)."
        )
    if isinstance(parts[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*lead, sum(sizes)), parts[0].dtype)
    if all(isinstance(x, np.ndarray) for x in parts):
        flat = [x.reshape(*lead, n) for x, n in zip(parts, sizes, strict=True)]
        return np.concatenate(flat, axis=-1)
    flat = [
        x if np.ndim(x) == 1 else lax.reshape(x, (*lead, n))
        for x, n in zip(map(jnp.asarray, parts), sizes, strict=True)
    ]
    if any(isinstance(x, jax.core.Tracer) for x in flat):
        return lax.concatenate(flat, len(lead))
    return jnp.concatenate(flat, axis=-1)  # eagerly, some at a time


# ------------------------------------------------------------------------------- back


def unpacked(tree: PyTree) -> PyTree:
    """A tree with the trees themselves in the place of every `Packed` in it.

    Of a batch of states, arrays with leading axes, the leaves have them too.
    """
    return jax.tree.map(_unpacked, tree, is_leaf=is_packed)


def unpacked_beside(tree: PyTree, like: PyTree) -> PyTree:
    """`unpacked`, without the boxes that `like` has not.

    Flax's nnx.Optimizer makes a state of boxed parameters, and takes boxes off before
    an update; those in the structure of a `Packed` it does not see.
    """
    tree = unpacked(tree)
    if any(map(_is_box, jax.tree.leaves(like, is_leaf=_is_box))):
        return tree
    return jax.tree.map(_in_no_box, tree, is_leaf=_is_box)


def _is_box(node: Any) -> bool:
    return hasattr(type(node), "value") and not isinstance(
        node, (jax.Array, np.ndarray)
    )


def _in_no_box(node: Any) -> Any:
    leaves = jax.tree.leaves(node) if _is_box(node) else ()
    return leaves[0] if len(leaves) == 1 else node


def _unpacked(node: Any) -> Any:
    if not is_packed(node):
        return node
    layout = node.layout
    leaves: list[Any] = [None] * len(layout.places)
    for number, (array, own) in enumerate(
        zip(node.arrays, layout.members, strict=True)
    ):
        parts = [array]
        if layout.is_joined(number):
            parts = _split(_in_box(array), [layout.places[i] for i in own])
        for i, part in zip(own, parts, strict=True):
            leaves[i] = part
    return layout.structure.unflatten(leaves)


def _in_box(array: Any) -> Any:
    """The array in a box of one (Flax's nnx.Variable), or itself."""
    return array if hasattr(array, "dtype") and hasattr(array, "ndim") else array.value


def _split(array: Any, places: Sequence[Place]) -> list[Any]:
    lead = tuple(array.shape[:-1])
    shapes = [(*lead, *place.shape) for place in places]
    if isinstance(array, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(shape, array.dtype) for shape in shapes]
    sizes = [place.size for place in places]
    if isinstance(array, np.ndarray):
        pieces = np.split(array, np.cumsum(sizes)[:-1], axis=-1)
        return [x.reshape(shape) for x, shape in zip(pieces, shapes, strict=True)]
    if not isinstance(array, jax.core.Tracer):
        pairs = zip(places, shapes, strict=True)
        return [_cut(array, place.offset, place.size, shape) for place, shape in pairs]
    if is_for_passes() or len(places) < _MANY or not array.size:
        parts = lax.split(array, sizes, axis=array.ndim - 1)
        return [_shaped(x, shape) for x, shape in zip(parts, shapes, strict=True)]
    offsets = _unfolded([place.offset or 0 for place in places], array)
    rows = zip(offsets, sizes, shapes, strict=True)
    return [_piece(array, *row) for row in rows]


def _piece(array: Any, offset: Any, size: int, shape: tuple[int, ...]) -> Any:
    part = lax.dynamic_slice_in_dim(array, offset, size, array.ndim - 1)
    return _shaped(part, shape)


# One program for all leaves of a shape, wherever they begin.
_cut = jax.jit(_piece, static_argnums=(2, 3))


def _shaped(x: Any, shape: tuple[int, ...]) -> Any:
    return x if x.shape == shape else lax.reshape(x, shape)


def _unfolded(offsets: Sequence[int], array: Any) -> Sequence[Any]:
    """Numbers that XLA's compiler for CPUs does not know.

    It compiles one loop for all leaves of a shape then, and else one for each: 250
    leaves take 0.6 s, and 5 s where a slice's offset is part of the loop. Both branches
    are right, whichever is taken.
    """

    def plain(number: jax.Array) -> tuple[jax.Array, ...]:
        del number
        return tuple(jnp.int32(offset) for offset in offsets)

    def hidden(number: jax.Array) -> tuple[jax.Array, ...]:
        return lax.cond(number > 0, plain, plain, number)

    number = lax.slice(lax.stop_gradient(array), (0,) * array.ndim, (1,) * array.ndim)
    number = jnp.real(number).reshape(()).astype(jnp.float32)
    return lax.platform_dependent(number, cpu=hidden, default=plain)
