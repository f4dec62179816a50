"""Codecs: moments as trees of codes and scales, in the place of a tree in a State.

Which leaf is encoded is the codec's business; how an array is, that of
`adamx.moments._codes`; which elements share a scale, that of `adamx.moments._layout`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx._types import PyTree, at_least_single, dtype_of, real_dtype
from adamx.moments import _layout
from adamx.moments._codes import decode, is_code, is_scaled
from adamx.reading import unboxed

ROUNDINGS = ("nearest", "stochastic")

# Dtypes of the codes of a moment with either sign, and without.
_PAIRS = (
    ("int8", "uint8"),
    ("int4", "uint4"),
    ("float8_e4m3fn", "float8_e4m3fn"),
    ("float8_e5m2", "float8_e5m2"),
    ("bfloat16", "bfloat16"),
)


# Rows that share the scale of a column, by dtype, where no block is asked for: with 7
# numbers of each sign, most of a column lies between the first few of them.
_ROWS = {"int4": 64}


@dataclasses.dataclass(frozen=True)
class Codec:
    """A storage format of moments: see `adamx.codecs`, which makes them.

    Attributes:
      name: of the function that made it.
      signed, unsigned: dtypes of the codes of a moment with either sign, and without.
        A code is a dtype: see `adamx.moments._codes`.
      layout: of the scales, one of `adamx.moments.LAYOUTS`; None for bfloat16, which
        has no scales.
      block: see `scale_shapes`; None for bfloat16.
      rounding: "nearest" or "stochastic".
      seed: of the random bits.
      min_size: leaves of fewer elements stay float32 (float64 for float64).
      keep: function of a leaf's path, 'a/b/kernel', that is true where it stays
        float32 (float64 for float64); None: nowhere.

    Raises:
      ValueError, TypeError: an attribute out of its range, or codes without the scales
        that they need.
    """

    name: str
    signed: Any
    unsigned: Any
    layout: str | None
    block: int | None
    rounding: str
    seed: int
    min_size: int
    keep: Callable[[str], Any] | None

    def __post_init__(self) -> None:
        """Checks every attribute, also those of `dataclasses.replace`."""
        _check_pair(self.signed, self.unsigned)
        if is_scaled(self.signed):
            _checks.check_choice("layout", self.layout, _layout.LAYOUTS)
        elif (self.layout, self.block) != (None, None):
            raise ValueError(
                f"`layout` and `block` must be None for {jnp.dtype(self.signed)}, got "
                f"{self.layout!r} and {self.block!r}; it has no scales: leave them out."
            )
        if self.block is not None:
            _check_whole("block", self.block, 1, _BLOCK_REMEDY)
        _checks.check_choice("rounding", self.rounding, ROUNDINGS)
        _check_whole("seed", self.seed, 0, "Every number has bits of its own.")
        if self.seed >= 2**64:
            raise ValueError(
                f"`seed` must be an int < 2**64, got {self.seed}. Use e.g. 0."
            )
        _check_whole(
            "min_size", self.min_size, 0, "Use 0 to encode leaves of any size."
        )
        if self.keep is not None and not callable(self.keep):
            raise TypeError(
                f"`keep` must be a function of a leaf's path or None, got "
                f"{_checks.describe_value(self.keep)}; pass e.g. "
                "lambda path: 'embedding' in path."
            )

    def encodes(self, path: str, leaf: Any) -> bool:
        """Whether a leaf is encoded, by its size and its path."""
        if math.prod(jnp.shape(leaf)) < self.min_size:
            return False
        return self.keep is None or not self.keep(path)


_BLOCK_REMEDY = (
    "Use e.g. 256, or None: rows and columns are taken whole then, vectors and rows "
    'with the layout "block" in 256s.'
)


def _check_pair(signed: Any, unsigned: Any) -> None:
    try:
        names = jnp.dtype(signed).name, jnp.dtype(unsigned).name
    except TypeError:
        names = None
    if names not in _PAIRS:
        raise ValueError(
            f"`signed` and `unsigned` must be one of the pairs {_PAIRS}, got "
            f"{signed!r} and {unsigned!r}; let a function of adamx.codecs make the "
            "codec, e.g. adamx.codecs.int8()."
        )


def _check_whole(name: str, value: Any, low: int, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"`{name}` must be an int >= {low}, got {_checks.describe_value(value)}; "
            "it decides the form of the state and must be known at construction."
        )
    if value < low:
        raise ValueError(f"`{name}` must be an int >= {low}, got {value}. {remedy}")


class Encoded(NamedTuple):
    """An encoded moment, in the place of its tree in a State.

    The dtype of a leaf of `codes` is all that says how it is read: one code for each
    dtype. A second code of 8 bits in the same dtype would need a name here, static.

    Attributes:
      codes: tree like the parameters, of their shapes; leaves that are not encoded are
        the moment itself, in float32 (float64 for float64).
      scales: none (bfloat16), one or two trees of float32 arrays with the parameters'
        ranks: a dimension is the parameter's own, a number of blocks or 1; (1, ...),
        and 0, where the leaf is not encoded.
      key: uint32 vector, what the random bits are made of; None: rounded to nearest.
      step: uint32 scalar, how often it was encoded since; None as `key`.
    """

    codes: PyTree
    scales: tuple[PyTree, ...]
    key: Any
    step: Any


def codes_of(moment: PyTree) -> PyTree:
    """The tree with the parameters' shapes: a moment itself, or its codes."""
    return moment.codes if isinstance(moment, Encoded) else moment


