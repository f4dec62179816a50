"""The shardings that a user gives for the parameters: read and checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adamx import _checks, _tree
from adamx._types import PyTree
from adamx.sharding._specs import Dims, pieces

_REMEDY = "pass e.g. NamedSharding(mesh, PartitionSpec('data', None))"


@dataclasses.dataclass(frozen=True)
class Given:
    """The parameters, and where they are.

    Attributes:
      mesh: the one mesh.
      names: of the parameters, 'a/b'.
      shapes: of the parameters.
      shardings: of the parameters.
      dims: the same, written out.
    """

    mesh: Any
    names: list[str]
    shapes: list[tuple[int, ...]]
    shardings: list[NamedSharding]
    dims: list[Dims]

    @property
    def sizes(self) -> Mapping[str, int]:
        """Of the mesh's axes."""
        return dict(self.mesh.shape)

    @property
    def is_explicit(self) -> bool:
        """Whether shardings are a part of the arrays' types."""
        kinds = getattr(self.mesh, "axis_types", None) or ()
        return jax.sharding.AxisType.Explicit in tuple(kinds)


def read_given(params: PyTree, param_shardings: PyTree, mesh: Mesh | None) -> Given:
    """Everything that is known of the parameters.

    Raises:
      TypeError: a parameter that is no array, a sharding of another kind.
      ValueError: shardings of another structure, several meshes or none, an axis that
        the mesh has not, a dimension that is not divided evenly.
    """
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [_tree.path_name(path) for path, _ in flat]
    for name, (_, p) in zip(names, flat, strict=True):
        if not (hasattr(p, "shape") and hasattr(p, "dtype")):
            raise TypeError(
                f"parameter at '{name}' must be an array or a jax.ShapeDtypeStruct, "
                f"got {_checks.describe_value(p)}; filter the tree so that only arrays "
                "remain (for Equinox: eqx.filter(model, eqx.is_inexact_array))."
            )
    shapes = [tuple(p.shape) for _, p in flat]
    entries = _spread(param_shardings, params)
    shardings = [
        _named(name, entry, mesh) for name, entry in zip(names, entries, strict=True)
    ]
    mesh = _one_mesh(names, shardings, mesh)
    rows = zip(names, shapes, shardings, strict=True)
    return Given(mesh, names, shapes, shardings, [_dims(*row) for row in rows])


def _is_entry(x: Any) -> bool:
    return x is None or isinstance(x, (jax.sharding.Sharding, PartitionSpec))


def _spread(param_shardings: PyTree, params: PyTree) -> list[Any]:
    """One entry for each parameter; an entry may stand for a whole subtree."""
    entries, structure = jax.tree.flatten(param_shardings, is_leaf=_is_entry)
    try:
        below = structure.flatten_up_to(params)  # type: ignore[attr-defined]
    except (ValueError, TypeError, KeyError):
        given = jax.tree.map(lambda _: 0, param_shardings, is_leaf=_is_entry)
        _tree.check_same_structure(
            given, jax.tree.map(lambda _: 0, params), "`param_shardings`", "`params`"
        )
        raise
    return [
        entry
        for entry, part in zip(entries, below, strict=True)
        for _ in jax.tree.leaves(part)
    ]


def _named(name: str, entry: Any, mesh: Mesh | None) -> NamedSharding:
    if isinstance(entry, NamedSharding):
        return entry
    if isinstance(entry, PartitionSpec):
        if mesh is None:
            raise ValueError(
                f"`mesh` must be given where `param_shardings` are PartitionSpecs, as "
                f"at '{name}', got None; pass mesh=, or {_REMEDY}."
            )
        _check_axes(name, entry, mesh)
        return NamedSharding(mesh, entry)
    raise TypeError(
        f"`param_shardings` at '{name}' must be a NamedSharding, got "
        f"{_checks.describe_value(entry)}; {_REMEDY} (PartitionSpec() for one that "
        "every device has whole)."
    )


def _check_axes(name: str, spec: PartitionSpec, mesh: Any) -> None:
    for axis in (a for axes in _entries(name, spec) for a in axes):
        if axis not in mesh.shape:
            raise ValueError(
                f"`param_shardings` at '{name}' must name axes of the mesh, got "
                f"'{axis}' in {spec}; the mesh has {_axes_text(mesh)}."
            )


def _axes_text(mesh: Any) -> str:
    return ", ".join(f"'{axis}' ({size})" for axis, size in mesh.shape.items())


def _entries(name: str, spec: PartitionSpec) -> Dims:
    if any(entry is PartitionSpec.UNCONSTRAINED for entry in spec):
        raise ValueError(
            f"`param_shardings` at '{name}' must name its axes, got {spec}; replace "
            "UNCONSTRAINED by an axis or None."
        )
    return tuple(
        () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for entry in spec
    )


def _one_mesh(
    names: Sequence[str], shardings: Sequence[NamedSharding], mesh: Mesh | None
) -> Any:
    first: Any = mesh
    for name, sharding in zip(names, shardings, strict=True):
        first = sharding.mesh if first is None else first
        if sharding.mesh != first:
            raise ValueError(
                f"`param_shardings` at '{name}' must be of the mesh of the others, "
                f"{_axes_text(first)}, got one with {_axes_text(sharding.mesh)}; one "
                "compiled step runs on one mesh: make all shardings with it."
            )
    if first is None:
        raise ValueError(
            "`mesh` must be given where there are no parameters, got None; pass mesh=."
        )
    return first


def _dims(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> Dims:
    entries = _entries(name, sharding.spec)
    if len(entries) > len(shape):
        raise ValueError(
            f"`param_shardings` at '{name}' must have at most one entry for each "
            f"dimension of {shape}, got {sharding.spec}; {_REMEDY}."
        )
    dims = (*entries, *((),) * (len(shape) - len(entries)))
    for at, (n, axes) in enumerate(zip(shape, dims, strict=True)):
        count = pieces(axes, sharding.mesh.shape)
        if n % count:
            raise ValueError(
                f"`param_shardings` at '{name}' must divide its dimensions evenly, got "
                f"{sharding.spec} for {shape}: dimension {at} of {n} into {count}. Pad "
                "the parameter, divide another dimension, or leave this one whole "
                "(None)."
            )
    return dims


def check_zero1(zero1: Any, mesh: Any) -> tuple[str, ...]:
    """The axes of ZeRO-1, () for None.

    Raises:
      TypeError: no name of an axis, nor a tuple of names.
      ValueError: an axis that the mesh has not; one named twice; all of them of size 1.
    """
    if zero1 is None:
        return ()
    axes = (zero1,) if isinstance(zero1, str) else zero1
    is_names = isinstance(axes, (tuple, list)) and axes
    if not (is_names and all(isinstance(axis, str) for axis in axes)):
        raise TypeError(
            "`zero1` must be the name of a mesh axis, a tuple of names or None, got "
            f"{_checks.describe_value(zero1)}; the mesh has {_axes_text(mesh)}."
        )
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(
                f"`zero1` must name axes of the mesh, got '{axis}'; it has "
                f"{_axes_text(mesh)}."
            )
    if len(set(axes)) < len(axes):
        raise ValueError(
            f"`zero1` must name each axis once, got {zero1!r}; leave out the repeats."
        )
    if pieces(axes, mesh.shape) == 1:
        where = "a mesh of one device" if mesh.size == 1 else _axes_text(mesh)
        raise ValueError(
            f"`zero1` must name an axis of at least two devices, got {zero1!r} on "
            f"{where}: nothing would be divided. Pass zero1=None, or the axis along "
            "which the batch is divided."
        )
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)
