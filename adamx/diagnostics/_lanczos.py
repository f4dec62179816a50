"""The largest eigenvalue of a symmetric operator that is known by its products.

Lanczos: with v_1 random of length 1 and beta_0 = 0,

    w = A v_k - beta_(k-1) v_(k-1);   alpha_k = v_k . w;   w <- w - alpha_k v_k
    beta_k = |w|;   v_(k+1) = w / beta_k

The tridiagonal T of the alphas and betas has eigenvalues inside the spectrum of A, and
its outer ones approach A's. Vectors are not orthogonalised against all earlier ones:
that loses copies of what has converged, not the outermost eigenvalue (Paige), and three
vectors are all that is kept.

Source: Paige, "Accuracy and Effectiveness of the Lanczos Algorithm for the Symmetric
Eigenproblem" (1980).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._types import PyTree, promote

# Steps between two looks at the eigenvalues of T, which cost more than a small product.
_LOOK_EVERY = 8


class Eigenvalue(NamedTuple):
    """What was found.

    Attributes:
      value: the largest eigenvalue, algebraically.
      residual: |A x - value x| for a unit x, by Lanczos' own formula, over |value|: A
        has an eigenvalue so near. No less than rounding leaves unknown, 4 eps times the
        spectrum's size: where that is far larger than |value|, no product is left to be
        learned from, and little is known.
      iterations: int32, products with A.
      converged: whether the residual is within the tolerance.
    """

    value: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


class _Carry(NamedTuple):
    taken: jax.Array  # products taken
    is_done: jax.Array
    is_exhausted: jax.Array
    v: PyTree
    before: PyTree
    alphas: jax.Array
    betas: jax.Array
    value: jax.Array
    residual: jax.Array


def largest_eigenvalue(
    product: Callable[[PyTree], PyTree],
    start: PyTree,
    iterations: int,
    tolerance: jax.Array,
) -> Eigenvalue:
    """The largest eigenvalue of `product`, in the space that `start` reaches.

    Args:
      product: v -> A v on trees of real arrays, A symmetric.
      start: a random tree; 0 where nothing may move, which `product` must keep at 0.
      iterations: products at most; static.
      tolerance: relative, of the residual and of the value's last change.

    Returns:
      An `Eigenvalue`; NaN where a product is not finite; 0 for an empty space.
    """
    dtype = promote(jnp.float32, *(x.dtype for x in jax.tree.leaves(start)))
    length = _norm(start, dtype)
    zero = jnp.zeros((), dtype)
    carry = _Carry(
        taken=jnp.zeros((), jnp.int32),
        is_done=jnp.zeros((), bool),
        is_exhausted=length == 0,
        v=_divided(start, length),
        before=jax.tree.map(jnp.zeros_like, start),
        alphas=jnp.zeros(iterations, dtype),
        betas=jnp.zeros(iterations, dtype),
        value=zero,
        residual=zero,
    )
    steps = min(_LOOK_EVERY, iterations)

    def body(carry: _Carry) -> _Carry:
        carry = jax.lax.fori_loop(0, steps, lambda _, c: _step(product, c), carry)
        return _look(carry, tolerance)

    def round_of_steps(_: Any, carry: _Carry) -> _Carry:
        return jax.lax.cond(carry.is_done, lambda: carry, lambda: body(carry))

    # Not a while_loop, which on CPU with jaxlib 0.6 ends before its first round when it
    # comes out of the persistent compilation cache.
    end = jax.lax.fori_loop(0, -(-iterations // steps), round_of_steps, carry)
    value = end.value
    residual = jnp.maximum(end.residual, _rounding(end, _size(end)))
    residual = jnp.where(residual == 0, zero, residual / jnp.abs(value))
    # The tolerance may be finer than the dtype: what all digits allow is enough.
    enough = jnp.maximum(jnp.asarray(tolerance, dtype), 16 * jnp.finfo(dtype).eps)
    is_known = jnp.isfinite(value) & (residual <= enough)
    return Eigenvalue(value, residual, end.taken, end.is_done & is_known)


def _step(product: Callable[[PyTree], PyTree], carry: _Carry) -> _Carry:
    """One product, unless the space is exhausted or the last has been taken."""
    k, size = carry.taken, carry.alphas.shape[0]
    dtype = carry.alphas.dtype
    is_due = ~carry.is_exhausted & (k < size)
    last = jnp.where(k > 0, carry.betas[jnp.maximum(k - 1, 0)], 0)
    w = _minus(product(carry.v), last, carry.before)
    alpha = _tree.inner_product(carry.v, w).astype(dtype)
    w = _minus(w, alpha, carry.v)
    # Once more: rounding leaves a part of v in w where alpha is large beside beta.
    again = _tree.inner_product(carry.v, w).astype(dtype)
    w, alpha = _minus(w, again, carry.v), alpha + again
    beta = _norm(w, dtype)
    size_so_far = jnp.maximum(_size(carry), jnp.abs(alpha) + last)
    ends = beta <= _rounding(carry, size_so_far)
    place = jnp.where(is_due, k, size)  # out of range: dropped
    return carry._replace(
        taken=k + is_due.astype(k.dtype),
        is_exhausted=carry.is_exhausted | ends,
        v=_divided(w, beta),
        before=carry.v,
        alphas=carry.alphas.at[place].set(alpha, mode="drop"),
        betas=carry.betas.at[place].set(jnp.where(ends, 0, beta), mode="drop"),
    )


def _look(carry: _Carry, tolerance: jax.Array) -> _Carry:
    """The largest eigenvalue of T, and whether it is good enough."""
    size, dtype = carry.alphas.shape[0], carry.alphas.dtype
    is_used = jnp.arange(size) < carry.taken
    largest = _size(carry)
    # Below the spectrum, so that no row that is not used gives the largest eigenvalue.
    alphas = jnp.where(is_used, carry.alphas, -4 * largest)
    inner = jnp.where(jnp.arange(size) < carry.taken - 1, carry.betas, 0)[:-1]
    matrix = jnp.diag(alphas) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    unit = jnp.where(largest > 0, largest, 1)
    values, vectors = jnp.linalg.eigh(matrix / unit)
    end = jnp.maximum(carry.taken - 1, 0)
    value = values[-1] * unit
    residual = carry.betas[end] * jnp.abs(vectors[end, -1])
    enough = jnp.asarray(tolerance, dtype) * jnp.abs(value)
    is_near = (residual <= enough) & (jnp.abs(value - carry.value) <= enough)
    is_exact = residual <= 8 * jnp.finfo(dtype).eps * largest
    is_done = carry.is_exhausted | is_near | is_exact | ~jnp.isfinite(value)
    return carry._replace(is_done=is_done, value=value, residual=residual)


def _rounding(carry: _Carry, size: jax.Array) -> jax.Array:
    """What a number that comes out of others of this size is not known by."""
    return 4 * jnp.finfo(carry.alphas.dtype).eps * size


def _size(carry: _Carry) -> jax.Array:
    """The scale of T."""
    return jnp.max(jnp.abs(carry.alphas)) + jnp.max(carry.betas)


def _norm(tree: PyTree, dtype: Any) -> jax.Array:
    """|x|, free of overflow: squares are taken of x over its largest element."""
    peaks = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]
    if not peaks:
        return jnp.zeros((), dtype)
    peak = jnp.max(jnp.stack([p.astype(dtype) for p in peaks]))
    return peak * _tree.global_norm(_divided(tree, peak)).astype(dtype)


def _divided(tree: PyTree, divisor: jax.Array) -> PyTree:
    """x / divisor; x where that is 0."""
    safe = jnp.where(divisor == 0, 1, divisor)
    return jax.tree.map(lambda x: x / safe.astype(x.dtype), tree)


def _minus(tree: PyTree, factor: jax.Array, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x - factor.astype(x.dtype) * y, tree, other)
