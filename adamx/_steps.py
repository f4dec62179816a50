"""Steps: gradients, state and parameters in; parameters and state out.

The Optax protocol hands the update from `update` to `apply_updates` as a value. A
wrapper that chooses between old and new (guard, accumulate, stages) would choose twice
in it: around the update and around the state. Where the choice is made once, around
parameters and state, XLA needs no temporaries for it. Such a wrapper gives its `update`
a twin, with equal results: its step. `step_of` finds it, or makes one of the update.
"""

from typing import Any, Protocol

import optax

from adamx._types import GradientTransformation, GradientTransformationExtraArgs, PyTree
from adamx.apply import apply_updates

# An attribute of the function `update`, so that it stays with it wherever the pair
# (init, update) is taken apart and put together again; with `update` itself, since
# functools.wraps copies attributes to functions that do something else.
_ATTRIBUTE = "adamx_step"


class Step(Protocol):
    """`step(grads, state, params, **extra_args) -> (params, state)`."""

    def __call__(
        self, grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]: ...


def with_step(init: Any, update: Any, step: Step) -> GradientTransformationExtraArgs:
    """A transformation that has a step of its own, with the results of its update."""
    setattr(update, _ATTRIBUTE, (update, step))
    return GradientTransformationExtraArgs(init, update)


def step_of(tx: GradientTransformation) -> Step:
    """The step of a transformation: its own, or `update` and `apply_updates`."""
    owner, own = getattr(tx.update, _ATTRIBUTE, (None, None))
    if own is not None and owner is tx.update:
        return own
    tx = optax.with_extra_args_support(tx)

    def step(
        grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        updates, state = tx.update(grads, state, params, **extra_args)
        return apply_updates(params, updates), state

    return step
