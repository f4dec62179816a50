"""A region's operations as lines of C, one each."""

import itertools
from collections.abc import Sequence
from typing import Any

from adamx.native import _operations as operations
from adamx.native._graph import PASSED_ON, Number, Operand, Value
from adamx.native._regions import Region, is_position


def computed(region: Region, names: dict[Value, str], *, is_blocked: bool) -> list[str]:
    """One line for each operation; names what it computes."""

    def name(operand: Operand) -> str:
        if isinstance(operand, Value):
            return names[operand]
        text = operations.literal(operand.value, operand.dtype)
        return limits.get((operand.dtype, text), text)

    lines = []
    limits = limits_of(region)

    def define(output: Value, text: str) -> None:
        names[output] = f"t{len(names)}"
        kind = operations.variable_type(output.dtype)
        lines.append(f"const {kind} {names[output]} = {text};")

    cut = _cut_when_written(region) if is_blocked else set()
    roots = shared_roots(region)
    for node in region.nodes:
        for output in node.outputs:
            inputs: Sequence[Operand] = node.inputs
            if node.name in PASSED_ON:
                inputs = [node.inputs[output.index]]
                if isinstance(inputs[0], Value) and inputs[0] not in names:
                    continue  # it passes on what is no part of this region
            if output in names:
                continue
            if is_position(output):
                define(output, "place + (uint32_t)j" if is_blocked else "(uint32_t)i")
                continue
            step = _step_of_places(output) if is_blocked else None
            if step is not None:
                define(output, f"p{step}[j] + place * {step}u")
                continue
            if _is_never(output):
                define(output, "0")
                continue
            if node.name in ("add", "sub"):
                inputs = [_without_rounding(x, inputs) for x in inputs]
            given = [name(x) for x in inputs]
            if output in roots:
                root, inside, factor = roots[output]
                if root not in names:
                    define(root, f"sqrtf({name(inside)})")
                shared = f"shared_root({names[root]}, sqrtf({name(factor)}))"
                if isinstance(factor, Value):
                    shared = f"{SHARES} ? {shared} : sqrtf({given[0]})"
                define(output, f"({shared})")
                continue
            if output in cut:
                text = f"({operations.variable_type(output.dtype)}){given[0]}"
            else:
                dtypes = [x.dtype for x in inputs]
                found = operations.expression(
                    node.name, node.params, dtypes, output.dtype, given
                )
                assert found is not None  # a region holds nothing else
                text = found
            if text in given:
                names[output] = text
            else:
                define(output, text)
    return lines


def steps_of_places(region: Region) -> list[int]:
    """What an element's place in its array is multiplied by."""
    outputs = [output for node in region.nodes for output in node.outputs]
    steps = {_step_of_places(output) for output in outputs} - {None}
    return sorted(step for step in steps if step is not None)


def _step_of_places(value: Value) -> int | None:
    if not is_made_by(value, "mul"):
        return None
    for place, step in itertools.permutations(_inputs(value)):
        if is_position(place) and isinstance(step, Number):
            return int(step.value)
    return None


def _is_never(value: Value) -> bool:
    """Whether it is x = 0 of an x that is above 0, or NaN: sqrt(y) + eps."""
    if not is_made_by(value, "eq"):
        return False
    x, other = _inputs(value)
    if not isinstance(other, Number) or other.value != 0 or not is_made_by(x, "add"):
        return False
    return any(
        is_made_by(root, "sqrt") and isinstance(eps, Number) and eps.value >= 2.0**-126
        for root, eps in itertools.permutations(_inputs(x))
    )


