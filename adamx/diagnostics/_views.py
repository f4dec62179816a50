"""Samples of the moments, of many leaves at a time.

Parts of layers whose samples are equally long and are read by the same rule are stacked
to one matrix: a program for each leaf of a large model would take minutes to compile.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx import moments
from adamx.diagnostics._layers import Part
from adamx.diagnostics._sampling import sample
from adamx.diagnostics._sources import Source, advanced


class Before(NamedTuple):
    """What is measured before the step; zeros where it is not.

    Tables of all parts with equally many samples, of one dtype: what leaves a
    conditional is copied, and an array for each leaf would take long to compile.

    Attributes:
      squares: float32 (rows of all parts,), the sums of |g|^2.
      gradients, params, updates: for each table the samples, (rows, samples).
      known: int32, 1 once all of it is.
    """

    squares: jax.Array
    gradients: list[jax.Array]
    params: list[jax.Array]
    updates: list[jax.Array]
    known: jax.Array


class View(NamedTuple):
    """The samples of several parts: (rows, samples) each.

    Attributes:
      members: indices of the parts, whose rows follow one another.
      g, mean: gradient and m_hat.
      params, updates: what they say; params None where they are not known.
      r, m, sqrt_v: r, |m_hat|, sqrt(v_hat).
      denominator: what m_hat is divided by.
      rate: scalar, the learning rate.
    """

    members: tuple[int, ...]
    g: jax.Array
    mean: jax.Array
    r: jax.Array
    m: jax.Array
    sqrt_v: jax.Array
    denominator: jax.Array
    rate: jax.Array
    params: jax.Array | None
    updates: jax.Array


class Samples(NamedTuple):
    """The samples of all parts, in tables.

    Attributes:
      members: for each table, the parts whose rows follow one another.
      arrays: the tables, (rows, samples).
      parts: all parts.
    """

    members: list[tuple[int, ...]]
    arrays: Sequence[jax.Array]
    parts: Sequence[Part]

    def dtype(self, i: int) -> Any:
        """Of a part."""
        pairs = zip(self.members, self.arrays, strict=True)
        return next(x.dtype for members, x in pairs if i in members)

    def of(self, wanted: tuple[int, ...]) -> jax.Array:
        """The rows of some parts: a table, where they are all that it has."""
        found: dict[int, jax.Array] = {}
        for members, x in zip(self.members, self.arrays, strict=True):
            if members == wanted:
                return x
            ends = np.cumsum([self.parts[i].rows for i in members])
            for i, end in zip(members, ends, strict=True):
                if i in wanted:
                    found[i] = x[end - self.parts[i].rows : end]
        return _stacked([found[i] for i in wanted])


def views(
    parts: Sequence[Part],
    samples: Sequence[Samples],
    found: Sequence[Source],
    counts: Sequence[Any],
) -> list[View]:
    """The samples of all parts.

    Args:
      parts: the parts.
      samples: of gradients, parameters where they are known, and updates.
      found: the states with moments.
      counts: of each of them, before the step.
    """
    groups: dict[Any, list[int]] = {}
    held: list[list[tuple[int, list[list[jax.Array]]]]] = []
    for i, part in enumerate(parts):
        own = [
            (k, [_samples(stored[part.path], part) for stored in source.stored])
            for k, source in enumerate(found)
            if source.holds(part.path)
        ]
        held.append(own)
        form = [(k, jax.tree.map(_kind, stored)) for k, stored in own]
        dtypes = [one.dtype(i) for one in samples]
        key = (part.samples, str(dtypes), str(form))
        groups.setdefault(key, []).append(i)
    result = []
    for own_parts in groups.values():
        members = tuple(own_parts)
        of_g, *of_params, of_updates = (one.of(members) for one in samples)
        ways = [held[i] for i in members]
        view = _view(members, of_g, ways, found, counts)
        params = of_params[0] if of_params else None
        result.append(view._replace(params=params, updates=of_updates))
    return result


def _samples(stored: Sequence[jax.Array], part: Part) -> list[jax.Array]:
    return [sample(x, part.shape, part.rows, part.samples) for x in stored]


def _kind(x: jax.Array) -> str:
    """The dtype; and the sharding, where it is a part of the type."""
    return f"{x.dtype} {getattr(jax.typeof(x), 'sharding', None)}"


def _stacked(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)


def _view(
    members: tuple[int, ...],
    g: jax.Array,
    held: Sequence[Sequence[tuple[int, list[list[jax.Array]]]]],
    found: Sequence[Source],
    counts: Sequence[Any],
) -> View:
    """What the moments of some parts say; NaN where there are none."""
    blank = jnp.full(g.shape, jnp.nan, g.real.dtype)
    now: tuple[Any, ...] = (jnp.full_like(g, jnp.nan), blank, blank, jnp.nan)
    # Of several, the first that took this step; none has: the last. Of stages, the one
    # at work, even if the step was skipped; behind a switch to one without: none.
    for position in reversed(range(len(held[0]))):
        k = held[0][position][0]
        ways = [own[position][1] for own in held]
        new: tuple[Any, ...] = (*_estimate(found[k], g, ways), found[k].rate)
        is_last = position == len(held[0]) - 1
        is_at_work = found[k].is_at_work
        if is_at_work is None and not is_last:
            is_at_work = advanced(found[k], counts[k])
        if is_at_work is not None:
            new = tuple(
                jnp.where(is_at_work, x, y) for x, y in zip(new, now, strict=True)
            )
        now = new
    mean, root, denominator, rate = now
    size = jnp.abs(mean)
    r = moments.divide_or_zero(size, denominator)
    rate = jnp.asarray(rate, jnp.float32)
    return View(members, g, mean, r, size, root, denominator, rate, None, g)


def _estimate(
    source: Source, g: jax.Array, ways: Sequence[list[list[jax.Array]]]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The estimates of parts from the samples of their stored arrays."""
    wide = []
    for arrays in zip(*ways, strict=True):  # of one moment, for each part
        stored = [_stacked(x) for x in zip(*arrays, strict=True)]
        wide.append(moments.read_stored(stored))
    return source.estimates.rule(g, *wide)
