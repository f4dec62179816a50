"""`loss_scaling`: its policy, what the wrapped optimizer sees, skipped steps."""

import functools
import itertools

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
from tests.compiling import AS_USERS, as_users
from tests.helpers import enable_x64, some
from tests.optimizers_table import LR, NAMES
from tests.reference_loss_scaling import scales
from tests.test_contract import assert_close, make_params, random_like, signature

CHOSEN = ("sgd", "adamw", "schedule_free_adamw", "swats")
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
NAN, INF = float("nan"), float("inf")
HALF = jnp.float16


def assert_same_bits(got, want):
    """Equal to the sign of a zero and the payload of a NaN."""
    chex.assert_trees_all_equal_structs(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def spy(seen):
    """SGD of rate 1 that notes the dtypes and the extra arguments it is given."""

    def update(updates, state, params=None, **extra):
        del params
        seen.append((jax.tree.map(lambda g: g.dtype, updates), extra))
        return jax.tree.map(jnp.negative, updates), state + 1

    return optax.GradientTransformationExtraArgs(
        lambda params: jnp.zeros((), jnp.int32), update
    )


# ------------------------------------------------------------------------ the policy

POLICIES = {
    "defaults but for the interval": {"growth_interval": 3},
    "both bounds near": {
        "growth_interval": 2, "initial_scale": 4.0, "min_scale": 2.0,
        "max_scale": 16.0},
    "no powers of two": {
        "growth_interval": 4, "growth_factor": 1.7, "backoff_factor": 0.3,
        "initial_scale": 100.0, "min_scale": 0.01, "max_scale": 300.0},
    "growth at every step": {"growth_interval": 1, "max_scale": 2.0**18},
    "constant": {
        "growth_interval": 1, "initial_scale": 8.0, "min_scale": 8.0, "max_scale": 8.0},
}  # fmt: skip
DEFAULTS = {
    "initial_scale": 2.0**15, "growth_interval": 2000, "growth_factor": 2.0,
    "backoff_factor": 0.5, "min_scale": 1.0, "max_scale": 2.0**24,
}  # fmt: skip


@pytest.mark.parametrize("label", POLICIES)
def test_the_scale_follows_the_policy(label):
    """Stretches of good and of bad steps, so that both bounds are met."""
    rng = np.random.default_rng(0)
    chance = np.repeat(rng.choice([0.0, 0.1, 0.5, 0.97], 60), 10)
    is_bad = rng.uniform(size=600) < chance
    gradients = np.where(is_bad, rng.choice([NAN, INF, -INF], 600), 1.0)
    options = {**DEFAULTS, **POLICIES[label]}
    tx = adamx.loss_scaling(adamx.sgd(1.0), **POLICIES[label])

    def step(state, g):
        _, state = tx.update(g, state)
        return state, (state.scale, state.good_steps, state.skipped)

    start = tx.init(jnp.zeros(()))
    _, got = jax.jit(lambda g: jax.lax.scan(step, start, g))(jnp.float32(gradients))
    want = np.array(list(scales(~is_bad, **options))).T
    np.testing.assert_allclose(got[0], want[0], rtol=2e-5)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[2], want[2])
    if "near" in label:
        assert (np.min(want[0]), np.max(want[0])) == (2.0, 16.0)


def test_the_default_interval_is_2000_steps():
    tx = adamx.loss_scaling(adamx.sgd(1.0))
    state = tx.init(jnp.zeros(()))
    state = state._replace(good_steps=jnp.int32(1998))
    found = []
    for _ in range(2):
        _, state = jax.jit(tx.update)(jnp.ones(()), state)
        found.append(float(state.scale))
    assert found == [2.0**15, 2.0**16]


def test_counts_saturate():
    limit = np.iinfo(np.int32).max
    tx = adamx.loss_scaling(adamx.sgd(1.0), growth_interval=2**31 - 1)
    state = tx.init(jnp.zeros(()))._replace(skipped=jnp.int32(limit))
    _, state = tx.update(jnp.array(NAN), state)
    assert int(state.skipped) == limit
    state = state._replace(good_steps=jnp.int32(limit))
    _, state = tx.update(jnp.ones(()), state)
    assert (float(state.scale), int(state.good_steps)) == (2.0**15, 0)


# ------------------------------------------------------------- what the inner one sees


