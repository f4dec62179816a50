"""Cautious optimizers: no element moves against the gradient of its own step.

    keep   = [direction * g > 0]                     by element, before weight decay
    update = -learning_rate (keep * direction * d / (sum of keep + 1) + decay)

d is the number of elements of a leaf in which both are not 0: what is left is scaled up
by what was dropped.

Source: Liang, Chen, Liu & Liu, "Cautious Optimizers: Improving Training with One Line
of Code" (2024), Algorithm 1 and its AdamW form, with the mask and the sum by leaf as in
the authors' implementation. Differences: NaN is not masked, so that it is seen; the
paper's d is the size of the leaf, which makes the steps of an embedding's few rows with
a gradient thousands of times larger. (The authors' code scales by
1 / max(share kept, 1e-3).)
"""

from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import optax

from adamx import _checks, _tree
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    MaskedNode,
    PyTree,
    real_dtype,
    scalar_dtype,
)
from adamx.compose._precision import outermost_in
from adamx.compose._stages_state import StagesState
from adamx.optimizers import ScheduleFreeAdamWState

# jax 0.6 has it in jax.core.
_HOME: Any = (
    jax.extend.core if hasattr(jax.extend.core, "get_opaque_trace_state") else jax.core
)


def _trace_state() -> Any:
    """What tells the inside of a `jax.lax.cond` from its outside."""
    return _HOME.get_opaque_trace_state(convention="adamx")


class CautiousState(NamedTuple):
    """State of `cautious`: 4 bytes in all, beside what the wrapped one needs.

    Attributes:
      inner_state: that of the wrapped transformation.
      kept_fraction: float32 scalar, share of the elements that were kept in the last
        step; 0 before the first. NaN where it is not known: the wrapped transformation
        takes its steps inside a `jax.lax.cond` of its own (`optax.apply_if_finite`).
    """

    inner_state: Any
    kept_fraction: Any

    def readings(self) -> dict[str, Any]:
        """The share of the elements that were kept."""
        return {"kept_fraction": self.kept_fraction}


