"""16-bit parameters that do not forget: their rest is kept in the optimizer's state.

    master = load(p, stored)          float32; what the wrapped optimizer sees and moves
    new    = master + update          in float32
    target = new rounded to the dtype of p
    stored = what p does not hold of new
    emitted update = target - p       float32: p + it is target, bit for bit; -0 where
                                      that is 0: then p stays, -0 included

Three formats, bytes of state per parameter, and what is kept of `new`:

    float32    4    all of it (master weights)
    split      2    all of it: the 16 lower bits of a float32, bfloat16 the upper ones
    rest       2    new - p in bfloat16, not rounded up to a power of two, which may be
                    half a unit of p: 16 to 19 bits in all (Kahan)

float32 holds target - p exactly, but where |p| is more than about 2^16 times the target
(bfloat16; float16 2^13), and p is a power of two that was rounded up to and the target
has the other sign, or p was changed by other hands. There `p + update` misses the
target by up to a float32 ulp of p. Such elements are counted, and right after the next
step: a master of 4 bytes to the last bit; in the other formats the master has moved by
what p missed. (Else a small target is what is left of two float32 numbers as large as
p, a multiple of their last place.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamx.moments import LARGE, behind, in_turn, placed_like, rounded

_TINY = float(jnp.finfo(jnp.float32).tiny)

# ---------------------------------------------------------------------- formats


class Format(NamedTuple):
    """How `stored` and a parameter make up the master, and the way back.

    Attributes:
      dtype: of `stored`.
      start: p -> stored.
      load: (p, stored) -> master.
      store: (new, target) -> stored. Without p: see `write_leaf`.
    """

    dtype: Any
    start: Callable[[Any], jax.Array]
    load: Callable[[jax.Array, jax.Array], jax.Array]
    store: Callable[[jax.Array, jax.Array], jax.Array]


@jax.custom_jvp
def load_split_leaf(p: jax.Array, low: jax.Array) -> jax.Array:
    """float32 from its upper half p, rounded, and what its bits lack or exceed."""
    p = placed_like(p, low)
    whole = lax.bitcast_convert_type(p.astype(jnp.float32), jnp.int32)
    master = lax.bitcast_convert_type(whole + low.astype(jnp.int32), jnp.float32)
    # A p that missed its target may be 0: it has no bits to count down from.
    return jnp.where(p == 0, jnp.zeros_like(master), master)


@load_split_leaf.defjvp
def _load_split_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Bits have no derivative, and would give 0 without a word; p was rounded from the
    # master, and has its derivative.
    return load_split_leaf(*primals), tangents[0].astype(jnp.float32)


def store_split_leaf(new: jax.Array, target: jax.Array) -> jax.Array:
    """The distance from target to new, in units of the last place of float32."""
    target = placed_like(target, new)
    low = lax.bitcast_convert_type(new, jnp.int32)
    low = low - lax.bitcast_convert_type(target, jnp.int32)
    # Half way between two parameters is 2^15 above the even one or below it: int16 has
    # only the second.
    low = jnp.minimum(low, 2**15 - 1)
    return jnp.where(target == 0, jnp.zeros_like(low), low).astype(jnp.int16)


def store_rest_leaf(new: jax.Array, target: jax.Array) -> jax.Array:
    """The distance from target to new, in bfloat16: never half a unit of p by rounding.

    Target and it would be rounded to the other neighbour then, and p would move in a
    step that moves nothing. Half a unit is a power of two.
    """
    exact = new - target
    rest = lax.reduce_precision(exact, 8, 7)
    bits = lax.bitcast_convert_type(rest, jnp.uint32)
    below = lax.bitcast_convert_type(bits - jnp.uint32(1 << 16), jnp.float32)
    is_power = (bits & jnp.uint32(0x7FFFFF)) == 0
    is_larger = jnp.abs(rest) > jnp.abs(exact)
    return jnp.where(is_power & is_larger, below, rest).astype(jnp.bfloat16)


def _zeros(dtype: Any) -> Callable[[Any], jax.Array]:
    # Like p: on its devices, sharded as it is.
    return lambda p: jnp.zeros_like(p, dtype=dtype)


def _start_full(p: Any) -> jax.Array:
    if isinstance(p, jax.ShapeDtypeStruct):
        return jnp.zeros(p.shape, jnp.float32)
    return jnp.asarray(p).astype(jnp.float32)


FULL = Format(
    dtype=jnp.dtype(jnp.float32),
    start=_start_full,
    load=lambda p, stored: stored,
    store=lambda new, target: new,
)
SPLIT = Format(
    dtype=jnp.dtype(jnp.int16),
    start=_zeros(jnp.int16),
    load=load_split_leaf,
    store=store_split_leaf,
)
REST = Format(
    # Also for float16: 1e-4 has a float16 rest of 3 bits only, since none is finer
    # than 6e-8.
    dtype=jnp.dtype(jnp.bfloat16),
    start=_zeros(jnp.bfloat16),
    load=lambda p, rest: p.astype(jnp.float32) + rest.astype(jnp.float32),
    store=store_rest_leaf,
)

# -------------------------------------------------------------------- arithmetic


def round_leaf(x: jax.Array, dtype: Any) -> jax.Array:
    """float32 numbers to the nearest of a 16-bit dtype, ties to even, as float32.

    Zeros are positive, since no sum of a 0 and another number is -0; and what is below
    1.2e-38 is 0, since sums may flush it.
    """
    limits = jnp.finfo(dtype)
    # Not two casts: XLA may leave out both.
    nearest = lax.reduce_precision(x, limits.nexp, limits.nmant)
    if dtype == jnp.float16:
        # reduce_precision knows no subnormal numbers, which are multiples of 2^-24.
        fine = jnp.round(x * 2.0**24) * 2.0**-24
        nearest = jnp.where(jnp.abs(x) < 2.0**-14, fine, nearest)
    return jnp.where(jnp.abs(nearest) < _TINY, jnp.zeros_like(x), nearest)


def signed_leaf(p: jax.Array, target: jax.Array) -> jax.Array:
    """The target, with the sign of p where both are 0: as `p + move` has it."""
    wide = p.astype(jnp.float32)
    return jnp.where((target == 0) & (wide == 0), wide, target)


def missed_leaf(p: jax.Array, new: jax.Array) -> jax.Array:
    """How many elements `p + (target - p)` does not bring to their target, float32."""
    target = round_leaf(new, p.dtype)
    before = p.astype(jnp.float32)
    reached = round_leaf(before + (target - before), p.dtype)
    is_missed = (reached != target) & ~jnp.isnan(target)
    return jnp.sum(is_missed, dtype=jnp.float32)


def write_leaf(
    p: jax.Array, master: jax.Array, u: jax.Array, known: jax.Array, kept: Format
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One leaf's write: what to add to p, what to store, how many miss their target.

    Args:
      p: the 16-bit parameter.
      master: float32, `kept.load` of it.
      u: float32, the wrapped optimizer's update.
      known: the last result for the leaf before; for the first, a number >= 0 that XLA
        cannot know. So one leaf after the other has its new master in memory.
      kept: the format of what is stored.

    Returns:
      update (float32), stored, number of elements (float32 scalar), a number >= 0 that
      is known once these were counted.
    """
    new = master + rounded(behind(known, u), master)  # u is a product
    # Three read p and the new master: this sum, what is stored, what is written to p.
    missed, counted = in_turn(missed_leaf, known, p, new)
    target = round_leaf(new, p.dtype)
    move = target - p.astype(jnp.float32)
    # -0 + -0 is the one sum that leaves a p of -0 as it is, as a skipped step has to.
    move = jnp.where(move == 0, -jnp.zeros_like(move), move)
    # p and what is stored are overwritten after they were read for the count.
    move = behind(counted, move)
    stored = kept.store(new, target)
    return move, stored if kept is FULL else behind(counted, stored), missed, counted


def settle_leaf(new: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new master of a leaf, in memory before what it is made of is overwritten.

    Two are computed from it, p and what is stored, and both overwrite what it is made
    of. (A conditional's result is no part of any other loop; two float32 copies of one
    leaf at a time.)

    Args:
      new: float32.
      known: see `write_leaf`.

    Returns:
      new; and a number >= 0 that is known once it is there.
    """

    def peek(x: jax.Array) -> jax.Array:
        return (x[(0,) * x.ndim] > 0).astype(jnp.float32)  # of a NaN, 0

    def apart(new: jax.Array) -> tuple[jax.Array, jax.Array]:
        # `known` is >= 0, which XLA cannot know.
        new = lax.cond(known >= 0, lambda x: x, jnp.zeros_like, behind(known, new))
        return new, peek(new)

    if new.size < LARGE:
        return new, known
    return lax.platform_dependent(new, cpu=apart, default=lambda x: (x, peek(x)))
