"""Storage of moments: which dtype holds them, and the way in and out of it.

A leaf rule sees arrays in the dtype of its arithmetic only (float32, float64 or
complex); what the state holds may be narrower. Both meet in `apply_rule`, the one
place where a stored moment is read, handed to a leaf rule and written back.

Defaults: a first moment has the parameter's dtype, as in Optax. A second moment is
float32 where the parameter has 16 bits: at b2 = 0.999 a bfloat16 average stops moving
once it is within a factor of two of its goal, since each step is below half an ulp.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._types import (
    PyTree,
    at_least_single,
    dtype_of,
    promote,
    real_dtype,
    update_dtype,
)
from adamx.moments import _rounding
from adamx.moments._codec import (
    Codec,
    Encoded,
    check_scales,
    codes_of,
    decode,
    encode,
    encoded,
    find_scales,
    is_code,
)
from adamx.moments._ema import unrelated

Rule = Callable[..., tuple[Any, ...]]


def zeros(params: PyTree, dtype: Any = None, *, is_wide: bool = False) -> PyTree:
    """A first moment: zeros like the parameters, in `dtype` or the parameter's own.

    `dtype` may be a `Codec`. With `is_wide`, a leaf's own dtype or at least float32:
    for means too slow for 16 bits.
    """
    if isinstance(dtype, Codec):
        return encoded(params, dtype, is_signed=True)
    _tree.check_inexact(params, "parameter")

    def zero(p: Any) -> jax.Array:
        own = at_least_single(dtype_of(p)) if is_wide else dtype_of(p)
        return jnp.zeros_like(p, dtype=dtype or own)

    return jax.tree.map(zero, params)


def zeros_squared(
    params: PyTree, dtype: Any = None, fill: Any = 0.0, *, is_signed: bool = False
) -> PyTree:
    """A second moment: real, in `dtype` or at least float32, filled with `fill`.

    `dtype` may be a `Codec`; `is_signed` then allows for negative elements.
    """
    if isinstance(dtype, Codec):
        return encoded(params, dtype, is_signed, fill)
    _tree.check_inexact(params, "parameter")

    def full(p: Any) -> jax.Array:
        own = real_dtype(at_least_single(dtype_of(p)))
        return jnp.full_like(p, fill, dtype=dtype or own)

    return jax.tree.map(full, params)


def zeros_reduced(
    params: PyTree, axes: Sequence[tuple[int, ...]], dtype: Any = None
) -> PyTree:
    """A second moment with length 1 along some axes of each leaf, in the given order.

    Like `zeros_squared` real, in `dtype` or at least float32.
    """
    rows = iter(axes)

    def leaf(p: Any) -> jax.Array:
        shared = next(rows)
        shape = [1 if i in shared else n for i, n in enumerate(jnp.shape(p))]
        return jnp.zeros(shape, dtype or real_dtype(at_least_single(dtype_of(p))))

    return jax.tree.map(leaf, params)


def check_moment_dtype(name: str, dtype: Any) -> Any:
    """A floating or complex dtype, a codec, or None."""
    if isinstance(dtype, Codec):
        return dtype
    if callable(dtype) and getattr(dtype, "__module__", None) == "adamx.codecs":
        raise TypeError(
            f"`{name}` must be a dtype, a codec or None, got the function "
            f"{dtype.__name__}; call it: adamx.codecs.{dtype.__name__}()."
        )
    try:
        return _checks.check_dtype(name, dtype)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error} For fewer bits pass a codec: adamx.codecs.int8()."
        ) from None


def check_second_moment_dtype(
    name: str, dtype: Any, b2: Any, b_name: str = "b2"
) -> Any:
    """A real dtype, codec or None; warns where averages with 1 - b2 would stall."""
    dtype = check_moment_dtype(name, dtype)
    if dtype is None or isinstance(dtype, Codec):
        return dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` must be a real floating dtype or None, got {dtype}; a second "
            "moment is an average of |g|^2, which is real: pass jnp.float32."
        )
    limits = jnp.finfo(dtype)
    if float(limits.max) < 1e6:
        warnings.warn(
            f"`{name}`={dtype} overflows for |g| above {float(limits.max) ** 0.5:.0f}, "
            "and the element's update is 0 from then on. Use float32 (the default).",
            UserWarning,
            stacklevel=3,
        )
    _warn_of_stalling(name, dtype, b_name, b2)
    return dtype


def check_average_dtype(name: str, dtype: Any, b_name: str, b: Any) -> Any:
    """A dtype, codec or None; warns where a mean with 1 - b would stall in it."""
    dtype = check_moment_dtype(name, dtype)
    if dtype is not None and not isinstance(dtype, Codec):
        _warn_of_stalling(name, dtype, b_name, b)
    return dtype


def _warn_of_stalling(name: str, dtype: Any, b_name: str, b: Any) -> None:
    if _checks.is_constant(b) and 1 - float(b) < 2 * float(jnp.finfo(dtype).eps):
        warnings.warn(
            f"`{name}`={dtype} cannot follow an average with {b_name}={float(b):g}: a "
            f"step of {1 - float(b):.1g} of the distance is lost in rounding, and the "
            "average stops short of its goal. Use float32 (the default).",
            UserWarning,
            stacklevel=4,
        )


def check_gradient(updates: PyTree, moment: PyTree) -> None:
    """Raises unless the gradient has floats in the structure and shapes of a moment."""
    _tree.check_inexact(updates, "gradient")
    if isinstance(moment, Encoded):
        check_scales(moment)
        moment = moment.codes
    _tree.check_same_structure(updates, moment, "gradient", "the optimizer state")


def check_holds_complex(updates: PyTree, moment: PyTree, name: str) -> None:
    """Raises where a real `moment` would lose a complex gradient's imaginary part."""
    stored = jax.tree.leaves(codes_of(moment))
    flat = jax.tree_util.tree_flatten_with_path(updates)[0]
    for (path, g), m in zip(flat, stored, strict=True):
        if jnp.iscomplexobj(g) and not jnp.iscomplexobj(m):
            raise ValueError(
                f"`{name}` must be complex for the complex gradient at "
                f"'{_tree.path_name(path)}' ({dtype_of(g)}), got {m.dtype}; use None "
                "(the parameter's dtype) or a complex dtype."
            )


