"""health: the rules on whole runs, and what two rules say of each other."""

import math

import numpy as np
import pytest

import adamx
from tests.helpers_health import (
    INF,
    LAYERS,
    NAN,
    NOISE,
    WELL,
    by_turns,
    falling,
    first,
    history,
    in_blocks,
    last,
    losses,
    named,
    one_run,
    replaced,
    with_layer,
)

# The whole run: (kind, three strengths, below), as arguments of `history`.
RUNS = {
    "burst": (
        "burst",
        [
            losses(lambda k, x=x: 2.0 if k < 4 else x if k < 12 else 1.0, every=10)
            for x in (3.1, 30.0, 1e9)
        ],
        losses(lambda k: 2.0 if k < 4 else 2.9 if k < 12 else 1.0, every=10),
    ),
    "unshuffled": (
        "unshuffled",
        [losses(in_blocks(size, 3.0), n=250) for size in (2, 8, 13)],
        losses(in_blocks(8, 0.7), n=250),
    ),
    "memorised": (
        "memorised",
        # 1.43 are won in training: 0.95 are two thirds of it, from 1.9 on.
        [losses(falling, lambda k, x=x: max(2 - k / 10, x)) for x in (1.0, 1.5, 1.9)],
        losses(falling, lambda k: max(2 - k / 10, 0.9 - 0.005 * k)),
    ),
    "memorised of late": (
        "memorised",
        # 0.76, 0.8, 0.89 of what training won; none of it in the later half.
        [losses(falling, lambda k, x=x: max(2 - k / 10, x)) for x in (0.81, 0.7, 0.63)],
        losses(falling, lambda k: max(2 - k / 10, 0.6)),
    ),
    "lost": (
        "lost_loss",
        [
            losses(lambda k, x=x: x if k > 37 else falling(k))
            for x in (NAN, INF, -INF)  # the last three
        ],
        losses(lambda k: NAN if k in (20, 39, 40) else falling(k)),
    ),
    "validation lost": (
        "lost_val_loss",
        [
            losses(falling, lambda k, x=x: x if k > 37 else falling(k))
            for x in (NAN, INF, -INF)
        ],
        losses(falling, lambda k: NAN if k in (20, 39, 40) else falling(k)),
    ),
    "diverging": (
        "diverging",
        [losses(lambda k, x=x: 2.0 if k < 20 else x) for x in (3.1, 30.0, 1e9)],
        losses(lambda k: 2.0 if k < 20 else 2.9),
    ),
    "alternating": (
        "oscillation",
        [
            losses(lambda k, x=x: 1 + 9 * (k < 9) + x * (-1) ** k, n=60)
            for x in (1e-4, 0.1, 0.9)
        ],
        losses(lambda k: 1.0 + 9 * (k < 9) + (k % 3 == 0), n=60),
    ),
    "stuck": (
        "stuck",
        [losses(lambda k, x=x: 2.0 + x * k) for x in (-4e-4, 0.0, 0.01)],
        losses(lambda k: 2.0 - 2e-3 * k),
    ),
    "gap": (
        "gap",
        [
            losses(falling, lambda k, x=x: 2.0 - k / 20 if k < 20 else 1.0 + x)
            for x in (0.3, 0.5, 5.0)
        ],
        losses(falling, lambda k: 2.0 - k / 20 if k < 20 else 1.05 + k * 1e-4),
    ),
    "plateau": (
        "plateau",
        [
            losses(None, lambda k, x=x: max(2.0 - k / 10, x), rate=lambda k: 1e-3)
            for x in (0.2, 0.5, 1.0)
        ],
        losses(None, lambda k: 1.0 - k / 50, rate=lambda k: 1e-3),
    ),
    "skipped": (
        "skipped",
        [
            losses(None, skipped=lambda k, x=x: int(x * 100 * k))
            for x in (0.011, 0.05, 0.9)
        ],
        losses(None, skipped=lambda k: int(0.0095 * 100 * k) + 50),
    ),
}


