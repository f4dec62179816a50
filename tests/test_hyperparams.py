"""`with_hyperparams` and `set_hyperparams`: the step, what is held, one compilation."""

import functools
import inspect

import chex
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx._steps import step_of, with_step
from tests.helpers import enable_x64
from tests.optimizers_table import LR, NAMES, ROWS
from tests.reference_hyperparams import adamw as reference
from tests.test_contract import assert_close, make_params, random_like, signature

SLOW = pytest.mark.slow
# Those with whole numbers among their arguments, and one without.
CHOSEN = ("adamw", "ademamix", "sophia_h", "schedule_free_adamw")
by_name = pytest.mark.parametrize("row", NAMES, ids=lambda row: row.name)
exhaustive = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row in NAMES and row.name in CHOSEN else SLOW)
        for row in ROWS
    ],
    ids=lambda row: row.id,
)
SCHEDULE = adamx.schedules.linear(0.5, 0.1, 10)
PARAMS = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}


def held(row, **options):
    return adamx.with_hyperparams(
        row.factory, **{"learning_rate": LR, **row.hyperparameters, **options}
    )


def is_number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool)


# ------------------------------------------------------------- changing while it runs


def _values(steps, start):
    """Six hyperparameters by step, each another at each step, as float32 holds them."""
    rng = np.random.default_rng(3)
    drawn = {
        "learning_rate": 10 ** rng.uniform(-4, -1, steps),
        "b1": 1 - 10 ** rng.uniform(-2, -0.3, steps),
        "b2": 1 - 10 ** rng.uniform(-4, -1, steps),
        "eps": 10 ** rng.uniform(-8, -3, steps),
        "eps_root": 10 ** rng.uniform(-9, -4, steps),
        "weight_decay": 10 ** rng.uniform(-3, 0, steps),
    }
    drawn = {k: np.float32([start[k], *v[1:]]) for k, v in drawn.items()}
    return [{k: float(v[t]) for k, v in drawn.items()} for t in range(steps)]


START = {
    "learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0,
    "weight_decay": 1e-4,
}  # fmt: skip


@pytest.fixture(scope="module")
def changed_run():
    """101 steps of AdamW, all hyperparameters set anew before each but the first."""
    steps, size = 101, 257
    values = _values(steps, START)
    rng = np.random.default_rng(0)
    scales = np.float32(10.0 ** rng.uniform(-3, 3, size))
    gradients = np.float32(rng.standard_normal((steps, size))) * scales
    p = jnp.asarray(rng.standard_normal(size), jnp.float32)
    tx = adamx.with_hyperparams(adamx.adamw, START["learning_rate"])
    state = tx.init(p)
    traces = []

    @jax.jit
    def step(p, state, g):
        traces.append(1)
        updates, state = tx.update(g, state, p)
        return p + updates, state, updates

    before, updates = [], []
    for t in range(steps):
        if t:
            state = adamx.set_hyperparams(state, **values[t])
        before.append(np.asarray(p))
        p, state, u = step(p, state, gradients[t])
        updates.append(np.asarray(u))
    return step, traces, gradients, before, values, updates


def _error(run, correction):
    """The largest |u - u64| / (lr max(1, |u64| / lr)) of the run."""
    _, _, gradients, before, values, updates = run
    wants = reference(gradients, before, values, correction)
    errors = []
    for got, want, at in zip(updates, wants, values, strict=True):
        rate = at["learning_rate"]
        unit = rate * np.maximum(1.0, np.abs(want) / rate)
        errors.append(np.max(np.abs(got - want) / unit))
    return max(errors)


def test_a_hundred_changes_are_one_compilation(changed_run):
    step, traces, *_ = changed_run
    assert len(traces) == 1
    assert step._cache_size() == 1


def test_a_hundred_changes_follow_the_float64_oracle(changed_run):
    assert _error(changed_run, "product") <= 5e-7


