"""SGD and momentum.

    trace <- g + decay trace
    update = trace                    heavy ball
    update = g + decay trace          Nesterov, with the new trace

Source: Polyak, "Some methods of speeding up the convergence of iteration methods"
(1964); Sutskever et al., "On the importance of initialization and momentum in deep
learning" (2013), equations 3 and 4, in the form of PyTorch and Optax.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    EmptyState,
    GradientTransformationExtraArgs,
    PyTree,
    ScalarOrSchedule,
)
from adamx.transforms import scale_by_learning_rate, wide_chain


class ScaleByMomentumState(NamedTuple):
    """State of `scale_by_momentum`: 4 bytes per float32 parameter.

    Attributes:
      step: int32 scalar; None unless the decay is a schedule, whose position it is.
      trace: tree like the parameters, decaying sum of the gradients.
      trace_decay: float32 scalar, the decay as used in the last step.
    """

    step: Any
    trace: PyTree
    trace_decay: Any

    def readings(self) -> dict[str, Any]:
        """The schedule's position."""
        return {"count": self.step}


def momentum_leaf(
    g: jax.Array,
    trace: jax.Array,
    *,
    weight: moments.Weight,
    decay: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """One leaf of momentum.

    Args:
      g, trace: gradient and decaying sum, same shape.
      weight: 1 - decay, the part of itself that the sum loses.
      decay: weight of the sum in Nesterov's update; None for heavy ball.

    Returns:
      update, trace.
    """
    # float32(0.9) is wrong by 2.6e-8; the sum would multiply that by its memory.
    trace = moments.rounded(g, trace) + moments.decay(trace, weight)
    if decay is None:
        return trace, trace
    # Beside one another: see `moments.rounded`. (g may be a product, as in rmsprop.)
    besides = moments.rounded(moments.scale(trace, decay), g)
    return moments.rounded(g, trace) + besides, trace


def scale_by_momentum(
    decay: Any = 0.9, nesterov: bool = False, accumulator_dtype: Any = None
) -> GradientTransformationExtraArgs:
    """Replaces the gradient by a decaying sum of gradients.

        trace = g + decay * trace;  update = trace, or g + decay * trace (Nesterov)

    Under a constant gradient the update grows to g / (1 - decay): a sum, not a mean as
    in Adam.

    Args:
      decay: in [0, 1), memory of about 1/(1 - decay) steps; traced or a schedule too.
      nesterov: whether to look one step ahead.
      accumulator_dtype: dtype of the trace; None: the parameter's own.

    Returns:
      The transformation; dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_momentum(0.9)
    >>> state = tx.init(jnp.zeros(1))
    >>> updates, state = tx.update(jnp.ones(1), state)
    >>> updates, state = tx.update(jnp.ones(1), state)
    >>> round(float(updates[0]), 6)
    1.9
    """
    _checks.check_decay_rate("decay", decay)
    _checks.check_flag("nesterov", nesterov)
    accumulator_dtype = moments.check_moment_dtype(
        "accumulator_dtype", accumulator_dtype
    )
    scheduled = _checks.is_schedule(decay)

    def init(params: PyTree) -> ScaleByMomentumState:
        return ScaleByMomentumState(
            step=jnp.zeros((), jnp.int32) if scheduled else None,
            trace=moments.zeros(params, accumulator_dtype),
            trace_decay=_scalars.initial_records(decay=decay)["decay"],
        )

    def update(
        updates: PyTree,
        state: ScaleByMomentumState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByMomentumState]:
        del extra_args
        _checks.check_state(state, ScaleByMomentumState, "scale_by_momentum")
        used = _scalars.resolve_all(state.step, decay=decay)
        updates, new = moments.apply_rule(
            momentum_leaf,
            updates,
            params,
            {"trace": state.trace},
            dtype_argument="accumulator_dtype",
            weight=moments.weight_of(used["decay"]),
            decay=used["decay"] if nesterov else None,
        )
        step = _tree.increment(state.step) if scheduled else None
        record = _scalars.record(used["decay"], state.trace_decay.dtype)
        return updates, ScaleByMomentumState(step=step, **new, trace_decay=record)

    return GradientTransformationExtraArgs(init, update)


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Any = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Stochastic gradient descent, with momentum where it is given.

        p <- p - learning_rate * update

    Args:
      learning_rate: see `scale_by_learning_rate`.
      momentum: see `decay` of `scale_by_momentum`; None: none, and no state for it.
      nesterov, accumulator_dtype: see `scale_by_momentum`; unused without momentum.

    Returns:
      The optimizer. State: `ScaleByMomentumState` (or an empty one),
      `ScaleByLearningRateState`.

    Raises:
      ValueError: a rate below 0; a momentum outside of [0, 1); a dtype that holds no
        average.
      TypeError: `nesterov` is not True or False; without momentum, the state of one
        with it.

    >>> import jax.numpy as jnp
    >>> tx = sgd(0.1)
    >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.2
    """
    _checks.check_flag("nesterov", nesterov)
    accumulator_dtype = moments.check_moment_dtype(
        "accumulator_dtype", accumulator_dtype
    )
    last = scale_by_learning_rate(learning_rate)
    if momentum is None:  # one stage rounds once; updates have the gradient's dtype
        return optax.with_extra_args_support(optax.chain(_no_momentum(), last))
    return wide_chain(scale_by_momentum(momentum, nesterov, accumulator_dtype), last)


def _no_momentum() -> GradientTransformationExtraArgs:
    """The identity, which takes no state with a momentum in it."""

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, EmptyState]:
        del params, extra_args
        _checks.check_state(state, EmptyState, "sgd without momentum")
        return updates, state

    return GradientTransformationExtraArgs(optax.identity().init, update)


def momentum(
    learning_rate: ScalarOrSchedule,
    momentum: Any = 0.9,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """SGD with heavy-ball (or Nesterov) momentum, on by default.

    Args:
      learning_rate: see `scale_by_learning_rate`. Under a constant gradient the step
        grows to learning_rate / (1 - momentum): ten times SGD's for 0.9.
      momentum, nesterov, accumulator_dtype: see `scale_by_momentum`.

    Returns:
      The optimizer, with the state of `sgd(learning_rate, momentum)`.

    >>> import jax.numpy as jnp
    >>> tx = momentum(0.1)
    >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 6)
    -0.2
    """
    return wide_chain(
        scale_by_momentum(momentum, nesterov, accumulator_dtype),
        scale_by_learning_rate(learning_rate),
    )