@pytest.mark.parametrize("strength", range(3))
@pytest.mark.parametrize("name", RUNS)
def test_an_illness_of_the_run_is_found(name, strength):
    kind, strengths, _ = RUNS[name]
    found = adamx.health(history(**strengths[strength]))
    assert named(found) - {("plateau", None)} | {(kind, None)} == {(kind, None)}
    assert (kind, None) in named(found)


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_found_in_a_run_below_the_threshold(name):
    found = named(adamx.health(history(**RUNS[name][2])))
    assert RUNS[name][0] not in {kind for kind, _ in found}


# (records, whether they are ill)
def little(k):
    """So little that validation at 1.12 has more than half of it."""
    return 0.9 + 0.3 * falling(k)


CLOSE_RUNS = {
    "norm, 3 of 20": (one_run(20, grad_norm=last(20, 3, 110, 1)), True),
    "norm, 3 of 19": (one_run(19, grad_norm=last(19, 3, 110, 1)), False),
    "norm, 2 of 20": (one_run(20, grad_norm=last(20, 2, 110, 1)), False),
    "norm, 90 times": (one_run(20, grad_norm=last(20, 3, 90, 1)), False),
    "norm, early": (one_run(20, 1, grad_norm=last(20, 3, 110, 1)), False),
    "5 skipped": (one_run(20, skipped=lambda k: max(k - 15, 0)), True),
    "4 skipped": (one_run(20, skipped=lambda k: max(k - 16, 0)), False),
    "skipped in 40 steps": (one_run(9, skipped=lambda k: 9 * k), False),
    "skipped in 60 steps": (one_run(12, skipped=lambda k: 9 * k), True),
    "5 above the start": (one_run(10, loss=last(10, 5, 3.1, 2)), True),
    "4 above the start": (one_run(10, loss=last(10, 4, 3.1, 2)), False),
    "a burst, 2 records": (
        one_run(20, loss=lambda k: 9 if 9 < k < 12 else 2 / k),
        False,
    ),
    "a burst, 3 records": (
        one_run(20, loss=lambda k: 9 if 9 < k < 13 else 2 / k),
        True,
    ),
    "a burst, long ago": (
        one_run(220, loss=lambda k: 9 if 4 < k < 12 else 2 / k),
        False,
    ),
    "9 records": (one_run(9, loss=last(9, 4, 3.1, 2)), False),
    "negative, above": (one_run(10, loss=last(10, 5, -0.9, -2)), True),
    "negative, below": (one_run(10, loss=last(10, 5, -1.1, -2)), False),
    "turns in 39 records": (one_run(39, 40, loss=first(by_turns(1, 1.1))), False),
    "turns in 46 records": (one_run(46, 40, loss=first(by_turns(1, 1.1))), True),
    "stuck, 1.9% better": (one_run(20, loss=last(20, 15, 0.981, 1.0)), True),
    "stuck, 2.1% better": (one_run(20, loss=last(20, 15, 0.979, 1.0)), False),
    "stuck, negative": (one_run(20, loss=last(20, 15, -1.019, -1.0)), True),
    "not stuck, negative": (one_run(20, loss=last(20, 15, -1.021, -1.0)), False),
    "stuck, 190 steps": (one_run(19, loss=lambda k: 1.0), False),
    "stuck, 200 steps": (one_run(20, loss=lambda k: 1.0), True),
    "turns, at first": (one_run(45, 1, loss=by_turns(1.0, 1.1)), False),
    "gap, 5 records": (one_run(20, loss=little, val_loss=last(20, 5, 1.12, 1)), True),
    "gap, 4 records": (one_run(20, loss=little, val_loss=last(20, 4, 1.12, 1)), False),
    "gap, 8%": (one_run(20, loss=little, val_loss=last(20, 5, 1.08, 1)), False),
    "gap, 9 records": (one_run(9, loss=falling, val_loss=last(9, 5, 2, 1)), False),
    "gap, 10 records": (one_run(10, loss=falling, val_loss=last(10, 5, 2, 1)), True),
    "plateau, 20 records": (one_run(20, val_loss=lambda k: max(2 - k / 5, 0.5)), True),
    "plateau, 19 records": (one_run(19, val_loss=lambda k: max(2 - k / 5, 0.5)), False),
    # 0.75 were won, by medians of 5: from 1.85 to 1.1.
    "1.2% better": (
        one_run(30, val_loss=lambda k: 2 - k / 20 if k <= 20 else 1.1 - 0.012 * 0.75),
        False,
    ),
    "0.8% better": (
        one_run(30, val_loss=lambda k: 2 - k / 20 if k <= 20 else 1.1 - 0.008 * 0.75),
        True,
    ),
}


