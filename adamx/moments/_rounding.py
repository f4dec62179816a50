"""Stochastic rounding: float32 to bfloat16, right in the mean.

    round(x) = above with probability (x - below) / (above - below), else below

below and above are the two bfloat16 numbers next to x. To the nearest, a weight of 1
plus an update of 1e-3 is 1 for ever; so it is 1.0078 once in eight steps.

The random bits are a function of a counter: key, step, stream (which leaf, which
moment) and the element's place in its array, and of nothing else. So they are the same
on one device and on eight, need no communication and no state, and cost three
multiplications an element (`jax.random` would take many times the optimizer's step;
with two, bits of one word were correlated by up to 4%). They are good enough to round
with (tests/test_rounding.py), and no secret.

Source: Croci, Fasi, Higham, Mary & Mikaitis, "Stochastic Rounding: Implementation,
Error Analysis and Applications" (2022), section 2. Multipliers and shifts of the
mixing function: Wellons, "Prospecting for Hash Functions" (2018), the best found there
with three multiplications.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamx import _checks, _varying
from adamx._traced import is_for_passes

# Where a hash of the key begins: the first digits of pi, a number of no other meaning.
_START = (0x243F6A88, 0x85A308D3)
# From here on the bfloat16 above is infinite: 0x7F7F is the largest finite one.
_TOP = 0x7F7F0000
# The unit of `whole`.
WHOLE = 2.0**-24
# 2^32 over the golden ratio, to the nearest odd number.
_GOLDEN = 0x9E3779B1


def _u32(value: Any) -> jax.Array:
    return jnp.asarray(value).astype(jnp.uint32)


def _shift(x: jax.Array, places: int) -> jax.Array:
    return lax.shift_right_logical(x, jnp.uint32(places))


def _mix(x: jax.Array, more: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit of x decides about every bit.

    So is it of `more`, which enters half way.
    """
    x = (x ^ _shift(x, 17)) * jnp.uint32(0xED5AD4BB)
    x = ((x ^ _shift(x, 11)) + more) * jnp.uint32(0xAC4C1B51)
    x = (x ^ _shift(x, 15)) * jnp.uint32(0x31848BAB)
    return x ^ _shift(x, 14)


def _seeds(key: jax.Array, step: Any, stream: Any) -> tuple[jax.Array, jax.Array]:
    """64 bits for a key, a step and a stream, unlike for unlike ones."""
    high, low = map(jnp.uint32, _START)
    for word in (*key, _u32(step), _u32(stream)):
        high = _mix(high ^ word, jnp.uint32(0))
        low = _mix(low + high, jnp.uint32(0))
    return high, low


def _positions(shape: Sequence[int]) -> jax.Array:
    """Each element's place in an array, row by row, modulo 2^32.

    A sum over the dimensions, so that every device can count its own part.
    """
    if is_for_passes() and math.prod(shape) < 2**32:
        return lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    place = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        along = lax.broadcasted_iota(jnp.uint32, shape, axis)
        place = place + along * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return place


def key_words(name: str, value: Any) -> jax.Array:
    """The uint32 vector in a `jax.random` key, typed or raw."""
    is_array = isinstance(value, (jax.Array, np.ndarray))
    if is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
        is_array = value.ndim == 1
    elif is_array:
        is_array = value.dtype == jnp.uint32 and value.ndim == 1 and value.size > 0
    if not is_array:
        raise TypeError(
            f"`{name}` must be one jax.random key, got "
            f"{_checks.describe_value(value)}; pass "
            "jax.random.fold_in(jax.random.key(seed), step)."
        )
    return jnp.asarray(value)


def random_bits(
    key: jax.Array, step: Any, stream: Any, shape: Sequence[int]
) -> jax.Array:
    """32 random bits for each element of an array, by counting.

    Args:
      key: uint32 vector, what `key_words` returns.
      step: integer scalar, traced or not.
      stream: integer, traced or not: which array of all that are drawn in one step.
      shape: of the result. The bits of an element depend on its place, row by row;
        they repeat behind 2^32 elements.

    Returns:
      uint32 array. No two of its elements are equal, below 2^32 of them: where that
      matters (it does not for rounding), use fewer of the bits.

    >>> bits = random_bits(jnp.array([0, 7], jnp.uint32), 0, 0, (2, 3))
    >>> again = random_bits(jnp.array([0, 7], jnp.uint32), 0, 0, (6,))
    >>> bool(jnp.all(bits.ravel() == again))
    True
    """
    high, low = _seeds(key, step, stream)
    # Counted from `high`, and with `low` in the midst: were there only one of them, two
    # streams would be shifted copies of each other.
    return _mix(_positions(shape) + high, low)


