"""Samples of the moments, of many leaves at a time.

Parts of layers whose samples are about equally long and are read by the same rule are
the rows of one matrix, the shorter ones with zeros behind: each width apart would be
programs of its own, and a program for each leaf would take minutes to compile.
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

# Of the widest samples of a matrix to the shortest.
RANGE_OF_WIDTHS = 8


class Before(NamedTuple):
    """What is measured before the step; zeros where it is not.

    The samples of all parts with one dtype follow one another: what leaves a
    conditional is copied, and an array for each leaf would take long to compile.

    Attributes:
      squares: float32 (rows of the parts seen in samples,), the sums of |g|^2.
      gradients, params, updates: for each dtype the samples, (samples of all rows,).
      known: int32, 1 once all of it is.
    """

    squares: jax.Array
    gradients: list[jax.Array]
    params: list[jax.Array]
    updates: list[jax.Array]
    known: jax.Array


class View(NamedTuple):
    """The samples of several parts: (rows, width) each, 0 behind the end of a row.

    Attributes:
      members: indices of the parts, whose rows follow one another.
      counts: of how many samples each row consists.
      inside: which elements are samples; None: all.
      g, mean: gradient and m_hat.
      params, updates: what they say; params None where they are not known.
      r, m, sqrt_v: r, |m_hat|, sqrt(v_hat).
      denominator: what m_hat is divided by.
      rate: scalar, the learning rate.
    """

    members: tuple[int, ...]
    counts: np.ndarray
    inside: jax.Array | None
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
    """The samples of all parts, one dtype behind the other.

    Attributes:
      members: for each array, the parts whose samples follow one another.
      arrays: (samples of all their rows,).
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
        """The samples of some parts: an array, where they are all that it has."""
        found: dict[int, jax.Array] = {}
        for members, x in zip(self.members, self.arrays, strict=True):
            if members == wanted:
                return x
            sizes = [self.parts[i].rows * self.parts[i].samples for i in members]
            ends = np.cumsum(sizes)
            for i, size, end in zip(members, sizes, ends, strict=True):
                if i in wanted:
                    found[i] = x[end - size : end]
        return joined([found[i] for i in wanted])


def widths(counts: Sequence[int]) -> list[int]:
    """For each number of samples, the width of the rows that hold them.

    Within a factor: longer rows of zeros would take longer than they save.
    """
    found: dict[int, int] = {}
    width = 0
    for count in sorted(set(counts), reverse=True):
        width = width if width and width <= RANGE_OF_WIDTHS * count else count
        found[count] = width
    return [found[count] for count in counts]


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
    of_parts = widths([part.samples for part in parts])
    for i, part in enumerate(parts):
        own = [
            (k, [_samples(stored[part.path], part) for stored in source.stored])
            for k, source in enumerate(found)
            if source.holds(part.path)
        ]
        held.append(own)
        form = [(k, jax.tree.map(_kind, stored)) for k, stored in own]
        dtypes = [one.dtype(i) for one in samples]
        key = (of_parts[i], str(dtypes), str(form))
        groups.setdefault(key, []).append(i)
    result = []
    for (width, _, _), own_parts in groups.items():
        members = tuple(own_parts)
        sizes = [parts[i].samples for i in members for _ in range(parts[i].rows)]
        rows = _Rows(np.array(sizes, np.int32), width)
        of_g, *of_params, of_updates = (rows.of(one.of(members)) for one in samples)
        ways = [held[i] for i in members]
        view = _view(members, rows, of_g, ways, found, counts)
        params = of_params[0] if of_params else None
        result.append(view._replace(params=params, updates=of_updates))
    return result


class _Rows(NamedTuple):
    """How samples that follow one another become the rows of a matrix."""

    counts: np.ndarray
    width: int

    @property
    def inside(self) -> jax.Array | None:
        """Which elements of the matrix are samples; None: all."""
        if (self.counts == self.width).all():
            return None
        shape = len(self.counts), self.width
        at = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        return at < self.counts[:, None]

    def of(self, flat: jax.Array) -> jax.Array:
        """(rows, width), 0 behind the samples of a row."""
        inside = self.inside
        if inside is None:
            return flat.reshape(len(self.counts), self.width)
        # One slice for each row, of which the end belongs to the next.
        starts = (np.cumsum(self.counts) - self.counts).astype(np.int32)
        slices = jax.lax.gather(
            jnp.pad(flat, (0, self.width)),
            starts[:, None],
            jax.lax.GatherDimensionNumbers(
                offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,)
            ),
            slice_sizes=(self.width,),
            mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )
        return self.zeroed(slices)

    def zeroed(self, x: jax.Array) -> jax.Array:
        """0 in the place of what is no sample."""
        inside = self.inside
        return x if inside is None else jnp.where(inside, x, jnp.zeros((), x.dtype))


def _samples(stored: Sequence[jax.Array], part: Part) -> list[jax.Array]:
    return [sample(x, part.shape, part.rows, part.samples) for x in stored]


def _kind(x: jax.Array) -> str:
    """The dtype; and the sharding, where it is a part of the type."""
    return f"{x.dtype} {getattr(jax.typeof(x), 'sharding', None)}"


def joined(arrays: Sequence[jax.Array]) -> jax.Array:
    """One behind the other; in one operation, where `jnp` has one for every 16."""
    return arrays[0] if len(arrays) == 1 else jax.lax.concatenate(arrays, 0)


def _view(
    members: tuple[int, ...],
    rows: _Rows,
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
        estimates = map(rows.zeroed, _estimate(found[k], rows, g, ways))
        new: tuple[Any, ...] = (*estimates, found[k].rate)
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
    own = members, rows.counts, rows.inside
    return View(*own, g, mean, r, size, root, denominator, rate, None, g)


def _estimate(
    source: Source, rows: _Rows, g: jax.Array, ways: Sequence[list[list[jax.Array]]]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The estimates of parts from the samples of their stored arrays."""
    wide = []
    for arrays in zip(*ways, strict=True):  # of one moment, for each part
        stored = [joined(x) for x in zip(*arrays, strict=True)]
        wide.append(rows.of(moments.read_stored(stored)))
    return source.estimates.rule(g, *wide)
