"""MEASUREMENTS -> SYMPTOMS: what is wrong with a layer, one rule a function.

r = |m_hat| / (sqrt(v_hat) + eps). For gradients that are independent Gaussian noise, m
is a moving average of 1/(1 - b1) of them, and |r| has the median
0.6745 sqrt((1 - b1) / (1 + b1)): 0.155 at b1 = 0.9, its 90th percentile is 2.4 times
that, and the cosine of gradient and m_hat is sqrt(1 - b1^2), 0.44. Thresholds stand
well off these values, which healthy training with mini-batches comes near to.

Each threshold has its source in its rule's docstring; "ours" is our own choice. All of
them were committed before any run that tests them. A rule looks at the last settled
measurements and wants its symptom in most of them: see `_evidence`. Where more than
half of a layer's elements never had a gradient (rows of an embedding that do not
occur), the rules about r and eps do not judge it.
"""

from collections.abc import Sequence

import numpy as np

from adamx.diagnostics._evidence import (
    START,
    Run,
    Sign,
    elements,
    has_gradient,
    is_solved,
    layer_rates,
    median,
    medians,
    span,
)

NEAR_ZERO = 0.01
NEAR_ZERO_SEVERE = 0.001
OUTLIER_SPREAD = 30.0
OUTLIER_HIGH = 0.1
EARLY = 2000
TINY = 0.02
EVERYWHERE = 0.8
EPS_SHARE = 0.5
EPS_SHARE_SEVERE = 0.9
RATIO = 1e-3
RATIO_HIGH = 0.1
RATIO_HIGH_SEVERE = 1.0
RATIO_LOW = 1e-5
RATIO_LOW_PEERS = 30.0
RATE_HIGH = 0.5
COSINE_LOW = -0.2
COSINE_LOW_SHARE = 0.3
COSINE_WINDOW = 20
COSINE_SIZE = 16.0
COSINE_HIGH = 0.9
ALTERNATING_R = 0.1
EXPLODED = 100.0
EXPLODED_LAST = 3
EXPLODED_BEFORE = 5
GROWN = 4.0
GROWN_WITHIN = 10
NONFINITE_MEASUREMENTS = 3
IMBALANCE_HIGH = 20.0
IMBALANCE_LOW = 100.0
RATE_APART = 100.0
RATE_APART_STEP = 3.0
IMBALANCE_LAYERS = 4


def near_zero(run: Run) -> Sequence[Sign]:
    """The median of r lasts below 0.01: 15 times less than noise gives.

    Not where the problem is solved, see `is_solved`.

    Source: r is the signal-to-noise ratio of Kingma & Ba, "Adam" (2015), section 2.1;
    the thresholds are ours. Severe below 0.001.
    """
    name = run.percentile("r", 50)
    r, high = run.recent(name), run.recent(run.percentile("r", 90))
    known = np.isfinite(r) & has_gradient(run) & (not is_solved(run))
    ill = (r < NEAR_ZERO) & ~(high >= OUTLIER_HIGH)  # those: see `outliers`
    found = []
    for i in run.lasting(ill, known):
        is_severe = median(r[i]) < NEAR_ZERO_SEVERE
        still = run.recent("still_share")
        values = {"median r": r, "share with r below 0.01": still}
        evidence = run.evidence(i, values, run.places(), threshold=NEAR_ZERO)
        severity = "severe" if is_severe else "warning"
        found.append(Sign("near_zero", run.layers[i], severity, evidence))
    return found


def outliers(run: Run) -> Sequence[Sign]:
    """The 90th percentile of r is 0.1 or more, and 30 times the median (noise: 2.4).

    Source: rare large gradients and what v keeps of them: Reddi, Kale & Kumar, "On the
    Convergence of Adam and Beyond" (2018), section 3; the thresholds are ours.
    """
    r, high = (run.recent(run.percentile("r", q)) for q in (50, 90))
    known = np.isfinite(r) & np.isfinite(high) & has_gradient(run)
    ill = (high >= OUTLIER_HIGH) & (high >= OUTLIER_SPREAD * r)
    found = []
    for i in run.lasting(ill, known):
        values = {"median r": r, "90th percentile of r": high}
        evidence = run.evidence(i, values, run.places(), threshold=OUTLIER_SPREAD)
        found.append(Sign("outliers", run.layers[i], "warning", evidence))
    return found


