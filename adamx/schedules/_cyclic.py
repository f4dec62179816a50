"""Up and down again and again: triangle waves, and cosines with restarts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks
from adamx._types import Schedule
from adamx.schedules import _steps
from adamx.schedules._steps import Num


def cyclical(
    low: Num, high: Num, half_period: int, *, mode: str = "triangular", gamma: Num = 1
) -> Schedule:
    """A triangle wave between `low` and `high`, with a height that may shrink.

        rate  = low + (high - low) * h * (1 - |step / half_period - 2 * cycle - 1|)
        cycle = step // (2 * half_period)
        triangular: h = 1;  triangular2: h = 2^-cycle;  exp_range: h = gamma^step

    Args:
      low: lowest rate, at step 0 and at the end of each cycle, in parameter units per
        step, >= 0; a number or a 0-d array, a traced one too.
      high: highest rate where h = 1, >= low; like `low`.
      half_period: steps from `low` to `high`, and as many back, in [1, 2^31 - 1].
      mode: how the height h shrinks, as above: "triangular", "triangular2" or
        "exp_range".
      gamma: factor of the height per step, in (0, 1], for "exp_range" only; like `low`.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: low > high; a `gamma` other than 1 where the mode has none.

    >>> [float(cyclical(0, 1, 100)(step)) for step in (0, 50, 100, 150, 200)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017),
    section 3.
    """
    _steps.check_rates("low <= high", low=low, high=high)
    half_period = _steps.check_steps("half_period", half_period)
    _checks.check_choice("mode", mode, ("triangular", "triangular2", "exp_range"))
    _steps.check_factor("gamma", gamma)
    if mode != "exp_range" and _checks.is_constant(gamma) and gamma != 1:
        raise ValueError(
            f"`gamma` must be 1 with mode={mode!r}, got {gamma!r}. Pass "
            "mode='exp_range' for a height that shrinks at each step."
        )

    def schedule(step: Any) -> jax.Array:
        step = _steps.as_step(step)
        # By half cycles: a whole one, of up to 2^32 steps, would overflow int32.
        half, n = step // half_period, step % half_period
        n = jnp.where(half % 2 == 0, n, half_period - n)
        bottom, top = _steps.wide(low), _steps.wide(high)
        if mode != "triangular":
            if mode == "exp_range":
                height = _steps.power(gamma, step)
            else:
                height = _steps.power(0.5, half // 2)
            top = _steps.mix(bottom, top, height, 1 - height)
        return _steps.mix(bottom, top, *_steps.shares(n, half_period))

    return schedule


def _periods(first_period: int, multiplier: int) -> tuple[list[int], list[int]]:
    """The steps at which the periods begin, up to 2^31 - 1, and their lengths."""
    starts, lengths = [0], [first_period]
    while multiplier > 1 and starts[-1] + lengths[-1] <= _steps.LAST_STEP:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * multiplier)
    return starts, lengths


def cosine_restarts(
    peak: Num, first_period: int, *, multiplier: int = 1, decay: Num = 1, end: Num = 0
) -> Schedule:
    """Half a cosine from the peak towards `end`, again and again (SGDR).

        rate     = end + (peak_k - end) * (1 + cos(pi * n / period_k)) / 2
        period_k = first_period * multiplier^k
        peak_k   = max(end, peak * decay^k)

    n is the number of steps since restart k. The step that would be at `end` is the
    next restart.

    Args:
      peak: rate at step 0, in parameter units per step, >= 0; a number or a 0-d array,
        a traced one too.
      first_period: steps to the first restart, in [1, 2^31 - 1].
      multiplier: factor of the period at each restart, a whole number >= 1.
      decay: factor of the peak at each restart, in (0, 1]; like `peak`.
      end: lower bound of the rate, <= peak; like `peak`.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a rate below 0 or an end above the peak; a period or a multiplier
        below 1; a `decay` outside of [0, 1].
      TypeError: not a number; a traced number of steps.

    >>> [round(float(cosine_restarts(1, 100)(step)), 6) for step in (0, 50, 100)]
    [1.0, 0.5, 1.0]

    Source: Loshchilov & Hutter, "SGDR" (2017), equation 5; the decay of the peak is
    ours.
    """
    _steps.check_rates("end <= peak", end=end, peak=peak)
    first_period = _steps.check_steps("first_period", first_period)
    remedy = "It multiplies the period at each restart: pass an int such as 1 or 2."
    multiplier = _steps.check_steps("multiplier", multiplier, remedy=remedy)
    _steps.check_factor("decay", decay)
    starts, lengths = _periods(first_period, multiplier)
    held = np.minimum(lengths, _steps.LAST_STEP)
    beyond = [float(max(length - _steps.LAST_STEP, 0)) for length in lengths]

    def schedule(step: Any) -> jax.Array:
        step = _steps.as_step(step)
        if multiplier == 1:
            k = step // first_period
            shares = _steps.shares(step % first_period, first_period)
        else:
            k = _steps.count_passed(starts[1:], step)
            n = step - jnp.asarray(starts, step.dtype)[k]
            length = jnp.asarray(held, step.dtype)[k]
            shares = _steps.shares(n, length, _steps.wide(beyond)[k])
        bottom = _steps.wide(end)
        top = jnp.maximum(_steps.wide(peak) * _steps.power(decay, k), bottom)
        return _steps.mix(top, bottom, *_steps.SHAPES["cosine"](*shares))

    return schedule
