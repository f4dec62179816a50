"""Buckets: a state of few flat arrays, for trees of very many small leaves.

    state = pack(tx.init(p));    u, state <- pack(tx.update(g, unpack(state), p))

Only where the numbers lie is another: the wrapped transformation sees its own state,
leaf by leaf, so that nothing has to be known of it, and any will do: norms by leaf,
masks, codes and their scales. What is saved is what JAX takes for each array that it is
handed. Passes in compiled C (`fused(tx, kernel="native")`) read and write their windows
of the flat arrays in place.

Which arrays of a state are like the parameters is found as `optax.tree.map_params`
finds them: `init` is given a placeholder in the parameters' place. Each such tree is
packed by itself: mu in one array for each dtype, nu in another.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from adamx import _checks, _packed, _tree
from adamx._steps import step_of, with_step
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
)
from adamx.compose._belongings import placeholder


class BucketedState(NamedTuple):
    """State of `bucketed`.

    Attributes:
      inner_state: that of the wrapped transformation, with a `Packed` in the place of
        each tree like the parameters: its small leaves end to end, one flat array for
        each dtype, the others as they were.
    """

    inner_state: Any


def bucketed(
    inner: GradientTransformation, *, max_size: int = 65_536, shardings: PyTree = None
) -> GradientTransformationExtraArgs:
    """Keeps the state of many small leaves in few flat arrays; no number changes.

        state = pack(inner.init(p));   u, state <- pack(inner.update(g, unpack(state)))

    JAX takes some microseconds for every array that a compiled function is given and
    returns: for a thousand small leaves that, and not the arithmetic, is the step. Here
    the moments of all leaves of up to `max_size` elements lie end to end, those of one
    dtype in one array for each moment; parameters and gradients stay single leaves. Any
    transformation will do, since it sees its own state, leaf by leaf: updates are the
    same bit for bit as written (a compiler may round p + a * b once or twice).

    It pays with passes in compiled C, which work in place on their part of an array:

        init, step = adamx.fused(adamx.bucketed(tx), kernel="native")

    Without them XLA cuts the arrays up and puts them together again: that takes longer
    to compile, and a copy of the small leaves' state. Put it innermost, around the
    optimizer (`guard(bucketed(tx))`): around a wrapper that chooses between old and new
    it packs what was chosen, which costs a copy.
    Stages of `stages` take moments over where all of them are bucketed, or none.

    `read`, `describe`, `diagnose` and `sharding.state_shardings` see through it; names
    in the flat format are those of the bare state, so that `from_flat` and `migrate`
    take either for the other. `optax.tree.map_params` maps over the flat arrays: well
    for what is done to each number, while further trees like the parameters do not fit.
    With ZeRO-1 flat arrays are divided where their lengths can be; leaves do not lie in
    whole pieces then, and XLA gathers the arrays, and the leaves' new parts, in each
    step.

    Args:
      inner: any transformation.
      max_size: >= 1, in elements: larger leaves stay by themselves. 65,536 float32
        numbers are moved in about the time that JAX takes for an array.
      shardings: those of the parameters, as `sharding.state_shardings` takes them,
        where some are divided between devices: their state stays by itself. None: no
        parameter is divided.

    Returns:
      The transformation. State: `BucketedState`. Extra arguments are handed on.

    Raises:
      TypeError: `inner` is no transformation, `max_size` no whole number.
      ValueError: `max_size` < 1; at init, parameters divided between devices and no
        `shardings`, or some of another structure; an `inner` that is bucketed already,
        or whose init takes nothing but arrays.

    >>> import adamx, jax, jax.numpy as jnp
    >>> params = {f"layer_{i}": jnp.ones((4, 4)) for i in range(100)}
    >>> tx = bucketed(adamx.adamw(1e-3))
    >>> len(jax.tree.leaves(adamx.adamw(1e-3).init(params)))
    212
    >>> len(jax.tree.leaves(tx.init(params)))
    14
    """
    _checks.check_transformation("inner", inner)
    if isinstance(max_size, bool) or not isinstance(max_size, int):
        raise TypeError(
            "`max_size` must be a whole number of elements, got "
            f"{_checks.describe_value(max_size)}; pass an int, e.g. 65536."
        )
    if max_size < 1:
        raise ValueError(
            f"`max_size` must be a number of elements >= 1, got {max_size}; leave "
            "bucketed out where no leaf is to be put together with others."
        )
    inner_step = step_of(inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> BucketedState:
        state = inner.init(params)
        if any(map(_packed.is_packed, _nodes(state))):
            raise ValueError(
                "`inner` must not hold bucketed, got one inside of another: the inner "
                "one's arrays are flat already. Leave one of the two out."
            )
        if not jax.tree.leaves(params):  # the placeholder of map_params; all masked
            return BucketedState(state)
        alone, numbers = _divided(params, shardings, max_size), _numbers(params)

        def pack(tree: PyTree) -> PyTree:
            owners = _owners(tree, numbers)
            return _packed.packed(
                tree, lambda i, x: _size(x) <= max_size and owners[i] not in alone
            )

        return BucketedState(_packed_state(inner, state, pack))

    def opened(state: Any, grads: PyTree) -> Any:
        _checks.check_state(state, BucketedState, "bucketed")
        return _packed.unpacked_beside(state.inner_state, grads)

    def closed(after: Any, state: BucketedState) -> BucketedState:
        return BucketedState(_packed.packed_like(after, state.inner_state))

    def update(
        updates: PyTree,
        state: BucketedState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, BucketedState]:
        new, after = inner.update(updates, opened(state, updates), params, **extra_args)
        return new, closed(after, state)

    def step(
        grads: PyTree, state: BucketedState, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, BucketedState]:
        params, after = inner_step(grads, opened(state, grads), params, **extra_args)
        return params, closed(after, state)

    return with_step(init, update, step)


def _nodes(tree: PyTree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_packed.is_packed)


def _size(x: Any) -> int:
    return math.prod(np.shape(x))


def _packed_state(
    inner: GradientTransformation, state: Any, pack: Callable[[PyTree], PyTree]
) -> Any:
    """The state with everything that is like the parameters packed."""
    marker = placeholder()
    is_mark = lambda x: isinstance(x, type(marker))  # noqa: E731
    marked = _marked(inner, marker)
    marks = jax.tree.leaves(marked, is_leaf=is_mark)
    structure: Any = jax.tree.structure(marked, is_leaf=is_mark)
    pairs = zip(marks, structure.flatten_up_to(state), strict=True)
    return structure.unflatten([pack(x) if is_mark(mark) else x for mark, x in pairs])


def _marked(inner: GradientTransformation, marker: Any) -> Any:
    """The state with a placeholder where trees like the parameters will be."""
    try:
        return inner.init(marker)
    # Whatever an init of another library raises that expects arrays.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            "`inner` must say which arrays of its state are like the parameters, got "
            "one whose init does not take the placeholder of optax.tree.map_params: "
            f"{type(error).__name__}: {first}. Let its init use jax.tree.map on the "
            "parameters, or leave bucketed out."
        ) from error


def _numbers(params: PyTree) -> PyTree:
    structure: Any = jax.tree.structure(params)
    return structure.unflatten(range(structure.num_leaves))


def _owners(part: PyTree, numbers: PyTree) -> Sequence[int | None]:
    """The number of the parameter that each leaf of a part of the state belongs to."""
    leaves = _tree.leaves_by_path(part)
    owner = _tree.leaves_by_path(numbers)
    return [owner.get(name) for name in leaves]


def _divided(params: PyTree, shardings: PyTree, max_size: int) -> set[int]:
    """The numbers of the parameters that are divided between devices."""
    if shardings is None:
        for name, x in _tree.leaves_by_path(params).items():
            is_known = not isinstance(x, jax.core.Tracer) and _size(x) <= max_size
            own = _sharding_of(x) if is_known else None
            if own is not None and not own.is_fully_replicated:
                raise ValueError(
                    f"`shardings` must be given where parameters are divided between "
                    f"devices, as '{name}' is ({own}): what is put together must lie "
                    "alike, also where init is compiled and cannot see it. Pass "
                    "bucketed(tx, shardings=...), e.g. jax.tree.map(lambda p: "
                    "p.sharding, params)."
                )
        return set()
    is_none = lambda x: x is None  # noqa: E731
    try:
        each = jax.tree.map(
            lambda own, tree: jax.tree.map(lambda _: own, tree),
            shardings,
            params,
            is_leaf=is_none,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            "`shardings` must be a tree like the parameters, or for whole subtrees of "
            f"it, got {jax.tree.structure(shardings)} for "
            f"{jax.tree.structure(params)}. Pass what state_shardings takes, e.g. "
            "jax.tree.map(lambda p: p.sharding, params)."
        ) from error
    below = jax.tree.leaves(each, is_leaf=is_none)
    return {i for i, own in enumerate(below) if _divides(own)}


def _sharding_of(x: Any) -> Any:
    own = getattr(x, "sharding", None)
    return own if hasattr(own, "is_fully_replicated") else None


def _divides(sharding: Any) -> bool:
    """Whether a sharding, or a PartitionSpec, divides any dimension."""
    if sharding is None:
        return False
    if hasattr(sharding, "is_fully_replicated"):
        return not sharding.is_fully_replicated
    return any(axes for axes in sharding)