@pytest.mark.parametrize("name", CLOSE_RUNS)
def test_runs_close_to_a_threshold(name):
    found, is_ill = CLOSE_RUNS[name]
    assert len(adamx.health(found)) == is_ill


@pytest.mark.parametrize("n", [110, 150, 500])
def test_noise_and_slow_changes_have_no_period(n):
    slow = 3 * np.sin(np.arange(1000) / 40) + np.cumsum(NOISE) / 3
    for loss in (
        in_blocks(1, 0.0),
        lambda k: 30 + NOISE[k] + slow[k],
        lambda k: 30 * 0.99**k + (100 if k % 97 == 0 else 0) + 0.1 * NOISE[k],
    ):
        found = adamx.health(one_run(n, 1, loss=loss))
        assert ("unshuffled", None) not in named(found)
    few = one_run(n, 1, loss=in_blocks(3, 3.0))
    assert ("unshuffled", None) in named(adamx.health(few)) or n == 110


def triangle(k, period=12):
    return 0.001 + abs(k % period - period / 2) / period


RATES = {  # (the rate, whether it goes up and down)
    "not recorded": (lambda k: None, False),
    "constant": (lambda k: 0.1, False),
    "a warmup and a decay": (lambda k: 0.1 * min(k / 30, 1.3 - k / 300), False),
    "rounded": (lambda k: 0.1 * (1 + 1e-7 * (k % 2)), False),
    "a decay": (lambda k: 0.1 / k, False),
    "triangles": (triangle, True),
    "of one group": (lambda k: {"a": 0.1, "b": triangle(k)}, True),
    "restarts that get lower": (lambda k: 0.99**k * (12 - k % 12), True),
}


@pytest.mark.parametrize("name", RATES)
def test_a_loss_that_goes_with_the_rate_is_no_order_of_batches(name):
    rate, is_cyclic = RATES[name]
    if name == "not recorded":
        run = one_run(250, 5, loss=in_blocks(6, 3.0))
    else:
        run = one_run(250, 5, loss=in_blocks(6, 3.0), learning_rate=rate)
    found = adamx.health(run)
    assert (("unshuffled", None) in named(found)) == (not is_cyclic)
    assert any("order of the batches" in x for x in found.not_judged) == is_cyclic


def test_what_was_not_measured_is_no_evidence():
    found = adamx.History()
    for step in range(1, 9):
        layers = {"kernel": {"r/p50": 2e-4}, "bias": {"r/p50": 0.15}}
        measured = adamx.reading.Diagnostics(1000 * step, layers)
        found.append(adamx.Reading(count=1000 * step, diagnostics=measured))
    (own,) = adamx.health(found)
    assert own.layer == "kernel"
    assert own.evidence["median r"] == pytest.approx(2e-4)
    assert not any("share" in name for name in own.evidence)


def test_the_period_is_in_steps():
    found = adamx.health(one_run(300, 2, loss=in_blocks(5, 4.0)))
    (own,) = (f for f in found if "repeats itself" in f.symptom)
    assert own.evidence["period in steps"] == 20


def test_a_loss_that_blew_up_in_the_first_step_began_before():
    for value, kind in ((8.0, "diverging"), (1.99, "stuck"), (1.0, "burst")):
        loss = [2.0, *[8.0] * 9, *[value] * 30]
        run = one_run(40, loss=lambda k, loss=loss: loss[k - 1])
        assert (kind, None) in named(adamx.health(run))


