"""The compiled passes: each operation, whole graphs, parts of arrays in place."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.native import in_passes
from tests.helpers import some
from tests.helpers_native import CALL, MARKS, copies, text_of
from tests.helpers_native import cache as cache

pytestmark = MARKS


# --------------------------------------------------------------------- operations

X = np.array(
    [
        *(0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1.5, 3.7, -3.7, 1e-3, 1e10, -1e10, np.inf),
        *(-np.inf, np.nan, 127.4, -128.6, 255.5, 300.0, 65519.0, 65520.0, 1e-8, 6e-8),
    ],
    np.float32,
)
Y = np.roll(X, 5)
UNARY = ["abs", "neg", "sign", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "floor"]
UNARY += ["ceil", "is_finite", "rsqrt", "square"]
BINARY = ["add", "sub", "mul", "div", "max", "min", "pow", "eq", "ne", "lt", "le", "gt"]
BINARY += ["ge"]


def operations(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Every operation that is written in C, on two arrays of one float dtype."""
    lax = jax.lax
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    signed = bits.astype(jnp.int32)
    small = jnp.where(jnp.isfinite(x), x, 0)
    found = {name: getattr(lax, name)(x) for name in UNARY}
    found |= {name: getattr(lax, name)(x, y) for name in BINARY}
    found |= {
        "select": jnp.where(x > y, x, y),
        "clamp": lax.clamp(jnp.asarray(-1, x.dtype), x, jnp.asarray(2, x.dtype)),
        "round even": lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
        "round away": lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
        "square power": lax.integer_pow(x.astype(jnp.float32), 2),
        "to bfloat16": x.astype(jnp.bfloat16),
        "to float16": x.astype(jnp.float16),
        "precision": lax.reduce_precision(x.astype(jnp.float32), 8, 7),
        "to int8": lax.clamp(-127.0, small.astype(jnp.float32), 127.0).astype(jnp.int8),
        "to uint8": lax.clamp(0.0, small.astype(jnp.float32), 255.0).astype(jnp.uint8),
        "to bool": x.astype(bool),
        "from int": signed.astype(jnp.float32),
        "bits": bits,
        "and or xor not": (bits & 0xFFFF) | (~bits ^ 3),
        "not bool": jnp.logical_not(x > 0) & (y > 0) | (x < y),
        "hash": (bits * jnp.uint32(0x9E3779B1)) ^ (bits >> 15),
        "left": bits << 5,
        "right": signed >> 3,
        "far": lax.shift_right_logical(bits, jnp.full_like(bits, 40)),
        "int8 wraps": (signed.astype(jnp.int8) * jnp.int8(3) + jnp.int8(100)),
        "int abs": jnp.abs(signed.astype(jnp.int8)),
    }
    return found


@pytest.mark.parametrize(
    "dtype", some((jnp.float32, jnp.bfloat16, jnp.float16), jnp.float32, jnp.float16)
)
def test_operations_are_jax_own(dtype):
    x, y = jnp.asarray(X).astype(dtype), jnp.asarray(Y).astype(dtype)
    run = jax.jit(lambda x, y: in_passes(operations, x, y))
    text = text_of(run, x, y)
    assert CALL.search(text)
    assert "fusion(" not in text
    found = run(x, y)
    wanted = {  # one by one: what XLA fuses it may round once
        name: np.asarray(value)
        for name, value in jax.device_get(operations(x, y)).items()
    }
    for name, old in wanted.items():
        new = np.asarray(found[name])
        assert new.dtype == old.dtype
        if name in ("exp", "expm1", "log", "log1p", "tanh", "pow", "rsqrt"):
            tolerance = max(4 * float(jnp.finfo(dtype).eps), 2e-6)
            np.testing.assert_allclose(
                new.astype(np.float64),
                old.astype(np.float64),
                rtol=tolerance,
                err_msg=name,
            )
        elif new.dtype in (jnp.bfloat16, jnp.float16):
            new, old = new.astype(np.float32), old.astype(np.float32)
            np.testing.assert_array_equal(new, old, err_msg=name)
        else:
            np.testing.assert_array_equal(new, old, err_msg=name)


