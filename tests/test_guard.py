"""`guard`: what is skipped, what a skipped step leaves, what the state says of it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from tests.compiling import as_users
from tests.helpers import enable_x64
from tests.reference_guard import decisions
from tests.test_contract import assert_close, make_params, random_like, signature
from tests.test_loss_scaling import _awkward_params, _spoiled, assert_same_bits

pytestmark = pytest.mark.filterwarnings("error")

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map  # jax 0.6.0

LR, NAN, INF = 1e-2, float("nan"), float("inf")
adamw = functools.partial(adamx.adamw, LR, weight_decay=0.1)
spikes = functools.partial(adamx.guard, spike_zscore=6.0, spike_warmup=3)
both_ways = pytest.mark.parametrize("way", ["protocol", "fused"])


def step_of(tx, way):
    """(params, state, gradients) -> (params, state), compiled."""

    def protocol(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def fused(params, state, gradients):
        return adamx.fused(tx).step(gradients, state, params)

    return jax.jit(protocol if way == "protocol" else fused)


def inmost(state):
    """The state of the optimizer itself, under all wrappers."""
    while hasattr(state, "inner_state"):
        state = state.inner_state
    return state


# ------------------------------------------------------------------- what is skipped


@pytest.mark.parametrize(
    ("dtype", "way"),
    [
        (jnp.float16, "protocol"),
        (jnp.float32, "fused"),
        pytest.param(jnp.float16, "fused", marks=pytest.mark.slow),
        pytest.param(jnp.float32, "protocol", marks=pytest.mark.slow),
    ],
)
def test_a_bad_gradient_in_any_leaf_at_any_step_changes_nothing(way, dtype):
    params = _awkward_params(dtype)
    tx = spikes(adamw())
    step, state = step_of(tx, way), tx.init(params)
    spike = 1e4 if dtype == jnp.float16 else 1e15
    for seed in range(5):
        good = random_like(params, seed)
        for index in range(len(jax.tree.leaves(params))):
            for value in (NAN, INF, -INF, spike):
                if value == spike and seed < 3:
                    continue
                new, after = step(params, state, _spoiled(good, index, value))
                assert_same_bits(new, params)
                assert_same_bits(after.inner_state, state.inner_state)
                assert int(after.skipped) == int(state.skipped) + 1
                assert int(after.skipped_in_a_row) == 1
                known = after.statistics._replace(
                    zscore=state.statistics.zscore,
                    spikes=state.statistics.spikes,
                    spikes_in_a_row=state.statistics.spikes_in_a_row,
                )
                assert_same_bits(known, state.statistics)
        params, state = step(params, state, good)
    reading = adamx.read(state)
    assert (reading.count, reading.skipped) == (5, 0)


NESTINGS = {
    "guard": lambda: adamx.guard(adamw()),
    "chain": lambda: optax.chain(adamx.guard(
        optax.chain(adamx.clip_by_global_norm(1.0), adamw()))),
    "guard(guard)": lambda: adamx.guard(spikes(adamw())),
    "loss_scaling(guard)": lambda: adamx.loss_scaling(
        adamx.guard(adamw()), initial_scale=1.0),
    "guard(accumulate)": lambda: adamx.guard(adamx.accumulate(adamw(), 1)),
    "accumulate(guard)": lambda: adamx.accumulate(adamx.guard(adamw()), 1),
    "master_weights(guard)": lambda: adamx.master_weights(adamx.guard(adamw())),
    "guard(master_weights)": lambda: adamx.guard(adamx.master_weights(adamw())),
    "guard(compensated)": lambda: adamx.guard(adamx.compensated(adamw())),
    "guard(cautious)": lambda: adamx.guard(adamx.cautious(adamw())),
    "guard(inject)": lambda: adamx.guard(
        optax.inject_hyperparams(adamx.adamw)(learning_rate=lambda n: 0.1 / (n + 1))),
    "guard(partition)": lambda: adamx.guard(optax.partition(
        {"x": adamw(), "y": optax.sgd(LR, momentum=0.9)}, {"a": "x", "b": "y"})),
    "guard(optax)": lambda: adamx.guard(optax.adamw(LR)),
    "guard(schedule_free)": lambda: adamx.guard(adamx.schedule_free_adamw(LR)),
}  # fmt: skip


MANY = ("guard(guard)", "guard(compensated)", "guard(optax)", "guard(inject)")
MANY += ("guard(cautious)", "guard(partition)", "guard")
nestings = [
    pytest.param(label, marks=pytest.mark.slow if label in MANY else ())
    for label in NESTINGS
]


@pytest.mark.parametrize("label", nestings)
def test_a_nan_is_left_out_in_every_nesting(label):
    """As if there had been no such step, counts and schedules included."""
    dtype = jnp.bfloat16 if "_weights" in label or "comp" in label else jnp.float32
    params = {"a": jnp.arange(1, 5, dtype=dtype), "b": jnp.ones((2, 3), dtype)}
    tx = NESTINGS[label]()
    step = step_of(tx, "fused")
    if label == "chain":
        step = step_of(tx, "protocol")
    want = got = (params, tx.init(params))
    for seed in range(3):
        good = random_like(params, seed)
        want = step(*want, good)
        before = got
        got = step(*got, _spoiled(good, 1, NAN))
        assert_same_bits(got[0], before[0])
        if label != "chain":
            assert_same_bits(inmost(got[1]), inmost(before[1]))
        got = step(*got, good)
        assert_same_bits(got[0], want[0])
    assert adamx.read(got[1]).skipped == 3 or label == "accumulate(guard)"
    assert adamx.read(got[1]).count in (3, None) or label == "accumulate(guard)"


def test_skipped_updates_are_minus_zero():
    for dtype in (jnp.bfloat16, jnp.complex64):
        params = jnp.ones(3, dtype)
        tx = adamx.guard(adamw())
        updates, _ = jax.jit(tx.update)(params.at[1].set(NAN), tx.init(params), params)
        is_complex = dtype == jnp.complex64
        for part in (np.real, np.imag) if is_complex else (np.asarray,):
            found = part(np.asarray(updates)).astype(np.float32)
            assert not np.any(found)
            assert np.all(np.signbit(found))


@pytest.mark.parametrize("options", [{"spike_zscore": 3.0, "spike_warmup": 50}])
def test_large_numbers_are_finite_though_their_squares_are_not(options):
    params = {f"layer_{i}": jnp.ones(100) for i in range(300)}  # added in groups
    params |= {"big": jnp.ones((300, 100)), "z": jnp.ones(3, jnp.complex64)}
    tx = adamx.guard(adamx.sgd(LR), **options)
    update = jax.jit(tx.update)
    for value, skipped in ((1e20, 0), (-3e38, 0), (NAN, 1), (INF, 1), (-INF, 1)):
        for name in ("layer_0", "layer_299", "big", "z"):
            bad = {
                **params,
                name: params[name].at[(-1,) * params[name].ndim].set(value),
            }
            _, state = update(bad, tx.init(params))
            assert int(state.skipped) == skipped, (value, name)
            assert not np.isfinite(float(state.grad_norm))
    # Bad values of both signs do not cancel; the sum of all large ones is finite.
    pair = params["big"].at[0, :2].set(jnp.array([INF, -INF]))
    assert int(update({**params, "big": pair}, tx.init(params))[1].skipped) == 1
    imaginary = {**params, "z": params["z"].at[0].set(complex(1.0, INF))}
    assert int(update(imaginary, tx.init(params))[1].skipped) == 1
    largest = jax.tree.map(lambda p: p * 3.4e38, params)
    assert int(update(largest, tx.init(params))[1].skipped) == 0


# ------------------------------------------------------------------------- the spikes


def series(seed, level=1.0):
    """Norms with drift, spikes, bursts of them, bad ones, and a change of level."""
    rng = np.random.default_rng(seed)
    x = level * np.exp(0.1 * rng.standard_normal(300)) * np.linspace(2, 1, 300)
    x[rng.choice(300, 12, replace=False)] *= 30
    x[100:103] *= 50
    x[rng.choice(300, 6, replace=False)] = NAN
    x[200:] *= 20
    return x


@pytest.mark.parametrize(
    ("zscore", "decay", "warmup", "limit", "level"),
    [
        (6.0, 0.99, 10, 5, 1.0),
        (3.0, 0.8, 2, None, 1.0),
        (4.0, 0.95, 20, 1, 1e-12),
        (4.0, 0.95, 20, 3, 1e17),  # the squares of differences overflow
    ],
)
def test_spikes_are_those_of_the_reference(zscore, decay, warmup, limit, level):
    tx = adamx.guard(
        adamx.sgd(1.0),
        spike_zscore=zscore,
        spike_decay=decay,
        spike_warmup=warmup,
        max_consecutive=limit,
    )
    norms = np.float32(series(0, level))

    def step(state, g):
        before = state.skipped
        _, state = tx.update(g, state)
        return state, (state.statistics.zscore, state.skipped == before)

    _, (z, taken) = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g))(
        jnp.asarray(norms)
    )
    want = list(decisions(norms, zscore, float(np.float32(decay)), warmup, limit))
    wanted_z, wanted = (np.array(column) for column in zip(*want, strict=True))
    np.testing.assert_array_equal(taken, wanted)
    np.testing.assert_allclose(z, wanted_z, rtol=2e-3, atol=2e-3)
    assert 10 < np.sum(~wanted) < (120 if limit is None else 60)


def run(tx, gradients):
    state, found = tx.init(jnp.zeros(())), []
    update = jax.jit(tx.update)
    for g in gradients:
        _, state = update(jnp.float32(g), state)
        found.append(state)
    return found


def test_a_level_that_stays_does_not_lock_training_out():
    """Three are skipped; the fourth is taken, and what follows is measured by it."""
    level = [1.0, 1.1, 0.9, 1.0, 1.1]
    raised = [100 * x for x in level] + [10_000.0]
    found = run(spikes(adamx.sgd(1.0), max_consecutive=3), level + raised)
    assert [int(s.skipped) for s in found[5:]] == [1, 2, 3, 3, 3, 3]
    assert int(found[-1].statistics.learned) == 3
    locked = run(spikes(adamx.sgd(1.0), max_consecutive=None), level + raised)
    assert int(locked[-1].skipped) == 6
    # Single spikes, however many, never sum up to a new level.
    single = run(spikes(adamx.sgd(1.0), max_consecutive=3), level + [100.0, 1.0] * 6)
    assert int(single[-1].skipped) == 6


def test_what_is_not_finite_is_never_taken_but_told():
    found = run(adamx.guard(adamx.sgd(1.0), max_consecutive=2), [1.0, *[NAN] * 4, 1.0])
    readings = [adamx.read(state) for state in found]
    assert [r.skipped for r in readings] == [0, 1, 2, 3, 4, 4]
    assert [r.more["skipped_in_a_row"] for r in readings] == [0, 1, 2, 3, 4, 0]
    assert [r.more["is_stuck"] for r in readings] == [False] * 3 + [True] * 2 + [False]
    assert readings[-1].scalars()["is_stuck"] == 0.0
    assert not any(bool(s.is_stuck) for s in run(
        adamx.guard(adamx.sgd(1.0), max_consecutive=None), [NAN] * 20))  # fmt: skip


def test_a_smaller_norm_is_no_spike_and_equal_ones_have_no_spread():
    found = run(spikes(adamx.sgd(1.0)), [*[1.0] * 5, 1e-6, 0.0, *[1.0 + 1e-7] * 5])
    assert int(found[-1].skipped) == 0
    found = run(spikes(adamx.sgd(1.0)), [*[0.0] * 5, 1.0, 1.0])  # nothing known yet
    assert int(found[-1].skipped) == 0
    assert adamx.read(run(spikes(adamx.sgd(1.0)), [*[1.0] * 4, 2.0])[-1]).skipped == 1


def test_the_norm_is_read_and_the_outer_one_stands():
    tx = adamx.guard(optax.chain(adamx.clip_by_global_norm(1.0), adamw()))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.full(1, 3.0), "b": jnp.full(1, 4.0)}
    updates, state = tx.update(gradients, tx.init(params), params)
    del updates
    reading = adamx.read(state)
    assert reading.grad_norm == 5.0
    assert set(reading.more) >= {"skipped_in_a_row", "is_stuck"}
    assert {"zscore", "spikes"} <= set(adamx.read(spikes(adamw()).init(params)).more)


def test_counts_saturate():
    limit = np.iinfo(np.int32).max
    tx = adamx.guard(adamx.sgd(1.0))
    full = jnp.int32(limit)
    state = tx.init(jnp.zeros(()))._replace(skipped=full, skipped_in_a_row=full)
    _, state = tx.update(jnp.array(NAN), state)
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (limit, limit)


# --------------------------------------------------------------- the protocol, nested


slow = [
    pytest.param(dtype, marks=pytest.mark.slow)
    for dtype in (jnp.float16, jnp.float32, jnp.complex64)
]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *slow], ids=str)
def test_a_good_step_is_that_of_the_inner_one(dtype):
    """And compiled once, the state's form never changing, whatever happens."""
    params = make_params(dtype)
    tx = spikes(adamw())
    want = got = params
    bare, state = adamw().init(params), tx.init(params)
    before = signature(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    bare_update = jax.jit(adamw().update)
    for seed in range(4):
        gradients = random_like(params, seed)
        want, bare = bare_update(gradients, bare, params)
        if seed == 2:
            update(_spoiled(gradients, 0, NAN), state, params)
        got, state = update(gradients, state, params)
        assert_close(got, want, rtol=1e-6, atol=1e-9)
        assert signature(got) == signature(want)
        assert signature(state) == before
    assert int(state.skipped) == 0


@both_ways
def test_moments_of_others_are_not_widened(way):
    """Those of Optax are float16 here, and float32 behind a float32 gradient."""
    params, tx = jnp.ones(3, jnp.float16), adamx.guard(optax.adam(LR))
    state = tx.init(params)
    new, after = step_of(tx, way)(params, state, jnp.ones(3, jnp.float32))
    assert signature((new, after)) == signature((params, state))


@pytest.mark.parametrize("wrap", [adamx.guard, lambda tx: adamx.accumulate(tx, 1)])
def test_updates_have_the_dtypes_of_the_inner_ones(wrap):
    """A master's float32 is not rounded: 1 -> 2^-9 is a step that bfloat16 has not."""
    params = jnp.array([1.0, -0.75], jnp.bfloat16)
    for inner in (adamx.master_weights(optax.sgd(1.0)), optax.adam(LR)):
        tx = wrap(inner)
        gradients = params / 2
        want, _ = inner.update(gradients, inner.init(params), params)
        updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
        assert updates.dtype == want.dtype
    tx = wrap(adamx.master_weights(optax.sgd(1.0)))
    state = tx.init(params)
    gradients = jnp.array([1.0 - 2.0**-9, -0.75 + 2.0**-10])
    updates, state = jax.jit(tx.update)(gradients, state, params)
    new = adamx.apply_updates(params, updates)
    np.testing.assert_array_equal(new, jnp.array([2.0**-9, -(2.0**-10)], new.dtype))


def test_double_precision_and_strict_promotion():
    with enable_x64(), jax.numpy_dtype_promotion("strict"):
        params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.float32)}
        tx = spikes(adamw())
        step, state = step_of(tx, "fused"), tx.init(params)
        for size in (1.0, 1.1, 0.9, 1.0, 1e200):
            gradients = {"a": params["a"] * size, "b": params["b"]}
            _, new = step(params, state, gradients)
            assert signature(new) == signature(state)
            state = new
        assert state.grad_norm.dtype == jnp.float64
        assert (int(state.skipped), float(state.grad_norm)) == (1, INF)


