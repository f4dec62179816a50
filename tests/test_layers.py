"""What the optimizers with one number for a layer promise: LAMB, StableAdamW, ..."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx import _tree
from adamx.transforms import _layers
from tests import reference_layers as reference
from tests.compiling import AS_USERS
from tests.helpers import TEMPORARIES, run_updates, some

LR = 1e-2


def random(*shape, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32)


def first_update(tx, gradients, params):
    return jax.jit(tx.update)(gradients, tx.init(params), params)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


# ------------------------------------------------------------ layers stacked by scan

STACKED = {
    "lamb": lambda **k: adamx.lamb(LR, weight_decay=0.1, **k),
    "stable_adamw": lambda **k: adamx.stable_adamw(LR, threshold=0.5, **k),
    "clip_by_update_rms": lambda **k: adamx.clip_by_update_rms(0.5, **k),
}


@pytest.mark.parametrize(
    "name", [pytest.param("lamb", marks=pytest.mark.slow), *list(STACKED)[1:]]
)
def test_stacked_layers_equal_layers_one_by_one(name):
    sizes = jnp.array([1e-2, 1.0, 30.0])[:, None, None]
    stacked = {"layers": {"w": random(3, 4, 5) * sizes}, "head": random(5, seed=1)}
    apart = {
        "layers": [{"w": w} for w in stacked["layers"]["w"]],
        "head": stacked["head"],
    }
    tx, plain = STACKED[name](stacked="^layers/"), STACKED[name]()
    state, plain_state = tx.init(stacked), plain.init(apart)
    for seed in range(3):
        noise = random(3, 4, 5, seed=seed + 2)
        got, state = tx.update({**stacked, "layers": {"w": noise}}, state, stacked)
        gradients = {**apart, "layers": [{"w": w} for w in noise]}
        want, plain_state = plain.update(gradients, plain_state, apart)
        want = jnp.stack([layer["w"] for layer in want["layers"]])
        np.testing.assert_allclose(got["layers"]["w"], want, rtol=2e-6, atol=1e-9)
    whole, _ = STACKED[name]().update(
        {**stacked, "layers": {"w": noise}}, STACKED[name]().init(stacked), stacked
    )
    once, _ = STACKED[name](stacked="^layers/").update(
        {**stacked, "layers": {"w": noise}}, tx.init(stacked), stacked
    )
    if name != "stable_adamw":  # whose first step has an RMS of 1 in every layer
        assert np.max(np.abs(whole["layers"]["w"] / once["layers"]["w"] - 1)) > 0.01
    np.testing.assert_allclose(whole["head"], once["head"], rtol=1e-6)


def test_the_layers_of_a_leaf():
    tree = {"a": {"w": jnp.zeros((3, 2))}, "b": jnp.zeros(2), "c": jnp.zeros(())}
    assert _layers.layer_axes(None, tree) == [(0, 1), (0,), ()]
    assert _layers.layer_axes(re.compile("^a/"), tree) == [(1,), (0,), ()]
    assert _layers.layer_axes(re.compile("w|b"), tree) == [(1,), (), ()]


# ------------------------------------------------------------------------------ LAMB


def test_a_step_of_lamb_is_the_same_part_of_every_layer():
    params = {"small": random(7, 3, scale=1e-3), "large": random(50, seed=1, scale=1e3)}
    gradients = {
        "small": random(7, 3, seed=2) * 1e6,
        "large": random(50, seed=3) * 1e-6,
    }
    for decay in (0.0, 0.1):
        tx = adamx.lamb(LR, eps=0.0, weight_decay=decay)
        updates, state = first_update(tx, gradients, params)
        for name, p in params.items():
            assert norm(updates[name]) == pytest.approx(LR * norm(p), rel=1e-6)
    ratios = [norm(p) / np.sqrt(p.size) for p in params.values()]  # |r| is 1, undecayed
    _, state = first_update(adamx.lamb(LR, eps=0.0), gradients, params)
    trust = state[2]
    assert float(trust.trust_ratio_min) == pytest.approx(min(ratios), rel=1e-6)
    assert float(trust.trust_ratio_max) == pytest.approx(max(ratios), rel=1e-6)
    assert float(trust.trust_ratio_mean) == pytest.approx(np.mean(ratios), rel=1e-6)


def test_a_layer_of_zeros_and_a_direction_of_zero_have_a_ratio_of_one():
    params = {"zeros": jnp.zeros(3), "still": jnp.ones(3)}
    gradients = {"zeros": jnp.ones(3), "still": jnp.zeros(3)}
    updates, state = first_update(adamx.lamb(LR, eps=0.0), gradients, params)
    np.testing.assert_allclose(updates["zeros"], -LR, rtol=1e-6)
    np.testing.assert_array_equal(updates["still"], 0.0)
    assert float(state[2].trust_ratio_min) == float(state[2].trust_ratio_max) == 1.0


def test_phi_is_bounded():
    params, gradients = jnp.full(4, 10.0), jnp.ones(4)  # ||p|| = 20, ||r|| = 2

    def size(**bounds):
        tx = adamx.lamb(1.0, eps=0.0, **bounds)
        updates, state = first_update(tx, gradients, params)
        return norm(updates), float(state[2].trust_ratio_mean)

    assert size() == pytest.approx((20.0, 10.0), rel=1e-6)
    assert size(max_param_norm=3.0) == pytest.approx((3.0, 1.5), rel=1e-6)
    assert size(min_param_norm=30.0) == pytest.approx((30.0, 15.0), rel=1e-6)
    tx = adamx.lamb(1.0, eps=0.0, min_param_norm=4.0)
    updates, _ = first_update(tx, gradients, jnp.zeros(4))
    assert norm(updates) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "b": False},
        lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        lambda p: {"w": np.bool_(True), "b": False},
    ],
)
def test_leaves_without_a_trust_ratio_move_as_in_adamw(mask):
    params = {"w": random(3, 4), "b": random(4, seed=1)}
    gradients = {"w": random(3, 4, seed=2), "b": random(4, seed=3)}
    got, state = first_update(
        adamx.lamb(LR, eps=1e-3, weight_decay=0.1, trust_mask=mask), gradients, params
    )
    adam, _ = first_update(
        adamx.adamw(LR, eps=1e-3, weight_decay=0.1), gradients, params
    )
    full, _ = first_update(
        adamx.lamb(LR, eps=1e-3, weight_decay=0.1), gradients, params
    )
    np.testing.assert_allclose(got["b"], adam["b"], rtol=1e-6)
    np.testing.assert_array_equal(got["w"], full["w"])
    assert np.max(np.abs(full["b"] - adam["b"])) > 1e-3
    trust = state[2]  # one layer has a ratio
    assert float(trust.trust_ratio_min) == float(trust.trust_ratio_max) != 1.0


def test_no_trust_ratio_at_all_is_adamw():
    params, gradients = random(9), random(9, seed=1)
    got, state = first_update(adamx.lamb(LR, trust_mask=False), gradients, params)
    want, _ = first_update(adamx.adam(LR, eps=1e-6), gradients, params)
    np.testing.assert_array_equal(got, want)
    assert float(state[2].trust_ratio_mean) == 1.0


def test_norms_of_16_bit_parameters_do_not_overflow():
    params = {"w": jnp.full(1000, 300.0, jnp.float16)}
    gradients = {"w": jnp.ones(1000, jnp.float16)}
    updates, state = first_update(adamx.lamb(1e-3, eps=0.0), gradients, params)
    assert float(state[2].trust_ratio_mean) == pytest.approx(300.0, rel=1e-6)
    np.testing.assert_allclose(updates["w"], -0.3, rtol=1e-3)


def test_lamb_under_vmap_has_a_ratio_for_each():
    params = random(3, 5) * jnp.array([1.0, 10.0, 100.0])[:, None]
    gradients = random(3, 5, seed=1)
    tx = adamx.lamb(LR)
    got, state = jax.vmap(lambda g, p: tx.update(g, tx.init(p), p))(gradients, params)
    np.testing.assert_allclose(
        jnp.linalg.norm(got, axis=1), LR * jnp.linalg.norm(params, axis=1), rtol=1e-5
    )
    assert state[2].trust_ratio_mean.shape == (3,)


# ----------------------------------------------------------------------- StableAdamW


def test_debiased_betas_are_bias_corrected_moments():
    """With no layer slowed down, StableAdamW's update is AdamW's: the same moments."""
    gradients = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
    params = np.asarray(random(33))
    hyper = {"b1": 0.83, "b2": 0.97, "eps": 1e-3, "weight_decay": 0.3}
    ours, _ = run_updates(
        adamx.stable_adamw(LR, threshold=1e9, **hyper), gradients, params
    )
    plain, _ = run_updates(adamx.adamw(LR, **hyper), gradients, params)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-9)
    wants = reference.stable_adamw(gradients, params, LR, threshold=1e9, **hyper)
    for got, want in zip(plain, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-8)


def test_a_layer_with_a_sudden_gradient_slows_down_alone_and_its_decay_with_it():
    tx = adamx.stable_adamw(LR, b2=0.99, weight_decay=0.1)
    plain = adamx.adamw(LR, b2=0.99, eps=1e-6, weight_decay=0.1)
    params = {"a": random(50), "b": random(50, seed=1)}
    gradients = {"a": random(50, seed=2), "b": random(50, seed=3)}
    state, plain_state = tx.init(params), plain.init(params)
    for _ in range(20):
        got, state = tx.update(gradients, state, params)
        want, plain_state = plain.update(gradients, plain_state, params)
    assert float(state[0].gradient_rms) == pytest.approx(1.0, rel=1e-4)
    sudden = {**gradients, "a": gradients["a"] * 1000}
    got, state = tx.update(sudden, state, params)
    want, plain_state = plain.update(sudden, plain_state, params)
    rms = float(state[0].gradient_rms)
    assert 3.0 < rms < 1 / np.sqrt(1 - 0.99)
    np.testing.assert_allclose(got["a"], want["a"] / rms, rtol=1e-5)
    np.testing.assert_allclose(got["b"], want["b"], rtol=1e-4)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_the_recorded_rms_is_the_reference_s(eps):
    gradients = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    gradients[5] *= 100
    params = np.zeros(5, np.float32)
    sizes = []
    gradients[:, 0] *= 0.1  # below eps = 0.3
    list(reference.stable_adamw(gradients, params, LR, eps=eps, sizes=sizes))
    tx = adamx.scale_by_stable_adamw(eps=eps)
    state = tx.init(jnp.asarray(params))
    for g, size in zip(gradients, sizes, strict=True):
        _, state = tx.update(jnp.asarray(g), state)
        assert float(state.gradient_rms) == pytest.approx(size, rel=1e-6)


def test_an_element_that_overflows_does_not_stop_its_layer():
    tx = adamx.stable_adamw(LR)
    params = jnp.zeros(3)
    state = tx.init(params)
    for gradient in ([1e20, 1.0, 1.0], [1.0, 1.0, 1.0]):
        updates, state = tx.update(jnp.array(gradient), state, params)
        assert float(updates[0]) == 0.0
        np.testing.assert_allclose(updates[1:], -LR, rtol=1e-5)


@pytest.mark.parametrize("name", ["lamb", "stable_adamw", "adam_mini"])
def test_eps_zero_never_divides_zero_by_zero(name):
    tx = getattr(adamx, name)(LR, eps=0.0)
    params = jnp.array([1.0, 2.0, 3.0])
    gradient = jnp.array([0.0, 1.0, 1e-30])
    for g in (gradient, jnp.zeros(3)):
        updates, _ = first_update(tx, g, jnp.zeros(3))
        assert float(updates[0]) == 0.0
    updates, _ = first_update(tx, gradient, params)
    assert np.all(np.isfinite(np.asarray(updates)))


def test_a_scheduled_decay_is_applied_and_recorded():
    tx = adamx.stable_adamw(1.0, weight_decay=optax.linear_schedule(0.5, 0.0, 2))
    params = jnp.ones(2)
    state, seen = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(2), state, params)
        seen.append((float(updates[0]), adamx.read(state).weight_decay))
    assert seen == [(-0.5, 0.5), (-0.25, 0.25), (0.0, 0.0)]


def test_a_decay_in_16_bits_is_as_good_as_a_rate_in_16_bits():
    """inject_hyperparams gives all that is not static the parameters' dtype."""
    static = ("b1", "b2", "eps", "threshold")
    tx = optax.inject_hyperparams(adamx.stable_adamw, static_args=static)(
        0.5, weight_decay=0.25
    )
    params = jnp.ones(2, jnp.bfloat16)
    updates, state = tx.update(jnp.zeros_like(params), tx.init(params), params)
    np.testing.assert_array_equal(np.asarray(updates, np.float32), -0.125)
    assert adamx.read(state).weight_decay == 0.25


