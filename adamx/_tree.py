"""Trees: leaf-wise maps with several results, paths for messages, sums over everything.

None and `optax.MaskedNode` are tree nodes without leaves, so both pass through every
function here untouched; so does the placeholder that `optax.tree.map_params` sends
through `init`.
"""

import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx._types import PyTree, at_least_single, dtype_of, promote

# Where a shape has very many small leaves, they are added before they are reduced,
# up to so many at a time: 2,000 reductions of 2,048 elements compile in 44 s, 63 sums
# of 32 in 1 s. Where they are few, one reduction each is the quicker step.
_GROUPED_SIZE = 16_384
_GROUPED_FROM = 128
_GROUP_LENGTH = 32

# The attributes in which Flax boxes an array.
_BOXES = ("value", "raw_value")

# ------------------------------------------------------------------------- paths


def path_name(path: Sequence[Any]) -> str:
    """'a/b/0/c' for a key path, or '(root)' for the empty one.

    The `.value` of a box around an array (Flax's nnx.Variable, linen's Partitioned) is
    no part of the name: a model has the same names however its arrays are kept.

    >>> import jax
    >>> paths = jax.tree_util.tree_flatten_with_path({"a": [1, {"b": 2}]})[0]
    >>> [path_name(path) for path, _ in paths]
    ['a/0', 'a/1/b']
    """
    parts = []
    is_boxed = len(path) > 1 and getattr(path[-1], "name", None) in _BOXES
    for entry in path[:-1] if is_boxed else path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                parts.append(str(getattr(entry, attribute)))
                break
        else:
            parts.append(str(entry).strip(".[]'\""))
    return "/".join(parts) or "(root)"


def is_box(path: Sequence[Any]) -> bool:
    """Whether a path leads nowhere, or only into the box around an array."""
    return not path or (len(path) == 1 and getattr(path[0], "name", None) in _BOXES)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path names, in the tree's order."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in flat}


def some(names: Sequence[str]) -> str:
    """The first three names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def nearest_paths(pattern: str, names: Sequence[str]) -> str:
    """The names that look most like a regular expression, as a list for messages.

    >>> nearest_paths("^layers/.*atn", ["layers/0/attn/kernel", "layers/0/mlp", "head"])
    "'layers/0/attn/kernel', 'layers/0/mlp', 'head'"
    """
    words = [word for word in re.split(r"[^\w-]+", pattern) if word] or [pattern]

    def likeness(name: str) -> float:
        parts = [name, *name.split("/")]
        return sum(
            max(difflib.SequenceMatcher(None, word, part).ratio() for part in parts)
            for word in words
        )

    return some(sorted(dict.fromkeys(names), key=likeness, reverse=True))


def _structure_difference(tree: PyTree, other: PyTree) -> str:
    here, there = leaves_by_path(tree), leaves_by_path(other)
    missing = [name for name in there if name not in here]
    extra = [name for name in here if name not in there]
    parts = []
    if missing:
        parts.append(f"missing: {some(missing)}")
    if extra:
        parts.append(f"unexpected: {some(extra)}")
    if not parts:
        parts.append(
            f"same paths in other containers: {jax.tree.structure(tree)} against "
            f"{jax.tree.structure(other)}"[:400]
        )
    return "; ".join(parts)


# -------------------------------------------------------------------- contracts


def check_same_structure(
    tree: PyTree, other: PyTree, name: str, other_name: str
) -> None:
    """Raises ValueError naming the paths, unless two trees agree leaf by leaf."""
    structure: Any = jax.tree.structure(tree)
    like: Any = jax.tree.structure(other)
    if structure != like:
        # Unequal node data may still match leaf by leaf: as jax.tree.map judges.
        try:
            structure.flatten_up_to(other)
            like.flatten_up_to(tree)
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{name} must have the same tree structure as {other_name}; "
                f"{_structure_difference(tree, other)}. Pass the tree that jax.grad "
                "returns for the parameters given to init, and make a new state "
                "(tx.init) after changing the parameters' structure."
            ) from None
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    for (path, leaf), like_leaf in zip(paths, jax.tree.leaves(other), strict=True):
        _check_shape(path, leaf, like_leaf, name, other_name)


def check_like_params(updates: PyTree, params: PyTree) -> None:
    """Raises unless the gradient has the parameters' structure and shapes.

    Where the gradient is None the parameters may be anything: a whole model is a fine
    tree of parameters (`optimizer.update(gradients, state, model)` in Equinox).
    """
    try:
        likes = leaves_below(updates, params)
    except (ValueError, TypeError, KeyError):
        check_same_structure(updates, params, "gradient", "the parameters")
        raise
    paths = jax.tree_util.tree_flatten_with_path(updates)[0]
    for (path, leaf), like in zip(paths, likes, strict=True):
        if not jax.tree_util.all_leaves([like]):
            check_same_structure(updates, params, "gradient", "the parameters")
        _check_shape(path, leaf, like, "gradient", "the parameters")


def check_gradient(updates: PyTree, params: PyTree | None) -> None:
    """Raises unless it is of floats and, where they are known, like the parameters."""
    check_inexact(updates, "gradient")
    if params is not None:
        check_like_params(updates, params)


def leaves_below(tree: PyTree, other: PyTree) -> list[Any]:
    """What stands in `other` at each leaf of `tree`; a None in `tree` fits anything."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    below = structure.flatten_up_to(other)  # type: ignore[attr-defined]
    return [b for leaf, b in zip(leaves, below, strict=True) if leaf is not None]


