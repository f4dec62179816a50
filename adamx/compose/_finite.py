"""Is every number of a tree finite? One pass, that of its norm.

The sum of the squares is finite only if every number is, and it is the quickest
reduction that there is (XLA on a CPU needs ten times as long to count what is not
finite). A finite number may have a square that is not: only then, a second pass looks
closer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree, _varying
from adamx._types import PyTree


def is_all_finite(
    squares: jax.Array, values: Callable[[], PyTree], axis_name: Any = None
) -> jax.Array:
    """Whether all elements of a tree are finite.

    Args:
      squares: the sum of their squares, or what is finite only if that is.
      values: returns the tree. Called inside a conditional: what is computed from other
        trees here costs nothing where `squares` is finite.
      axis_name: see `_varying.names_of`; `squares` is over these axes already.
    """
    is_clear = jnp.isfinite(squares)

    def term(x: jax.Array) -> jax.Array:
        # The sum of roots is finite where the numbers are. (XLA takes a factor that
        # makes them smaller out of their sum, and counts by writing out what it adds.)
        if jnp.iscomplexobj(x):
            return jnp.sqrt(jnp.abs(jnp.real(x))) + jnp.sqrt(jnp.abs(jnp.imag(x)))
        return jnp.sqrt(jnp.abs(x))

    def closely() -> jax.Array:
        return jnp.isfinite(_varying.global_sum(term, values(), axis_name))

    return _varying.cond(is_clear, lambda: is_clear, closely)


def finite_norm(
    tree: Callable[[], PyTree], axis_name: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Whether all of a tree is finite, and its norm (inf where that overflows).

    The tree is what a function returns, and `axis_name` as in `is_all_finite`.
    """
    squares: Any = _varying.global_sum(_tree.abs_squared, tree(), axis_name)
    return is_all_finite(squares, tree, axis_name), jnp.sqrt(squares)


def scalar_by_leaf(scalar: jax.Array, tree: PyTree) -> PyTree:
    """The scalar for each leaf, as if they were different ones.

    Where many leaves of a shape are multiplied by the same scalar and then reduced, XLA
    for CPUs makes an array of it to share.
    """
    structure: Any = jax.tree.structure(tree)
    many = jnp.broadcast_to(scalar, (structure.num_leaves,))
    many = jax.lax.optimization_barrier(many)
    return structure.unflatten([many[i] for i in range(structure.num_leaves)])