def test_reductions_of_every_kind():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(300, 301)), jnp.float32)

    def reduced(x: jax.Array) -> dict[str, jax.Array]:
        return {
            "sum": jnp.sum(x),
            "max": jnp.max(x * 2),
            "all": jnp.all(x > -3),
            "any": jnp.any(x > 5),
            "count": jnp.sum((x > 1).astype(jnp.int32)),
            "rows": jnp.max(jnp.abs(x), axis=1),
            "columns": jnp.max(jnp.abs(x), axis=0),
            "row sums": jnp.sum(x, axis=-1),
        }

    for special in (None, jnp.nan, jnp.inf):
        value = x if special is None else x.at[7, 9].set(special)
        run = jax.jit(lambda x: in_passes(reduced, x))
        assert len(CALL.findall(text_of(run, value))) == 1  # one pass for all
        for name, old in reduced(value).items():
            if special is jnp.nan and name in ("max", "rows", "columns"):
                # XLA's own, on a CPU, may leave NaN out.
                old = np.max(np.abs(value), axis={"rows": 1, "columns": 0}.get(name))
            if "sum" in name:  # and may add up in float32 one by one
                axis = 1 if name == "row sums" else None
                old = np.sum(np.asarray(value, np.float64), axis=axis)
            np.testing.assert_allclose(run(value)[name], old, rtol=1e-6, err_msg=name)


# ---------------------------------------------------------------------- graphs


def alike(function: Any, *args: Any) -> None:
    """The results of the passes, which are called, and those of XLA."""
    run = jax.jit(lambda *args: in_passes(function, *args))
    assert CALL.search(text_of(run, *args))
    pairs = zip(
        jax.tree.leaves(run(*args)),
        jax.tree.leaves(jax.jit(function)(*args)),
        strict=True,
    )
    for new, old in pairs:
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        np.testing.assert_allclose(new, old, rtol=1e-6)


def test_barriers_over_several_shapes():
    x, y = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.arange(5.0)

    def two_shapes(x: jax.Array, y: jax.Array) -> Any:
        a, b = jax.lax.optimization_barrier((x * 2, y * 3))
        return a + 1, b + 1

    def half_in_a_pass(x: jax.Array, y: jax.Array) -> Any:
        a, b = jax.lax.optimization_barrier((x * 2, y * 3))
        c = jnp.concatenate([jax.lax.cumsum(a).reshape(-1), b])
        return a, jax.lax.cumsum(c)

    alike(two_shapes, x, y)
    alike(half_in_a_pass, x, y)


def test_integers_are_true_but_for_0():
    """Whatever their lowest byte is; written, and reduced."""
    x = jnp.asarray([1, 2, 256, -1, 512, 0, 1 << 31 - 1], jnp.int32)

    def function(x: jax.Array) -> list[jax.Array]:
        return [x.astype(bool), jnp.all(x[:5].astype(bool)), jnp.any(x.astype(bool))]

    step = jax.jit(lambda x: in_passes(function, x))
    assert CALL.search(text_of(step, x))
    for a, b in zip(step(x), function(x), strict=True):
        found = np.asarray(a).view(np.uint8)
        np.testing.assert_array_equal(found, np.asarray(b).view(np.uint8))


def test_integers_wrap_around_between_operations():
    low = jnp.array([-128, -127, 5, 127], jnp.int8)
    alike(lambda x: jnp.abs(x).astype(jnp.float32), low)
    high = jnp.array([2**31 + 7, 3], jnp.uint32)
    far = jnp.array([3, 40], jnp.uint32)
    alike(jax.lax.shift_right_arithmetic, high, far)


# --------------------------------------------------------------------------- windows


def split_into(x: jax.Array, *shapes: tuple[int, ...]) -> list[jax.Array]:
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = jax.lax.split(x, sizes)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def joined(*parts: jax.Array) -> jax.Array:
    return jax.lax.concatenate([part.reshape(-1) for part in parts], 0)


def in_place(function: Any, x: jax.Array, *others: jax.Array) -> str:
    """Checks a result in the memory of `x`; returns the program."""
    run = jax.jit(
        lambda x, *others: in_passes(function, x, *others, results=[0]),
        donate_argnums=0,
    )
    text = text_of(run, x, *others)
    wanted = jax.jit(function)(x, *others)
    found = run(jnp.array(x, copy=True), *others)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    return text


FLAT = jnp.linspace(-2.0, 2.0, 40)
OTHER = jnp.linspace(1.0, 3.0, 12).reshape(3, 4)


def _each(x: jax.Array, y: jax.Array) -> jax.Array:
    a, b, c = split_into(x, (3, 4), (16,), (2, 2, 3))
    return joined(a * y, b + 1.0, c * c)