# ------------------------------------------------------------------------- Adam-mini

# path, shape: the shape of nu
BLOCKS = {
    "dense/kernel": ((5, 7), (1, 7)),
    "dense/bias": ((7,), (1,)),
    "norm/scale": ((7,), (1,)),
    "temperature": ((), ()),
    "conv/kernel": ((3, 3, 5, 7), (1, 1, 1, 7)),
    "embed/embedding": ((11, 7), (11, 1)),
    "pos_embedding": ((1, 11, 7), (1, 11, 1)),
    "transformer/wte": ((11, 7), (11, 1)),
    "patch_embedding/kernel": ((4, 4, 3, 7), (1, 1, 1, 7)),
    "patch_embedding/bias": ((7,), (1,)),
    "attention/query/kernel": ((8, 2, 4), (1, 2, 1)),
    "attention/key/kernel": ((8, 2, 4), (1, 2, 1)),
    "attention/k_proj/kernel": ((8, 2, 4), (1, 2, 1)),
    "attention/query/bias": ((2, 4), (1, 1)),
    "attention/value/kernel": ((8, 2, 4), (1, 2, 4)),
    "attention/out/kernel": ((2, 4, 8), (1, 1, 8)),
    "attention/q_proj/kernel": ((8, 8), (1, 8)),
    "monkey/kernel": ((8, 2, 4), (1, 1, 4)),
    "queryset/kernel": ((8, 2, 4), (1, 1, 4)),
}