def _check_shape(path: Any, leaf: Any, like: Any, name: str, other_name: str) -> None:
    if jnp.shape(leaf) != jnp.shape(like):
        raise ValueError(
            f"{name} at '{path_name(path)}' must have shape {jnp.shape(like)} as in "
            f"{other_name}, got {jnp.shape(leaf)}. Shapes are not broadcast: reduce or "
            "reshape it first."
        )


def check_inexact(tree: PyTree, name: str) -> None:
    """Raises TypeError naming the path of the first leaf that is not a float."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        try:
            dtype = dtype_of(leaf)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} at '{path_name(path)}' must be an array, got "
                f"{type(leaf).__name__}; filter the tree so that only arrays remain "
                "(for Equinox: eqx.filter(model, eqx.is_inexact_array))."
            ) from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{name} at '{path_name(path)}' must have a floating or complex "
                f"dtype, got {dtype}; leave it out with optax.masked or "
                "optax.partition, or convert it to a float."
            )


def check_is_trained(model: PyTree, name: str) -> None:
    """Raises where a Flax nnx model has arrays that no optimizer trains.

    Running statistics and random streams would pass for parameters.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(model, nnx.Module):
        return
    flat = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )[0]
    for path, own in flat:
        if isinstance(own, nnx.Variable) and not isinstance(own, nnx.Param):
            raise TypeError(
                f"`{name}` must hold parameters only, got a model with "
                f"nnx.{type(own).__name__} at '{path_name(path)}', which no optimizer "
                "trains. Split it: graph, params, rest = nnx.split(model, nnx.Param, "
                "...), pass `params`, and nnx.merge(graph, params, rest) in the loss."
            )


def check_real(tree: PyTree, name: str, reason: str) -> None:
    """Raises TypeError naming the path of the first complex leaf."""
    check_inexact(tree, name)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(dtype_of(leaf), jnp.complexfloating):
            raise TypeError(
                f"{name} at '{path_name(path)}' must be real, got the complex dtype "
                f"{dtype_of(leaf)}: {reason}. Wrap the optimizer in "
                "optax.contrib.split_real_and_imaginary."
            )


# ------------------------------------------------------------------------- maps


def map_leaves(
    rule: Callable[..., tuple[Any, ...]],
    results: int,
    tree: PyTree,
    *others: PyTree,
) -> tuple[PyTree, ...]:
    """Applies a rule with several results leaf by leaf; one tree for each result.

    Args:
      rule: function of one leaf of each tree, returning `results` arrays.
      results: how many.
      tree: decides the structure.
      *others: trees of the same structure (check first: `check_same_structure`), or
        None for "no such tree", in which case the rule gets None.
    """
    leaves = jax.tree.leaves(tree)
    structure: Any = jax.tree.structure(tree)
    columns = [
        [None] * len(leaves) if other is None else leaves_below(tree, other)
        for other in others
    ]
    rows = [rule(*row) for row in zip(leaves, *columns, strict=True)]
    return tuple(structure.unflatten([row[i] for row in rows]) for i in range(results))


