"""Stochastic rounding: the bits' statistics, the rounding itself, `apply_updates`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.moments import random_bits, round_stochastic, uniform
from tests import battery
from tests.compiling import AS_USERS, as_users
from tests.helpers import TEMPORARIES

KEY = jnp.array([0, 7], jnp.uint32)

# ------------------------------------------------------------------------ the bits


def _two_multiplications(key, step, stream, shape):
    """A cheaper hash, which the battery must tell from a good one."""
    x = jnp.arange(np.prod(shape), dtype=jnp.uint32).reshape(shape)
    x = x + jnp.sum(key) * jnp.uint32(0x9E3779B9) + jnp.uint32(step) * jnp.uint32(3)
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD) + jnp.uint32(stream)
    return (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)


def _by_jax(key, step, stream, shape):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
    return jax.random.bits(jax.random.fold_in(key, stream), shape)


def _worst(bits, size):
    found = battery.judge(bits, size)
    where = max(found, key=found.get)
    return where, found[where]


@pytest.mark.slow
def test_the_battery_passes():
    where, z = _worst(random_bits, 1 << 15)
    assert z < battery.LIMIT, where
    assert battery.avalanche(random_bits) < battery.LIMIT
    found = battery.battery(random_bits(KEY, 0, 0, (1 << 20,)))
    assert max(found.values()) < battery.LIMIT, found


@pytest.mark.slow
def test_the_battery_passes_in_its_long_version():
    where, z = _worst(random_bits, 1 << 20)
    assert z < battery.LIMIT, where
    assert battery.avalanche(random_bits, 1 << 18) < battery.LIMIT


@pytest.mark.slow
def test_the_battery_passes_a_cipher():
    where, z = _worst(_by_jax, 1 << 16)
    assert z < battery.LIMIT, where


@pytest.mark.slow
def test_the_battery_fails_a_cheaper_hash():
    words = _two_multiplications(KEY, 0, 0, (1 << 16,))
    assert max(battery.battery(words).values()) > 2 * battery.LIMIT


def test_collisions_are_as_many_as_birthdays_give():
    """Over 256 arrays of 4,096: 2^39 pairs of 32 bits, 128 of them equal."""
    draw = jax.vmap(lambda step: random_bits(KEY, step, 0, (4096,)))
    words = np.asarray(draw(jnp.arange(256))).ravel()
    pairs = np.unique(words, return_counts=True)[1]
    assert abs(np.sum(pairs * (pairs - 1) // 2) - 128) < 5 * 128**0.5
    assert np.unique(words[:4096]).size == 4096  # within one array there are none


def test_bits_depend_on_the_place_alone():
    flat = random_bits(KEY, 3, 5, (24,))
    for shape in ((2, 12), (2, 3, 4), (24, 1), (1, 4, 6)):
        np.testing.assert_array_equal(random_bits(KEY, 3, 5, shape).ravel(), flat)
    np.testing.assert_array_equal(random_bits(KEY, 3, 5, (7,)), flat[:7])
    assert int(random_bits(KEY, 3, 5, ())) == int(flat[0])
    assert random_bits(KEY, 3, 5, (0, 3)).shape == (0, 3)
    traced = jax.jit(lambda *x: random_bits(*x, (24,)))(KEY, jnp.int32(3), jnp.int32(5))
    np.testing.assert_array_equal(traced, flat)
    for other in ((KEY, 3, 6), (KEY, 4, 5), (KEY[::-1], 3, 5), (KEY, 5, 3)):
        assert np.mean(np.asarray(random_bits(*other, (24,))) == flat) < 0.1


def test_bits_are_what_they_were():
    """Changed bits change every run that is continued from a checkpoint."""
    got = random_bits(KEY, 3, 5, (2, 2)).ravel().tolist()
    assert got == [2752983373, 2721958473, 1669324873, 3623396513]


def test_eight_devices_draw_the_bits_of_one_and_say_nothing():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    place = NamedSharding(mesh, PartitionSpec("a", "b"))
    draw = lambda key: random_bits(key, 0, 1, (64, 24))  # noqa: E731
    spread = jax.jit(draw, out_shardings=place).lower(KEY).compile()
    np.testing.assert_array_equal(spread(KEY), draw(KEY))
    text = spread.as_text()
    assert "all-" not in text
    assert "collective" not in text
    assert "u32[64,24]" not in text  # no device makes the whole


def test_uniform():
    ends = jnp.array([0, 255, 256, 2**31, 2**32 - 1], jnp.uint32)
    want = [0.0, 0.0, 2.0**-24, 0.5, 1 - 2.0**-24]
    assert uniform(ends).tolist() == want
    u = np.asarray(uniform(random_bits(KEY, 0, 0, (1 << 20,))), np.float64)
    assert abs(u.mean() - 0.5) < 5 / 12**0.5 / 2**10
    assert abs(np.mean((u - 0.5) ** 2) - 1 / 12) < 5 / 180**0.5 / 2**10


# --------------------------------------------------------------------- the rounding


def _reference(x, bits):
    """By the definition, in float64: between the neighbours, by a uniform number."""
    x = np.asarray(x, np.float32)
    below = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    above = ((x.view(np.uint32) & np.uint32(0xFFFF0000)) + 0x10000).view(np.float32)
    wide = [v.astype(np.float64) for v in (x, below, above)]
    part = (wide[0] - wide[1]) / (wide[2] - wide[1])
    is_up = (np.asarray(bits) >> 16) / 2.0**16 + part >= 1.0
    return np.where(is_up, above, below)


def test_rounding_against_its_definition():
    """All exponents, subnormal ones and both signs among them."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    words = words[(words & 0x7FFFFFFF) < 0x7F7F0000]
    bits = rng.integers(0, 1 << 32, words.size, dtype=np.uint32)
    x = words.view(np.float32)
    got = np.asarray(jax.jit(round_stochastic)(x, bits)).astype(np.float32)
    want = _reference(x, bits)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
    assert np.sum(np.abs(x) < np.finfo(np.float32).tiny) > 500


