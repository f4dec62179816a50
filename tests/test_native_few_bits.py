"""The compiled passes: numbers of 4 and 8 bits, and scales for so many rows."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import adamx
from adamx.moments import _layout
from adamx.native import in_passes
from tests.helpers_native import (
    CALL,
    MARKS,
    adamw,
    assert_alike,
    copies,
    programs,
    steps_of,
    text_of,
)
from tests.helpers_native import cache as cache

pytestmark = MARKS

FLOATS = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
# Odd columns, so that a row begins within a byte; of several threads; of one element.
SHAPES = [(5, 7), (3,), (1, 1), (301, 257), (70_001,), (2, 3, 5), (4, 1)]


def in_c(function: Any, *args: Any) -> Any:
    """Its results by passes, with no loop of XLA's over an array beside them."""
    jitted = jax.jit(lambda *args: in_passes(function, *args))
    text = jitted.lower(*args).compile().as_text()
    assert CALL.search(text)
    assert " fusion(" not in text
    return jitted(*args)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_of_8_bits_is_read(dtype):
    codes = np.arange(256, dtype=np.uint8).view(dtype)
    found = in_c(lambda x: x.astype(jnp.float32), jnp.asarray(codes))
    np.testing.assert_array_equal(found, codes.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(codes))


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_are_rounded_to_8_bits_as_they_should_be(dtype):
    """Each number, what lies half-way to the next one, and what is a bit off both."""
    codes = np.arange(128, dtype=np.uint8).view(dtype).astype(np.float32)
    numbers = codes[np.isfinite(codes)]
    half = (numbers[1:] + numbers[:-1]) / 2
    top = numbers[-1] + (numbers[-1] - numbers[-2]) * np.float32([0.25, 0.5, 0.75, 9])
    x = np.concatenate([numbers, half, top, [3e38, np.inf, np.nan]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)])
    x = np.concatenate([x, -x, np.geomspace(1e-9, 1e6, 999, dtype=np.float32)])
    wanted = x.astype(dtype)
    found = np.asarray(in_c(lambda x: x.astype(dtype), jnp.asarray(x)))
    is_nan = np.isnan(wanted.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), is_nan)
    wanted, found = wanted[~is_nan], found[~is_nan]
    np.testing.assert_array_equal(found.view(np.uint8), wanted.view(np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.int4, jnp.uint4])
