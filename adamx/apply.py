"""UPDATES -> PARAMETERS: the last sum of a training step.

p <- p + update        in the wider of both dtypes, rounded to p's own
"""

from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks, _tree, moments
from adamx._traced import traced_once
from adamx._types import PyTree, dtype_of, promote


def apply_updates(
    params: PyTree, updates: PyTree, *, rounding: str = "nearest", key: Any = None
) -> PyTree:
    """Adds updates to parameters, keeping the parameters' dtypes.

    To the nearest, the result is that of `optax.apply_updates`, bit for bit; unlike it,
    shapes are never broadcast and strict dtype promotion is no obstacle.

    A bfloat16 parameter of 1 ignores updates of up to 2^-8 = 0.0039 upwards and 2^-9 =
    0.00195 downwards: half its distance to the next number. With "stochastic" it moves
    by a whole one in as many steps as make the mean right (see
    `moments.round_stochastic`); nothing has to be stored for that. Sum and rounding are
    one pass over the parameters, as fast as to the nearest.

    Args:
      params: tree of arrays; None leaves stay None.
      updates: tree of the same structure and shapes. A leaf is added in the wider dtype
        of the two: float32 updates of bfloat16 parameters are rounded once.
      rounding: "nearest", to the nearest representable value, ties to even; or
        "stochastic", for bfloat16 parameters: added in float32, up or down at random,
        right in the mean. Leaves of 32 bits and more are rounded to the nearest in
        either case; float16 is refused.
      key: a `jax.random` key, typed or raw, with "stochastic" only. It must be another
        one at every step, as `jax.random.fold_in(key, step)` is: with one key for all,
        an element is rounded by the same draw at every step, and goes astray. The
        leaves have draws of their own, by their order in the tree.

    Returns:
      The new parameters; the same for the same key, on one device and on several.

    Raises:
      ValueError: another structure or shape, an unknown rounding, "stochastic" without
        a key or a key without it.
      TypeError: a key that is none; stochastic rounding of 16-bit parameters other than
        bfloat16.

    >>> import jax, jax.numpy as jnp
    >>> float(apply_updates(jnp.array(1.0), jnp.array(0.5)))
    1.5
    >>> params, updates = jnp.ones(4096, jnp.bfloat16), jnp.full(4096, 0.001)
    >>> key = jax.random.fold_in(jax.random.key(0), 1)
    >>> new = apply_updates(params, updates, rounding="stochastic", key=key)
    >>> new.dtype, round(float(new.astype(jnp.float32).mean()), 4)
    (dtype(bfloat16), 1.001)
    """
    _checks.check_choice("rounding", rounding, ("nearest", "stochastic"))
    is_stochastic = rounding == "stochastic"
    words = _key_words(key, is_stochastic)
    _tree.check_same_structure(updates, params, "updates", "the parameters")
    if is_stochastic:
        _check_roundable(params)
    streams = iter(range(len(jax.tree.leaves(params))))
    added = traced_once(_added)

    def leaf(p: Any, u: Any) -> tuple[jax.Array]:
        p, u, stream = jnp.asarray(p), jnp.asarray(u), next(streams)
        if is_stochastic and p.dtype == jnp.bfloat16:
            total = p.astype(jnp.float32) + u.astype(jnp.float32)
            bits = moments.random_bits(words, 0, stream, p.shape)
            return (moments.round_stochastic(total, bits),)
        return (added(p, u),)

    (params,) = _tree.map_leaves(leaf, 1, params, updates)
    return params


def _added(p: jax.Array, u: jax.Array) -> jax.Array:
    dtype = promote(p.dtype, u.dtype)
    old = p.astype(dtype)
    return (old + moments.rounded(u.astype(dtype), old)).astype(p.dtype)


def _key_words(key: Any, is_stochastic: bool) -> Any:
    """The words of the key that stochastic rounding needs; None to the nearest."""
    if not is_stochastic:
        if key is not None:
            raise ValueError(
                '`key` must be None where `rounding` is "nearest", got '
                f"{_checks.describe_value(key)}; nothing is drawn there: pass "
                'rounding="stochastic", or leave the key out.'
            )
        return None
    if key is None:
        raise ValueError(
            '`key` must be a jax.random key where `rounding` is "stochastic", got '
            "None; pass a new one at every step: jax.random.fold_in(key, step)."
        )
    return moments.key_words("key", key)


def _check_roundable(params: PyTree) -> None:
    for name, p in _tree.leaves_by_path(params).items():
        dtype = dtype_of(p)
        if dtype.itemsize < 4 and dtype != jnp.bfloat16:
            raise TypeError(
                f"parameter at '{name}' must be bfloat16, or have at least 32 bits, to "
                f"be rounded stochastically, got {dtype}; keep its rest in the state "
                "instead: adamx.compensated(tx) or adamx.master_weights(tx)."
            )