@pytest.mark.parametrize("path", BLOCKS)
def test_the_default_blocks(path):
    shape, want = BLOCKS[path]
    tree = jnp.ones(shape)
    for name in reversed(path.split("/")):
        tree = {name: tree}
    state = adamx.scale_by_adam_mini().init(tree)
    assert jax.tree.leaves(state.nu)[0].shape == want
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), tree)
    state = adamx.scale_by_adam_mini(stacked=".").init(stacked)
    assert jax.tree.leaves(state.nu)[0].shape == (3, *want)


@pytest.mark.parametrize("path", BLOCKS)
def test_the_default_blocks_in_the_boxes_of_flax_nnx(path):
    """There a path ends in 'value', which is no name of a layer."""
    shape, want = BLOCKS[path]
    *above, name = path.split("/")
    inner = model = nnx.Module()
    for part in above:
        setattr(inner, part, nnx.Module())
        inner = getattr(inner, part)
    setattr(inner, name, nnx.Param(jnp.ones(shape)))
    state = nnx.state(model, nnx.Param)
    assert list(_tree.leaves_by_path(state)) == [path]
    seen = []
    found = adamx.scale_by_adam_mini(
        axes=lambda path, shape: seen.append(path)  # and None: the default
    ).init(state)
    assert jax.tree.leaves(found.nu)[0].shape == want
    assert seen == [path]


