"""LOSSES -> SYMPTOMS of the data: batches in an order, examples learnt by heart.

Rules as in `_rules_run`; thresholds have their source in the rule's docstring and were
committed before any run that tests them; "ours" is our own choice.
"""

from collections.abc import Sequence

import numpy as np

from adamx.diagnostics._evidence import (
    START,
    Run,
    Sign,
    around,
    began_at,
    columns_named,
    median,
    metric,
    noise_of,
    running_median,
    span,
)

PERIODIC = 0.3
PERIODIC_RECORDS = 400
PERIODIC_LEAST = 100
PERIODS = 8
RATE_TURNS = 0.01
FOLLOWED = 2 / 3
FOLLOWED_LATELY = 0.9
HALVED = 0.5
STOPPED = 0.1
LEARNT = 0.1
WON_NOISE = 4.0
LAST = 5
LEAST_RECORDS = 10


def unshuffled(run: Run) -> Sequence[Sign]:
    """The training loss repeats itself: its autocorrelation is 0.3 at a period and two.

    Of the last 400 records behind step 50, 100 and more, evenly spaced; periods of up
    to an eighth of them. From them their running median over two of the longest periods
    is taken away, and what is more than 4 mean deviations off is cut. Also above its
    lowest within the period by 0.3: a slow change has no period. Independent batches
    give 0, give or take 1 / sqrt(records), 0.06 of 300; 0.3 is five times that. Not
    where the rate rises again after it fell, each by a hundredth of its highest: a
    loss that goes with the rate has its period.

    Source: that batches must be drawn at random: Bottou, "Stochastic Gradient Descent
    Tricks" (2012), section 4.1; thresholds ours.
    """
    steps, values = _evenly_recorded(run)
    if not len(steps) or has_cyclic_rate(run):
        return []
    longest = len(values) // PERIODS
    rest = values[longest:-longest] - running_median(values, 2 * longest + 1)
    limit = 4 * float(np.mean(np.abs(rest)))
    rest = np.clip(rest, -limit, limit)
    rest = rest - rest.mean()
    size = float(np.mean(rest**2))
    if not size > 0:
        return []
    lags = range(1, 2 * longest + 1)
    own = [float(np.mean(rest[k:] * rest[:-k])) / size for k in lags]
    alike = np.array([1.0, *own])
    for period in range(2, longest + 1):
        least = min(alike[period], alike[2 * period])
        if least >= PERIODIC and least - alike[1:period].min() >= PERIODIC:
            every = period * int(steps[1] - steps[0])
            evidence = {"period in steps": every, "autocorrelation": float(least)}
            evidence |= {"threshold": PERIODIC} | span(steps, "records")
            return [Sign("unshuffled", None, "warning", evidence)]
    return []


def has_cyclic_rate(run: Run) -> bool:
    """Whether the rate goes up and down where `unshuffled` would look for a period.

    A warmup before a decay does not: it has a rise and a fall.
    """
    steps, _ = _evenly_recorded(run)
    if not len(steps):
        return False
    at = run.history.steps
    is_inside = (at >= steps[0]) & (at <= steps[-1])
    for name in columns_named(run.history, "learning_rate"):
        rate = run.history.column(name)[is_inside]
        rate = rate[np.isfinite(rate)]
        least = RATE_TURNS * np.abs(rate).max(initial=0.0)
        has_fallen = np.maximum.accumulate(rate) - rate > least
        if has_fallen.any():
            rest = rate[np.argmax(has_fallen) :]
            if (rest - np.minimum.accumulate(rest) > least).any():
                return True
    return False


def _evenly_recorded(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and training losses in which a period can be seen; else empty."""
    steps, values = metric(run.history, "loss")
    behind = steps >= START
    steps = steps[behind][-PERIODIC_RECORDS:]
    values = values[behind][-PERIODIC_RECORDS:]
    is_enough = len(values) >= PERIODIC_LEAST and np.isfinite(values).all()
    if not is_enough or np.ptp(np.diff(steps)):
        return steps[:0], values[:0]
    return steps, values


def memorised(run: Run) -> Sequence[Sign]:
    """Of what training won since the start, validation has won less than two thirds.

    Or less than 0.9, where it has come to a stop while training goes on: over the later
    half of the records the training loss fell by half or more, and the validation loss
    by less than a tenth of that (of their logarithms). 20 validation losses for that.

    Medians of the last 5 validation losses and of the training losses near them, 10 and
    more; against where training began (see `began_at`), or the first validation loss
    where that is higher. Training must have won a tenth, and four times its noise (what
    the first 20 or the last 20 losses differ by from one to the next). What a model
    knows of data that it has not seen falls behind from the first steps on where the
    data are few: then validation need not get worse, as `gap` wants it.

    Source: Zhang et al., "Understanding deep learning requires rethinking
    generalization" (2017): training to zero loss with nothing learnt; Prechelt, "Early
    Stopping - But When?" (1998), of the progress of training against that of
    validation. The numbers are ours (the digits by three hidden layers: 0.5 with 32
    examples, 0.6 to 0.7 with 64, 0.8 with 128, 0.9 with 256, 0.96 with all as they are,
    1.2 with all moved about).
    """
    steps, values = metric(run.history, "val_loss")
    _, losses = metric(run.history, "loss")
    if len(values) < LEAST_RECORDS or steps[-1] < START or not len(losses):
        return []
    train, now = around(run, steps[-LAST:]), median(values[-LAST:])
    began = began_at(losses)
    won, followed = began - train, max(began, float(values[0])) - now
    if not won >= max(LEARNT * abs(began), WON_NOISE * noise_of(losses)):
        return []
    has_stopped = _has_stopped(run, steps, values)
    limit = FOLLOWED_LATELY if has_stopped else FOLLOWED
    if not followed < limit * won:
        return []
    evidence = {"share of what training won": followed / won, "threshold": limit}
    evidence |= {"validation loss": now, "training loss": train, "at first": began}
    return [
        Sign("memorised", None, "warning", evidence | span(steps[-LAST:], "records"))
    ]


def _has_stopped(run: Run, steps: np.ndarray, values: np.ndarray) -> bool:
    """Whether validation stands in the later half of the run, and training does not."""
    if len(values) < 2 * LEAST_RECORDS:
        return False
    middle = slice(len(values) // 2 - LAST, len(values) // 2)
    then, now = median(values[middle]), median(values[-LAST:])
    train_then, train_now = around(run, steps[middle]), around(run, steps[-LAST:])
    if not (0 < train_now <= HALVED * train_then and then > 0 and now > 0):
        return False
    return bool(np.log(then / now) < STOPPED * np.log(train_then / train_now))
