"""One number for the elements of a column in so many rows, as it is read.

    x[..., r, c] = numbers[..., r // span, c]

In a trace it is a broadcast, a reshape and, where the last rows are fewer, a slice; in
C an index.
"""

from typing import NamedTuple

from adamx.native._graph import Node, Operand, Value


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
    if not is_reshape(nodes[-1]) or repeated is None:
        return None
    nodes.append(repeated)
    if not _is_along_rows(repeated):
        return None
    numbers = repeated.inputs[0]
    widened = _maker(numbers)
    if widened is not None and (is_reshape(widened) or _is_along_rows(widened)):
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


def _maker(operand: Operand) -> Node | None:
    return operand.node if isinstance(operand, Value) else None


def is_reshape(node: Node) -> bool:
    """Whether it leaves elements in the order of memory."""
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