def tiny_early(run: Run) -> Sequence[Sign]:
    """In the first 2,000 steps the median of r is below 0.02 in 80% of the layers.

    A few steps with gradients much larger than those to come fill v, which forgets them
    in 1/(1 - b2) steps. Warmup is not left out here: r does not depend on the rate. Not
    where the problem is solved, see `is_solved`.

    Source: Ma & Yarats, "On the adequacy of untuned warmup for adaptive optimization"
    (2021): warmup over 2/(1 - b2) steps, 2,000 at b2 = 0.999; thresholds ours.
    """
    if not len(run.steps) or run.steps[-1] > EARLY or is_solved(run):
        return []
    places = run.places(run.steps >= START)
    r = run.number(run.percentile("r", 50))[:, places]
    gradient = run.number(run.percentile("sqrt_v", 50))[:, places]
    known = np.isfinite(r) & ~(gradient == 0)
    judged = run.lasting(known, known)
    ill = run.lasting(r < TINY, known)
    if not ill or len(ill) < EVERYWHERE * len(judged):
        return []
    evidence = {"median r": median(medians(r[ill])), "threshold": TINY}
    evidence |= {"layers": len(ill), "layers judged": len(judged)}
    evidence |= span(run.steps[places])
    return [Sign("tiny_early", None, "warning", evidence)]


def eps_dominates(run: Run) -> Sequence[Sign]:
    """In half of the elements, eps is the larger part of the denominator.

    Source: Wortsman et al., "Small-scale proxies for large-scale Transformer training
    instabilities" (2023), section 3.4 (gradients that sink to the size of eps); the
    share is ours. Severe from 0.9.
    """
    share = run.recent("eps_share")
    known = np.isfinite(share) & has_gradient(run)
    found = []
    for i in run.lasting(share >= EPS_SHARE, known):
        size = run.recent(run.percentile("sqrt_v", 50))
        values = {"share under eps": share, "median sqrt(v_hat)": size}
        evidence = run.evidence(i, values, run.places(), threshold=EPS_SHARE)
        is_severe = median(share[i]) >= EPS_SHARE_SEVERE
        severity = "severe" if is_severe else "warning"
        found.append(Sign("eps_dominates", run.layers[i], severity, evidence))
    return found


def ratio_high(run: Run) -> Sequence[Sign]:
    """The update/parameter ratio lasts at 0.1 or more, 100 times the usual 1e-3.

    Source: Karpathy, CS231n notes (2015), "Ratio of weights:updates"; how far is far:
    ours. Severe from 1: a step as large as the parameters.
    """
    ratio = run.recent("update_ratio")
    known = ~np.isnan(ratio)
    found = []
    for i in run.lasting(ratio >= RATIO_HIGH, known):
        values = {"update ratio": ratio}
        limits = {"usual": RATIO, "threshold": RATIO_HIGH}
        evidence = run.evidence(i, values, run.places(), **limits)
        is_severe = not median(ratio[i]) < RATIO_HIGH_SEVERE
        severity = "severe" if is_severe else "warning"
        found.append(Sign("ratio_high", run.layers[i], severity, evidence))
    return found


def ratio_low(run: Run) -> Sequence[Sign]:
    """The update/parameter ratio lasts below 1e-5, a hundredth of the usual 1e-3.

    Looked at where the rate is at least half of its highest: behind a decay all ratios
    are small. In some layers only: where it is also 30 times less than in the upper
    quarter of the layers (scales of normalisation are 1 and have small ratios in
    fine-tuning). Layers without moments (frozen) are not judged.

    Source: as in `ratio_high`; the numbers are ours.
    """
    among = run.settled & (run.rate >= RATE_HIGH)
    ratio = run.recent("update_ratio", among)
    r = run.recent(run.percentile("r", 50), among)
    known = np.isfinite(ratio) & np.isfinite(r)
    middle = medians(np.where(known, ratio, np.nan))
    finite = middle[np.isfinite(middle)]
    ill = run.lasting(ratio < RATIO_LOW, known)
    found = []
    for i in ill:
        upper = float(np.quantile(finite, 0.75))
        if middle[i] * RATIO_LOW_PEERS > upper >= RATIO_LOW:
            continue
        limits = {"usual": RATIO, "threshold": RATIO_LOW}
        values = {"update ratio": ratio}
        evidence = run.evidence(i, values, run.places(among), **limits)
        found.append(Sign("ratio_low", run.layers[i], "warning", evidence))
    return found


