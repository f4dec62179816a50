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
import itertools
import math
from collections.abc import Iterable, Sequence

from adamx.native import _operations
from adamx.native._graph import (
    PASSED_ON,
    UNKNOWN,
    Graph,
    Node,
    Operand,
    Value,
    is_single,
)
from adamx.native._reductions import is_reduction, reduction_of
from adamx.native._spans import spread_of
from adamx.native._windows import Join, base_of, joins_of, window_of


@dataclasses.dataclass(eq=False)
class Region:
    """Results of one shape, made in one pass.

    Attributes:
      arrays: what is read element by element.
      rows, columns: what is read by row and by column, those of the last two axes:
        arrays of the shape, but with length 1 along the last axis, or the last but one.
      spreads: what is read by column, one number for so many rows: see `_spans`.
      scalars: what is read once.
      nodes: the operations on elements, in order.
      outputs: what is written; or the values that are reduced.
      reductions: the nodes that reduce them, in the outputs' order; or none.
    """

    arrays: list[Value]
    rows: list[Value]
    columns: list[Value]
    spreads: list[Value]
    scalars: list[Value]
    nodes: list[Node]
    outputs: list[Value]
    reductions: list[Node] = dataclasses.field(default_factory=list)

    @property
    def results(self) -> list[Value]:
        """The values of the graph that it computes."""
        return [node.outputs[0] for node in self.reductions] or self.outputs

    @property
    def reads(self) -> list[Value]:
        """The arrays that it reads, in the order in which they are handed over."""
        spread = [found.numbers for found in map(spread_of, self.spreads) if found]
        return [*self.arrays, *self.rows, *self.columns, *spread]

    @property
    def spans(self) -> list[int]:
        """How many rows share a number: of `spreads`, then of reductions so divided."""
        spreads = [found.span for found in map(spread_of, self.spreads) if found]
        reduced = [found.span for found in map(reduction_of, self.reductions) if found]
        return [*spreads, *(span for span in reduced if span is not None)]

    @property
    def is_by_rows(self) -> bool:
        """Whether it must know where a row begins."""
        reduced = [found.kind for found in map(reduction_of, self.reductions) if found]
        is_read_so = bool(self.rows or self.columns or self.spreads)
        return is_read_so or any(kind != "single" for kind in reduced)

    @property
    def steps(self) -> list[Node]:
        """The operations that make its results of what it reads, in order."""
        spread = [found.nodes for found in map(spread_of, self.spreads) if found]
        steps = [*itertools.chain(*spread), *self.nodes]
        for node in self.reductions:
            found = reduction_of(node)
            steps += [*(found.nodes if found else ()), node]
        return steps


def _kind(operand: Operand, shape: tuple[int, ...]) -> str | None:
    """How an operand is read by elements of a shape; None: in another way."""
    if operand.shape == shape:
        return "full"
    if is_single(operand):
        return "single"
    if len(shape) > 1 and operand.shape == (*shape[:-1], 1):
        return "row"
    if len(shape) > 1 and operand.shape == (*shape[:-2], 1, shape[-1]):
        return "column"
    return None


def _is_readable(value: Value, kind: str | None) -> bool:
    """Whether elements have an address: those of 4 bits only in a whole array."""
    if not _operations.is_packed(value.dtype):
        return True
    return kind == "full" and base_of(value).shape == value.shape


def _is_read(value: Value) -> bool:
    """Whether an array is in memory before any region runs."""
    return window_of(value) is not None


def is_position(value: Operand) -> bool:
    """Whether each element is its own place in the array, row by row."""
    node = value.node if isinstance(value, Value) else None
    if node is not None and node.name == "reshape":
        inner = node.inputs[0]
        node = inner.node if isinstance(inner, Value) else None
    if node is None or node.name != "iota":
        return False
    return len(node.outputs[0].shape) == 1 and node.outputs[0].dtype == "uint32"