def decoded(moment: PyTree) -> PyTree:
    """A tree with numbers, float32 arrays, in the place of every `Encoded` in it."""
    return jax.tree.map(_decoded, moment, is_leaf=lambda x: isinstance(x, Encoded))


def _decoded(moment: Any) -> Any:
    if not isinstance(moment, Encoded):
        return moment
    check_scales(moment)

    def leaf(*boxes: Any) -> jax.Array:
        codes, *scales = map(unboxed, boxes)
        if not is_code(codes.dtype):
            return codes
        return decode(codes, tuple(scales), jnp.float32)

    return jax.tree.map(leaf, moment.codes, *moment.scales)


def encoded(params: PyTree, codec: Codec, is_signed: bool, fill: Any = 0.0) -> Encoded:
    """A new moment with all elements `fill`."""
    _check_real(params, codec)
    dtype = codec.signed if is_signed else codec.unsigned
    flat, structure = jax.tree_util.tree_flatten_with_path(params)
    codes: list[jax.Array] = []
    scales: list[list[jax.Array]] = [[] for _ in range(_scale_count(codec))]
    for path, p in flat:
        shape = jnp.shape(p)
        groups = (_layout.one_for_all(shape),) * len(scales)
        if codec.encodes(_tree.path_name(path), p):
            if codec.layout is not None:
                groups = _layout.scale_shapes(
                    shape, codec.layout, codec.block, _ROWS.get(jnp.dtype(dtype).name)
                )
            codes.append(filled(p, _fill_code(fill, codec, dtype), dtype))
        else:
            wide = real_dtype(at_least_single(dtype_of(p)))
            codes.append(filled(p, fill, wide))
        for own, group in zip(scales, groups, strict=True):
            own.append(_own(jnp.full(group, fill, jnp.float32), fill))
    unflatten = structure.unflatten  # type: ignore[attr-defined]
    is_random = codec.rounding == "stochastic"
    return Encoded(
        codes=unflatten(codes),
        scales=tuple(unflatten(own) for own in scales),
        key=_key(codec.seed) if is_random else None,
        step=jnp.zeros((), jnp.uint32) if is_random else None,
    )


