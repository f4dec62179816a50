"""An order, for the compiler for CPUs, among loops that read what others overwrite.

Several results are computed from the same old arrays. Without an order, XLA computes
what they have in common anew for each and copies what one of them overwrites, for all
leaves at the start. A conditional is what it does not fuse across on a CPU: what enters
one is computed before, and once; and a number that comes out of one, known only then.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from adamx._varying import beyond

# Smaller leaves are not worth it: the copies are small, and compiling takes longer.
LARGE = 2**16

_late: contextvars.ContextVar[Mapping[int, jax.Array] | None] = contextvars.ContextVar(
    "late", default=None
)


@contextlib.contextmanager
def stored_behind(turns: Mapping[int, jax.Array]) -> Iterator[None]:
    """What a leaf's moments become is computed behind a number, inside the block.

    Args:
      turns: by `id` of a parameter's array, a number >= 0 that is known when the new
        parameter is: see `behind`.
    """
    token = _late.set(turns)
    try:
        yield
    finally:
        _late.reset(token)


def turn_of(p: object) -> jax.Array | None:
    """The number behind which a parameter's moments are stored; None: as they come."""
    return (_late.get() or {}).get(id(p))


def in_turn(
    function: Callable[..., jax.Array], unknown: jax.Array, *operands: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`function(*operands)`, and a number >= 0 that is known when the operands are.

    Args:
      function: returns a scalar >= 0.
      unknown: a number >= 0 that XLA cannot know; both branches are the same.
      *operands: arrays of one leaf.

    Returns:
      The scalar; and for `behind`, on a CPU the same, elsewhere 0. Below
      `LARGE` elements in the first operand there is no order: the second is `unknown`.
    """

    def apart(*operands: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = lax.cond(_is_known(unknown), function, function, *operands)
        return value, value

    def fused(*operands: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = function(*operands)
        # A plain 0 to XLA; to shard_map one that varies with the device, as in `apart`.
        nothing = jnp.zeros((), value.dtype)
        return value, jnp.where(value >= 0, nothing, nothing)

    if operands[0].size < LARGE:
        return function(*operands), unknown
    # Elsewhere a conditional may wait for the host, and a fusion has several results.
    return lax.platform_dependent(*operands, cpu=apart, default=fused)


def behind(known: jax.Array, x: jax.Array) -> jax.Array:
    """x, computed after `known`, a number >= 0.

    In `shard_map` x as it is where the number varies along an axis along which x does
    not: every device has x whole, and must be seen to.
    """
    if beyond(known, [x]):
        return x
    return jnp.where(_is_known(known), x, jnp.zeros_like(x))


def _is_known(x: jax.Array) -> jax.Array:
    """True for numbers >= 0; XLA takes |x| >= 0 to be true before x is known."""
    return x > jnp.asarray(-1.0, x.dtype)


def one_of(x: jax.Array) -> jax.Array:
    """A number >= 0 of an array that is not empty; of each of its pieces, the largest.

    Where the sharding is a part of the type, on a mesh with explicit axes, a slice must
    be as long as there are pieces: it has the first number of each, and moves none.
    """
    sharding = getattr(jax.typeof(x), "sharding", None)
    pieces = [1] * x.ndim
    if sharding is not None and not sharding.mesh.empty:
        sizes = dict(sharding.mesh.shape)
        for axis, names in enumerate(sharding.spec):
            own = (names,) if isinstance(names, str) else names or ()
            pieces[axis] = math.prod(sizes[name] for name in own)
    ends = [n if count > 1 else 1 for n, count in zip(x.shape, pieces, strict=True)]
    steps = [n // count for n, count in zip(ends, pieces, strict=True)]
    found = jnp.abs(lax.slice(x, (0,) * x.ndim, ends, steps).astype(jnp.float32))
    return found.reshape(()) if found.size == 1 else jnp.max(found)
