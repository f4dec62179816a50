"""Which results of a graph are made element by element, and from what.

The cone of a result is all that goes into it: where each operation of it acts on single
elements and all arrays of it have the result's shape, the whole cone is one pass over
memory, whatever lies in between. Cones that share an operation or an array are one
region: read once, computed once. Its scalars (bias corrections, a clip factor, a rate)
are read like arguments; where they depend on a sum over such elements, the sum is a
region too, and computes its elements again: reading them twice is cheaper than writing
them down.
"""

import dataclasses
import math
from collections.abc import Sequence

from adamx.native import _operations
from adamx.native._graph import PASSED_ON, Graph, Node, Operand, Value, is_single

# Results that are in memory in any case: an array may be read from there.
_IN_MEMORY = ("cond", "while", "scan", "dot_general", "conv_general_dilated", "psum")


@dataclasses.dataclass(eq=False)
class Region:
    """Results of one shape, made in one pass.

    Attributes:
      arrays: what is read element by element.
      scalars: what is read once.
      nodes: the operations on elements, in order.
      outputs: what is written; or a single value that is reduced.
      reduction: the node that reduces it to a scalar, or None.
    """

    arrays: list[Value]
    scalars: list[Value]
    nodes: list[Node]
    outputs: list[Value]
    reduction: Node | None = None

    @property
    def results(self) -> list[Value]:
        """The values of the graph that it computes."""
        return self.outputs if self.reduction is None else self.reduction.outputs


def _is_read(value: Value) -> bool:
    """Whether an array is in memory before any region runs."""
    return value.node is None or value.node.name in _IN_MEMORY


def _elements_of(value: Value) -> Sequence[Operand] | None:
    """What one element of a computed value is made of; None: not of single elements."""
    node = value.node
    assert node is not None
    if node.name in PASSED_ON:
        return [node.inputs[value.index]]
    inputs = node.inputs
    if node.name == "broadcast_in_dim" and not is_single(inputs[0]):
        return None
    if any(x.shape != value.shape and not is_single(x) for x in inputs):
        return None
    dtypes = [x.dtype for x in inputs]
    names = ["x"] * len(inputs)
    written = _operations.expression(node.name, node.params, dtypes, value.dtype, names)
    return inputs if written else None


def _cone(roots: Sequence[Value]) -> Region | None:
    """The region of some results of one shape, or None if there is none."""
    nodes: dict[Node, None] = {}
    arrays: dict[Value, None] = {}
    scalars: dict[Value, None] = {}
    seen: set[Value] = set()
    pending: list[Operand] = list(reversed(roots))
    while pending:
        value = pending.pop()
        if not isinstance(value, Value) or value in seen:
            continue
        seen.add(value)
        if not _operations.is_supported(value.dtype):
            return None
        if value.shape != roots[0].shape:
            scalars[value] = None
        elif _is_read(value):
            arrays[value] = None
        else:
            inputs = _elements_of(value)
            if inputs is None:
                return None
            assert value.node is not None
            nodes[value.node] = None
            pending += reversed(inputs)
    ordered = sorted(nodes, key=lambda node: node.number)
    return Region(list(arrays), list(scalars), ordered, list(roots))


def regions_of(graph: Graph) -> tuple[list[Region], set[Node]]:
    """The regions that a graph's results need, and the nodes that run as they are.

    Returns:
      The regions, and every node that is not inside of one but needed.
    """
    wanted: dict[Value, None] = {}
    for value in graph.outputs:
        if isinstance(value, Value) and value.node is not None:
            wanted[value] = None
    regions = _joined([v for v in wanted if _is_made_of_elements(v)])
    made = {value for region in regions for value in region.results}
    pending = [v for v in wanted if v not in made]
    pending += [v for region in regions for v in (*region.scalars, *region.arrays)]
    kept: set[Node] = set()
    while pending:
        node = pending.pop().node
        if node is None or node in kept or node.outputs[0] in made:
            continue
        region = _reduced(node)
        if region is None:
            kept.add(node)
            pending += [x for x in node.inputs if isinstance(x, Value)]
        else:
            regions.append(region)
            made.update(region.results)
            pending += [*region.scalars, *region.arrays]
    return regions, kept


def _is_made_of_elements(value: Value) -> bool:
    node = value.node
    return node is not None and len(value.shape) > 0 and math.prod(value.shape) > 0


def _joined(roots: list[Value]) -> list[Region]:
    """The regions of all results that have one; what shares anything, together."""
    parent: dict[Value, Value] = {}
    owner: dict[object, Value] = {}

    def first(value: Value) -> Value:
        while parent[value] is not value:
            parent[value] = value = parent[parent[value]]
        return value

    for root in roots:
        region = None if _is_read(root) else _cone([root])
        if region is None or not region.arrays:
            continue
        parent[root] = root
        for part in (*region.nodes, *region.arrays):
            other = owner.setdefault(part, root)
            parent[first(root)] = first(other)
    groups: dict[Value, list[Value]] = {}
    for root in parent:
        groups.setdefault(first(root), []).append(root)
    return [region for group in groups.values() if (region := _cone(group))]


def _reduced(node: Node) -> Region | None:
    """The region of a reduction of elements to one number, or None."""
    value = node.inputs[0] if node.inputs else None
    if not isinstance(value, Value):
        return None
    if not _operations.is_reduction(node.name, value.dtype):
        return None
    dims = range(len(value.shape))
    is_whole = len(dims) > 0 and sorted(node.params["axes"]) == list(dims)
    if not is_whole or 0 in value.shape:
        return None
    region = _cone([value])
    if region is None or not region.arrays:
        return None
    return dataclasses.replace(region, reduction=node)