def test_the_oracle_notices_the_closed_form(changed_run):
    """The correction that b2's last value alone would give."""
    assert _error(changed_run, "closed") > 0.1


def test_x64_follows_the_oracle_to_1e_12():
    with enable_x64():
        steps, size = 40, 67
        values = _values(steps, START)
        rng = np.random.default_rng(1)
        gradients = rng.standard_normal((steps, size))
        p = jnp.asarray(rng.standard_normal(size))
        tx = adamx.with_hyperparams(adamx.adamw, **values[0])
        state = tx.init(p)
        assert state.hyperparams["b2"].dtype == jnp.float64
        step = jax.jit(tx.update)
        before, updates = [], []
        for t in range(steps):
            state = adamx.set_hyperparams(state, **values[t])
            before.append(np.asarray(p))
            u, state = step(gradients[t], state, p)
            p = p + u
            updates.append(np.asarray(u))
        assert step._cache_size() == 1
        run = None, None, gradients, before, values, updates
        assert _error(run, "product") <= 1e-12


def test_on_eight_devices_and_donated_nothing_compiles_again():
    """The new numbers lie where the old ones lay: replicated, committed."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    p = jax.device_put(jnp.ones(64), sharded)
    tx = adamx.with_hyperparams(adamx.adamw, LR)
    state = tx.init(p)
    state = jax.device_put(
        state, jax.tree.map(lambda x: sharded if x.ndim else everywhere, state)
    )
    step = jax.jit(
        lambda p, state, g: adamx.fused(tx).step(g, state, p), donate_argnums=(0, 1)
    )
    for i in range(4):
        p, state = step(p, state, jax.device_put(jnp.ones(64), sharded))
        new = adamx.set_hyperparams(state, learning_rate=LR / (i + 2), b2=0.99)
        for name in ("learning_rate", "b2"):
            old = state.hyperparams[name]
            assert new.hyperparams[name].sharding == old.sharding
            assert new.hyperparams[name].committed == old.committed
        assert signature(new) == signature(state)
        state = new
    assert step._cache_size() == 1
    assert adamx.read(state).learning_rate == pytest.approx(LR / 4)


def test_setting_inside_jit_and_scan():
    tx = adamx.with_hyperparams(adamx.sgd, learning_rate=1.0)

    @jax.jit
    def run(p, state, rates):
        def step(carry, rate):
            p, state = carry
            state = adamx.set_hyperparams(state, learning_rate=rate)
            updates, state = tx.update(jnp.ones_like(p), state, p)
            return (p + updates, state), updates

        return jax.lax.scan(step, (p, state), rates)

    p = jnp.zeros(3)
    rates = jnp.array([0.5, 0.25, 2.0])
    (p, state), updates = run(p, tx.init(p), rates)
    np.testing.assert_array_equal(updates[:, 0], -rates)
    assert float(state.hyperparams["learning_rate"]) == 2.0
    assert signature(state) == signature(tx.init(p))


def test_a_batch_of_runs_each_with_its_own_rate():
    tx = adamx.with_hyperparams(adamx.sgd, learning_rate=1.0)
    p = jnp.zeros((3, 2))
    state = jax.vmap(tx.init)(p)
    state = adamx.set_hyperparams(state, learning_rate=jnp.array([1.0, 2.0, 3.0]))
    updates, state = jax.jit(jax.vmap(tx.update))(jnp.ones((3, 2)), state)
    assert updates[:, 0].tolist() == [-1.0, -2.0, -3.0]
    state = adamx.set_hyperparams(state, learning_rate=0.5)  # one for all
    assert state.hyperparams["learning_rate"].tolist() == [0.5] * 3
    with pytest.raises(ValueError, match=r"`learning_rate`.*scalar.*\(3,\).*\(2,\)"):
        adamx.set_hyperparams(state, learning_rate=jnp.ones(2))


def test_the_step_does_not_wait_for_the_host():
    tx = adamx.with_hyperparams(adamx.adamw, LR, b2=SCHEDULE)
    p = jnp.ones(3)
    text = jax.jit(tx.update).lower(p, tx.init(p), p).as_text()
    assert "callback" not in text
    step = jax.jit(tx.update)
    _, state = step(p, tx.init(p), p)
    with jax.transfer_guard("disallow"):
        _, state = step(p, state, p)
    assert int(state.step) == 2


# --------------------------------------------------------- every argument of every one


def _numeric(row):
    """The arguments of a row that are numbers, and whether each is a whole one."""
    found = {"learning_rate": LR}
    found |= {k: a.default for k, a in row.arguments.items() if is_number(a.default)}
    found |= {k: v for k, v in row.hyperparameters.items() if is_number(v)}
    return found | {"learning_rate": LR}


TINY = {"w": jnp.asarray(np.random.default_rng(1).standard_normal((3, 4)), jnp.float32)}


@by_name
def test_every_number_is_held_or_static(row):
    """A whole number is static, a float held; the one and all of them may be static."""
    numbers = _numeric(row)
    floats = {k: float(v) for k, v in numbers.items()}
    wholes = {
        k
        for k, v in numbers.items()
        if isinstance(v, int) and not isinstance(row.arguments[k].default, float)
    }
    for options, want in (
        ({}, set(numbers) - wholes),
        (floats, set(numbers)),
        ({"static": tuple(numbers)}, set()),
        *[({"static": name}, set(numbers) - wholes - {name}) for name in numbers],
    ):
        tx = held(row, **options)
        state = jax.eval_shape(tx.init, TINY)
        assert set(state.hyperparams) == want
        assert (state.scheduled, state.step) == ({}, None)
    traced = held(row, **floats)
    state = jax.eval_shape(traced.init, TINY)
    _, after = jax.eval_shape(traced.update, TINY, state, TINY)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


# They have had their effect at init, or will have it at a switch (swats), if ever.
WITHOUT = {"initial_scale", "base_learning_rate", "seed", "tolerance"}
WITHOUT |= {"relative_tolerance"}


@exhaustive
def test_every_number_has_its_effect(row):
    numbers = {k: float(v) for k, v in _numeric(row).items()}
    tx = held(row, **numbers)
    start = tx.init(TINY)
    update = jax.jit(tx.update)
    gradients = [random_like(TINY, seed) for seed in (2, 3, 4)]

    def run(state):
        emitted = []
        for g in gradients:
            updates, state = update(g, state, TINY)
            emitted.append(updates)
        return emitted, state.inner_state

    want = run(start)
    for name, number in numbers.items():
        changed = {"threshold": 6.0, "update_interval": 2.0}.get(name, number * 0.7)
        got = run(adamx.set_hyperparams(start, **{name: changed or 1e-3}))
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        is_same = all(np.array_equal(a, b) for a, b in pairs)
        assert is_same == (name in WITHOUT), name
    assert update._cache_size() == 1


@exhaustive
def test_the_updates_are_those_of_the_factory(row):
    tx, bare = held(row), row.make()
    state, plain = tx.init(TINY), bare.init(TINY)
    update, expected = jax.jit(tx.update), jax.jit(bare.update)
    for seed in range(3):
        gradients = random_like(TINY, seed + 5)
        updates, state = update(gradients, state, TINY)
        want, plain = expected(gradients, plain, TINY)
        # float32(0.999) is another b2 than 0.999.
        assert_close(updates, want, rtol=5e-5, atol=5e-5 * LR)
    assert_close(state.inner_state, plain, rtol=5e-5, atol=5e-5 * LR)


def test_all_static_is_the_factory_itself():
    (row,) = [row for row in NAMES if row.name == "adamw"]
    tx, bare = held(row, static=tuple(_numeric(row))), row.make()
    updates, state = jax.jit(tx.update)(TINY, tx.init(TINY), TINY)
    want = jax.jit(bare.update)(TINY, bare.init(TINY), TINY)
    chex.assert_trees_all_equal((updates, state.inner_state), want)


OPTAX = {
    "adamw": (optax.adamw, {"weight_decay": 0.1}),
    "sgd": (optax.sgd, {"momentum": 0.9}),
    "rmsprop": (optax.rmsprop, {"eps": 1e-3}),
    "lion": (optax.lion, {}),
    "adafactor": (optax.adafactor, {"min_dim_size_to_factor": 2}),
    "chain": (
        lambda learning_rate, clip=1.0, mask=None: optax.chain(
            optax.clip_by_global_norm(clip), optax.adamw(learning_rate, mask=mask)
        ),
        {"mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params)},
    ),
}


@pytest.mark.parametrize("label", OPTAX)
def test_factories_of_optax(label):
    factory, options = OPTAX[label]
    static = ("multiply_by_parameter_scale",) if label == "adafactor" else ()
    tx = adamx.with_hyperparams(factory, learning_rate=LR, static=static, **options)
    bare = factory(learning_rate=LR, **options)
    state, plain = tx.init(PARAMS), bare.init(PARAMS)
    update, expected = jax.jit(tx.update), jax.jit(bare.update)
    for seed in range(2):
        gradients = random_like(PARAMS, seed)
        updates, state = update(gradients, state, PARAMS)
        want, plain = expected(gradients, plain, PARAMS)
        assert_close(updates, want, rtol=1e-4, atol=1e-6)
    assert adamx.read(state).learning_rate == LR
    changed = adamx.set_hyperparams(state, learning_rate=LR / 2)
    half, _ = update(gradients, changed, PARAMS)
    full, _ = update(gradients, state, PARAMS)
    assert_close(half, jax.tree.map(lambda u: u / 2, full), rtol=1e-5, atol=1e-8)


# ----------------------------------------------------------------------- what is held


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64]
)
def test_b2_does_not_take_the_dtype_of_the_parameters(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = adamx.with_hyperparams(adamx.adamw, 1e-3)
    state = tx.init(params)
    before = signature(state)
    update = jax.jit(tx.update)
    for _ in range(2):
        _, state = update(params, state, params)
        state = adamx.set_hyperparams(state, eps=1e-6)
        assert signature(state) == before
        assert {x.dtype for x in state.hyperparams.values()} == {jnp.dtype("float32")}
    assert float(state.hyperparams["b2"]) == np.float32(0.999)
    assert float(state.inner_state[0].b2) == np.float32(0.999)


def _schedule_of_step(step):
    return 0.9 - 0.1 * step


def test_what_is_a_number_a_schedule_or_neither():
    def factory(
        rate, b=0.9, momentum=None, mask=None, name="x", flag=False, steps=10,
        rule=jnp.sqrt, dtype=None, *, codec=None, **more,
    ):  # fmt: skip
        seen.append({**locals()})
        return optax.identity()

    seen = []
    codec, key = adamx.codecs.int8(), jax.random.key(0)
    tx = adamx.with_hyperparams(
        factory, 1, _schedule_of_step, jnp.float32(0.5), lambda p: p > 0,
        dtype=jnp.bfloat16, codec=codec, alpha=np.float64(2), key=key, rule=jnp.tanh,
        vector=jnp.ones(2), whole=3, flag2=np.bool_(True),
    )  # fmt: skip
    state = tx.init(jnp.zeros(2))
    assert set(state.hyperparams) == {"rate", "momentum", "alpha", "whole"}
    assert set(state.scheduled) == {"b"}
    got = seen[-1]
    assert isinstance(got["rate"], jax.Array)
    assert got["steps"] == 10
    assert got["codec"] is codec
    assert got["dtype"] is jnp.bfloat16
    assert got["more"]["key"] is key
    assert got["more"]["vector"].shape == (2,)
    assert (got["flag"], got["more"]["flag2"], got["name"]) == (False, True, "x")
    assert got["rule"] is jnp.tanh


def test_schedules_are_asked_at_the_states_own_step_and_recorded():
    tx = adamx.with_hyperparams(adamx.adamw, SCHEDULE, b2=_schedule_of_step, eps=1e-3)
    bare = adamx.adamw(SCHEDULE, b2=_schedule_of_step, eps=1e-3)
    state, plain = state0, _ = tx.init(PARAMS), bare.init(PARAMS)
    assert float(state.scheduled["b2"]) == np.float32(0.9)
    update, expected = jax.jit(tx.update), jax.jit(bare.update)
    for i in range(3):
        updates, state = update(PARAMS, state, PARAMS)
        want, plain = expected(PARAMS, plain, PARAMS)
        assert_close(updates, want, rtol=1e-5)
        assert int(state.step) == i + 1
        assert float(state.scheduled["b2"]) == pytest.approx(0.9 - 0.1 * i)
        assert float(state.scheduled["learning_rate"]) == pytest.approx(
            float(SCHEDULE(i))
        )
    static = adamx.with_hyperparams(adamx.adamw, SCHEDULE, static="learning_rate")
    state = static.init(PARAMS)
    assert state.step is None
    assert adamx.read(state).learning_rate == 0.5
    full = state0._replace(step=jnp.int32(np.iinfo(np.int32).max))
    _, full = update(PARAMS, full, PARAMS)
    assert int(full.step) == np.iinfo(np.int32).max


def test_reading_reports_each_number_once():
    tx = adamx.with_hyperparams(adamx.adamw, 1e-3, weight_decay=0.1)
    state = tx.init(PARAMS)
    assert float(optax.tree.get(state, "learning_rate")) == np.float32(1e-3)
    _, state = tx.update(PARAMS, adamx.set_hyperparams(state, b2=0.99), PARAMS)
    reading = adamx.read(state)
    assert (reading.count, reading.learning_rate, reading.weight_decay) == (
        1, 1e-3, 0.1)  # fmt: skip
    assert reading.more == {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "eps_root": 0.0}
    # Told, but not yet done: what was applied stays what is read.
    state = adamx.set_hyperparams(state, learning_rate=1.0)
    assert adamx.read(state).learning_rate == 1e-3
    state = adamx.with_hyperparams(optax.adamw, 0.5).init(PARAMS)
    reading = adamx.read(state)
    assert (reading.learning_rate, reading.weight_decay) == (0.5, 1e-4)
    assert reading.more["b1"] == 0.9
    inside = jax.jit(lambda state: adamx.read(state).scalars())(state)
    assert float(inside["b1"]) == np.float32(0.9)


def test_what_was_told_is_not_read_as_done():
    """Names of a Reading's fields, as arguments: nothing was skipped or counted."""

    def factory(learning_rate, count, skipped, grad_norm, switch_step, other):
        del count, skipped, grad_norm, switch_step, other
        return optax.sgd(learning_rate)

    tx = adamx.with_hyperparams(factory, *[0.5] * 6)
    want = adamx.Reading(learning_rate=0.5, more={"other": 0.5})
    assert adamx.read(tx.init(PARAMS)) == want