def oscillation(run: Run) -> Sequence[Sign]:
    """The gradient turns against m_hat again and again, or flips at each step.

    Slow: the mean of g * m is positive for every stationary gradient (the moving
    average has a positive real part at all frequencies), and for noise the cosine is
    0.44 at b1 = 0.9. An oscillation of some 14 steps makes it negative in up to 36% of
    the steps: found where 30% of the last 20 measurements are below -0.2 (10 and more
    known). In layers of few elements chance does that too: those of less than about 16,
    by the ratio of the gradient's norm to the median of sqrt(v_hat), are not judged.

    Fast: gradients of alternating sign leave m = (1 - b1) / (1 + b1) of themselves,
    with their present sign: the cosine is near 1 (0.9 and more), r is small (its 90th
    percentile below 0.1), and v does not fall in half of the measurements, so that
    gradients are still as large as sqrt(v).

    Source: Cohen et al., "Adaptive Gradient Methods at the Edge of Stability" (2022)
    for what goes on; the derivation and the thresholds are ours.
    """
    cosine = run.recent("cosine", last=COSINE_WINDOW)
    places = run.places(last=COSINE_WINDOW)
    size = elements(run)[:, None]
    known = np.isfinite(cosine) & (size >= COSINE_SIZE)
    is_long = known.sum(1, keepdims=True) >= 2 * run.least
    known_slow = known & is_long
    slow = run.lasting(cosine < COSINE_LOW, known_slow, COSINE_LOW_SHARE)
    found = []
    for i in slow:
        share = float(np.mean(cosine[i][known[i]] < COSINE_LOW))
        evidence = run.evidence(i, {"median cosine": cosine}, places)
        limit = {"threshold": COSINE_LOW_SHARE}
        evidence = {"share of negative cosines": share, **limit, **evidence}
        found.append(Sign("oscillation", run.layers[i], "warning", evidence))
    cosine, high = run.recent("cosine"), run.recent(run.percentile("r", 90))
    change = run.recent("v_change")
    known = np.isfinite(cosine) & np.isfinite(high) & np.isfinite(change) & (high > 0)
    flips = (cosine >= COSINE_HIGH) & (high < ALTERNATING_R)
    steady = run.lasting(change >= 0, known, 0.5)
    for i in sorted(set(run.lasting(flips, known)) & set(steady) - set(slow)):
        values = {"median cosine": cosine, "90th percentile of r": high}
        evidence = run.evidence(i, values, run.places())
        found.append(Sign("oscillation", run.layers[i], "warning", evidence))
    return found


def exploding(run: Run) -> Sequence[Sign]:
    """A gradient's norm 100 times its own median, or parameters that grow fourfold.

    Gradients: the last 3 measurements, against the settled ones before (5 and more).
    Parameters: within 10 measurements, with 10 before those: what grows evenly from
    zero no more than doubles then.

    Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural
    networks" (2013), section 2; the numbers are ours.
    """
    norm = run.number("grad_norm")[:, run.settled]
    params = run.number("param_norm")[:, run.settled]
    steps = run.steps[run.settled]
    before, last = norm[:, :-EXPLODED_LAST], norm[:, -EXPLODED_LAST:]
    found = []
    for i, layer in enumerate(run.layers):
        usual = median(before[i])
        is_known = np.isfinite(before[i]).sum() >= EXPLODED_BEFORE and usual > 0
        if is_known and np.all(last[i] >= EXPLODED * usual):
            evidence = {"gradient norm": float(np.min(last[i])), "median before": usual}
            evidence |= {"threshold": EXPLODED} | span(steps[-EXPLODED_LAST:])
            found.append(Sign("exploding", layer, "severe", evidence))
        elif params.shape[1] >= 2 * GROWN_WITHIN:
            old, new = params[i, -GROWN_WITHIN - 1], params[i, -EXPLODED_LAST:]
            if old > 0 and np.all(new >= GROWN * old):
                evidence = {"parameter norm": float(new[-1]), "10 before": float(old)}
                evidence |= {"threshold": GROWN} | span(steps[-GROWN_WITHIN:])
                found.append(Sign("growing", layer, "severe", evidence))
    return found


