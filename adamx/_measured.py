"""What `adamx.diagnose` measured, as `adamx.read` has it; of several States as one."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = Any  # int or float; an array where the state is batched, a tracer inside jit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Diagnostics:
    """What `adamx.diagnose` last measured, layer by layer.

    Attributes:
      count: the step at which it was measured; 0: not yet, and all numbers are NaN.
      layers: by name of the layer and of the number: `layers["dense/kernel"]["r/p50"]`.
        What the numbers are, and in which units: see `adamx.diagnose`. Where several
        of these, in groups, name a layer alike, the group's name stands before it.
      unseen: steps that a guard around `adamx.diagnose` skipped so far, which `count`
        knows nothing of: training has taken both. None without such a guard; a guard
        inside of `adamx.diagnose` hides nothing from it.
      seen: steps that `adamx.diagnose` has counted, of which `count` is one: between
        them lies what came since. None where nobody said.
    """

    count: Number
    layers: Mapping[str, Mapping[str, Number]]
    unseen: Number | None = None
    seen: Number | None = None

    def __repr__(self) -> str:
        if not isinstance(self.layers, Mapping):  # as in vmap's in_axes
            return f"Diagnostics(count={self.count!r}, layers={self.layers!r})"
        size = f"{len(self.layers)} layers x {len(self._numbers())} numbers"
        return f"Diagnostics(count={self.count!r}, {size})"

    def _numbers(self) -> list[str]:
        names = (name for numbers in self.layers.values() for name in numbers)
        return list(dict.fromkeys(names))


def joined(
    measured: Sequence[Diagnostics], labels: Sequence[str]
) -> Diagnostics | None:
    """Diagnostics of several parts of a state as one; of the last step of any.

    Layers that several name alike have the label of their part before the name: without
    labels that tell them apart, its place ('0/w', of what is outside, and '1/w').
    """
    if len(measured) < 2:
        return measured[0] if measured else None
    layers: dict[str, Mapping[str, Number]] = {}
    for one, names in zip(measured, _names_apart(measured, labels), strict=True):
        layers |= dict(zip(names, one.layers.values(), strict=True))
    count = largest({i: one.count for i, one in enumerate(measured)})
    unseen = (one.unseen for one in measured if one.unseen is not None)
    return Diagnostics(count, layers, next(unseen, None), _seen(measured, count))


def _names_apart(
    measured: Sequence[Diagnostics], labels: Sequence[str]
) -> list[list[str]]:
    """The names of all layers, each once."""
    if len(set(labels)) < len(labels) or "" in labels:
        labels = [str(i) for i in range(len(measured))]
    times = collections.Counter(name for one in measured for name in one.layers)
    taken = {name for name, count in times.items() if count == 1}
    found = []
    for one, label in zip(measured, labels, strict=True):
        names = []
        for name in one.layers:
            own = name if times[name] == 1 else f"{label}/{name}"
            while times[name] > 1 and own in taken:
                own = f"{label}/{own}"
            taken.add(own)
            names.append(own)
        found.append(names)
    return found


def _seen(measured: Sequence[Diagnostics], count: Any) -> Any:
    """What the one with that count has counted; in a batch, that of each member."""
    found = next((one.seen for one in measured if one.count is count), None)
    if found is not None or any(one.seen is None for one in measured):
        return found
    is_traced = any(isinstance(one.count, jax.core.Tracer) for one in measured)
    xp: Any = jnp if is_traced else np
    found = measured[0].seen
    for one in measured[1:]:
        found = xp.where(one.count == count, one.seen, found)
    return found


def largest(values: Mapping[Any, Any] | None) -> Any:
    """The furthest count: stages may start late, none counts more than the steps.

    In a batch, that of each member; of batches of unlike size, the first one's.
    """
    candidates = list((values or {}).values())
    if not candidates:
        return None
    if all(isinstance(v, int) for v in candidates):
        return max(candidates)
    numbers = (int, np.ndarray, jax.Array)
    is_concrete = all(isinstance(v, numbers) for v in candidates)
    if not is_concrete or len({np.shape(v) for v in candidates}) > 1:
        return candidates[0]
    is_traced = any(isinstance(v, jax.core.Tracer) for v in candidates)
    return functools.reduce(jnp.maximum if is_traced else np.maximum, candidates)