def test_optax_tree_set_works_too():
    tx = adamx.with_hyperparams(adamx.sgd, learning_rate=1.0)
    state = optax.tree.set(tx.init(jnp.zeros(2)), learning_rate=0.5)  # a float
    updates, state = jax.jit(tx.update)(jnp.ones(2), state)
    assert updates.tolist() == [-0.5, -0.5]
    assert not state.hyperparams["learning_rate"].weak_type


def test_a_state_has_buffers_of_its_own():
    rate = jnp.float32(1e-3)
    tx = adamx.with_hyperparams(adamx.adamw, rate)
    state = tx.init(jnp.ones(3))
    _, after = jax.jit(tx.update)(jnp.ones(3), state, jnp.ones(3))
    changed = adamx.set_hyperparams(after, learning_rate=rate)
    for tree in (state, after, changed):
        leaves = [*jax.tree.leaves(tree), rate]
        pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
        assert len(set(pointers)) == len(pointers)


@by_name
@pytest.mark.parametrize("dtype", [None, adamx.codecs.int8(min_size=0)])
def test_numbers_and_moments_of_scalars_have_buffers_of_their_own(row, dtype):
    """A moment that begins at a number would be that number, where it is a scalar."""
    params = {"c": jnp.ones(()), "d": jnp.ones(()), "w": jnp.ones((2, 3))}
    named = {} if dtype is None else {"nu_dtype": dtype}
    is_taken = set(named) <= set(inspect.signature(row.factory).parameters)
    if not is_taken or (named and row.name == "adam_mini"):
        pytest.skip("no second moment, or one that is never encoded")
    state = held(row, **named).init(params)
    leaves = jax.tree.leaves((state, params))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


