"""health: the rules on layers: each on its illness, below the threshold, and when gone.

Histories are made by hand: rules and thresholds were fixed before any run.
"""

import pytest

import adamx
from adamx.reading import Reading
from tests.helpers_health import (
    INF,
    LAYERS,
    SICK,
    WELL,
    by_turns,
    history,
    named,
    with_layer,
)

# Illness: (kind, three strengths, just below the threshold). More numbers change where
# the illness has other signs too.
ILLNESSES = {
    "near zero": (
        "near_zero",
        [{"r/p50": x, "r/p90": 5 * x} for x in (9e-3, 2e-3, 1e-5)],
        {"r/p50": 0.011, "r/p90": 0.05},
    ),
    "outliers": (
        "outliers",
        [{"r/p50": x, "r/p90": 0.4} for x in (0.0125, 4e-3, 1e-6)],
        {"r/p50": 0.0138, "r/p90": 0.4},
    ),
    "eps": (
        "eps_dominates",
        [{"eps_share": x, "r/p50": 0.2 * (1 - x)} for x in (0.51, 0.8, 1.0)],
        {"eps_share": 0.49},
    ),
    "ratio high": (
        "ratio_high",
        [{"update_ratio": x} for x in (0.101, 0.5, 20.0)],
        {"update_ratio": 0.05},  # close to it: `test_ratios_of_all_layers`
    ),
    "ratio low": (
        "ratio_low",
        [{"update_ratio": x} for x in (9.9e-6, 1e-6, 0.0)],
        {"update_ratio": 1.1e-4},
    ),
    "imbalance, below": (
        "imbalance",
        [{"update_ratio": x} for x in (2e-5, 1.5e-5, 1.1e-5)],
        {"update_ratio": 5e-5},
    ),
    "slow oscillation": (
        "oscillation",
        [{"cosine": lambda k, x=x: -x if k % 3 == 0 else x} for x in (0.21, 0.5, 0.99)],
        {"cosine": lambda k: -0.19 if k % 3 == 0 else 0.4},
    ),
    "fast oscillation": (
        "oscillation",
        [
            {"cosine": x, "r/p90": 0.054, "r/p50": 0.052, "v_change": by_turns(y, -y)}
            for x, y in ((0.91, 0.001), (0.99, 0.01), (1.0, 0.0))
        ],
        {"cosine": 0.99, "r/p90": 0.054, "r/p50": 0.052, "v_change": -0.01},
    ),
    "exploding": (
        "exploding",
        [{"grad_norm": lambda k, x=x: 0.32 if k < 38 else x} for x in (40, 1e4, INF)],
        {"grad_norm": lambda k: 0.32 if k < 38 else 25.0},
    ),
    "growing": (
        "growing",
        [{"param_norm": lambda k, x=x: 1.6 * x**k} for x in (1.2, 2.0, 10.0)],
        {"param_norm": lambda k: 1.6 * k**1.5},
    ),
    "dead": (
        "dead",
        [{"grad_norm": 0.0, **x} for x in ({"r/p50": 0.0}, {"r/p50": 1e-5}, {})],
        {"grad_norm": 1e-30},
    ),
    "non-finite": (
        "nonfinite",
        [
            {"nonfinite": lambda k, x=x: 7.0 if k % x == 0 else 0.0}
            for x in (3, 2, 1)  # every x-th measurement
        ],
        {"nonfinite": lambda k: 7.0 if k % 5 == 0 else 0.0},
    ),
}


@pytest.mark.parametrize("strength", range(3))
@pytest.mark.parametrize("name", ILLNESSES)
def test_an_illness_is_found_in_its_layer(name, strength):
    kind, strengths, _ = ILLNESSES[name]
    assert named(adamx.health(history(strengths[strength]))) == {(kind, SICK)}


@pytest.mark.parametrize("name", ILLNESSES)
def test_nothing_is_found_below_the_threshold(name):
    assert adamx.health(history(ILLNESSES[name][2])) == []


@pytest.mark.parametrize("name", ILLNESSES)
def test_a_finding_goes_with_its_cause(name):
    kind, strengths, _ = ILLNESSES[name]
    gone = {"oscillation": 20, "nonfinite": 10}.get(kind, 3)
    healed = history(strengths[1], n=60, until=60 - gone)
    assert adamx.health(healed) == []
    if kind != "exploding":  # which is defined at measurement 38
        assert named(adamx.health(history(strengths[1], n=60))) == {(kind, SICK)}


PASSING = set(ILLNESSES) - {"exploding", "growing", "non-finite"}


@pytest.mark.parametrize("name", sorted(PASSING))
def test_a_short_phase_is_no_illness(name):
    strengths = ILLNESSES[name][1]
    assert adamx.health(history(strengths[2], n=40, since=35)) == []


