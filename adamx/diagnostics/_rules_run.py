"""METRICS -> SYMPTOMS: what is wrong with the whole run, one rule a function.

They look at the losses, the skipped steps and the rate. Thresholds have their source in
the rule's docstring and were committed before any run that tests them; "ours" is our
own choice. Where a metric is not recorded, its rules say nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adamx.diagnostics._evidence import (
    NOISE_RECORDS,
    START,
    Run,
    Sign,
    around,
    began_at,
    columns_named,
    fluctuation,
    median,
    medians,
    metric,
    noise_of,
    relative_rate,
    running_median,
    span,
)

LOST_RECORDS = 3
SKIPPED = 0.01
SKIPPED_SEVERE = 0.1
SKIPPED_COUNT = 5
SKIPPED_STEPS = 100
ABOVE_START = 0.5
ABOVE_START_RECORDS = 5
ABOVE_NOISE = 4.0
BURST_STEPS = 2000
ALTERNATIONS = 0.9
ALTERNATIONS_RECORDS = 40
NORM_EXPLODED = 100.0
NORM_RECORDS = 20
GAP = 0.1
GAP_LAST = 5
GAP_SHARE = 20
GAP_NOISE = 1.5
GAP_RECORDS = 10
PLATEAU_RECORDS = 10
PLATEAU_SHARE = 0.25
PLATEAU_FALL = 0.01
PLATEAU_NOISE = 1.5
PLATEAU_NOISY_FALL = 0.1
STUCK = 0.02
STUCK_STEPS = 200
STUCK_NOISE = 2.0
STUCK_RECORDS = 5
DECAYED = 0.1
V_STABLE = 0.2
R_NOISE = (0.05, 0.2)
READY_LAYERS = 0.8


def lost_loss(run: Run) -> Sequence[Sign]:
    """The last 3 recorded losses of training are NaN or infinite.

    Source: ours.
    """
    evidence = _lost(run, "loss")
    return [] if evidence is None else [Sign("lost_loss", None, "severe", evidence)]


def lost_val_loss(run: Run) -> Sequence[Sign]:
    """The last 3 recorded losses of validation are NaN or infinite, of training not.

    Source: ours.
    """
    evidence = _lost(run, "val_loss")
    if evidence is None or _lost(run, "loss") is not None:
        return []
    return [Sign("lost_val_loss", None, "severe", evidence)]


def skipped(run: Run) -> Sequence[Sign]:
    """More than 1% of the steps of the later half were skipped, 5 of them and more.

    Dynamic loss scaling skips one step in about 2,000, and some at the very start.
    Half of 100 steps and more are looked at. Severe from 10%.

    Source: Micikevicius et al., "Mixed Precision Training" (2018), section 3.2 (2,000
    steps between two trials); thresholds ours.
    """
    found = []
    for name in columns_named(run.history, "skipped"):
        steps, values = metric(run.history, name)
        later = steps >= steps[-1] / 2
        if not np.isfinite(values[later]).all() or later.sum() < 2:
            continue
        taken = int(steps[-1] - steps[later][0])
        count = int(values[-1] - values[later][0])
        if taken < SKIPPED_STEPS / 2 or count < SKIPPED_COUNT:
            continue
        if count < SKIPPED * taken:
            continue
        severity = "severe" if count >= SKIPPED_SEVERE * taken else "warning"
        share = {"share of steps": count / taken, "threshold": SKIPPED}
        evidence = {"counter": name, "skipped": count, **share}
        evidence |= span(steps[later], "records")
        found.append(Sign("skipped", None, severity, evidence))
    return found[:1]


def diverging(run: Run) -> Sequence[Sign]:
    """The last 5 losses are all half as large again as the first: see `began_at`.

    Losses at all signs: above the first by half of its size, and by four times what
    they differ by from one record to the next. That is not asked of more than twice the
    first, where losses are never negative.

    Source: ours.
    """
    steps, values = metric(run.history, "loss")
    if len(values) < 2 * ABOVE_START_RECORDS or steps[-1] < START:
        return []
    first, last = began_at(values), values[-ABOVE_START_RECORDS:]
    if not np.all(last > far_above(first, values)):
        return []
    evidence = {"loss": median(last), "at first": first}
    evidence |= span(steps[-ABOVE_START_RECORDS:], "records")
    return [Sign("diverging", None, "severe", evidence)]


def stuck(run: Run) -> Sequence[Sign]:
    """Behind 200 steps the training loss is less than 2% below where it began.

    Medians of 5 records, of 10 and more; nor was it ever lower by more than that.
    Where it began: see `began_at`. Not where it began within twice of what it differs
    by from one record to the next: 2% of about 0 is nothing (losses of policies, of
    either sign).

    Source: ours.
    """
    steps, values = metric(run.history, "loss")
    if len(values) < 2 * STUCK_RECORDS or steps[-1] < STUCK_STEPS:
        return []
    smooth = running_median(values, STUCK_RECORDS)
    first, best = began_at(values), float(np.min(smooth))
    if not (np.isfinite(smooth).all() and best > first - STUCK * abs(first)):
        return []
    if abs(first) <= STUCK_NOISE * fluctuation(values):
        return []
    evidence = {"loss": float(smooth[-1]), "at first": first, "threshold": STUCK}
    return [Sign("stuck", None, "warning", evidence | span(steps, "records"))]


def burst(run: Run) -> Sequence[Sign]:
    """Within 2,000 steps the loss was half as large again as at first, and fell back.

    5 records in a row, by their median, against the first record; far above noise,
    as in `diverging`. What comes behind says nothing of the rate: parameters that
    one step threw far away have small ratios of updates to parameters, and small r.
    Losses of single batches differ by far less at first. Behind the 2,000 steps this is
    the past.

    Source: Gilmer et al., "A Loss Curvature Perspective on Training Instability in Deep
    Learning" (2021), of the loss in the first steps at rates too large for the
    curvature; the numbers are ours, the half that of `diverging`.
    """
    steps, values = metric(run.history, "loss")
    if len(values) < 2 * ABOVE_START_RECORDS or steps[-1] > BURST_STEPS:
        return []
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if len(values) < 2 * ABOVE_START_RECORDS:
        return []
    smooth, first = running_median(values, ABOVE_START_RECORDS), float(values[0])
    k = int(np.argmax(smooth))
    limit = far_above(first, values)
    if not smooth[k] > limit >= smooth[-1]:  # still there: see `diverging`
        return []
    evidence = {"loss": float(smooth[k]), "at first": first}
    evidence |= span(steps[k : k + ABOVE_START_RECORDS], "records")
    return [Sign("burst", None, "warning", evidence)]


def alternating(run: Run) -> Sequence[Sign]:
    """The training loss goes up and down by turns, in 90% of the last 40 records.

    Of noise it is 67%. Seen where each step is recorded (or each third, ...).

    Source: Cohen et al., "Adaptive Gradient Methods at the Edge of Stability" (2022):
    oscillation along the sharpest direction; thresholds ours.
    """
    steps, values = metric(run.history, "loss")
    steps, values = steps[-ALTERNATIONS_RECORDS:], values[-ALTERNATIONS_RECORDS:]
    if len(values) < ALTERNATIONS_RECORDS or not np.isfinite(values).all():
        return []
    ups = np.sign(np.diff(values))
    share = float(np.mean(ups[1:] * ups[:-1] < 0))
    if steps[0] < START or share < ALTERNATIONS:
        return []
    evidence = {"share of turns": share, "threshold": ALTERNATIONS} | span(
        steps, "records"
    )
    return [Sign("oscillation", None, "warning", evidence)]


def exploding_norm(run: Run) -> Sequence[Sign]:
    """The global gradient norm, where no layers were measured, as `exploding` has it.

    The last 3 records, 100 times the median of those before; 20 records and more.

    Source: as for `exploding`; the numbers are ours.
    """
    if run.layers:
        return []
    steps, values = metric(run.history, "grad_norm")
    if len(values) < NORM_RECORDS or steps[-1] < START:
        return []
    usual, last = median(values[:-3]), values[-3:]
    if not (usual > 0 and np.all(last >= NORM_EXPLODED * usual)):
        return []
    evidence = {"gradient norm": float(np.min(last)), "median before": usual}
    evidence |= {"threshold": NORM_EXPLODED} | span(steps[-3:], "records")
    return [Sign("exploding", None, "severe", evidence)]


def gap(run: Run) -> Sequence[Sign]:
    """The last 5 validation losses are 10% above their best, with training better.

    And above it by 1.5 times what the last 20 differ by from one to the next. The best
    is that of medians of 5 records in a row, or of a twentieth of all: of very many the
    least would be one of luck. 10 records and more. For training losses near both
    times, medians likewise.

    Source: Prechelt, "Early Stopping - But When?" (1998), the generalization loss
    GL = 100 (E / E_best - 1), there from 1 to 5; 10 and the records are ours.
    """
    steps, values = metric(run.history, "val_loss")
    if len(values) < GAP_RECORDS or steps[-1] < START:
        return []
    width = max(GAP_LAST, len(values) // GAP_SHARE)
    if not np.isfinite(values).all():
        return []
    stride = max(1, width // GAP_LAST)
    smooth = running_median(values, width, stride)
    k = int(np.argmin(smooth))
    best, last = float(smooth[k]), values[-GAP_LAST:]
    noise = GAP_NOISE * fluctuation(values[-NOISE_RECORDS:])
    if not np.all(last >= best + max(GAP * abs(best), noise)) or k + 1 == len(smooth):
        return []
    k *= stride
    at_best = slice(k, k + width)
    train_then = around(run, steps[at_best])
    train_now = around(run, steps[-GAP_LAST:])
    if not train_now < train_then:
        return []
    evidence = {"validation loss": median(last), "its best": best}
    evidence |= {"best at step": int(steps[k + width // 2])}
    evidence |= {"training loss": train_now, "training loss then": train_then}
    evidence |= span(steps[-GAP_LAST:], "records")
    return [Sign("gap", None, "warning", evidence)]


def plateau(run: Run) -> Sequence[Sign]:
    """In a quarter of the run the validation loss fell by no more than it fluctuates.

    The last quarter of the steps, 10 records and more. The fall is from the median of
    the eighth before it to that of its later half, less than 1.5 times the usual
    difference from one record to the next: 1.48 times the median of |difference| (for
    Gaussian noise its standard deviation). Not where the training loss falls by 10%
    meanwhile (or, where it is not recorded, the validation loss): that is a fall,
    however noisy. A fall of less than 1% is none either, of the loss itself and of all
    that was won before. Not where the rate is below a tenth of its highest: there is
    nothing left to decay.

    Source: that a decay then helps: Goyal et al., "Accurate, Large Minibatch SGD"
    (2017), figures of the training curves; that the noise of the steps is what holds
    the loss up: Smith et al., "Don't Decay the Learning Rate, Increase the Batch Size"
    (2018), section 2; the numbers are ours.
    """
    at = _flat(run, "val_loss")
    if at is None:
        return []
    rate, _ = relative_rate(run.history)
    if rate[-1] < DECAYED:
        return []
    evidence = {**at, "rate / its highest": float(rate[-1])}
    return [Sign("plateau", None, "info", evidence)]


def ready_for_sgd(run: Run) -> Sequence[Sign]:
    """v is stable and m is noise in 80% of the layers, and the loss is flat.

    Stable: over the last quarter of the records the median of v has changed by at most
    a fifth. (A gradient that vanishes makes v_hat fall like 1 / t and faster: by a
    quarter and more.) Noise: the median of r, over its last measurements, is within
    0.05 and 0.2; of noise alone it is 0.155 at b1 = 0.9. Flat: as in `plateau`, of the
    validation loss, or without it of the training loss (less than 1%, then). Not where
    the rate is below a tenth of its highest: it decays already.

    Source: that a late switch helps, and that the time for it is when the rate of SGD
    that Adam's steps amount to no longer changes: Keskar & Socher, "Improving
    Generalization Performance by Switching from Adam to SGD" (2017), section 3; r as a
    signal-to-noise ratio: Kingma & Ba, "Adam" (2015), section 2.1; the numbers are
    ours.
    """
    names = [n for n in ("val_loss", "loss") if n in run.history.columns]
    at = _flat(run, names[0]) if names else None
    if at is None or relative_rate(run.history)[0][-1] < DECAYED:
        return []
    r = run.recent(run.percentile("r", 50))
    known = np.isfinite(r)
    judged = run.lasting(known, known)
    size = run.number(run.percentile("sqrt_v", 50))
    is_before = run.settled & (run.steps < at["first step"])
    then = medians(size[:, run.places(is_before, run.least)])
    now = medians(size[:, run.places(last=run.least)])
    with np.errstate(all="ignore"):
        change, usual = (now / then) ** 2 - 1, medians(r)
    low, high = R_NOISE
    is_ready = (np.abs(change) <= V_STABLE) & (usual >= low) & (usual <= high)
    ready = [i for i in judged if is_ready[i]]
    if not ready or len(ready) < READY_LAYERS * len(judged):
        return []
    evidence = {
        "layers": len(ready),
        "layers judged": len(judged),
        "change of v": median(change[ready]),
        "median r": median(usual[ready]),
        **span(run.steps[run.places()]),
    }
    return [Sign("ready_for_sgd", None, "info", evidence)]


def far_above(first: float, values: np.ndarray) -> float:
    """Half as large again as the first of some losses, and far above their noise.

    By four times what the first 20 or the last 20 differ by from one record to the
    next, whichever is less. Of losses that are never negative twice the first is
    enough, however wild they are.
    """
    size, finite = abs(first), values[np.isfinite(values)]
    noise = ABOVE_NOISE * noise_of(finite)
    if not (finite < 0).any():
        noise = min(noise, size)
    return first + max(ABOVE_START * size, noise)


def _flat(run: Run, name: str) -> dict[str, float] | None:
    """The evidence that a loss falls no more; None: it does, or nobody knows.

    Only validation losses are of the same examples each time, so that what they differ
    by from one to the next is the noise of the steps.
    """
    steps, values = metric(run.history, name)
    finite = values[np.isfinite(values)]
    if len(finite) < 2 * PLATEAU_RECORDS:
        return None
    ago = steps[-1] - steps
    quarter = max(PLATEAU_SHARE * ago[0], ago[-PLATEAU_RECORDS - 1])
    is_last, is_now = ago < quarter, ago < 0.5 * quarter
    is_before = (ago < 1.5 * quarter) & ~is_last
    if not quarter or steps[is_last][0] < START:
        return None
    # NaN now and then is left out; where few are left nobody knows.
    for among in (is_before, is_now):
        known = np.isfinite(values[among]).sum()
        if known < max(PLATEAU_RECORDS // 2, among.sum() / 2):
            return None
    before, now = median(values[is_before]), median(values[is_now])
    won = median(finite[: PLATEAU_RECORDS // 2]) - before
    numbers = {name: now, "a quarter before": before, "won before": won}
    limit = PLATEAU_FALL * min(won, abs(before))
    if name == "val_loss":
        noise = fluctuation(values[is_last])
        if np.isfinite(noise):  # two in a row
            numbers["from one to the next"] = noise
        witness = [around(run, steps[among]) for among in (is_before, is_now)]
        then, since = witness if np.isfinite(witness).all() else (before, now)
        if then - since < PLATEAU_NOISY_FALL * abs(then):
            limit = max(limit, np.nan_to_num(PLATEAU_NOISE * noise))
    if won <= limit or before - now >= limit:
        return None
    numbers["least fall"] = float(limit)
    return {**numbers, **span(steps[is_last], "records")}


def _lost(run: Run, name: str) -> dict[str, Any] | None:
    """The evidence that a loss is not finite any more; None: it is."""
    steps, values = metric(run.history, name)
    last = values[-LOST_RECORDS:]
    if len(last) < LOST_RECORDS or np.isfinite(last).any():
        return None
    finite = steps[np.isfinite(values)]
    last_finite = int(finite[-1]) if len(finite) else 0
    evidence = {"metric": name, "last finite at step": last_finite}
    return evidence | span(steps[-LOST_RECORDS:], "records")
