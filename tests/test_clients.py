"""Training steps as users write them: flax.nnx, flax linen, Equinox, Haiku.

A table of wrappers (here) times a table of clients (`tests/clients.py`): all must train
as the plain loop does, and as they do with Optax's AdamW.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import adamx
from adamx import codecs
from tests.clients import CLIENTS, LR, STEPS, Row, apply, functional, initial_weights

INT8 = codecs.int8(min_size=1)  # of the smallest leaves too
ROWS = [
    Row("none"),
    Row(
        "with_hyperparams",
        lambda: adamx.with_hyperparams(adamx.adamw, LR),
        between=lambda state: adamx.set_hyperparams(
            state, learning_rate=LR / 9, b2=0.9
        ),
    ),
    Row("loss_scaling", lambda: adamx.loss_scaling(adamx.adamw(LR)), is_scaled=True),
    Row(
        "master_weights",
        lambda: adamx.master_weights(adamx.adamw(LR)),
        dtype=jnp.bfloat16,
        tolerance=2e-2,  # a few units of bfloat16
    ),
    Row("bucketed", lambda: adamx.bucketed(adamx.adamw(LR))),
    Row("guard", lambda: adamx.guard(adamx.adamw(LR), spike_zscore=50.0)),
    Row("accumulate", lambda: adamx.accumulate(adamx.adamw(2 * LR), 2), every=2),
    Row(
        "groups",
        lambda: adamx.groups(
            [("kernel|/w$", adamx.adamw(LR, weight_decay=0.01))], adamx.adam(LR)
        ),
    ),
    Row(
        "stages",
        lambda: adamx.stages(
            [(adamx.adamw(LR), STEPS // 2), (adamx.sgd(LR / 2, 0.9), None)]
        ),
    ),
    Row("adam_to_sgd", lambda: adamx.adam_to_sgd(LR, total_steps=STEPS)),
    Row("diagnose", lambda: adamx.diagnose(adamx.adamw(LR), every=10)),
    Row("schedule_free", lambda: adamx.schedule_free_adamw(LR)),
    Row("sophia_h", lambda: adamx.sophia_h(LR), needs_loss=True),
    Row("int8", lambda: adamx.adamw(LR, mu_dtype=INT8, nu_dtype=INT8), tolerance=1e-3),
]

# Quickly: what asks something of its loop, in one client, by `update` or by the fused
# step: what is changed between steps, a loss that is scaled or handed on, parameters of
# 16 bits, steps that change nothing, boxes that come off. Bare in each, beside Optax:
# `test_a_client_trains_as_with_optax`.
IN_ONE = {
    "none": "nnx-fused",
    "loss_scaling": "haiku",
    "with_hyperparams": "linen",
    "master_weights": "equinox",
    "bucketed": "nnx",
    "accumulate": "nnx-fused",
    "stages": "equinox-fused",
    "diagnose": "equinox",
    "schedule_free": "nnx-fused",
    "sophia_h": "equinox",
}
QUICK = [
    (row, client)
    for row in ROWS
    for client in CLIENTS
    if client == IN_ONE.get(row.name) or (row.is_scaled and client == "nnx-fused")
]


@functools.cache
def plain(row):
    """What the plain loop makes of a row."""
    return functional(row, row.make(), initial_weights(row.dtype), apply)


@pytest.mark.parametrize(
    ("row", "client"),
    [
        pytest.param(
            row,
            client,
            id=f"{row.name}-{client}",
            marks=[] if (row, client) in QUICK else pytest.mark.slow,
        )
        for row in ROWS
        for client in CLIENTS
    ],
)
def test_a_client_trains_as_the_plain_loop_does(row, client):
    want, params, state = plain(row)
    losses, weights, after = CLIENTS[client](row)
    assert losses[-1] <= row.least * losses[0]
    np.testing.assert_allclose(losses, want, rtol=row.tolerance)
    chex.assert_trees_all_equal_shapes_and_dtypes(weights, params)
    wide = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    chex.assert_trees_all_close(
        wide(weights), wide(params), rtol=row.tolerance, atol=row.tolerance * LR
    )
    expected, reading = adamx.read(state), adamx.read(after)
    assert reading.count == expected.count == STEPS // row.every
    assert reading.learning_rate == expected.learning_rate
    assert reading.skipped == expected.skipped
    assert set(reading.more) == set(expected.more)


@pytest.mark.parametrize("client", [c for c in CLIENTS if not c.endswith("-fused")])
def test_a_client_trains_as_with_optax(client):
    """AdamW behind clipping, with a schedule; Optax's arithmetic is the less exact."""

    def make(library, schedule):
        return optax.chain(
            library.clip_by_global_norm(0.5),
            library.adamw(schedule, weight_decay=0.01),
        )

    ours = adamx.schedules.warmup_cosine(2 * LR, STEPS, warmup=4)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 2 * LR, 4, STEPS)
    losses, weights, state = CLIENTS[client](Row("adamx", lambda: make(adamx, ours)))
    want, params, _ = CLIENTS[client](Row("optax", lambda: make(optax, theirs)))
    assert losses[-1] < 0.2 * losses[0]
    np.testing.assert_allclose(losses, want, rtol=1e-4)
    chex.assert_trees_all_close(weights, params, rtol=1e-4, atol=1e-4 * LR)
    reading = adamx.read(state)
    assert reading.count == STEPS
    assert reading.grad_norm > 0
    assert reading.learning_rate == pytest.approx(float(theirs(STEPS - 1)), rel=1e-5)


def test_who_hands_no_loss_on_is_told_so():
    state = TrainState.create(
        apply_fn=None, params=initial_weights(jnp.float32), tx=adamx.sophia_h(LR)
    )
    with pytest.raises(ValueError, match=r"`loss_fn` .*TrainState.*do not"):
        state.apply_gradients(grads=state.params)