@pytest.mark.parametrize("params", [{}, (), None, {"a": None}, [jnp.ones((0,))]])
def test_trees_without_elements_are_good_steps(params):
    tx = adamx.guard(adamw())
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert int(state.skipped) == 0


def test_masks_map_params_and_whole_models():
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    half = {"a": True, "b": False}
    for tx in (
        optax.masked(adamx.guard(adamw()), half),
        adamx.guard(optax.masked(adamw(), half)),
    ):
        state = tx.init(params)
        updates, _ = jax.jit(tx.update)(params, state, params)
        np.testing.assert_array_equal(updates["b"], params["b"])
        mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
    model = {"w": jnp.ones(3, jnp.bfloat16), "activation": jax.nn.relu}
    gradients = {"w": jnp.ones(3, jnp.bfloat16), "activation": None}
    tx = adamx.guard(adamw())
    state = tx.init(gradients)
    got, _ = tx.update(gradients, state, model)
    assert got["w"].dtype == jnp.bfloat16


def test_extra_arguments_reach_the_inner_one():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, extra))
        return updates, state

    tx = adamx.guard(
        optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    )
    params = jnp.ones(2)
    tx.update(params, tx.init(params), params, value=1.0, other="x")
    adamx.fused(tx).step(params, tx.init(params), params, value=1.0, other="x")
    assert seen == [(1.0, {"other": "x"})] * 2