def test_the_blocks_of_an_attention_layer_of_flax_nnx():
    layer = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    state = adamx.scale_by_adam_mini().init(nnx.state(layer, nnx.Param))
    got = {k: v.shape for k, v in _tree.leaves_by_path(state.nu).items()}
    assert got["out/kernel"] == (1, 1, 8)
    assert got["query/kernel"] == (1, 2, 1)
    assert got["value/kernel"] == (1, 2, 4)
    assert got["value/bias"] == (1, 1)


def test_a_pattern_that_matches_nothing_is_announced():
    params = {"layers": {"kernel": jnp.ones((3, 2))}}
    for make in (adamx.lamb, adamx.stable_adamw, adamx.adam_mini):
        with pytest.warns(UserWarning, match="`stacked`='layer/' matches no parameter"):
            make(LR, stacked="layer/").init(params)
    with pytest.warns(UserWarning, match="'layers/kernel'"):
        adamx.clip_by_update_rms(stacked="nothing").init(params)


@pytest.mark.parametrize(
    ("is_complex", "axes"),
    some(
        itertools.product([False, True], [(0,), (1,), (0, 2), (-1, 0), (0, 1, 2)]),
        *[(False, (1,)), (False, (-1, 0)), (True, (0, 2)), (True, (0, 1, 2))],
    ),
)
def test_adam_mini_against_float64(axes, is_complex):
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((20, 4, 3, 5)) * 10 ** rng.uniform(-2, 1, (4, 3, 5))
    if is_complex:
        gradients = gradients * np.exp(1j * rng.uniform(0, 6, gradients.shape))
    dtype = np.complex64 if is_complex else np.float32
    gradients = gradients.astype(dtype)
    params = np.zeros((4, 3, 5), dtype)
    hyper = {"b1": 0.83, "b2": 0.97, "eps": 1e-3}
    tx = adamx.adam_mini(LR, axes=lambda path, shape: axes, **hyper)
    ours, _ = run_updates(tx, gradients, params)
    wants = reference.adam_mini(gradients, params, LR, axes=axes, **hyper)
    for got, want in zip(ours, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-8)


