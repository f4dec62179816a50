"""Bad input to `health`."""

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.reading import Diagnostics, Reading
from tests.test_bad_input import _check

# (history, exception, what the message must contain)
HISTORIES = {
    "None": (None, TypeError, "`history` adamx.History adamx.Reading None"),
    "a state": (
        adamx.adamw(1e-3).init({"w": jnp.ones(2)}),
        TypeError,
        "`history` adamx.History adamx.read(state)",
    ),
    "a path": ("run.jsonl", TypeError, "`history` adamx.History 'run.jsonl'"),
    "a list of readings": (
        [Reading(count=1)],
        TypeError,
        "`history` adamx.History list",
    ),
    "diagnostics alone": (Diagnostics(1, {}), TypeError, "`history` Diagnostics"),
    "a batched reading": (
        Reading(count=np.arange(2)),
        ValueError,
        "`reading` `count` (2,) vmap",
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories(name):
    value, exception, expected = HISTORIES[name]
    _check(lambda: adamx.health(value), exception, expected)


def test_nothing_is_changed():
    history = adamx.History()
    history.append(Reading(count=100), loss=1.0)
    adamx.health(history)
    assert len(history) == 1
    assert history.columns == ("loss", "count")