def increment(count: Any) -> jax.Array:
    """count + 1, saturating at the largest integer of its dtype instead of wrapping."""
    count = jnp.asarray(count)
    limit = jnp.asarray(jnp.iinfo(count.dtype).max, count.dtype)
    return jnp.where(count < limit, count + jnp.ones((), count.dtype), limit)


# ------------------------------------------------------------------ global sums


def abs_squared(x: jax.Array) -> jax.Array:
    """|x|^2 as a real array: x * conj(x) for complex x.

    Of complex x both squares are rounded before they are added, as by
    `moments.rounded`: XLA for CPUs would round one of them with the sum, and which of
    them, or neither, depends on the loop.
    """
    if jnp.iscomplexobj(x):
        re, im = jnp.real(x), jnp.imag(x)
        return jnp.where(jnp.isnan(im), im, re * re) + jnp.where(
            jnp.isnan(re), re, im * im
        )
    return x * x


def real_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Re(conj(x) y) as a real array: what the real inner product adds up."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return jnp.real(x) * jnp.real(y) + jnp.imag(x) * jnp.imag(y)
    return x * y


def wide(x: Any) -> jax.Array:
    """x in at least single precision: float16 and bfloat16 become float32."""
    x = jnp.asarray(x)
    return x.astype(at_least_single(x.dtype))


def _wide_apart(x: Any) -> jax.Array:
    """`wide`, of which XLA does not know that others widen the same array.

    What a sum shares with them, XLA for CPUs writes to memory: twice the bytes.
    """
    x = jnp.asarray(x)
    kept = at_least_single(x.dtype)
    return x if kept == x.dtype else jax.lax.optimization_barrier(x).astype(kept)


def global_norm(tree: PyTree) -> jax.Array:
    """sqrt(sum over all leaves of |x|^2), at least in float32 whatever the dtype.

    Returns a real scalar: float64 where any leaf is, else float32; 0 for an empty tree.
    The sum overflows to inf where the norm is above 1.8e19 (float32).
    """
    return jnp.sqrt(global_sum(abs_squared, tree))


def inner_product(tree: PyTree, other: PyTree) -> jax.Array:
    """The sum over all leaves of Re(conj(x) y), in the dtypes of `global_norm`."""
    return global_sum(real_product, tree, other)


def global_sum(
    term: Callable[..., jax.Array], tree: PyTree, *others: PyTree
) -> jax.Array:
    """The sum of a real term over all elements of trees of one structure.

    Args:
      term: function of one leaf of each tree, as arrays of at least float32.
      tree, *others: the trees.

    Returns:
      A scalar: float64 where any leaf is, else float32; 0 for an empty tree.
    """
    groups: dict[Any, list[Sequence[jax.Array]]] = {}
    columns = [jax.tree.leaves(t) for t in (tree, *others)]
    for index, leaves in enumerate(zip(*columns, strict=True)):
        row = [_wide_apart(leaf) for leaf in leaves]
        x = row[0]
        small = 0 < math.prod(x.shape) <= _GROUPED_SIZE
        # Leaves with unlike shardings must not be added: that would move data.
        key = (x.shape, x.dtype, str(getattr(jax.typeof(x), "sharding", None)))
        groups.setdefault(key if small else index, []).append(row)
    sums = []
    # One multiply-and-sum, not jnp.vdot: that adds up in sequence on some versions of
    # XLA, and is wrong by 2% for 16 million elements.
    for members in groups.values():
        length = _GROUP_LENGTH if len(members) >= _GROUPED_FROM else 1
        for start in range(0, len(members), length):
            sums.append(jnp.sum(_add_terms(term, members[start : start + length])))
    if not sums:
        return jnp.zeros((), jnp.float32)
    dtype = promote(*[total.dtype for total in sums])
    return jnp.sum(jnp.stack([total.astype(dtype) for total in sums]))


def _add_terms(
    term: Callable[..., jax.Array], members: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    total = term(*members[0])
    for member in members[1:]:
        total = total + term(*member)
    return total