def test_numbers_of_4_bits_share_bytes(shape, dtype):
    """Read, computed with, written over; of rows that begin within a byte, too."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 16, shape).astype(np.uint8)
    x = jnp.asarray(x if dtype == jnp.uint4 else x.astype(np.int8) - 8).astype(dtype)
    number = jnp.asarray(rng.integers(-100, 100, shape), jnp.int32)
    of_columns = (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else ()
    scale = jnp.asarray(rng.standard_normal(of_columns), jnp.float32)

    def function(x: jax.Array, number: jax.Array, scale: jax.Array) -> Any:
        read = x.astype(jnp.float32) * scale
        return [x + number.astype(dtype), read, jnp.where(read > 0, -x, x) ^ x]

    def in_place(x: jax.Array, number: jax.Array, scale: jax.Array) -> Any:
        return in_passes(function, x, number, scale, results=[0, None, None])

    wanted = function(x, number, scale)
    jitted = jax.jit(in_place, donate_argnums=0)
    text = text_of(jitted, x, number, scale)
    assert CALL.search(text)
    assert " fusion(" not in text
    assert "copy(" not in text
    for a, b in zip(jitted(x, number, scale), wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))


def test_parts_of_arrays_of_4_bits_are_left_to_xla():
    """A part may begin within a byte; what is beside it stays as it is."""
    x = jnp.asarray(np.arange(30) % 16, jnp.uint4)

    def parts(x: jax.Array) -> Any:
        first, rest = x[:7] + jnp.uint4(1), x[7:]
        rows = x.reshape(6, 5)[1:] ^ jnp.uint4(5)
        return [jnp.concatenate([first, rest - jnp.uint4(1)]), rows]

    step = jax.jit(lambda x: in_passes(parts, x, results=[0]), donate_argnums=0)
    assert not CALL.search(text_of(step, x))
    for a, b in zip(step(x + 0), parts(x), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.int32), b.astype(jnp.int32))


SPANS = [((12, 5), 3), ((13, 5), 3), ((2, 13, 4), 7), ((300, 700), 5)]


@pytest.mark.parametrize(("shape", "blocks"), SPANS)
def test_numbers_for_so_many_rows_are_read_and_found(shape, blocks):
    """Beside those of whole columns and of rows, in the same loops."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    x = x.at[..., 0, 0].set(jnp.nan)
    groups = (*shape[:-2], blocks, shape[-1])
    scale = jnp.asarray(rng.standard_normal(groups), jnp.float32)
    whole = jnp.asarray(rng.standard_normal((*shape[:-2], 1, shape[-1])), jnp.float32)

    def function(x: jax.Array, scale: jax.Array, whole: jax.Array) -> Any:
        y = x * _layout.spread(scale, shape) + whole
        size = jnp.abs(y)
        return [
            y,
            _layout.largest(size, groups, is_simple=True),
            _layout.largest(size, whole.shape, is_simple=True),
            _layout.largest(size, (*shape[:-1], 1), is_simple=True),
        ]

    jitted = jax.jit(lambda *args: in_passes(function, *args))
    text = text_of(jitted, x, scale, whole)
    assert len(CALL.findall(text)) == 2
    assert not re.search(rf"= f32\[{','.join(map(str, shape))}\]\S* fusion\(", text)
    found, wanted = jitted(x, scale, whole), function(x, scale, whole)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    # By another way: block by block.
    span = -(-shape[-2] // blocks)
    y = np.abs(np.asarray(wanted[0]))
    for b in range(blocks):
        block = np.nanmax(y[..., b * span : (b + 1) * span, :], axis=-2)
        np.testing.assert_allclose(found[1][..., b, :], block, rtol=1e-6)


def test_numbers_of_which_some_are_for_no_row():
    """No codec makes them: blocks are as few as their length allows."""
    x, scale = jnp.arange(63.0).reshape(7, 9), jnp.arange(54.0).reshape(6, 9)

    def function(x: jax.Array, scale: jax.Array) -> Any:
        y = x * _layout.spread(scale, (7, 9))
        return [y, _layout.largest(y, (6, 9), is_simple=True)]

    step = jax.jit(lambda *args: in_passes(function, *args))
    assert not CALL.search(text_of(step, x, scale))
    for a, b in zip(step(x, scale), function(x, scale), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shapes_that_are_no_blocks_of_rows():
    """Of vectors made matrices and of nothing; what is reduced is computed."""
    x = jnp.arange(20.0)

    def function(x: jax.Array) -> Any:
        matrix = (x * 2).reshape(4, 5)
        other = jnp.broadcast_to((x + 1)[:, None], (20, 3)).reshape(60)
        nothing = jnp.broadcast_to(x[:0, None], (0, 3)).reshape(0, 3) * 2.0
        twice = jnp.broadcast_to(x.reshape(4, 1, 5), (4, 2, 5)).reshape(8, 5)
        none = jnp.broadcast_to(x[:0].reshape(0, 1, 5), (0, 2, 5)).reshape(0, 5)
        return [
            *(jnp.max(matrix, axis=0), jnp.max(matrix, axis=1), jnp.sum(matrix, 0)),
            *(other * 3, jnp.max(other.reshape(6, 10), axis=0), nothing),
            *(twice * 2, jnp.max((twice * 2).reshape(2, 4, 5), axis=1), none + 1),
        ]

    found = jax.jit(lambda x: in_passes(function, x))(x)
    for a, b in zip(found, function(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_largest_number_below_zero_in_rows_that_were_filled_up():
    """What an array is filled up with is never the largest, or it is XLA's."""
    x = -1 - jnp.arange(35.0).reshape(7, 5)

    def largest(x: jax.Array, number: float) -> jax.Array:
        x = jax.lax.pad(x * 2, jnp.float32(number), [(0, 2, 0), (0, 0, 0)])
        return jnp.max(x.reshape(3, 3, 5), axis=1)

    for number in (-np.inf, 0.0, -15.0):
        step = jax.jit(lambda x, n=number: in_passes(lambda x: largest(x, n), x))
        assert bool(CALL.search(text_of(step, x))) == (number == -np.inf)
        np.testing.assert_array_equal(step(x), largest(x, number))


def test_what_passes_do_not_know_is_the_same():
    """Scales by block along a row are XLA's, beside passes for another leaf."""
    codec = adamx.codecs.int4("block", 8, min_size=0, keep=lambda path: path == "kept")
    tx = adamw(mu_dtype=codec, nu_dtype=codec)
    xla, native = steps_of(tx)
    params = {"p": jnp.ones((6, 40)), "kept": jnp.ones(9)}
    carry = params, tx.init(params)
    grads = {"p": jnp.linspace(-1, 1, 240).reshape(6, 40), "kept": jnp.arange(9.0)}
    text = text_of(native, *carry, grads)
    assert len(CALL.findall(text)) == 1
    assert re.search(r"s4\[6,40\]\S* fusion\(", text)
    wanted, found = xla(*copies(carry), grads), native(*copies(carry), grads)
    assert_alike(found[0], wanted[0], params, 1e-6)


def test_programs_of_leaves_with_other_spans_are_one(monkeypatch):
    """How many rows share a number is said with each leaf, not in the program."""
    texts = programs(monkeypatch)
    codec = adamx.codecs.int4(min_size=0)
    tx = adamw(mu_dtype=codec, nu_dtype=codec)
    params = [jnp.ones(shape) for shape in ((130, 64), (200, 96), (2, 300, 50))]
    native = adamx.fused(tx, kernel="native").step
    jax.jit(native).lower(params, tx.init(params), params)
    assert len(set(texts)) == 2
    assert all("spans[0]" in text for text in texts)
