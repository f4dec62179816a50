"""Weighted mean, unbiased variance and z-score of norms, from their definitions."""

import numpy as np


def statistics(norms, decay):
    """Mean and standard deviation of what was taken so far, newest last."""
    x = np.asarray(norms, np.float64)
    w = decay ** np.arange(len(x) - 1, -1, -1.0)
    mean = np.sum(w * x) / np.sum(w)
    left = np.sum(w) - np.sum(w**2) / np.sum(w)
    if len(x) < 2:
        return mean, 0.0
    return mean, np.sqrt(np.sum(w * (x - mean) ** 2) / left)


def decisions(norms, zscore, decay, warmup, limit):
    """For each norm: z-score, and whether its step is taken. NaN: not finite."""
    taken, run = [], 0
    for x in norms:
        if not np.isfinite(x):
            yield (0.0 if len(taken) < warmup else np.nan), False
            continue
        z = 0.0
        if len(taken) >= warmup:
            mean, deviation = statistics(taken, decay)
            z = (x - mean) / max(deviation, 1e-6 * mean)
        if z > zscore:
            if limit is None or run < limit:
                run += 1
                yield z, False
                continue
            taken = []
        taken.append(x)
        run = 0
        yield z, True