# -------------------------------------------------------------------- where it stands


def test_fused_equals_update():
    tx = adamx.with_hyperparams(adamx.adamw, LR, b1=SCHEDULE)
    init, step = adamx.fused(tx)
    params = make_params()
    want, got = (params, tx.init(params)), (params, init(params))

    @jax.jit
    def by_update(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    by_step = jax.jit(lambda params, state, gradients: step(gradients, state, params))
    for seed in range(3):
        gradients = random_like(params, seed)
        want, got = by_update(*want, gradients), by_step(*got, gradients)
    chex.assert_trees_all_equal(got, want)


def test_the_step_of_a_wrapper_inside_is_taken():
    calls = []

    def factory(learning_rate, initial_scale=8.0):
        inner = adamx.loss_scaling(
            adamx.adamw(learning_rate), initial_scale=initial_scale
        )
        own = step_of(inner)

        def step(*args, **kwargs):
            calls.append(1)
            return own(*args, **kwargs)

        return with_step(inner.init, inner.update, step)

    tx = adamx.with_hyperparams(factory, LR)
    init, step = adamx.fused(tx)
    p = jnp.ones(3)
    got, state = jax.jit(step)(p, init(p), p)
    assert calls == [1]
    assert float(adamx.loss_scale(state)) == 8.0
    updates, want = jax.jit(tx.update)(p, tx.init(p), p)
    chex.assert_trees_all_equal((got, state), (p + updates, want))
    spoiled = p.at[0].set(jnp.nan)
    same, state = jax.jit(step)(spoiled, state, got)
    chex.assert_trees_all_equal(same, got)
    assert adamx.read(state).skipped == 1


def test_inside_and_outside_of_other_wrappers():
    gradients = random_like(PARAMS, 3)
    bare = adamx.adamw(LR)
    want, _ = bare.update(gradients, bare.init(PARAMS), PARAMS)
    own = functools.partial(adamx.with_hyperparams, adamx.adamw)
    both = {"a": "x", "b": "y"}
    wrapped = {
        "chain": optax.chain(optax.identity(), own(LR)),
        "masked": optax.masked(own(LR), True),
        "partition": optax.partition({"x": own(LR), "y": own(LR)}, both),
        "loss_scaling": adamx.loss_scaling(own(LR), initial_scale=1.0),
        "inside": adamx.with_hyperparams(
            lambda learning_rate: adamx.loss_scaling(
                adamx.adamw(learning_rate), initial_scale=1.0), LR),
        "itself": adamx.with_hyperparams(
            lambda clip: optax.chain(adamx.clip_by_global_norm(clip), own(LR)), 1e3),
        "inject": optax.inject_hyperparams(lambda learning_rate: own(learning_rate))(
            LR),
        "MultiSteps": optax.MultiSteps(own(LR), 1).gradient_transformation(),
    }  # fmt: skip
    for label, tx in wrapped.items():
        state = tx.init(PARAMS)
        update = jax.jit(tx.update)
        updates, new = update(gradients, state, PARAMS)
        assert_close(updates, want, rtol=3e-5, atol=1e-7)
        assert signature(new) == signature(state), label
        name = "eps" if label == "inject" else "learning_rate"
        changed = adamx.set_hyperparams(new, **{name: 0.0})
        assert signature(changed) == signature(new), label
        if label != "inject":
            updates, _ = update(gradients, changed, PARAMS)
            assert all(np.all(u == 0) for u in jax.tree.leaves(updates)), label
        mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)


