"""Codes: an array in 8 or 4 bits an element, or in bfloat16 with unbiased rounding.

    int8, mean     x = sign (k / 127)^2 scale      k = 0..127
    int8, square   x = (k / 256)^2 scale           k = 1..256
    int4, mean     x = sign (k / 7) scale          k = 0..7
    int4, square   x = (k / 16)^2 scale            k = 1..16
    fp8            x = k / (the largest k) scale   k: a float8 number

The scale, shared by a group, is the largest |x| in it at each step, exactly. A mean
square is never read as 0 where its group is not: mu / 0 is the way in which a linear
8-bit nu ends in NaN. Rounding is to the nearest k, or at random where that would be the
old one (in uint8 always): half a step of k is more than (1 - b2) of nu, which would
never change other than with its group's scale. With squares of k, steps are finer where
numbers are small: an 8-bit nu spans a factor of 65,536 in each group.

The dtype of the codes is the whole code: nothing else is stored to say how they are
read. A second code of the same dtype would need a static name in `Encoded`.

Source: Dettmers et al. (2022) for the idea of a code and a scale for each block; Li et
al. (2023) for unsigned codes without zero. The codes here are arithmetic, since a table
look-up takes many times as long on a CPU (benchmarks/README.md compares them).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx.moments import _layout, _rounding
from adamx.moments._order import one_of

# What k / levels is raised to, by the dtype of the codes.
_POWERS = {
    "int8": 2,
    "uint8": 2,
    "int4": 1,
    "uint4": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}

# The largest scale. 1 / a larger one is a subnormal number, which is read as 0.
_TOP = 2.0**126
# x + this, in float32, has x rounded to the nearest integer in its lowest bits.
_MAGIC = 12582912.0  # 1.5 * 2^23
# The smallest normal number of float32.
_TINY = 2.0**-126


def is_code(dtype: Any) -> bool:
    """Whether an array of this dtype, in an `Encoded`, is encoded: under 32 bits."""
    return jnp.dtype(dtype).itemsize < 4


def is_scaled(dtype: Any) -> bool:
    """Whether codes of this dtype are shares of a scale: those of 8 and 4 bits."""
    return jnp.dtype(dtype).name in _POWERS


def _levels(dtype: Any) -> float:
    """What k / levels divides by: the code of the scale itself."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        return float(jnp.finfo(dtype).max)
    limits = jnp.iinfo(dtype)
    return float(limits.max) if limits.min < 0 else float(limits.max) + 1.0


def _power(dtype: Any) -> int:
    name = jnp.dtype(dtype).name
    if name not in _POWERS:
        raise ValueError(
            f"codes with scales must have one of the dtypes {sorted(_POWERS)}, got "
            f"{name}; a new code needs a row in adamx.moments._codes._POWERS."
        )
    return _POWERS[name]


def _root(x: jax.Array, power: int) -> jax.Array:
    return jnp.sqrt(x) if power == 2 else x


def smaller(x: jax.Array, y: jax.Array) -> jax.Array:
    """The smaller one, y where x is NaN: one instruction, where lax.min takes four."""
    return jnp.where(x < y, x, y)