def test_blocks_of_one_element_are_adam():
    gradients = np.random.default_rng(0).standard_normal((9, 4, 3)).astype(np.float32)
    params = np.zeros((4, 3), np.float32)
    tx = adamx.adam_mini(LR, axes=lambda path, shape: ())
    ours, _ = run_updates(tx, gradients, params)
    plain, _ = run_updates(adamx.adamw(LR, weight_decay=0.0), gradients, params)
    np.testing.assert_allclose(ours, plain, rtol=1e-6)


def test_axes_get_path_and_shape_and_may_decline():
    seen = []

    def axes(path, shape):
        seen.append((path, shape))
        return (0,) if path == "a/w" else None

    tree = {"a": {"w": jnp.ones((3, 2, 5))}, "b": jnp.ones((2, 3))}
    state = adamx.scale_by_adam_mini(axes=axes, stacked="^a/").init(tree)
    assert seen == [("a/w", (2, 5)), ("b", (2, 3))]
    assert jax.tree.map(jnp.shape, state.nu) == {"a": {"w": (3, 1, 5)}, "b": (1, 3)}


def test_stacked_blocks_equal_blocks_one_by_one():
    stacked = {"query": {"kernel": random(3, 8, 2, 4)}}
    tx, plain = adamx.adam_mini(LR, stacked="query"), adamx.adam_mini(LR)
    got, _ = first_update(tx, stacked, stacked)
    for i in range(3):
        alone = {"query": {"kernel": stacked["query"]["kernel"][i]}}
        want, _ = first_update(plain, alone, alone)
        np.testing.assert_allclose(
            got["query"]["kernel"][i], want["query"]["kernel"], rtol=1e-6
        )


def test_adam_mini_holds_half_of_adam_s_state_and_no_temporaries():
    params = {"w": jnp.ones((256, 256))}
    tx = adamx.adam_mini(1e-3)
    state = tx.init(params)
    held = sum(x.nbytes for x in jax.tree.leaves((state[0].mu, state[0].nu)))
    assert held == 4 * (256 * 256 + 256)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    temporary = compiled.compile(AS_USERS).memory_analysis().temp_size_in_bytes
    assert temporary <= (TEMPORARIES + 0.02) * params["w"].nbytes


