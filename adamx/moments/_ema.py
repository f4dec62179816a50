"""Moving averages and their bias corrections, to the last bits of the dtype.

The usual form, m <- b m + (1 - b) x, rounds b before it subtracts it from one:
float32(0.999) leaves 1 - b wrong by 1.3e-5, and the error settles in the average. Here
the weight w = 1 - b is formed first, in double precision where b is a host number and
exactly (Sterbenz) where b is an array, and the average moves by the difference:

    m <- m + w (x - m)          correction_t = 1 - b^t = -expm1(t log b)

Where b may change between steps (a tracer, an array, a schedule) the closed form is
wrong; there the product of the b's that were applied is carried by its complement:

    correction_t = correction_{t-1} + w_t (1 - correction_{t-1})

Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), section 3.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks
from adamx._tree import increment
from adamx._types import scalar_dtype


class Average(NamedTuple):
    """The scalars of one moving average at one step.

    Attributes:
      b: weight of the past, a float where constant, else an array.
      weight: 1 - b.
      correction: 1 - (product of all b's so far): what the average must be divided by.
    """

    b: Any
    weight: Any
    correction: Any

    def next_correction(self, count: jax.Array) -> Any:
        """The correction one step later, if b does not change; Nesterov needs it."""
        return _correction(self.b, increment(count), self.correction)


def average_at(
    name: str, b: Any, count: jax.Array, previous_correction: jax.Array
) -> Average:
    """The scalars of the step that makes the count `count` (the first step: 1).

    Args:
      name: the argument's name, for errors.
      b: number, array, tracer or schedule; a schedule is asked for step `count` - 1.
      count: int32 scalar >= 1.
      previous_correction: the correction recorded by the step before, 0 at first.
    """
    before = jnp.maximum(count - jnp.ones((), count.dtype), 0)
    b = _checks.resolve(name, b, before, allow_16_bit=False)
    return Average(b, complement(b), _correction(b, count, previous_correction))


def complement(b: Any) -> Any:
    """1 - b: in double precision for a float, exact for an array in [0.5, 1]."""
    return 1.0 - b if isinstance(b, float) else jnp.ones((), b.dtype) - b


def _correction(b: Any, count: jax.Array, previous: Any) -> Any:
    if isinstance(b, float):
        if b == 0.0:
            return 1.0
        steps = count.astype(scalar_dtype())
        return -jnp.expm1(steps * jnp.asarray(math.log(b), steps.dtype))
    previous = jnp.asarray(previous, b.dtype)
    return previous + complement(b) * (jnp.ones((), b.dtype) - previous)


def update_average(average: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
    """average + weight (new - average); `weight` is a real scalar."""
    return average + scale(new - average, weight)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x times a real factor, without making the factor complex."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x) * factor, jnp.imag(x) * factor)
    return x * factor


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
