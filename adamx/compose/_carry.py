"""What a stage that begins takes over: positions of schedules, means of gradients.

    mean           mu / c of Adam's, c the bias correction; trace * (1 - momentum)
    mean square    nu / c
    taken over     mu = c' * mean, nu = c' * mean square, trace = mean / (1 - momentum)

c' is the bias correction of the new stage's own b behind as many steps as the count
says that is taken over with the moments: its next steps correct them by what they have.
A trace does not say how many steps it has summed: behind few, trace * (1 - momentum) is
less than the mean.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx import _tree, _varying, moments
from adamx._types import PyTree, real_dtype
from adamx.compose._hyperparams import WithHyperparamsState
from adamx.compose._stages_state import StagesState
from adamx.optimizers.adam import ScaleByAdamState
from adamx.optimizers.sgd import ScaleByMomentumState
from adamx.transforms import (
    AddDecoupledWeightDecayState,
    ScaleByLearningRateState,
    ScaleByScheduledLearningRateState,
)

# States, and their field that is nothing but a schedule's position.
_POSITIONS = {
    ScaleByScheduledLearningRateState: "count",
    ScaleByLearningRateState: "step",
    AddDecoupledWeightDecayState: "step",
    ScaleByMomentumState: "step",
    WithHyperparamsState: "step",
    # What is inside starts later, and is set to this by its own stages, if at all.
    StagesState: "before",
    optax.ScaleByScheduleState: "count",
    optax.InjectHyperparamsState: "count",
    optax.InjectStatefulHyperparamsState: "count",
}
_HOLDERS = (ScaleByAdamState, ScaleByMomentumState)


def continued(state: PyTree, count: jax.Array, is_first: jax.Array) -> PyTree:
    """The state with all positions of schedules at `count`, in a stage's first step."""

    def at_count(node: Any) -> Any:
        field = _position(node)
        if field is None:
            return node
        old = getattr(node, field)
        changes = {}
        if old is not None:
            changes[field] = jnp.where(is_first, count.astype(old.dtype), old)
        for inner in ("inner_state", "hyperparams_states"):
            if inner in node._fields:
                changes[inner] = go(getattr(node, inner))
        return node._replace(**changes)

    def go(tree: PyTree) -> PyTree:
        return jax.tree.map(at_count, tree, is_leaf=lambda x: bool(_position(x)))

    return go(state)


def _position(node: Any) -> str | None:
    """The field of a state that is nothing but a schedule's position."""
    # The positions under inject_hyperparams, of a type that Optax does not export.
    if getattr(node, "_fields", None) == ("count",):
        return "count"
    return _POSITIONS.get(type(node))


def carries(ending: PyTree, beginning: PyTree) -> bool:
    """Whether anything of the state that ends is taken over by the one that begins."""
    return any(source is not None for source in _sources(ending, beginning))


def carried(ending: PyTree, beginning: PyTree, is_first: jax.Array) -> PyTree:
    """The state that begins, in its stage's first step with the moments of the other.

    A conditional around the moments: at all other steps it costs nothing.
    """
    sources = iter(_sources(ending, beginning))

    def taken_over(node: Any) -> Any:
        if not isinstance(node, _HOLDERS):
            return node
        source = next(sources)
        if source is None:
            return node
        take = lambda: _taken_over(source, node)  # noqa: E731
        return _varying.cond(is_first, take, lambda: node)

    return jax.tree.map(taken_over, beginning, is_leaf=_is_holder)


def _is_holder(node: Any) -> bool:
    return isinstance(node, _HOLDERS)


def _holders(state: PyTree) -> list[Any]:
    return [x for x in jax.tree.leaves(state, is_leaf=_is_holder) if _is_holder(x)]


def _sources(ending: PyTree, beginning: PyTree) -> list[Any]:
    """For each holder of moments that begins, the one that ends in its place, or None.

    The first that fits and has no successor yet.
    """
    left, found = _holders(ending), []
    for new in _holders(beginning):
        source = next((old for old in left if _fits(old, new)), None)
        left = [old for old in left if old is not source]
        found.append(source)
    return found


def _fits(old: Any, new: Any) -> bool:
    if isinstance(old, ScaleByMomentumState) and isinstance(new, ScaleByAdamState):
        return False
    for node in (old, new):  # a b1 that warms up: its correction is another product
        if getattr(node, "momentum_decay", None) is not None:
            return False
    return all(map(_is_alike, _trees(old), _trees(new)))


def _trees(node: Any) -> tuple[PyTree, ...]:
    return (node.mu, node.nu) if isinstance(node, ScaleByAdamState) else (node.trace,)


def _is_alike(a: PyTree, b: PyTree) -> bool:
    if isinstance(a, moments.Encoded) or isinstance(b, moments.Encoded):
        return False
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (a, b)]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    return structures[0] == structures[1] and shapes[0] == shapes[1]


def _taken_over(old: Any, new: Any) -> Any:
    """`new` with the moments of `old`, in its own units."""
    if isinstance(old, ScaleByMomentumState):
        factor = (1.0 - old.trace_decay) / (1.0 - new.trace_decay)
        return new._replace(trace=_scaled(old.trace, factor, new.trace))
    if isinstance(new, ScaleByMomentumState):
        correction = jnp.where(old.count == 0, 1.0, old.bias_correction_mu)
        factor = 1.0 / (correction * (1.0 - new.trace_decay))
        return new._replace(trace=_scaled(old.mu, factor, new.trace))
    fields: dict[str, Any] = {"count": old.count}
    for moment, b in (("mu", "b1"), ("nu", "b2")):
        had, rest = f"bias_correction_{moment}", f"correction_rest_{moment}"
        before = getattr(old, had)
        now = _correction(getattr(new, b), old.count)
        # The same b needs no change, and none that rounding makes.
        is_same = getattr(old, b) == getattr(new, b)
        is_same |= old.count == 0
        factor = jnp.where(is_same, 1.0, now / jnp.where(is_same, 1.0, before))
        fields[moment] = _scaled(getattr(old, moment), factor, getattr(new, moment))
        fields[had] = jnp.where(is_same, before, now)
        fields[rest] = jnp.where(is_same, getattr(old, rest), 0.0)
    return new._replace(**fields)


def _correction(b: jax.Array, count: jax.Array) -> jax.Array:
    """1 - b^count, from b as it was recorded."""
    steps = jnp.maximum(count, 1).astype(b.dtype)
    return -jnp.expm1(steps * jnp.log(b))


def _scaled(tree: PyTree, factor: jax.Array, like: PyTree) -> PyTree:
    """factor * tree, in the dtypes of `like`."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = _tree.wide(x)
        return moments.scale(wide, factor.astype(real_dtype(wide.dtype))).astype(
            y.dtype
        )

    return jax.tree.map(leaf, tree, like)