def test_one_of_several():
    labels = {"a": "encoder", "b": "decoder"}
    tx = optax.chain(
        adamx.clip_by_global_norm(1e3),
        optax.partition(
            {
                "encoder": adamx.with_hyperparams(adamx.sgd, learning_rate=1.0),
                "decoder": adamx.with_hyperparams(adamx.adamw, learning_rate=1.0),
            },
            labels,
        ),
    )
    state = tx.init(PARAMS)
    both = adamx.set_hyperparams(state, learning_rate=0.5)
    assert adamx.read(both).more.get("learning_rate") is None
    update = jax.jit(tx.update)

    def applied(state):
        _, state = update(PARAMS, state, PARAMS)
        return adamx.read(state).learning_rate

    assert applied(both) == {"encoder": 0.5, "decoder": 0.5}
    one = adamx.set_hyperparams(state, where="decoder", learning_rate=0.25, b2=0.9)
    assert applied(one) == {"encoder": 1.0, "decoder": 0.25}
    # b2 is held by one of the two: a name is set where it is.
    both = adamx.set_hyperparams(state, b2=0.9)
    assert adamx.read(both).more["b2"] == 0.9
    with pytest.raises(ValueError, match=r"`b2` must be one of learning_rate"):
        adamx.set_hyperparams(state, where="encoder", b2=0.9)
    with pytest.raises(ValueError, match=r"`where`.*'decod'; there.*'decoder'.*mean"):
        adamx.set_hyperparams(state, where="decod", b2=0.9)


