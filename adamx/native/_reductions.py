"""What is reduced to one number: of an array, of a row, of a column in so many rows.

    numbers[..., b, c] = the largest x[..., r, c] of r // span = b

In a trace the last one is a reshape and a reduction, of an array that was filled up
with what is never the largest; in C an index.
"""

import math
from typing import NamedTuple

from adamx.native._graph import Node, Number, Value
from adamx.native._spans import is_reshape
from adamx.native._windows import window_of

_LARGER = "((x) > (a) || (x) != (x)) ? (x) : (a)"
# Where no NaN is looked for: one that is met is passed over.
LARGER_NUMBER = "((x) > (a)) ? (x) : (a)"
# A reduction of elements: (type of the accumulator, its first value, one step).
_REDUCTIONS = {
    ("reduce_sum", "float32"): ("double", "0", "(a) + (x)"),
    ("reduce_sum", "float64"): ("double", "0", "(a) + (x)"),
    ("reduce_sum", "int32"): ("uint32_t", "0", "(a) + (uint32_t)(x)"),
    ("reduce_max", "float32"): ("float", "-INFINITY", _LARGER),
    ("reduce_max", "float64"): ("double", "-INFINITY", _LARGER),
    ("reduce_and", "bool"): ("int32_t", "1", "(a) & (x)"),
    ("reduce_or", "bool"): ("int32_t", "0", "(a) | (x)"),
}


def is_reduction(primitive: str, dtype: str) -> bool:
    """Whether elements of a dtype are reduced here."""
    return (primitive, dtype) in _REDUCTIONS


def reduction(primitive: str, dtype: str) -> tuple[str, str, str]:
    """Type of an accumulator, its first value, and its next one from `a` and `x`."""
    return _REDUCTIONS[primitive, dtype]


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
    if node is None or window_of(value) is not None or not is_reshape(node):
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