def test_options_may_be_traced_and_nothing_goes_to_the_host():
    @jax.jit
    def run(limit, decay, warmup, most):
        tx = adamx.guard(
            adamx.sgd(1.0),
            spike_zscore=limit,
            spike_decay=decay,
            spike_warmup=warmup,
            max_consecutive=most,
        )
        state = tx.init(jnp.zeros(()))
        for g in (1.0, 1.1, 0.9, 9.0, 9.0, 9.0):
            _, state = tx.update(jnp.float32(g), state)
        return state.skipped

    assert int(run(6.0, 0.9, 3, 2)) == 2
    assert int(run(6.0, 0.9, 3, 10)) == 3
    assert int(run(1e6, 0.9, 3, 10)) == 0
    tx, params = adamx.guard(adamw()), jnp.ones(3)
    text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
    assert "callback" not in text


@as_users
def test_eight_devices_equal_one():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    tx = spikes(adamw())
    step = step_of(tx, "fused")
    one, eight = (params, tx.init(params)), jax.device_put(params, place)
    eight = (eight, tx.init(eight))
    for seed in range(5):
        gradients = random_like(params, seed)
        if seed == 1:  # on the last device only
            gradients["w"] = gradients["w"].at[-1, -1].set(NAN)
        if seed == 4:
            gradients["w"] = gradients["w"].at[-1, -1].set(1e6)
        one = step(*one, gradients)
        eight = step(*eight, jax.device_put(gradients, place))
    assert int(eight[1].skipped) == 2
    assert_close(jax.device_get(eight), jax.device_get(one), rtol=1e-5, atol=1e-6)
    assert eight[0]["w"].sharding.is_equivalent_to(place["w"], 2)


