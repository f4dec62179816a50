"""A traced function as a flat list of operations.

jaxpr -> values and nodes, with the functions that jnp jits for itself written out, so
that what happens to one element can be followed from a result back to the arguments.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from adamx.native._operations import dtype_name

# Operations that hand on each of their inputs as it is: for XLA's order of things, and
# for what varies between devices.
PASSED_ON = ("optimization_barrier", "pvary", "pcast")

# Calls that only wrap a function's operations.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",  # its own derivative is lost: see `_call`
}

# Of a value's elements: nobody has asked yet.
UNKNOWN = object()


class Value:
    """An array inside a graph.

    Attributes:
      aval: shape and dtype.
      shape, dtype: the same, the dtype by its name.
      node: what computes it; None for an argument or a constant.
      index: which of the node's results it is.
      elements: what one element of it is made of, once somebody found out.
      window: where it is in memory, if it is; likewise.
    """

    __slots__ = ("aval", "dtype", "elements", "index", "node", "shape", "window")

    def __init__(self, aval: Any, node: "Node | None" = None, index: int = 0):
        self.aval = aval
        self.shape = aval.shape
        self.dtype = dtype_name(getattr(aval, "dtype", None))
        self.node = node
        self.index = index
        self.elements: Any = UNKNOWN
        self.window: Any = UNKNOWN


class Number:
    """A number written into the program.

    Attributes:
      value: the number.
      shape, dtype: as a `Value` has them.
    """

    __slots__ = ("dtype", "shape", "value")

    def __init__(self, value: Any, aval: Any):
        self.value = value
        self.shape = aval.shape
        self.dtype = dtype_name(aval.dtype)


# What a node reads.
Operand = Value | Number


@dataclasses.dataclass(eq=False)
class Node:
    """One operation; nodes are numbered in an order in which they can run."""

    number: int
    equation: Any
    jaxpr: core.Jaxpr
    inputs: tuple[Operand, ...]
    outputs: list[Value] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's parameters."""
        return self.equation.params

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The results, for the values of its inputs."""
        variables: dict[Any, Any] = {}
        for variable, value in zip(self.equation.invars, inputs, strict=True):
            if not isinstance(variable, core.Literal):
                variables[variable] = value
        alone = self.jaxpr.replace(
            constvars=[],
            invars=list(variables),
            outvars=list(self.equation.outvars),
            eqns=[self.equation],
            effects=self.equation.effects,
        )
        function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))
        return list(function(*variables.values()))


@dataclasses.dataclass(eq=False)
class Graph:
    """A function: arguments, constants with their values, operations, results."""

    inputs: list[Value]
    constants: dict[Value, Any]
    nodes: list[Node]
    outputs: list[Operand]


def graph_of(closed: core.ClosedJaxpr) -> Graph:
    """The graph of a jaxpr, calls written out."""
    inputs = [Value(v.aval) for v in closed.jaxpr.invars]
    held = [Value(v.aval) for v in closed.jaxpr.constvars]
    graph = Graph(inputs, dict(zip(held, closed.consts, strict=True)), [], [])
    graph.outputs = _write_out(graph, closed.jaxpr, held, inputs)
    return graph


def _write_out(
    graph: Graph,
    jaxpr: core.Jaxpr,
    constants: Sequence[Operand],
    arguments: Sequence[Operand],
) -> list[Operand]:
    known: dict[Any, Operand] = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def operand(v: Any) -> Operand:
        return Number(v.val, v.aval) if isinstance(v, core.Literal) else known[v]

    for eqn in jaxpr.eqns:
        inputs = tuple(operand(v) for v in eqn.invars)
        inner = _called(eqn)
        if inner is not None:
            held: list[Operand] = []
            for value in inner.consts:
                constant = Value(jax.typeof(value))
                graph.constants[constant] = value
                held.append(constant)
            results = _write_out(graph, inner.jaxpr, held, inputs)
        elif (number := _number_of(eqn, inputs)) is not None:
            results = [number]
        else:
            node = Node(len(graph.nodes), eqn, jaxpr, inputs)
            node.outputs = [Value(v.aval, node, i) for i, v in enumerate(eqn.outvars)]
            graph.nodes.append(node)
            results = list(node.outputs)
        known.update(zip(eqn.outvars, results, strict=True))
    return [operand(v) for v in jaxpr.outvars]


def _number_of(eqn: Any, inputs: Sequence[Operand]) -> Number | None:
    """A float made of a number in the program: it stays a number of the program."""
    if eqn.primitive.name != "convert_element_type":
        return None
    (operand,), aval = inputs, eqn.outvars[0].aval
    is_float = jnp.issubdtype(aval.dtype, jnp.floating)
    if not isinstance(operand, Number) or aval.shape or not is_float:
        return None
    return Number(np.asarray(operand.value).astype(aval.dtype), aval)


def _called(eqn: Any) -> Any:
    """The function that an equation only calls, or None."""
    parameter = _CALLS.get(eqn.primitive.name)
    if parameter is None or parameter not in eqn.params:
        return None
    inner = eqn.params[parameter]
    shardings = [*eqn.params.get("in_shardings", ())]
    shardings += eqn.params.get("out_shardings", ())
    is_plain = all(type(s).__name__ == "UnspecifiedValue" for s in shardings)
    return inner if is_plain and isinstance(inner, core.ClosedJaxpr) else None


def is_single(operand: Operand) -> bool:
    """Whether it is one number, of however many dimensions."""
    return all(n == 1 for n in operand.shape)
