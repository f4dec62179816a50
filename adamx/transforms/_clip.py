"""Clipping by the global norm: one scalar factor for the whole gradient.

    norm   = sqrt(sum over all elements of |g|^2)         in at least float32
    factor = max_norm / norm where norm > max_norm, else 1
    update = factor * g

The factor is one scalar: inside jit it fuses into whatever reads the update, and no
clipped copy of the gradient exists.

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training Recurrent Neural
Networks" (2013), Algorithm 1.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, _varying
from adamx._types import (
    EmptyState,
    GradientTransformationExtraArgs,
    PyTree,
    scalar_dtype,
)
from adamx.transforms._learning_rate import scale_tree


class ClipByGlobalNormState(NamedTuple):
    """State of `clip_by_global_norm`; 4 bytes in all.

    Attributes:
      grad_norm: float32 scalar, norm of the last gradient before clipping; 0 at first.
    """

    grad_norm: Any

    def readings(self) -> dict[str, Any]:
        """The gradient's norm."""
        return {"grad_norm": self.grad_norm}


def clip_by_global_norm(
    max_norm: Any, *, axis_name: Any = None
) -> GradientTransformationExtraArgs:
    """Scales the gradient down to a global norm of at most `max_norm`.

        update = g * min(1, max_norm / norm),   norm = sqrt(sum of all |g|^2)

    The norm is taken in float32 (float64 for float64 gradients), so float16 gradients
    of 300 are clipped, not lost. It is kept in the state: `read(state).grad_norm`.

    What is not finite is not hidden. A NaN anywhere makes the norm and every update
    NaN. An inf makes the norm inf, its own update NaN and all others 0. Gradients whose
    norm exceeds 1.8e19 overflow it (float32): it reads inf and the update is 0.

    On many devices: under jit, arrays are whole however they are sharded, and so is the
    norm. Inside `shard_map` and `pmap` a device sees its piece alone: there `axis_name`
    adds up the squares of all of them, and every device scales by the same factor.

    Args:
      max_norm: >= 0, in units of the gradient; a number, array or tracer. inf only
        measures, 0 makes every update 0.
      axis_name: name of an axis of the surrounding `shard_map` or `pmap`, or a tuple of
        names, along which every gradient leaf is in pieces; or a tree of such names
        like the gradient (or for whole subtrees of it), () for a leaf that is the same
        on every device: copies must not be counted twice. None: no axis.

    Returns:
      The transformation; updates keep their dtypes. As in Optax, its update also takes
      None or `optax.EmptyState()` for a state; it is handed back, nothing is recorded.

    Raises:
      ValueError, TypeError: `max_norm` is negative or not a number; `axis_name` is no
        name, of another structure, or not an axis there.

    >>> import jax.numpy as jnp
    >>> tx = clip_by_global_norm(1.0)
    >>> g = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    >>> updates, state = tx.update(g, tx.init(g))
    >>> [round(float(updates[k][0]), 6) for k in "ab"], float(state.grad_norm)
    ([0.6, 0.8], 5.0)

    Source: Pascanu, Mikolov & Bengio (2013), Algorithm 1.
    """
    _checks.check_non_negative(
        "max_norm",
        max_norm,
        "It is the largest norm that passes unclipped, e.g. 1.0.",
        allow_schedule=False,
        allow_infinite=True,
    )
    _varying.check_names(axis_name)

    def init(params: PyTree) -> ClipByGlobalNormState:
        del params
        return ClipByGlobalNormState(grad_norm=jnp.zeros((), scalar_dtype()))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del params, extra_args
        is_recorded = not (state is None or isinstance(state, EmptyState))
        if is_recorded:
            _checks.check_state(state, ClipByGlobalNormState, "clip_by_global_norm")
        _tree.check_inexact(updates, "gradient")
        squares = _varying.global_sum(_tree.abs_squared, updates, axis_name)
        norm = jnp.sqrt(squares)
        chex.assert_rank(norm, 0)
        limit = jnp.asarray(
            _scalars.resolve("max_norm", max_norm, jnp.zeros((), jnp.int32)), norm.dtype
        )
        # `norm <= limit` is False for NaN, so a NaN reaches the factor.
        one = jnp.ones((), norm.dtype)
        factor = jnp.where(norm <= limit, one, limit / norm)
        # Computed once: fused into every leaf's loops, it costs a tenth of the step.
        factor = jax.lax.optimization_barrier(factor)
        if is_recorded:
            state = ClipByGlobalNormState(norm.astype(state.grad_norm.dtype))
        return scale_tree(updates, factor), state

    return GradientTransformationExtraArgs(init, update)