def test_the_findings_of_a_run_go_with_their_causes():
    back = history(n=60, loss=lambda k: 9.0 if 20 < k < 58 else falling(k))
    assert adamx.health(back) == []
    back = history(n=60, loss=lambda k: NAN if 20 < k < 60 else falling(k))
    assert adamx.health(back) == []
    back = history(n=60, skipped=lambda k: min(100 * k, 2000))
    assert adamx.health(back) == []
    back = history(n=60, loss=lambda k: falling(k) + (0.1 * (-1) ** k if k < 45 else 0))
    assert named(adamx.health(back)) <= {("ready_for_sgd", None)}, "flat by now"
    val = [2.0, *(2 - k / 15 for k in range(20)), *[0.7] * 20, *[0.5] * 10]
    constant = {"rate": lambda k: 1e-3, "loss": falling}
    found = adamx.health(history(n=41, val_loss=lambda k: val[k - 1], **constant))
    assert named(found) - {("ready_for_sgd", None)} == {("plateau", None)}
    assert adamx.health(history(n=50, val_loss=lambda k: val[k - 1], **constant)) == []


def test_only_the_validation_loss_is_lost():
    lost = losses(falling, lambda k: NAN if k > 20 else falling(k))
    (found,) = (f for f in adamx.health(history(**lost)) if "validation" in f.symptom)
    assert found.evidence["last finite at step"] == 2000
    words = " ".join((*found.likely_causes, *found.what_to_try))
    assert "guard" not in words
    for word in ("log(0)", "running statistics", "empty batch"):
        assert word in words
    both = losses(lambda k: NAN if k > 30 else falling(k), lost["val_loss"])
    assert named(adamx.health(history(**both))) == {("lost_loss", None)}


def test_what_is_printed_where_nothing_is_found():
    losses = ("training loss (not recorded)", "validation loss (not recorded)")
    nothing = adamx.health(adamx.History())
    layers = "layers (not measured: adamx.diagnose measures them)"
    assert nothing == []
    assert nothing.not_judged == (layers, *losses)
    assert str(nothing) == (
        f"no findings in 0 records\nnot judged: {'; '.join(nothing.not_judged)}"
    )
    metrics = {"loss": falling, "val_loss": lambda k: 2.0 - k / 25}
    well = adamx.health(history(**metrics))
    assert str(well) == "no findings in 40 records of 6 layers"
    few = adamx.health(history(n=4, **metrics))
    assert few.not_judged == (
        "layers (4 measurements behind step 50 and the warmup, of 5 that it takes)",
        "training loss (4 records, of 10 that it takes)",
        "validation loss (4 records, of 10 that it takes)",
    )
    one = adamx.health(history(n=1, layers=("w",))[0].reading)
    assert str(one) == (
        "no findings in 1 reading of 1 layer\n"
        "not judged: losses (a Reading has none: pass a History)"
    )
    ill = adamx.health(history({"r/p50": 1e-5, "r/p90": 5e-5}))
    first, evidence, rest = str(ill).splitlines()
    assert f"{first}\n{evidence}" == str(ill[0])
    assert rest == f"not judged: {'; '.join(losses)}"


def test_a_gap_needs_training_that_gets_better():
    def val(k):
        return 2.0 - k / 20 if k < 20 else 1.5

    assert named(adamx.health(history(loss=falling, val_loss=val))) == {("gap", None)}
    for train in (val, None):  # no better; not known
        found = adamx.health(history(loss=train, val_loss=val))
        assert named(found) == {("plateau", None)}


def test_a_fall_within_the_noise_of_the_steps_is_none():
    def val(fall, noise):
        # Records differ by some 0.02 * noise; over a quarter they fall by `fall`.
        return lambda k: 3 * 0.5**k + 1 - fall * k / 10 + 0.01 * noise * (-1) ** k

    # The usual difference as a deviation: about 1.4826 * 0.02 = 0.03.
    for fall, noise, is_found in (
        (0.025, 1, True),
        (0.033, 1, True),
        (0.055, 1, False),
        (0.025, 0.5, False),
        (0.0125, 0.5, True),
        (0.055, 2, True),
    ):
        found = adamx.health(one_run(40, val_loss=val(fall, noise)))
        assert named(found) == ({("plateau", None)} if is_found else set()), fall
    (found,) = adamx.health(one_run(40, val_loss=val(0.025, 1)))
    evidence = found.evidence
    assert evidence["a quarter before"] - evidence["val_loss"] == pytest.approx(0.025)
    assert evidence["from one to the next"] == pytest.approx(0.03, rel=0.15)
    assert evidence["records"] == 10


