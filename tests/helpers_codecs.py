"""Shared by the tests of codecs: which there are, and an array through one of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from adamx import codecs, moments

# label: (function, arguments)
CODECS: dict[str, tuple[Any, dict[str, Any]]] = {
    "int8": (codecs.int8, {"rounding": "nearest"}),
    "int8-stochastic": (codecs.int8, {}),
    "int4": (codecs.int4, {"rounding": "nearest"}),
    "int4-stochastic": (codecs.int4, {}),
    "e4m3": (codecs.fp8, {"rounding": "nearest"}),
    "e4m3-stochastic": (codecs.fp8, {}),
    "e5m2": (codecs.fp8, {"format": "float8_e5m2", "rounding": "nearest"}),
    "e5m2-stochastic": (codecs.fp8, {"format": "float8_e5m2"}),
}
LAYOUTS = moments.LAYOUTS


def make(label: str, **more: Any) -> codecs.Codec:
    """A codec that encodes leaves of any size."""
    if label == "bfloat16":
        return codecs.bfloat16_stochastic(**more)
    function, arguments = CODECS[label]
    return function(**{"min_size": 0, **arguments, **more})


@functools.partial(jax.jit, static_argnums=(1, 2))
def stored(x: Any, codec: codecs.Codec, is_signed: bool) -> Any:
    """A moment that is set to x, as it is stored."""
    zeros = moments.zeros if is_signed else moments.zeros_squared
    kind = "signed" if is_signed else "unsigned"
    held = {kind: {"m": zeros(x, codec)}}
    return moments.apply_rule(lambda g, m: (g, g), x, None, **held)[1]["m"]


def state_bytes(tree: Any) -> float:
    """Bytes of a tree of arrays or shapes; 4-bit codes counted as half a byte."""

    def size(x: Any) -> float:
        is_half = x.dtype in (jnp.dtype(jnp.int4), jnp.dtype(jnp.uint4))
        return x.size * (0.5 if is_half else x.dtype.itemsize)

    return sum(map(size, jax.tree.leaves(tree)))
