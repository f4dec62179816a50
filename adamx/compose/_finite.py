"""Is every number of a tree finite? One pass, that of its norm.

The sum of the squares is finite only if every number is, and it is the quickest
reduction that there is (XLA on a CPU counts what is not finite in ten times its time).
A finite number may have a square that is not: only then, a second pass looks closer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._types import PyTree


def is_all_finite(squares: jax.Array, values: Callable[[], PyTree]) -> jax.Array:
    """Whether all elements of a tree are finite.

    Args:
      squares: the sum of their squares, or what is finite only if that is.
      values: returns the tree. Called inside a conditional: what is computed from other
        trees here costs nothing where `squares` is finite.
    """
    is_clear = jnp.isfinite(squares)

    def term(x: jax.Array) -> jax.Array:
        # Counted: XLA takes a factor that makes numbers smaller out of their sum.
        return (~jnp.isfinite(x)).astype(jnp.float32)

    def closely() -> jax.Array:
        return _tree.global_sum(term, values()) == 0

    return jax.lax.cond(is_clear, lambda: is_clear, closely)


def finite_norm(tree: Callable[[], PyTree]) -> tuple[jax.Array, jax.Array]:
    """Whether all of a tree is finite, and its norm (inf where that overflows).

    The tree is what a function returns, as in `is_all_finite`.
    """
    squares: Any = _tree.global_sum(_tree.abs_squared, tree())
    return is_all_finite(squares, tree), jnp.sqrt(squares)