def test_every_probability_is_exact():
    """All 2^16 values of the bits: so many go up as the fraction says."""
    every = jnp.arange(1 << 16, dtype=jnp.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
        x = np.uint32(0xC0490000 + lower).view(np.float32)
        rounded = np.asarray(round_stochastic(jnp.full(1 << 16, x), every))
        assert np.sum(rounded.astype(np.float32) != np.float32(-3.140625)) == lower


def test_what_bfloat16_holds_is_kept():
    every = np.arange(1 << 16, dtype=np.uint32) << 16  # all bfloat16 numbers
    x = jax.lax.bitcast_convert_type(every, jnp.float32)
    bits = jnp.full(x.shape, 0xFFFFFFFF, jnp.uint32)
    got = jax.lax.bitcast_convert_type(round_stochastic(x, bits), jnp.uint16)
    want, is_nan = every >> 16, (every & 0x7FFFFFFF) > 0x7F800000
    np.testing.assert_array_equal(got[~is_nan], want[~is_nan])
    assert np.all((got[is_nan] & 0x7FFF) > 0x7F80)


def test_infinite_where_the_nearest_is_and_nan_where_it_was():
    words = [0x7F7F0001, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7F7EFFFF]
    words += [0x7F800001, 0x7FFFFFFF, 0x7FC00000]
    x = np.array([w | s for w in words for s in (0, 1 << 31)], np.uint32)
    x = jax.lax.bitcast_convert_type(x, jnp.float32)
    for lot in (0, 0xFFFFFFFF):
        got = round_stochastic(x, jnp.full(x.shape, lot, jnp.uint32))
        want = np.array(x.astype(jnp.bfloat16))
        if not lot:  # 0x7F7EFFFF has finite neighbours: a choice
            want[10:12] = round_stochastic(x[10:12], jnp.zeros(2, jnp.uint32))
            assert np.all(np.abs(want[10:12].astype(np.float32)) < 3.39e38)
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("x", [1.001, -3.3e-5, 0.99, 1e-30, 255.3, 65535.0])
def test_the_mean_of_100_000_draws_is_the_number(x):
    """Half an ulp over the root of the number is 6e-6; 3e-5 is 5 of it."""
    draws = 100_000
    for step in range(3):
        bits = random_bits(KEY, step, 0, (draws,))
        rounded = round_stochastic(jnp.full(draws, x, jnp.float32), bits)
        mean = np.mean(np.asarray(rounded).astype(np.float64))
        assert abs(mean / np.float64(np.float32(x)) - 1) < 3e-5
    draw = jax.vmap(lambda step: random_bits(KEY, step, 0, (3,))[1])
    rounded = round_stochastic(jnp.full(draws, x), draw(jnp.arange(draws)))
    mean = np.mean(np.asarray(rounded).astype(np.float64))  # over steps
    assert abs(mean / np.float64(np.float32(x)) - 1) < 3e-5


# ------------------------------------------------------------------- apply_updates


def _params():
    return {
        "a": jnp.full((64, 48), 1.0, jnp.bfloat16),
        "b": [jnp.full((64, 48), 1.0, jnp.bfloat16), jnp.full(3, -2.5, jnp.bfloat16)],
        "single": jnp.linspace(0.0, 1.0, 7),
        "scalar": jnp.ones((), jnp.bfloat16),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "nothing": None,
    }


def _stochastic(params, updates, key):
    return adamx.apply_updates(params, updates, rounding="stochastic", key=key)


def _small(params):
    return jax.tree.map(lambda p: jnp.full(p.shape, 1e-3, jnp.float32), params)


def test_updates_are_added_in_float32_and_rounded_stochastically():
    params = _params()
    updates, key = _small(params), jax.random.key(3)
    new = jax.jit(_stochastic)(params, updates, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
    chex.assert_trees_all_equal(new, _stochastic(params, updates, key))
    raw = jax.random.key_data(key)
    chex.assert_trees_all_equal(new, _stochastic(params, updates, raw))
    for name, leaf in (("a", new["a"]), ("b", new["b"][0])):
        mean = float(leaf.astype(jnp.float32).mean())
        assert mean == pytest.approx(1.001, abs=4e-4), name
    assert np.mean(np.asarray(new["a"] == new["b"][0])) < 0.9  # draws of their own
    want = adamx.apply_updates(params["single"], updates["single"])
    np.testing.assert_array_equal(new["single"], want)
    other = _stochastic(params, updates, jax.random.fold_in(key, 1))
    assert np.mean(np.asarray(new["a"] == other["a"])) < 0.9
    narrow = jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates)
    with jax.numpy_dtype_promotion("strict"):
        new = _stochastic(params, narrow, key)
    assert float(new["a"].astype(jnp.float32).mean()) == pytest.approx(1.001, abs=4e-4)


def test_the_derivative_is_that_of_the_mean():
    def total(gradient):
        params = jnp.ones(64, jnp.bfloat16)
        updates = jnp.full(64, gradient)
        key = jax.random.key(0)
        new = adamx.apply_updates(params, updates, rounding="stochastic", key=key)
        return new.astype(jnp.float32).sum()

    assert jax.grad(total)(0.1) == 64


def test_a_thousand_small_steps_arrive_where_nearest_stands_still():
    params, key = jnp.ones(1024, jnp.bfloat16), jax.random.key(0)
    u = jnp.full(1024, 1e-3)

    def step(p, t):
        return _stochastic(p, u, jax.random.fold_in(key, t)), None

    moved, _ = jax.jit(lambda p: jax.lax.scan(step, p, jnp.arange(1000)))(params)
    # Each step adds a variance of at most (2^-6)^2 / 16 here.
    error = 5 * (1000 / 16) ** 0.5 * 2.0**-6 / 1024**0.5
    assert float(moved.astype(jnp.float32).mean()) == pytest.approx(2.0, abs=error)
    assert float(adamx.apply_updates(params, u)[0]) == 1.0


def test_what_a_bfloat16_one_ignores():
    """As the docstrings say: up to half its distance to the next, 2^-8 and 2^-9."""
    one, more = jnp.ones((), jnp.bfloat16), 1.001
    for largest in (2.0**-8, -(2.0**-9)):
        assert float(adamx.apply_updates(one, jnp.float32(largest))) == 1
        assert float(adamx.apply_updates(one, jnp.float32(largest * more))) != 1


@pytest.mark.slow
def test_other_kinds_of_keys_and_vmap_over_them():
    params, u = jnp.ones((2, 64), jnp.bfloat16), jnp.full((2, 64), 1e-3)
    _stochastic(params, u, jax.random.key(0, impl="rbg"))
    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.vmap(_stochastic)(params, u, keys)
    alone = [_stochastic(params[i], u[i], keys[i]) for i in range(2)]
    np.testing.assert_array_equal(batched, jnp.stack(alone))
    assert np.any(np.asarray(batched[0] != batched[1]))


@as_users
def test_eight_devices_round_as_one():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))
    params, u = jnp.ones((64, 24), jnp.bfloat16), jnp.full((64, 24), 1e-3)
    key = jax.random.key(5)
    there = jax.device_put((params, u), place)
    got = jax.jit(_stochastic)(*there, key)
    np.testing.assert_array_equal(got, _stochastic(params, u, key))
    assert got.sharding.is_equivalent_to(place, 2)


