"""Where each array of an optimizer's state lies: with its parameter, or in pieces.

    moment, master, codes   as the parameter; with ZeRO-1 divided further
    scales of codes         along the parameter's own dimensions and whole blocks
    the rest                on every device: counts, rates, norms, random keys

ZeRO-1: each device of a data-parallel axis keeps and updates its piece of the moments,
and the new parameters are gathered. XLA makes that of the shardings alone: the gradient
is reduced and sliced, the update computed piece by piece.

Source: Rajbhandari, Rasley, Ruwase & He, "ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models" (2020), section 5.1 (optimizer state partitioning).
Difference: leaves are divided along a dimension each, not as one flat vector.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from adamx import _checks, _tree
from adamx._types import GradientTransformation, PyTree
from adamx.fused import Fused
from adamx.sharding import _specs
from adamx.sharding._given import Given, check_zero1, read_given
from adamx.sharding._mirrors import Mirrors, mirrored
from adamx.sharding._specs import Dims


@dataclasses.dataclass(frozen=True)
class Placement:
    """A state, array by array.

    Attributes:
      given: the parameters.
      mirrors: the state, and whose each leaf is.
      dims: for each of its leaves what divides it.
      own: for each parameter what divides the arrays that mirror it.
      axes: of ZeRO-1, those of more than one device.
    """

    given: Given
    mirrors: Mirrors
    dims: list[Dims]
    own: list[Dims]
    axes: tuple[str, ...]

    @property
    def leaves(self) -> list[Any]:
        """Those of the state."""
        return jax.tree.leaves(self.mirrors.state)

    def undivided(self) -> list[int]:
        """The parameters whose state none of the axes of ZeRO-1 divides."""
        axes = set(self.axes)
        held = {owner for owner in self.mirrors.owners if owner is not None}
        found = {i for i in held if not axes & _names(self.own[i])}
        for i, dims in self.flat.items():
            if not axes & _names(dims):
                found.add(i)
        return sorted(found)

    @property
    def flat(self) -> dict[int, Dims]:
        """What divides the flat arrays that parameters have parts of, by parameter."""
        joint = self.mirrors.joint.items()
        return {i: self.dims[at] for at, members in joint for i in members}


def _names(dims: Dims) -> set[str]:
    return {axis for own in dims for axis in own}


def place(
    tx: GradientTransformation | Fused,
    params: PyTree,
    param_shardings: PyTree,
    zero1: Any,
    mesh: Mesh | None,
) -> Placement:
    """What `state_shardings` says; see there."""
    if not isinstance(tx, Fused):
        _checks.check_transformation("tx", tx)
    given = read_given(params, param_shardings, mesh)
    axes, sizes = check_zero1(zero1, given.mesh), given.sizes
    mirrors = mirrored(tx, params)
    own = [
        _specs.divided(shape, dims, axes, sizes, only_whole=given.is_explicit)
        for shape, dims in zip(given.shapes, given.dims, strict=True)
    ]
    _check_joint(given, mirrors)

    def dims_of(at: int, x: Any) -> Dims:
        whole: Dims = ((),) * x.ndim
        if at in mirrors.joint:
            return _specs.divided(x.shape, whole, axes, sizes)
        i = mirrors.owners[at]
        if i is None:
            return whole
        return _specs.projected(x.shape, given.shapes[i], own[i], sizes)

    leaves = jax.tree.leaves(mirrors.state)
    dims = [dims_of(at, x) for at, x in enumerate(leaves)]
    placement = Placement(given, mirrors, dims, own, axes)
    if axes:
        _check_divides(placement, zero1)
    return placement


def _check_joint(given: Given, mirrors: Mirrors) -> None:
    """Raises where a parameter in pieces shares an array with others."""
    for members in mirrors.joint.values():
        for i in members:
            if any(given.dims[i]):
                raise ValueError(
                    f"`param_shardings` divides '{given.names[i]}', and `tx` puts its "
                    "state together with that of others: what is put together must lie "
                    "alike. Give bucketed the same shardings: "
                    "adamx.bucketed(tx, shardings=param_shardings)."
                )


def _check_divides(placement: Placement, zero1: Any) -> None:
    """Raises ValueError where ZeRO-1 leaves everything as it is."""
    given, axes = placement.given, placement.axes
    held = {owner for owner in placement.mirrors.owners if owner is not None}
    if any(placement.own[i] != given.dims[i] for i in held):
        return
    if any(any(dims) for dims in placement.flat.values()):
        return
    held |= placement.flat.keys()
    whole = placement.undivided()
    count = _specs.pieces(axes, given.sizes)
    if not held:
        got = "a state without arrays like the parameters"
        remedy = "There is nothing to divide: leave zero1 out"
    elif not whole:
        got = "parameters that these axes divide already, and their moments with them"
        remedy = "Leave zero1 out"
    else:
        shapes = [f"{given.names[i]} {given.shapes[i]}" for i in whole]
        got = f"no dimension that {count} pieces divide evenly: {_tree.some(shapes)}"
        remedy = "Pad the parameters, use another axis, or leave zero1 out"
    raise ValueError(
        f"`zero1` must divide at least one array of the state, got {zero1!r} and "
        f"{got}. {remedy}."
    )


def state_shardings(
    tx: GradientTransformation | Fused,
    params: PyTree,
    param_shardings: PyTree,
    zero1: str | tuple[str, ...] | None = None,
    *,
    mesh: Mesh | None = None,
) -> PyTree:
    """The sharding of every array of an optimizer's state, before there is one.

        shardings = state_shardings(tx, params, param_shardings, zero1="data")
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        step = jax.jit(
            step,
            in_shardings=(param_shardings, shardings, None),
            out_shardings=(param_shardings, shardings),
            donate_argnums=(0, 1),
        )

    What mirrors a parameter (moments, masters, codes, accumulated gradients) lies where
    the parameter lies; the scales of codes too, along dimensions that are the
    parameter's own or whole blocks of it; everything else is on every device. It is
    found by construction, so that any transformation will do, of this library or of
    another, in any wrappers; see `describe_shardings` for a table of the outcome.

    With `zero1`, the state is divided further over axes along which parameters are
    copies (the batch's axis): each device keeps and updates a piece, and XLA gathers
    the new parameters, once each; no moment is gathered. A parameter's arrays are all
    divided along one dimension, whole before if there is one, else further (not with
    explicit axes, where types would conflict). Pass these shardings as out_shardings of
    `init` and of the step: else XLA may choose others, and with explicit axes the new
    parameters are left in pieces.

    Values are those of one device: of an algorithm that goes element by element, bit
    for bit, with traced hyperparameters too. (With jax 0.10; with 0.6 a mean may differ
    in the last place where a device has a row of few columns.) Sums (norms, LAMB) are
    added up in another order.

    Args:
      tx: any transformation, or what `fused` makes of it.
      params: tree of arrays, or of `jax.ShapeDtypeStruct`: shapes alone are used.
      param_shardings: `NamedSharding`s, all of one mesh: a tree like `params`, or one
        for a whole subtree or for all. With `mesh`, `PartitionSpec`s will do.
      zero1: name of a mesh axis, or several; those that divide a parameter already
        leave its state as it is, and so do those that do not divide it evenly: it keeps
        the parameter's sharding.
      mesh: for PartitionSpecs.

    Returns:
      A tree like `tx.init(params)` of `NamedSharding`s.

    Raises:
      TypeError: `tx` is no transformation, a sharding no `NamedSharding`, `zero1` no
        name.
      ValueError: another structure of `param_shardings`; an axis that the mesh has not;
        a dimension that is not divided evenly; `zero1` that would do nothing.

    >>> import adamx, jax, jax.numpy as jnp
    >>> from jax.sharding import Mesh, PartitionSpec as P
    >>> mesh = Mesh([jax.devices()[0]], ("model",))
    >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    >>> specs = {"w": P(None, "model")}
    >>> shardings = state_shardings(adamx.scale_by_adam(), params, specs, mesh=mesh)
    >>> shardings.mu["w"].spec == specs["w"], shardings.count.spec == P()
    (True, True)

    Source: Rajbhandari, Rasley, Ruwase & He (2020), section 5.1, for ZeRO-1.
    """
    placement = place(tx, params, param_shardings, zero1, mesh)
    mirrors = placement.mirrors
    structure: Any = jax.tree.structure(mirrors.state)
    rows = zip(mirrors.owners, placement.dims, mirrors.on_host, strict=True)
    return structure.unflatten([_sharding(placement.given, *row) for row in rows])


def _sharding(
    given: Given, owner: int | None, dims: Dims, on_host: bool
) -> NamedSharding:
    if owner is None:
        own = NamedSharding(given.mesh, _specs.as_spec(dims))
    elif dims == given.dims[owner]:
        own = given.shardings[owner]
    else:
        kind = given.shardings[owner].memory_kind
        own = NamedSharding(given.mesh, _specs.as_spec(dims), memory_kind=kind)
    return own.with_memory_kind("pinned_host") if on_host else own
