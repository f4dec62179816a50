"""Every public optimizer, as rows: how to make it, its reference, its twin in Optax.

The contract tests run over this table; a new optimizer is one more row, here or in a
list of its own family.
"""

from tests import (
    reference,
    rows_layers,
    rows_mixed,
    rows_rectified,
    rows_schedule_free,
    rows_signs,
    rows_sophia,
    rows_sparse,
    rows_switch,
)
from tests.row import LR as LR
from tests.row import OFF, Row

CLASSIC = [
    Row("sgd", reference=reference.sgd, twin="sgd"),
    Row(
        "sgd",
        "nesterov",
        {"momentum": 0.8, "nesterov": True},
        reference=reference.momentum,
        twin="sgd",
        is_sum=True,
    ),
    Row("momentum", reference=reference.momentum, is_sum=True),
    Row(
        "momentum",
        "nesterov",
        {"momentum": 0.99, "nesterov": True},
        reference=reference.momentum,
        twin="sgd",
        is_sum=True,
    ),
    Row("rmsprop", reference=reference.rmsprop, twin="rmsprop"),
    Row(
        "rmsprop",
        "outside",
        {"decay": 0.99, "eps": 1e-3, "eps_in_sqrt": False, "bias_correction": True},
        reference=reference.rmsprop,
        twin="rmsprop",
    ),
    Row(
        "rmsprop",
        "centered",
        {"decay": 0.8, "eps": 1e-2, "initial_scale": 0.5, "centered": True}
        | {"momentum": 0.7, "nesterov": True},
        reference=reference.rmsprop,
        twin="rmsprop",
        bar=2e-6,  # the variance cancels: nu - mu^2
        is_rate_last=False,  # momentum goes on
        # XLA orders the five writes such that two trees are copied.
        temporaries=2.0,
    ),
    Row("adam", twin="adam"),
    Row("adam", "off", {**OFF, "eps_root": 1e-4}, twin="adam"),
    Row("adam", "no-memory", {"b1": 0.0, "b2": 0.5}, twin="adam"),
    Row(
        "adam_l2",
        "off",
        {**OFF, "weight_decay": 0.3},
        reference_kwargs={**OFF, "weight_decay": 0.3, "coupled": True},
        conditioning=reference.coupled_conditioning,
    ),
    Row("adam_l2"),
    Row("adamw", reference_kwargs={"weight_decay": 1e-4}, twin="adamw"),
    Row(
        "adamw",
        "independent",
        {**OFF, "weight_decay": 1e-3},
        ours={"independent_decay": True},
        is_rate_last=False,  # the decay goes on
    ),
    Row("adamw", "off", {**OFF, "weight_decay": 0.3}, twin="adamw"),
    Row("nadam", reference_kwargs={"nesterov": True}, twin="nadam"),
    Row("nadam", "off", OFF, reference_kwargs={**OFF, "nesterov": True}, twin="nadam"),
    Row(
        "nadamw",
        "off",
        {**OFF, "weight_decay": 0.3},
        reference_kwargs={**OFF, "weight_decay": 0.3, "nesterov": True},
        twin="nadamw",
    ),
    Row("amsgrad", reference=reference.amsgrad, twin="amsgrad"),
    Row(
        "amsgrad",
        "paper",
        {**OFF, "bias_correction_mu": False, "bias_correction_nu": False},
        reference=reference.amsgrad,
    ),
    Row(
        "amsgrad",
        "pytorch",
        {**OFF, "eps_root": 1e-4},
        reference=reference.amsgrad,
        ours={"maximum_of": "nu"},
    ),
    Row("adamax", reference=reference.adamax, twin="adamax"),
    Row("adamax", "off", OFF, reference=reference.adamax, twin="adamax"),
]

ROWS = [
    *CLASSIC,
    *rows_rectified.ROWS,
    *rows_mixed.ROWS,
    *rows_layers.ROWS,
    *rows_sparse.ROWS,
    *rows_signs.ROWS,
    *rows_sophia.ROWS,
    *rows_switch.ROWS,
    *rows_schedule_free.ROWS,
]

# One row for each name, the last: what does not depend on hyperparameters is tested on
# these. (So `sgd` is tested with momentum; without, in the tests over all rows.)
NAMES = list({row.name: row for row in ROWS}.values())
