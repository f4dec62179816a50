"""read: the recorded numbers, wherever our states sit."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.reading import Diagnostics

PARAMS = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
SCHEDULE = optax.linear_schedule(1.0, 0.0, 10)


def after(tx, steps=3, params=PARAMS):
    state = tx.init(params)
    for _ in range(steps):
        _, state = tx.update(params, state, params)
    return adamx.read(state), state


NORM = pytest.approx(np.sqrt(7.0))
CHAIN = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(SCHEDULE))
NESTED = {
    "chain": CHAIN,
    "chain of chains": optax.chain(optax.chain(CHAIN), optax.identity()),
    "named_chain": optax.named_chain(("all", CHAIN)),
    "masked": optax.masked(CHAIN, True),
    "partition": optax.partition({"x": CHAIN}, "x"),
    "apply_if_finite": optax.apply_if_finite(CHAIN, 2),
    "behind a foreign stage": optax.chain(optax.zero_nans(), CHAIN),
}


@pytest.mark.parametrize("name", NESTED)
def test_found_wherever_it_sits(name):
    reading, _ = after(NESTED[name])
    assert reading.count == 3
    assert reading.learning_rate == pytest.approx(0.8)
    assert reading.grad_norm == NORM
    assert reading.weight_decay == pytest.approx(1e-4)
    assert reading.skipped is None


def test_inject_hyperparams():
    tx = optax.inject_hyperparams(adamx.adamw)(learning_rate=SCHEDULE)
    reading, state = after(tx)
    assert reading.count == 3
    assert reading.learning_rate == pytest.approx(0.8)
    assert state.hyperparams["learning_rate"] == pytest.approx(0.8)


def test_multi_steps():
    tx = optax.MultiSteps(adamx.adam(0.5), 2)
    reading, _ = after(tx.gradient_transformation(), steps=5)
    assert reading.count == 2
    assert reading.learning_rate == 0.5


def test_rates_by_group():
    tx = optax.partition(
        {"head": adamx.adam(1e-2), "body": adamx.adam(SCHEDULE)},
        {"a": "head", "b": "body"},
    )
    reading, _ = after(tx)
    assert reading.learning_rate == {
        "head": pytest.approx(1e-2),
        "body": pytest.approx(0.8),
    }
    assert reading.scalars() == {
        "count": 3.0,
        "learning_rate/head": pytest.approx(1e-2),
        "learning_rate/body": pytest.approx(0.8),
    }


def test_norms_by_group():
    make = lambda: optax.chain(adamx.clip_by_global_norm(1.0), adamx.adam(1e-2))  # noqa: E731
    tx = optax.partition({"x": make(), "y": make()}, {"a": "x", "b": "y"})
    norms = after(tx)[0].grad_norm
    assert norms == {"x": pytest.approx(3**0.5), "y": pytest.approx(2.0)}


def test_two_rates_without_names_are_told_apart_by_position():
    tx = optax.chain(adamx.adam(1e-2), adamx.scale_by_learning_rate(0.5))
    assert sorted(after(tx)[0].learning_rate.values()) == pytest.approx([1e-2, 0.5])


def test_without_a_step_the_coming_rate_is_read():
    reading = adamx.read(adamx.adam(SCHEDULE).init(PARAMS))
    assert (reading.count, reading.learning_rate) == (0, 1.0)


@pytest.mark.parametrize(
    "state",
    [(), None, {}, {"mu": jnp.ones(3)}, optax.adam(1e-3).init(PARAMS), 3, "text"],
    ids=str,
)
def test_foreign_states_read_as_nothing(state):
    assert adamx.read(state) == adamx.Reading()
    assert adamx.read(state).scalars() == {}


def test_batched_states_read_as_arrays():
    state = jax.vmap(lambda r: adamx.adam(r).init(PARAMS))(jnp.array([0.1, 0.2]))
    reading = adamx.read(state)
    np.testing.assert_allclose(reading.learning_rate, [0.1, 0.2])
    assert reading.scalars()["learning_rate"] == pytest.approx(0.15)


def test_inside_jit_a_reading_holds_tracers():
    tx = adamx.adam(SCHEDULE)

    @jax.jit
    def rate(state):
        _, state = tx.update(PARAMS, state, PARAMS)
        reading = adamx.read(state)
        return reading.learning_rate, reading.count

    scalars = jax.jit(lambda state: adamx.read(state).scalars())(tx.init(PARAMS))
    assert scalars == {"count": 0.0, "learning_rate": 1.0}
    reading = jax.jit(adamx.read)(tx.init(PARAMS))
    assert float(reading.learning_rate) == 1.0
    learning_rate, count = rate(tx.init(PARAMS))
    assert (float(learning_rate), int(count)) == (1.0, 1)


def test_optax_finds_the_same_names():
    """`optax.tree.get` goes on working where it worked on Optax's own states."""
    for make in (lambda m: m.adam(1e-3), lambda m: m.adamw(1e-3)):
        state = after(make(adamx))[1]
        assert int(optax.tree.get(state, "count")) == 3
        assert optax.tree.get(state, "mu")["a"].shape == (3,)
    for make in (
        lambda m: m.sgd(1e-3),
        lambda m: m.sgd(1e-3, 0.9),
        lambda m: m.sgd(SCHEDULE, 0.9),
        lambda m: m.rmsprop(1e-3),
        lambda m: m.rmsprop(1e-3, bias_correction=True),
        lambda m: m.amsgrad(1e-3),
        lambda m: (
            m.inject_hyperparams(m.sgd)(1e-3)
            if m is optax
            else optax.inject_hyperparams(m.sgd)(1e-3)
        ),
    ):
        ours, theirs = (
            optax.tree.get(after(make(m))[1], "count") for m in (adamx, optax)
        )
        assert ours == theirs
    moved = optax.tree.set(after(adamx.adam(SCHEDULE))[1], count=jnp.int32(9))
    assert adamx.read(moved).count == 9


