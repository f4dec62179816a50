"""Layers: which elements of a leaf share one norm.

A leaf is one layer. Only where `nn.scan` has stacked equal layers into one leaf does
its leading axis count them, and each has a norm of its own. Norms keep the leaf's rank,
(1, ..., 1) or (layers, 1, ..., 1), so that they broadcast against it.
"""

import math
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree, _varying
from adamx._types import PyTree

Axes = tuple[int, ...]


def is_stacked(pattern: re.Pattern[str] | None, path: Any, shape: Axes) -> bool:
    """Whether the leading axis of the leaf at a key path counts layers."""
    if pattern is None or not pattern.search(_tree.path_name(path)):
        return False
    if not shape:
        raise ValueError(
            f"`stacked` must match leaves whose leading axis counts layers, but "
            f"'{_tree.path_name(path)}' is a scalar. Make the regular expression "
            f"narrower than {pattern.pattern!r}."
        )
    return True


def check_stacked(pattern: re.Pattern[str] | None, params: PyTree) -> None:
    """Raises for a scalar; warns where nothing matches, as behind a misspelled path."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    matches = [is_stacked(pattern, path, _shaped(x).shape) for path, x in flat]
    if pattern is not None and flat and not any(matches):
        names = ", ".join(f"'{_tree.path_name(path)}'" for path, _ in flat[:3])
        warnings.warn(
            f"`stacked`={pattern.pattern!r} matches no parameter (of {names}, ...), so "
            "that every leaf is one layer. Paths are joined by '/'.",
            UserWarning,
            stacklevel=3,
        )


def layer_axes(pattern: re.Pattern[str] | None, tree: PyTree) -> list[Axes]:
    """For each leaf, the axes over which a layer extends: all, or all but the first."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        tuple(range(int(is_stacked(pattern, path, x.shape)), len(x.shape)))
        for path, x in ((path, _shaped(leaf)) for path, leaf in flat)
    ]


def _shaped(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "shape") else jnp.asarray(leaf)


def norm(x: jax.Array, axes: Axes, names: _varying.Names = ()) -> jax.Array:
    """sqrt(sum of |x|^2) over some axes, which stay with length 1.

    Of pieces, over the devices along the axes of the mesh with these `names` too.
    """
    total = jnp.sum(_tree.abs_squared(x), axis=axes, keepdims=True)
    return jnp.sqrt(_varying.sum_over(total, names))


def mean(x: jax.Array, axes: Axes, names: _varying.Names = ()) -> jax.Array:
    """The mean over some axes, which stay with length 1; 0 where there is nothing.

    Of pieces, over the devices along the axes of the mesh with these `names` too.
    """
    count = math.prod(x.shape[axis] for axis in axes) * _varying.size_of(names)
    total = _varying.sum_over(jnp.sum(x, axis=axes, keepdims=True), names)
    return total / max(count, 1)


def limit_factor(size: jax.Array, limit: Any) -> jax.Array:
    """min(1, limit / size); NaN for a NaN, and 1 for a size of 0."""
    # `size <= limit` is False for NaN, so a NaN reaches the factor.
    return jnp.where(size <= limit, jnp.ones((), size.dtype), limit / size)


def all_layers(values: PyTree, default: float, dtype: Any) -> jax.Array:
    """The values of all layers of a tree in one vector; `default` where there is none.

    Args:
      values: tree of real arrays, one element for each layer.
      default: what the vector holds if there are no layers.
      dtype: of the vector.
    """
    rows = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(values)]
    rows = [row for row in rows if row.size]
    return jnp.concatenate(rows) if rows else jnp.full(1, default, dtype)
