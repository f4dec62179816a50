"""Which parameter each array of a state mirrors: by construction, not by its shape.

init is given the placeholder of `optax.tree.map_params` in the parameters' place, and
wherever that comes to stand in the state, a tree like the parameters will. So a count
is never taken for the moment of a scalar, nor a moment for that of another parameter of
the same shape; `MaskedNode` stands for what belongs to other groups.

An init that takes nothing but arrays cannot be asked so. There a tree with the
structure and the ranks of the parameters counts as like them: the best to be known.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from adamx._types import GradientTransformation, MaskedNode, PyTree
from adamx.compose._belongings import placeholder


def abstract(tree: PyTree) -> PyTree:
    """Shapes and dtypes alone, without the shardings that the arrays have now."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class Mirrors(NamedTuple):
    """A state, leaf by leaf.

    Attributes:
      state: the abstract state.
      owners: the number of the parameter that a leaf mirrors; None: none.
      on_host: whether init leaves it in host memory (`offload`).
    """

    state: PyTree
    owners: list[int | None]
    on_host: list[bool]


def mirrored(tx: GradientTransformation, params: PyTree) -> Mirrors:
    """What `tx` keeps for which parameter, from shapes alone."""
    params = abstract(params)
    jaxpr, state = jax.make_jaxpr(tx.init, return_shape=True)(params)
    spaces = [getattr(x, "memory_space", None) for x in jaxpr.out_avals]
    structure: Any = jax.tree.structure(params)
    numbers = structure.unflatten(range(structure.num_leaves))
    try:
        owners = _by_placeholder(tx, state, numbers)
    # Whatever an init of another library raises that expects arrays.
    except Exception:
        owners = None
    if owners is None or all(owner is None for owner in owners):
        shapes = [x.shape for x in jax.tree.leaves(params)]
        owners = _by_structure(state, numbers, shapes)
    on_host = [getattr(space, "name", "") == "Host" for space in spaces]
    return Mirrors(state, owners, on_host)


def _by_placeholder(
    tx: GradientTransformation, state: PyTree, numbers: PyTree
) -> list[int | None] | None:
    marker = placeholder()
    is_marker = lambda x: isinstance(x, type(marker))  # noqa: E731
    marks, structure = jax.tree.flatten(tx.init(marker), is_leaf=is_marker)
    parts = structure.flatten_up_to(state)  # type: ignore[attr-defined]
    owners: list[int | None] = []
    for mark, part in zip(marks, parts, strict=True):
        if is_marker(mark):
            owners += _owners(part, numbers)
        else:
            owners += [None] * len(jax.tree.leaves(part))
    return owners


def _by_structure(
    state: PyTree, numbers: PyTree, shapes: Sequence[tuple[int, ...]]
) -> list[int | None]:
    def is_like(node: Any) -> bool:
        try:
            owners = _owners(node, numbers)
        except (ValueError, TypeError, KeyError):
            return False
        pairs = zip(jax.tree.leaves(node), owners, strict=True)
        return bool(owners) and all(
            owner is not None and _is_alike(x.shape, shapes[owner])
            for x, owner in pairs
        )

    owners: list[int | None] = []
    for node in jax.tree.leaves(state, is_leaf=is_like):
        owners += _owners(node, numbers) if is_like(node) else [None]
    return owners


def _is_alike(shape: tuple[int, ...], like: tuple[int, ...]) -> bool:
    """Of the same rank; or several of them, as a history has."""
    extra = len(shape) - len(like)
    return extra == 0 or (extra > 0 and shape[extra:] == like)


def _owners(part: PyTree, numbers: PyTree) -> list[int | None]:
    """The parameter of each leaf of a tree like the parameters.

    A MaskedNode may stand for a whole subtree of them.
    """
    is_masked = lambda x: isinstance(x, MaskedNode)  # noqa: E731
    leaves, structure = jax.tree.flatten(part, is_leaf=is_masked)
    below = structure.flatten_up_to(numbers)  # type: ignore[attr-defined]
    return [
        number if isinstance(number, int) else None
        for leaf, number in zip(leaves, below, strict=True)
        if not is_masked(leaf)
    ]