def test_inside_shard_map():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = spikes(adamw())
    params = jnp.ones(4)
    gradients = jnp.ones((8, 4)).at[5, 1].set(NAN)

    def local(params, state, gradients):
        total = jax.lax.pmean(gradients[0], "data")
        return adamx.fused(tx).step(total, state, params)

    everywhere = PartitionSpec()
    mapped = shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, everywhere, PartitionSpec("data")),
        out_specs=everywhere,
    )
    new, state = jax.jit(mapped)(params, tx.init(params), gradients)
    assert_same_bits(jax.device_get(new), jax.device_get(params))
    assert int(state.skipped) == 1
    new, state = jax.jit(mapped)(params, tx.init(params), jnp.ones((8, 4)))
    assert int(state.skipped) == 0


def test_two_guards_side_by_side_are_both_read():
    tx = adamx.groups(
        [("a", adamx.guard(adamx.sgd(1.0))), ("b", adamx.guard(adamx.sgd(1.0)))]
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    bad = {"a": jnp.ones(2), "b": jnp.array([1.0, jnp.nan])}
    for _ in range(3):
        _, state = tx.update(bad, state, params)
    assert adamx.read(state).skipped == {"a": 0, "b": 3}
    assert adamx.read(state).scalars()["skipped/b"] == 3


def test_a_new_level_where_norms_overflow_is_taken_too():
    tx = adamx.guard(
        adamx.sgd(1.0), spike_zscore=4.0, spike_warmup=2, max_consecutive=3
    )
    state, update, taken = tx.init(jnp.zeros(2)), jax.jit(tx.update), []
    for size in [1.0, 1.1, 0.9] + 13 * [1e25]:
        before = int(state.skipped)
        _, state = update(jnp.full(2, size), state)
        taken.append(int(state.skipped) == before)
    assert taken == 3 * [True] + 3 * [False] + 10 * [True]
