"""New values for the hyperparameters that a state holds."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks
from adamx._types import PyTree, scalar_dtype
from adamx.compose._arguments import nearest
from adamx.compose._hyperparams import WithHyperparamsState
from adamx.reading import group_labels, group_parts, unboxed

# Names that mean the same in every optimizer here and in Optax. A state does not know
# its factory, which judged the first values.
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "learning_rate": _checks.check_learning_rate,
    "weight_decay": _checks.check_weight_decay,
    "b1": _checks.check_decay_rate,
    "b2": _checks.check_decay_rate,
    "b3": _checks.check_decay_rate,
    "eps": _checks.check_epsilon,
    "eps_root": _checks.check_epsilon,
}


def set_hyperparams(
    state: PyTree, /, *, where: str | None = None, **values: Any
) -> PyTree:
    """A state with other hyperparameters, for the same compiled step.

        state = set_hyperparams(state, learning_rate=3e-4, weight_decay=0.01)

    Between steps or inside jit. The new numbers have the dtype, the shape and the place
    of the old ones, so that nothing is compiled again; what else `state` holds is
    handed on as it is. With flax.nnx: `optimizer.opt_state =
    set_hyperparams(optimizer.opt_state, ...)`; with a `TrainState`, hand it over whole.
    `read` shows the rate and decay that were applied last: the new ones from the next
    step on.

    Args:
      state: an optimizer state that holds the state of `with_hyperparams`, however
        nested; or several, as with optax.partition: a name is set in all that have it.
      where: of several, the one to set: the label that `read` shows ('a/decoder'), or
        one of the names between its slashes.
      **values: `values` by argument: numbers, arrays of no dimension or tracers; for a
        state that is batched (vmap over seeds) also arrays of its shape.

    Returns:
      The new state.

    Raises:
      ValueError: a name that is not held as a number, or is a schedule's; no such
        group; a value that is not finite. Under names that mean the same everywhere
        (learning_rate, weight_decay, b1, b2, b3, eps, eps_root) also one out of range.
        Other numbers are not judged: outside jit the factory does at the next step,
        inside it nobody does.
      TypeError: a value that is no number, or a 16-bit array of more than a rate.

    >>> import adamx, jax, jax.numpy as jnp
    >>> tx = adamx.with_hyperparams(adamx.adamw, learning_rate=1e-3)
    >>> state = tx.init({"w": jnp.zeros(2)})
    >>> state = set_hyperparams(state, learning_rate=1e-4, b2=0.99)
    >>> [round(float(state.hyperparams[k]), 6) for k in ("learning_rate", "b2")]
    [0.0001, 0.99]
    """
    if jax.tree_util.all_leaves([state]) and hasattr(state, "opt_state"):
        raise TypeError(
            "`state` must be an optimizer state, got "
            f"{type(state).__name__}, which is no tree; set it in place: "
            "optimizer.opt_state = adamx.set_hyperparams(optimizer.opt_state, ...)."
        )
    held = _held(state, ())
    if not isinstance(where, str | None):
        raise TypeError(
            "`where` must be a label of a group such as 'decoder', or None, got "
            f"{_checks.describe_value(where)}; pass a string."
        )
    chosen = {path for path in held if where is None or _is_in(path, where)}
    if not chosen:
        raise ValueError(_nothing_found(where, held))
    for name, value in values.items():
        _check_is_held(name, [held[path] for path in chosen])
        _check_value(name, value)
    return _replaced(state, (), chosen, values)


def _is_held(node: Any) -> bool:
    return isinstance(node, WithHyperparamsState)


def _held(node: PyTree, path: tuple[Any, ...]) -> dict[Any, WithHyperparamsState]:
    """All states of with_hyperparams by path, those inside another one too."""
    found = {}
    for below, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=_is_held)[0]:
        if _is_held(child):
            found[path + below] = child
            found |= _held(child.inner_state, (*path, *below))
    return found


def _is_in(path: Any, where: str) -> bool:
    parts = group_parts(path)
    names = [part for part in parts if not part.isdigit()]
    wanted = f"/{where.strip('/')}/"
    return any(wanted in f"/{'/'.join(some)}/" for some in (parts, names))


def _nothing_found(where: str | None, held: Mapping[Any, Any]) -> str:
    if not held:
        return (
            "`state` must hold the state of with_hyperparams, got none. Make the "
            "optimizer with it: adamx.with_hyperparams(adamx.adamw, learning_rate=...)."
        )
    labels = [label or "(root)" for label in group_labels(list(held))]
    return (
        f"`where` must name a part of the state that holds hyperparameters, got "
        f"{where!r}; there are {', '.join(map(repr, labels))}."
        f"{nearest(str(where), labels)}"
    )


def _check_is_held(name: str, states: list[WithHyperparamsState]) -> None:
    if any(name in state.scheduled for state in states):
        raise ValueError(
            f"`{name}` must be held as a number to be set, but follows a schedule, "
            "which would replace it at the next step. Make the optimizer with a number "
            "and set it at each step; with `where`, the groups that have one can be "
            "set."
        )
    if not any(name in state.hyperparams for state in states):
        known = sorted({key for state in states for key in state.hyperparams})
        raise ValueError(
            f"`{name}` must be one of {', '.join(known) or '(none)'}, which the state "
            f"holds.{nearest(name, known)} Other arguments of the factory are static "
            "(whole numbers, flags, None): with_hyperparams must be given a float."
        )


def _check_value(name: str, value: Any) -> None:
    """Raises for what is no number, or none of this name, as it is and as stored."""
    if callable(value):
        raise TypeError(
            f"`{name}` must be a number, got the function {value!r}; a schedule is "
            "given at construction: with_hyperparams(factory, ...)."
        )
    check = _CHECKS.get(name, _check_other)
    if getattr(value, "ndim", 0):  # a batch: by its extremes, where they are known
        if not isinstance(value, jax.core.Tracer) and value.size:
            for extreme in (np.min(value), np.max(value)):
                _check_value(name, extreme)
        return
    check(name, value)
    known = _checks.host_value(name, value, "a number")
    if known is not None:
        with np.errstate(over="ignore"):
            check(name, np.dtype(scalar_dtype()).type(known))


def _check_other(name: str, value: Any) -> None:
    if isinstance(value, jax.Array):
        _checks.check_not_16_bit(name, value)
    _checks.check_finite(name, value)


# ------------------------------------------------------------------------- replacing


def _replaced(
    node: PyTree, path: tuple[Any, ...], chosen: set[Any], values: Mapping[str, Any]
) -> PyTree:
    """`node` with the values set in all chosen states, those inside another too."""

    def new(below: Any, child: Any) -> Any:
        if not _is_held(child):
            return child
        here = path + below
        held = dict(child.hyperparams)
        if here in chosen:
            for name in held.keys() & values.keys():
                held[name] = _in_its_box(name, held[name], values[name])
        inner_state = _replaced(child.inner_state, here, chosen, values)
        return child._replace(hyperparams=held, inner_state=inner_state)

    return jax.tree_util.tree_map_with_path(new, node, is_leaf=_is_held)


def _in_its_box(name: str, old: Any, value: Any) -> Any:
    """The new value in the box of the old one (flax's nnx.Variable), if it has one."""
    if unboxed(old) is old:
        return _placed(name, old, value)
    if jax.tree_util.all_leaves([old]):  # flax 0.10: a Variable is a leaf
        return old.replace(_placed(name, unboxed(old), value))
    return jax.tree.map(lambda x: _in_its_box(name, x, value), old)


def _placed(name: str, old: Any, value: Any) -> Any:
    """A value with the dtype, the shape and the place of the old one."""
    shape, dtype = jnp.shape(old), getattr(old, "dtype", scalar_dtype())
    if jnp.shape(value) not in ((), shape):
        raise ValueError(
            f"`{name}` must be a scalar or have the shape {shape} that the state holds,"
            f" got an array of shape {jnp.shape(value)}."
        )
    if isinstance(old, jax.ShapeDtypeStruct):
        return old
    tracers = isinstance(old, jax.core.Tracer) or isinstance(value, jax.core.Tracer)
    if tracers or not _is_on_host(value):
        return jnp.broadcast_to(jnp.asarray(value).astype(dtype), shape)
    array = np.broadcast_to(np.asarray(value, dtype), shape)
    if isinstance(old, jax.Array) and old.committed:
        return jax.device_put(array, old.sharding)
    return jnp.array(array) if isinstance(old, jax.Array) else np.array(array)


def _is_on_host(value: Any) -> bool:
    return not isinstance(value, jax.Array) or value.is_fully_addressable
