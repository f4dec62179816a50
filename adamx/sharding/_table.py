"""Where the state lies, parameter by parameter: a table with bytes per device."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from adamx import _tree
from adamx._printed import Printed, size_text
from adamx._types import GradientTransformation, PyTree, byte_count
from adamx.fused import Fused
from adamx.sharding import _specs
from adamx.sharding._state import Placement, place

SHARED = "(shared)"
_RULES = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


@dataclasses.dataclass(frozen=True)
class ShardingRow:
    """One parameter; or what of the state mirrors none, with the path "(shared)".

    Attributes:
      path: 'a/b'.
      shape: of the parameter; None where shared.
      param_spec, state_spec: of the parameter, and of what mirrors it (of the flat
        array that its state is in, see `bucketed`); None where shared: it is on every
        device.
      divided: whether `zero1` divides its state; None without `zero1`, where shared and
        where it has no state.
      state_bytes: of its arrays in the state.
      bytes_per_device: of those on one device.
    """

    path: str
    shape: tuple[int, ...] | None
    param_spec: Any
    state_spec: Any
    divided: bool | None
    state_bytes: float
    bytes_per_device: float


@dataclasses.dataclass(frozen=True, repr=False)
class ShardingTable(Printed):
    """What `describe_shardings` returns; `print` shows it as a table.

    Attributes:
      rows: one `ShardingRow` for each parameter, in the tree's order; last "(shared)".
      axes: the sizes of the mesh's axes.
      state_bytes, bytes_per_device: of the whole state, and of it on one device.
      undivided: paths of parameters whose state `zero1` could not divide.
    """

    rows: tuple[ShardingRow, ...]
    axes: dict[str, int]
    state_bytes: float
    bytes_per_device: float
    undivided: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Of the whole state on one device; 1 where there is no state."""
        return self.bytes_per_device / self.state_bytes if self.state_bytes else 1.0

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        yield _table(self)
        axes = ", ".join(f"{name}={size}" for name, size in self.axes.items())
        state, own = size_text(self.state_bytes), size_text(self.bytes_per_device)
        yield Text(
            f"mesh {axes}; state {state}, {own} per device ({self.fraction:.3f})"
        )
        if self.undivided:
            names = ", ".join(self.undivided)
            yield Text(f"zero1 cannot divide: {names}; kept as the parameter")


def describe_shardings(
    tx: GradientTransformation | Fused,
    params: PyTree,
    param_shardings: PyTree,
    zero1: str | tuple[str, ...] | None = None,
    *,
    mesh: Mesh | None = None,
    state: PyTree | None = None,
) -> ShardingTable:
    """Shows where the state of each parameter lies, and its bytes on one device.

        print(adamx.sharding.describe_shardings(tx, params, shardings, zero1="data"))

    Without `state` the table shows what `state_shardings` says of the same arguments;
    nothing is allocated. With one, bytes per device are those of its buffers, of each
    array on the device that has most of it, so that it shows whether the state is where
    it was meant to be.

    Args:
      tx, params, param_shardings, zero1, mesh: see `state_shardings`.
      state: a state of `tx` and `params`, in its place.

    Returns:
      A `ShardingTable`.

    Raises:
      TypeError, ValueError: see `state_shardings`; `state` is not of `tx` and `params`.

    >>> import adamx, jax, jax.numpy as jnp
    >>> from jax.sharding import Mesh, PartitionSpec as P
    >>> mesh = Mesh([jax.devices()[0]], ("model",))
    >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    >>> table = describe_shardings(adamx.scale_by_lion(), params, P("model"), mesh=mesh)
    >>> [(row.path, row.shape, row.bytes_per_device) for row in table.rows][:1]
    [('w', (8, 4), 128.0)]
    """
    placement = place(tx, params, param_shardings, zero1, mesh)
    given, sizes = placement.given, placement.given.sizes
    buffers = None if state is None else _held(placement, state)
    totals: dict[int | None, tuple[float, float]] = {}
    rows = zip(placement.leaves, placement.mirrors.owners, placement.dims, strict=True)
    for at, (x, owner, dims) in enumerate(rows):
        own = byte_count(x)
        if buffers is not None:
            here = buffers[at]
        else:
            here = own / max(x.size, 1) * _specs.share(x.shape, dims, sizes)
        for i, share in _shares(placement, at, owner).items():
            before = totals.get(i, (0.0, 0.0))
            totals[i] = before[0] + own * share, before[1] + here * share
    whole = set(placement.undivided()) if zero1 is not None else set()
    table = [
        ShardingRow(
            path=name,
            shape=given.shapes[i],
            param_spec=_specs.as_spec(given.dims[i]),
            state_spec=_specs.as_spec(placement.flat.get(i, placement.own[i])),
            divided=i not in whole if zero1 is not None and i in totals else None,
            state_bytes=totals.get(i, (0.0, 0.0))[0],
            bytes_per_device=totals.get(i, (0.0, 0.0))[1],
        )
        for i, name in enumerate(given.names)
    ]
    shared = ShardingRow(SHARED, None, None, None, None, *totals.get(None, (0.0, 0.0)))
    return ShardingTable(
        rows=(*table, shared),
        axes=dict(sizes),
        state_bytes=sum(own for own, _ in totals.values()),
        bytes_per_device=sum(here for _, here in totals.values()),
        undivided=tuple(given.names[i] for i in sorted(whole)),
    )


def _shares(
    placement: Placement, at: int, owner: int | None
) -> dict[int | None, float]:
    """Whose an array is, and how much of it."""
    members = placement.mirrors.joint.get(at)
    if not members:
        return {owner: 1.0}
    whole = sum(members.values())
    return {i: size / max(whole, 1) for i, size in members.items()}


def _held(placement: Placement, state: PyTree) -> list[float]:
    """Bytes of each array of a state on the device that has most of it.

    Raises:
      ValueError: the state of another tree.
      TypeError: something that is not on devices.
    """
    _tree.check_same_structure(
        state, placement.mirrors.state, "`state`", "tx.init of these `params`"
    )
    found = []
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        if not isinstance(x, jax.Array):
            raise TypeError(
                f"`state` at '{_tree.path_name(path)}' must be a jax.Array, got "
                f"{type(x).__name__}; pass the state of a run, or none."
            )
        held: dict[Any, float] = {}
        for piece in x.addressable_shards:
            own = held.get(piece.device, 0.0)
            held[piece.device] = own + byte_count(piece.data)
        found.append(max(held.values(), default=0.0))
    return found


# ------------------------------------------------------------------------------ table


def _table(table: ShardingTable) -> Table:
    shown = Table(box=_RULES, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("path", overflow="fold", min_width=12)
    for name in ("shape", "parameter", "state"):
        shown.add_column(name, overflow="fold")
    for name in ("state bytes", "per device"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "()"
        cells = (row.path, shape, _spec(row.param_spec), _state(row))
        sizes = map(size_text, (row.state_bytes, row.bytes_per_device))
        shown.add_row(*(Text(cell) for cell in (*cells, *sizes)))
    return shown


def _state(row: ShardingRow) -> str:
    if row.shape is not None and not row.state_bytes:
        return ""
    return _spec(row.state_spec) + (" (not divided)" if row.divided is False else "")


def _spec(spec: Any) -> str:
    """data, model+data: by dimension; - for a whole one."""
    if spec is None or not any(spec):
        return "every device"
    names = [(e,) if isinstance(e, str) else e for e in spec]
    return ", ".join("+".join(e) if e else "-" for e in names)
