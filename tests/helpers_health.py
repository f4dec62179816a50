"""Histories made by hand for the tests of `health`."""

import dataclasses

import numpy as np

import adamx
from adamx.diagnostics import _advice
from adamx.reading import Diagnostics, Reading

NAN, INF = float("nan"), float("inf")
LAYERS = tuple(f"block_{i}/{part}" for i in range(3) for part in ("kernel", "bias"))
SICK = "block_1/kernel"
# What mini-batch noise at b1 = 0.9 makes of a layer of 1,024 elements.
WELL = {
    **{"r/p10": 0.03, "r/p50": 0.15, "r/p90": 0.37},
    **{"m/p10": 3e-4, "m/p50": 1.5e-3, "m/p90": 4e-3},
    **{"sqrt_v/p10": 5e-3, "sqrt_v/p50": 1e-2, "sqrt_v/p90": 2e-2},
    **{"step/p10": 3e-5, "step/p50": 1.5e-4, "step/p90": 4e-4},
    **{"grad_norm": 0.32, "param_norm": 1.6, "update_norm": 5e-3},
    **{"update_ratio": 3e-3, "eps_share": 0.0, "still_share": 0.05},
    **{"cosine": 0.44, "nonfinite": 0.0, "v_change": -0.06},
}


def history(
    sick=None,
    where=(SICK,),
    n=40,
    every=100,
    until=None,
    since=0,
    rate=None,
    loss=None,
    val_loss=None,
    seed=0,
    layers=LAYERS,
    skipped=None,
):
    """Measurements of layers with noise of 10%.

    Args:
      sick: numbers of the layers `where`: values, or functions of the measurement.
      since, until: the measurements at which they hold; None: to the end.
      rate, loss, val_loss, skipped: functions of the measurement k = 1..n, or None.
    """
    rng = np.random.default_rng(seed)
    found = adamx.History()
    for k in range(1, n + 1):
        named = {}
        for layer in layers:
            numbers = {x: v * (1 + 0.1 * rng.uniform(-1, 1)) for x, v in WELL.items()}
            is_ill = since < k <= (until or n) and layer in where
            for name, value in (sick or {}).items() if is_ill else ():
                numbers[name] = value(k) if callable(value) else value
                if name.startswith("r/") and name.replace("r/", "step/") not in sick:
                    numbers[name.replace("r/", "step/")] = 1e-3 * numbers[name]
            named[layer] = numbers
        found.append(
            Reading(
                count=k * every - (skipped(k) if skipped else 0),
                learning_rate=None if rate is None else rate(k),
                skipped=None if skipped is None else skipped(k),
                diagnostics=Diagnostics(k * every, named),
            ),
            loss=None if loss is None else loss(k),
            val_loss=None if val_loss is None else val_loss(k),
        )
    return found


def with_layer(found, layer, numbers):
    """The history with other numbers of one layer, or one layer more."""
    changed = adamx.History()
    for record in found:
        old = record.reading.diagnostics
        own = {**old.layers.get(layer, {}), **numbers}
        new = Diagnostics(old.count, {**old.layers, layer: own})
        changed.append(dataclasses.replace(record.reading, diagnostics=new))
    return changed


def replaced(found, other, layer):
    """The history with a layer as another history has it."""
    changed = adamx.History()
    for record, its in zip(found, other, strict=True):
        old, new = record.reading.diagnostics, its.reading.diagnostics
        layers = {**old.layers, layer: new.layers[layer]}
        reading = dataclasses.replace(
            record.reading, diagnostics=Diagnostics(old.count, layers)
        )
        changed.append(reading, **record.metrics)
    return changed


def symptoms(found, severities=False):
    kinds = {words.symptom: kind for kind, words in _advice.WORDS.items()}
    pairs = [(kinds[f.symptom], f.layer) for f in found]
    return [(*p, f.severity) for p, f in zip(pairs, found, strict=True)] or pairs


def named(found):
    return {pair[:2] for pair in symptoms(found)}


def by_turns(a, b):
    return lambda k: a if k % 2 else b


def losses(train, val=None, **more):
    return {"loss": train, "val_loss": val, **more}


def falling(k):
    return 2.0 * 0.9**k + 0.1


NOISE = np.random.default_rng(1).standard_normal(1000)


def in_blocks(size, by, noise=1.0):
    """A loss of batches of the one half of the data, then of the other, with noise."""
    return lambda k: 20 * 0.9**k + 30 + noise * NOISE[k] + by * (k // size % 2)


def one_run(n, every=10, **metrics):
    """Records without layers; `metrics` are functions of the record."""
    found = adamx.History()
    for k in range(1, n + 1):
        values = {name: function(k) for name, function in metrics.items()}
        skipped = values.pop("skipped", None)
        norm = values.pop("grad_norm", None)
        rate = values.pop("learning_rate", None)
        count = every * k - (skipped or 0)
        reading = Reading(count, rate, norm, skipped=skipped)
        found.append(reading, **values)
    return found


def last(n, records, ill, well):
    return lambda k: ill if k > n - records else well


def first(function):
    """Behind 6 records of 9."""
    return lambda k: 9.0 if k < 7 else function(k)
