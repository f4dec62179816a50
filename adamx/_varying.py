"""Inside `shard_map`: what varies from device to device, and sums over its axes.

In `jax.shard_map` the type of an array says along which axes of the mesh it may differ
between devices. Zeros do not, and the branches of a conditional must agree. Where no
types say so (outside of it, in pmap, with check_vma=False) nothing here does anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from adamx import _checks, _tree
from adamx._types import PyTree

Names = tuple[str, ...]

# They name axes and move nothing.
_SILENT = ("axis_index", "pvary", "pcast")


def cond(
    is_first: jax.Array, first: Callable[[], PyTree], second: Callable[[], PyTree]
) -> PyTree:
    """`jax.lax.cond`, whose branches may vary along unlike axes.

    Raises:
      ValueError: devices may choose apart, and one branch adds up over them.
    """
    if not _manual_axes():
        return jax.lax.cond(is_first, first, second)
    branches = (first, second)
    programs = [jax.make_jaxpr(branch)() for branch in branches]
    _check_none_waits(is_first, programs)
    types = [program.out_avals for program in programs]
    if len(types[0]) != len(types[1]):  # its own message is the better one
        return jax.lax.cond(is_first, first, second)
    # What devices choose apart is apart, be it the same in either branch.
    own = _axes_of(jax.typeof(is_first))
    names = [own | _axes_of(a) | _axes_of(b) for a, b in zip(*types, strict=True)]

    def alike(branch: Callable[[], PyTree]) -> Callable[[], PyTree]:
        def run() -> PyTree:
            leaves, structure = jax.tree.flatten(branch())
            pairs = zip(leaves, names, strict=True)
            return jax.tree.unflatten(structure, [_vary(x, own) for x, own in pairs])

        return run

    return jax.lax.cond(is_first, alike(first), alike(second))


def _check_none_waits(choice: jax.Array, programs: Sequence[Any]) -> None:
    """Raises where a device that has chosen otherwise would be waited for, for ever."""
    apart = _axes_of(jax.typeof(choice))
    if not apart:
        return
    waits = apart & set().union(*map(_spanned, programs))
    if waits:
        names = ", ".join(map(repr, sorted(waits)))
        raise ValueError(
            "`axis_name` must be given to every wrapper that chooses around sums over "
            f"{names}, got a choice that may differ between devices along them: those "
            "that step would wait for ever for those that do not. Give guard and "
            "loss_scaling the axis_name of what they wrap, or sum gradients that are "
            "copies over the devices first (jax.lax.pmean)."
        )


def _spanned(program: Any) -> set[str]:
    """The names of the axes over which a program communicates."""
    found: set[str] = set()
    for equation in program.eqns:
        if equation.primitive.name not in _SILENT:
            for key in ("axes", "axis_name"):
                names = equation.params.get(key, ())
                names = names if isinstance(names, (tuple, list)) else (names,)
                found |= {name for name in names if isinstance(name, str)}
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns"):
                    found |= _spanned(inner)
    return found


def start_of(step: Callable[[int, PyTree], PyTree], start: PyTree) -> PyTree:
    """What a loop begins with, varying as its step will return it."""
    if not _manual_axes():
        return start
    types = jax.make_jaxpr(lambda x: step(0, x))(start).out_avals
    leaves, structure = jax.tree.flatten(start)
    pairs = zip(leaves, types, strict=True)
    return jax.tree.unflatten(structure, [_vary(x, _axes_of(t)) for x, t in pairs])


def like(x: jax.Array, other: jax.Array) -> jax.Array:
    """x, varying along the axes along which another array varies."""
    return _vary(x, _axes_of(jax.typeof(other))) if _manual_axes() else x


def key_of_piece(key: jax.Array, x: jax.Array) -> jax.Array:
    """A random key of its own for each piece of an array, the same for copies."""
    for name in sorted(_axes_of(jax.typeof(x))) if _manual_axes() else ():
        key = jax.random.fold_in(key, jax.lax.axis_index(name))
    return key


def beyond(x: jax.Array, others: Sequence[jax.Array]) -> frozenset[str]:
    """The axes along which an array varies, and none of the others does."""
    if not _manual_axes():
        return frozenset()
    known: frozenset[str] = frozenset()
    return _axes_of(jax.typeof(x)) - known.union(
        *(_axes_of(jax.typeof(y)) for y in others)
    )


def _manual_axes() -> Any:
    return getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ())


def axes_of(x: jax.Array) -> frozenset[str]:
    """The axes along which an array varies."""
    return _axes_of(jax.typeof(x)) if _manual_axes() else frozenset()


def _axes_of(kind: Any) -> frozenset[str]:
    """The axes along which an array of this type varies."""
    varying = getattr(getattr(kind, "manual_axis_type", None), "varying", None)
    return frozenset(varying or getattr(kind, "vma", None) or ())


def _vary(x: Any, names: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(names - _axes_of(jax.typeof(x))))
    if not missing:
        return x
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return lax.pvary(x, missing)  # JAX below 0.8


# ------------------------------------------------------------------------------ sums


def _is_names(x: Any) -> bool:
    return isinstance(x, str) or (
        isinstance(x, tuple) and all(isinstance(name, str) for name in x)
    )


def check_names(axis_name: Any) -> None:
    """Raises TypeError unless it is None, a name, names, or a tree of these."""
    flat = jax.tree_util.tree_flatten_with_path(axis_name, is_leaf=_is_names)[0]
    for path, x in flat:
        if not _is_names(x):
            raise TypeError(
                "`axis_name` must be the name of an axis, a tuple of names, or a tree "
                f"of these, got {_checks.describe_value(x)} at "
                f"'{_tree.path_name(path)}'; pass e.g. 'model', or () for a leaf that "
                "every device has whole."
            )


def names_of(updates: PyTree, axis_name: Any) -> list[Names]:
    """For each leaf of a gradient, the axes along which it is in pieces."""
    if axis_name is None:
        return [()] * len(jax.tree.leaves(updates))
    entries, structure = jax.tree.flatten(axis_name, is_leaf=_is_names)
    try:
        below = structure.flatten_up_to(updates)  # type: ignore[attr-defined]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            "`axis_name` must be names, or a tree of them like the gradient or the top "
            f"of it, got {structure} for {jax.tree.structure(updates)}: {error}. Give "
            "every leaf its names, () where every device has it whole."
        ) from None
    return [
        (names,) if isinstance(names, str) else names
        for names, part in zip(entries, below, strict=True)
        for _ in jax.tree.leaves(part)
    ]


def sum_over(total: jax.Array, names: Sequence[str]) -> jax.Array:
    """The sum of a number of each device over the axes of these names."""
    if not names:
        return total
    try:
        return jax.lax.psum(total, tuple(names))
    except NameError as error:
        raise ValueError(
            "`axis_name` must name axes of the surrounding shard_map or pmap, got "
            f"{', '.join(map(repr, names))} ({error}). Under jit alone leave it out: "
            "there arrays are whole, and so is what is added up of them."
        ) from None


def size_of(names: Sequence[str]) -> int:
    """How many devices there are along the axes of these names: a static number."""
    return int(jax.lax.psum(1, tuple(names))) if names else 1


def global_sum(
    term: Callable[..., jax.Array], tree: PyTree, axis_name: Any
) -> jax.Array:
    """`_tree.global_sum`, of leaves in pieces that of all of them; see `names_of`."""
    if axis_name is None:
        return _tree.global_sum(term, tree)
    groups: dict[Names, list[Any]] = {}
    leaves = jax.tree.leaves(tree)
    for leaf, names in zip(leaves, names_of(tree, axis_name), strict=True):
        groups.setdefault(names, []).append(leaf)
    sums = [sum_over(_tree.global_sum(term, own), n) for n, own in groups.items()]
    return _tree.global_sum(lambda x: x, sums)
