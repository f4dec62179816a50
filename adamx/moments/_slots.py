"""One stored moment, leaf by leaf: its arrays, and the way in and out of them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx._traced import is_for_passes
from adamx._types import PyTree
from adamx.moments import _rounding
from adamx.moments._codec import Encoded
from adamx.moments._codes import decode, encode, find_scales, is_code, is_scaled
from adamx.moments._ema import unrelated
from adamx.moments._order import LARGE, behind, in_turn, one_of


@dataclasses.dataclass(frozen=True)
class Slot:
    """One stored moment, encoded or not, as so many trees of one array for each leaf.

    Attributes:
      name: its field in the State.
      moment: a tree, or an `Encoded`.
      is_square: whether it is never negative: see `encode`.
    """

    name: str
    moment: PyTree
    is_square: bool = False

    @property
    def trees(self) -> tuple[PyTree, ...]:
        """The moment or its codes; then its scales."""
        if isinstance(self.moment, Encoded):
            return (self.moment.codes, *self.moment.scales)
        return (self.moment,)

    def is_encoded(self, own: Sequence[jax.Array]) -> bool:
        """Whether a leaf of it is encoded."""
        return isinstance(self.moment, Encoded) and is_code(own[0].dtype)

    def load(self, own: Sequence[jax.Array], dtype: Any) -> jax.Array:
        """The moment's leaf, in the dtype of the arithmetic.

        What is decoded twice is two computations to XLA, since the scales are not known
        to be the same: it would write what they have in common to memory otherwise, a
        float32 copy of the whole moment.
        """
        if not self.is_encoded(own):
            return load(own[0], dtype)
        if is_in_passes(own):
            return decode(own[0], tuple(own[1:]), dtype)
        return decode(own[0], tuple(unrelated(s) for s in own[1:]), dtype)

    def starts(self, streams: Sequence[int]) -> Sequence[jax.Array | None]:
        """What the random bits of each leaf begin with; None to the nearest."""
        if not isinstance(self.moment, Encoded) or self.moment.key is None:
            return [None] * len(streams)
        order = jnp.array(streams, jnp.uint32)
        found = _rounding.starts(self.moment.key, self.moment.step, order)
        return [found[i] for i in range(len(streams))]

    def store(
        self,
        own: Sequence[jax.Array],
        new: Callable[[Any], jax.Array],
        start: jax.Array | None,
    ) -> list[jax.Array]:
        """The codes and the scales of the new moment."""
        codes, *scales = own
        found = find_scales(
            new, tuple(scales), is_simple=is_in_passes(own), is_square=self.is_square
        )
        bits = None if start is None else _rounding.spread_bits(start, codes.shape)
        coded = encode(new(None), found, codes, bits, is_square=self.is_square)
        return [coded, *found]

    def state(self, trees: Sequence[PyTree]) -> PyTree:
        """The new moment for the State, of its trees."""
        if not isinstance(self.moment, Encoded):
            return trees[0]
        step = self.moment.step
        return self.moment._replace(
            codes=trees[0],
            scales=tuple(trees[1:]),
            step=None if step is None else step + jnp.uint32(1),
        )


def is_in_passes(own: Sequence[jax.Array]) -> bool:
    """Whether a leaf's codes are read and written by passes over memory (`native`).

    Those know scales by row and by column, also for so many rows; not blocks along the
    last axis, which are XLA's, as usual.
    """
    codes, *scales = own
    return is_for_passes() and all(_is_by_lines(s.shape, codes.shape) for s in scales)


def _is_by_lines(groups: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether groups of one shape of a scale are all of an array, rows or columns."""
    if math.prod(groups) == 1:
        return True
    *leading, rows, columns = (1, *shape)
    *own, height, width = (1, *groups)
    is_row, is_column = (height, width) == (rows, 1), width == columns
    return own == leading and (is_row or is_column)


def at_turn(turn: jax.Array, own: list[jax.Array]) -> list[jax.Array]:
    """A leaf's codes and scales; these are known only once `turn` is, a number >= 0.

    Of a leaf that is not encoded, nothing reads the scales: they stay what they are.
    """
    codes, *scales = own
    if not is_code(codes.dtype):
        return own
    return [codes, *(behind(turn, s) for s in scales)]


def at_turn_to_store(
    turn: jax.Array, own: list[jax.Array], dtype: Any
) -> list[jax.Array]:
    """A leaf's arrays, known only once `turn` is where they are stored in few bits.

    As `at_turn`; where there are no scales to wait, the array itself does. Codes of 4
    bits do not: XLA for CPUs writes them one by one, into a byte that it reads before,
    and where old ones are read from the same place a step takes 2.5 times as long.

    Args:
      turn: a number >= 0.
      own: the moment or its codes, and scales.
      dtype: of the arithmetic. What is stored in it is read by the new parameter as the
        new moment, not as the old one: nothing waits for it.
    """
    stored, *scales = own
    if stored.dtype.name in ("int4", "uint4"):
        return own
    if is_code(stored.dtype) and is_scaled(stored.dtype):
        return at_turn(turn, own)
    if stored.dtype.itemsize >= jnp.dtype(dtype).itemsize:
        return own
    return [behind(turn, stored), *scales]


def turn_after(own: Sequence[jax.Array], turn: jax.Array) -> jax.Array:
    """A number >= 0 that is known when a leaf's codes are; small leaves pass `turn` on.

    All of them: were one code read outside of `in_turn`, only it would be computed. Of
    passes over memory, one code says that all are: leaves are done one by one, and what
    is read for its scales is still in the processor's cache when it is read again.
    """
    codes, *scales = own
    if not scales or codes.size < LARGE:
        return turn
    if is_in_passes(own):
        return one_of(codes)

    return in_turn(one_of, one_of(scales[0]), codes)[1]


def deal(arrays: Sequence[Any], slots: Sequence[Slot]) -> list[list[Any]]:
    """What belongs to each slot, of the arrays (or trees) of all."""
    rest = iter(arrays)
    return [[next(rest) for _ in slot.trees] for slot in slots]


def load(moment: jax.Array, dtype: Any) -> jax.Array:
    """A plain moment's leaf in the dtype of the arithmetic."""
    if jnp.iscomplexobj(moment) and not jnp.issubdtype(dtype, jnp.complexfloating):
        moment = jnp.real(moment)
    return moment.astype(dtype)
