"""Samples of the moments, of many leaves at a time.

Parts of layers whose samples are equally long and are read by the same rule are stacked
to one matrix: a program for each leaf of a large model would take minutes to compile.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import moments
from adamx.diagnostics._layers import Part
from adamx.diagnostics._sampling import sample
from adamx.diagnostics._sources import Source, advanced


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


def views(
    parts: Sequence[Part],
    samples: tuple[Sequence[jax.Array], Sequence[jax.Array], Sequence[jax.Array]],
    found: Sequence[Source],
    counts: Sequence[Any],
) -> list[View]:
    """The samples of all parts.

    Args:
      parts: the parts.
      samples: of gradient, parameters and updates of each; no parameters: not known.
      found: the states with moments.
      counts: of each of them, before the step.
    """
    gradients, params, updates = samples
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
        dtypes = [of_part[i].dtype for of_part in samples if of_part]
        key = (part.samples, str(dtypes), str(form))
        groups.setdefault(key, []).append(i)
    return [
        _view(
            tuple(members),
            _stacked([gradients[i] for i in members]),
            [held[i] for i in members],
            found,
            counts,
        )._replace(
            params=_stacked([params[i] for i in members]) if params else None,
            updates=_stacked([updates[i] for i in members]),
        )
        for members in groups.values()
    ]


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
