"""GRADIENTS -> PARAMETERS: the fast lane of any transformation.

p, state <- step(g, state, p)        with the results of update and apply_updates
"""

from typing import Any, NamedTuple

from adamx import _checks, _steps, _tree
from adamx._types import GradientTransformation, PyTree


class Fused(NamedTuple):
    """What `fused` returns.

    Attributes:
      init: `init(params) -> state`, that of the transformation.
      step: `step(grads, state, params, **extra_args) -> (params, state)`.
    """

    init: Any
    step: Any


def fused(tx: GradientTransformation) -> Fused:
    """A training step's last lines in one: parameters in, parameters out.

        init, step = fused(tx)
        params, state = step(grads, state, params)

    The results are those of `tx.update` and `apply_updates`. What differs is what has
    to be kept meanwhile: a wrapper that chooses between old and new (`guard`,
    `accumulate`, `stages`, `loss_scaling`) chooses once around parameters and state,
    not around a tree of updates and again around the state. Donate both:
    `jax.jit(step, donate_argnums=(1, 2))` then needs next to no temporary memory.

    The wrappers nest: guard(accumulate(tx, 4)) is one choice inside another. A stage of
    another library, and `optax.chain` around a wrapper, run as they are: through
    `update` and `apply_updates`, inside whatever stands around them.

    Args:
      tx: any transformation.

    Returns:
      `init` and `step`. The state is that of `tx`: one may change between the two ways
      at any step.

    Raises:
      TypeError: `tx` is not a transformation.
      ValueError: gradients of another structure or shape than the parameters.

    >>> import adamx, jax, jax.numpy as jnp
    >>> init, step = fused(adamx.sgd(0.5))
    >>> params = jnp.ones(2)
    >>> params, state = jax.jit(step)(jnp.array([1.0, -1.0]), init(params), params)
    >>> params.tolist()
    [0.5, 1.5]
    """
    _checks.check_transformation("tx", tx)
    inner = _steps.step_of(tx)

    def step(
        grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        _checks.check_has_params(params, "they are what a step returns")
        _tree.check_like_params(grads, params)
        return inner(grads, state, params, **extra_args)

    return Fused(tx.init, step)
