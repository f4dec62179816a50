"""UPDATES -> PARAMETERS: the last sum of a training step.

p <- p + update        in the wider of both dtypes, rounded to p's own
"""

from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._types import PyTree, promote


def apply_updates(
    params: PyTree, updates: PyTree, *, rounding: str = "nearest"
) -> PyTree:
    """Adds updates to parameters, keeping the parameters' dtypes.

    The same result as `optax.apply_updates`, bit for bit; unlike it, shapes are never
    broadcast and strict dtype promotion is no obstacle.

    Args:
      params: tree of arrays; None leaves stay None.
      updates: tree of the same structure and shapes. A leaf is added in the wider dtype
        of the two: float32 updates of bfloat16 parameters are rounded once.
      rounding: "nearest", to the nearest representable value, ties to even.

    Returns:
      The new parameters.

    Raises:
      ValueError: another structure or shape, or an unknown rounding.

    >>> import jax.numpy as jnp
    >>> float(apply_updates(jnp.array(1.0), jnp.array(0.5)))
    1.5
    """
    _checks.check_choice("rounding", rounding, ("nearest",))
    _tree.check_same_structure(updates, params, "updates", "the parameters")

    def leaf(p: Any, u: Any) -> tuple[jax.Array]:
        p, u = jnp.asarray(p), jnp.asarray(u)
        dtype = promote(p.dtype, u.dtype)
        return ((p.astype(dtype) + u.astype(dtype)).astype(p.dtype),)

    (params,) = _tree.map_leaves(leaf, 1, params, updates)
    return params
