"""A warm-up to the peak, and then down: the schedules of a run of known length."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks
from adamx._types import Schedule
from adamx.schedules import _steps
from adamx.schedules._steps import Num, Span


def _warmed(
    peak: Num,
    total_steps: int,
    warmup: Span,
    end: Num,
    start: Num,
    *,
    decay: Span | None = None,
    rise: str = "linear",
    fall: str,
) -> Schedule:
    """Warm-up, plateau, decay.

    Args:
      peak, total_steps, warmup, end, start: see `warmup_cosine`.
      decay: see `warmup_stable_decay`; None: all that the warm-up leaves.
      rise, fall: keys of `_steps.SHAPES`, the forms of the warm-up and of the decay.

    Returns:
      The schedule.
    """
    _steps.check_rates(peak=peak, end=end, start=start)
    total_steps = _steps.check_steps("total_steps", total_steps)
    up = _steps.as_steps("warmup", warmup, total_steps)
    down = total_steps - up
    if decay is not None:
        down = _steps.as_steps("decay", decay, total_steps, is_length=True)
    if not 1 <= down <= total_steps - up:
        remedy = (
            "Lengthen the decay" if down < 1 else "Shorten the warm-up or the decay"
        )
        raise ValueError(
            "`decay` must be >= 1 step and warmup + decay <= total_steps, got "
            f"{up} + {down} of {total_steps} steps. {remedy}, or raise `total_steps`."
        )
    points = [(0, start), (up, peak), (total_steps - down, peak), (total_steps, end)]
    return _steps.phases(points, [rise, "linear", fall])


def warmup_cosine(
    peak: Num, total_steps: int, warmup: Span = 0, end: Num = 0.0, *, start: Num = 0.0
) -> Schedule:
    """Linear warm-up to the peak, then half a cosine down to `end`.

        step <= warmup:  start + (peak - start) * step / warmup
        after:           end + (peak - end) * (1 + cos(pi * x)) / 2
                         x = (step - warmup) / (total_steps - warmup)

    Args:
      peak: rate at step `warmup` (without a warm-up: at step 0), in parameter units
        per step, >= 0; a number or a 0-d array, a traced one too.
      total_steps: steps of the run, warm-up included, in [1, 2^31 - 1]; from this step
        on the rate is `end`. Known on the host, not traced.
      warmup: the step of the peak, < total_steps; an int is a number of steps, a float
        in [0, 1) a share of total_steps, rounded to a step. 0: no warm-up.
      end: rate from step `total_steps` on; like `peak`. It may be above the peak.
      start: rate at step 0 of the warm-up; like `peak`. Unused without a warm-up.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a value out of range; a `warmup` such as 2.5 or 1.0, which is neither
        a share nor written as an int.
      TypeError: no number; a traced `total_steps` or `warmup`.

    >>> [round(float(warmup_cosine(1, 1000, 0.1)(i)), 6) for i in (0, 100, 550, 1000)]
    [0.0, 1.0, 0.5, 0.0]

    Source: Loshchilov & Hutter, "SGDR" (2017), equation 5, with a single period; the
    warm-up: Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 2.2.
    """
    return _warmed(peak, total_steps, warmup, end, start, fall="cosine")


def warmup_linear(
    peak: Num, total_steps: int, warmup: Span = 0, end: Num = 0.0, *, start: Num = 0.0
) -> Schedule:
    """Linear warm-up to the peak, then a straight line down to `end`.

        step <= warmup:  start + (peak - start) * step / warmup
        after:           peak + (end - peak) * (step - warmup) / (total_steps - warmup)

    Args:
      peak, total_steps, warmup, start: see `warmup_cosine`.
      end: rate from step `total_steps` on; with end=peak the rate stays at the peak.

    Returns:
      The schedule, step -> rate.

    >>> float(warmup_linear(1.0, 1000, warmup=200)(600))
    0.5

    Source: Devlin et al., "BERT" (2019), appendix A.2.
    """
    return _warmed(peak, total_steps, warmup, end, start, fall="linear")


def warmup_stable_decay(
    peak: Num,
    total_steps: int,
    warmup: Span = 0,
    decay: Span = 0.2,
    end: Num = 0.0,
    *,
    start: Num = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Linear warm-up, a plateau at the peak, and a decay over the last steps (WSD).

        step <= warmup:  start + (peak - start) * step / warmup
        plateau:         peak
        decay:           end + (peak - end) * f(x)
                         x = (step - total_steps + decay) / decay
        linear: f = 1 - x;  cosine: f = (1 + cos(pi * x)) / 2;  sqrt: f = 1 - sqrt(x)

    Args:
      peak, total_steps, warmup, end, start: see `warmup_cosine`.
      decay: length of the decay, >= 1 step, warmup + decay <= total_steps; an int is a
        number of steps, a float in [0, 1) a share of total_steps, rounded so that
        shares which add up to 1 fit.
      shape: form of the decay: "linear", "cosine" or "sqrt" (steep at first).

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: the warm-up and the decay do not fit into total_steps; see also
        `warmup_cosine`.

    >>> [float(warmup_stable_decay(1, 100, 10)(i)) for i in (5, 10, 80, 90, 100)]
    [0.5, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al., "MiniCPM" (2024), section 4; sqrt: Hägele et al., "Scaling Laws
    and Compute-Optimal Training Beyond Fixed Training Durations" (2024),
    arXiv:2405.18392.
    """
    _checks.check_choice("shape", shape, ("linear", "cosine", "sqrt"))
    return _warmed(peak, total_steps, warmup, end, start, decay=decay, fall=shape)


