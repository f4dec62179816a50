"""Layers: which leaves of the parameters are measured together, and under which name.

A leaf that holds a stack of layers (scanned blocks) is as many layers as its leading
axis is long.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import serialization

from adamx import _checks, _tree
from adamx._packed import unpacked
from adamx._types import PyTree
from adamx.reading import group_labels, unboxed

By = str | Sequence[tuple[str, str]] | Callable[[str], str | None]
Naming = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """What a State calls its numbers: text beside arrays, a tree without leaves.

    All are equal to JAX: `optax.tree.map_params` compares a state with one that was
    made of a placeholder, which has no layers. What they say follows from the
    gradient's paths, which are part of its structure.

    Attributes:
      layers: of the rows.
      numbers: of the columns.
    """

    layers: tuple[str, ...]
    numbers: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names)

    def __hash__(self) -> int:
        return hash(Names)


jax.tree_util.register_static(Names)
# No part of a checkpoint: whoever restores one has the names in his own state.
serialization.register_serialization_state(
    Names, lambda names: {}, lambda names, stored: names
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf of the parameters, as a part of a layer.

    Attributes:
      path: of the leaf.
      rows: length of the stack; 1 where it is none.
      shape: of one row.
      samples: how many of its elements are looked at, all of them or fewer.
      ranked: how many of these, the first ones, percentiles are of: a leaf too small
        for one of them may have none, where each has a sample for the sums.
    """

    path: str
    rows: int
    shape: tuple[int, ...]
    samples: int
    ranked: int

    @property
    def size(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer, or a stack of so many rows; its parts are those that have elements."""

    name: str
    is_stacked: bool
    rows: int
    parts: tuple[Part, ...]


EXACT = 65_536


def check_by(by: Any) -> None:
    """Raises unless `by` names layers; see `diagnose`."""
    if by in ("leaf", "group") or callable(by):
        return
    if isinstance(by, str) or not isinstance(by, Sequence):
        raise ValueError(
            '`by` must be "leaf", "group", a list of (regular expression, name) or a '
            f"function of a path, got {_checks.describe_value(by)}; e.g. "
            r"by=[(r'layers/(\d+)/', r'layer \1')]."
        )
    for i, rule in enumerate(by):
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or rule[0] is None:
            raise TypeError(
                f"`by[{i}]` must be a pair (regular expression, name), got "
                f"{_checks.describe_value(rule)}; e.g. ('embed', 'embedding')."
            )
        pattern = _checks.check_pattern(f"by[{i}][0]", rule[0])
        assert pattern is not None
        _check_template(i, pattern, rule[1])


def _check_template(i: int, pattern: re.Pattern[str], template: Any) -> None:
    if not isinstance(template, str):
        raise TypeError(
            f"`by[{i}][1]` must be the layer's name, got "
            f"{_checks.describe_value(template)}; e.g. 'embedding'."
        )
    try:  # on a match of nothing
        re.compile(f"{pattern.pattern}|", pattern.flags).sub(template, "")
    except re.error as error:
        raise ValueError(
            f"`by[{i}][1]` must be a name, which may refer to groups of its regular "
            rf"expression (r'layer \1'), got {template!r}: {error}."
        ) from None


def naming(by: By, group_of: Callable[[str], str | None]) -> Naming:
    """The layer's name of each path; None where it is not to be measured.

    Args:
      by: see `diagnose`.
      group_of: the group of a path, for "group".
    """
    if by == "leaf":
        return lambda path: path
    if by == "group":
        return group_of
    if callable(by):
        return by
    rules = [(re.compile(rule), name) for rule, name in by]  # type: ignore[str-unpack]

    def name_of(path: str) -> str | None:
        for pattern, name in rules:
            found = pattern.search(path)
            if found:
                return found.expand(name)
        return path

    return name_of


def group_names(states: Sequence[tuple[Any, PyTree]]) -> dict[str, str]:
    """By path of a parameter, the label of the state that holds its moments."""
    held: dict[str, int] = {}
    for i, (_, moment) in enumerate(states):
        for path in _tree.leaves_by_path(unpacked(moment)):
            held.setdefault(path, i)
    used = sorted(set(held.values()))
    labels = group_labels([states[i][0] for i in used])
    if len(used) == 1 and all(part.isdigit() for part in labels[0].split("/")):
        labels = [""]  # a place in a chain, and no group
    of_states = dict(zip(used, labels, strict=True))
    return {path: of_states[i] or "all" for path, i in held.items()}


def layers_of(
    params: PyTree, name_of: Naming, stacked: re.Pattern[str] | None, samples: int
) -> tuple[Layer, ...]:
    """The layers of a tree in the order of their first leaves, stacks behind others.

    Args:
      params: the parameters, or anything with their paths. What has no shape (the
        placeholder of `optax.tree.map_params`) counts as one element.
      name_of: of each path; see `naming`.
      stacked: of paths whose leading axis is a stack of layers.
      samples: of a layer with more than `EXACT` elements.
    """
    found: dict[str, list[tuple[str, bool, tuple[int, ...]]]] = {}
    keys: dict[str, Any] = {}
    for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = _tree.path_name(key)
        name = name_of(path)
        if name is None:
            continue
        if path in keys:
            both = " and ".join(map(jax.tree_util.keystr, (keys[path], key)))
            raise ValueError(
                f"parameters must have different paths to be measured, got {both}, "
                f"which are both '{path}'. Rename one of them, or leave them out: by="
                "a function that gives None for this path."
            )
        keys[path] = key
        if not isinstance(name, str):
            raise TypeError(
                f"`by` must name a layer for '{path}', or give None, got "
                f"{_checks.describe_value(name)}."
            )
        shape = tuple(getattr(unboxed(leaf), "shape", (1,)))
        is_stacked = stacked is not None and stacked.search(path) is not None
        if is_stacked and not shape:
            raise ValueError(
                f"`stacked` matches '{path}', which has no axis to split, got the "
                "shape (). Write an expression for the stacked leaves alone."
            )
        found.setdefault(name, []).append((path, is_stacked, shape))
    layers = [_layer(name, members, samples) for name, members in found.items()]
    layers.sort(key=lambda layer: layer.is_stacked)
    names = row_names(layers)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"layers must have different names, got '{twice}' twice, of which one is a "
            "row of a stack. Give them different names with `by`."
        )
    return tuple(layers)


def row_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The rows of a table: 'a/b', and for stacks 'a/b/0', 'a/b/1', ..."""
    return tuple(
        f"{layer.name}/{i}" if layer.is_stacked else layer.name
        for layer in layers
        for i in range(layer.rows)
    )


def check_some(layers: Sequence[Layer], params: PyTree) -> None:
    """Raises where a function `by` left out all of the parameters."""
    leaves = _tree.leaves_by_path(params)
    if (
        leaves
        and not layers
        and all(hasattr(unboxed(x), "shape") for x in leaves.values())
    ):
        raise ValueError(
            "`by` must name a layer for one parameter at least, got None for all: "
            f"{_tree.some(list(leaves))}. Give the names of those to be measured."
        )


def _layer(
    name: str, members: Sequence[tuple[str, bool, tuple[int, ...]]], samples: int
) -> Layer:
    stacks = {
        (is_stacked, shape[0] if is_stacked else 1) for _, is_stacked, shape in members
    }
    if len(stacks) > 1:
        raise ValueError(
            f"the leaves of the layer '{name}' must all be stacks of the same length, "
            f"or none, got {_tree.some([path for path, _, _ in members])}. Give them "
            "different names with `by`, or change `stacked`."
        )
    ((is_stacked, rows),) = stacks
    shapes = [shape[1:] if is_stacked else shape for _, _, shape in members]
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(sizes)
    ranked = sizes if total <= EXACT else _shares(sizes, samples)
    parts = [
        Part(path, rows, shape, max(1, count), count)
        for (path, _, _), shape, count in zip(members, shapes, ranked, strict=True)
    ]
    return Layer(name, is_stacked, rows, tuple(p for p in parts if p.size * rows))


def _shares(sizes: Sequence[int], samples: int) -> list[int]:
    """The leaves' parts of the samples of a layer, at most all of each.

    Rounded such that those of the first leaves together, however many, are within a
    half of their due.
    """
    ends = np.cumsum([0, *sizes])
    ends = np.floor(ends / ends[-1] * samples + 0.5).astype(int)
    return [int(n) for n in np.minimum(np.diff(ends), sizes)]