def filled(like: Any, fill: Any, dtype: Any) -> jax.Array:
    """`jnp.full_like`, always an array of its own."""
    return _own(jnp.full_like(like, fill, dtype=dtype), fill)


def _own(x: jax.Array, fill: Any) -> jax.Array:
    """Of a scalar x is `fill`: a buffer that is in a state twice cannot be donated."""
    return jnp.array(x, copy=True) if isinstance(fill, jax.Array) and not x.ndim else x


def _fill_code(fill: Any, codec: Codec, dtype: Any) -> jax.Array:
    """The code of what is also the scale; or `fill` itself where there are no codes."""
    if codec.layout is None:
        return jnp.asarray(fill, dtype)
    if isinstance(fill, float) and fill == 0.0:
        return jnp.zeros((), dtype)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return jnp.asarray((jnp.finfo if is_float else jnp.iinfo)(dtype).max, dtype)


def _scale_count(codec: Codec) -> int:
    return 0 if codec.layout is None else _layout.COUNTS[codec.layout]


def _key(seed: int) -> jax.Array:
    return jnp.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], jnp.uint32)


def _check_real(params: PyTree, codec: Codec) -> None:
    _tree.check_inexact(params, "parameter")
    for path, p in jax.tree_util.tree_flatten_with_path(params)[0]:
        if jnp.issubdtype(dtype_of(p), jnp.complexfloating):
            raise ValueError(
                f"{codec.name} holds real numbers, got the parameter "
                f"'{_tree.path_name(path)}' of dtype {dtype_of(p)}. Use mu_dtype=None "
                "and nu_dtype=None, or split it into real and imaginary parts "
                "(optax.contrib.split_real_and_imaginary)."
            )


_MIXED_UP = (
    "they are not of one state. Restore all parts of one state together, or use a new "
    "one (tx.init)."
)


def check_scales(moment: Encoded) -> None:
    """Raises ValueError where parts cannot be of one state: a mixed-up checkpoint.

    That one of two scales is missing cannot be seen: by row alone is a layout too.
    """
    if (moment.key is None) != (moment.step is None):
        has, lacks = ("step", "key") if moment.key is None else ("key", "step")
        raise ValueError(
            "`key` and `step` of an encoded moment must both be arrays (random "
            f"rounding) or both None (to the nearest), got a `{has}` and no `{lacks}`: "
            f"{_MIXED_UP}"
        )
    flat = jax.tree_util.tree_flatten_with_path(moment.codes)[0]
    for path, box in flat:
        _check_code(_tree.path_name(path), unboxed(box).dtype, len(moment.scales))
    for scales in moment.scales:
        held = _tree.leaves_below(moment.codes, scales)
        for (path, box), other in zip(flat, held, strict=True):
            codes, scale = unboxed(box), unboxed(other)
            pairs = zip(scale.shape, codes.shape, strict=False)
            if scale.ndim != codes.ndim or any(d > max(n, 1) for d, n in pairs):
                raise ValueError(
                    f"a scale of the state at '{_tree.path_name(path)}' must have the "
                    f"rank of its codes and no longer axes, {codes.shape}, got "
                    f"{scale.shape}: {_MIXED_UP}"
                )


def _check_code(path: str, dtype: Any, count: int) -> None:
    """Raises unless an array of this dtype can stand beside so many scales."""
    if not is_code(dtype):
        return
    if not any(dtype.name in pair for pair in _PAIRS):
        known = sorted({name for pair in _PAIRS for name in pair})
        raise ValueError(
            f"codes of the state at '{path}' must have one of the dtypes {known}, or "
            f"be the moment itself in float32, got {dtype}: {_MIXED_UP}"
        )
    if is_scaled(dtype) != (count > 0):
        want = "at least one scale" if is_scaled(dtype) else "no scales"
        raise ValueError(
            f"codes of the state at '{path}' must have {want}, since they are {dtype}, "
            f"got {count} trees in `scales`: {_MIXED_UP}"
        )
