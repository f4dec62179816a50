"""Storage of moments: which dtype or codec holds them, and their first values.

Defaults: a first moment has the parameter's dtype, as in Optax. A second moment is
float32 where the parameter has 16 bits: at b2 = 0.999 a bfloat16 average stops moving
once it is within a factor of two of its goal, since each step is below half an ulp.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._types import PyTree, at_least_single, dtype_of, real_dtype
from adamx.moments._codec import (
    Codec,
    Encoded,
    check_scales,
    codes_of,
    encoded,
    filled,
)


def zeros(params: PyTree, dtype: Any = None, *, is_wide: bool = False) -> PyTree:
    """A first moment: zeros like the parameters, in `dtype` or the parameter's own.

    `dtype` may be a `Codec`. With `is_wide`, a leaf's own dtype or at least float32:
    for means too slow for 16 bits.
    """
    if isinstance(dtype, Codec):
        return encoded(params, dtype, is_signed=True)
    _tree.check_inexact(params, "parameter")

    def zero(p: Any) -> jax.Array:
        own = at_least_single(dtype_of(p)) if is_wide else dtype_of(p)
        return jnp.zeros_like(p, dtype=dtype or own)

    return jax.tree.map(zero, params)


def zeros_squared(
    params: PyTree, dtype: Any = None, fill: Any = 0.0, *, is_signed: bool = False
) -> PyTree:
    """A second moment: real, in `dtype` or at least float32, filled with `fill`.

    `dtype` may be a `Codec`; `is_signed` then allows for negative elements.
    """
    if isinstance(dtype, Codec):
        return encoded(params, dtype, is_signed, fill)
    _tree.check_inexact(params, "parameter")

    def full(p: Any) -> jax.Array:
        own = real_dtype(at_least_single(dtype_of(p)))
        return filled(p, fill, dtype or own)

    return jax.tree.map(full, params)


def zeros_reduced(
    params: PyTree, axes: Sequence[tuple[int, ...]], dtype: Any = None
) -> PyTree:
    """A second moment with length 1 along some axes of each leaf, in the given order.

    Like `zeros_squared` real, in `dtype` or at least float32.
    """
    rows = iter(axes)

    def leaf(p: Any) -> jax.Array:
        shared = next(rows)
        shape = [1 if i in shared else n for i, n in enumerate(jnp.shape(p))]
        return jnp.zeros(shape, dtype or real_dtype(at_least_single(dtype_of(p))))

    return jax.tree.map(leaf, params)


def check_moment_dtype(name: str, dtype: Any) -> Any:
    """A floating or complex dtype, a codec, or None.

    Raises:
      TypeError: something else; a function that makes a codec, not called.
      ValueError: a dtype without fractions, or of fewer than 16 bits.
    """
    if isinstance(dtype, Codec):
        return dtype
    is_ours = getattr(dtype, "__module__", None) == "adamx.codecs"
    if is_ours and getattr(dtype, "__name__", None) in _MAKERS:
        raise TypeError(
            f"`{name}` must be a dtype, a codec or None, got the function "
            f"{dtype.__name__}; call it: adamx.codecs.{dtype.__name__}()."
        )
    try:
        return _checks.check_dtype(name, dtype)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error} For fewer bits pass a codec: adamx.codecs.{_codec_for(dtype)}."
        ) from None


# The functions of `adamx.codecs` that make a codec.
_MAKERS = ("int8", "int4", "fp8", "bfloat16_stochastic")


def _codec_for(dtype: Any) -> str:
    """The call that makes the codec which a dtype or a name is nearest to."""
    try:
        name = "" if hasattr(dtype, "shape") else jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name in ("float8_e4m3fn", "float8_e5m2"):
        return f"fp8(format={name!r})"
    stem = name.removeprefix("u")
    if stem.startswith("float8"):
        return "fp8()"
    return f"{stem}()" if stem in _MAKERS else "int8()"


def refuse_codec(name: str, dtype: Any, reason: str) -> None:
    """Raises TypeError for a codec where only a dtype serves."""
    if isinstance(dtype, Codec):
        raise TypeError(
            f"`{name}` must be a dtype or None, got the codec {dtype.name}; {reason}"
        )


def check_second_moment_dtype(
    name: str, dtype: Any, b2: Any, b_name: str = "b2"
) -> Any:
    """A real dtype, codec or None; warns where averages with 1 - b2 would stall.

    Raises:
      ValueError: a complex dtype.
      TypeError, ValueError: see `check_moment_dtype`.
    """
    dtype = check_moment_dtype(name, dtype)
    if dtype is None or isinstance(dtype, Codec):
        return dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` must be a real floating dtype or None, got {dtype}; a second "
            "moment is an average of |g|^2, which is real: pass jnp.float32."
        )
    limits = jnp.finfo(dtype)
    if float(limits.max) < 1e6:
        warnings.warn(
            f"`{name}`={dtype} overflows for |g| above {float(limits.max) ** 0.5:.0f}, "
            "and the element's update is 0 from then on. Use float32 (the default).",
            UserWarning,
            stacklevel=3,
        )
    _warn_of_stalling(name, dtype, b_name, b2)
    return dtype


def check_average_dtype(name: str, dtype: Any, b_name: str, b: Any) -> Any:
    """A dtype, codec or None; warns where a mean with 1 - b would stall in it.

    Raises:
      TypeError, ValueError: see `check_moment_dtype`.
    """
    dtype = check_moment_dtype(name, dtype)
    if dtype is not None and not isinstance(dtype, Codec):
        _warn_of_stalling(name, dtype, b_name, b)
    return dtype


def _warn_of_stalling(name: str, dtype: Any, b_name: str, b: Any) -> None:
    if _checks.is_constant(b) and 1 - float(b) < 2 * float(jnp.finfo(dtype).eps):
        warnings.warn(
            f"`{name}`={dtype} cannot follow an average with {b_name}={float(b):g}: a "
            f"step of {1 - float(b):.1g} of the distance is lost in rounding, and the "
            "average stops short of its goal. Use float32 (the default).",
            UserWarning,
            stacklevel=4,
        )


def check_gradient(updates: PyTree, moment: PyTree) -> None:
    """Checks a gradient against a moment.

    Raises:
      TypeError: a gradient that is not of floats.
      ValueError: another structure or shape than the moment's, or an `Encoded` whose
        parts are not of one state.
    """
    _tree.check_inexact(updates, "gradient")
    if isinstance(moment, Encoded):
        check_scales(moment)
        moment = moment.codes
    _tree.check_same_structure(updates, moment, "gradient", "the optimizer state")


def check_holds_complex(updates: PyTree, moment: PyTree, name: str) -> None:
    """Checks a moment against complex gradients.

    Raises:
      ValueError: a real `moment`, which would lose a gradient's imaginary part.
    """
    stored = jax.tree.leaves(codes_of(moment))
    flat = jax.tree_util.tree_flatten_with_path(updates)[0]
    for (path, g), m in zip(flat, stored, strict=True):
        if jnp.iscomplexobj(g) and not jnp.iscomplexobj(m):
            raise ValueError(
                f"`{name}` must be complex for the complex gradient at "
                f"'{_tree.path_name(path)}' ({dtype_of(g)}), got {m.dtype}; use None "
                "(the parameter's dtype) or a complex dtype."
            )
