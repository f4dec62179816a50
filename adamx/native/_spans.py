"""One number for the elements of a column in so many rows: how it is read, and found.

    read:  x[..., r, c] = numbers[..., r // span, c]
    found: numbers[..., b, c] = the largest x[..., r, c] of r // span = b

In a trace the first is a broadcast, a reshape and, where the last rows are fewer, a
slice; the second a reshape and a reduction, of an array that was filled up with what is
never the largest. In C both are an index.
"""

import math
from typing import NamedTuple

from adamx.native._graph import Node, Number, Operand, Value
from adamx.native._windows import window_of


class Spread(NamedTuple):
    """A value whose elements are one number for each column of so many rows.

    Attributes:
      numbers: of shape (..., blocks, columns).
      span: how many rows share one.
      nodes: what makes the value of them, in order.
    """

    numbers: Value
    span: int
    nodes: tuple[Node, ...]


class Reduction(NamedTuple):
    """What is reduced, and to what.

    Attributes:
      value: the array.
      kind: "single", "row" (one number for each row) or "column".
      span: for how many rows of a column there is a number; None: for all of a matrix.
      nodes: what is between the array and the reducing operation, in order.
    """

    value: Value
    kind: str
    span: int | None = None
    nodes: tuple[Node, ...] = ()


def spread_of(value: Value) -> Spread | None:
    """The numbers that a value is spread from, or None."""
    node = value.node
    if node is None or node.name not in ("slice", "reshape"):
        return None
    if len(value.shape) < 2 or 0 in value.shape:
        return None
    nodes = [node]
    if node.name == "slice":
        if not _is_of_first_rows(node) or (inner := _maker(node.inputs[0])) is None:
            return None
        nodes.append(inner)
    repeated = _maker(nodes[-1].inputs[0])
    if not _is_reshape(nodes[-1]) or repeated is None:
        return None
    nodes.append(repeated)
    if not _is_along_rows(repeated):
        return None
    numbers = repeated.inputs[0]
    widened = _maker(numbers)
    if widened is not None and (_is_reshape(widened) or _is_along_rows(widened)):
        nodes.append(widened)
        numbers = widened.inputs[0]
    if not isinstance(numbers, Value) or len(numbers.shape) != len(value.shape):
        return None
    *leading, rows, columns = value.shape
    blocks = numbers.shape[-2]
    if numbers.shape != (*leading, blocks, columns):
        return None
    span = -(-rows // blocks)
    is_repeated = repeated.outputs[0].shape == (*leading, blocks, span, columns)
    is_repeated &= repeated.inputs[0].shape in (
        (*leading, blocks, 1, columns),
        numbers.shape,
    )
    if not is_repeated or blocks != -(-rows // span):
        return None
    return Spread(numbers, span, tuple(reversed(nodes)))


def reduction_of(node: Node) -> Reduction | None:
    """What a reducing operation makes of an array; None: of no array, or no such thing.

    A sum by column would depend on which thread adds what first: there is none.
    """
    value = node.inputs[0] if node.inputs else None
    if not isinstance(value, Value) or not value.shape or "axes" not in node.params:
        return None
    last = len(value.shape) - 1
    axes = sorted(node.params["axes"])
    if axes == list(range(last + 1)):
        return Reduction(value, "single")
    if last > 0 and axes == [last]:
        return Reduction(value, "row")
    if last == 0 or axes != [last - 1] or node.name == "reduce_sum":
        return None
    return _of_blocks(value) or Reduction(value, "column")


def _of_blocks(value: Value) -> Reduction | None:
    """The reduction over the rows of each block of (..., blocks, rows, columns)."""
    node = value.node
    if node is None or window_of(value) is not None or not _is_reshape(node):
        return None
    if len(value.shape) < 3 or 0 in value.shape:
        return None
    whole = node.inputs[0]
    *leading, blocks, span, columns = value.shape
    if not isinstance(whole, Value) or whole.shape != (
        *leading,
        blocks * span,
        columns,
    ):
        return None
    filling = whole.node
    if filling is None or filling.name != "pad":
        return Reduction(whole, "column", span, (node,))
    array = filling.inputs[0]
    if not isinstance(array, Value) or not _is_filled_up(filling, span):
        return None
    return Reduction(array, "column", span, (filling, node))


def _is_filled_up(node: Node, span: int) -> bool:
    """Whether rows were added, fewer than a block has, that are never the largest."""
    number, config = node.inputs[1], node.params["padding_config"]
    *others, (low, high, inner), last = config
    is_lowest = isinstance(number, Number) and number.value == -math.inf
    is_rest_whole = all(tuple(x) == (0, 0, 0) for x in (*others, last))
    return is_lowest and is_rest_whole and low == inner == 0 <= high < span


def _maker(operand: Operand) -> Node | None:
    return operand.node if isinstance(operand, Value) else None


def _is_reshape(node: Node) -> bool:
    return node.name == "reshape" and node.params.get("dimensions") is None


def _is_along_rows(node: Node) -> bool:
    """Whether a broadcast leaves each axis where it is, but for a new last but one."""
    if node.name != "broadcast_in_dim":
        return False
    rank, held = len(node.params["shape"]), node.params["broadcast_dimensions"]
    axes = range(rank)
    return tuple(held) in (tuple(axes), (*axes[: rank - 2], rank - 1))


def _is_of_first_rows(node: Node) -> bool:
    """Whether a slice leaves out nothing but rows at the end."""
    shape, own = node.inputs[0].shape, node.outputs[0].shape
    is_from_start = not any(node.params["start_indices"])
    is_dense = all(n == 1 for n in node.params["strides"] or ())
    is_rest_whole = shape[:-2] == own[:-2] and shape[-1] == own[-1]
    return is_from_start and is_dense and is_rest_whole