def _elements_of(value: Value) -> Sequence[Operand] | None:
    """What one element of a computed value is made of; None: not of single elements."""
    if value.elements is UNKNOWN:
        value.elements = _find_elements(value)
    return value.elements


def _find_elements(value: Value) -> Sequence[Operand] | None:
    node = value.node
    assert node is not None
    if node.name in PASSED_ON:
        return [node.inputs[value.index]]
    if is_position(value):
        return []
    inputs = node.inputs
    if any(_kind(x, value.shape) is None for x in inputs):
        return None
    if node.name == "broadcast_in_dim" and not _is_lined_up(node):
        return None
    dtypes = [x.dtype for x in inputs]
    names = ["x"] * len(inputs)
    written = _operations.expression(node.name, node.params, dtypes, value.dtype, names)
    return inputs if written else None


def _is_lined_up(node: Node) -> bool:
    """Whether a broadcast leaves each axis where it is, or has one number only."""
    held = tuple(node.params["broadcast_dimensions"])
    return is_single(node.inputs[0]) or held == tuple(range(len(node.params["shape"])))


def _cone(roots: Sequence[Value]) -> Region | None:
    """The region of some results of one shape, or None if there is none."""
    shape = roots[0].shape
    nodes: dict[Node, None] = {}
    found: dict[str | None, list[Value]] = {}
    seen: set[Value] = set()
    pending: list[Operand] = list(reversed(roots))
    while pending:
        value = pending.pop()
        if not isinstance(value, Value) or value in seen:
            continue
        seen.add(value)
        if not _operations.is_supported(value.dtype):
            return None
        kind = _kind(value, shape)
        if kind == "full" and not _is_read(value) and spread_of(value):
            kind = "spread"
        if not _is_readable(value, kind):
            return None
        if kind != "full" or _is_read(value):
            found.setdefault(kind, []).append(value)
            continue
        inputs = _elements_of(value)
        if inputs is None:
            return None
        assert value.node is not None
        nodes[value.node] = None
        pending += reversed(inputs)
    if "full" not in found:
        return None
    return Region(
        arrays=found["full"],
        rows=found.get("row", []),
        columns=found.get("column", []),
        spreads=found.get("spread", []),
        scalars=found.get("single", []),
        nodes=sorted(nodes, key=lambda node: node.number),
        outputs=list(roots),
    )


@dataclasses.dataclass(eq=False)
class Plan:
    """What runs.

    Attributes:
      regions: what is done element by element.
      kept: every node that is not inside of a region but needed.
      joins: by their nodes, those of `kept` that are put together in place.
    """

    regions: list[Region]
    kept: set[Node]
    joins: dict[Node, Join]

    def needs(self, part: Region | Node) -> list[Value]:
        """The arrays and scalars that must be there before a part can run."""
        if isinstance(part, Region):
            read: Sequence[Operand] = [*part.scalars, *part.reads]
        elif part in self.joins:
            read = self.joins[part].parts
        else:
            read = part.inputs
        return [base_of(x) for x in read if isinstance(x, Value)]


def plan_of(graph: Graph) -> Plan:
    """The regions that a graph's results need, and the nodes that run as they are."""
    wanted: dict[Value, None] = {}
    joins = joins_of(graph)
    for value in graph.outputs:
        if isinstance(value, Value) and value.node is not None:
            parts = joins[value.node].parts if value.node in joins else [value]
            wanted |= dict.fromkeys(x for x in parts if isinstance(x, Value))
    cones = {
        v: cone
        for v in wanted
        if _is_made_of_elements(v) and not _is_read(v) and (cone := _cone([v]))
    }
    joins = {
        node: join
        for node, join in joins.items()
        if any(part in cones for part in join.parts)
    }
    sums = {node: cone for node in graph.nodes if (cone := _reduced(node))}
    regions = _joined(cones, _stages(graph, cones, sums))
    made = {value for region in regions for value in region.results}
    kept = {node for node in graph.nodes if has_effects(node)}
    plan = Plan(regions, kept, joins)
    pending = [x for x in graph.outputs if isinstance(x, Value) and x not in made]
    for region in regions:
        pending += plan.needs(region)
    for node in kept:
        pending += plan.needs(node)
    while pending:
        value = base_of(pending.pop())
        maker = value.node
        if maker is None or maker in kept or value in made:
            continue
        whole = sums.get(maker)
        if whole is None:
            kept.add(maker)
            pending += plan.needs(maker)
        else:
            regions.append(whole)
            made.update(whole.results)
            pending += plan.needs(whole)
    return plan


