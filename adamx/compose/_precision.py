"""16-bit parameters that do not forget: `master_weights` and `compensated`.

The parameter is what the model computes with; what it does not hold of the sum of all
updates is kept in the state. The arithmetic is in `_narrow.py`.

Sources: Micikevicius et al., "Mixed Precision Training" (2018), section 3.1. Kahan,
"Further Remarks on Reducing Truncation Errors" (1965); for bfloat16 training Zamirai,
Zhang, Aberger & De Sa, "Revisiting BFloat16 Training" (2020), section 3. Differences:
the sum is of the update and the rest in float32, and the wrapped optimizer sees it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _tree, moments
from adamx._steps import with_step
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    dtype_of,
    scalar_dtype,
)
from adamx.compose import _narrow
from adamx.compose._choice import step_if_of
from adamx.compose._narrow import FULL, REST, SPLIT, Format


class MasterWeightsState(NamedTuple):
    """State of `master_weights`: 4 bytes per 16-bit parameter, or 2 where split.

    Attributes:
      inner_state: that of the wrapped transformation, made for float32 parameters.
      master: tree like the parameters; float32 as they are before rounding, or int16:
        master minus parameter, in units of the last place of float32. Where the
        parameter has 32 bits or more, a single 0, of shape (1, ...).
      uncarried: float32 scalar, number of elements that missed their target in the last
        step, since float32 does not hold target - p: right after the next step.
    """

    inner_state: Any
    master: PyTree
    uncarried: Any

    def readings(self) -> dict[str, Any]:
        """The elements that missed their target."""
        return {"uncarried": self.uncarried}


class CompensatedState(NamedTuple):
    """State of `compensated`: 2 bytes per 16-bit parameter.

    Attributes:
      inner_state: that of the wrapped transformation, made for float32 parameters.
      rest: tree like the parameters, bfloat16, what rounding kept out of them. Where
        the parameter has 32 bits or more, a single 0, of shape (1, ...).
      uncarried: float32 scalar, see `MasterWeightsState`.
    """

    inner_state: Any
    rest: PyTree
    uncarried: Any

    def readings(self) -> dict[str, Any]:
        """The elements that missed their target."""
        return {"uncarried": self.uncarried}


def outermost_in(state: Any) -> str | None:
    """The name of a wrapper that stands outermost, where `state` holds its state."""
    names = {MasterWeightsState: "master_weights", CompensatedState: "compensated"}
    is_one = lambda x: type(x) in names  # noqa: E731
    for node in jax.tree.leaves(state, is_leaf=is_one):
        if is_one(node):
            return names[type(node)]
    return None


def _is_narrow(p: Any) -> bool:
    return dtype_of(p).itemsize < 4


def _stored_shape(p: Any) -> tuple[int, ...]:
    """The parameter's, or of one number: checkpoints refuse arrays of size 0."""
    return jnp.shape(p) if _is_narrow(p) else (1,) * jnp.ndim(p)


def _check_params(params: PyTree, kept: Format) -> None:
    _tree.check_inexact(params, "parameter")
    allowed = [jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)]
    for name, p in _tree.leaves_by_path(params).items():
        dtype = dtype_of(p)
        if not _is_narrow(p) or dtype in allowed[: 1 if kept is SPLIT else 2]:
            continue
        if kept is SPLIT and dtype == jnp.float16:
            raise TypeError(
                f"parameter at '{name}' must be bfloat16 where `storage` is 'split', "
                "got float16: its bits are not the upper half of a float32. Use "
                "storage='float32', adamx.compensated, or bfloat16 parameters."
            )
        raise TypeError(
            f"parameter at '{name}' must be bfloat16, float16 or of at least 32 bits, "
            f"got {dtype}; keep the parameters in bfloat16 and convert them where the "
            "model computes."
        )


def _check_stored(updates: PyTree, params: PyTree, stored: PyTree, kept: Any) -> None:
    """Raises unless `stored` was made for parameters of these shapes and dtypes."""
    _tree.check_inexact(updates, "gradient")
    _tree.check_like_params(updates, params)
    try:
        held = _tree.leaves_below(updates, stored)
    except (ValueError, TypeError, KeyError):
        _tree.check_same_structure(updates, stored, "gradient", "the optimizer state")
        raise
    flat = jax.tree_util.tree_flatten_with_path(updates)[0]
    below = _tree.leaves_below(updates, params)
    for (path, _), p, s in zip(flat, below, held, strict=True):
        if (jnp.shape(s), dtype_of(s)) != (_stored_shape(p), kept.dtype):
            raise ValueError(
                f"the state at '{_tree.path_name(path)}' must hold {kept.dtype} of "
                f"shape {_stored_shape(p)} for a parameter of dtype {dtype_of(p)}, got "
                f"{dtype_of(s)} of shape {jnp.shape(s)}. Has the parameter changed its "
                "dtype? `p + u` makes it float32 (Equinox's apply_updates does): use "
                "adamx.apply_updates; else make a new state (tx.init)."
            )