def _swapped(x: jax.Array, y: jax.Array) -> jax.Array:
    """What is read is written to by another part of the same pass."""
    a, b, c = split_into(x, (12,), (12,), (4, 4))
    return joined(b + 1.0, a * 2.0, c - y[0, 0])


def _shifted(x: jax.Array, y: jax.Array) -> jax.Array:
    """Windows that overlap those that are written."""
    return joined(x[5:17] * y.reshape(-1), x[0:16] + 1.0, x[20:32] * 3.0)


def _some_left(x: jax.Array, y: jax.Array) -> jax.Array:
    """One part stays, one is moved, one is a sum and no element."""
    a, b, c, d = split_into(x, (3, 4), (12,), (12,), (2, 2))
    return joined(a * y, b, d * 2.0, jnp.stack([jnp.sum(c)] * 12))


def _twice(x: jax.Array, y: jax.Array) -> jax.Array:
    a, b = split_into(x, (12,), (28,))
    new = a * y.reshape(-1)
    return joined(new, b[12:], new + 1.0, new[:0])


def _waits(x: jax.Array, y: jax.Array) -> jax.Array:
    """The second part needs the sum of the first, as it is then and as it was."""
    a, b = split_into(x, (3, 4), (28,))
    new = a * y
    return joined(new, b * jnp.sum(new) + jnp.sum(a))


IN_PLACE = {
    "each by itself": _each,
    "swapped": _swapped,
    "shifted": _shifted,
    "some left": _some_left,
    "twice": _twice,
    "waits": _waits,
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_parts_of_an_array_are_read_and_written_where_they_are(name):
    text = in_place(IN_PLACE[name], FLAT, OTHER)
    assert CALL.search(text)
    if name == "each by itself":
        assert not re.search(r"= f32\[40\]\S* (copy|fusion|concatenate)\(", text)


def test_slices_and_shapes_in_memory_are_read_and_others_are_not():
    x = jnp.arange(24.0).reshape(2, 3, 4)

    def function(x, y):
        return {
            "leading": x[1] * y,
            "row": x[1, 2:3] + y[0],
            "reshaped": x.reshape(6, 4) * 2.0,
            "squeezed": jnp.squeeze(x[0:1], 0) - y,
            "columns": x[:, :, 1:3] * 2.0,
            "every other": x.reshape(-1)[::2] + 1.0,
            "part of a part": x[1].reshape(-1)[4:10] * 2.0,
            "itself": x.reshape(24)[3:9],
        }

    alike(function, x, OTHER)
    alike(lambda x: (joined(x[0] * 2.0, x[1]), x[0] * 2.0), x)


def test_parts_of_several_dtypes_and_without_an_owner():
    halves = jnp.linspace(-1, 1, 24).astype(jnp.bfloat16)
    counts = jnp.arange(24)

    def function(x, h, n):
        a, b = split_into(h, (12,), (3, 4))
        c, d = split_into(n, (12,), (3, 4))
        wide = a.astype(jnp.float32) * x.reshape(-1)[:12]
        both = joined(wide, b.astype(jnp.float32)), joined(c + 1, d - 1)
        return *both, joined(b + b, a)

    alike(function, FLAT, halves, counts)


def test_what_another_leaf_of_the_call_reads_is_not_written_over():
    """A part of an argument, or all of it in another shape: one program, one call."""
    x, y = jnp.linspace(-2.0, 2.0, 40), jnp.linspace(1.0, 3.0, 40).reshape(8, 5)

    def part(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        return [x + 1.0, y + 1.0, x[5:17] + 1.0]

    def before(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        return [x + 1.0, y + 1.0, *part(x, y)[2:]][::-1]

    def shaped(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        return [x + y.reshape(40), y + x.reshape(8, 5)]

    for function, results in (
        (part, [0, 1, None]),
        (before, [None, 1, 0]),
        (shaped, [0, 1]),
    ):
        run = jax.jit(
            lambda x, y, function=function, results=results: in_passes(
                function, x, y, results=results
            ),
            donate_argnums=(0, 1),
        )
        found, wanted = run(*copies((x, y))), function(x, y)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_calls_back_is_called_in_order():
    seen: list[float] = []

    def function(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda n: seen.append(float(n)), jnp.sum(x), ordered=True)
        jax.debug.callback(lambda n: seen.append(float(n)), x[0], ordered=True)
        return x * 2

    alike(function, jnp.arange(1.0, 5.0))
    jax.effects_barrier()
    assert seen == [10.0, 1.0] * 2