def test_a_step_needs_no_more_memory_than_to_the_nearest():
    """No array of bits and no float32 sum: they live inside the pass that rounds."""
    params = jax.tree.map(lambda _: jnp.ones((256, 256), jnp.bfloat16), [0, 0, 0])
    tx = adamx.adamw(1e-3)
    sizes = {}
    for rounding in ("nearest", "stochastic"):

        def step(params, state, gradients, key, rounding=rounding):
            updates, state = tx.update(gradients, state, params)
            key = key if rounding == "stochastic" else None
            new = adamx.apply_updates(params, updates, rounding=rounding, key=key)
            return new, state

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
            params, tx.init(params), params, jax.random.key(0)
        )
        sizes[rounding] = lowered.compile(AS_USERS).memory_analysis().temp_size_in_bytes
    bytes_of_params = 3 * 2 * 256 * 256
    assert sizes["stochastic"] <= sizes["nearest"] + TEMPORARIES * bytes_of_params


def test_bad_input():
    p = {"w": jnp.ones(3, jnp.bfloat16)}
    key = jax.random.key(0)
    cases = [
        (ValueError, r"`key` must be a jax.random key.*None; pass a new", p, {}),
        (TypeError, r"`key` must be one jax.random key.*int 0.*fold_in", p, {"key": 0}),
        (TypeError, r"`key` must be one", p, {"key": jax.random.split(key)}),
        (TypeError, r"`key` must be one", p, {"key": jnp.ones(2)}),
        (TypeError, r"'w' must be bfloat16.*float16.*compensated",
         {"w": jnp.ones(3, jnp.float16)}, {"key": key}),
        (TypeError, r"'w' must be bfloat16.*float8",
         {"w": jnp.ones(3, jnp.float8_e4m3fn)}, {"key": key}),
    ]  # fmt: skip
    for kind, message, params, options in cases:
        with pytest.raises(kind, match=message):
            adamx.apply_updates(params, params, rounding="stochastic", **options)
    with pytest.raises(ValueError, match=r"`key` must be None where .*nearest.*pass"):
        adamx.apply_updates(p, p, key=key)
    with pytest.raises(ValueError, match=r"`rounding` must be one of 'nearest'.*'up'"):
        adamx.apply_updates(p, p, rounding="up", key=key)
