"""Steps: gradients, state and parameters in; parameters and state out.

The Optax protocol hands the update from `update` to `apply_updates` as a value. A
wrapper that chooses between old and new (guard, accumulate, stages) would choose twice
in it: around the update and around the state. Where the choice is made once, around
parameters and state, XLA needs no temporaries for it. Such a wrapper gives its `update`
a twin, with equal results: its step. `step_of` finds it, or makes one of the update.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax

from adamx._types import GradientTransformation, GradientTransformationExtraArgs, PyTree
from adamx._writes import in_order
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


class StepIf(Protocol):
    """The same, where `is_taken` (None: always); else all is left as it is.

    `grads` is called wherever they are needed: what it computes fuses there, or is not
    computed at all.
    """

    def __call__(
        self,
        is_taken: jax.Array | None,
        grads: Callable[[], PyTree],
        state: Any,
        params: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]: ...


def with_step(
    init: Any, update: Any, step: Step, step_if: StepIf | None = None
) -> GradientTransformationExtraArgs:
    """A transformation that has a step of its own, with the results of its update.

    `step_if` is for those that read gradients more than once, which would be written
    to memory in between; or that change more than scalars outside of a conditional of
    their own, which in another one's would be copied (see `accumulate`).
    """
    setattr(update, _ATTRIBUTE, (update, step, step_if))
    return GradientTransformationExtraArgs(init, update)


def with_step_if(
    init: Any, update: Any, step_if: StepIf
) -> GradientTransformationExtraArgs:
    """The same for one whose step is its conditional step, always taken."""

    def step(
        grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        return step_if(None, lambda: grads, state, params, **extra_args)

    return with_step(init, update, step, step_if)


def _own(tx: GradientTransformation) -> tuple[Step | None, StepIf | None]:
    owner, step, step_if = getattr(tx.update, _ATTRIBUTE, (None, None, None))
    return (step, step_if) if owner is tx.update else (None, None)


def own_step_if(tx: GradientTransformation) -> StepIf | None:
    """The conditional step that a transformation has of its own, or None."""
    return _own(tx)[1]


def step_of(tx: GradientTransformation) -> Step:
    """The step of a transformation: its own, or `update` and `apply_updates`."""
    own, _ = _own(tx)
    if own is not None:
        return own
    tx = optax.with_extra_args_support(tx)

    def step(
        grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        def both(grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
            updates, state = tx.update(grads, state, params, **extra_args)
            return apply_updates(params, updates), state

        return in_order(both, grads, state, params)

    return step