@pytest.mark.parametrize("name", ILLNESSES)
def test_a_symptom_of_all_layers_is_one_finding(name):
    kind, strengths, _ = ILLNESSES[name]
    found = adamx.health(history(strengths[1], where=LAYERS))
    if kind in ("imbalance", "dead"):  # these are of one layer among others
        assert (kind, None) not in named(found)
        return
    assert named(found) == {(kind, None)}
    assert found[0].evidence["layers"] == len(LAYERS)
    assert found[0].evidence["shown"] in LAYERS


@pytest.mark.parametrize("name", sorted(PASSING))
def test_nothing_of_the_warmup_is_judged(name):
    rising = history(ILLNESSES[name][1][2], rate=lambda k: 1e-3 * k / 40)
    assert adamx.health(rising) == []
    early = history(ILLNESSES[name][1][2], every=1, n=49)
    assert adamx.health(early) == []


@pytest.mark.parametrize(
    ("number", "warning", "severe"),
    [
        ("r/p50", 0.0011, 0.0009),
        ("eps_share", 0.89, 0.91),
        ("update_ratio", 0.99, 1.01),
    ],
)
def test_severities(number, warning, severe):
    for value, severity in ((warning, "warning"), (severe, "severe")):
        ill = history({number: value, "r/p90": 0.05})
        (found,) = adamx.health(ill)
        assert found.severity == severity, value


def test_severity_of_skipped_steps():
    for share, severity in ((9, "warning"), (11, "severe")):
        (found,) = adamx.health(history(skipped=lambda k, share=share: share * k))
        assert found.severity == severity, share


def test_a_low_median_is_of_outliers_where_the_90th_percentile_is_high():
    for high, kind in ((0.11, "outliers"), (0.095, "near_zero")):
        ill = history({"r/p50": 0.003, "r/p90": high})
        assert named(adamx.health(ill)) == {(kind, SICK)}, high


# (numbers, whether they are ill): close to one threshold, well behind the others.
FLIPS = {"cosine": 0.99, "r/p50": 0.05, "r/p90": 0.054, "v_change": by_turns(0.01, -1)}
SLOW = {"cosine": lambda k: -0.5 if k % 3 == 0 else 0.5, "sqrt_v/p50": 0.01}
CLOSE = {
    "8 of 10": ({"update_ratio": lambda k: 0.5 if k % 5 else 0.01}, True),
    "7 of 10": ({"update_ratio": lambda k: 0.5 if k % 10 > 2 else 0.01}, False),
    "fast, cosine": (FLIPS | {"cosine": 0.88}, False),
    "fast, r too large": (FLIPS | {"r/p90": 0.11}, False),
    "fast, r still small": (FLIPS | {"r/p90": 0.095}, True),
    "fast, v falls more often": (
        FLIPS | {"v_change": lambda k: 0.01 if k % 5 < 2 else -0.01},
        False,
    ),
    "slow, a fifth": ({"cosine": lambda k: -0.5 if k % 5 == 0 else 0.5}, False),
    "slow, 12 elements": (SLOW | {"grad_norm": 0.035}, False),
    "slow, 20 elements": (SLOW | {"grad_norm": 0.045}, True),
    "exploding, twice": ({"grad_norm": lambda k: 0.3 if k < 39 else 1e4}, False),
    "grows threefold": ({"param_norm": lambda k: 1.0 if k < 31 else 3.0}, False),
    "grows fivefold": ({"param_norm": lambda k: 1.0 if k < 31 else 5.0}, True),
    "grows before these": (
        {"param_norm": lambda k: 1.0 if k < 30 else 5.0},
        False,
    ),
}


@pytest.mark.parametrize("name", CLOSE)
def test_close_to_a_threshold(name):
    numbers, is_ill = CLOSE[name]
    assert len(adamx.health(history(numbers))) == is_ill


def test_a_dead_layer_that_only_decays_is_not_said_to_be_slow():
    numbers = {"r/p50": 0.0, "r/p90": 0.0, "grad_norm": 0.0, "update_ratio": 1e-7}
    assert named(adamx.health(history(numbers))) == {("dead", SICK)}


def test_the_window_of_oscillations_is_twice_as_long():
    (found,) = adamx.health(history(SLOW))
    assert found.evidence["measurements"] == 20
    assert adamx.health(history(SLOW, n=9)) == [], "nor is it judged by less than 10"


def test_small_ratios_of_some_layers_are_normal_in_fine_tuning():
    tuned = history({"update_ratio": 1e-4}, where=LAYERS)
    for value, expected in ((5e-6, set()), (2.5e-6, {("ratio_low", SICK)})):
        found = adamx.health(with_layer(tuned, SICK, {"update_ratio": value}))
        assert named(found) == expected, value


