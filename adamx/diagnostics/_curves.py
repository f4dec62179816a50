"""Loss curves on the host: smoothing, and which of them diverged. float64 NumPy.

s_t = sum of b^(t - i) l_i over i <= t, divided by the sum of b^(t - i)
"""

import numpy as np

# Memory of the smoothing, in parts of the run.
_MEMORY = 1 / 20
# What is given away, in parts of the gain, is still in the band.
BAND = 0.05
# The least gain, in standard deviations of the noise of a loss.
_NOISES = 10.0
# And in roundings of the first loss: the same number is not above itself.
_ROUNDINGS = 10.0
# Above the start by so much of it, a run has lost what it was given.
_RISEN = 0.5
# Differences from loss to loss that a half must have to say how large they are.
_HALF = 4
# The losses at the end whose median is taken, at least.
_LAST = 3
# Its square is finite.
_HUGE = 1e150
# A neighbour further off, by this factor, says nothing about a rate.
_REACH = 2.0


def default_weight(steps: int) -> float:
    """The weight b of a mean over about a twentieth of the run."""
    return 1.0 - 1.0 / max(1.0, _MEMORY * steps)


def smooth(losses: np.ndarray, weight: float) -> np.ndarray:
    """The bias-corrected moving average along the last axis.

    From the first loss that is not finite on, it is NaN.
    """
    losses = np.asarray(losses, np.float64)
    smoothed = np.empty_like(losses)
    mean, norm = np.zeros(losses.shape[:-1]), 0.0
    is_whole = np.ones(losses.shape[:-1], bool)
    for t in range(losses.shape[-1]):
        is_whole &= np.isfinite(losses[..., t])
        kept = weight * norm / (weight * norm + 1.0)
        norm = weight * norm + 1.0
        # Not a sum over a sum, which is not constant for a constant loss.
        loss = np.where(is_whole, losses[..., t], 0.0)
        mean = loss - kept * (loss - mean)
        smoothed[..., t] = np.where(is_whole, mean, np.nan)
    return smoothed


def gain(losses: np.ndarray, smoothed: np.ndarray) -> float:
    """How far the best rate brought the loss down: the unit of what is judged.

    The start (one loss: all rates share it) minus the lowest smoothed loss at the end;
    at least ten times the noise of single losses, so that rates under which nothing
    moves are not told apart by their noise. The noise is that of the quieter rates
    (lower quartile): the standard deviation of a loss against the next one's. What
    diverges does not set it: it is of the rates that were never above the start; where
    there are none, of those that did not end there. At least ten roundings of the
    start, for rates under which nothing moves at all.
    """
    is_whole = np.isfinite(losses).all(axis=-1)
    if not is_whole.any():
        return 0.0
    losses, smoothed = losses[is_whole], smoothed[is_whole]
    was_above = _is_above(smoothed.max(axis=-1), losses)
    judged = [~was_above, ~_is_risen(losses, smoothed), np.ones(len(losses), bool)]
    jumps = np.diff(_wide(losses[next(x for x in judged if x.any())]), axis=-1)
    noise = np.quantile(_deviation(jumps), 0.25)
    fall = _wide(losses[:, 0]).max() - smoothed[:, -1].min()
    return float(max(fall, _NOISES * noise, _rounding(losses).max()))


def is_diverged(losses: np.ndarray, smoothed: np.ndarray) -> np.ndarray:
    """Not finite; at the end above the start; once a `gain` above the start; at the end
    half one above its lowest.

    Whatever its end, a rate that blew up once is none to take: in 19 sweeps, each
    judged at two lengths, no such rate came within 0.17 gains of the best, and no best
    rate rose by more than 0.04.
    """
    is_whole = np.isfinite(losses).all(axis=-1)
    unit = gain(losses, smoothed)
    with np.errstate(invalid="ignore"):
        rise = smoothed[:, -1] - smoothed.min(axis=-1)
        peak = smoothed.max(axis=-1) - losses[:, 0]
        found = ~is_whole | ~(rise <= 0.5 * unit) | ~(peak <= unit)
    found[is_whole] |= _is_risen(losses[is_whole], smoothed[is_whole])
    return found


