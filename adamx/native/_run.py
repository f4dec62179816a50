"""Runs a traced function with its element-wise parts as passes over memory."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from adamx._types import PyTree
from adamx.native import _call
from adamx.native._graph import Graph, Node, Value, graph_of
from adamx.native._memory import Memory
from adamx.native._regions import Plan, Region, has_effects, merged, plan_of
from adamx.native._source import Source, source_of

# Leaves of one call: XLA's time for one grows faster than its operands' number.
_LEAVES = 64
# Elements that are reduced in one call, before other passes read them again.
_CACHED = 2**20


def in_passes(
    function: Callable[..., Any], *args: PyTree, results: Sequence[int | None] = ()
) -> Any:
    """What function(*args) returns, its element-wise parts run as compiled passes.

    Args:
      function: of trees of arrays; traced once.
      *args: its arguments.
      results: for each leaf of the result, the leaf of `args` whose memory it may take,
        by position; or None.
    """
    leaves, structure = jax.tree.flatten(args)
    unflatten: Any = structure.unflatten  # type: ignore[attr-defined]

    def flat(*leaves: Any) -> Any:
        return function(*unflatten(leaves))

    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    found = _run_closed(closed, results, *leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _run_closed(
    closed: core.ClosedJaxpr, results: Sequence[int | None], *leaves: Any
) -> list[Any]:
    graph = graph_of(closed)
    owner = {
        value: graph.inputs[index]
        for value, index in zip(graph.outputs, results, strict=False)
        if index is not None and isinstance(value, Value)
    }
    return _run(graph, leaves, owner)


@dataclasses.dataclass(eq=False)
class _Work:
    """What runs at one depth: passes first, then single nodes in their order."""

    calls: list[tuple[Source, list[Region]]]
    nodes: list[Node]


def _run(graph: Graph, leaves: Sequence[Any], owner: dict[Value, Value]) -> list[Any]:
    plan = plan_of(graph)
    memory = Memory(graph, leaves, plan.joins, owner)
    for work in _ordered(plan):
        for source, members in work.calls:
            if not _call.run_pass(source, members, memory):
                _run_plain(members, memory)
        for node in work.nodes:
            if node in plan.joins:
                memory.known[node.outputs[0]] = memory.finish(node)
                continue
            inputs = [memory.value_of(x) for x in node.inputs]
            outputs = _run_node(node, inputs, owner)
            memory.known |= dict(zip(node.outputs, outputs, strict=True))
    return [memory.value_of(operand) for operand in graph.outputs]


def _run_plain(members: Sequence[Region], memory: Memory) -> None:
    for region in members:
        known = {v: memory.value_of(v) for v in (*region.scalars, *region.reads)}
        results = _call.run_nodes(region, known)
        memory.known |= dict(zip(region.results, results, strict=True))


def _run_node(
    node: Node, inputs: Sequence[Any], owner: dict[Value, Value]
) -> Sequence[Any]:
    """A node's results; the branches of a conditional in passes, too."""
    if node.name != "cond" or node.params.get("branches_platforms"):
        return node.run(inputs)
    places = {v: i for i, v in enumerate(node.inputs[1:]) if isinstance(v, Value)}
    results = [places.get(owner.get(value, value)) for value in node.outputs]
    branches = [
        functools.partial(_run_closed, branch, results)
        for branch in node.params["branches"]
    ]
    return jax.lax.switch(inputs[0], branches, *inputs[1:])


def _ordered(plan: Plan) -> list[_Work]:
    """Regions and nodes by depth; each needs what is less deep, a node also its own."""
    regions, kept = plan.regions, plan.kept
    depth: dict[Value, int] = {}
    maker = {value: region for region in regions for value in region.results}
    done: set[Region | Node] = set()
    opened: set[Region | Node] = set()
    effects = sorted(filter(has_effects, kept), key=lambda node: node.number)
    before = dict(zip(effects[1:], effects, strict=False))
    depth_of: dict[Node, int] = {}

    def own_depth(part: Region | Node) -> int:
        reads = plan.needs(part)
        if isinstance(part, Node):
            earlier = [depth_of[before[part]]] if part in before else []
            return max([0, *earlier, *(depth.get(v, 0) for v in reads)])
        return 1 + max(depth.get(v, 0) for v in reads)

    def needs(part: Region | Node) -> list[Region | Node]:
        parts: list[Region | Node] = []
        if isinstance(part, Node) and part in before and before[part] not in done:
            parts.append(before[part])
        for v in plan.needs(part):
            if v not in depth:
                if v in maker:
                    parts.append(maker[v])
                elif v.node is not None:
                    parts.append(v.node)
        return parts

    found: dict[int, list[Region]] = {}
    nodes: dict[int, list[Node]] = {}
    pending: list[Region | Node] = [*regions, *kept]
    while pending:
        part = pending[-1]
        if part in done:
            pending.pop()
            continue
        first = needs(part)
        if first:
            assert part not in opened, "an operation waits for its own result"
            opened.add(part)
            pending += first
            continue
        pending.pop()
        done.add(part)
        own = own_depth(part)
        if isinstance(part, Region):
            depth |= dict.fromkeys(part.results, own)
            found.setdefault(own, []).append(part)
        else:
            # Some of what it hands on may be a region's result.
            made = [v for v in part.outputs if v not in maker]
            depth |= dict.fromkeys(made, own)
            depth_of[part] = own
            nodes.setdefault(own, []).append(part)
    return [
        _Work(
            _grouped(found.get(own, [])),
            sorted(nodes.get(own, []), key=lambda node: node.number),
        )
        for own in sorted({*found, *nodes})
    ]


def _is_much(members: Sequence[Region]) -> bool:
    """Whether reductions read more than a cache holds until it is read again."""
    if not members[0].reductions:
        return False
    return sum(math.prod(region.arrays[0].shape) for region in members) > _CACHED


def _grouped(regions: Sequence[Region]) -> list[tuple[Source, list[Region]]]:
    """Regions of one program that read the same scalars, so many to a call."""
    sums = merged([region for region in regions if region.reductions])
    groups: dict[Any, list[Region]] = {}
    calls: list[tuple[Source, list[Region]]] = []
    for region in (*(r for r in regions if not r.reductions), *sums):
        source = source_of(region)
        key = (source, tuple(region.scalars))
        members = groups.get(key)
        if members is None or len(members) == _LEAVES or _is_much(members):
            members = groups[key] = []
            calls.append((source, members))
        members.append(region)
    return calls
