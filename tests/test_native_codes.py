"""The compiled passes: 8-bit moments, and how roots and products are written."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.native import in_passes
from tests.helpers import some
from tests.helpers_native import (
    CALL,
    CODECS,
    MARKS,
    adamw,
    assert_alike,
    copies,
    programs,
    steps_of,
    text_of,
)
from tests.helpers_native import cache as cache
from tests.row import LR

pytestmark = MARKS


def rounds_twice(dtype: Any) -> bool:
    """Whether XLA rounds to 16 bits before it rounds to 8, as older ones do."""
    x = jnp.float32(1.125 + 2**-14)
    return (
        dtype == jnp.float8_e5m2 and float(jax.jit(lambda x: x.astype(dtype))(x)) < 1.2
    )


@pytest.mark.parametrize("codec", some(CODECS, "int8", "int4", "e4m3", "bfloat16"))
def test_codes_are_read_and_written_in_passes(codec):
    """Scales are exact: two passes, one that finds them and one that uses them.

    In matrices of which several threads do a part each; of 4 bits, rows of odd lengths
    begin within a byte.
    """
    tx = adamw(mu_dtype=CODECS[codec](), nu_dtype=CODECS[codec]())
    xla, native = steps_of(tx)
    rng = np.random.default_rng(0)
    shapes = {"matrix": (90, 530), "layers": (3, 140, 33), "threads": (301, 257)}
    params = {
        name: jnp.asarray(rng.standard_normal(shape) * 1e-3, jnp.float32)
        for name, shape in shapes.items()
    }
    state = tx.init(params)
    text = text_of(native, params, state, params)
    assert CALL.search(text)
    assert not re.search(r"= \w+\[(90,530|3,140,33|301,257)\]\S* fusion\(", text)
    for _ in range(4):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params
        )
        wanted = xla(*copies((params, state)), grads)
        found = native(*copies((params, state)), grads)
        assert_alike(found[0], wanted[0], params, 1e-6)
        for old, new in zip(
            jax.tree.leaves(wanted[1]), jax.tree.leaves(found[1]), strict=True
        ):
            assert (old.dtype, old.shape) == (new.dtype, new.shape)
            if old.dtype.itemsize < 4:
                # A last bit decides which of two codes is the nearer one: rarely.
                off = np.asarray(old, np.float32) - np.asarray(new, np.float32)
                assert np.mean(off != 0) < (5e-3 if rounds_twice(old.dtype) else 2e-4)
                if "int" in old.dtype.name:
                    assert np.max(np.abs(off)) <= 1
                else:  # one step of a float
                    size = np.maximum(np.abs(np.asarray(old, np.float32)), 1e-2)
                    assert np.max(np.abs(off) / size) <= 0.25
            else:
                np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-12)
        params, state = wanted


@pytest.mark.parametrize("codec", some(CODECS, "int4"))
def test_codes_of_leaves_without_rows_or_with_many_axes(codec):
    """A number, a vector, nothing, and one scale for what is no matrix: by XLA."""
    tx = adamw(mu_dtype=CODECS[codec](), nu_dtype=CODECS[codec]())
    xla, native = steps_of(tx)
    shapes = [(), (1,), (300,), (0, 3), (4, 1), (1, 5), (20, 16, 2, 3)]
    params = {str(shape): jnp.full(shape, 1e-3) for shape in shapes}
    grads = {
        name: jnp.arange(1.0, 1 + p.size).reshape(p.shape) for name, p in params.items()
    }
    carry = params, tx.init(params)
    for _ in range(2):
        wanted, found = xla(*copies(carry), grads), native(*copies(carry), grads)
        assert_alike(found[0], wanted[0], carry[0], 1e-6)
        carry = wanted


def test_leaves_of_codes_are_two_programs_one_after_the_other(monkeypatch):
    """Of any shape; a leaf's scales are found, it is written, then the next one."""
    texts = programs(monkeypatch)
    codec = adamx.codecs.int8()
    _, native = steps_of(adamx.adamw(1e-3, mu_dtype=codec, nu_dtype=codec))
    shapes = [(256, 512), (512, 256), (300, 400)]
    params = [jnp.zeros(shape) for shape in shapes]
    state = adamx.adamw(1e-3, mu_dtype=codec, nu_dtype=codec).init(params)
    text = text_of(native, params, state, params)
    assert sum("static void reduce(" in t for t in set(texts)) == 1
    (written,) = {t for t in texts if "uint8_t* out" in t}
    # Roots of |mu| and of nu; the third one is that of nu too, where it is shared.
    assert [written.count(f) for f in ("= sqrtf(", "= (shares ? ")] == [2, 1]
    calls = re.findall(r"= (\(.*?\)) custom-call\(", text[text.index("ENTRY") :])
    kinds = ["u8[" in result for result in calls]
    assert kinds.count(True) == 3
    assert kinds[-1]
    assert (True, True) not in itertools.pairwise(kinds)