def test_states_in_flax_holders_and_checkpoints():
    tx = optax.chain(adamx.with_hyperparams(adamx.adamw, 1e-3))
    train = flax.training.train_state.TrainState.create(
        apply_fn=None, params={"w": jnp.ones(2)}, tx=tx
    )
    train = adamx.set_hyperparams(train, learning_rate=0.5)
    assert float(optax.tree.get(train.opt_state, "learning_rate")) == 0.5
    restored = jax.tree.map(np.asarray, train.opt_state)
    changed = adamx.set_hyperparams(restored, learning_rate=0.25)
    assert isinstance(changed[0].hyperparams["learning_rate"], np.ndarray)
    assert changed[0].hyperparams["learning_rate"] == 0.25
    as_dict = flax.serialization.to_state_dict(train.opt_state)
    again = flax.serialization.from_state_dict(train.opt_state, as_dict)
    chex.assert_trees_all_equal(again, train.opt_state)
    shapes = jax.eval_shape(tx.init, {"w": jnp.ones(2)})
    assert signature_of_shapes(
        adamx.set_hyperparams(shapes, eps=0.0)
    ) == signature_of_shapes(train.opt_state)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kinds = jax.tree.structure(optimizer.opt_state)
    optimizer.opt_state = adamx.set_hyperparams(optimizer.opt_state, b2=0.9, eps=1e-6)
    assert jax.tree.structure(optimizer.opt_state) == kinds
    assert adamx.read(optimizer).more["b2"] == 0.9


def signature_of_shapes(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("params", [{}, (), None, {"a": None}, [jnp.ones((0,))]])
def test_trees_without_elements(params):
    tx = adamx.with_hyperparams(adamx.adamw, LR, b1=SCHEDULE)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert int(state.step) == 1


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.bfloat16, jnp.complex64):
            params = jax.tree.map(lambda p, d=dtype: p.astype(d), PARAMS)
            tx = adamx.with_hyperparams(adamx.adamw, LR, b1=SCHEDULE)
            state = adamx.set_hyperparams(tx.init(params), b2=0.5)
            updates, _ = jax.eval_shape(tx.update, params, state, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