def test_what_falls_fast_is_no_plateau_however_noisy():
    def val(k):
        return 3 * 0.5**k + 0.02 * (1 + 0.2 * (-1) ** k - 0.8 * k / 40)

    def train(per_quarter):
        return lambda k: 2 * (1 - per_quarter) ** (k / 10)

    for loss, is_found in (
        (None, False),  # the validation loss itself falls by a third
        (train(0.09), True),
        (train(0.11), False),
        (lambda k: 9 * 0.5**k + 2 + NOISE[k] / 100, True),
    ):
        metrics = {"val_loss": val} | ({"loss": loss} if loss else {})
        found = adamx.health(one_run(40, **metrics))
        assert (("plateau", None) in named(found)) == is_found


def test_a_quarter_is_one_of_the_steps_however_often_they_are_recorded():
    steps = [*range(500, 10_001, 500), *range(9_986, 10_000)]

    def run(fall):
        found, noise = adamx.History(), np.random.default_rng(0)
        for step in sorted(steps):
            value = 3 - fall * step / 10_000 + 0.002 * noise.normal()
            value += 3 * 0.5 ** (step / 500)
            found.append(adamx.Reading(count=step), val_loss=value)
        return found

    assert adamx.health(run(2.0)) == []
    dense = run(0.0)
    assert adamx.health(dense) == [], "three records in the eighth before"
    steps += range(6_300, 7_500, 100)
    assert adamx.health(run(2.0)) == []
    assert named(adamx.health(run(0.0))) == {("plateau", None)}


@pytest.mark.parametrize("fall", [0.0, 0.3])
def test_losses_about_zero_have_no_scale_but_their_noise(fall):
    """Of policies, for instance: what they began with is small by chance."""
    false = 0
    for seed in range(100, 150):
        noise = 0.05 * np.random.default_rng(seed).normal(size=101)
        loss = {"loss": lambda k, n=noise: n[k] - fall * k / 100}
        false += len(adamx.health(one_run(100, **loss)))
    assert false <= 2, "of 50 runs half had one, by the size of their first loss alone"
    for rise, kind in ((0.5, "diverging"), (1e9, "diverging")):
        loss = {"loss": lambda k, r=rise: noise[k] + (r if k > 60 else 0)}
        assert named(adamx.health(one_run(100, **loss))) == {(kind, None)}
    up = one_run(100, loss=lambda k: noise[k] + (0.5 if 10 < k < 40 else 0))
    assert named(adamx.health(up)) == {("burst", None)}


def test_validation_about_zero_has_no_scale_but_its_noise():
    false = 0
    for seed in range(50):
        noise = 0.05 * np.random.default_rng(seed).normal(size=(2, 101))
        loss = {"loss": lambda k, n=noise: n[0, k] - 0.1 * k / 100}
        val = {"val_loss": lambda k, n=noise: n[1, k]}
        found = named(adamx.health(one_run(100, **loss, **val)))
        false += bool({("gap", None), ("memorised", None)} & found)
    assert false <= 2


def test_a_wild_loss_that_is_never_negative():
    """Twice the first is far enough for it, and within its noise is not above."""
    rng = np.random.default_rng(3)
    wild = np.exp(rng.normal(3.5, 0.5, 101))
    diverged = one_run(100, loss=lambda k: 5.6 if k == 1 else 20 + wild[k])
    assert named(adamx.health(diverged)) == {("diverging", None)}
    false = 0
    for _ in range(50):
        noise = 0.15 * rng.normal(size=101)
        loss = {"loss": lambda k, n=noise: abs(0.7 + n[k] - 0.1 * k / 100)}
        false += ("burst", None) in named(adamx.health(one_run(100, **loss)))
    assert false <= 2


def test_the_least_of_very_many_validations_is_luck():
    """Nothing is gained or lost behind the start; training gets better."""
    noise = 1 + 0.15 * np.random.default_rng(1).normal(size=(6, 1001))
    for own in noise:
        metrics = {"loss": little, "val_loss": lambda k, own=own: own[k] + 2 * 0.9**k}
        found = adamx.health(one_run(1000, **metrics))
        assert ("gap", None) not in named(found)
    worse = {"val_loss": lambda k: own[k] + 2 * 0.9**k + (k > 600) * 0.8}
    found = adamx.health(one_run(1000, loss=little, **worse))
    assert ("gap", None) in named(found)


