"""In which order a step overwrites what it is given.

A new parameter and a new moment are both computed from the old moment. A moment that is
stored in fewer bits than it is computed in, each of them computes for itself; and XLA
for CPUs, which does not know which of the two comes last, keeps a copy of the old one:
half a tree of parameters for 8-bit moments or a bfloat16 mean. Here, leaf by leaf, the
moment is computed once the parameter is: nothing is copied.

The step is traced once, with a number for each large leaf that its moments wait for
(`moments.stored_behind`). Run in the order of the parameters, each new one gives the
number that belongs to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from adamx import moments
from adamx._traced import is_for_passes
from adamx._types import PyTree
from adamx._varying import axes_of, like

# params, state <- step(grads, state, params)
Plain = Callable[[PyTree, Any, PyTree], tuple[PyTree, Any]]


def in_order(step: Plain, grads: PyTree, state: Any, params: PyTree) -> Any:
    """What step(grads, state, params) returns, moments of few bits written last."""
    given = (grads, state, params)
    leaves, structure = jax.tree.flatten(given)
    large = [i for i, p in enumerate(jax.tree.leaves(params)) if _is_large(p)]
    is_traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    if not (is_traced and large and _has_few_bits(state)) or is_for_passes():
        return step(*given)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (grads, params)]
    if structures[0] != structures[1]:
        return step(*given)
    unflatten: Any = structure.unflatten  # type: ignore[attr-defined]

    def flat(turns: Sequence[jax.Array], *leaves: Any) -> Any:
        grads, state, params = unflatten(leaves)
        held = jax.tree.leaves(params)
        waits = {id(held[i]): turn for i, turn in zip(large, turns, strict=True)}
        with moments.stored_behind(waits):
            return step(grads, state, params)

    held = jax.tree.leaves(params)
    none = [like(jnp.zeros((), jnp.float32), held[i]) for i in large]
    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(none, *leaves)
    found = _run(closed, large, leaves)
    if found is None:
        found = core.jaxpr_as_fun(closed)(*none, *leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _is_large(p: Any) -> bool:
    is_real = jnp.issubdtype(p.dtype, jnp.floating)
    return is_real and p.size >= moments.LARGE


def _has_few_bits(state: Any) -> bool:
    """Whether there may be something to wait; of others the order is clear."""
    return any(
        x.size >= moments.LARGE and x.dtype.itemsize < 4
        for x in jax.tree.leaves(state)
        if hasattr(x, "dtype")
    )


def _run(
    closed: core.ClosedJaxpr, large: Sequence[int], leaves: Sequence[Any]
) -> list[Any] | None:
    """The results, the parameters one by one; None where they wait for each other.

    So it is where a parameter needs all new moments, as with a norm of all updates; and
    with effects, which stay in their order.
    """
    if closed.jaxpr.effects:
        return None
    program = _Program(closed, len(large), leaves)
    for i, turn in zip(large, program.turns, strict=True):
        new = closed.jaxpr.outvars[i]
        if not program.is_ready(new):
            return None
        program.run(new)
        # Whatever a step writes over would have to be copied for it: not the old p.
        unknown = _size(leaves[i])
        _, known = moments.in_turn(_size, unknown, program.value(new))
        if axes_of(known) != axes_of(unknown):
            return None
        program.known[turn] = known
    program.run(*closed.jaxpr.outvars)
    return [program.value(x) for x in closed.jaxpr.outvars]


def _size(x: jax.Array) -> jax.Array:
    """A number >= 0 of an array."""
    size = moments.one_of(x)
    return jnp.where(size >= 0, size, jnp.zeros_like(size))


class _Program:
    """A traced step, of which results are computed one after the other.

    Attributes:
      turns: its first arguments, whose values are not known yet.
      known: the values of variables.
    """

    def __init__(self, closed: core.ClosedJaxpr, turns: int, leaves: Sequence[Any]):
        self._jaxpr = closed.jaxpr
        self.turns = self._jaxpr.invars[:turns]
        self.known: dict[Any, Any] = dict(
            zip(self._jaxpr.constvars, closed.consts, strict=True)
        )
        self.known |= dict(zip(self._jaxpr.invars[turns:], leaves, strict=True))
        eqns = self._jaxpr.eqns
        self._maker = {v: i for i, e in enumerate(eqns) for v in e.outvars}
        self._read = {v for e in eqns for v in _variables(e.invars)}
        self._read |= set(_variables(self._jaxpr.outvars))

    def value(self, x: Any) -> Any:
        """Of a variable that has been computed, or a number in the program."""
        return x.val if isinstance(x, core.Literal) else self.known[x]

    def is_ready(self, *wanted: Any) -> bool:
        """Whether it can be computed without numbers that are not known yet."""
        needed = self._needed(wanted)
        reads = {v for i in needed for v in _variables(self._jaxpr.eqns[i].invars)}
        return not any(v in reads and v not in self.known for v in self.turns)

    def run(self, *wanted: Any) -> None:
        """Computes variables, and what they need that is not known yet."""
        needed = [self._jaxpr.eqns[i] for i in sorted(self._needed(wanted))]
        made = dict.fromkeys(v for e in needed for v in e.outvars)
        read = dict.fromkeys(v for e in needed for v in _variables(e.invars))
        reads = [v for v in read if v not in made]
        results = [v for v in made if v in self._read]
        part = self._jaxpr.replace(
            constvars=[], invars=reads, outvars=results, eqns=needed
        )
        function = core.jaxpr_as_fun(core.ClosedJaxpr(part, []))
        found = function(*(self.known[v] for v in reads))
        self.known |= dict(zip(results, found, strict=True))

    def _needed(self, wanted: Sequence[Any]) -> set[int]:
        """The operations behind variables, as far as they are still to be done."""
        found: set[int] = set()
        pending = _variables(wanted)
        while pending:
            v = pending.pop()
            if v in self.known or v not in self._maker or self._maker[v] in found:
                continue
            found.add(self._maker[v])
            pending += _variables(self._jaxpr.eqns[self._maker[v]].invars)
        return found


def _variables(operands: Sequence[Any]) -> list[Any]:
    return [x for x in operands if not isinstance(x, core.Literal)]
