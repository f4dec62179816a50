"""A constant rate, a straight line, and decays by a factor."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks
from adamx._types import Schedule
from adamx.schedules import _steps
from adamx.schedules._steps import Num, Span


def constant(value: Num) -> Schedule:
    """The same rate at every step.

        rate = value

    Args:
      value: the rate, in parameter units per step, >= 0; a number or a 0-d array, a
        traced one too.

    Returns:
      The schedule, step -> rate; the rate has the shape of the step.

    Raises:
      ValueError: a rate below 0 or not finite.
      TypeError: not a number.

    >>> float(constant(0.5)(1000))
    0.5
    """
    _steps.check_rates(value=value)

    def schedule(step: Any) -> jax.Array:
        return jnp.broadcast_to(_steps.wide(value), _steps.as_step(step).shape)

    return schedule


def linear(start: Num, end: Num, total_steps: int, *, begin: Span = 0) -> Schedule:
    """A straight line from `start` at step `begin` to `end` at step `total_steps`.

        rate = start + (end - start) * (step - begin) / (total_steps - begin)

    It may rise or fall; before `begin` the rate is `start`.

    Args:
      start: rate up to step `begin`, in parameter units per step, >= 0; a number or a
        0-d array, a traced one too.
      end: rate from step `total_steps` on; like `start`.
      total_steps: the step, in [1, 2^31 - 1], at which the line ends. It counts from
        step 0; `optax.linear_schedule` counts its steps from `begin`.
      begin: the step at which the line begins, < total_steps; an int is a number of
        steps, a float in [0, 1) a share of total_steps, rounded to a step.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a rate below 0 or not finite; total_steps below 1; a `begin` that is
        not before it.
      TypeError: not a number; a traced number of steps.

    >>> float(linear(1.0, 0.0, 100)(25))
    0.75
    """
    _steps.check_rates(start=start, end=end)
    total_steps = _steps.check_steps("total_steps", total_steps)
    first = _steps.as_steps("begin", begin, total_steps)
    return _steps.phases([(first, start), (total_steps, end)], ["linear"])


def _check_boundaries(boundaries: Any) -> list[int]:
    """One or more rising steps >= 1, as ints."""
    values = np.ravel(boundaries).tolist()
    edges = [_steps.check_steps("boundaries", value) for value in values]
    if not edges or min(np.diff(edges), default=1) < 1:
        raise ValueError(
            f"`boundaries` must be one or more rising steps, got {edges}. List each "
            "step once, the earliest first, e.g. [30, 60, 80]."
        )
    return edges


def step_decay(
    value: Num, every: int | None = None, factor: Num = 0.1, *, boundaries: Any = None
) -> Schedule:
    """The rate times `factor` at regular or at listed steps.

        rate = value * factor^k
        k    = step // every, or the number of boundaries <= step

    Args:
      value: rate before the first drop, in parameter units per step, >= 0; a number or
        a 0-d array, a traced one too.
      every: steps between two drops, >= 1; the first is at step `every`.
      factor: what each drop multiplies the rate by, in (0, 1]; like `value`.
      boundaries: instead of `every`, a list or array of the steps >= 1 from which on
        the rate is lower, in rising order.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: both or none of `every` and `boundaries`; boundaries that do not rise.

    >>> [f"{step_decay(0.1, 30)(step):.4f}" for step in (29, 30, 60)]
    ['0.1000', '0.0100', '0.0010']

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), section
    3.4.
    """
    _steps.check_rates(value=value)
    _steps.check_factor("factor", factor)
    if (every is None) == (boundaries is None):
        raise ValueError(
            "exactly one of `every` and `boundaries` must be given, got "
            f"every={every!r}, boundaries={boundaries!r}. Pass e.g. every=30, or "
            "boundaries=[30, 60]."
        )
    edges: list[int] = []
    if boundaries is None:
        every = _steps.check_steps("every", every)
    else:
        edges = _check_boundaries(boundaries)

    def schedule(step: Any) -> jax.Array:
        step = _steps.as_step(step)
        drops = step // every if every else _steps.count_passed(edges, step)
        return _steps.wide(value) * _steps.power(factor, drops)

    return schedule


def exponential_decay(
    value: Num,
    rate: Num,
    decay_steps: int,
    *,
    staircase: bool = False,
    begin: int = 0,
    end: Num | None = None,
) -> Schedule:
    """The rate times `rate` for each `decay_steps` steps, smoothly or in stairs.

        rate(step) = max(end, value * rate^((step - begin) / decay_steps))

    `optax.exponential_decay` has the same arguments in another order; its number of
    steps in the place of `rate` is refused, being above 1.

    Args:
      value: rate up to step `begin`, in parameter units per step, >= 0; a number or a
        0-d array, a traced one too.
      rate: factor per `decay_steps` steps, in (0, 1]; like `value`.
      decay_steps: steps in which the rate is multiplied by `rate` once, >= 1.
      staircase: whether the exponent is rounded down, so that the rate drops every
        `decay_steps` steps instead of at each.
      begin: the step at which the decay begins, a whole number >= 0.
      end: lower bound of the rate, <= value; like `value`. None: 0.

    Returns:
      The schedule, step -> rate.

    Raises:
      TypeError: `staircase` is not True or False.

    >>> [float(exponential_decay(1, 0.5, 100, end=0.25)(step)) for step in (0, 999)]
    [1.0, 0.25]

    Source: `optax.exponential_decay`.
    """
    floor = 0.0 if end is None else end
    _steps.check_rates("end <= value", end=floor, value=value)
    _steps.check_factor("rate", rate)
    decay_steps = _steps.check_steps("decay_steps", decay_steps)
    begin = _steps.check_steps("begin", begin, minimum=0)
    _checks.check_flag("staircase", staircase)

    def schedule(step: Any) -> jax.Array:
        n = jnp.maximum(_steps.as_step(step) - begin, 0)
        if staircase:
            exponent = n // decay_steps
        else:
            exponent = _steps.wide(n) / _steps.wide(decay_steps)
        decayed = _steps.wide(value) * _steps.power(rate, exponent)
        return jnp.maximum(decayed, _steps.wide(floor))

    return schedule