def test_state_records_what_was_used():
    tx = adamx.adamw(SCHEDULE, b1=0.8, b2=0.97, eps=1e-3, weight_decay=0.2)
    _, (adam, decay, rate) = after(tx)
    for value, want in [
        (adam.b1, 0.8),
        (adam.b2, 0.97),
        (adam.eps, 1e-3),
        (adam.bias_correction_mu, 1 - 0.8**3),
        (adam.bias_correction_nu, 1 - 0.97**3),
        (decay.applied_weight_decay, 0.2),
        (rate.applied_learning_rate, 0.8),
    ]:
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(want, rel=1e-6)


def test_what_else_the_stages_recorded():
    params = {"w": jnp.ones((3, 2))}
    tx = optax.chain(
        adamx.clip_by_update_rms(0.5),
        adamx.cautious(optax.partition({"a": adamx.lamb(1e-3)}, "a")),
    )
    _, state = tx.update(params, tx.init(params), params)
    scalars = adamx.read(state).scalars()
    assert scalars["update_rms"] == 1.0
    assert scalars["kept_fraction"] == 1.0
    assert scalars["trust_ratio_min"] == scalars["trust_ratio_max"] > 0
    assert adamx.read(state).more["update_rms"] == 1.0
    assert adamx.read(adamx.adam(1e-3).init(params)).more == {}


def test_numbers_are_the_shortest_that_are_the_same_float32():
    state = adamx.adamw(0.1, weight_decay=0.3).init(jnp.ones(1))
    assert repr(adamx.read(state).learning_rate) == "0.1"
    assert repr(adamx.read(state).weight_decay) == "0.3"
    assert np.isnan(
        adamx.read(
            adamx.cautious(adamx.sgd(1.0))
            .init(jnp.ones(1))
            ._replace(kept_fraction=jnp.float32(jnp.nan))
        ).more["kept_fraction"]
    )


def test_an_optimizer_of_flax_nnx_inside_and_outside_jit():
    from flax import nnx

    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamx.sophia_h(0.1), wrt=nnx.Param)
    graph, _ = nnx.split(model, nnx.Param)

    def loss(params):
        return jnp.sum(nnx.merge(graph, params)(jnp.ones((4, 2))) ** 2)

    @nnx.jit
    def step(model, optimizer):
        params = nnx.state(model, nnx.Param)
        gradients = jax.grad(loss)(params)
        # Before flax 0.11 the optimizer held the model itself.
        takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters
        optimizer.update(*[model] * takes_model, gradients, loss_fn=loss)
        return adamx.read(optimizer).scalars()

    inside = step(model, optimizer)
    assert {k: float(v) for k, v in inside.items()} == pytest.approx(
        adamx.read(optimizer).scalars()
    )
    assert inside["count"] == 1
    assert 0.0 <= float(optimizer.opt_state[0].clipped_fraction()) <= 1.0


def a_measured_reading(count=100):
    layers = {
        "a/b": {"r/p5": 0.1, "r/p50": 0.5, "update_ratio": 1e-3},
        "c": {"r/p5": 0.2, "r/p50": 0.6, "update_ratio": 2e-3},
    }
    return adamx.Reading(
        count=100,
        learning_rate={"x": 0.1, "y": 0.2},
        more={"update_rms": 1.5},
        diagnostics=Diagnostics(count, layers),
    )


def test_scalars_of_some_names_only():
    reading = a_measured_reading()
    assert reading.scalars(only=("r/p50", "learning_rate", "grad_norm")) == {
        **{"learning_rate/x": 0.1, "learning_rate/y": 0.2},
        **{"r/p50/a/b": 0.5, "r/p50/c": 0.6},
    }
    assert reading.scalars(only=["update_rms"]) == {"update_rms": 1.5}
    assert reading.scalars(only=()) == {}
    everything = ["count", "learning_rate", "update_rms"]
    everything += reading.diagnostics.layers["c"]
    assert list(reading.scalars(everything)) == list(reading.scalars())
    assert a_measured_reading(0).scalars(only=("count", "r/p50")) == {"count": 100.0}
    assert adamx.Reading(count=1).scalars(only=("r/p50",)) == {}
    inside = jax.jit(lambda r: r.scalars(only=("count", "r/p50")))(reading)
    assert set(inside) == {"count", "r/p50/a/b", "r/p50/c"}


@pytest.mark.parametrize(
    ("only", "error", "text"),
    [
        ("r/p50", TypeError, r"`only` must be a list of names, got str 'r/p50'"),
        ((1,), TypeError, r"`only` must be a list of names"),
        (("r/p51",), ValueError, r"'r/p51'; it has count, .*update_rms, r/p5, r/p50"),
        (("r/p50/c",), ValueError, r"'r/p50/c'.*layers are not part of a name"),
    ],
)
def test_names_of_no_scalar_are_refused(only, error, text):
    with pytest.raises(error, match=text):
        a_measured_reading().scalars(only=only)


def test_diagnostics_print_shortly():
    reading = a_measured_reading()
    text = "Diagnostics(count=100, 2 layers x 3 numbers)"
    assert repr(reading.diagnostics) == text
    assert f"diagnostics={text}," in repr(reading)
    # As an `in_axes` of jax.vmap.
    assert repr(Diagnostics(0, 0)) == "Diagnostics(count=0, layers=0)"
