"""Large batches in pieces: the wrapped optimizer runs on the mean of k gradients.

    sum <- g             on the first of k calls
    sum <- sum + g       on the others
    step with sum / k    on the last

The first call of a window overwrites what the last one left: nothing has to be set to
zero. The sum is written outside of the conditional, the choice made around parameters
and inner state (a sum written inside it is copied at every call).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx import _checks, _tree, moments
from adamx._steps import with_step_if
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    at_least_single,
    dtype_of,
    real_dtype,
)
from adamx.compose._choice import emitted_like, step_if_of, update_if
from adamx.compose._finite import scalar_by_leaf


class AccumulateState(NamedTuple):
    """State of `accumulate`: 4 bytes per parameter, and 8, beside the wrapped one's.

    Attributes:
      inner_state: that of the wrapped transformation.
      accumulated: tree like the parameters, at least float32: the sum of the gradients
        since the last step; right after one, what it was made of.
      micro_step: int32 scalar, gradients in `accumulated`, in [0, k).
      inner_steps: int32 scalar, steps of the wrapped transformation so far; its own
        count is less where it skips some.
    """

    inner_state: Any
    accumulated: PyTree
    micro_step: Any
    inner_steps: Any

    def readings(self) -> dict[str, Any]:
        """Steps of the wrapped one, and gradients since."""
        return {"inner_steps": self.inner_steps, "micro_step": self.micro_step}


class _Call(NamedTuple):
    """One call: the sum with its gradient, whether the window ends, and its length."""

    accumulated: PyTree
    is_last: jax.Array
    number: jax.Array


def accumulate(
    tx: GradientTransformation, every: Any
) -> GradientTransformationExtraArgs:
    """Takes one step for every k gradients, with their mean.

        g = (g_1 + ... + g_k) / k, in at least float32;   k = every

    Equal to one gradient of the k batches together, where the loss is a mean and they
    are of one size. Between, updates are -0.0, and state and parameters stay as they
    are: learning-rate schedules inside count steps, not gradients. Clipping inside
    clips the mean, in front of it each gradient.

    A NaN stays in the sum until the window ends: `guard(accumulate(tx, k))` leaves such
    a gradient out, and the window goes on until it has k good ones;
    `accumulate(guard(tx), k)` leaves out the whole window. Neither reaches a later
    step.

    A sum that overflows is no mean, though the mean may be a number: micro-gradients
    above 1e38 / k. Frozen parameters have a sum too where this stands around `groups`;
    inside it, groups([("encoder", freeze())], default=accumulate(tx, k)), only those
    that move. Everything inside counts steps, not gradients: `total_steps` of
    `adam_to_sgd`, `steps` of `stages`, the values that a `plateau` sees.

    16-bit parameters: accumulate(master_weights(tx), k), which writes them once in k
    calls (the other way round they are written at every call).

    Args:
      tx: any transformation.
      every: >= 1, gradients per step: an int, an integer array, a tracer, or a function
        of the number of steps taken so far (its result is rounded; below 1 it is 1).

    Returns:
      The optimizer. State: `AccumulateState`. Updates have the dtypes of those of `tx`,
      though it computes with gradients of float32. Extra arguments are handed on: of
      the k calls `tx` sees only the last one's. Through `adamx.fused`, no call needs
      temporaries.

    Raises:
      TypeError: `tx` is not a transformation; `every` is no integer; another state; a
        gradient that is no float, or complex for a real parameter.
      ValueError: `every` < 1, or beyond 32 bits.

    >>> import adamx, jax.numpy as jnp
    >>> tx = accumulate(adamx.sgd(1.0), 2)
    >>> params = jnp.zeros(2)
    >>> state = tx.init(params)
    >>> for g in ([1.0, 2.0], [3.0, 0.0]):
    ...     updates, state = tx.update(jnp.array(g), state, params)
    ...     print(updates, state.inner_steps)
    [-0. -0.] 0
    [-2. -1.] 1
    """
    _checks.check_transformation("tx", tx)
    _check_every(every)
    inner, inner_step = optax.with_extra_args_support(tx), step_if_of(tx)

    def init(params: PyTree) -> AccumulateState:
        _tree.check_inexact(params, "parameter")

        def zeros(p: Any) -> jax.Array:
            # Like p: on its devices, sharded as it is.
            return jnp.zeros_like(p, dtype=at_least_single(dtype_of(p)))

        return AccumulateState(
            inner_state=inner.init(params),
            accumulated=jax.tree.map(zeros, params),
            micro_step=jnp.zeros((), jnp.int32),
            inner_steps=jnp.zeros((), jnp.int32),
        )

    def check(updates: PyTree, state: Any, params: PyTree | None) -> None:
        _checks.check_state(state, AccumulateState, "accumulate")
        _tree.check_gradient(updates, params)
        _tree.check_like_params(updates, state.accumulated)
        _check_real(updates, state.accumulated)

    def call(
        is_taken: jax.Array | None, updates: PyTree, state: AccumulateState
    ) -> _Call:
        """None for `is_taken`: it is."""
        number = _tree.increment(state.micro_step)
        is_last = number >= _length(every, state.inner_steps)
        is_first = state.micro_step == 0

        def leaf(g: Any, total: Any) -> tuple[jax.Array]:
            g = moments.placed_like(jnp.asarray(g), total).astype(total.dtype)
            new = jnp.where(is_first, g, total + g)
            return (new if is_taken is None else jnp.where(is_taken, new, total),)

        totals = _tree.map_leaves(leaf, 1, updates, state.accumulated)[0]
        if is_taken is not None:
            is_last = is_last & is_taken
        return _Call(totals, is_last, number)

    def mean(this: _Call) -> PyTree:
        def leaf(total: jax.Array, number: jax.Array) -> jax.Array:
            return total / number.astype(real_dtype(total.dtype))

        numbers = scalar_by_leaf(this.number, this.accumulated)
        return jax.tree.map(leaf, this.accumulated, numbers)

    def after(
        state: AccumulateState, held: Any, this: _Call, is_taken: jax.Array | None
    ) -> AccumulateState:
        number = jnp.where(this.is_last, jnp.zeros_like(this.number), this.number)
        if is_taken is not None:
            number = jnp.where(is_taken, number, state.micro_step)
        steps = _tree.increment(state.inner_steps)
        steps = jnp.where(this.is_last, steps, state.inner_steps)
        return AccumulateState(held, this.accumulated, number, steps)

    def update(
        updates: PyTree,
        state: AccumulateState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AccumulateState]:
        check(updates, state, params)
        held, this = state.inner_state, call(None, updates, state)
        like = emitted_like(inner.update, updates, held, params, **extra_args)

        def take() -> tuple[PyTree, Any]:
            return inner.update(mean(this), held, params, **extra_args)

        new, held = update_if(this.is_last, take, updates, held, params, like)
        return new, after(state, held, this, None)

    def step_if(
        is_taken: jax.Array | None,
        grads: Callable[[], PyTree],
        state: AccumulateState,
        params: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, AccumulateState]:
        values = grads()
        check(values, state, params)
        this = call(is_taken, values, state)
        params, held = inner_step(
            this.is_last, lambda: mean(this), state.inner_state, params, **extra_args
        )
        return params, after(state, held, this, is_taken)

    return with_step_if(init, update, step_if)


def _check_real(updates: PyTree, sums: PyTree) -> None:
    """Raises where a complex gradient would be added to a real sum."""
    names = _tree.leaves_by_path(updates)
    for (name, g), total in zip(
        names.items(), _tree.leaves_below(updates, sums), strict=True
    ):
        if jnp.iscomplexobj(g) and not jnp.iscomplexobj(total):
            raise TypeError(
                f"gradient at '{name}' must be real for a real parameter, got "
                f"{dtype_of(g)}; pass its real part."
            )


def _length(every: Any, steps: jax.Array) -> jax.Array:
    """The number of gradients of the window that follows on so many steps."""
    length = jnp.asarray(every(steps) if callable(every) else every)
    if jnp.issubdtype(length.dtype, jnp.floating):
        length = jnp.round(length)
    return length.astype(jnp.int32)


def _check_every(every: Any) -> None:
    """A whole number >= 1, an integer array or tracer, or a function of the step."""
    expected = "a whole number of gradients >= 1, or a function of the step"
    if callable(every):
        return
    if isinstance(every, (jax.Array, np.ndarray, np.generic)):
        is_integer = jnp.issubdtype(every.dtype, jnp.integer)
    else:
        is_integer = type(every) is int
    if not is_integer:
        raise TypeError(
            f"`every` must be {expected}, got {_checks.describe_value(every)}; pass an "
            "int, e.g. 4."
        )
    number = _checks.host_value("every", every, expected)
    if number is not None and not 1 <= number <= _checks.LAST_STEP:
        raise ValueError(
            f"`every` must be {expected} and <= {_checks.LAST_STEP}, got "
            f"{int(number)}; 1 makes a step of every gradient."
        )