def test_a_root_of_a_multiple_shares_the_root(monkeypatch):
    """sqrt(s x + 0) is sqrt(s) sqrt(x) where sqrt(x) is there; else it is as it was."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 9, 1000), jnp.float32)
    s = jnp.float32(1.7)

    def several(x: jax.Array, s: jax.Array) -> list[jax.Array]:
        return [jnp.sqrt(x * s + 0.0), jnp.sqrt(x), jnp.sqrt(s * x), jnp.sqrt(x + s)]

    texts = programs(monkeypatch)
    found = jax.jit(lambda x, s: in_passes(several, x, s))(x, s)
    (text,) = texts
    assert [text.count(f) for f in ("= sqrtf(", "= (shares ? ")] == [2, 2]
    for a, b in zip(found, several(x, s), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)


@pytest.mark.parametrize("s", [-4.0, 0.0, 4.0, 1e20, np.inf, np.nan, "number"])
def test_a_shared_root_is_there_for_every_factor(s, monkeypatch):
    """Of a negative s and x too, of 0, and of what overflows."""
    x = jnp.array([-4.0, -0.0, 0.0, 1.0, 1e-20, 1e30, 3e38, np.inf, np.nan] * 5)

    def both(x: jax.Array, s: Any) -> list[jax.Array]:
        return [jnp.sqrt(s * x), jnp.sqrt(x)]

    if s == "number":

        def function(x: jax.Array, s: Any) -> list[jax.Array]:
            return [*both(x, -4.0), *both(x + s, 4.0)]
    else:
        function = both
    texts = programs(monkeypatch)
    s = jnp.float32(0.0 if s == "number" else s)
    found = jax.jit(lambda x, s: in_passes(function, x, s))(x, s)
    assert any("shared_root(t" in text for text in texts)
    for a, b in zip(found, jax.jit(function)(x, s), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)
        np.testing.assert_array_equal(np.signbit(a)[a == 0], np.signbit(b)[b == 0])


@pytest.mark.parametrize("eps", [0.0, 1e-45, 1e-8, "number"])
def test_a_root_and_what_is_added_to_it_is_not_asked_for_zero(eps, monkeypatch):
    """Where what is added is known, and no number that is read as 0."""
    x = jnp.array([0.0, -0.0, 1e-45, 1.0, 4.0, -1.0, np.inf, np.nan] * 5)

    def ratio(x: jax.Array, eps: Any) -> jax.Array:
        root = jnp.sqrt(x) + eps
        return jnp.where(root == 0, 7.0, x / jnp.where(root == 0, 1.0, root))

    texts = programs(monkeypatch)
    held = [jnp.float32(1e-8)] if eps == "number" else []
    function = ratio if held else functools.partial(ratio, eps=np.float32(eps))
    found = jax.jit(lambda x, *e: in_passes(function, x, *e))(x, *held)
    assert bool(re.search(r"int32_t t\d+ = 0;", texts[0])) == (eps == 1e-8)
    np.testing.assert_array_equal(found, jax.jit(function)(x, *held))


def test_what_rounds_a_product_for_xla_is_left_out(monkeypatch):
    """But not where NaN would be another number."""
    x = jnp.array([1.0, -0.0, 3e38, np.inf, np.nan, 0.1] * 5)
    y = jnp.array([0.3, np.nan, 2.0, -np.inf, 0.7, np.nan] * 5)

    def sums(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        beside = jnp.where(jnp.isnan(x), x, y * 0.1)
        own = jnp.where(jnp.isnan(y), y, y * 0.3)
        other = jnp.where(jnp.isnan(y), y, x * 0.7)
        return [x + beside, x - own, x - other]

    texts = programs(monkeypatch)
    found = jax.jit(lambda x, y: in_passes(sums, x, y))(x, y)
    for a, b in zip(found, sums(x, y), strict=True):
        np.testing.assert_array_equal(a, b)
    used = re.findall(r"= \((\w+) [-+] (\w+)\);", texts[0])
    kept = re.findall(r"const float (\w+) = \(t\d+ \? ", texts[0])
    assert sum(name in pair for name in kept for pair in used) == 1


def test_the_smaller_and_the_larger_one_of_a_number():
    """The second one where either is NaN, of both signs of 0, and in both dtypes."""
    x = jnp.array([0.0, -0.0, 0.5, -0.5, 2.0, np.inf, -np.inf, np.nan] * 3)

    def both(x: jax.Array) -> list[jax.Array]:
        low = jnp.where(x < 0.5, x, 0.5)
        return [low, jnp.where(x > 0, x, 0.0), jnp.where(low > -0.0, low, -0.0)]

    for numbers in (x, x.astype(jnp.bfloat16)):
        found = jax.jit(lambda x: in_passes(both, x))(numbers)
        for a, b in zip(found, jax.jit(both)(numbers), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


@pytest.mark.parametrize("codec", some(["int8", "int4", "e4m3"], "int8"))
def test_squares_that_overflow_in_codes_are_those_of_xla(codec):
    """nu is at most 2^126 in codes, and infinite again over its bias correction."""
    codec = CODECS[codec]()
    tx = adamx.adamw(LR, mu_dtype=codec, nu_dtype=codec)
    xla, native = steps_of(tx)
    carry = {"p": jnp.zeros((20, 33))}, tx.init({"p": jnp.zeros((20, 33))})
    grads = {"p": jnp.ones((20, 33)).at[3, 4].set(-1e38)}
    for _ in range(3):
        wanted, found = xla(*copies(carry), grads), native(*copies(carry), grads)
        assert np.max(np.abs(wanted[0]["p"])) < 1
        assert_alike(found[0], wanted[0], carry[0], 1e-6)
        carry = wanted


@pytest.mark.parametrize("codec", some(["int8", "int4", "bfloat16"], "int4"))
def test_codes_where_xla_runs_them(codec):
    """In a batch, on several devices, on other platforms."""
    tx = adamw(mu_dtype=CODECS[codec](), nu_dtype=CODECS[codec]())
    xla, native = (adamx.fused(tx, kernel=k).step for k in ("xla", "native"))
    p = jnp.linspace(-1e-3, 1e-3, 4 * 8 * 40, dtype=jnp.float32).reshape(4, 8, 40)
    state = jax.vmap(tx.init)(p)
    found, wanted = (jax.jit(jax.vmap(f))(p * 9, state, p)[0] for f in (native, xla))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * LR)
    one = (p[0] * 9, tx.init(p[0]), p[0])
    jax.jit(native).trace(*one).lower(lowering_platforms=("cuda",))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    given = (jax.device_put(one[0], rows), one[1], jax.device_put(one[2], rows))
    found, wanted = jax.jit(native)(*given)[0], jax.jit(xla)(*one)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * LR)


def test_codes_have_no_derivative_and_say_so():
    codec = adamx.codecs.bfloat16_stochastic()
    made = adamx.fused(adamw(mu_dtype=codec, nu_dtype=codec), kernel="native")

    def loss(p: jax.Array) -> jax.Array:
        return jnp.sum(made.step(p, made.init(p), p)[0])

    with pytest.raises(NotImplementedError, match=r"differentiate .* kernel='xla'"):
        jax.jit(jax.grad(loss))(jnp.ones(9))