def inverse_sqrt(peak: Num, warmup: int, *, start: Num = 0.0) -> Schedule:
    """Linear warm-up to the peak, then a decay with the square root of the step.

        step <= warmup:  start + (peak - start) * step / warmup
        after:           peak * sqrt(warmup / step)

    It needs no length of the run, and never ends.

    Args:
      peak: rate at step `warmup`, in parameter units per step, >= 0; a number or a 0-d
        array, a traced one too. In the source, 1 / sqrt(d_model * warmup).
      warmup: steps of the warm-up, in [1, 2^31 - 1]; no share, since there is no last
        step.
      start: rate at step 0; like `peak`.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a rate below 0 or not finite; a warmup below 1.
      TypeError: not a number; a traced number of steps.

    >>> [float(inverse_sqrt(1.0, 100)(step)) for step in (50, 100, 400)]
    [0.5, 1.0, 0.5]

    Source: Vaswani et al., "Attention Is All You Need" (2017), equation 3.
    """
    _steps.check_rates(peak=peak, start=start)
    warmup = _steps.check_steps("warmup", warmup)
    rise = _steps.phases([(0, start), (warmup, peak)], ["linear"])

    def schedule(step: Any) -> jax.Array:
        step = _steps.as_step(step)
        ratio = _steps.wide(warmup) / _steps.wide(jnp.maximum(step, warmup))
        return jnp.where(step > warmup, _steps.wide(peak) * jnp.sqrt(ratio), rise(step))

    return schedule


def one_cycle(
    peak: Num,
    total_steps: int,
    *,
    warmup: Span = 0.3,
    start_factor: Num = 25.0,
    end_factor: Num = 1e4,
    shape: str = "cosine",
) -> Schedule:
    """Up from peak / start_factor to the peak, then down to almost nothing.

        start = peak / start_factor              rate at step 0
        end   = peak / start_factor / end_factor rate from step total_steps on

    Each way is half a cosine, or straight. The values are those of
    `optax.cosine_onecycle_schedule`. PyTorch's OneCycleLR(total_steps=T, pct_start=p)
    has its peak at step p * T - 1 and its end at T - 1: for a whole p * T, that is
    `one_cycle(peak, T - 1, warmup=p * T - 1)`.

    Args:
      peak, total_steps, warmup: see `warmup_cosine`.
      start_factor: peak / first rate, >= 1; a number or a 0-d array, a traced one too.
      end_factor: first rate / last rate, >= 1; like `start_factor`.
      shape: form of both ways: "cosine" or "linear".

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a rate below 0; a factor below 1; a warmup that does not fit; a shape
        that is not one of the two.
      TypeError: not a number; a traced number of steps.

    >>> [float(one_cycle(1, 10, start_factor=4, end_factor=2)(i)) for i in (0, 3, 10)]
    [0.25, 1.0, 0.125]

    Source: Smith & Topin, "Super-Convergence" (2018), with two phases as in PyTorch.
    """
    _steps.check_rates(peak=peak)
    _checks.check_choice("shape", shape, ("cosine", "linear"))
    remedy = "It divides the rate: use e.g. {}, or 1 for no difference."
    for name, factor, usual in [
        ("start_factor", start_factor, "25"),
        ("end_factor", end_factor, "1e4"),
    ]:
        _checks.check_in_interval(name, factor, 1, math.inf, remedy.format(usual))
    top: Any = peak
    top = float(top) if _checks.is_constant(top) else _steps.wide(top)
    start, end = top / start_factor, top / (start_factor * end_factor)
    return _warmed(peak, total_steps, warmup, end, start, rise=shape, fall=shape)
