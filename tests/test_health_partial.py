"""health: of what is missing, broken or short, nothing is said that is not there."""

import pytest

import adamx
from adamx.reading import Diagnostics, Reading
from tests.helpers_health import (
    INF,
    LAYERS,
    NAN,
    SICK,
    WELL,
    history,
    named,
    symptoms,
)

PARTIAL = {
    "nothing": [],
    "no numbers": [Reading()] * 50,
    "no layers": [Reading(count=k, learning_rate=0.1) for k in range(1, 50)],
    "layers without numbers": [
        Reading(count=100 * k, diagnostics=Diagnostics(100 * k, {"a": {}}))
        for k in range(1, 20)
    ],
    "no layer": [
        Reading(count=100 * k, diagnostics=Diagnostics(100 * k, {}))
        for k in range(1, 20)
    ],
    "all NaN": [
        Reading(
            count=100 * k,
            learning_rate={"a": NAN, "b": INF},
            grad_norm=NAN,
            skipped={"a": 1, "b": NAN},
            diagnostics=Diagnostics(100 * k, {"a": dict.fromkeys(WELL, NAN)}),
        )
        for k in range(1, 20)
    ],
    "layers that come and go": [
        Reading(count=100 * k, diagnostics=Diagnostics(100 * k, {f"l{k}": WELL}))
        for k in range(1, 20)
    ],
    "other percentiles": [
        Reading(count=100 * k, diagnostics=Diagnostics(100 * k, {"a": {"r/p25": 1e-9}}))
        for k in range(1, 20)
    ],
}


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("metrics", [{}, {"loss": 0.0}, {"val_loss": -1e300}], ids=str)
def test_partial_histories_give_no_finding(name, metrics, recwarn):
    found = adamx.History()
    for reading in PARTIAL[name]:
        found.append(reading, **metrics)
    assert adamx.health(found) == []
    assert not recwarn.list


@pytest.mark.parametrize("number", WELL)
@pytest.mark.parametrize("value", [0.0, NAN, INF, -1e300, 1e300], ids=str)
def test_no_number_breaks_it(number, value, recwarn):
    ill = history({number: value}, where=LAYERS, loss=lambda k: value)
    adamx.health(ill)
    only = adamx.History()
    for k in range(1, 30):
        layers = {"a": {number: value}, "b": {number: 1.0}}
        only.append(Reading(count=100 * k, diagnostics=Diagnostics(100 * k, layers)))
    adamx.health(only)
    assert not recwarn.list


def test_short_histories_give_no_finding_but_of_numbers_that_are_not_finite():
    everything = {"r/p50": 1e-5, "r/p90": 1e-4, "update_ratio": 9.0, "eps_share": 1.0}
    assert adamx.health(history(everything, n=4, every=1000)) == []
    # Four, and fewer than five of the last ten.
    gaps = {
        name: (lambda k, v=v: v if k > 36 else NAN) for name, v in everything.items()
    }
    assert adamx.health(history(gaps)) == []
    found = adamx.health(history({"nonfinite": 1.0}, n=4, every=1))
    assert named(found) == {("nonfinite", SICK)}


@pytest.mark.parametrize(
    ("percentiles", "missing"),
    [((10, 50, 90), ()), ((0, 100), (50,)), ((25, 75), (50, 90)), ((45, 60), (90,))],
)
def test_what_is_not_judged_for_want_of_a_percentile_is_said(percentiles, missing):
    """Every r is 1e-5: found, or the reason why not."""
    small = {f"r/p{q}": 1e-5 for q in percentiles}
    rest = {name: x for name, x in WELL.items() if not name.startswith("r/")}
    found = history(n=0)
    for k in range(1, 40):
        layers = {"a": rest | small, "b": rest | dict.fromkeys(small, 0.15)}
        found.append(Reading(count=100 * k, diagnostics=Diagnostics(100 * k, layers)))
    advice = adamx.health(found)
    assert ("near_zero", "a") in named(advice) or 50 in missing
    said = [text for text in advice.not_judged if "loss" not in text]
    assert len(said) == len(missing)
    for near, text in zip(missing, said, strict=True):
        assert f"within 10 of {near}: " in text
        assert f"percentiles of r: {', '.join(map(str, percentiles))}," in text
        assert "percentiles=(10, 50, 90)" in text
        assert text in str(advice)


def test_one_reading_is_a_hint():
    ill = history({"r/p50": 1e-5, "r/p90": 1e-4}, n=1, every=5000)
    found = adamx.health(ill[0].reading)
    assert symptoms(found) == [("near_zero", SICK, "info")]
    assert found[0].evidence["measurements"] == 1
    assert adamx.health(history(n=1)[0].reading) == []
    assert adamx.health(Reading()) == []
    early = history({"r/p50": 1e-5, "r/p90": 1e-4}, n=1, every=5)
    assert adamx.health(early[0].reading) == []


# --------------------------------------------------------------------- how it is told
