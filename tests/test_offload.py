"""`offload`: where each array of the state is, and that no number is another."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.compose import _offload
from tests.optimizers_table import LR, NAMES
from tests.test_contract import assert_close, make_params, random_like, signature, steps

CHOSEN = ("sgd", "adamw", "lamb", "schedule_free_adamw", "sparse_adam")
by_name = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=() if row.name == "adamw" else pytest.mark.slow,
            id=row.name,
        )
        for row in NAMES
        if row.name in CHOSEN
    ],
)
IS_AVAILABLE = _offload._obstacle() is None
needs_host_memory = pytest.mark.skipif(
    not IS_AVAILABLE, reason="this backend, or this jax, has no pinned host memory"
)


def kinds(state):
    """Shape and memory of every array of a state, without repetition."""
    return {(x.shape, x.sharding.memory_kind) for x in jax.tree.leaves(state)}


def on_host(state):
    return {shape for shape, kind in kinds(state) if kind == "pinned_host"}


def on_device(state):
    return {shape for shape, kind in kinds(state) if kind == "device"}


# ------------------------------------------------------------------ where memory is


@needs_host_memory
def test_large_arrays_are_on_the_host_small_ones_and_scalars_are_not():
    params = make_params() | {"list": [jnp.ones(4099)]}
    tx = adamx.offload(adamx.adamw(LR))
    state = tx.init(params)
    for _ in range(2):
        assert on_host(state) == {(4099,)}
        assert {(), (5, 7)} <= on_device(state)
        updates, state = jax.jit(tx.update)(params, state, params)
        assert on_host(updates) == set()
    everything = adamx.offload(adamx.adamw(LR), min_size=0).init(params)
    assert on_device(everything) == {()}


@needs_host_memory
@by_name
def test_the_numbers_are_those_of_the_bare_optimizer(row):
    params = make_params()
    for jit in (True, False):
        got = steps(adamx.offload(row.make(), min_size=0), params, range(3), jit)
        want = steps(row.make(), params, range(3), jit)
        assert_close(jax.device_get(got), jax.device_get(want), 1e-6, 1e-7)
        assert adamx.read(got[1]).scalars() == pytest.approx(
            adamx.read(want[1]).scalars(), rel=1e-5
        )


@needs_host_memory
@by_name
def test_one_compilation_and_a_stable_state(row):
    params = make_params()
    tx = adamx.offload(row.make(), min_size=2)
    state = jax.jit(tx.init)(params)
    before, memories = signature(state), kinds(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for seed in range(3):
        _, state = update(random_like(params, seed), state, params)
        assert signature(state) == before
        assert kinds(state) == memories


@needs_host_memory
def test_each_array_is_moved_once_in_and_once_out():
    params = {"a": jnp.ones(10), "b": jnp.ones((3, 4)), "c": jnp.ones(())}
    tx = adamx.offload(adamx.adamw(LR), min_size=0)
    text = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    assert text.count("MemorySpace.Device") == 4  # mu and nu of a and b
    assert text.count("MemorySpace.Host") == 4


# ------------------------------------------------------- jit, donation, scan, devices


def _step(tx):
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    return step


@needs_host_memory
def test_donated_and_with_out_shardings():
    params = {"a": jnp.ones((64, 24)), "b": jnp.ones(24)}
    tx = adamx.offload(adamx.adamw(LR), min_size=0)
    gradients = random_like(params, 0)
    want = jax.jit(_step(tx))(params, tx.init(params), gradients)
    places = jax.tree.map(lambda x: x.sharding, (params, tx.init(params)))
    for options in ({}, {"out_shardings": places}):
        step = jax.jit(_step(tx), donate_argnums=(0, 1), **options)
        carry = (jax.tree.map(jnp.copy, params), tx.init(params))
        got = step(*carry, gradients)
        assert carry[0]["a"].is_deleted()
        assert carry[1][0].mu["a"].is_deleted()
        assert on_host(got[1]) == {(64, 24), (24,)}
        assert on_host(got[0]) == set()
        assert_close(jax.device_get(got), jax.device_get(want))


@needs_host_memory
def test_scan_vmap_and_cond():
    params = {"a": jnp.ones((64, 24)), "b": jnp.ones(24)}
    tx = adamx.offload(adamx.adamw(LR), min_size=0)
    gradients = [random_like(params, seed + 10) for seed in range(4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    want = jax.device_get(steps(adamx.adamw(LR), params, range(4)))

    def run(params, stacked):
        return jax.lax.scan(
            lambda carry, g: (_step(tx)(*carry, g), None),
            (params, tx.init(params)),
            stacked,
        )[0]

    got = jax.jit(run)(params, stacked)
    assert on_host(got[1]) == {(64, 24), (24,)}
    assert_close(jax.device_get(got), want, rtol=1e-5, atol=1e-6)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), (params, stacked))
    got = jax.jit(jax.vmap(run))(*two)
    assert on_host(got[1]) == {(2, 64, 24), (2, 24)}
    second = jax.tree.map(lambda x: x[1], jax.device_get(got))
    assert_close(second, want, rtol=1e-5, atol=1e-6)
    state = tx.init(params)
    for taken in (True, False):
        after = jax.jit(
            lambda b, s: jax.lax.cond(
                b, lambda s: tx.update(params, s, params)[1], lambda s: s, s
            )
        )(taken, state)
        assert on_host(after) == {(64, 24), (24,)}
        assert adamx.read(after).count == int(taken)


@needs_host_memory
@pytest.mark.parametrize("is_donated", [False, True])
def test_shardings_stay_while_the_memory_changes(is_donated):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    tx = adamx.offload(adamx.adamw(LR), min_size=0)
    spread = jax.device_put(params, place)
    state = tx.init(spread)
    plain, want = (
        jax.jit(_step(adamx.adamw(LR))),
        (spread, adamx.adamw(LR).init(spread)),
    )
    want = jax.tree.map(jnp.copy, want)
    step = jax.jit(_step(tx), donate_argnums=(0, 1) if is_donated else ())
    for seed in range(3):
        there = jax.device_put(random_like(params, seed + 10), place)
        spread, state = step(spread, state, there)
        want = plain(*want, there)
        for moment in (state[0].mu, state[0].nu):
            for name, array in moment.items():
                expected = place[name].with_memory_kind("pinned_host")
                assert array.sharding.is_equivalent_to(expected, array.ndim)
                assert array.sharding.memory_kind == "pinned_host"
    chex.assert_trees_all_equal(jax.device_get((spread, state)), jax.device_get(want))


# ---------------------------------------------------------------------- the protocol


@needs_host_memory
def test_inside_and_outside_of_other_wrappers():
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    gradients = random_like(params, 3)
    bare = adamx.adamw(LR)
    want, _ = bare.update(gradients, bare.init(params), params)
    offloaded = adamx.offload(adamx.adamw(LR), min_size=0)
    for tx in (
        optax.chain(optax.identity(), offloaded),
        adamx.offload(optax.chain(adamx.clip_by_global_norm(1e3), bare), min_size=0),
        adamx.offload(optax.adamw(LR), min_size=0),
        adamx.offload(optax.inject_hyperparams(adamx.adamw)(LR), min_size=0),
        adamx.offload(
            adamx.loss_scaling(adamx.adamw(LR), initial_scale=1.0), min_size=0
        ),
        adamx.loss_scaling(offloaded, initial_scale=1.0),
        adamx.offload(optax.masked(bare, {"a": True, "b": True}), min_size=0),
    ):
        state = tx.init(params)
        updates, state = jax.jit(tx.update)(gradients, state, params, value=1.0)
        assert_close(updates, want, rtol=3e-5, atol=1e-7)
        assert on_host(state) == {(4,), (2, 3)}
        mapped = optax.tree.map_params(tx, lambda x: x, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)


@needs_host_memory
def test_a_restored_state_goes_back_to_the_host():
    params = {"a": jnp.ones((64, 24))}
    tx = adamx.offload(adamx.adamw(LR), min_size=0)
    restored = jax.tree.map(np.asarray, tx.init(params))
    _, state = jax.jit(tx.update)(params, restored, params)
    assert on_host(state) == {(64, 24)}


@needs_host_memory
def test_random_keys_in_a_state_stay_where_they_are():
    keyed = optax.GradientTransformation(
        lambda params: jax.random.split(jax.random.key(0), 8),
        lambda updates, state, params=None: (updates, state),
    )
    tx = adamx.offload(keyed, min_size=0)
    _, state = jax.jit(tx.update)(jnp.ones(2), tx.init(jnp.ones(2)))
    assert state.sharding.memory_kind == "device"


# -------------------------------------------------------------- without host memory


@pytest.fixture
def _no_host_memory(monkeypatch):
    if IS_AVAILABLE:
        reason = "'abacus' devices with the memories wood"
        monkeypatch.setattr(_offload, "_obstacle", lambda: reason)


@pytest.mark.usefixtures("_no_host_memory")
def test_without_host_memory_an_error_or_the_bare_optimizer():
    params = {"a": jnp.ones((64, 24))}
    with pytest.raises(RuntimeError, match=r"pinned_host.*got .*fallback=\"device\""):
        adamx.offload(adamx.adamw(LR)).init(params)
    tx = adamx.offload(adamx.adamw(LR), min_size=0, fallback="device")
    chex.assert_trees_all_equal(
        steps(tx, params, range(2)), steps(adamx.adamw(LR), params, range(2))
    )
    memory = jnp.ones(1).sharding.memory_kind
    assert {kind for _, kind in kinds(tx.init(params))} == {memory}


def test_bad_input():
    for bad in (1e-3, adamx.adamw, None):
        with pytest.raises(TypeError, match=r"`inner` must be a gradient transf.*pass"):
            adamx.offload(bad)
    tx = adamx.sgd(1.0)
    for bad in (1.5, "4096", True, None):
        with pytest.raises(TypeError, match=r"`min_size` must be a whole .* an int"):
            adamx.offload(tx, min_size=bad)
    with pytest.raises(ValueError, match=r"`min_size` must be .* >= 0, got -1; pass 0"):
        adamx.offload(tx, min_size=-1)
    with pytest.raises(
        ValueError, match=r"`fallback` must be one of 'error', 'device'"
    ):
        adamx.offload(tx, fallback="cpu")
