"""Steps, shares of a phase and the ways between two rates; checks of the arguments.

float32 has 24 bits, a step has 31: the quotient step / total_steps, or a difference
taken after the cast, would be wrong by whole steps late in a long run. So steps are
subtracted and divided with remainder as integers, and only shares of a phase become
floats, each from its own integer:

    done = n / length        left = (length - n) / length

(1 - done would lose the digits of the end). A rate between two others is formed from
the nearer one, so that both ends are returned exactly.
"""

import itertools
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks
from adamx._types import Schedule, scalar_dtype

Num = jax.typing.ArrayLike
"""A rate or a factor: a number or a 0-d array, a traced one too."""

Span = int | float
"""A number of steps as an int, or a share of total_steps as a float in [0, 1)."""

LAST_STEP = _checks.LAST_STEP

_HALF_PI = 0.5 * math.pi

# -------------------------------------------------------------------------- steps


def wide(value: Any) -> jax.Array:
    """float32 (float64 under x64), by a single cast from double where that is given."""
    return jnp.asarray(value, dtype=scalar_dtype())


def as_step(step: Any) -> jax.Array:
    """int32 in [0, 2^31 - 1] for integers of any width; floats: wide, >= 0."""
    if isinstance(step, numbers.Integral):
        step = np.int32(min(max(int(step), 0), LAST_STEP))
    on: Any = jnp if isinstance(step, jax.Array) else np  # jnp would first cut int64
    step = on.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        return jnp.maximum(wide(step), 0)
    step = on.maximum(step, 0)
    if jnp.iinfo(step.dtype).max > LAST_STEP:
        step = on.minimum(step, LAST_STEP)
    return jnp.asarray(step, jnp.int32)


def count_passed(edges: list[int], step: jax.Array) -> jax.Array:
    """How many of the rising `edges` are at or before the step."""
    return jnp.searchsorted(jnp.asarray(edges, step.dtype), step, side="right")


def power(base: Any, exponent: jax.Array) -> jax.Array:
    """base^exponent for a base in (0, 1].

    float32(0.999)^1000 is wrong by 1e-5, so the logarithm is taken before the cast.
    """
    log = math.log(base) if _checks.is_constant(base) else jnp.log(wide(base))
    return jnp.exp(wide(exponent) * wide(log))


# ------------------------------------------------------------------------- phases


def shares(n: Any, length: Any, beyond: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """(done, left) at n of length + beyond steps; beyond is what int32 cannot hold."""
    total = wide(length) + wide(beyond)
    return wide(n) / total, (wide(length - n) + wide(beyond)) / total


def mix(a: jax.Array, b: jax.Array, done: jax.Array, left: jax.Array) -> jax.Array:
    """a * left + b * done, exact at both ends and wherever a == b."""
    return jnp.where(done <= 0.5, a + (b - a) * done, b + (a - b) * left)


def _linear(done: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    return done, left


def _cosine(done: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sin(_HALF_PI * done) ** 2, jnp.sin(_HALF_PI * left) ** 2


def _sqrt(done: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sqrt(done), left / (1 + jnp.sqrt(done))


# Shares (done, left) of a phase -> weights of its last and of its first rate. Each is
# accurate relative to itself, and exactly 0 at its own end of the phase.
SHAPES: dict[str, Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sqrt": _sqrt,
}


def phases(points: list[tuple[int, Num]], shapes: list[str]) -> Schedule:
    """The schedule through given points, the rate of the last one from there on.

    Args:
      points: (step, rate), the steps not falling; at least two of them differ. Of
        points at one step, the first ends the way before, the last begins the way on.
      shapes: a key of `SHAPES` for each way from one point to the next.

    Returns:
      The schedule.
    """
    ways = [
        (*way, shape)
        for way, shape in zip(itertools.pairwise(points), shapes, strict=True)
        if way[0][0] < way[1][0]
    ]

    def along(
        step: jax.Array, first: tuple[int, Num], last: tuple[int, Num], shape: str
    ) -> jax.Array:
        length = last[0] - first[0]
        n = jnp.clip(step - first[0], 0, length)
        weights = SHAPES[shape](*shares(n, length))
        return mix(wide(first[1]), wide(last[1]), *weights)

    def schedule(step: Any) -> jax.Array:
        step = as_step(step)
        rate = along(step, *ways[0])
        for first, last, shape in ways[1:]:
            phase = along(step, first, last, shape)
            rate = jnp.where(step >= first[0], phase, rate)
        return rate

    return schedule


# ------------------------------------------------------------------------- checks


def check_rates(order: str = "", **rates: Any) -> None:
    """Finite numbers >= 0; with an `order` such as "low <= high", in that order."""
    remedy = "It is in parameter units per step: use e.g. 1e-3."
    for name, value in rates.items():
        _checks.check_non_negative(name, value, remedy, allow_schedule=False)
    values = list(rates.values())
    if order and all(map(_checks.is_constant, values)) and values[0] > values[1]:
        got = ", ".join(f"{name}={value!r}" for name, value in rates.items())
        smaller = next(iter(rates))
        raise ValueError(
            f"`{order}` must hold, got {got}. Are the two swapped? Pass the smaller "
            f"rate as `{smaller}`."
        )


def check_factor(name: str, value: Any) -> None:
    """A number in (0, 1]."""
    remedy = "It multiplies the rate again and again: use e.g. 0.5, or 1 for no decay."
    _checks.check_positive(name, value, remedy)
    _checks.check_in_interval(name, value, 0, 1, remedy)


def check_steps(name: str, value: Any, *, minimum: int = 1, remedy: str = "") -> int:
    """A whole number of steps that int32 can hold, known on the host; as an int."""
    return _checks.check_steps(
        name,
        value,
        minimum=minimum,
        remedy=remedy
        or "Pass a whole number as an int, e.g. 1000; are two arguments swapped?",
    )


def as_steps(
    name: str, value: Any, total_steps: int, *, is_length: bool = False
) -> int:
    """The steps that a `Span` stands for.

    Args:
      name: the argument's name, for errors.
      value: a number of steps >= 0, or a float in [0, 1), a share of total_steps.
      total_steps: what a share is a share of, >= 1.
      is_length: whether the steps may be as many as total_steps, being a length and no
        place; a share is then rounded so that shares which add up to 1 fit, such as
        0.5 and 0.5 of 101 steps.

    Returns:
      The number of steps.

    Raises:
      ValueError: a fraction above 1, or 1.0: one step, or all of them?
    """
    is_float = isinstance(value, (float, np.floating))
    if is_float and 0 <= value < 1:
        half = 0.499999 if is_length else 0.5
        steps = math.floor(float(value) * total_steps + half)
    elif is_float and (value == 1 or value % 1 != 0):
        raise ValueError(
            f"`{name}` must be a number of steps or a float in [0, 1), the share of "
            f"total_steps, got {value!r}. Write steps as an int, e.g. 100, and a share "
            "as e.g. 0.1."
        )
    else:
        steps = check_steps(name, value, minimum=0)
    if not is_length and steps >= total_steps:
        raise ValueError(
            f"`{name}` must be < total_steps ({total_steps}), got {value!r} "
            f"({steps} steps). Both count from step 0: lower `{name}`, or raise "
            "`total_steps`."
        )
    return steps
