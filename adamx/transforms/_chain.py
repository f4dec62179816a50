"""Stages in sequence, with float32 between them.

`optax.chain` hands the update from stage to stage in the gradient's own dtype. In
bfloat16 that rounds three times in AdamW, and a decay of 1e-4 p vanishes beside an
update of size 1. Here 16-bit gradients are widened once before the first stage, and the
update is rounded once behind the last. The state is that of `optax.chain`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx import _tree
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
)


def wide_chain(*stages: GradientTransformation) -> GradientTransformationExtraArgs:
    """`optax.chain` whose stages see 16-bit gradients as float32.

    Returns:
      The transformation: the same state, updates in the gradient's dtype.
    """
    inner = optax.with_extra_args_support(optax.chain(*stages))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        _tree.check_inexact(updates, "gradient")
        widened = jax.tree.map(_tree.wide, updates)
        new, state = inner.update(widened, state, params, **extra_args)
        if params is not None:  # behind the stages: what they find is more telling
            _tree.check_same_structure(updates, params, "gradient", "the parameters")
        narrowed = jax.tree.map(
            lambda u, g: u.astype(jnp.asarray(g).dtype), new, updates
        )
        return narrowed, state

    return GradientTransformationExtraArgs(inner.init, update)
