"""SGD's rate by the lengths of Adam's last step and of its mean gradient.

One pass over the moments, once in a run.
"""

from typing import Any

import jax
import jax.numpy as jnp

from adamx import _tree, moments
from adamx._types import PyTree


def matched_rate(
    state: Any, updates: PyTree, params: PyTree | None, momentum: Any
) -> jax.Array:
    """(1 - momentum) * learning_rate * |u| / |mu_hat|; 0 where mu_hat is.

    Args:
      state: an `AdamToSgdState` behind Adam's last step, which it still holds.
      updates: a gradient, for its structure and dtypes.
      params: the parameters, or None.
      momentum: SGD's.
    """

    def read(moment: str) -> PyTree:
        def rule(g: Any, mu: Any, nu: Any) -> tuple[Any, Any, Any]:
            del g
            return {"mu": mu, "nu": nu.astype(mu.dtype)}[moment], mu, nu

        held: Any = ({"mu": state.mu}, {"nu": state.nu})
        found, _ = moments.apply_rule(
            rule, updates, params, *held, unchanged=("mu", "nu")
        )
        return found

    def term(mu: jax.Array, nu: jax.Array) -> jax.Array:
        # Adam's direction but for mu's correction, which is the same in both lengths;
        # 0 where nu is, as mu is 0 there too.
        scalars = (1.0 / state.bias_correction_nu, state.eps, state.eps_root)
        scale, eps, eps_root = (x.astype(jnp.real(nu).dtype) for x in scalars)
        denominator = jnp.sqrt(jnp.real(nu) * scale + eps_root) + eps
        least = jnp.finfo(denominator.dtype).tiny
        return _tree.abs_squared(mu / jnp.maximum(denominator, least).astype(mu.dtype))

    means, squares = read("mu"), read("nu")
    length = _tree.global_norm(means)
    step = jnp.sqrt(_sum_in_turn(term, length, means, squares))
    rate = state.applied_learning_rate
    ratio = step / jnp.where(length == 0, jnp.ones_like(length), length)
    matched = (1.0 - momentum) * rate * ratio.astype(rate.dtype)
    return matched.astype(rate.dtype)


def _sum_in_turn(term: Any, unknown: jax.Array, *trees: PyTree) -> jax.Array:
    """`_tree.global_sum` of a term with scalars in it.

    XLA for CPUs fuses several such sums only with the scalars written to memory, in the
    shape of the leaf: so each large leaf has a computation of its own.
    """
    rows = list(zip(*map(jax.tree.leaves, trees), strict=True))
    large = [row for row in rows if row[0].size >= moments.LARGE]
    small = [row for row in rows if row[0].size < moments.LARGE]
    columns = list(zip(*small, strict=True)) or [() for _ in trees]
    total = _tree.global_sum(term, *map(list, columns))
    for row in large:
        part, _ = moments.in_turn(lambda *x: jnp.sum(term(*x)), unknown, *row)
        total = total + part.astype(total.dtype)
    return total
