"""Dynamic loss scaling: float16 gradients that neither vanish nor overflow for long.

    the caller:  g_scaled = gradient of (scale * loss)
    update:      g = g_scaled / scale, in float32;   inner step with g if all are finite
    scale     <- scale * growth_factor  after growth_interval good steps in a row
                 scale * backoff_factor  after a step with inf or NaN, which is skipped

float16 ends at 6e-8 and loses digits from 6e-5 down, where many gradients are; it has
room up to 65504, where few are. bfloat16 and float32 need none of this.

Source: Micikevicius et al., "Mixed Precision Training" (2018), section 3.2, for scaling
and skipping; the policy of growth and back-off is the usual one (constants of PyTorch's
GradScaler, but for the first scale, 2^15 here: a loss in float16 passes on no more).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _scalars, _tree, _varying, moments
from adamx._steps import with_step_if
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    real_dtype,
)
from adamx.compose._choice import chosen, scalars_if, step_if_of, update_if
from adamx.compose._finite import is_all_finite, scalar_by_leaf
from adamx.compose._precision import outermost_in
from adamx.reading import state_tree, unboxed

# Normal float32 numbers whose reciprocals are normal too.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**126


class LossScalingState(NamedTuple):
    """State of `loss_scaling`: 12 bytes in all, beside what the wrapped one needs.

    Attributes:
      inner_state: that of the wrapped transformation, in true units.
      scale: float32 scalar, what the next loss is to be multiplied by.
      good_steps: int32 scalar, finite steps since the scale last changed.
      skipped: int32 scalar, steps skipped so far; stays at 2^31 - 1 once there.
    """

    inner_state: Any
    scale: Any
    good_steps: Any
    skipped: Any

    def readings(self) -> dict[str, Any]:
        """The scale of the next loss, and the steps skipped."""
        return {"loss_scale": self.scale, "skipped": self.skipped}


def loss_scale(state: PyTree) -> jax.Array:
    """The factor for the next loss, out of any state that holds a `LossScalingState`.

        loss_fn = lambda params, batch: loss_scale(state) * loss(params, batch)

    Stays on the device, inside jit or not (`read(state).more["loss_scale"]` is the same
    number on the host, for a logger). Being float32, it lifts a float16 loss to
    float32, where scale * loss has room.

    Args:
      state: an optimizer state, however nested; an `nnx.Optimizer` or `TrainState` will
        do. That which the gradient's own update will be given.

    Returns:
      A float32 scalar with a buffer of its own; an array where the state is batched.

    Raises:
      ValueError: `state` holds no `LossScalingState`, or several.

    >>> import adamx, jax.numpy as jnp, optax
    >>> tx = optax.chain(loss_scaling(adamx.adamw(1e-3), initial_scale=1024.0))
    >>> float(loss_scale(tx.init(jnp.zeros(2))))
    1024.0
    """
    found = scaling_states(state)
    if len(found) != 1:
        got = f"{len(found)}, at {', '.join(map(repr, found))}" if found else "none"
        remedy = "Put one loss_scaling around the whole, optax.partition included."
        raise ValueError(
            "`state` must hold one LossScalingState, for one loss has one scale, got "
            f"{got}. " + (remedy if found else "Pass what init of loss_scaling made.")
        )
    (only,) = found.values()
    # A copy: the caller may donate the state and hand over the scale beside it.
    return jnp.array(unboxed(only.scale))


def scaling_states(state: PyTree) -> dict[str, LossScalingState]:
    """All of them by path, but for those inside another."""
    is_scaling = lambda x: isinstance(x, LossScalingState)  # noqa: E731
    flat = jax.tree_util.tree_flatten_with_path(state_tree(state), is_leaf=is_scaling)
    return {_tree.path_name(path): x for path, x in flat[0] if is_scaling(x)}


def unscale_leaf(g: Any, scale: jax.Array) -> jax.Array:
    """One leaf in true units: g / scale, in at least float32.

    Exact where the scale is a power of two, else to 1.5 units in the last place. (XLA
    makes the quotient this product in some versions; here it is so in all.)
    """
    x = _tree.wide(g)
    real = real_dtype(x.dtype)
    return moments.scale(x, jnp.ones((), real) / scale.astype(real))


def unscaled(updates: PyTree, scale: jax.Array) -> PyTree:
    return jax.tree.map(unscale_leaf, updates, scalar_by_leaf(scale, updates))


def _is_good(
    updates: Callable[[], PyTree], scale: jax.Array, axis_name: Any
) -> jax.Array:
    """Whether all quotients are finite: a scale below 1 may overflow what is finite."""
    squares = _varying.global_sum(_tree.abs_squared, updates(), axis_name)
    factor = jnp.maximum(1 / scale, jnp.ones((), scale.dtype)).astype(squares.dtype)
    values = lambda: unscaled(updates(), scale)  # noqa: E731
    return is_all_finite(squares * factor * factor, values, axis_name)


def loss_scaling(
    inner: GradientTransformation,
    *,
    initial_scale: Any = 2.0**15,
    growth_interval: Any = 2000,
    growth_factor: Any = 2.0,
    backoff_factor: Any = 0.5,
    min_scale: Any = 1.0,
    max_scale: Any = 2.0**24,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """Divides gradients by the scale of their loss; skips steps that are not finite.

        g = gradient / scale;   the inner step if every g is finite, else none
        scale <- min(scale * growth_factor, max_scale)  after growth_interval good steps
        scale <- max(scale * backoff_factor, min_scale)  after a skipped one

    The caller multiplies the loss by `loss_scale(state)`. The inner transformation sees
    gradients in true units and at least float32 (1e-8 times 2^15 in float16 is 1e-8
    again), so that its moments, eps and clipping do not depend on the scale. Hence what
    reads the gradient belongs inside: loss_scaling(chain(clip_by_global_norm(1.0),
    adamw(1e-3))); and one loss_scaling goes around optax.masked and optax.partition.
    `master_weights` and `compensated` stay outermost. Where the parameters themselves
    are float16, give the inner one mu_dtype=jnp.float32: in true units a float16 mu
    underflows as the gradient would have.

    A skipped step leaves the inner state as it is, bit by bit, and emits -0.0, which
    added to a parameter gives that parameter, -0.0 included. A constant scale, with
    skipping: min_scale = initial_scale = max_scale.

    Args:
      inner: any transformation.
      initial_scale: in [min_scale, max_scale], without unit. Too high a start costs a
        skipped step for each halving.
      growth_interval: >= 1, in steps: how many good ones in a row until the scale
        grows; about one in so many is skipped in the long run.
      growth_factor: > 1; powers of two leave a gradient's digits as they are.
      backoff_factor: in (0, 1), likewise.
      min_scale: > 0, where backing off ends. Steps go on being skipped there: a loss
        that is NaN is no matter of scale (`read(state).skipped` tells).
      max_scale: >= min_scale, where growing ends; without an end the scale of a loss
        without gradient would overflow.
      axis_name: inside `shard_map` and `pmap`, the axes along which the gradient is in
        pieces; see `clip_by_global_norm`. All devices then judge as one, and have one
        scale.

    Returns:
      The optimizer. State: `LossScalingState`. Updates have the wider dtype of gradient
      and parameter, as those of any optimizer here, though the inner one computes in
      float32. Extra arguments are handed on. Inside `jax.shard_map` or `jax.pmap`, each
      device judges what it has: sum gradients of copies over the devices first, and
      name the axes of pieces in `axis_name`.

    Raises:
      TypeError: `inner` is not a transformation; an argument is no number, or a
        schedule; another state; a gradient that is no float; `axis_name` is no name.
      ValueError: an argument out of range; axes that are not there; `inner` scales
        already.

    >>> import adamx, jax.numpy as jnp
    >>> tx = loss_scaling(adamx.sgd(1.0), initial_scale=4.0)
    >>> params = jnp.zeros(2, jnp.float16)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jnp.array([2.0, 8.0], jnp.float16), state, params)
    >>> updates.tolist(), float(loss_scale(state))
    ([-0.5, -2.0], 4.0)
    >>> bad = jnp.array([2.0, jnp.inf], jnp.float16)
    >>> updates, state = tx.update(bad, state, params)
    >>> updates.tolist(), float(loss_scale(state)), adamx.read(state).skipped
    ([-0.0, -0.0], 2.0, 1)

    Source: Micikevicius et al. (2018), section 3.2.
    """
    _checks.check_transformation("inner", inner)
    _check_numbers(initial_scale, min_scale, max_scale)
    _checks.check_between(
        "growth_factor", growth_factor, 1.0, _LARGEST, "Use 2.0, or 1.5 to grow slowly."
    )
    _checks.check_between(
        "backoff_factor", backoff_factor, 0.0, 1.0, "Use 0.5: half the scale."
    )
    if not isinstance(growth_interval, jax.core.Tracer):
        _checks.check_steps("growth_interval", growth_interval)
    _varying.check_names(axis_name)
    inner, inner_step = optax.with_extra_args_support(inner), step_if_of(inner)

    def init(params: PyTree) -> LossScalingState:
        held = inner.init(params)
        if scaling_states(held):
            raise ValueError(
                "`inner` must not scale the loss itself, got a transformation with a "
                "loss_scaling inside: gradients would be divided twice. Keep one."
            )
        if outermost := outermost_in(held):
            raise ValueError(
                f"`inner` must not hold {outermost}, whose update is not to be rounded "
                "to the dtype of a 16-bit gradient. Put it outermost: "
                f"{outermost}(loss_scaling(tx))."
            )
        count = jnp.zeros((), jnp.int32)
        start = _scalars.resolve("initial_scale", initial_scale, count)
        return LossScalingState(
            inner_state=held,
            scale=_scalars.record(start, jnp.float32),
            good_steps=count,
            skipped=jnp.zeros((), jnp.int32),
        )

    def check(updates: PyTree, state: Any, params: PyTree | None) -> None:
        _checks.check_state(state, LossScalingState, "loss_scaling")
        _tree.check_gradient(updates, params)

    def after(state: Any, held: Any, is_good: jax.Array) -> LossScalingState:
        scale, good_steps = _next_scale(
            is_good,
            state,
            growth_interval,
            growth_factor,
            backoff_factor,
            (min_scale, max_scale),
        )
        skipped = jnp.where(is_good, state.skipped, _tree.increment(state.skipped))
        return LossScalingState(held, scale, good_steps, skipped)

    def update(
        updates: PyTree,
        state: LossScalingState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, LossScalingState]:
        check(updates, state, params)
        is_good = _is_good(lambda: updates, state.scale, axis_name)

        def take() -> tuple[PyTree, Any]:
            # Divided in here: handed in, the float32 gradients would be written out.
            true = unscaled(updates, state.scale)
            return inner.update(true, state.inner_state, params, **extra_args)

        new, held = update_if(is_good, take, updates, state.inner_state, params)
        return new, after(state, held, is_good)

    def step_if(
        is_taken: jax.Array | None,
        grads: Callable[[], PyTree],
        state: LossScalingState,
        params: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, LossScalingState]:
        check(jax.eval_shape(grads), state, params)
        is_good = scalars_if(is_taken, lambda: _is_good(grads, state.scale, axis_name))
        new, held = inner_step(
            is_good,
            lambda: unscaled(grads(), state.scale),
            state.inner_state,
            params,
            **extra_args,
        )
        return new, chosen(is_taken, after(state, held, is_good), state)

    return with_step_if(init, update, step_if)


def _check_numbers(initial: Any, low: Any, high: Any) -> None:
    """Each scale a float32 number, and in order where their values are known."""
    named = {"initial_scale": initial, "min_scale": low, "max_scale": high}
    known = {}
    for name, value in named.items():
        remedy = "Use powers of two, e.g. 2.0**15."
        _checks.check_in_interval(name, value, _SMALLEST, _LARGEST, remedy)
        known[name] = _checks.host_value(name, value, "a number")
    for lower, upper in (
        ("min_scale", "initial_scale"),
        ("initial_scale", "max_scale"),
    ):
        a, b = known[lower], known[upper]
        if a is not None and b is not None and a > b:
            raise ValueError(
                f"`{lower}` must be at most `{upper}`, got {a!r} and {b!r}. Give all "
                "of min_scale <= initial_scale <= max_scale."
            )


def _next_scale(
    is_good: jax.Array,
    state: LossScalingState,
    interval: Any,
    growth: Any,
    backoff: Any,
    bounds: tuple[Any, Any],
) -> tuple[jax.Array, jax.Array]:
    """Scale and number of good steps after a step."""
    growth, backoff, low, high = (
        jnp.asarray(x).astype(jnp.float32) for x in (growth, backoff, *bounds)
    )
    steps = _tree.increment(state.good_steps)
    is_due = is_good & (steps >= jnp.asarray(interval).astype(jnp.int32))
    grown = jnp.where(is_due, jnp.minimum(state.scale * growth, high), state.scale)
    reduced = jnp.maximum(state.scale * backoff, low)
    steps = jnp.where(is_good & ~is_due, steps, jnp.zeros_like(steps))
    return jnp.where(is_good, grown, reduced), steps