def test_one_wild_validation_is_not_noise():
    def val(k):
        return 2 - k / 40 + (5 if k % 9 == 0 else 0)

    assert adamx.health(one_run(60, val_loss=val)) == []


@pytest.mark.parametrize("first", [1, 20, 48])
def test_validations_that_are_nan_are_left_out(first):
    def val(k):
        return NAN if first <= k < first + 10 and k % 3 else max(2 - k / 20, 0.5)

    assert named(adamx.health(one_run(60, val_loss=val))) == {("plateau", None)}
    few = one_run(60, val_loss=lambda k: NAN if k > 45 and k % 4 else val(k))
    assert named(adamx.health(few)) == set(), "two of each three: nobody knows"
    # The quarter is one of the run, not of what is known of it.
    late = one_run(80, val_loss=lambda k: NAN if k < 50 else 2 - (k - 50) / 30)
    assert named(adamx.health(late)) == set()


def test_what_never_fell_beyond_its_noise_is_no_plateau():
    found = adamx.health(one_run(40, val_loss=lambda k: 2 + 0.1 * NOISE[k]))
    assert found == []


def test_the_noise_of_batches_is_not_that_of_the_steps():
    well = {"sqrt_v/p50": 1e-2, "r/p50": 0.15}
    noise = 0.05 * np.random.default_rng(0).normal(size=400)
    falls = history(well, where=LAYERS, loss=lambda k: 2 - k / 50 + noise[k])
    assert ("ready_for_sgd", None) not in named(adamx.health(falls))
    stands = losses(lambda k: max(2.0 - k / 10, 0.5))
    stands = history(well, where=LAYERS, **stands)
    assert ("ready_for_sgd", None) in named(adamx.health(stands))


def test_behind_a_decay_a_plateau_is_the_end():
    def val(k):
        return max(2.0 - k / 10, 0.5)

    decayed = history(loss=falling, val_loss=val, rate=lambda k: 1e-3 * (1 - k / 41))
    assert adamx.health(decayed) == []
    for end, count in ((0.09, 0), (0.11, 1)):
        final = history(val_loss=val, rate=lambda k, end=end: end if k > 30 else 1.0)
        assert len(adamx.health(final)) == count, end
    ill = {"update_ratio": lambda k: 3e-3 * (1 - k / 41) ** 3}
    low = history(ill, where=LAYERS, rate=lambda k: 1e-3 * (1 - k / 41) ** 3)
    assert adamx.health(low) == []


