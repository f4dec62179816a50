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
    traced = [i for i, x in enumerate(leaves) if isinstance(x, jax.core.Tracer)]
    if not traced or is_for_passes() or not any(map(_has_few_bits, leaves)):
        return step(*given)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (grads, params)]
    if structures[0] != structures[1] or any(_is_reference(leaves[i]) for i in traced):
        return step(*given)
    unflatten: Any = structure.unflatten  # type: ignore[attr-defined]
    held = jax.tree.leaves(params)
    large = [i for i, p in enumerate(held) if _is_large(p)]
    found: list[Any] = []
    form: Any = None

    def flat(turns: Sequence[jax.Array], *own: Any) -> list[Any]:
        nonlocal form
        # What is no tracer, such as a number or a name in the state, stays what it is.
        inside = dict(zip(traced, own, strict=True))
        grads, state, params = unflatten(
            [inside.get(i, x) for i, x in enumerate(leaves)]
        )
        held = jax.tree.leaves(params)
        waits = {id(held[i]): turn for i, turn in zip(large, turns, strict=True)}
        with moments.stored_behind(waits):
            found[:], form = jax.tree.flatten(step(grads, state, params))
        return [x for x in found if isinstance(x, jax.core.Tracer)]

    none = [like(jnp.zeros((), jnp.float32), held[i]) for i in large]
    closed = jax.make_jaxpr(flat)(none, *(leaves[i] for i in traced))
    is_made = [isinstance(x, jax.core.Tracer) for x in found]
    made = iter(range(len(closed.jaxpr.outvars)))
    places = [next(made) if yes else None for yes in is_made]
    # Each large one: its gradient, and where the new one is among the results.
    rows = [(leaves[i], places[i]) for i in large]
    results = iter(_run(closed, none, rows, [leaves[i] for i in traced]))
    pairs = zip(is_made, found, strict=True)
    return jax.tree.unflatten(form, [next(results) if yes else x for yes, x in pairs])


def _is_reference(x: Any) -> bool:
    """Whether it is a place in memory and not an array: none can be returned."""
    return not hasattr(jax.typeof(x), "weak_type")


def _is_large(p: Any) -> bool:
    return (
        hasattr(p, "dtype")
        and jnp.issubdtype(p.dtype, jnp.floating)
        and isinstance(p.size, int)  # in an export it may be a symbol
        and p.size >= moments.LARGE
    )


def _has_few_bits(x: Any) -> bool:
    """Whether a leaf may be a moment that waits; without one the order is clear."""
    is_known = hasattr(x, "dtype") and isinstance(x.size, int)
    return is_known and x.size >= moments.LARGE and x.dtype.itemsize < 4


def _run(
    closed: core.ClosedJaxpr,
    none: Sequence[jax.Array],
    rows: Sequence[tuple[jax.Array, int | None]],
    leaves: Sequence[Any],
) -> list[Any]:
    """The results, the parameters one by one.

    One that needs new moments which are not there yet, as behind a norm of all updates,
    and what comes after it, is not waited for; effects stay in their order, and nothing
    is.
    """
    if closed.jaxpr.effects:
        return core.jaxpr_as_fun(closed)(*none, *leaves)
    program = _Program(closed, len(none), leaves)
    for (g, place), nothing, turn in zip(rows, none, program.turns, strict=True):
        new = None if place is None else closed.jaxpr.outvars[place]
        if new is None or not program.has_run(new):
            break
        # Whatever a step writes over would have to be copied for it: not the old p.
        unknown = _size(g)
        _, known = moments.in_turn(_size, unknown, program.value(new))
        program.known[turn] = known if axes_of(known) == axes_of(nothing) else nothing
    for turn, nothing in zip(program.turns, none, strict=True):
        program.known.setdefault(turn, nothing)
    program.has_run(*closed.jaxpr.outvars)
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

    def has_run(self, *wanted: Any) -> bool:
        """Computes variables, and what they need that is not known yet, if it can."""
        needed = [self._jaxpr.eqns[i] for i in sorted(self._needed(wanted))]
        made = dict.fromkeys(v for e in needed for v in e.outvars)
        read = dict.fromkeys(v for e in needed for v in _variables(e.invars))
        reads = [v for v in read if v not in made]
        if any(v not in self.known for v in reads):
            return False
        results = [v for v in made if v in self._read]
        part = self._jaxpr.replace(
            constvars=[], invars=reads, outvars=results, eqns=needed
        )
        function = core.jaxpr_as_fun(core.ClosedJaxpr(part, []))
        found = function(*(self.known[v] for v in reads))
        self.known |= dict(zip(results, found, strict=True))
        return True

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
