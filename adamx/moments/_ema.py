"""Moving averages and their bias corrections, to the last bits of the dtype.

The usual form, m <- b m + (1 - b) x, rounds b before it subtracts it from one:
float32(0.999) leaves 1 - b wrong by 1.3e-5, and the error settles in the average. Here
w = 1 - b is formed first, in double precision where b is a host number and exactly
(Sterbenz) where b is an array, and the average moves by the difference, from whichever
of its two sides is the nearer:

    m <- m + w (x - m)  if w <= 1/2,    x - b (x - m)  if w > 1/2

(From the far side, a large m would leave its rounding error in a small x: at b = 0 the
average would not be x.) The bias correction 1 - b^t is -expm1(t log b) where b is
constant. Where b may change between steps (a tracer, an array, a schedule) that is
wrong; there the product of the b's that were applied is carried by its complement c,
and by what rounding kept out of c, since c itself would stop at 1 - 3e-8 / w:

    c <- c + w (1 - c)

Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), section 3;
the carried rest: Dekker, "A floating-point technique for extending the available
precision" (1971).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars
from adamx._tree import increment
from adamx._types import scalar_dtype
from adamx.moments._layout import placed_together


class Weight(NamedTuple):
    """The weight 1 - b of what is new, in the form that loses nothing.

    Attributes:
      coefficient: 1 - b if that is at most 1/2, else -b.
      is_major: whether 1 - b exceeds 1/2; a bool, or a traced one.
    """

    coefficient: Any
    is_major: Any


class Average(NamedTuple):
    """The scalars of one moving average at one step.

    Attributes:
      b: weight of the past, a float where constant, else an array.
      weight: of what is new.
      correction: 1 - (product of all b's so far): what the average must be divided by.
      rest: what rounding kept out of `correction`; 0 where b is constant.
    """

    b: Any
    weight: Weight
    correction: Any
    rest: Any

    def next_correction(self, count: jax.Array) -> Any:
        """The correction one step later, if b does not change; Nesterov needs it."""
        return _correction(self.b, increment(count), self.correction, self.rest)[0]


def average_at(
    name: str, b: Any, count: jax.Array, previous: jax.Array, rest: jax.Array
) -> Average:
    """The scalars of the step that makes the count `count` (the first step: 1).

    Args:
      name: the argument's name, for errors.
      b: number, array, tracer or schedule; a schedule is asked for step `count` - 1.
      count: int32 scalar >= 1.
      previous, rest: the correction and its rest as recorded by the step before; 0, 0
        at first.
    """
    before = jnp.maximum(count - jnp.ones((), count.dtype), 0)
    value = _scalars.resolve(name, b, before, allow_16_bit=False)
    if _checks.is_schedule(b):  # a schedule may return a float, another one next time
        value = jnp.asarray(value, scalar_dtype())
    return Average(value, weight_of(value), *_correction(value, count, previous, rest))


def initial_averages(betas: Mapping[str, tuple[str, Any]]) -> dict[str, jax.Array]:
    """What a State records of its averages before the first step.

    Args:
      betas: by moment, the argument's name and its value: {"mu": ("b1", b1)}.

    Returns:
      By field: each b, and for each moment `bias_correction_*` and `correction_rest_*`.
    """
    fields: dict[str, Any] = {}
    for moment, (name, b) in betas.items():
        fields |= {name: b, f"bias_correction_{moment}": 0.0}
        fields |= {f"correction_rest_{moment}": 0.0}
    return _scalars.initial_records(**fields)


def averages(
    state: Any, count: jax.Array, betas: Mapping[str, tuple[str, Any]]
) -> tuple[dict[str, Average], dict[str, Any]]:
    """The scalars of all averages of a State at the step that makes its count `count`.

    Args:
      state: the State of the step before, with the fields of `initial_averages`.
      count: int32 scalar >= 1.
      betas: as in `initial_averages`.

    Returns:
      By moment, its `Average`; and by field, what the next State records.
    """
    found: dict[str, Average] = {}
    fields: dict[str, Any] = {}
    for moment, (name, b) in betas.items():
        previous = getattr(state, f"bias_correction_{moment}")
        rest = getattr(state, f"correction_rest_{moment}")
        average = found[moment] = average_at(name, b, count, previous, rest)
        fields |= {name: average.b, f"bias_correction_{moment}": average.correction}
        fields |= {f"correction_rest_{moment}": average.rest}
    return found, fields


def weight_of(b: Any) -> Weight:
    """The weight 1 - b, for a float or an array b."""
    weight = 1.0 - b
    if isinstance(b, float):
        return Weight(weight, False) if weight <= 0.5 else Weight(-b, True)
    is_major = weight > 0.5
    return Weight(jnp.where(is_major, -b, weight), is_major)


def weight_of_log(log_b: jax.Array) -> Weight:
    """The weight 1 - b from an array log(b), which holds more than b does near 1."""
    weight = -jnp.expm1(log_b)
    is_major = weight > 0.5
    return Weight(jnp.where(is_major, -jnp.exp(log_b), weight), is_major)


def _correction(b: Any, count: jax.Array, previous: Any, rest: Any) -> tuple[Any, Any]:
    """The bias correction and its rest after one more step with b."""
    if isinstance(b, float):
        if b == 0.0:
            return 1.0, 0.0
        steps = count.astype(scalar_dtype())
        return -jnp.expm1(steps * jnp.asarray(math.log(b), steps.dtype)), 0.0
    return _carry(1.0 - b, jnp.asarray(previous, b.dtype), jnp.asarray(rest, b.dtype))


def _carry(weight: Any, high: jax.Array, low: jax.Array) -> tuple[Any, Any]:
    """c + weight (1 - c) for c = high + low, and what rounding kept out of it."""
    step = weight * ((1.0 - high) - low) + low
    total = high + step
    return total, step - (total - high)


def carry_correction(
    high: jax.Array, low: jax.Array, weight: Weight
) -> tuple[jax.Array, jax.Array]:
    """A bias correction and its rest one step later: c + w (1 - c), element by element.

    For corrections that count the steps of their own, such as those of single rows.
    """
    w = weight.coefficient
    return _carry(jnp.where(weight.is_major, 1.0 + w, w), high, low)


def update_average(average: jax.Array, new: jax.Array, weight: Weight) -> jax.Array:
    """The average moved towards `new`: b average + (1 - b) new."""
    change = new - average
    if isinstance(weight.is_major, bool):
        base = new if weight.is_major else average
        return base + scale(change, weight.coefficient)
    # Two loops, one for each base, where LLVM takes the choice out; or one.
    base = jnp.where(weight.is_major, new, average)
    return base + rounded(scale(change, weight.coefficient), average)


def update_square(average: jax.Array, new: jax.Array, weight: Weight) -> jax.Array:
    """`update_average` for squares, which may overflow: an inf stays an inf.

    (inf + w (x - inf) would be NaN one step after one gradient too many.)

    And a square is rounded before the average is taken from it, by a choice in between.
    Without it XLA for CPUs rounds g g - v once, as a fused multiply-add, where LLVM
    finds product and difference side by side, and twice elsewhere: in a loop over
    columns of a few elements it squares before it picks; with an array b it makes two
    loops, and may square before both. A device's piece would not have the bits of the
    whole.
    """
    has_overflown = average == jnp.inf
    left = jnp.where(has_overflown, jnp.zeros_like(new), new)
    moved = update_average(average, left, weight)
    if weight.is_major is False:
        return jnp.where(has_overflown, average, moved)
    # Where the average moves from the new side, an inf there would be inf - inf.
    return jnp.where(has_overflown | (new == jnp.inf), jnp.inf, moved)


def decay(x: jax.Array, weight: Weight) -> jax.Array:
    """b x, with the same care: x - (1 - b) x for a b near 1."""
    if isinstance(weight.is_major, bool) and weight.is_major:
        return -scale(x, weight.coefficient)
    return update_average(x, jnp.zeros_like(x), weight)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x times a real factor, without making the factor complex."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x) * factor, jnp.imag(x) * factor)
    return x * factor


def rounded(x: jax.Array, beside: jax.Array) -> jax.Array:
    """A product x, rounded before it is added: the sum is the same anywhere.

    XLA for CPUs rounds p + a b once, as a fused multiply-add, where LLVM finds product
    and sum side by side, and twice where something has come between them: that depends
    on how it arranges the loop, so that a device's piece of an array would differ from
    the whole in the last place. A choice always stands between them.

    Args:
      x: a product.
      beside: an array whose NaNs make the sum NaN anyway; there, and only there, it is
        returned instead of x. (A constant will not do: LLVM may add it, then choose.
        Nor one array for both terms of a sum: it would add, then choose once. Nor that
        beside which the sum is rounded next, such as the parameter, in `apply_updates`:
        of two choices by one condition, LLVM leaves out the inner.) On a mesh with
        explicit axes one that cannot be added to x is not asked: x as it is.
    """
    pair = placed_together(x, beside)
    if pair is None:
        return x
    if pair[1] is not beside:  # moved, and would be once more to be differentiated
        pair = pair[0], jax.lax.stop_gradient(pair[1])
    x, beside = pair
    if jnp.iscomplexobj(x):  # part by part, as the sum is taken
        parts = zip(_parts(x), _parts(beside), strict=True)
        return jax.lax.complex(*(jnp.where(jnp.isnan(b), b, a) for a, b in parts))
    return jnp.where(jnp.isnan(beside), beside, x)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.real(x), jnp.imag(x)


def product(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`scale`, rounded before it is added to something: see `rounded`."""
    return rounded(scale(x, factor), x)


def unrelated(x: jax.Array) -> jax.Array:
    """An array equal to x, of which XLA does not know that it is equal.

    What several results share and what holds a root or a quotient, XLA writes to memory
    and reads again; computed from such an array, it is fused into each of them. (On CPU
    Schedule-Free takes 1.4 times AdamW's time so, and 4 times with two trees of
    temporaries otherwise.)
    """
    return jax.lax.optimization_barrier(x)


def divide_or_zero(x: jax.Array, denominator: jax.Array) -> jax.Array:
    """x / denominator for a real denominator >= 0; 0 where the denominator is 0.

    A zero denominator means eps = 0 and no gradient so far: the step is nothing, not
    0/0. A NaN denominator stays NaN.
    """
    empty = denominator == 0
    safe = jnp.where(empty, jnp.ones((), denominator.dtype), denominator)
    if jnp.iscomplexobj(x):
        ratio = jax.lax.complex(jnp.real(x) / safe, jnp.imag(x) / safe)
    else:
        ratio = x / safe
    return jnp.where(empty, jnp.zeros((), x.dtype), ratio)