def test_validation_that_stands_while_training_goes_on():
    def run(end, val_end, n=40):
        train = [2.0] * 5 + [0.2] * (n // 2 - 5) + [end] * (n - n // 2)
        val = [2.0] * 5 + [0.6] * (n // 2 - 5) + [val_end] * (n - n // 2)
        return one_run(n, loss=lambda k: train[k - 1], val_loss=lambda k: val[k - 1])

    for end, val_end, is_found in (
        (0.09, 0.6, True),
        (0.11, 0.6, False),  # training has not halved
        (0.02, 0.6 * 0.1**0.09, True),  # 0.09 of the logarithms
        (0.02, 0.6 * 0.1**0.11, False),
        (0.0, 0.6, False),  # no logarithm
    ):
        found = named(adamx.health(run(end, val_end)))
        assert (("memorised", None) in found) == is_found, (end, val_end)
    assert ("memorised", None) not in named(adamx.health(run(0.09, 0.6, n=19)))


def test_ready_for_sgd():
    flat = losses(falling, lambda k: max(2.0 - k / 10, 0.5))
    well = {"sqrt_v/p50": 1e-2, "r/p50": 0.15}
    found = adamx.health(history(well, where=LAYERS, **flat))
    assert named(found) == {("plateau", None), ("ready_for_sgd", None)}
    assert all(f.severity == "info" for f in found)
    still = losses(falling, lambda k: 2.0 - k / 25)
    found = adamx.health(history(well, where=LAYERS, **still))
    assert found == [], "the validation loss falls"
    decayed = {"rate": lambda k: 1e-3 if k < 35 else 9e-5, **flat}
    assert adamx.health(history(well, where=LAYERS, **decayed)) == []

    def then(factor):
        return lambda k: 1e-2 if k <= 30 else 1e-2 * factor

    one, two, four = LAYERS[:1], LAYERS[:2], LAYERS[:4]  # of 6; 80% must be ready
    for where, changed, expected in (
        (LAYERS, {"sqrt_v/p50": then(1.19**0.5)}, True),
        (LAYERS, {"sqrt_v/p50": then(1.21**0.5)}, False),
        (LAYERS, {"sqrt_v/p50": then(0.81**0.5)}, True),
        (LAYERS, {"sqrt_v/p50": then(0.79**0.5)}, False),
        (LAYERS, {"r/p50": 0.051}, True),
        (LAYERS, {"r/p50": 0.049}, False),  # a gradient that vanishes
        (LAYERS, {"r/p50": 0.199}, True),
        (LAYERS, {"r/p50": 0.201}, False),  # it still leads somewhere
        (one, {"r/p50": 0.3}, True),
        (two, {"r/p50": 0.3}, False),
        (four, {"r/p50": NAN}, True),  # not judged: frozen
    ):
        found = history(well, where=LAYERS, **flat)
        own = history(well | changed, where=LAYERS, **flat)
        for layer in where:
            found = replaced(found, own, layer)
        is_found = ("ready_for_sgd", None) in named(adamx.health(found))
        assert is_found == expected, (where, changed)


# ------------------------------------------------------------------ nothing to be found


@pytest.mark.parametrize("seed", range(10))
def test_health_of_the_healthy(seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.05, 1000)
    for every, n in ((1, 300), (10, 40), (100, 60), (1000, 8)):
        well = history(
            n=n,
            every=every,
            seed=seed,
            rate=lambda k, n=n: min(k / (0.05 * n), 1 - k / n + 1e-3) * 1e-3,
            loss=lambda k, n=n: 2.0 * math.exp(-3 * k / n) + 0.3 + noise[k],
            val_loss=lambda k, n=n: 2.0 * math.exp(-3 * k / n) + 0.4 + noise[-k] / 5,
            skipped=lambda k, every=every: min(12, every * k),
        )
        assert adamx.health(well) == [], (every, n)


def test_chance_in_small_layers_is_no_oscillation():
    rng = np.random.default_rng(0)
    # A scalar's cosine is +-1; at b1 = 0.9 it is -1 in 36% of the steps.
    scalar = {
        "cosine": lambda k: float(rng.choice([-1.0, 1.0], p=[0.36, 0.64])),
        "grad_norm": 0.01,
    }
    for seed in range(10):
        assert adamx.health(history(scalar, n=60, seed=seed)) == []


def test_a_parameter_that_starts_at_zero_may_grow():
    growing = {
        "param_norm": lambda k: 0.01 * k,
        "update_ratio": lambda k: 1.0 / (10 * k),
    }
    for n in range(6, 60, 7):
        assert adamx.health(history(growing, n=n, every=10)) == []


def test_frozen_layers_and_those_behind_a_switch_are_not_judged():
    frozen = dict.fromkeys(WELL, NAN) | {"grad_norm": 0.3, "param_norm": 1.6}
    frozen |= {"update_norm": 0.0, "update_ratio": 0.0, "nonfinite": 0.0}
    assert adamx.health(history(frozen)) == []
    assert adamx.health(history(frozen | {"grad_norm": 0.0})) == []
    assert adamx.health(history(frozen, where=LAYERS)) == []
    # Sick in Adam's phase, and then handed over to SGD.
    numbers = {"r/p50": lambda k: 1e-4 if k < 38 else NAN, "r/p90": 1e-3}
    assert adamx.health(history(numbers)) == []
    # An illness of all others is one of all layers that have moments.
    ill = history({"r/p50": 1e-4, "r/p90": 1e-3}, where=LAYERS)
    mixed = with_layer(ill, "frozen", frozen)
    assert named(adamx.health(mixed)) == {("near_zero", None)}


def test_elements_without_a_gradient_are_not_judged():
    unused = {"r/p50": 0.0, "r/p90": 0.5, "sqrt_v/p50": 0.0, "eps_share": 0.7}
    assert adamx.health(history(unused)) == []
