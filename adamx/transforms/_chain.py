"""Stages in sequence, with float32 between them.

`optax.chain` hands the update from stage to stage in the gradient's own dtype. In
bfloat16 that rounds three times in AdamW, and a decay of 1e-4 p vanishes beside an
update of size 1. Here 16-bit gradients are widened once before the first stage, and the
update is rounded once behind the last, to the wider dtype of gradient and parameter.
The state is that of `optax.chain`.
"""

from typing import Any

import jax
import optax

from adamx import _checks, _tree
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    update_dtype,
)


def wide_chain(*stages: GradientTransformation) -> GradientTransformationExtraArgs:
    """`optax.chain` whose stages see 16-bit gradients as float32.

    Returns:
      The transformation, with the state of `optax.chain`.
    """
    inner = optax.with_extra_args_support(optax.chain(*stages))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if not isinstance(state, tuple) or len(state) != len(stages):
            raise _checks.state_error(
                state, f"tuple of {len(stages)} states", "the optimizer"
            )
        _tree.check_inexact(updates, "gradient")
        widened = jax.tree.map(_tree.wide, updates)
        new, state = inner.update(widened, state, params, **extra_args)

        def narrow(g: Any, u: Any, p: Any) -> tuple[jax.Array]:
            return (u.astype(update_dtype(g, p)),)

        (new,) = _tree.map_leaves(narrow, 1, updates, new, params)
        return new, state

    return GradientTransformationExtraArgs(inner.init, update)