def nonfinite(run: Run) -> Sequence[Sign]:
    """The gradient has elements that are not finite in 3 of the last 10 measurements.

    From the first step on. One alone is what dynamic loss scaling makes.

    Source: Micikevicius et al., "Mixed Precision Training" (2018), section 3.2; the
    count is ours.
    """
    places = run.places(run.steps > 0)
    count = run.number("nonfinite")[:, places]
    found = []
    for i, layer in enumerate(run.layers):
        times = int((count[i] > 0).sum())
        if times >= min(NONFINITE_MEASUREMENTS, run.least):
            evidence = {"most elements": float(np.nanmax(count[i])), "times": times}
            evidence |= span(run.steps[places])
            found.append(Sign("nonfinite", layer, "severe", evidence))
    return found


def dead(run: Run) -> Sequence[Sign]:
    """The gradient is 0 in a layer that has moments, while others have gradients.

    Frozen layers have no moments (r is NaN) and are left out.

    Source: ours.
    """
    norm = run.recent("grad_norm")
    r = run.recent(run.percentile("r", 50))
    known = np.isfinite(norm) & np.isfinite(r)
    learning = np.any(norm > 0, axis=0, keepdims=True)
    found = []
    for i in run.lasting((norm == 0) & learning, known, 1.0):
        values = {"gradient norm": norm, "median r": r}
        evidence = run.evidence(i, values, run.places())
        found.append(Sign("dead", run.layers[i], "severe", evidence))
    return found


def imbalance(run: Run) -> Sequence[Sign]:
    """A layer's update ratio is 20 times the median of the layers, or a hundredth.

    Of 4 layers and more; those without moments, without a gradient, or that do not
    move, are left out. Biases that begin at 0 have some 5 times the median.

    Source: layers differ in what rate they bear: You, Gitman & Ginsburg, "Large Batch
    Training of Convolutional Networks" (LARS, 2017), section 4; the factor is ours.
    """
    ratio = run.recent("update_ratio")
    known = np.isfinite(ratio) & np.isfinite(run.recent(run.percentile("r", 50)))
    known &= (ratio > 0) & (run.recent("grad_norm") != 0)
    judged = run.lasting(known, known)
    if len(judged) < IMBALANCE_LAYERS:
        return []
    rows = np.where(known, ratio, np.nan)
    usual = np.array([median(column) for column in rows[judged].T])
    high, low = rows > IMBALANCE_HIGH * usual, rows * IMBALANCE_LOW < usual
    found = []
    ill = {i for signs in (high, low) for i in run.lasting(signs, known)}
    for i in sorted(ill):
        evidence = run.evidence(i, {"update ratio": rows}, run.places())
        evidence |= {"median ratio of the layers": median(usual)}
        found.append(Sign("imbalance", run.layers[i], "warning", evidence))
    return found


def rate_apart(run: Run) -> Sequence[Sign]:
    """A layer's rate is 100 times the median of the layers, its full step 3 times.

    The rate: step over r. The full step: the update/parameter ratio over the 90th
    percentile of r, which is what the ratio would be at r = 1. A layer that runs away
    makes its own r small, and grows with its rate: the ratio alone hardly shows a rate
    that is far too large. Of 4 layers and more. Layers whose parameters are as much
    larger as their rate (another parametrization) have the full step of the others.

    Source: of layers with rates of their own, Howard & Ruder, "Universal Language Model
    Fine-tuning" (2018), section 3.2: 2.6 times from layer to layer; the numbers are
    ours.
    """
    rate, ratio = layer_rates(run), run.recent("update_ratio")
    r = run.recent(run.percentile("r", 90) or run.percentile("r", 50))
    full = np.where(r > 0, ratio / np.where(r > 0, r, 1.0), np.nan)
    known = np.isfinite(rate) & np.isfinite(full) & (rate > 0)
    judged = run.lasting(known, known)
    if len(judged) < IMBALANCE_LAYERS:
        return []
    usual, usual_full = (
        np.array([median(column) for column in values[judged].T])
        for values in (rate, full)
    )
    ill = (rate >= RATE_APART * usual) & (full >= RATE_APART_STEP * usual_full)
    found = []
    for i in run.lasting(ill, known):
        values = {"rate": rate, "update ratio at r = 1": full}
        evidence = run.evidence(i, values, run.places(), threshold=RATE_APART)
        evidence |= {"median rate of the layers": median(usual)}
        evidence |= {"median of that ratio": median(usual_full)}
        found.append(Sign("rate_apart", run.layers[i], "warning", evidence))
    return found