def has_effects(node: Node) -> bool:
    """Whether an operation does more than to compute: prints, calls back."""
    effects = node.equation.effects
    return any(type(effect).__name__ != "NamedAxisEffect" for effect in effects)


def _is_made_of_elements(value: Value) -> bool:
    node = value.node
    return node is not None and len(value.shape) > 0 and math.prod(value.shape) > 0


def _stages(
    graph: Graph, cones: dict[Value, Region], sums: dict[Node, Region]
) -> dict[Value, int]:
    """How many results must have been made before a value can be, one after another.

    What a result reads from outside of its cone may depend on another result.
    """
    stages: dict[Value, int] = {}

    def latest(values: Iterable[Operand]) -> int:
        return max(
            (stages.get(v, 0) for v in values if isinstance(v, Value)), default=0
        )

    for node in graph.nodes:
        if node in sums:  # it computes its elements again, from what they are made of
            whole = sums[node]
            stages[node.outputs[0]] = latest([*whole.scalars, *whole.reads])
            continue
        for value in node.outputs:
            cone = cones.get(value)
            if cone is None:
                stages[value] = latest(node.inputs)
            else:
                stages[value] = 1 + latest([*cone.scalars, *cone.reads])
    return stages


def _joined(cones: dict[Value, Region], stages: dict[Value, int]) -> list[Region]:
    """The regions of all results that have one; what shares anything, together.

    Not where one of them must be there for another: that would be a circle.
    """
    parent = {root: root for root in cones}
    owner: dict[object, Value] = {}

    def first(value: Value) -> Value:
        while parent[value] is not value:
            parent[value] = value = parent[parent[value]]
        return value

    for root, cone in cones.items():
        # What only hands on may hand on arrays of several shapes.
        shared = [node for node in cone.nodes if node.name not in PASSED_ON]
        for part in (*shared, *cone.arrays):
            other = owner.setdefault((part, stages[root]), root)
            parent[first(root)] = first(other)
    groups: dict[Value, list[Value]] = {}
    for root in parent:
        groups.setdefault(first(root), []).append(root)
    return [region for group in groups.values() if (region := _cone(group))]


def _reduced(node: Node) -> Region | None:
    """The region of a reduction of elements, or None."""
    found = reduction_of(node)
    if found is None or 0 in found.value.shape:
        return None
    if not is_reduction(node.name, found.value.dtype):
        return None
    region = _cone([found.value])
    return region and dataclasses.replace(region, reductions=[node])


def merged(regions: Sequence[Region]) -> list[Region]:
    """Reductions of one shape that share an array, as one region each."""
    groups: list[list[Region]] = []
    home: dict[Value, list[Region]] = {}
    for region in regions:
        group = next((home[v] for v in region.arrays if v in home), None)
        if group is None:
            groups.append(group := [])
        group.append(region)
        home |= dict.fromkeys(region.arrays, group)
    return [group[0] if len(group) == 1 else _union(group) for group in groups]


def _union(group: Sequence[Region]) -> Region:
    # In the function's order: leaves that are alike are one program then.
    group = sorted(group, key=lambda region: region.reductions[0].number)
    region = _cone(list(dict.fromkeys(region.outputs[0] for region in group)))
    assert region is not None
    return dataclasses.replace(
        region,
        outputs=[region.outputs[0] for region in group],
        reductions=[node for one in group for node in one.reductions],
    )