def _check_reduced(
    updates: PyTree, moment: PyTree, name: str, axes: Sequence[Any] | None
) -> None:
    """Raises where a stored moment is not shared along the given axes."""
    flat = jax.tree_util.tree_flatten_with_path(updates)[0]
    held = _tree.leaves_below(updates, moment)
    axes = axes or [None] * len(flat)
    for (path, g), m, shared in zip(flat, held, axes, strict=True):
        want = tuple(1 if i in (shared or ()) else n for i, n in enumerate(g.shape))
        if shared is not None and m.shape != want:
            raise ValueError(
                f"`{name}` of the state at '{_tree.path_name(path)}' must have shape "
                f"{want}, got {m.shape}: it was made with other arguments (they decide "
                "what shares one number). Use those, or a new state (tx.init)."
            )


def apply_rule(
    rule: Rule,
    updates: PyTree,
    params: PyTree | None,
    signed: Mapping[str, PyTree] = MappingProxyType({}),
    unsigned: Mapping[str, PyTree] = MappingProxyType({}),
    *,
    reduced: Mapping[str, PyTree] = MappingProxyType({}),
    each: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    emits: Sequence[str] = (),
    unchanged: Sequence[str] = (),
    reads_params: bool = False,
    dtype_argument: str | None = None,
    **scalars: Any,
) -> tuple[PyTree, dict[str, PyTree]]:
    """Runs a leaf rule over the stored moments: read, compute wide, write back.

    Args:
      rule: `rule(g, *moments, **each, **scalars) -> (update, *moments, *emitted)` on
        arrays of one dtype, at least float32; moments in the order signed, unsigned,
        reduced.
      updates: the incoming gradient.
      params: the parameters, which widen the result; None: unknown.
      signed: moments that have the gradient's sign (mu, trace), by field of the State.
      unsigned: real moments that are never negative (nu, nu_max).
      reduced: real moments that are never negative and share one number among several
        elements: of the parameter's rank, each dimension its own or smaller.
        `axes` of `each`, where given, says along which axes it has length 1.
      each: by name, one static value (or None) for each leaf of `updates`.
      emits: names of what else the rule returns, an array of any shape or None.
      unchanged: moments that the rule only reads, and returns as they were given to it:
        they stay as they are stored.
      reads_params: hands the rule the parameter, as `p`, in the arithmetic's dtype.
      dtype_argument: the argument that decides the dtype of `signed`, for errors;
        `mu_dtype` for mu unless given.
      **scalars: floats or 0-d arrays (or a `Weight` of them), handed over in the leaf's
        real dtype, never in 16 bits; None and flags stay what they are.

    Returns:
      The updates (see `update_dtype`), and by name the moments, as they are stored, and
      what was emitted, a tree of its leaves.
    """
    for name, moment in signed.items():
        check_gradient(updates, moment)
        check_holds_complex(updates, moment, dtype_argument or f"{name}_dtype")
    for moment in unsigned.values():
        check_gradient(updates, moment)
    for name, moment in reduced.items():
        _check_reduced(updates, moment, name, each.get("axes"))
    if params is not None:
        _tree.check_like_params(updates, params)
    slots = [_Slot(n, i, m) for i, (n, m) in enumerate(signed.items())]
    others = {**unsigned, **reduced}
    slots += [_Slot(n, len(slots) + i, m) for i, (n, m) in enumerate(others.items())]
    order = list(each)
    leaves = jax.tree.leaves(updates)
    rows = iter(zip(*each.values(), strict=True) if each else [()] * len(leaves))
    index = iter(range(len(leaves)))

    def leaf(g: Any, p: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        g = jnp.asarray(g)
        held = _deal(arrays, slots)
        dtype = _arithmetic_dtype(g, held)
        real = real_dtype(dtype)
        values = jax.tree.map(lambda v: _as_scalar(v, real), scalars)
        values |= dict(zip(order, next(rows), strict=True))
        if reads_params:
            values["p"] = _load(jnp.asarray(p), dtype)
        wide = g.astype(dtype)

        def run() -> tuple[jax.Array, ...]:
            pairs = enumerate(zip(slots, held, strict=True))
            inputs = [
                slot.load(own, dtype if i < len(signed) else real)
                for i, (slot, own) in pairs
            ]
            return rule(wide, *inputs, **values)

        update, *new = run()
        chex.assert_equal_shape([update, g])
        emitted = new[len(slots) :]
        stored: list[jax.Array] = []
        number = next(index)
        for i, (slot, own) in enumerate(zip(slots, held, strict=True)):
            chex.assert_equal_shape([new[i], own[0]])
            if slot.name in unchanged:
                stored += own
            elif slot.is_encoded(own):
                # Computed anew for each result, for XLA to fuse: see `_Slot.load`.
                again = functools.partial(lambda i: run()[1 + i], i)
                stored += slot.store(own, again, number * len(slots) + i)
            else:
                stored += [new[i].astype(own[0].dtype), *own[1:]]
        return (update.astype(update_dtype(g, p)), *stored, *emitted)

    trees = [tree for slot in slots for tree in slot.trees]
    updates, *new = _tree.map_leaves(
        leaf, 1 + len(trees) + len(emits), updates, params, *trees
    )
    moments = {
        slot.name: slot.state(own)
        for slot, own in zip(slots, _deal(new, slots), strict=True)
    }
    return updates, moments | dict(zip(emits, new[len(trees) :], strict=True))


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One stored moment, encoded or not, as so many trees of one array for each leaf.

    Attributes:
      name: its field in the State.
      index: its place in the rule's arguments.
      moment: a tree, or an `Encoded`.
    """

    name: str
    index: int
    moment: PyTree

    @property
    def trees(self) -> tuple[PyTree, ...]:
        """The moment or its codes; then its scales."""
        if isinstance(self.moment, Encoded):
            return (self.moment.codes, *self.moment.scales)
        return (self.moment,)

    def is_encoded(self, own: Sequence[jax.Array]) -> bool:
        return isinstance(self.moment, Encoded) and is_code(own[0].dtype)

    def load(self, own: Sequence[jax.Array], dtype: Any) -> jax.Array:
        """The moment's leaf, in the dtype of the arithmetic.

        What is decoded twice is two computations to XLA, since the scales are not known
        to be the same: it would write what they have in common to memory otherwise, a
        float32 copy of the whole moment.
        """
        if not self.is_encoded(own):
            return _load(own[0], dtype)
        return decode(own[0], tuple(unrelated(s) for s in own[1:]), dtype)

    def store(
        self, own: Sequence[jax.Array], new: Callable[[], jax.Array], stream: int
    ) -> list[jax.Array]:
        """The codes and the scales of the new moment."""
        codes, *scales = own
        found = find_scales(new, tuple(scales))
        bits = None
        if self.moment.key is not None:
            step = self.moment.step
            bits = _rounding.random_bits(self.moment.key, step, stream, codes.shape)
        return [encode(new(), found, codes.dtype, bits), *found]

    def state(self, trees: Sequence[PyTree]) -> PyTree:
        """The new moment for the State, of its trees."""
        if not isinstance(self.moment, Encoded):
            return trees[0]
        step = self.moment.step
        return self.moment._replace(
            codes=trees[0],
            scales=tuple(trees[1:]),
            step=None if step is None else step + jnp.uint32(1),
        )


def _deal(arrays: Sequence[Any], slots: Sequence[_Slot]) -> list[list[Any]]:
    """The arrays (or trees) of each slot."""
    rest = iter(arrays)
    return [[next(rest) for _ in slot.trees] for slot in slots]


def _arithmetic_dtype(g: jax.Array, held: Sequence[Sequence[jax.Array]]) -> Any:
    """At least float32; float64 where the gradient or a moment is."""
    dtype = at_least_single(g.dtype)
    for own in held:
        is_float = jnp.issubdtype(own[0].dtype, jnp.inexact)
        if is_float and real_dtype(own[0].dtype) == jnp.float64:
            dtype = promote(dtype, jnp.float64)
    return dtype


def _as_scalar(value: Any, dtype: Any) -> Any:
    if isinstance(value, bool) or dtype_of(value) == jnp.bool_:
        return value
    return jnp.asarray(value, dtype)


def _load(moment: jax.Array, dtype: Any) -> jax.Array:
    if jnp.iscomplexobj(moment) and not jnp.issubdtype(dtype, jnp.complexfloating):
        moment = jnp.real(moment)
    return moment.astype(dtype)