@by_name
def test_steps_are_those_of_the_inner_on_true_gradients(row):
    """Bit by bit, moments included, while the scale grows."""
    params = make_params()
    tx = adamx.loss_scaling(row.make(), growth_interval=2)
    state, plain_state, plain = tx.init(params), row.make().init(params), params

    @jax.jit
    def step(params, state, gradients):
        scaled = jax.tree.map(lambda g: adamx.loss_scale(state) * g, gradients)
        updates, state = tx.update(scaled, state, params)
        return adamx.apply_updates(params, updates), state

    @jax.jit
    def plain_step(params, state, gradients):
        updates, state = row.make().update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    for seed in range(6):
        gradients = random_like(params, seed)
        params, state = step(params, state, gradients)
        plain, plain_state = plain_step(plain, plain_state, gradients)
    assert float(state.scale) == 2.0**18
    assert_close((params, state.inner_state), (plain, plain_state), 1e-6, 1e-7)


def test_moments_do_not_depend_on_the_scale():
    found = []
    for scale in (1.0, 2.0**10, 3.0**9):
        tx = adamx.loss_scaling(adamx.adam(LR), initial_scale=scale)
        state = tx.init(jnp.zeros(1))
        _, state = tx.update(jnp.array([0.5]) * adamx.loss_scale(state), state)
        found.append(state.inner_state[0])
    assert_same_bits((found[1].mu, found[1].nu), (found[0].mu, found[0].nu))
    np.testing.assert_allclose(found[2].nu, found[0].nu, rtol=3e-7)
    np.testing.assert_allclose(found[0].mu, 0.05, rtol=1e-6)


def test_float16_gradients_below_its_range_reach_the_moments():
    """1e-8 is 0 in float16; scaled it is not, and is divided in float32."""
    seen = []
    tx = adamx.loss_scaling(optax.chain(spy(seen), adamx.scale_by_adam(eps=0.0)))
    params = jnp.ones(2, HALF)
    gradient = jnp.array([1e-8, -2e-8], jnp.float32)
    assert not np.any(np.asarray(gradient.astype(HALF)))
    state = tx.init(params)
    scaled = (gradient * adamx.loss_scale(state)).astype(HALF)
    updates, state = jax.jit(tx.update)(scaled, state, params)
    assert seen[0][0] == jnp.float32
    assert updates.dtype == HALF
    np.testing.assert_array_equal(updates, [-1.0, 1.0])
    nu = np.asarray(state.inner_state[1].nu, np.float64)
    np.testing.assert_allclose(nu, 1e-3 * np.array([1e-16, 4e-16]), rtol=2e-3)


