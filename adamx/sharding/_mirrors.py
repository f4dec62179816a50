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

from adamx._packed import is_packed, unpacked
from adamx._types import GradientTransformation, MaskedNode, PyTree
from adamx.compose._belongings import placeholder

# Of one array: a parameter's number; of several, their numbers and sizes; or None.
Owner = int | dict[int, int] | None


def abstract(tree: PyTree) -> PyTree:
    """Shapes and dtypes alone, without the shardings that the arrays have now."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class Mirrors(NamedTuple):
    """A state, leaf by leaf.

    Attributes:
      state: the abstract state.
      owners: the number of the parameter that a leaf mirrors; None: none, or several.
      on_host: whether init leaves it in host memory (`offload`).
      joint: of a leaf that several parameters have parts of (`bucketed`), their numbers
        and how many elements each has.
    """

    state: PyTree
    owners: list[int | None]
    on_host: list[bool]
    joint: dict[int, dict[int, int]]


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
    if owners is None or all(not isinstance(x, (int, dict)) for x in owners):
        shapes = [x.shape for x in jax.tree.leaves(params)]
        owners = _by_structure(state, numbers, shapes)
    on_host = [getattr(space, "name", "") == "Host" for space in spaces]
    joint = {i: own for i, own in enumerate(owners) if isinstance(own, dict)}
    single = [None if isinstance(own, dict) else own for own in owners]
    return Mirrors(state, single, on_host, joint)


def _by_placeholder(
    tx: GradientTransformation, state: PyTree, numbers: PyTree
) -> list[Owner] | None:
    marker = placeholder()
    is_marker = lambda x: isinstance(x, type(marker))  # noqa: E731
    marks, structure = jax.tree.flatten(tx.init(marker), is_leaf=is_marker)
    parts = structure.flatten_up_to(state)  # type: ignore[attr-defined]
    owners: list[Owner] = []
    for mark, part in zip(marks, parts, strict=True):
        if is_marker(mark):
            owners += _owners_of_packed(part, numbers)
        else:
            owners += [None] * len(jax.tree.leaves(part))
    return owners


def _by_structure(
    state: PyTree, numbers: PyTree, shapes: Sequence[tuple[int, ...]]
) -> list[Owner]:
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

    owners: list[Owner] = []
    for node in jax.tree.leaves(state, is_leaf=is_like):
        owners += _owners(node, numbers) if is_like(node) else [None]
    return owners


def _is_alike(shape: tuple[int, ...], like: tuple[int, ...]) -> bool:
    """Of the same rank; or several of them, as a history has."""
    extra = len(shape) - len(like)
    return extra == 0 or (extra > 0 and shape[extra:] == like)


def _owners_of_packed(part: PyTree, numbers: PyTree) -> list[Owner]:
    """`_owners`, or of what is packed those of each array."""
    if not is_packed(part):
        return [*_owners(part, numbers)]
    leaves, layout = _owners(unpacked(part), numbers), part.layout
    owners: list[Owner] = []
    for array, members in enumerate(layout.members):
        if not layout.is_joined(array):
            owners += [leaves[i] for i in members]
            continue
        own: dict[int, int] = {}
        for i in members:
            number, size = leaves[i], layout.places[i].size
            if number is not None:
                own[number] = own.get(number, 0) + size
        owners.append(own)
    return owners


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
