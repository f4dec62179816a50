"""Groups with rates of their own: whose rates a moment was taken with."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.interop import migrate
from tests.helpers import some

MOVES = {  # of the rates (b1, b2) by label, and each parameter's label
    "one moves": ({"x": (0.9, 0.999), "y": (0.8, 0.99)}, {"a": "x", "b": "x"}),
    "labels are exchanged": ({"y": (0.9, 0.999), "x": (0.8, 0.99)}, {"a": "y"}),
    "rates change too": ({"x": (0.7, 0.95), "y": (0.8, 0.99)}, {"a": "x", "b": "x"}),
}


CODEC = adamx.codecs.bfloat16_stochastic()


@pytest.mark.parametrize(
    ("move", "codec"),
    some(
        itertools.product(MOVES, [None, CODEC]),
        ("one moves", None),
        ("labels are exchanged", None),
        ("rates change too", CODEC),
    ),
)
def test_a_parameter_that_changes_groups_keeps_its_corrected_moments(move, codec):
    """Its mean was taken with the rates of the group it comes from."""
    params = {name: jnp.ones((n, 2)) for name, n in (("a", 3), ("b", 4), ("c", 5))}

    def make(rates, labels):
        txs = {
            label: adamx.scale_by_adam(b1=b1, b2=b2, nu_dtype=codec)
            for label, (b1, b2) in rates.items()
        }
        other = (set(rates) - {labels["a"]}).pop()
        return optax.partition(txs, {"b": other, "c": other} | labels)

    def corrected(state):
        """By moment and path, over the correction of its own State."""
        found = {}
        for masked in state.inner_states.values():
            own = masked.inner_state
            for field in ("mu", "nu"):
                moment = adamx.codecs.decode(getattr(own, field))
                values = adamx._tree.leaves_by_path(moment)
                correction = getattr(own, f"bias_correction_{field}")
                found |= {(field, k): x / correction for k, x in values.items()}
        return found

    old = make({"x": (0.9, 0.999), "y": (0.8, 0.99)}, {"a": "x"})
    state = old.init(params)
    for i in range(5):
        grads = jax.tree.map(lambda p, i=i: (1.0 + i) * p, params)
        _, state = old.update(grads, state)
    migration = migrate(state, make(*MOVES[move]), params)
    want, got = corrected(state), corrected(migration.state)
    assert want.keys() == got.keys()
    for key, x in want.items():
        np.testing.assert_allclose(got[key], x, rtol=1e-4 if codec is None else 1e-2)
    assert any("of another group" in fate.note for fate in migration.fates)
