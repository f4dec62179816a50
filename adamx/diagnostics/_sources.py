"""Where the moments of a parameter stand in a state, and the rate of their steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx import moments
from adamx._types import PyTree
from adamx.reading import group_parts, readable_nodes, unboxed


@dataclasses.dataclass(frozen=True)
class Source:
    """A State with moments.

    Attributes:
      path: where it stands.
      estimates: what it answered.
      stored: for each of its moments, the stored arrays by the parameter's path.
      count: the steps it has taken; None where it does not count.
      rate: the learning rate last applied to its direction; NaN: not recorded.
    """

    path: tuple[Any, ...]
    estimates: moments.Estimates
    stored: tuple[Mapping[str, Sequence[jax.Array]], ...]
    count: Any
    rate: Any

    def holds(self, path: str) -> bool:
        """Whether it has moments for a parameter."""
        return all(path in stored for stored in self.stored)


def sources(state: PyTree) -> list[Source]:
    """All States with moments in a state."""
    flat = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda x: isinstance(x, moments.Estimating)
    )[0]
    rates = _rates(state)
    found = []
    for path, node in flat:
        if isinstance(node, moments.Estimating):
            estimates = node.estimates()
            stored = tuple(_stored(m) for m in estimates.moments)
            count = unboxed(getattr(node, "count", None))
            found.append(Source(path, estimates, stored, count, _rate(path, rates)))
    return found


def _stored(moment: PyTree) -> dict[str, Sequence[jax.Array]]:
    by_path = moments.moment_paths(moment)
    return {k: tuple(map(unboxed, own)) for k, own in by_path.items()}


def _rates(state: PyTree) -> list[tuple[Any, str | None, Any]]:
    """The recorded learning rates: path of the State, group in it, rate."""
    found: list[tuple[Any, str | None, Any]] = []
    for path, node in readable_nodes(state):
        rate = node.readings().get("learning_rate")
        by_group = rate if isinstance(rate, Mapping) else {None: rate}
        found += [(path, k, unboxed(v)) for k, v in by_group.items() if v is not None]
    return found


def _rate(path: Any, rates: Sequence[tuple[Any, str | None, Any]]) -> Any:
    """The rate nearest to a path: by the longest common way, then by its group."""
    names = group_parts(path)

    def nearness(entry: tuple[Any, str | None, Any]) -> tuple[int, bool]:
        other, group, _ = entry
        common = 0
        while common < min(len(path), len(other)) and path[common] == other[common]:
            common += 1
        return common, group is None or group in names

    if not rates:
        return jnp.float32(jnp.nan)
    return max(rates, key=nearness)[2]


def advanced(source: Source, before: Any) -> Any:
    """Whether a State took a step since its count was `before`; None: unknown."""
    if source.count is None or before is None:
        return None
    return source.count != before
