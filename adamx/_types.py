"""The Optax protocol under the names that this library uses, and rules for dtypes.

Every transformation here is an `optax.GradientTransformationExtraArgs`; nothing in
this file adds to the protocol, it only gathers the types in one place.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any

# `ScalarOrSchedule` is Optax's own object, not an equal copy: tools that look at
# signatures (Optax's tests among them) compare annotations by equality.
ScalarOrSchedule = optax.ScalarOrSchedule
Schedule = optax.Schedule
Mask = PyTree | Callable[[PyTree], PyTree] | None

GradientTransformation = optax.GradientTransformation
GradientTransformationExtraArgs = optax.GradientTransformationExtraArgs
EmptyState = optax.EmptyState
MaskedNode = optax.MaskedNode

# ------------------------------------------------------------------------ dtypes


def dtype_of(x: Any) -> Any:
    """The dtype of an array, of its shape-and-dtype stand-in, or of a Python number."""
    if isinstance(x, np.ndarray):  # float64 is float32 to JAX, unless x64 is on
        return jax.dtypes.canonicalize_dtype(x.dtype)
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def promote(*dtypes: Any) -> Any:
    """The narrowest dtype that holds all of them, also where promotion is strict."""
    unlike = set(map(jnp.dtype, dtypes))
    if len(unlike) == 1:
        return unlike.pop()
    with jax.numpy_dtype_promotion("standard"):  # JAX has no rule for 8-bit floats
        wide = (jnp.float32 if d.itemsize == 1 else d for d in unlike)
        return functools.reduce(jnp.promote_types, wide)


def at_least_single(dtype: Any) -> Any:
    """The dtype of arithmetic on `dtype`: float32 for 8 and 16 bits, else unchanged."""
    return promote(dtype, jnp.float32)


def update_dtype(gradient: Any, parameter: Any = None) -> Any:
    """The dtype in which an update is emitted: as wide as gradient and parameter.

    A 16-bit gradient of a float32 parameter has a float32 update, as in Optax: rounded
    to the gradient's dtype, an update below a small learning rate would be lost.
    """
    if parameter is None:
        return dtype_of(gradient)
    return promote(dtype_of(gradient), dtype_of(parameter))


def real_dtype(dtype: Any) -> Any:
    """The dtype of |x|: complex64 -> float32, others unchanged."""
    return jnp.finfo(dtype).dtype


def scalar_dtype() -> Any:
    """The dtype of recorded scalars: float64 where x64 is enabled, else float32."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def byte_count(x: Any) -> float:
    """Bytes of an array; a number of 4 bits is half a byte, a random key its words."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)
    if x.dtype == jnp.bool_:
        bits = 8
    elif jnp.issubdtype(x.dtype, jnp.complexfloating):
        bits = 8 * x.dtype.itemsize
    else:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        bits = (jnp.finfo if is_float else jnp.iinfo)(x.dtype).bits
    return math.prod(x.shape) * bits / 8