def _is_risen(losses: np.ndarray, smoothed: np.ndarray) -> np.ndarray:
    """Whether a run ended above its start by half of its size; all losses are finite.

    All runs start with the same parameters: such a one has lost what it was given. By
    less a loss may rise with the data, under every rate. Its end is the last smoothed
    loss, or the median of its last tenth where that is lower, so that one bad batch
    there is no rise.
    """
    last = max(_LAST, losses.shape[-1] // 10)
    median = np.median(_wide(losses[:, -last:]), axis=-1)
    end, first = np.minimum(smoothed[:, -1], median), _wide(losses[:, 0])
    return _is_above(end, losses) & (end - first > _RISEN * np.abs(first))


def _is_above(levels: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Whether a loss is above that of the start, by ten times the run's own noise.

    That of the quieter half of the run, first or second, as what diverges is not quiet.
    """
    jumps = np.diff(_wide(losses), axis=-1)
    half = jumps.shape[-1] // 2
    parts = [jumps] if half < _HALF else [jumps[:, :half], jumps[:, half:]]
    noise = np.min([_deviation(part) for part in parts], axis=0)
    rise = levels - _wide(losses[:, 0])
    return rise > np.maximum(_NOISES * noise, _rounding(losses))


def _deviation(jumps: np.ndarray) -> np.ndarray:
    """Of single losses, from the differences of one and the next."""
    return np.std(jumps, axis=-1) / np.sqrt(2.0)


def _rounding(losses: np.ndarray) -> np.ndarray:
    """Ten roundings of the first loss of each run."""
    return _ROUNDINGS * np.finfo(losses.dtype).eps * np.abs(_wide(losses[:, 0]))


def _wide(losses: np.ndarray) -> np.ndarray:
    """float64, cut off where squares would overflow."""
    return np.clip(np.asarray(losses, np.float64), -_HUGE, _HUGE)


def suggested(
    rates: np.ndarray, final: np.ndarray, unit: float
) -> tuple[int, int, int] | None:
    """The chosen rate, and the first and last of its band; rates ascend.

    Args:
      rates: (n,), ascending.
      final: (n,) scores, less is better; inf where diverged.
      unit: see `gain`.

    Returns:
      Three positions; None where all diverged. The rule is stated in `lr_sweep`.
    """
    best = int(np.argmin(final))
    if not np.isfinite(final[best]):
        return None
    is_good = final <= final[best] + BAND * unit
    first = last = best
    while first > 0 and is_good[first - 1]:
        first -= 1
    while last + 1 < len(final) and is_good[last + 1]:
        last += 1
    medians = np.where(is_good, _medians(rates, final), np.inf)[first : last + 1]
    if not np.isfinite(medians).any():  # a lone rate between two that diverged
        return best, first, last
    return first + int(np.argmin(medians)), first, last


def _medians(rates: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Of each score and its neighbours' in reach; of two, the worse."""
    found = final.copy()
    for i in range(len(rates)):
        near = final[_in_reach(rates, i)]
        found[i] = np.sort(near)[len(near) // 2]
    return found


def _in_reach(rates: np.ndarray, i: int) -> list[int]:
    """A rate and its neighbours that are near enough to say something about it."""
    reach = _REACH * (1 + 1e-6)
    low, high = rates[i] / reach, rates[i] * reach
    around = range(max(i - 1, 0), min(i + 2, len(rates)))
    return [j for j in around if low <= rates[j] <= high]


def is_guarded(rates: np.ndarray, i: int) -> bool:
    """Whether a neighbour above is in reach: if it diverged, the rate is not taken."""
    return i + 1 in _in_reach(rates, i)


def from_divergence(smoothed: np.ndarray) -> np.ndarray:
    """True from where one curve left its lowest point by half its fall, for good."""
    if not np.isfinite(smoothed[0]):
        return np.ones(smoothed.shape, bool)
    lowest = int(np.nanargmin(smoothed))
    fall = smoothed[0] - smoothed[lowest]
    with np.errstate(invalid="ignore"):
        is_high = ~(smoothed <= smoothed[lowest] + 0.5 * fall)
    is_high[: lowest + 1] = False
    return np.logical_or.accumulate(is_high)
