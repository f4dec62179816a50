"""Parameters that stay as they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._steps import with_step
from adamx._types import (
    GradientTransformationExtraArgs,
    PyTree,
    dtype_of,
    update_dtype,
)


class FreezeState(NamedTuple):
    """State of `freeze`: nothing; its type says that there is no step."""


def freeze() -> GradientTransformationExtraArgs:
    """Leaves parameters as they are, to the last bit.

        update = -0.0

    -0.0 and not 0, which added to a parameter of -0.0 would give 0. Nothing of the
    gradient gets in, NaN included. Meant for a rule of `groups`:

        groups([(r"^backbone/", freeze())], default=adamx.adamw(1e-3))

    Against `optax.set_to_zero`: the sign, the update's dtype, and a state by which
    others see that nothing moves. What Optax writes as freeze(mask) is
    `optax.masked(freeze(), mask)` here.

    Args: none.

    Returns:
      The transformation. State: `FreezeState`, without a byte. Updates have the wider
      dtype of gradient and parameter. Parameters that are no floats pass as well.

    Raises:
      TypeError: another state.
      ValueError: gradients of another structure or shape than the parameters.

    >>> import jax.numpy as jnp
    >>> tx = freeze()
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.ones(1)))
    >>> updates.tolist(), len(state)
    ([-0.0], 0)
    """

    def init(params: PyTree) -> FreezeState:
        del params
        return FreezeState()

    def check(updates: PyTree, state: Any, params: PyTree | None) -> None:
        _checks.check_state(state, FreezeState, "freeze")
        if params is not None:
            _tree.check_like_params(updates, params)

    def update(
        updates: PyTree,
        state: FreezeState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, FreezeState]:
        del extra_args
        check(updates, state, params)
        return _tree.map_leaves(_nothing, 1, updates, params)[0], state

    def step(
        grads: PyTree, state: FreezeState, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, FreezeState]:
        del extra_args
        check(grads, state, params)
        return params, state

    return with_step(init, update, step)


def _nothing(g: Any, p: Any) -> tuple[Any]:
    """What added to the parameter gives the parameter."""
    if dtype_of(g) == jax.dtypes.float0:  # jax.grad of integers
        return (g if p is None else jnp.zeros_like(p),)
    zeros = jnp.zeros_like(g, dtype=update_dtype(g, p))
    is_float = jnp.issubdtype(zeros.dtype, jnp.inexact)
    return (-zeros if is_float else zeros,)