def _without_rounding(term: Operand, terms: Sequence[Operand]) -> Operand:
    """Of a term x or, where y is NaN, y: x, if the sum is NaN then anyway.

    So products are rounded before they are added to something (`moments.rounded`); in
    C nothing is contracted.
    """
    if not is_made_by(term, "select_n") or len(_inputs(term)) != 3:
        return term
    is_nan, x, y = _inputs(term)
    if not is_made_by(is_nan, "ne") or any(z is not y for z in _inputs(is_nan)):
        return term
    others = [z for z in terms if z is not term]
    own = _inputs(x) if is_made_by(x, "mul") else ()
    return x if any(z is y for z in (*others, *own)) else term


def limits_of(region: Region) -> dict[tuple[str, str], str]:
    """Numbers of which the smaller or the larger is taken, and their names in C.

    By dtype and literal. GCC turns a comparison with a number that it knows around, and
    no longer sees that with what follows it is one instruction.
    """
    found: dict[tuple[str, str], str] = {}
    for node in region.nodes:
        if node.name != "select_n" or len(node.inputs) != 3:
            continue
        choice, *others = node.inputs
        if not any(is_made_by(choice, name) for name in ("lt", "gt")):
            continue
        compared = [_limit(x) for x in _inputs(choice)]
        for limit in map(_limit, others):
            if limit is not None and limit in compared:
                found.setdefault(limit, f"limit{len(found)}")
    return found


def _limit(operand: Operand) -> tuple[str, str] | None:
    """The dtype and the text of a number of floating point."""
    if is_made_by(operand, "broadcast_in_dim"):
        (operand,) = _inputs(operand)
    if not isinstance(operand, Number) or operand.dtype not in ("float32", "float64"):
        return None
    return operand.dtype, operations.literal(operand.value, operand.dtype)


def _inputs(value: Any) -> Sequence[Operand]:
    return value.node.inputs


def _cut_when_written(region: Region) -> set[Value]:
    """Integers cut to a byte that are only written: writing them cuts them.

    Not what is reduced, which is not written; and a bool is not cut, but compared.
    """
    if region.reductions:
        return set()
    read = {x for node in region.nodes for x in node.inputs if isinstance(x, Value)}
    return {
        value
        for value in region.outputs
        if operations.is_byte(value.dtype)
        and value.dtype != "bool"
        and value not in read
        and value.node is not None
        and value.node.name == "convert_element_type"
        and value.node.inputs[0].dtype in ("int32", "uint32")
    }


# Whether the factors of all shared roots are numbers > 0.
SHARES = "shares"


def shared_roots(region: Region) -> dict[Value, tuple[Value, Operand, Operand]]:
    """Roots of s x, s a scalar, as (the root of x, x, s) where that root is there too.

    One of the two is saved, as sqrt(x) sqrt(s) where s > 0: of a negative s and x,
    s x has a root, and neither of them has. Where s x overflows, it is infinite, too.
    (Where s x is below the range of float32, it is not 0.)
    """
    if region.reductions:
        return {}
    roots = {
        node.inputs[0]: node.outputs[0]
        for node in region.nodes
        if node.name == "sqrt" and node.outputs[0].dtype == "float32"
    }
    found: dict[Value, tuple[Value, Operand, Operand]] = {}
    for inner, root in roots.items():
        value: Any = inner
        if is_made_by(value, "add"):  # of nothing, as an eps_root that is 0
            terms = value.node.inputs
            rest = [x for x in terms if not (isinstance(x, Number) and x.value == 0)]
            value = _without_rounding(rest[0], terms) if len(rest) == 1 else value
        if not is_made_by(value, "mul"):
            continue
        for x, factor in itertools.permutations(value.node.inputs):
            if x in roots and _may_have_a_root(factor, region):
                found[root] = roots[x], x, factor
    return found


def _may_have_a_root(factor: Operand, region: Region) -> bool:
    """Whether it is a number > 0, or one that is known when the program runs."""
    if isinstance(factor, Number):
        return bool(factor.value > 0)
    return factor in region.scalars


def is_made_by(value: Any, name: str) -> bool:
    """Whether a value is the result of a primitive."""
    node = value.node if isinstance(value, Value) else None
    return node is not None and node.name == name