def starts(key: jax.Array, step: Any, streams: jax.Array) -> jax.Array:
    """32 random bits for each stream, for `spread_bits`.

    All at once and in a loop, which XLA does not fuse: the hash in each of the programs
    that need one of its numbers takes most of the time to compile them.

    Args:
      key, step: see `random_bits`.
      streams: uint32 vector.

    Returns:
      uint32 vector.
    """
    words = jnp.stack([*key, _u32(step)])
    words = jnp.broadcast_to(words[:, None], (words.size, streams.size))
    fill = (jnp.full(streams.shape, x, jnp.uint32) for x in _START)
    first = tuple(_varying.like(x, words) for x in fill)

    def enter(state: Any, word: jax.Array) -> Any:
        high, low = state
        high = _mix(high ^ word, jnp.uint32(0))
        return (high, _mix(low + high, jnp.uint32(0))), None

    entered, _ = lax.scan(enter, first, jnp.concatenate([words, streams[None]]))
    return entered[0]


def spread_bits(start: jax.Array, shape: Sequence[int]) -> jax.Array:
    """32 bits for each element: random by step, evenly spread by element.

        bits = start + 0x9E3779B1 * place   (mod 2^32)

    From step to step an element's bits are as random as `random_bits`; those of one
    step are a golden-ratio sequence, shifted at random as a whole: one multiplication
    in place of three. For codes, rounded anew at every step, that is as good: what has
    to be right is the mean of each element over the steps.

    Args:
      start: uint32 scalar, one of `starts`.
      shape: see `random_bits`.

    Returns:
      uint32 array.

    Source: Cranley & Patterson, "Randomization of Number Theoretic Methods for Multiple
    Integration" (1976), for the shift.
    """
    return _positions(shape) * jnp.uint32(_GOLDEN) + start


def uniform(bits: jax.Array) -> jax.Array:
    """Random bits as float32 in [0, 1): the highest 24 of them, over 2^24.

    >>> float(uniform(jnp.array(0x80000000, jnp.uint32)))
    0.5
    """
    return whole(bits) * jnp.float32(WHOLE)


def whole(bits: jax.Array) -> jax.Array:
    """The highest 24 random bits as float32, a whole number; times `WHOLE` below 1.

    >>> float(whole(jnp.array(0x80000000, jnp.uint32)))
    8388608.0
    """
    # Through int32: processors have no conversion of unsigned integers.
    number = lax.bitcast_convert_type(_shift(bits, 8), jnp.int32)
    return number.astype(jnp.float32)


@jax.custom_jvp
def round_stochastic(x: jax.Array, bits: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down at random, so that the mean is x.

        P(away from 0) = (|x| - below) / (above - below), a multiple of 2^-16: exact

    Done on the integers that stand for the numbers: half a unit is added to round to
    the nearest; here, a random part of it. What bfloat16 holds stays as it is: zeros
    with their signs, infinities, subnormals (no arithmetic flushes them here; the sum
    that was rounded may have been). NaN stays NaN.

    Above 3.39e38, the largest finite bfloat16, there is no mean to keep, since above is
    infinity: there rounding is to the nearest, so that no value becomes infinite that
    to the nearest would not.

    Its derivative is that of the mean, 1, as rounding to the nearest has it in JAX.

    Args:
      x: float32.
      bits: uint32 of the same shape, of which the highest 16 are used.

    Returns:
      bfloat16.

    >>> x = jnp.full(10_000, 1.001)
    >>> bits = random_bits(jnp.array([0, 7], jnp.uint32), 0, 0, x.shape)
    >>> rounded = round_stochastic(x, bits).astype(jnp.float32)
    >>> sorted(set(rounded.tolist())), round(float(rounded.mean()), 3)
    ([1.0, 1.0078125], 1.001)
    """
    number = lax.bitcast_convert_type(x, jnp.uint32)
    size = number & jnp.uint32(0x7FFFFFFF)
    half = jnp.uint32(0x8000)
    moved = number + jnp.where(size >= jnp.uint32(_TOP), half, _shift(bits, 16))
    quiet = number | jnp.uint32(0x400000)  # a payload in the lower half is not inf
    moved = jnp.where(size > jnp.uint32(0x7F800000), quiet, moved)
    high = _shift(moved, 16).astype(jnp.uint16)
    return lax.bitcast_convert_type(high, jnp.bfloat16)


@round_stochastic.defjvp
def _round_stochastic_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Without a rule, bits have the derivative 0, without a word.
    return round_stochastic(*primals), tangents[0].astype(jnp.bfloat16)