def _wrapped(
    name: str, inner: GradientTransformation, kind: Any, kept: Format
) -> GradientTransformationExtraArgs:
    _checks.check_transformation("inner", inner)
    inner, inner_step = optax.with_extra_args_support(inner), step_if_of(inner)

    def start(p: Any) -> jax.Array:
        return (
            kept.start(p) if _is_narrow(p) else jnp.zeros(_stored_shape(p), kept.dtype)
        )

    def widened(p: Any) -> Any:
        if isinstance(p, jax.ShapeDtypeStruct) and _is_narrow(p):
            return jax.ShapeDtypeStruct(p.shape, jnp.float32)
        return p if not _is_narrow(p) else jnp.asarray(p).astype(jnp.float32)

    def init(params: PyTree) -> Any:
        _check_params(params, kept)
        held = inner.init(jax.tree.map(widened, params))
        return kind(held, jax.tree.map(start, params), jnp.zeros((), scalar_dtype()))

    def opened(updates: PyTree, state: Any, params: PyTree | None) -> Any:
        """Gradients and parameters as the wrapped optimizer sees them."""
        _checks.check_state(state, kind, name)
        _checks.check_has_params(params, "the update is what they lack of their target")
        _check_stored(updates, params, state[1], kept)

        def load(g: Any, p: Any, s: Any) -> tuple[Any, Any]:
            p = jnp.asarray(p)
            if not _is_narrow(p):
                return g, p
            return _tree.wide(g), kept.load(p, s)

        return _tree.map_leaves(load, 2, updates, params, state[1])

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        gradients, master = opened(updates, state, params)
        held, stored, known = state
        moves, held = inner.update(gradients, held, master, **extra_args)
        counts = [jnp.zeros((), scalar_dtype())]

        def write(u: Any, p: Any, m: Any, s: Any) -> tuple[Any, Any]:
            nonlocal known
            p = jnp.asarray(p)
            if not _is_narrow(p):
                return u, s
            wide = jnp.asarray(u).astype(jnp.float32)
            u, s, missed, known = _narrow.write_leaf(p, m, wide, known, kept)
            counts.append(missed.astype(scalar_dtype()))
            return u, s

        moves, stored = _tree.map_leaves(write, 2, moves, params, master, stored)
        return moves, kind(held, stored, jnp.sum(jnp.stack(counts)))

    def step(
        grads: PyTree, state: Any, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        held, stored, known = state
        _, master = opened(grads, state, params)
        wide = lambda: opened(grads, state, params)[0]  # noqa: E731
        master, held = inner_step(None, wide, held, master, **extra_args)

        def write(p: Any, new: Any, s: Any) -> tuple[Any, Any]:
            nonlocal known
            p = jnp.asarray(p)
            if not _is_narrow(p):
                return new, s
            if kept is not FULL:  # there the new master is what is stored
                new, known = _narrow.settle_leaf(new, known)
            p = moments.placed_like(p, new)
            target = _narrow.round_leaf(new, p.dtype)
            s, target = kept.store(new, target), _narrow.signed_leaf(p, target)
            if kept is not FULL:
                target, s = _narrow.behind(known, target), _narrow.behind(known, s)
            return target.astype(p.dtype), s

        params, stored = _tree.map_leaves(write, 2, params, master, stored)
        # Nothing is emitted: no target is missed.
        return params, kind(held, stored, jnp.zeros((), scalar_dtype()))

    return with_step(init, update, step)


def master_weights(
    inner: GradientTransformation, *, storage: Any = "float32"
) -> GradientTransformationExtraArgs:
    """Keeps a float32 copy of 16-bit parameters in the state, and trains that.

        master <- master + update;   p <- master rounded to the dtype of p

    A bfloat16 parameter of 1 stays where it is under updates of up to 0.0039 upwards
    and 0.00195 downwards (see `apply_updates`); the copy moves by 6e-8. The model
    computes with 16 bits as before. Leaves of 32 bits or more are their own master, and
    pass.

    `inner` sees float32 parameters and gradients: a state whose dtypes follow the
    parameters is float32 (`adamw(..., mu_dtype=jnp.bfloat16)` keeps mu at 2 bytes).

    This stands outermost: its update is `target - p`, in float32, and whatever is done
    to it (clipping, a mask, a second learning rate) leads past the target. Wrappers
    that choose between two updates (`optax.apply_if_finite`) go inside. It is to be
    added by `adamx.apply_updates` or `optax.apply_updates`; then the parameters are
    the rounded master bit for bit, numbers below 1.2e-38 being zero and zeros positive,
    but for a -0 that stays 0: what does not move is not touched.
    Equinox's `apply_updates` would turn them into float32: there, use
    `adamx.apply_updates`, which takes the same trees.

    Where |p| is more than 2^16 times what it should become, float32 may not hold the
    difference: p is then wrong by a float32 ulp of what it was, counted (`read` has
    `uncarried`), and right after the next step. Through `adamx.fused`, which writes the
    parameters itself, no target is missed. Parameters changed by other hands:
    "float32" puts them back to the master at the next step, with "split" the master
    moves with them. Behind an overflow, a parameter at infinity is NaN from the next
    step on. Inside `jax.shard_map` each device counts its own: sum `uncarried` over the
    devices (`jax.lax.psum`) before the state leaves.

    Args:
      inner: an optimizer, learning rate and descent's sign included.
      storage: "float32", 4 bytes per parameter. "split", 2 bytes, bfloat16 parameters
        only: the 16 bits that float32 has more. They are the master of "float32" to
        the last bit, but where it lies half way between two parameters (once in 2^17
        steps of an element) and is kept one float32 ulp lower in size.

    Returns:
      The optimizer. State: `MasterWeightsState`. Extra arguments are handed on.

    Raises:
      TypeError: `inner` is not a transformation; parameters that are no floats, of 8
        bits, or of float16 where split; another state.
      ValueError: an unknown `storage`, `update` without parameters, parameters of
        another dtype or shape than the state was made for.

    >>> import adamx, jax.numpy as jnp
    >>> tx = master_weights(adamx.sgd(0.001))
    >>> params = jnp.ones(1, jnp.bfloat16)
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.ones_like(params), state, params)
    ...     params = adamx.apply_updates(params, updates)
    >>> round(float(state.master[0]), 6), float(params[0])
    (0.997, 0.99609375)

    Source: Micikevicius et al. (2018), section 3.1.
    """
    if storage not in ("float32", "split"):
        raise ValueError(
            "`storage` must be 'float32' or 'split', got "
            f"{_checks.describe_value(storage)}; a master of 16 bits alone would lose "
            "the same small updates as the parameters. 'split' needs 2 bytes per "
            "parameter for all of float32."
        )
    kept = SPLIT if storage == "split" else FULL
    return _wrapped("master_weights", inner, MasterWeightsState, kept)


def compensated(inner: GradientTransformation) -> GradientTransformationExtraArgs:
    """Kahan summation: what rounding keeps out of 16-bit parameters is added later.

        new = p + rest + update;   p <- new rounded;   rest <- new - p, in bfloat16

    2 bytes per parameter. p and rest together have 16 bits of `new` (bfloat16; 19 with
    float16): updates below 8e-6 |p| may be lost (1e-6 |p|), where a bfloat16 p alone
    loses those below 0.002 to 0.004 |p|; those a little above may be a third off, all
    to the same side. `master_weights(inner, storage="split")` loses none above 6e-8
    |p|, for the same bytes; this one also takes float16, and the rest is a number that
    can be read, scaled and sharded as any.

    For what `inner` sees, and how the update is to be added: see `master_weights`. If
    parameters are changed by other hands, the rest stays.

    Args:
      inner: see `master_weights`.

    Returns:
      The optimizer. State: `CompensatedState`. Extra arguments are handed on.

    Raises:
      TypeError, ValueError: see `master_weights`.

    >>> import adamx, jax.numpy as jnp
    >>> tx = compensated(adamx.sgd(0.001))
    >>> params = jnp.ones(1, jnp.bfloat16)
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.ones_like(params), state, params)
    ...     params = adamx.apply_updates(params, updates)
    >>> float(params[0]), round(float(state.rest[0]), 5)
    (0.99609375, 0.00091)

    Source: Kahan (1965); Zamirai et al. (2020), section 3.
    """
    return _wrapped("compensated", inner, CompensatedState, REST)