def cautious_leaf(u: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One leaf: what points along the gradient, scaled up; and how many elements do.

    Args:
      u: the direction.
      g: the gradient, or minus it where u has the sign of the descent already.

    Returns:
      direction, number of elements kept (float32).
    """
    # Of signs, since the product itself underflows, and inf * 0 is NaN.
    agreement = jnp.real(jnp.sign(u) * jnp.conj(jnp.sign(g)))
    is_dropped = agreement <= 0  # False for NaN
    kept = jnp.sum(~is_dropped, dtype=jnp.float32)
    size = jnp.sum(agreement != 0, dtype=jnp.float32)  # True for NaN
    real = real_dtype(u.dtype)
    factor = size.astype(real) / (kept.astype(real) + 1)
    return jnp.where(is_dropped, jnp.zeros((), u.dtype), u * factor), kept


def _is_missing(x: Any) -> bool:
    return x is None or isinstance(x, MaskedNode)


class _Alignment:
    """The mask, for whoever comes first to where it belongs.

    Handed down as the extra argument `on_direction`, it is called by the stage that
    adds decoupled decay with what it is about to add to; behind the learning rate, with
    sign -1. `cautious` calls it last. Each leaf is masked once.
    """

    def __init__(self, gradients: PyTree) -> None:
        self.leaves = jax.tree.leaves(gradients)
        structure: Any = jax.tree.structure(gradients)
        self.indices = structure.unflatten(range(len(self.leaves)))
        self.kept: dict[int, tuple[Any, jax.Array]] = {}

    def __call__(self, updates: PyTree, sign: float, is_last: bool = False) -> PyTree:
        # Groups of optax.partition have MaskedNodes where the others' leaves are.
        leaves, structure = jax.tree.flatten(updates, is_leaf=_is_missing)
        below = structure.flatten_up_to(self.indices)  # type: ignore[attr-defined]
        pairs = zip(leaves, below, strict=True)
        return structure.unflatten(  # type: ignore[attr-defined]
            [u if _is_missing(u) else self._leaf(u, i, sign, is_last) for u, i in pairs]
        )

    def _leaf(self, u: jax.Array, index: int, sign: float, is_last: bool) -> jax.Array:
        g, here = self.leaves[index], _trace_state()
        # The gradient itself is no direction yet: optax.masked hands it through, and
        # L2 decay is added to it.
        if u is g:
            return u
        # A wrapper may trace its optimizer more than once, as to learn its dtypes.
        where, _ = self.kept.get(index, (None, None))
        if where is not None and (is_last or where == here):
            return u
        wide = _tree.wide(u)
        uphill = sign * _tree.wide(g).astype(wide.dtype)
        masked, kept = cautious_leaf(wide, uphill)
        if is_last:  # nothing multiplies it by -learning_rate any more
            masked = jnp.where(masked == 0, -jnp.zeros_like(masked), masked)
        self.kept[index] = (here, kept)
        return masked.astype(u.dtype)

    def kept_fraction(self) -> jax.Array:
        """Kept elements over those that were looked at, where they can be counted."""
        here = _trace_state()
        size = sum(self.leaves[index].size for index in self.kept)
        if any(where != here for where, _ in self.kept.values()):
            return jnp.full((), jnp.nan, scalar_dtype())
        total = sum((kept for _, kept in self.kept.values()), jnp.zeros(()))
        return total.astype(scalar_dtype()) / float(max(size, 1))


def cautious(inner: GradientTransformation) -> GradientTransformationExtraArgs:
    """Drops the elements of a step that point against the gradient; scales up the rest.

        keep = [direction * g > 0];   direction <- keep * direction * d / (sum keep + 1)

    Momentum may carry an element on after its gradient has turned; here it waits. Each
    leaf is scaled by the d of its elements that have a step and a gradient, over those
    that are kept, and one: a leaf of one element moves at half the rate.

    Weight decay is not masked, where it is added by a stage of this library (`adamw`,
    `lion`, `add_decoupled_weight_decay`): the stage is told, by the extra argument
    `on_direction`, to mask what it adds to. It reaches through `optax.chain`, `masked`,
    `partition` and `inject_hyperparams`. Around others (`optax.adamw`), or where extra
    arguments are not handed on, the whole update is masked, its decay too. A gradient
    that is handed through untouched (what `optax.masked` leaves out) stays untouched.

    Args:
      inner: an optimizer, learning rate and descent's sign included; not a bare
        `scale_by_adam`, whose updates point up. With `accumulate` or
        `optax.MultiSteps`, put this inside: the gradient is then the accumulated one.

    Returns:
      The optimizer. State: `CautiousState`. Extra arguments are handed on.

    Raises:
      TypeError: `inner` is not a transformation, is schedule-free, or holds `stages`.
      ValueError: `inner` holds `master_weights` or `compensated`.

    >>> import adamx, jax.numpy as jnp
    >>> tx = cautious(adamx.adam(0.1, b1=0.9, b2=0.0))
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([1.0, 1.0]), state)
    >>> updates, state = tx.update(jnp.array([1.0, -0.5]), state)  # the second turns
    >>> [round(float(u), 3) for u in updates], float(state.kept_fraction)
    ([-0.1, -0.0], 0.5)

    Source: Liang et al. (2024), Algorithm 1.
    """
    _checks.check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> CautiousState:
        held = inner.init(params)
        is_averaged = lambda x: isinstance(x, ScheduleFreeAdamWState)  # noqa: E731
        if any(map(is_averaged, jax.tree.leaves(held, is_leaf=is_averaged))):
            raise TypeError(
                "`inner` must be an optimizer whose update is a step, got "
                "schedule_free_adamw, whose update moves an average of steps: masked, "
                "it would lose that average. Use it bare, or cautious(adamw(...))."
            )
        is_staged = lambda x: isinstance(x, StagesState)  # noqa: E731
        if any(map(is_staged, jax.tree.leaves(held, is_leaf=is_staged))):
            raise TypeError(
                "`inner` must be an optimizer whose every step ends in one way, got "
                "stages, of which some may add decay and others not: what is masked "
                "differs. Put it inside: stages([(cautious(tx), steps), ...])."
            )
        if outermost := outermost_in(held):
            raise ValueError(
                f"`inner` must not hold {outermost}, whose update, if masked, would "
                f"miss the parameters' target. Put it outermost: "
                f"{outermost}(cautious(tx))."
            )
        return CautiousState(held, jnp.zeros((), scalar_dtype()))

    def update(
        updates: PyTree,
        state: CautiousState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, CautiousState]:
        _checks.check_state(state, CautiousState, "cautious")
        _tree.check_inexact(updates, "gradient")
        updates = jax.tree.map(jnp.asarray, updates)
        align = _Alignment(updates)
        extra_args["on_direction"] = align
        new, after = inner.update(updates, state.inner_state, params, **extra_args)
        new = align(new, -1.0, is_last=True)
        fraction = align.kept_fraction().astype(state.kept_fraction.dtype)
        return new, CautiousState(after, fraction)

    return GradientTransformationExtraArgs(init, update)
