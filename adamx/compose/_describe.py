"""What an optimizer will do to each parameter, and what it keeps for it: a table."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from adamx import _checks, _tree
from adamx._packed import unpacked
from adamx._printed import Printed, size_text
from adamx._types import GradientTransformation, PyTree, byte_count, dtype_of
from adamx.compose._behaviour import Behaviour, observe
from adamx.compose._belongings import Belongings
from adamx.reading import state_tree, unboxed

SHARED = "(shared)"

_WIDE = 110  # columns
_RULES = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter; or what of the state belongs to none, with the path "(shared)".

    Attributes:
      path: dict keys, list indices and field names, joined by '/'.
      shape, dtype: of the parameter; None where shared.
      group: its rule in `groups` or its label in `optax.partition`; "" where there are
        none, None where it cannot be known.
      learning_rate: the recorded rate; a tuple where several stages multiply; None
        without `state`, where nothing is recorded, or where it cannot be known.
      decayed: whether it shrinks without a gradient; None: not known.
      frozen: whether nothing moves it; None: not known.
      state_bytes: bytes of the state that are its own; int4 counts half a byte.
      stored: its arrays in the state by name: (("mu", "int8"), ("nu", "uint8")).
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str | None
    group: str | None
    learning_rate: Any
    decayed: bool | None
    frozen: bool | None
    state_bytes: float
    stored: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class Description(Printed):
    """What `describe` returns; `print` shows it as a table, `rich.print` in colour.

    Attributes:
      rows: one `Row` for each parameter, in the tree's order; last "(shared)".
      parameters: how many numbers are trained or frozen.
      parameter_bytes, state_bytes: of all parameters; of the whole state.
      notes: what could not be found out, and why.
    """

    rows: tuple[Row, ...]
    parameters: int
    parameter_bytes: float
    state_bytes: float
    notes: tuple[str, ...] = ()

    @property
    def bytes_per_parameter(self) -> float:
        """Of state; 0 where there are no parameters."""
        return self.state_bytes / self.parameters if self.parameters else 0.0

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        yield _table(self, options.max_width)
        size, state = size_text(self.parameter_bytes), size_text(self.state_bytes)
        per = f"{self.bytes_per_parameter:.3g} bytes per parameter"
        yield Text(f"{self.parameters:,} parameters, {size}; state {state}, {per}")
        for note in self.notes:
            yield Text(f"?: {note}")


def describe(
    tx: GradientTransformation, params: PyTree, state: PyTree | None = None
) -> Description:
    """Shows, parameter by parameter, group, rate, decay, freezing and bytes of state.

        print(adamx.describe(tx, params))

    Made to be read before a long run: is the embedding in the group that was meant, do
    the biases not decay, what does the state cost. Nothing of the parameters' size is
    computed or allocated, so that shapes will do:

        shapes = jax.eval_shape(model.init, key, inputs)
        adamx.describe(tx, shapes)

    Decay and freezing are observed, so that they hold for any transformation and any
    chain: a parameter decays if it moves towards 0 from 1 and from -1 without a
    gradient; it is frozen if its update is computed from nothing, or times 0. What an
    update is computed from is traced for the true shapes; the rest comes from some
    steps with small stand-ins of the same dtypes and paths, each axis cut to length 2.
    Where these do not decide it, there is a "?" and a reason: behind a mask that asks
    for the true size, where nothing moves in 64 steps (a rate that stays 0) or 0 moves
    by itself (noise), where `update` needs extra arguments (a loss).

    Args:
      tx: any transformation.
      params: tree of arrays, or of `jax.ShapeDtypeStruct`.
      state: a state of `tx` (an `nnx.Optimizer` or `TrainState` will do), for the
        column of rates: what each learning-rate stage recorded in its last step. None:
        it stays blank.

    Returns:
      A `Description`. Its `state_bytes` are those of the whole state, its rows' add up
      to them.

    Raises:
      TypeError: `tx` is not a transformation, a parameter is no array.
      ValueError: `state` is not of `tx` and `params`.

    >>> import adamx, jax.numpy as jnp
    >>> params = {"bias": jnp.ones(4), "kernel": jnp.ones((4, 4))}
    >>> table = describe(adamx.adamw(1e-3, mask=adamx.decay_mask()), params)
    >>> [(row.path, row.decayed, row.state_bytes) for row in table.rows]
    [('bias', False, 32.0), ('kernel', True, 128.0), ('(shared)', None, 48.0)]
    >>> round(table.bytes_per_parameter, 1)
    10.4
    """
    _checks.check_transformation("tx", tx)
    _tree.check_is_trained(params, "params")
    _check_arrays(params)
    belongings = Belongings(tx, params)
    arrays = jax.tree.leaves(belongings.state)
    if state is not None:
        state = state_tree(state)
        state = unpacked(getattr(state, "opt_state", state))  # of Flax's, too
        _check_state(state, arrays)
    behaviours, reason = observe(tx, params)
    leaves = _tree.leaves_by_path(params)
    rows, notes = _rows(belongings, leaves, behaviours, state)
    if reason is not None:
        notes.insert(0, f"decay or freezing is not known: {reason}")
    return Description(
        rows=tuple(rows),
        parameters=sum(math.prod(p.shape) for p in leaves.values()),
        parameter_bytes=sum(map(byte_count, leaves.values())),
        state_bytes=sum(map(byte_count, arrays)),
        notes=tuple(notes),
    )


def _rows(
    belongings: Belongings,
    leaves: dict[str, Any],
    behaviours: Sequence[Behaviour],
    state: PyTree | None,
) -> tuple[list[Row], list[str]]:
    """One for each parameter and one for what is shared; and what is not known."""
    held: dict[str | None, list[Any]] = {}
    for pair in zip(jax.tree.leaves(belongings.state), belongings.arrays, strict=True):
        held.setdefault(pair[1].owner, []).append(pair)
    rows, is_placed = [], True
    for (name, p), behaviour in zip(leaves.items(), behaviours, strict=True):
        own, group = held.get(name, []), belongings.group(name)
        rates = () if state is None else belongings.rates(state, name)
        is_placed = is_placed and None not in (group, rates)
        rows.append(
            Row(
                path=name,
                shape=tuple(p.shape),
                dtype=str(dtype_of(p)),
                group=group,
                learning_rate=rates[0] if rates and len(rates) == 1 else rates or None,
                decayed=behaviour.decayed,
                frozen=behaviour.frozen,
                state_bytes=sum(byte_count(array) for array, _ in own),
                stored=_stored(own),
            )
        )
    shared = sum(byte_count(array) for array, _ in held.get(None, []))
    rows.append(Row(SHARED, None, None, "", None, None, None, shared))
    notes = []
    if not belongings.is_known:
        notes.append(
            "the state cannot be told apart by parameter: init does not take the "
            "placeholder of optax.tree.map_params"
        )
    elif not is_placed:
        notes.append(
            "which of several branches that keep no arrays for their parameters has "
            "this one cannot be known"
        )
    return rows, notes


# ---------------------------------------------------------------------------- checks


def _check_arrays(params: PyTree) -> None:
    for name, p in _tree.leaves_by_path(params).items():
        if not (hasattr(p, "shape") and hasattr(p, "dtype")):
            raise TypeError(
                f"parameter at '{name}' must be an array or a jax.ShapeDtypeStruct, "
                f"got {_checks.describe_value(p)}; filter the tree so that only arrays "
                "remain (for Equinox: eqx.filter(model, eqx.is_inexact_array))."
            )


def _check_state(state: PyTree, arrays: Sequence[Any]) -> None:
    # Twice: a MaskedNode may be in a box (flax 0.10).
    held = jax.tree.leaves([unboxed(x) for x in jax.tree.leaves(state)])
    given = [jnp.shape(x) for x in held]
    wanted = [x.shape for x in arrays]
    if given == wanted:
        return
    got = f"{len(given)} arrays where {len(wanted)} are"
    remedy = "Pass the state that tx.init(params) made, or later ones of it."
    if len(given) == len(wanted):
        here, there = next(
            pair for pair in zip(given, wanted, strict=True) if pair[0] != pair[1]
        )
        got = f"an array of shape {here} where {there} is"
        if all(a[1:] == b for a, b in zip(given, wanted, strict=True)):
            remedy = "It is batched: pass jax.tree.map(lambda x: x[0], state)."
    raise ValueError(f"`state` must be of `tx` and `params`, got {got}. {remedy}")


def _stored(own: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (owned.field, str(array.dtype))
        for array, owned in own
        if math.prod(array.shape) and not owned.is_scale
    )


# ------------------------------------------------------------------------------ table


def _table(description: Description, width: int) -> Table:
    """Below 110 columns, dtypes stand with the shapes and "frozen" with the decay."""
    is_wide = width >= _WIDE
    *rows, shared = description.rows
    columns: list[tuple[str, Callable[[Row], str], dict[str, Any]]] = [
        ("path", lambda row: row.path, {"overflow": "fold", "min_width": 12}),
        ("shape", _shape if is_wide else _array, {}),
    ]
    if is_wide:
        columns.append(("dtype", lambda row: row.dtype or "", {}))
    if any(row.group != "" for row in rows):
        columns.append(("group", _group, {"overflow": "fold", "min_width": 7}))
    if is_wide or any(row.learning_rate is not None for row in rows):
        columns.append(("rate now" if is_wide else "rate", _rate, {"justify": "right"}))
    columns.append(("decay", _decay if is_wide else _decay_or_frozen, {}))
    if is_wide:
        columns.append(("frozen", _frozen, {}))
    if is_wide and any(_moments(row) for row in rows):
        columns.append(("moments", _moments, {"overflow": "fold"}))
    columns.append(
        ("state", lambda row: size_text(row.state_bytes), {"justify": "right"})
    )
    table = Table(box=_RULES, show_edge=False, pad_edge=False, collapse_padding=True)
    for name, _, options in columns:
        table.add_column(name, no_wrap="overflow" not in options, **options)
    for row in (*rows, shared):
        table.add_row(*(Text(cell(row)) for _, cell, _ in columns))
    return table


def _shape(row: Row) -> str:
    return "" if row.shape is None else "x".join(map(str, row.shape)) or "()"


def _array(row: Row) -> str:
    """f32[2,3]: shape and dtype as JAX prints them, in short."""
    name = row.dtype or ""
    for long, short in (("bfloat", "bf"), ("float", "f"), ("complex", "c")):
        if name.startswith(long):
            name = short + name.removeprefix(long)
            break
    return "" if row.shape is None else f"{name}[{','.join(map(str, row.shape))}]"


def _group(row: Row) -> str:
    return "?" if row.group is None else row.group


def _rate(row: Row) -> str:
    rate = row.learning_rate
    if rate is None:
        return ""
    return " * ".join(f"{r:.4g}" for r in (rate if isinstance(rate, tuple) else [rate]))


def _answer(row: Row, value: bool | None) -> str:
    if row.shape is None:
        return ""
    return "?" if value is None else "yes" if value else "-"


def _decay(row: Row) -> str:
    return _answer(row, row.decayed)


def _frozen(row: Row) -> str:
    return _answer(row, row.frozen)


def _decay_or_frozen(row: Row) -> str:
    if row.frozen is None and not row.decayed:
        return _answer(row, None)
    return "frozen" if row.frozen else _decay(row)


def _moments(row: Row) -> str:
    """The dtypes of the moments, where one is not as the parameter's or float32."""
    if all(dtype in (row.dtype, "float32") for _, dtype in row.stored):
        return ""
    return ", ".join(f"{field} {dtype}" for field, dtype in row.stored)