def test_gradients_are_divided_to_the_last_places():
    """And exactly by powers of two; complex ones in both parts."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal(4099).astype(np.float32)
    for scale, ulp in ((1024.0, 0), (1000.0, 1.5)):
        tx = adamx.loss_scaling(adamx.sgd(1.0), initial_scale=scale)
        for x in (g, g[:8] + 1j * g[8:16]):
            got = np.asarray(tx.update(jnp.asarray(x), tx.init(x))[0])
            for part in (np.real, np.imag):
                want = -part(x).astype(np.float64) / scale
                unit = np.spacing(np.abs(want).astype(np.float32))
                assert np.max(np.abs(part(got) - want) / unit) <= ulp


@pytest.mark.parametrize(
    ("size", "parameter", "gradient"),
    some(
        itertools.product(
            [1.0, NAN],
            [HALF, jnp.bfloat16, jnp.float32],
            [HALF, jnp.bfloat16, jnp.float32],
        ),
        # Quickly: each dtype with each other one, once.
        (1.0, HALF, HALF),
        (1.0, jnp.float32, HALF),
        (1.0, HALF, jnp.float32),
        (1.0, HALF, jnp.bfloat16),
        (1.0, jnp.float32, jnp.bfloat16),
        (NAN, jnp.bfloat16, jnp.bfloat16),
        (NAN, jnp.bfloat16, HALF),
        (NAN, jnp.bfloat16, jnp.float32),
        (NAN, jnp.float32, jnp.float32),
    ),
)
def test_updates_have_the_dtypes_of_the_bare_optimizer(parameter, gradient, size):
    params, g = jnp.ones(3, parameter), jnp.full(3, size, gradient)
    for inner in (adamx.adamw(LR), optax.adam(LR)):
        tx = adamx.loss_scaling(inner)
        state = tx.init(params)
        updates, new = tx.update(g, state, params)
        assert (
            updates.dtype
            == adamx.adamw(LR).update(g, adamx.adamw(LR).init(params), params)[0].dtype
        )
        assert signature(new) == signature(state)


def test_double_precision_is_kept_in_x64_mode():
    with enable_x64():
        params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.float32)}
        tx = adamx.loss_scaling(adamx.adamw(LR), initial_scale=3.0)
        state = tx.init(params)
        gradients = jax.tree.map(lambda p: p / 7, params)
        updates, new = jax.jit(tx.update)(gradients, state, params)
        assert signature(updates) == signature(gradients)
        assert signature(new) == signature(state)
        assert new.scale.dtype == jnp.float32
        np.testing.assert_allclose(new.inner_state[0].mu["a"], 0.1 / 21, rtol=1e-15)


# ------------------------------------------------------------------------ skipped steps


def _paths(tree):
    return range(len(jax.tree.leaves(tree)))


def _spoiled(tree, index, value):
    leaves, structure = jax.tree.flatten(tree)
    at = (0,) * leaves[index].ndim
    leaves[index] = leaves[index].at[at].set(value)
    return structure.unflatten(leaves)


def _awkward_params(dtype):
    """Minus zeros, subnormal numbers of 16 bits, an empty leaf and none."""
    values = jnp.array([-0.0, 0.0, 1.5, -3.0, 6e-8, -6e-8], dtype)
    return {
        "a": values,
        "b": [jnp.ones((2, 3), dtype), None],
        "c": -jnp.zeros((), dtype),
    }


@by_name
@pytest.mark.parametrize("dtype", [HALF, jnp.float32], ids=str)
def test_a_bad_value_anywhere_at_any_step_changes_nothing(row, dtype):
    params = _awkward_params(dtype)
    tx = adamx.loss_scaling(row.make())

    @jax.jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(3):
        good = random_like(params, seed)
        for index in _paths(params):
            for value in (NAN, INF, -INF):
                new_params, new = step(params, state, _spoiled(good, index, value))
                assert_same_bits(new_params, params)
                assert_same_bits(new.inner_state, state.inner_state)
                assert float(new.scale) == float(state.scale) / 2
                assert int(new.skipped) == int(state.skipped) + 1
        params, state = step(params, state, good)
    assert adamx.read(state).count in (3, None)


def test_skipped_updates_are_minus_zero():
    for dtype in (HALF, jnp.bfloat16, jnp.float32, jnp.complex64):
        params = jnp.ones(3, dtype)
        tx = adamx.loss_scaling(adamx.adamw(LR, weight_decay=0.1))
        bad = params.at[1].set(NAN)
        updates, _ = jax.jit(tx.update)(bad, tx.init(params), params)
        parts = (
            (np.real(updates), np.imag(updates))
            if params.dtype == jnp.complex64
            else (updates,)
        )
        for part in parts:
            part = np.asarray(part, np.float32)
            assert not np.any(part)
            assert np.all(np.signbit(part))


def test_one_bad_element_in_a_large_tree_is_found():
    params = {f"layer_{i}": jnp.ones(100) for i in range(300)}  # added in groups
    params["big"] = jnp.ones((1000, 100))
    tx = adamx.loss_scaling(adamx.sgd(LR))
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params))
    assert int(state.skipped) == 0
    for name in ("layer_0", "layer_299", "big"):
        bad = {**params, name: params[name].at[-1].set(NAN)}
        _, state = update(bad, tx.init(params))
        assert int(state.skipped) == 1
    # A bad value of each sign does not cancel; large ones are no bad ones.
    _, state = update(
        {**params, "big": params["big"].at[0, :2].set(jnp.array([INF, -INF]))},
        tx.init(params),
    )
    assert int(state.skipped) == 1
    _, state = update(jax.tree.map(lambda p: p * 3e38, params), tx.init(params))
    assert int(state.skipped) == 0


def test_a_quotient_that_overflows_is_bad():
    tx = adamx.loss_scaling(adamx.sgd(1.0), initial_scale=0.5, min_scale=0.25)
    _, state = tx.update(jnp.array([3e38]), tx.init(jnp.ones(1)))
    assert (int(state.skipped), float(state.scale)) == (1, 0.25)


# --------------------------------------------------------------------------- training


def _digits():
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    return jnp.asarray(data[:1024] / 16.0, HALF), jnp.asarray(target[:1024])


def _train(tx, dtype, steps=120):
    """A float16 network under a loss of weight 1e-5; accuracy, and zero gradients."""
    x, y = _digits()
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.standard_normal((64, 32)) / 8, dtype),
        "out": jnp.asarray(rng.standard_normal((32, 10)) / 6, dtype),
    }

    def logits(params):
        hidden = jax.nn.relu(x.astype(dtype) @ params["in"])
        return (hidden @ params["out"]).astype(jnp.float32)

    def loss_fn(params, scale):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params), y)
        return scale * 1e-5 * jnp.mean(losses)

    def step(carry, _):
        params, state = carry
        is_scaled = isinstance(state, adamx.LossScalingState)
        scale = adamx.loss_scale(state) if is_scaled else 1.0
        gradients = jax.grad(loss_fn)(params, scale)
        updates, state = tx.update(gradients, state, params)
        zeros = jnp.mean(gradients["in"][20:44] == 0)  # pixels that are never blank
        return (adamx.apply_updates(params, updates), state), zeros

    run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps))
    (params, state), zeros = run((params, tx.init(params)))
    accuracy = jnp.mean(jnp.argmax(logits(params), -1) == y)
    return float(accuracy), float(jnp.max(zeros)), state


def test_float16_training_that_stands_still_without_scaling():
    tx = adamx.adam(1e-2, eps=1e-12)
    accuracy, zeros, _ = _train(tx, HALF)
    assert zeros > 0.99
    assert accuracy < 0.4
    # A float16 mu could not hold what the scale has saved.
    tx = adamx.adam(1e-2, eps=1e-12, mu_dtype=jnp.float32)
    scaled = adamx.loss_scaling(tx, growth_interval=2, max_scale=2.0**60)
    accuracy, zeros, state = _train(scaled, HALF)
    assert zeros < 0.3
    assert accuracy > 0.98
    assert int(state.skipped) >= 1  # the scale has been to its natural bound
    assert float(state.scale) > 2.0**18
    single, _, _ = _train(tx, jnp.float32)
    assert abs(single - accuracy) < 0.02


# ------------------------------------------------------------- the protocol, nested


@by_name
@pytest.mark.parametrize("dtype", [HALF, jnp.float32], ids=str)
def test_state_is_stable_and_compiled_once_whatever_the_scale(row, dtype):
    params = make_params(dtype)
    tx = adamx.loss_scaling(row.make(), growth_interval=1, initial_scale=64.0)
    state = tx.init(params)
    before = signature(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for seed in range(5):
        gradients = random_like(params, seed)
        if seed == 3:
            gradients = _spoiled(gradients, 0, NAN)
        updates, state = update(gradients, state, params)
        assert signature(updates) == signature(gradients)
        assert signature(state) == before
    reading = adamx.read(state)
    assert reading.more["loss_scale"] == 64.0 * 2**3
    assert reading.skipped == 1
    assert reading.learning_rate == pytest.approx(LR)
    assert reading.scalars()["loss_scale"] == 512.0


def test_no_transfer_to_the_host():
    tx = adamx.loss_scaling(adamx.adamw(LR))
    params = jnp.ones(3)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        gradients = params * adamx.loss_scale(state)
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    step(params, state)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            params, state = step(params, state)
            scale = adamx.loss_scale(state)
    assert float(scale) == 2.0**15
    text = jax.jit(tx.update).lower(params, state, params).as_text()
    assert "callback" not in text


@by_name
def test_scan_and_vmap_equal_the_loop(row):
    params = make_params()
    gradients = [random_like(params, seed + 10) for seed in range(4)]
    gradients[2] = _spoiled(gradients[2], 0, INF)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    tx = adamx.loss_scaling(row.make(), growth_interval=2)

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (adamx.apply_updates(params, updates), state), None

    want = (params, tx.init(params))
    for g in gradients:
        want, _ = jax.jit(step)(want, g)

    def run(params, stacked):
        return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]

    assert_close(jax.jit(run)(params, stacked), want, rtol=1e-5, atol=1e-6)
    # Two runs of one batch, of which one has a bad step that the other has not.
    clean = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 1.0), stacked)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), stacked, clean)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    batched = jax.jit(jax.vmap(run))(twice, both)
    assert batched[1].skipped.tolist() == [1, 0]
    assert adamx.loss_scale(batched[1]).tolist() == [2.0**15, 2.0**17]
    first = jax.tree.map(lambda x: x[0], batched)
    assert_close(first, want, rtol=1e-5, atol=1e-6)


@by_name
@as_users
def test_eight_devices_equal_one(row):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    tx = adamx.loss_scaling(row.make(), growth_interval=1)
    one, eight = (params, tx.init(params)), jax.device_put(params, place)
    eight = (eight, tx.init(eight))

    @jax.jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    for seed in range(3):
        gradients = random_like(params, seed)
        if seed == 1:  # on the last device only
            gradients["w"] = gradients["w"].at[-1, -1].set(NAN)
        one = step(*one, gradients)
        eight = step(*eight, jax.device_put(gradients, place))
    assert int(eight[1].skipped) == 1
    if row.reduces == "nothing":
        chex.assert_trees_all_equal(one, jax.device_get(eight))
    else:
        assert_close(one, jax.device_get(eight), rtol=1e-6, atol=1e-6)
    assert eight[0]["w"].sharding.is_equivalent_to(place["w"], 2)


def test_donation_and_temporaries():
    """A cond holds one tree: the update. Two would be the old moments beside it."""
    params = {"a": jnp.ones((256, 256)), "b": jnp.ones((256,))}
    tx = adamx.loss_scaling(adamx.adamw(LR))
    state = tx.init(params)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    gradients = random_like(params, 1)
    want = jax.jit(step)(params, state, gradients)
    donated = jax.jit(step, donate_argnums=(0, 1))
    donated = donated.lower(params, state, gradients).compile(AS_USERS)
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    assert donated.memory_analysis().temp_size_in_bytes <= 1.03 * size
    got = donated(params, state, gradients)
    assert params["a"].is_deleted()
    assert_close(got, want)


def test_no_two_leaves_of_a_state_share_a_buffer():
    scale = jnp.float32(8.0)
    tx = adamx.loss_scaling(adamx.adamw(LR), initial_scale=scale)
    state = tx.init(jnp.ones(3))
    _, after = tx.update(jnp.ones(3), state, jnp.ones(3))
    for tree in (state, after):
        leaves = [*jax.tree.leaves(tree), scale, adamx.loss_scale(tree)]
        pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
        assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("params", [{}, (), None, {"a": None}, [jnp.ones((0,))]])
def test_trees_without_elements_are_good_steps(params):
    tx = adamx.loss_scaling(adamx.adamw(LR), growth_interval=1)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert (float(state.scale), int(state.skipped)) == (2.0**16, 0)


@by_name
def test_strict_dtype_promotion_and_eval_shape(row):
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (HALF, jnp.complex64):
            params = make_params(dtype)
            tx = adamx.loss_scaling(row.make())
            state = tx.init(params)
            updates, _ = jax.jit(tx.update)(params, state, params)
            assert signature(adamx.apply_updates(params, updates)) == signature(params)
            shapes = jax.eval_shape(tx.init, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)


def _value_is_loss(tx):
    """Wants an extra argument."""

    def update(updates, state, params=None, *, value, **extra):
        del value
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@pytest.mark.slow  # quickly: tests/test_wrapper_pairs.py, tests/test_fused.py
def test_inside_and_outside_of_other_wrappers():
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    gradients = random_like(params, 3)
    bare = adamx.adamw(LR)
    want, _ = bare.update(gradients, bare.init(params), params)
    scaling = functools.partial(adamx.loss_scaling, initial_scale=2.0**10)
    wrapped = {
        "chain": optax.chain(optax.identity(), scaling(adamx.adamw(LR))),
        "named": optax.named_chain(("opt", scaling(adamx.adamw(LR)))),
        "inject inside": scaling(
            optax.inject_hyperparams(adamx.adamw)(learning_rate=lambda count: LR)
        ),
        "inject outside": optax.inject_hyperparams(
            lambda learning_rate: scaling(adamx.adamw(learning_rate))
        )(LR),
        "masked inside": scaling(optax.masked(adamx.adamw(LR), {"a": True, "b": True})),
        "masked outside": optax.masked(scaling(adamx.adamw(LR)), True),
        "partition inside": scaling(optax.partition(
            {"x": adamx.adamw(LR), "y": adamx.adamw(LR)}, {"a": "x", "b": "y"})),
        "cautious inside": scaling(adamx.cautious(adamx.adamw(LR))),
        "clipping inside": scaling(
            optax.chain(adamx.clip_by_global_norm(1e3), adamx.adamw(LR))
        ),
        "an extra argument": scaling(_value_is_loss(adamx.adamw(LR))),
        "every step of several": optax.MultiSteps(
            scaling(adamx.adamw(LR)), 1).gradient_transformation(),
        "optax": scaling(optax.adamw(LR)),
    }  # fmt: skip
    for label, tx in wrapped.items():
        state = tx.init(params)

        def step(state, gradients=gradients, tx=tx):
            scaled = jax.tree.map(lambda g: g * adamx.loss_scale(state), gradients)
            return tx.update(scaled, state, params, value=jnp.ones(()))

        updates, new = jax.jit(step)(state)
        if "cautious" not in label:  # a first step's d / (kept + 1)
            assert_close(updates, want, rtol=3e-5, atol=1e-7)
        assert float(adamx.loss_scale(new)) == 2.0**10, label
        assert adamx.read(new).skipped == 0, label
        assert signature(new) == signature(state), label
        mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)


def test_the_scale_holds_while_gradients_are_accumulated():
    """Under MultiSteps the state is that of the last real step: one scale for all."""
    tx = optax.MultiSteps(adamx.loss_scaling(adamx.sgd(1.0), growth_interval=1), 3)
    params = jnp.zeros(2)
    state = tx.init(params)
    for i in range(6):
        assert float(adamx.loss_scale(state)) == 2.0 ** (15 + i // 3)
        updates, state = tx.update(jnp.ones(2) * adamx.loss_scale(state), state, params)
    np.testing.assert_allclose(updates, -1.0)


def test_hyperparameters_may_be_traced():
    @jax.jit
    def run(growth, backoff, interval, low, high):
        tx = adamx.loss_scaling(
            adamx.sgd(1.0),
            initial_scale=8.0,
            growth_factor=growth,
            backoff_factor=backoff,
            growth_interval=interval,
            min_scale=low,
            max_scale=high,
        )
        state, found = tx.init(jnp.zeros(())), []
        for g in (1.0, 1.0, 1.0, 1.0, NAN, NAN, NAN):
            _, state = tx.update(jnp.float32(g), state)
            found.append(state.scale)
        return jnp.stack(found)

    got = run(4.0, 0.25, 2, 2.0, 64.0)
    assert got.tolist() == [8.0, 32.0, 32.0, 64.0, 16.0, 4.0, 2.0]


# ------------------------------------------------------------------- finding the scale


def test_the_scale_is_found_in_flax_holders():
    tx = optax.chain(adamx.loss_scaling(adamx.adamw(LR), initial_scale=32.0))
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    assert float(adamx.loss_scale(optimizer)) == 32.0
    train_state = flax.training.train_state.TrainState.create(
        apply_fn=None, params={"w": jnp.ones(2)}, tx=tx
    )
    assert float(adamx.loss_scale(train_state)) == 32.0
    restored = jax.tree.map(np.asarray, train_state.opt_state)
    assert adamx.loss_scale(restored).dtype == jnp.float32


def test_not_one_scale():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    two = optax.partition(
        {k: adamx.loss_scaling(adamx.sgd(1.0)) for k in "xy"}, {"a": "x", "b": "y"}
    )
    with pytest.raises(
        ValueError, match=r"one LossScalingState.*2, at.*x/.*y/.*around"
    ):
        adamx.loss_scale(two.init(params))
    for state in (adamx.adamw(1e-3).init(params), (), None):
        with pytest.raises(ValueError, match=r"`state` must hold one .* none\. Pass"):
            adamx.loss_scale(state)
    nested = adamx.loss_scaling(optax.chain(adamx.loss_scaling(adamx.sgd(1.0))))
    with pytest.raises(ValueError, match=r"`inner` must not scale .* Keep one"):
        nested.init(params)
