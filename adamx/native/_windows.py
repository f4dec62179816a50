"""Parts of arrays, where it is only an address that tells them from the whole.

A slice that lies in one piece in memory, a part of a split, and a reshaped array are
read where they are: no copy is made of them. What an array is concatenated from is
written to its place there.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import lax

from adamx.native._graph import UNKNOWN, Graph, Node, Operand, Value
from adamx.native._operations import is_packed

# Results that are in memory in any case: an array may be read from there.
_IN_MEMORY = ("cond", "while", "scan", "dot_general", "conv_general_dilated", "psum")


class Window(NamedTuple):
    """A part of an array in memory, or all of it.

    Attributes:
      base: the array.
      offset: of the first element, in the order of memory.
    """

    base: Value
    offset: int


def window_of(value: Value) -> Window | None:
    """Where a value is in memory before any region runs; None: nowhere."""
    if value.window is UNKNOWN:
        value.window = _find_window(value)
    return value.window


def _find_window(value: Value) -> Window | None:
    node = value.node
    if node is None or node.name in _IN_MEMORY:
        return Window(value, 0)
    step = _offset_in_input(node, value.index)
    if step is None or 0 in value.shape or not isinstance(node.inputs[0], Value):
        return None
    below = window_of(node.inputs[0])
    return below and Window(below.base, below.offset + step)


def _offset_in_input(node: Node, index: int) -> int | None:
    """Where a node's result begins in its input; None: it is not a part of it."""
    if _is_reshape(node):
        return 0
    if node.name == "split":
        shape, axis = node.inputs[0].shape, node.params["axis"]
        if math.prod(shape[:axis]) != 1:
            return None
        return sum(node.params["sizes"][:index]) * math.prod(shape[axis + 1 :])
    if node.name == "slice":
        return _offset_of_slice(node)
    return None


def _offset_of_slice(node: Node) -> int | None:
    shape, starts = node.inputs[0].shape, node.params["start_indices"]
    if any(n != 1 for n in node.params["strides"] or ()):
        return None
    own = node.outputs[0].shape
    axis = next((i for i, n in enumerate(own) if n != 1), len(own))
    if own[axis + 1 :] != shape[axis + 1 :]:
        return None
    return sum(s * math.prod(shape[i + 1 :]) for i, s in enumerate(starts))


def _is_reshape(node: Node) -> bool:
    if node.name == "squeeze":
        return True
    return node.name == "reshape" and node.params.get("dimensions") is None


def base_of(value: Value) -> Value:
    """The array that a value is read from; itself where it is computed."""
    window = window_of(value)
    return value if window is None else window.base


# ------------------------------------------------------------------------------ joins


@dataclasses.dataclass(eq=False)
class Join:
    """A result that is put together of parts, each of which may be made in its place.

    Attributes:
      value: the result.
      parts: the values, reshaping left out.
      offsets: where each begins; and where the last one ends.
    """

    value: Value
    parts: list[Operand]
    offsets: list[int]

    def touched(self, offset: int, size: int) -> Sequence[int]:
        """The numbers of the parts that have elements in a stretch of the array."""
        first = bisect.bisect_right(self.offsets, offset) - 1
        last = bisect.bisect_left(self.offsets, offset + size)
        return range(first, last)


def joins_of(graph: Graph) -> dict[Node, Join]:
    """By its node, each concatenation in memory's order that a graph returns."""
    found: dict[Node, Join] = {}
    for value in graph.outputs:
        node = value.node if isinstance(value, Value) else None
        if node is None or node.name != "concatenate" or node in found:
            continue
        if is_packed(value.dtype):
            continue  # the ends of two parts may share a byte
        if math.prod(value.shape[: node.params["dimension"]]) == 1:
            sizes = [math.prod(x.shape) for x in node.inputs]
            offsets = [0, *itertools.accumulate(sizes)]
            parts = [_unshaped(x) for x in node.inputs]
            found[node] = Join(node.outputs[0], parts, offsets)
    return found


def _unshaped(operand: Operand) -> Operand:
    while isinstance(operand, Value) and operand.node and _is_reshape(operand.node):
        operand = operand.node.inputs[0]
    return operand


# -------------------------------------------------------------------------- the arrays


def cut(array: Any, offset: int, shape: tuple[int, ...]) -> Any:
    """The elements of a window, as an array."""
    size = math.prod(shape)
    if size != array.size:
        whole = array if array.ndim == 1 else lax.reshape(array, (array.size,))
        array = lax.slice(whole, (offset,), (offset + size,))
    return array if array.shape == shape else lax.reshape(array, shape)


def put(array: Any, part: Any, offset: int) -> Any:
    """An array with other elements in a window."""
    whole = array if array.ndim == 1 else lax.reshape(array, (array.size,))
    part = part if part.ndim == 1 else lax.reshape(part, (part.size,))
    whole = lax.dynamic_update_slice(whole, part, (offset,))
    return whole if array.ndim == 1 else lax.reshape(whole, array.shape)
