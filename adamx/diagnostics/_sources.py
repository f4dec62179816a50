"""Where the moments of a parameter stand in a state, and the rate of their steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx import moments
from adamx._types import PyTree
from adamx.compose import StagesState
from adamx.compose._belongings import nodes
from adamx.reading import group_parts, readable_nodes, unboxed


@dataclasses.dataclass(frozen=True)
class Source:
    """A State with moments.

    Attributes:
      path: where it stands.
      estimates: what it answered.
      stored: for each of its moments, the stored arrays by the parameter's path.
      count: the steps it has taken; None where it does not count.
      rate: the learning rate last applied to its direction; NaN: not recorded, or not
        the same for all that it holds.
      is_at_work: whether the stages of `stages` that it is in took the last step; None
        outside of them.
    """

    path: tuple[Any, ...]
    estimates: moments.Estimates
    stored: tuple[Mapping[str, Sequence[jax.Array]], ...]
    count: Any
    rate: Any
    is_at_work: Any

    def holds(self, path: str) -> bool:
        """Whether it has moments for a parameter."""
        return all(path in stored for stored in self.stored)


def sources(state: PyTree) -> list[Source]:
    """All States with moments in a state."""
    flat = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda x: isinstance(x, moments.Estimating)
    )[0]
    rates = _rates(state)
    stages = list(nodes(state, lambda node: isinstance(node, StagesState)))
    found = []
    for path, node in flat:
        if isinstance(node, moments.Estimating):
            estimates = node.estimates()
            stored = tuple(_stored(m) for m in estimates.moments)
            count = unboxed(getattr(node, "count", None))
            rate, at_work = _rate(path, rates), _at_work(path, stages)
            found.append(Source(path, estimates, stored, count, rate, at_work))
    return found


def _at_work(path: Any, stages: Sequence[tuple[Any, StagesState]]) -> Any:
    """Whether what is at a path is in the stage of the last step; None: in none."""
    found = None
    for above, node in stages:
        if path[: len(above)] == above:
            here = unboxed(node.stage) == path[len(above) + 1].idx
            found = here if found is None else found & here
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
    """The rate nearest to a path: by the longest common way, then by its group.

    NaN where several are equally near: one State whose parameters have rates of their
    own (layer-wise), or rates that are multiplied.
    """
    names = group_parts(path)

    def nearness(entry: tuple[Any, str | None, Any]) -> tuple[int, bool]:
        other, group, _ = entry
        common = 0
        while common < min(len(path), len(other)) and path[common] == other[common]:
            common += 1
        return common, group is None or group in names

    near = max(map(nearness, rates), default=None)
    nearest = [entry[2] for entry in rates if nearness(entry) == near]
    return nearest[0] if len(nearest) == 1 else jnp.float32(jnp.nan)


def advanced(source: Source, before: Any) -> Any:
    """Whether a State took a step since its count was `before`; None: unknown."""
    if source.count is None or before is None:
        return None
    return source.count != before