def larger(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger one, y where x is NaN."""
    return jnp.where(x > y, x, y)


def _common(
    scales: tuple[jax.Array, ...], shape: _layout.Shape, choose: Any = smaller
) -> jax.Array:
    """The scale by element; of two, what `choose` takes: the smaller one.

    Of inverse scales it is the larger one.
    """
    return functools.reduce(choose, [_layout.spread(s, shape) for s in scales])


def decode(codes: jax.Array, scales: tuple[jax.Array, ...], dtype: Any) -> jax.Array:
    """An array from its codes.

    Args:
      codes: of 8 or 4 bits, with scales; other arrays, bfloat16 among them, are only
        converted.
      scales: none (only where there is nothing to scale), one or two arrays.
      dtype: of the result.
    """
    if not is_scaled(codes.dtype):
        return codes.astype(dtype)
    power = _power(codes.dtype)
    units = tuple(_unit(s, power, _levels(codes.dtype)) for s in scales)
    k = codes.astype(jnp.float32)
    is_signed = not jnp.issubdtype(codes.dtype, jnp.unsignedinteger)
    x = (k if is_signed else k + 1.0) * _common(units, codes.shape)
    if power == 2:
        x = x * (jnp.abs(x) if is_signed else x)
    return x.astype(dtype)


def _unit(scale: jax.Array, power: int, levels: float) -> jax.Array:
    """The root of one code, by scale and not by element, as in `_inverse`.

    By a divisor that is not known: XLA makes of a constant one a product, which it
    would fuse into the loop.
    """
    return _root(scale, power) / jnp.where(scale >= 0, levels, jnp.inf)


def find_scales(
    new: Callable[[Any], jax.Array],
    scales: tuple[jax.Array, ...],
    *,
    is_simple: bool = False,
    is_square: bool = False,
) -> tuple[jax.Array, ...]:
    """The largest |x| of each group, for each of the scales; NaN has no part in it.

    Args:
      new: gives the array; called for each scale, so that XLA fuses it into each of the
        reductions instead of writing it to memory. It is given None, or a number >= 0
        before which the array shall not be computed.
      scales: of the step before, for their shapes.
      is_simple: whether they are written as they are meant, not for XLA's CPU compiler.
      is_square: whether x is never negative.
    """
    found: list[jax.Array] = []
    for scale in scales:
        if found and scale.size == 1:
            # The largest of all is the largest of the groups.
            size = jnp.max(found[0], initial=0, keepdims=True)
            found.append(_layout.placed_like(size.reshape(scale.shape), scale))
            continue
        # One after the other: what is found on the way takes memory.
        is_second = found and found[0].size and not is_simple
        turn = one_of(found[0]) if is_second else None
        x = new(turn) if is_square else jnp.abs(new(turn))
        size = _layout.largest(x, scale.shape, is_simple=is_simple)
        size = jnp.minimum(size, _TOP).astype(scale.dtype)
        found.append(_layout.placed_like(size, scale))
    return tuple(found)


def encode(
    x: jax.Array,
    scales: tuple[jax.Array, ...],
    old: jax.Array,
    bits: jax.Array | None,
    *,
    is_square: bool = False,
) -> jax.Array:
    """The codes of an array.

    Args:
      x: float32 or wider.
      scales: at least |x| in each group; none for bfloat16.
      old: the codes of the step before, which decide the dtype.
      bits: random bits of the array's shape; None: to the nearest code.
      is_square: whether no number may be read as 0 where its group is not: asked of
        float8 alone, since unsigned integers are for nothing else.
    """
    if not is_scaled(old.dtype):
        if bits is None:
            return x.astype(old.dtype)
        return _rounding.round_stochastic(x.astype(jnp.float32), bits)
    if jnp.issubdtype(old.dtype, jnp.floating):
        size = jnp.abs(x).astype(jnp.float32) * _inverse(scales, x.shape, old.dtype)
        return _float_code(x, _at_most(size, old.dtype), old, bits, is_square)
    return _integer_code(x, scales, old, bits)


def _inverse(
    scales: tuple[jax.Array, ...], shape: _layout.Shape, dtype: Any
) -> jax.Array:
    """What the root of |x| is multiplied by to be k; |x| itself where k is no root.

    By scale and not by element. XLA for CPUs keeps the division out of the loop, and
    what comes before it, if it is the last (and not that by a root, which it makes a
    product with an inverse root). A group whose inverse scale would be infinite is read
    as 0.
    """
    levels, power = _levels(dtype), _power(dtype)
    least = _TINY if power == 2 else max(_TINY, levels * 2.0**-127)
    roots = [jnp.where(s >= least, _root(s, power), jnp.inf) for s in scales]
    return _common(tuple(levels / root for root in roots), shape, larger)


def _at_most(k: jax.Array, dtype: Any) -> jax.Array:
    return smaller(k, jnp.float32(_levels(dtype)))  # NaN: the top


def _integer_code(
    x: jax.Array, scales: tuple[jax.Array, ...], old: jax.Array, bits: jax.Array | None
) -> jax.Array:
    """The code of x: the integer next to k, or one of the two that k is between.

    The only root is that of |x|, which a leaf rule may have taken already. Signs are
    put on and taken off by their bit: a comparison and a choice take longer.
    """
    is_signed = jnp.issubdtype(old.dtype, jnp.signedinteger)
    power = _power(old.dtype)
    size = (jnp.abs(x) if is_signed else x).astype(jnp.float32)
    k = _at_most(_root(size, power) * _inverse(scales, x.shape, old.dtype), old.dtype)
    sign = _sign_of(x) if is_signed else None
    if sign is None:
        k = larger(k, jnp.float32(1.0))
    if bits is not None:
        k = _at_random(k, _old_code(old, sign), bits, power)
    # The low bits of the sum are the integer. A conversion would be right too, but it
    # sees to NaN and overflow, which cannot be here, and is the slower for it.
    if sign is None:
        k = k + jnp.float32(_MAGIC - 1.0)
    else:
        k = _times_sign(k, sign) + jnp.float32(_MAGIC)
    return jax.lax.bitcast_convert_type(k, jnp.int32).astype(old.dtype)


def _old_code(old: jax.Array, sign: jax.Array | None) -> jax.Array | None:
    """The old k, with the sign relative to the new x; None where it is not asked for.

    A mean square in 8 bits changes by less than half a code in nearly every step, and
    is rounded by chance then; to round the others so, too, takes less arithmetic.
    """
    if sign is not None:
        return _times_sign(old.astype(jnp.float32), sign)
    return old.astype(jnp.float32) + 1.0 if _levels(old.dtype) < 256 else None


def _at_random(
    k: jax.Array, b: jax.Array | None, bits: jax.Array, power: int
) -> jax.Array:
    """The integer below or above k: the nearer one where that is not b, else by chance.

    With n below k, the chance is such that the mean of what is read is right:

        P(n + 1) = (k^2 - n^2) / ((n + 1)^2 - n^2) = (k - n) (k + n) / (2 n + 1)

    (k - n where x is not a square.) The nearer one is n + 1 where that is above 1/2.
    """
    number = _rounding.whole(bits)
    below = jnp.floor(k)
    part = k - below
    unit = jnp.float32(_rounding.WHOLE)
    if power == 2:
        # In units of the random number's last place. (Products with powers of two are
        # exact: rounded once or twice, the sum is the same.)
        part = part * (k + below)
        unit = below * jnp.float32(2 * _rounding.WHOLE) + unit
    if b is not None:
        half = jnp.float32(0.5 / _rounding.WHOLE)
        nearest = jnp.where(part > unit * half, below + 1.0, below)
        number = jnp.where(nearest == b, number, half)
    return jnp.where(part > unit * number, below + 1.0, below)


def _sign_of(x: jax.Array) -> jax.Array:
    """The sign bit of each number."""
    number = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return number & jnp.uint32(0x80000000)


def _times_sign(x: jax.Array, sign: jax.Array) -> jax.Array:
    number = jax.lax.bitcast_convert_type(x, jnp.uint32) ^ sign
    return jax.lax.bitcast_convert_type(number, jnp.float32)


def _float_code(
    x: jax.Array,
    size: jax.Array,
    old: jax.Array,
    bits: jax.Array | None,
    is_square: bool,
) -> jax.Array:
    limits = jnp.finfo(old.dtype)
    if bits is not None:
        # XLA may compute x more than once, each time rounded in another way. With bits
        # as they are, one that lies next to a power of two is still rounded to one of
        # its neighbours; with a unit from one and a factor from the other it would be
        # half of itself or twice.
        is_same = ((x < 0) == (old < 0)) | (old == 0)
        before = jnp.where(is_same, jnp.abs(old.astype(jnp.float32)), -1.0)
        # Below the smallest normal number steps are all alike: those of the number
        # added, which has the same step.
        least = jnp.float32(limits.smallest_normal)
        few = _rounded_bits(size + least, before + least, limits.nmant, bits) - least
        many = _rounded_bits(size, before, limits.nmant, bits)
        size = jnp.where(size < least, few, many)
    if is_square:
        # Not for means, which would never die away; and whose smallest code, beside a
        # square that has underflowed to 0, is a step of hundreds of learning rates.
        size = jnp.maximum(size, jnp.float32(limits.smallest_subnormal))
    return jnp.where(x < 0, -size, size).astype(old.dtype)


def _rounded_bits(
    x: jax.Array, old: jax.Array, kept: int, bits: jax.Array
) -> jax.Array:
    """x >= 0 in `kept` bits and the first: the nearest, by chance where that is `old`.

    The bits below are cut off behind a sum: with half a unit, or a random part of one.
    """
    unit = 1 << 23 - kept
    half, cut = jnp.uint32(unit // 2), jnp.uint32(2**32 - unit)
    number = jax.lax.bitcast_convert_type(x, jnp.uint32)
    nearest = jax.lax.bitcast_convert_type(number + half & cut, jnp.float32)
    part = jax.lax.shift_right_logical(bits, jnp.uint32(9 + kept))
    number = number + jnp.where(nearest == old, part, half) & cut
    return jax.lax.bitcast_convert_type(number, jnp.float32)