def test_an_empty_leaf_has_no_nan():
    params = {"w": jnp.ones((0, 3)), "v": jnp.ones((2, 0))}
    updates, state = first_update(adamx.adam_mini(LR), params, params)
    np.testing.assert_array_equal(state[0].nu["w"], jnp.zeros((1, 3)))
    assert updates["v"].shape == (2, 0)


def test_blocks_over_a_sharded_axis():
    """The mean over an axis that eight devices share."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = {"kernel": random(64, 24)}
    gradients = {"kernel": random(64, 24, seed=1)}
    tx = adamx.adam_mini(LR)
    one, one_state = first_update(tx, gradients, params)
    place = NamedSharding(mesh, PartitionSpec("data"))
    eight, eight_state = first_update(
        tx, jax.device_put(gradients, place), jax.device_put(params, place)
    )
    np.testing.assert_allclose(eight["kernel"], one["kernel"], rtol=1e-6)
    np.testing.assert_allclose(
        eight_state[0].nu["kernel"], one_state[0].nu["kernel"], rtol=1e-6
    )


# ---------------------------------------------------------------- clip_by_update_rms


@pytest.mark.parametrize("threshold", [1e-3, 0.7, 1.0, 30.0])
def test_clip_by_update_rms_against_float64_and_optax(threshold):
    updates = {"a": random(37, 11), "b": random(5, seed=1, scale=20.0)}
    tx = adamx.clip_by_update_rms(threshold)
    got, state = first_update(tx, updates, updates)
    theirs, _ = first_update(optax.clip_by_block_rms(threshold), updates, updates)
    for name, u in updates.items():
        wide = np.asarray(u, np.float64)
        factor = reference.rms_factor(wide, threshold)
        np.testing.assert_allclose(got[name], factor * wide, rtol=5e-7)
        np.testing.assert_allclose(got[name], theirs[name], rtol=1e-6)
    largest = max(np.sqrt(np.mean(np.square(u))) for u in updates.values())
    assert float(state.update_rms) == pytest.approx(largest, rel=1e-6)


def test_clip_by_update_rms_at_the_edges():
    tx = adamx.clip_by_update_rms(1.0)
    tree = {"none": None, "empty": jnp.zeros((0, 3)), "zero": jnp.zeros(2)}
    updates, state = first_update(tx, tree, tree)
    assert updates["none"] is None
    np.testing.assert_array_equal(updates["zero"], 0.0)
    assert float(state.update_rms) == 0.0
    assert first_update(tx, {}, {})[0] == {}
    half = {"w": jnp.full(1000, 300.0, jnp.float16), "v": jnp.ones(2, jnp.float16)}
    updates, state = first_update(tx, half, half)
    assert float(state.update_rms) == 300.0
    assert updates["w"].dtype == jnp.float16
    np.testing.assert_allclose(updates["w"], 1.0, rtol=1e-3)
    bad = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(2)}
    updates, state = first_update(tx, bad, bad)
    assert np.all(np.isnan(updates["a"]))
    assert np.isnan(state.update_rms)
    np.testing.assert_array_equal(updates["b"], 1.0)
    same = jnp.array([0.1, -0.7])
    np.testing.assert_array_equal(first_update(tx, same, same)[0], same)
    np.testing.assert_array_equal(
        first_update(adamx.clip_by_update_rms(0.0), same, same)[0], 0.0
    )
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(
        first_update(adamx.clip_by_update_rms(0.0), zero, zero)[0], 0.0
    )


def test_clip_by_update_rms_with_a_traced_threshold_and_inside_a_chain():
    @jax.jit
    def clipped(limit):
        tx = optax.chain(adamx.scale_by_adam(), adamx.clip_by_update_rms(limit))
        return tx.update(jnp.array([3.0, -4.0]), tx.init(jnp.zeros(2)))

    for limit in (0.25, 4.0):
        updates, state = clipped(limit)
        np.testing.assert_allclose(np.abs(updates), min(limit, 1.0), rtol=1e-6)
        assert float(state[1].update_rms) == pytest.approx(1.0, rel=1e-6)
