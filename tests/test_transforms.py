"""Clipping, decay, the learning rate and apply_updates, each by its own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import adamx
from adamx import _tree
from tests import reference
from tests.compiling import AS_USERS
from tests.helpers import TEMPORARIES, enable_x64


def clip(gradients, max_norm=1.0):
    tx = adamx.clip_by_global_norm(max_norm)
    return jax.jit(tx.update)(gradients, tx.init(gradients))


# ------------------------------------------------------------------------ clipping


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 7.0, 1e3, np.inf])
def test_clip_against_float64(max_norm):
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((37, 11)), "b": rng.standard_normal(5) * 3}
    gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    updates, state = clip(gradients, max_norm)
    wide = [np.asarray(g, np.float64) for g in jax.tree.leaves(gradients)]
    factor = reference.clip_factor(wide, max_norm)
    for got, g in zip(jax.tree.leaves(updates), wide, strict=True):
        np.testing.assert_allclose(got, factor * g, rtol=5e-7)
    norm = np.sqrt(sum(np.sum(g * g) for g in wide))
    assert float(state.grad_norm) == pytest.approx(norm, rel=1e-6)


def test_float16_gradients_of_300_are_clipped_not_lost():
    gradients = {"w": jnp.full(1000, 300.0, jnp.float16)}
    updates, state = clip(gradients)
    assert float(state.grad_norm) == pytest.approx(300 * np.sqrt(1000), rel=1e-6)
    assert updates["w"].dtype == jnp.float16
    np.testing.assert_allclose(updates["w"], 1 / np.sqrt(1000), rtol=1e-3)
    theirs = optax.clip_by_global_norm(1.0)
    lost, _ = theirs.update(gradients, theirs.init(gradients))
    assert not np.any(np.asarray(lost["w"]))  # what this guards against


def test_norm_zero_and_empty_trees_pass():
    updates, state = clip({"w": jnp.zeros(3)})
    np.testing.assert_array_equal(updates["w"], 0.0)
    assert float(state.grad_norm) == 0.0
    assert clip({})[0] == {}
    assert clip({"a": None, "b": jnp.zeros((0, 2))})[0]["a"] is None


def test_what_is_not_finite_is_not_hidden():
    updates, state = clip({"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(2)})
    assert np.isnan(state.grad_norm)
    assert all(np.all(np.isnan(u)) for u in jax.tree.leaves(updates))
    updates, state = clip({"a": jnp.array([1.0, jnp.inf]), "b": jnp.ones(2)})
    assert np.isposinf(state.grad_norm)
    np.testing.assert_array_equal(np.isnan(updates["a"]), [False, True])
    np.testing.assert_array_equal(updates["b"], 0.0)
    updates, state = clip({"a": jnp.array([1e30, 1.0])})  # finite, its square is not
    assert np.isposinf(state.grad_norm)
    np.testing.assert_array_equal(updates["a"], 0.0)


def test_a_limit_of_zero_and_a_state_that_records_nothing():
    assert float(clip(jnp.ones(3), 0.0)[0][0]) == 0.0
    assert float(clip(jnp.zeros(3), 0.0)[0][0]) == 0.0
    tx = adamx.clip_by_global_norm(1.0)
    for state in (None, optax.EmptyState()):
        updates, same = tx.update(jnp.array([3.0, 4.0]), state)
        np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)
        assert same is state


def test_below_the_limit_nothing_changes():
    gradients = {"a": jnp.array([0.1, -0.7]), "b": jnp.array([0.3], jnp.bfloat16)}
    updates, _ = clip(gradients, 5.0)
    for got, want in zip(
        jax.tree.leaves(updates), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_norm_of_large_and_of_many_leaves():
    ones = jnp.ones(30_000_000)  # a single float32 sum would stop at 16,777,216
    assert float(_tree.global_norm(ones)) == pytest.approx(np.sqrt(3e7), rel=1e-6)
    tree = [jnp.full((7,), float(i)) for i in range(150)] + [jnp.ones((9,)) * 2]
    want = np.sqrt(7 * sum(i * i for i in range(150)) + 36)
    assert float(jax.jit(_tree.global_norm)(tree)) == pytest.approx(want, rel=1e-6)
    mixed = [jnp.ones(4, jnp.bfloat16), jnp.ones(4, jnp.complex64) * 1j]
    assert float(_tree.global_norm(mixed)) == pytest.approx(np.sqrt(8))
    with enable_x64():
        wide = [jnp.ones(3, jnp.float64), jnp.ones(3, jnp.float32)]
        assert _tree.global_norm(wide).dtype == jnp.float64


def test_many_small_leaves_are_reduced_in_groups():
    """63 reductions for 2,000 leaves, not 2,000: compiled in 1 s instead of 44."""
    leaves = [jax.ShapeDtypeStruct((2048,), jnp.float32) for _ in range(2000)]
    jaxpr = jax.make_jaxpr(_tree.global_norm)(leaves)
    reductions = [e for e in jaxpr.eqns if e.primitive.name == "reduce_sum"]
    assert len(reductions) == 63 + 1
    few = jax.make_jaxpr(_tree.global_norm)(leaves[:100])
    assert sum(e.primitive.name == "reduce_sum" for e in few.eqns) == 100 + 1


def test_clipping_materialises_no_clipped_tree():
    params = {"w": jnp.ones((512, 512)), "b": jnp.ones(512)}
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
    state = tx.init(params)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    temporary = compiled.compile(AS_USERS).memory_analysis().temp_size_in_bytes
    assert temporary <= TEMPORARIES * sum(p.nbytes for p in jax.tree.leaves(params))


def test_a_traced_max_norm():
    @jax.jit
    def norm_after(limit):
        tx = adamx.clip_by_global_norm(limit)
        updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
        return jnp.linalg.norm(updates)

    for limit in (0.5, 2.0, 9.0):
        assert float(norm_after(limit)) == pytest.approx(min(limit, 5.0))


# --------------------------------------------------------------------------- decay


def test_masks_of_every_kind():
    params = {"a": {"w": jnp.ones(2), "b": jnp.ones(1)}, "c": jnp.ones((2, 2))}
    zero = jax.tree.map(jnp.zeros_like, params)

    def decayed(mask):
        tx = adamx.add_decoupled_weight_decay(0.5, mask)
        updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
        return [float(np.max(u)) for u in jax.tree.leaves(updates)]  # a/b, a/w, c

    assert decayed(None) == [0.5, 0.5, 0.5]
    assert decayed({"a": {"w": True, "b": False}, "c": True}) == [0.0, 0.5, 0.5]
    assert decayed({"a": False, "c": True}) == [0.0, 0.0, 0.5]  # a prefix
    assert decayed(True) == [0.5, 0.5, 0.5]
    assert decayed(np.bool_(False)) == [0.0, 0.0, 0.0]
    assert decayed(lambda p: jax.tree.map(lambda x: x.ndim > 1, p)) == [0.0, 0.0, 0.5]
    assert decayed(lambda p: {"a": True, "c": np.array(False)}) == [0.5, 0.5, 0.0]


def test_a_negative_decay_behind_the_learning_rate():
    """Decay independent of the rate: shrink by 0.1 whatever the learning rate."""
    tx = optax.chain(adamx.sgd(0.5), adamx.add_decayed_weights(-0.1))
    updates, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
    assert float(updates[0]) == pytest.approx(-0.1)


def test_scheduled_and_traced_decay():
    params = jnp.ones(1)
    tx = adamx.add_decoupled_weight_decay(optax.linear_schedule(1.0, 0.0, 2))
    state, seen = tx.init(params), []
    for _ in range(3):
        updates, state = jax.jit(tx.update)(jnp.zeros(1), state, params)
        seen.append((float(updates[0]), adamx.read(state).weight_decay))
    assert seen == [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)]
    traced = jax.jit(
        lambda w: adamx.add_decayed_weights(w).update(
            jnp.zeros(1), adamx.add_decayed_weights(w).init(params), params
        )[0]
    )
    assert float(traced(0.25)[0]) == 0.25


def test_decay_survives_bfloat16_gradients():
    """u = 1 and a decay of 1e-3 p: rounded stage by stage the decay would vanish."""
    gradients = {"w": jnp.ones(4, jnp.bfloat16)}
    tx = adamx.adamw(1.0, weight_decay=1e-3)
    for dtype, want in [
        (jnp.bfloat16, jnp.bfloat16(-1.0078125)),  # -1.006 to the nearest
        (jnp.float32, -1.006),
    ]:
        params = {"w": jnp.full(4, 6.0, dtype)}
        updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
        assert updates["w"].dtype == dtype
        np.testing.assert_allclose(updates["w"], want, rtol=1e-6)


def test_small_updates_of_float32_parameters_survive_float16_gradients():
    params, gradients = jnp.ones(3), jnp.ones(3, jnp.float16)
    for tx in (adamx.adam(1e-9), adamx.sgd(1e-9, 0.9), adamx.adamw(1e-9)):
        updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
        np.testing.assert_allclose(updates, -1e-9, rtol=1e-3)


def test_decoupled_and_coupled_are_what_they_say():
    params = {"w": jnp.array([1.0, 1.0])}
    gradients = {"w": jnp.array([1e-3, 1e3])}

    def shrink(make):
        moved = [
            tx.update(gradients, tx.init(params), params)[0]["w"]
            for tx in (make(weight_decay=0.1), make(weight_decay=0.0))
        ]
        return np.asarray(moved[0] - moved[1])

    np.testing.assert_allclose(shrink(lambda **k: adamx.adamw(1.0, **k)), -0.1, 1e-5)
    coupled = shrink(lambda **k: adamx.adam_l2(1.0, **k))
    assert np.all(np.abs(coupled) < 1e-4)  # divided away by the gradient's own size


# ------------------------------------------------------------------- learning rate


def test_learning_rate_of_every_kind():
    for rate in (
        0.5,
        np.float32(0.5),
        jnp.float32(0.5),
        jnp.bfloat16(0.5),
        lambda _: 0.5,
    ):
        tx = adamx.scale_by_learning_rate(rate)
        updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
        assert float(updates[0]) == -0.5
        assert adamx.read(state).learning_rate == 0.5
    up = adamx.scale_by_learning_rate(0.5, flip_sign=False)
    assert float(up.update(jnp.ones(1), up.init(jnp.ones(1)))[0][0]) == 0.5
    none = adamx.scale_by_learning_rate(None)
    assert float(none.update(jnp.ones(1), none.init(jnp.ones(1)))[0][0]) == 1.0


# ------------------------------------------------------------------- apply_updates


@pytest.mark.parametrize("params_dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("update_dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_apply_updates_is_optax_bit_for_bit(params_dtype, update_dtype):
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.standard_normal(4099), params_dtype), "b": None}
    updates = {"a": jnp.asarray(rng.standard_normal(4099) * 1e-2, update_dtype)}
    updates["b"] = None
    got = adamx.apply_updates(params, updates)
    want = optax.apply_updates(params, updates)
    assert got["a"].dtype == want["a"].dtype == params_dtype
    np.testing.assert_array_equal(got["a"], want["a"])
    assert got["b"] is None


# ---------------------------------------------------------- explicitly sharded axes


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="no explicit axes before 0.7")
def test_clip_and_adamw_under_explicit_axes():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, PartitionSpec("x"))
        params = {"a": jnp.ones((16, 4), out_sharding=place), "b": jnp.ones((16, 4))}
        tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
        state = tx.init(params)
        updates, new = jax.jit(tx.update)(params, state, params)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
        assert jax.typeof(updates["a"]) == jax.typeof(params["a"])
        assert float(new[0].grad_norm) == pytest.approx(np.sqrt(128.0))
