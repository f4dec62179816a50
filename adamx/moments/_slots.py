"""One stored moment, leaf by leaf: its arrays, and the way in and out of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx._types import PyTree
from adamx.moments import _rounding
from adamx.moments._codec import Encoded, decode, encode, find_scales, is_code
from adamx.moments._ema import unrelated

# Leaves of so many elements are encoded one after the other on a CPU: see `at_turn`.
_LARGE = 2**16


@dataclasses.dataclass(frozen=True)
class Slot:
    """One stored moment, encoded or not, as so many trees of one array for each leaf.

    Attributes:
      name: its field in the State.
      moment: a tree, or an `Encoded`.
    """

    name: str
    moment: PyTree

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
        return decode(own[0], tuple(unrelated(s) for s in own[1:]), dtype)

    def store(
        self, own: Sequence[jax.Array], new: Callable[[], jax.Array], stream: int
    ) -> list[jax.Array]:
        """The codes and the scales of the new moment."""
        codes, *scales = own
        found = find_scales(new, tuple(scales))
        bits = None
        if self.moment.key is not None:
            step = self.moment.step
            bits = _rounding.random_bits(self.moment.key, step, stream, codes.shape)
        return [encode(new(), found, codes, bits), *found]

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


def at_turn(turn: jax.Array, own: list[jax.Array]) -> list[jax.Array]:
    """A leaf's codes and scales, the scales known only once `turn` is, a number >= 0.

    Several results are computed from the same old codes. The compiler for CPUs keeps a
    copy of them wherever it overwrites them with one of these, and without an order it
    copies the codes of all leaves at the start.
    """
    codes, *scales = own
    return [codes, *(jnp.where(turn >= 0, s, jnp.zeros_like(s)) for s in scales)]


def turn_after(own: Sequence[jax.Array], turn: jax.Array) -> jax.Array:
    """A number >= 0 that is known when the codes of a leaf are.

    One of them read in a conditional, with a predicate that the compiler cannot know:
    it computes only that one otherwise. Small leaves let `turn` pass.
    """
    codes, *scales = own
    if not scales or codes.size < _LARGE:
        return turn

    def first(codes: jax.Array) -> jax.Array:
        one = jax.lax.slice(codes, (0,) * codes.ndim, (1,) * codes.ndim)
        return jnp.abs(one.reshape(()).astype(jnp.float32))

    def apart(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return jax.lax.cond(scale >= 0, first, first, codes)

    def at_once(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.zeros_like(scale)

    # Elsewhere a conditional may wait for the host, and a fusion has several results.
    return jax.lax.platform_dependent(
        codes, scales[0].ravel()[0], cpu=apart, default=at_once
    )


def deal(arrays: Sequence[Any], slots: Sequence[Slot]) -> list[list[Any]]:
    """What belongs to each slot, of the arrays (or trees) of all."""
    rest = iter(arrays)
    return [[next(rest) for _ in slot.trees] for slot in slots]


def load(moment: jax.Array, dtype: Any) -> jax.Array:
    """A plain moment's leaf in the dtype of the arithmetic."""
    if jnp.iscomplexobj(moment) and not jnp.issubdtype(dtype, jnp.complexfloating):
        moment = jnp.real(moment)
    return moment.astype(dtype)
