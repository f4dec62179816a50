"""The schedules in float64 NumPy, written from the papers' formulas.

Steps are int64 arrays, so nothing here can overflow; step counts are whole numbers
(shares of total_steps are the schedules' own business).
"""

import numpy as np


def _anneal(shape, x):
    """What is left of the height after a share x of the way down."""
    x = np.clip(x, 0.0, 1.0)
    return {
        "linear": 1 - x,
        "cosine": (1 + np.cos(np.pi * x)) / 2,
        "sqrt": 1 - np.sqrt(x),
    }[shape]


def _rise(step, start, peak, warmup):
    return start + (peak - start) * step / max(warmup, 1)


def constant(step, value):
    return np.full(step.shape, float(value))


def linear(step, start, end, total_steps, begin=0):
    x = np.clip((step - begin) / (total_steps - begin), 0, 1)
    return start + (end - start) * x


def warmup_cosine(step, peak, total_steps, warmup=0, end=0.0, start=0.0):
    """Loshchilov & Hutter 2017, eq. 5, with one period after the warm-up."""
    x = (step - warmup) / (total_steps - warmup)
    fall = end + (peak - end) * _anneal("cosine", x)
    return np.where(step < warmup, _rise(step, start, peak, warmup), fall)


def warmup_linear(step, peak, total_steps, warmup=0, end=0.0, start=0.0):
    fall = end + (peak - end) * _anneal(
        "linear", (step - warmup) / (total_steps - warmup)
    )
    return np.where(step < warmup, _rise(step, start, peak, warmup), fall)


def warmup_stable_decay(
    step, peak, total_steps, warmup=0, decay=1, end=0.0, start=0.0, shape="linear"
):
    """Haegele et al. 2024: 1, then f(n, N, N_decay) from step N - N_decay on."""
    fall = _anneal(shape, (step - (total_steps - decay)) / decay)
    rate = np.where(step <= total_steps - decay, peak, end + (peak - end) * fall)
    return np.where(step < warmup, _rise(step, start, peak, warmup), rate)


def inverse_sqrt(step, peak, warmup, start=0.0):
    """Vaswani et al. 2017, eq. 3, times peak * sqrt(warmup); they start at 0."""
    if start == 0:
        late = np.maximum(step, 1) ** -0.5
        rate = np.minimum(late, step * float(warmup) ** -1.5)
        return peak * np.sqrt(warmup) * rate
    fall = peak * np.sqrt(warmup / np.maximum(step, 1))
    return np.where(step < warmup, _rise(step, start, peak, warmup), fall)


def step_decay(step, value, every=None, factor=0.1, boundaries=None):
    if boundaries is None:
        return value * np.power(factor, np.floor(step / every))
    rate = np.full(step.shape, float(value))
    for boundary in boundaries:
        rate = np.where(step >= boundary, rate * factor, rate)
    return rate


def exponential_decay(
    step, value, rate, decay_steps, staircase=False, begin=0, end=None
):
    n = np.maximum(step - begin, 0)
    exponent = n // decay_steps if staircase else n / decay_steps
    return np.maximum(value * np.power(rate, exponent), end or 0.0)


def cyclical(step, low, high, half_period, mode="triangular", gamma=1.0):
    """Smith 2017, sec. 3.2, the code of the paper; his cycles count from 1.

    His x = |step / half_period - 2 * cycle + 1| is kept over one denominator: at 2**31
    steps, even float64 would lose 1e-9 in the difference.
    """
    cycle = 1 + step // (2 * half_period)
    x = np.abs(step - (2 * cycle - 1) * half_period) / half_period
    height = (high - low) * np.maximum(0, 1 - x)
    if mode == "triangular2":
        height = height * 2.0 ** -(cycle - 1)
    if mode == "exp_range":
        height = height * gamma**step
    return low + height


def one_cycle(
    step,
    peak,
    total_steps,
    warmup,
    start_factor=25.0,
    end_factor=1e4,
    shape="cosine",
):
    start, end = peak / start_factor, peak / start_factor / end_factor
    rise = peak + (start - peak) * _anneal(shape, step / max(warmup, 1))
    x = (step - warmup) / (total_steps - warmup)
    return np.where(step < warmup, rise, end + (peak - end) * _anneal(shape, x))


def cosine_restarts(step, peak, first_period, multiplier=1, decay=1.0, end=0.0):
    """Loshchilov & Hutter 2017, eq. 5: T_cur and T_i found by walking the restarts."""
    if multiplier == 1:
        restart, since = np.divmod(step, first_period)
        period = np.full(step.shape, first_period)
    else:
        restart, begin = np.zeros_like(step), np.zeros_like(step)
        period = np.full(step.shape, first_period)
        while np.any(step >= begin + period):
            is_over = step >= begin + period
            restart = restart + is_over
            begin = np.where(is_over, begin + period, begin)
            period = np.where(is_over, period * multiplier, period)
        since = step - begin
    top = np.maximum(peak * np.power(float(decay), restart), end)
    return end + (top - end) * (1 + np.cos(np.pi * since / period)) / 2
