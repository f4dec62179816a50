"""One array of a saved state in the form that a new state has for it.

A moment is read with what reads it in an optimizer, and stored with what stores it:
exactly where the new form holds more, rounded to the nearest where it holds less.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adamx import moments
from adamx._types import real_dtype
from adamx.compose import _narrow
from adamx.interop._names import as_array, form
from adamx.moments._codes import encode, find_scales, is_code, is_scaled

# Parts of an encoded moment that belong to one parameter; "" is a plain array.
PARTS = ("codes", "scales.0", "scales.1")

_MASTERS = {
    ("master_weights", "float32"): _narrow.FULL,
    ("master_weights", "int16"): _narrow.SPLIT,
}


_read = jax.jit(moments.read_stored)


def split_field(field: str) -> tuple[str, str]:
    """('mu', 'codes') of mu.codes; ('nu', '') of a field that is no part."""
    base, _, part = field.partition(".")
    return (base, part) if part in PARTS else (field, "")


def is_same(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether all parts are there in the shapes and dtypes that are wanted."""
    return saved.keys() == wanted.keys() and all(
        form(saved[part]) == form(wanted[part]) for part in wanted
    )


def converted(
    kind: str,
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    param: Any,
    factor: float = 1.0,
    *,
    is_square: bool = False,
) -> tuple[dict[str, jax.Array], str] | str:
    """The parts of an array in the form of others.

    Args:
      kind: of the State.
      saved, wanted: by part: {"": array}, or {"codes": ..., "scales.0": ...}.
      param: the parameter it belongs to, or None.
      factor: what a moment is multiplied by.
      is_square: whether it is a moment that is never negative.

    Returns:
      The parts, and what was done; or why it cannot be.
    """
    old, new = (parts.get("", parts.get("codes")) for parts in (saved, wanted))
    if old is None or new is None:
        return "its parts are not complete"
    if tuple(old.shape) != tuple(new.shape):
        return f"the shape was {tuple(old.shape)}, is {tuple(new.shape)}"
    note = f"{_label(saved)} -> {_label(wanted)}"
    masters = [_MASTERS.get((kind, str(x.dtype))) for x in (old, new)]
    if all(masters) and param is not None:
        load, store = masters[0].load, masters[1].store  # type: ignore[union-attr]
        p = jnp.asarray(param)
        return {"": store(load(p, as_array(old)), p.astype(jnp.float32))}, note
    if not _is_number(old, saved) or not _is_number(new, wanted):
        return _as_integer(old, new, note)
    if jnp.issubdtype(old.dtype, jnp.complexfloating) and not jnp.issubdtype(
        new.dtype, jnp.complexfloating
    ):
        return f"it was {old.dtype}, is {new.dtype}"
    order = [part for part in PARTS if part in saved]
    x = _read([as_array(saved[part]) for part in order or [""]])
    if factor != 1.0:
        x = moments.scale(x, jnp.asarray(factor, real_dtype(x.dtype)))
    return _stored(x, wanted, is_square), note


def _stored(
    x: jax.Array, wanted: Mapping[str, Any], is_square: bool
) -> dict[str, jax.Array]:
    if "codes" not in wanted:
        return {"": x.astype(wanted[""].dtype)}
    parts = {part: as_array(array) for part, array in wanted.items()}
    codes = parts["codes"]
    if not (is_code(codes.dtype) and is_scaled(codes.dtype)):
        return parts | {"codes": x.astype(codes.dtype)}
    x = x.astype(jnp.float32)
    order = [part for part in PARTS[1:] if part in parts]
    held = tuple(parts[part] for part in order)
    codes, scales = _encoded(x, codes, held, is_square)
    return parts | dict(zip(order, scales, strict=True)) | {"codes": codes}


@functools.partial(jax.jit, static_argnums=3)
def _encoded(
    x: jax.Array, codes: jax.Array, scales: tuple[jax.Array, ...], is_square: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Codes and scales of an array, in the forms of others; to the nearest."""
    scales = find_scales(lambda turn: x, scales)
    return encode(x, scales, codes, None, is_square=is_square), scales


def _is_number(x: Any, parts: Mapping[str, Any]) -> bool:
    return "codes" in parts or jnp.issubdtype(x.dtype, jnp.inexact)


def _as_integer(
    old: Any, new: Any, note: str
) -> tuple[dict[str, jax.Array], str] | str:
    is_wider = all(jnp.issubdtype(x.dtype, jnp.signedinteger) for x in (old, new))
    if is_wider and old.ndim == 0:
        return {"": as_array(old).astype(new.dtype)}, note
    return f"it was {old.dtype}, is {new.dtype}"


def _label(parts: Mapping[str, Any]) -> str:
    """float32; int8, 2 scales."""
    dtype = str(parts.get("", parts.get("codes")).dtype)
    scales = len(parts) - 1
    return f"{dtype}, {scales} scale{'s' * (scales > 1)}" if scales else dtype
