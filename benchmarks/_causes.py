"""Causes that make a training run ill, each at three strengths."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

NO = 1e9  # a period or a step that does not come
# What a step takes besides its batch; traced, so that all illnesses share a program.
SOUND = {
    "rate": 1.0,  # of all layers, in the patient's sound one
    "layer_rate": 1.0,  # of the sick layer, times that
    "layer_eps": 1e-8,
    "b2": 0.999,
    "layer_decay": 0.01,
    "early": 1.0,  # gradients of all layers in the first 20 steps, times this
    "layer_early": 1.0,  # of the sick layer
    "layer_late": 1.0,  # of the sick layer from step 440 on
    "rare": 0.0,  # share of the sick layer's columns with a gradient each 270 steps
    "sorted": 0.0,  # data in order: step k has the (k modulo so many)th part of them
    "layer_nan": NO,  # NaN in the sick layer's gradient each so many steps
    "batch_nan": NO,  # NaN in the loss each so many steps
    "nan_from": NO,  # NaN in the loss from that step on
    "late": 1.0,  # gradients of all layers from step 440 on, times this
    "examples": NO,  # trained on, of all
    "batch": NO,  # of the examples of a step so many count
    "fixed": 0.0,  # 1: the same batch in each step
    "decayed": NO,  # the rate falls to 0 at that step, linearly over 500
    "switch": NO,  # the last step of Adam, where it hands over to SGD
    "val_nan": 0.0,  # so many held-out examples have a loss of NaN
}
EARLY, LATE, RARE = 20, 440, 270


class Illness(NamedTuple):
    """What is wrong.

    Attributes:
      cause: for the table.
      strengths: three of them.
      plant: strength -> what differs from SOUND; "too_fast": times the patient's own
        `too_fast`, a rate in units of its sound one.
      found: kinds of finding that say so.
      where: "layer", "relu" (the layer before one), or "all".
      cure: what differs from SOUND when the cause is gone.
      bias: strength -> what is added to the bias before a ReLU while ill.
      phases: of 500 steps, while ill.
      decays: the cure leaves all as it is, but lets the rate decay to 0.
      hands_over: the cure is `adam_to_sgd`, for 1,000 steps; the rate decays in the
        last 500.
      restart: the cure begins again from the first parameters (they were lost).
      is_blind: layers are not measured.
    """

    cause: str
    strengths: tuple[float, float, float]
    plant: Callable[[float], dict[str, float]]
    found: tuple[str, ...]
    where: str = "layer"
    cure: Mapping[str, float] = MappingProxyType({})
    bias: bool = False
    phases: int = 1
    decays: bool = False
    hands_over: bool = False
    restart: bool = False
    is_blind: bool = False


ILLNESSES = {
    "eps": Illness(
        "eps of a layer", (0.1, 1, 10), lambda s: {"layer_eps": s}, ("eps_dominates",)
    ),
    "frozen": Illness(
        "first gradients of a layer times; b2 = 0.9999",
        (1e3, 1e4, 1e5),
        lambda s: {"layer_early": s, "b2": 0.9999},
        ("near_zero",),
        cure={"b2": 0.9},
    ),
    "early": Illness(
        "first gradients of all layers times",
        (1e3, 1e4, 1e5),
        lambda s: {"early": s},
        ("tiny_early", "near_zero"),
        where="all",
        cure={"b2": 0.9},
    ),
    "outliers": Illness(
        "share of a layer's columns with a gradient every 270 steps",
        (0.6, 0.7, 0.8),
        lambda s: {"rare": s},
        ("outliers",),
    ),
    "layer fast": Illness(
        "rate of a layer times",
        (300, 3000, 30000),
        lambda s: {"layer_rate": s},
        ("rate_apart", "ratio_high", "imbalance", "growing"),
        restart=True,
    ),
    "layer slow": Illness(
        "rate of a layer times",
        (1e-3, 1e-4, 1e-5),
        lambda s: {"layer_rate": s},
        ("ratio_low", "imbalance"),
    ),
    "fast": Illness(
        "rate of all layers times",
        (100, 1000, 10000),
        lambda s: {"rate": s},
        (
            "burst",
            "stuck",
            "ratio_high",
            "diverging",
            "lost_loss",
            "plateau",
            "oscillation",
        ),
        where="all",
        restart=True,
    ),
    "oscillation": Illness(
        "data in order, a part of them in each step: steps that it takes",
        (32, 40, 48),
        lambda s: {"sorted": s},
        ("oscillation", "unshuffled"),
        where="all",
    ),
    "exploding": Illness(
        "gradient of a layer from step 440 on, times",
        (300, 3000, 30000),
        lambda s: {"layer_late": s},
        ("exploding",),
    ),
    "growing": Illness(
        "weight decay of a layer with the wrong sign",
        (-10, -20, -40),
        lambda s: {"layer_decay": s},
        ("growing",),
        restart=True,
    ),
    "nan": Illness(
        "NaN in a layer's gradient every so many steps",
        (3, 2, 1),
        lambda s: {"layer_nan": s},
        ("nonfinite",),
    ),
    "nan loss": Illness(
        "NaN in the loss every so many steps",
        (29, 7, 3),
        lambda s: {"batch_nan": s},
        ("skipped",),
        where="all",
    ),
    "dead": Illness(
        "added to the bias before a ReLU",
        (-20, -100, -1000),
        lambda s: {},
        ("dead",),
        where="relu",
        bias=True,
    ),
    "few examples": Illness(
        "examples to train on",
        (32, 16, 8),
        lambda s: {"examples": s},
        ("gap", "memorised"),
        where="all",
        restart=True,
    ),
    "lost loss": Illness(
        "NaN in the loss from a step on",
        (450, 300, 100),
        lambda s: {"nan_from": s},
        ("lost_loss",),
        where="all",
    ),
    "exploding norm": Illness(
        "layers not measured; gradients of all from step 440 on, times",
        (300, 3000, 30000),
        lambda s: {"late": s},
        ("exploding",),
        where="all",
        is_blind=True,
    ),
    "lost validation": Illness(
        "held-out examples with a loss of NaN",
        (1, 10, 100),
        lambda s: {"val_nan": s},
        ("lost_val_loss",),
        where="all",
    ),
    "plateau": Illness(
        "a rate too large to go deeper, for 2,000 steps without decay, times",
        (0.75, 1, 1.5),
        lambda s: {"too_fast": s},
        ("plateau",),
        where="all",
        phases=4,
        decays=True,
    ),
    "settled": Illness(
        "the same rate for 6,000 steps, times",
        (0.75, 1, 1.5),
        lambda s: {"too_fast": s},
        ("ready_for_sgd",),
        where="all",
        phases=12,
        hands_over=True,
    ),
}