def test_low_ratios_are_looked_at_where_the_rate_is_high():
    for rate, count in ((4e-4, 0), (6e-4, 1)):
        ill = history(
            {"update_ratio": 1e-6},
            where=LAYERS,
            since=20,
            rate=lambda k, rate=rate: 1e-3 if k <= 20 else rate,
        )
        assert len(adamx.health(ill)) == count, rate


def test_judging_begins_behind_the_start_and_the_warmup():
    ill = {"update_ratio": 0.5}
    for n, expected in ((8, 0), (9, 1)):  # the fifth to the ninth: steps 50 to 90
        assert len(adamx.health(history(ill, every=10, n=n))) == expected, n
    # Warm at 90% of the highest rate, the 18th measurement.
    warm = {"rate": lambda k: 1e-3 * min(k, 20) / 20}
    for n, expected in ((21, 0), (22, 1)):
        assert len(adamx.health(history(ill, since=17, n=n, **warm))) == expected, n


def test_records_of_the_loss_alone_between_the_measurements():
    for rate, expected in ((lambda k: 1e-3, 1), (lambda k: 1e-3 * k, 0)):
        measured = history({"update_ratio": 0.5}, rate=rate)
        found = adamx.History()
        for record in measured:
            found.append(record.reading)
            found.append(Reading(count=record.step + 1), loss=1 / record.step)
        assert len(adamx.health(found)) == expected


def test_tiny_r_everywhere_early():
    for value in (0.019, 0.005, 1e-6):
        ill = {"r/p50": value, "r/p90": 4 * value}
        found = adamx.health(history(ill, where=LAYERS, every=40))
        assert named(found) == {("tiny_early", None)}, value
        assert "500 to 2,000" in found[0].what_to_try[0]
        assert "layers 6, layers judged 6" in str(found[0])
        assert any("b2 = 0.99" in text for text in found[0].what_to_try)
    # Later it is each layer's own matter, and a few layers are no "everywhere".
    found = adamx.health(history(ill, where=LAYERS, every=100))
    assert named(found) == {("near_zero", None)}
    found = adamx.health(history(ill, where=LAYERS[:4], every=40))
    assert named(found) == {("near_zero", layer) for layer in LAYERS[:4]}
    ill = {"r/p50": 0.021, "r/p90": 0.1}
    assert adamx.health(history(ill, where=LAYERS, every=40)) == []
    healed = history({"r/p50": 0.001}, where=LAYERS, every=40, until=37)
    assert adamx.health(healed) == []


def test_imbalance_above():
    for value, expected in ((0.0024, True), (0.05, True), (0.09, True), (1e-3, False)):
        ill = history({"update_ratio": 1e-4}, where=LAYERS)
        mixed = with_layer(ill, SICK, {"update_ratio": value})
        assert named(adamx.health(mixed)) == (
            {("imbalance", SICK)} if expected else set()
        )
    for names, count in ((("a", "b"), 0), (("a", "b", "c"), 1)):
        few = history({"update_ratio": 1e-4}, layers=names, where=names)
        found = adamx.health(with_layer(few, SICK, WELL | {"update_ratio": 0.05}))
        assert len(found) == count, "three layers have no usual one"


def test_a_rate_apart():
    for rate, ratio, expected in (
        (130.0, 0.011, True),
        (1e5, 0.011, True),
        (75.0, 0.011, False),
        (130.0, 0.007, False),
    ):
        apart = {"step/p90": 4e-4 * rate, "update_ratio": ratio}
        found = adamx.health(history(apart))
        assert named(found) == ({("rate_apart", SICK)} if expected else set()), rate
    (found,) = adamx.health(history({"step/p90": 0.4, "update_ratio": 0.02}))
    evidence = found.evidence
    assert evidence["rate"] == pytest.approx(0.4 / 0.37, rel=0.11)
    assert evidence["median rate of the layers"] == pytest.approx(1e-3, rel=0.2)


def test_ratios_of_all_layers():
    for value, expected in (
        (0.099 / 1.1, set()),
        (0.101 / 0.9, {("ratio_high", None)}),
    ):
        ill = history({"update_ratio": value}, where=LAYERS)
        assert named(adamx.health(ill)) == expected


def test_a_solved_problem_has_small_r():
    ill = {"r/p50": 0.001, "r/p90": 0.004}
    for end, count in ((0.011, 1), (0.009, 0)):
        loss = {"loss": lambda k, end=end: 1.0 if k < 10 else end}
        assert len(adamx.health(history(ill, **loss))) == count
        early = history(ill, where=LAYERS, every=40, **loss)
        assert len(adamx.health(early)) == count
    assert len(adamx.health(history(ill, loss=lambda k: -float(k)))) == 1


def test_what_explodes_is_known_from_before():
    for n, count in ((7, 0), (8, 1)):
        ill = {"grad_norm": lambda k, n=n: 0.3 if k <= n - 3 else 1e4}
        assert len(adamx.health(history(ill, n=n))) == count, n
