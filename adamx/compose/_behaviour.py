"""Does a parameter decay, is it frozen: what a transformation does, not what it says.

Two looks, at any transformation. One step is traced for the true shapes, which costs no
memory, and followed from its inputs to each update: what an update does not read cannot
matter to it. That proves "no decay" and "a constant". And some steps are made with
small stand-ins, each axis cut to 2: what moves, moves. Where both looks do not see the
same inputs at work (a mask that asks for the true size), where nothing moves though it
might (a rate of 0 for long), or where something moves by itself (noise), there is no
answer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from adamx._types import GradientTransformation, PyTree, dtype_of

# Known to be 0, in the place of a set of inputs.
_ZERO = -1
_KEEPS_ZERO = ("broadcast_in_dim", "neg", "convert_element_type", "reshape", "copy")
# As long may micro-steps accumulate, or a rate stay 0, until something has to move.
_STEPS = 64
# Counts from which a run begins as well: schedules further on.
_LATER = (0, 10**2, 10**3, 10**4, 10**5, 10**6)
# Gradient and parameter of a run.
_PAIRS = ((1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.0, -1.0))


class Behaviour(NamedTuple):
    """What happens to one parameter; None where it is not known.

    Attributes:
      decayed: whether it shrinks where its gradient is 0.
      frozen: whether it stays what it is, whatever the gradient.
    """

    decayed: bool | None
    frozen: bool | None


def observe(
    tx: GradientTransformation, params: PyTree
) -> tuple[list[Behaviour], str | None]:
    """The behaviour of each leaf; and where some is not known, why."""
    count = len(jax.tree.leaves(params))
    small = jax.tree.map(_stand_in, params)
    try:
        truly, here = _reads(tx, params), _reads(tx, small)
        seen = _run(tx, small)
    # Whatever a transformation raises that needs more than gradient and parameters.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        reason = f"update(gradients, state, params) raises {type(error).__name__}"
        return [Behaviour(None, None)] * count, f"{reason}: {first}"
    found = []
    for i in range(count):
        moves, frozen, decayed = seen.moves[i], None, None
        if truly[i] == here[i]:
            if moves or not truly[i].anything:
                frozen = not moves
            if not seen.drifts[i] and (moves or seen.shrinks[i]):
                decayed = seen.shrinks[i]
        if not truly[i].own_value:
            decayed = False
        found.append(Behaviour(decayed, frozen))
    is_known = all(None not in behaviour for behaviour in found)
    reason = f"{_STEPS} steps with small stand-ins did not decide it"
    return found, None if is_known else reason


# ----------------------------------------------------------------- what an update reads


class Reads(NamedTuple):
    """Which inputs an update is computed from."""

    anything: bool
    own_gradient: bool
    own_value: bool


def _reads(tx: GradientTransformation, params: PyTree) -> list[Reads]:
    """For the first update of each leaf, through the state that init makes."""

    def first(gradients: PyTree, params: PyTree) -> PyTree:
        return tx.update(gradients, tx.init(params), params)[0]

    closed = jax.make_jaxpr(first)(params, params)
    count = len(jax.tree.leaves(params))
    outputs = follow(closed.jaxpr, [1 << i for i in range(2 * count)])
    outputs = [_union([bits]) for bits in outputs]
    if len(outputs) != count:
        raise TypeError("the updates have another number of leaves than the gradient")
    return [
        Reads(bool(bits), bool(bits >> i & 1), bool(bits >> count + i & 1))
        for i, bits in enumerate(outputs)
    ]


def follow(jaxpr: Jaxpr, inputs: Sequence[int]) -> list[int]:
    """For each output of a program, the set of inputs it may depend on, as bits.

    Or `_ZERO`: it is 0, or -0. A choice between zeros depends on nothing.
    """
    sets: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

    def get(atom: Any) -> int:
        if isinstance(atom, Literal):
            return _ZERO if _is_zero(atom) else 0
        return sets.get(atom, 0)

    for equation in jaxpr.eqns:
        given = [get(atom) for atom in equation.invars]
        sets.update(zip(equation.outvars, _outputs(equation, given), strict=True))
    return [get(atom) for atom in jaxpr.outvars]


def _outputs(equation: Any, given: list[int]) -> list[int]:
    name, options = equation.primitive.name, equation.params
    if name == "optimization_barrier":
        return given
    if (name == "mul" and _ZERO in given) or (name in _KEEPS_ZERO and given == [_ZERO]):
        return [_ZERO]
    inner = [_open(value) for value in options.values()]
    programs = [jaxpr for jaxpr in inner if jaxpr is not None]
    if name == "cond":
        index, *operands = given
        each = [follow(_open(branch), operands) for branch in options["branches"]]
        return [
            _ZERO if set(sets) == {_ZERO} else _union([index, *sets])
            for sets in zip(*each, strict=True)
        ]
    is_loop = name in ("scan", "while")
    if len(programs) == 1 and not is_loop and len(programs[0].invars) == len(given):
        found = follow(programs[0], given)
        if len(found) == len(equation.outvars):
            return found
    return [_union(given)] * len(equation.outvars)


def _open(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, Jaxpr) else None


def _union(sets: Sequence[int]) -> int:
    total = 0
    for bits in sets:
        total |= max(bits, 0)
    return total


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and np.ndim(atom.val) == 0 and atom.val == 0


# ----------------------------------------------------------------- what stand-ins do


def _stand_in(p: Any) -> jax.Array:
    shape = [min(max(n, 1), 2) for n in jnp.shape(p)]
    return jnp.ones(shape, dtype_of(p))


class Seen(NamedTuple):
    """What some steps did to each leaf.

    Attributes:
      moves: whether a gradient of ones moved a parameter of 1.
      shrinks: whether 1 and -1 moved towards 0 without a gradient.
      drifts: whether 0 moved without a gradient (noise): then nobody can say why 1 did.
    """

    moves: list[bool]
    shrinks: list[bool]
    drifts: list[bool]


def _run(tx: GradientTransformation, ones: PyTree) -> Seen:

    def run(case: tuple[Any, Any, Any]) -> jax.Array:
        """The sum of each update in each step; the parameters stay."""
        size, value, count = case
        gradients, params = (
            jax.tree.map(lambda p, x=x: jnp.full_like(p, x), ones)
            for x in (size, value)
        )

        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            updates, after = tx.update(gradients, state, params)
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)
            return after, jnp.stack([_sum(u) for u in jax.tree.leaves(updates)])

        state = _later(tx.init(params), count)
        return jax.lax.scan(step, state, None, _STEPS)[1]

    cases = [(*pair, count) for count in _LATER for pair in _PAIRS]
    columns = tuple(map(jnp.asarray, zip(*cases, strict=True)))
    sums = np.asarray(jax.jit(lambda c: jax.lax.map(run, c))(columns))
    moved, at_zero, above, below = (sums[i :: len(_PAIRS)] for i in range(len(_PAIRS)))
    # Both signs: a bound from one side is no decay. What is no number is no answer.
    shrinks = (above < 0) & (below > 0) & np.isfinite(above) & np.isfinite(below)
    each = (np.isfinite(moved) & (moved != 0), shrinks, at_zero != 0)
    return Seen(*(np.any(x, axis=(0, 1)).tolist() for x in each))


def _sum(u: Any) -> jax.Array:
    return jnp.sum(jnp.real(jnp.asarray(u)).astype(jnp.float32))


def _later(state: Any, count: Any) -> Any:
    """A state whose counts, the integers that are 0, stand at a later step."""

    def leaf(x: Any) -> Any:
        is_count = jnp.ndim(x) == 0 and jnp.issubdtype(dtype_of(x), jnp.integer)
        return jnp.where(x == 0, count.astype(x.dtype), x) if is_count else x

    return jax.tree.map(leaf, state)
