"""Codecs over any numbers: the error's bound, NaN and infinities, rare rows."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adamx
from adamx import codecs
from tests import reference_codecs as reference
from tests.helpers import IS_OLD_XLA, some
from tests.helpers_codecs import CODECS, LAYOUTS, make, stored

# What processors read as 0, with some room; and the smallest scale whose smallest code
# is more than that.
TINY = 2.0**-124
LEAST_SCALE = TINY * 2.0**18
SHAPES = [
    (), (1,), (7,), (300,), (0,), (0, 3), (2, 0, 3), (1, 1), (7, 1), (5, 7), (18, 33),
    (2, 3, 5, 6),
]  # fmt: skip
BLOCKS = [None, 1, 4, 1000]


def _fp8_step(share, dtype):
    """A unit in the last place of the float8 number, as a share of the scale."""
    limits = ml_dtypes.finfo(dtype)
    k = share * float(limits.max)
    exponent = np.floor(np.log2(np.maximum(k, float(limits.smallest_normal))))
    return 2.0 ** (exponent - limits.nmant) / float(limits.max)


def _fp8_bound(share, dtype, is_random):
    """Half a unit in the last place, a whole one below the smallest float8 number.

    With rounding at random it is a whole one everywhere.
    """
    step, limits = _fp8_step(share, dtype), ml_dtypes.finfo(dtype)
    smallest = float(limits.smallest_subnormal) / float(limits.max)
    return np.where((share < smallest) | is_random, step, step / 2)


def check(x, held, label, is_signed, layout, block):
    """The promises about an array and what is stored of it."""
    x = np.asarray(x, np.float64)
    scales = reference.scales_of(x, layout, block)
    scale = reference.by_element(scales, x.shape)
    got = np.asarray(codecs.decode(held), np.float64)
    assert held.codes.shape == x.shape
    assert all(s.ndim == x.ndim for s in held.scales)
    assert np.all(np.isfinite(got))
    assert np.all(got * np.sign(x) >= 0) or np.any(np.isnan(x))
    if not is_signed:
        least = LEAST_SCALE * (2.0**14 if held.codes.dtype == "float8_e5m2" else 1)
        assert np.all(got[scale >= least] > 0)
    is_number = np.isfinite(x)
    # NaN is the group's scale; infinity the largest scale, 2^126.
    is_top = ~is_number & (scale >= LEAST_SCALE)
    np.testing.assert_allclose(np.abs(got[is_top]), scale[is_top], rtol=1e-6)
    assert np.all(np.abs(got[~is_number & ~is_top]) <= LEAST_SCALE)
    share = np.abs(x) / np.where(scale > 0, scale, 1)
    found = np.abs(got) / np.where(scale > 0, scale, 1)
    if jnp.issubdtype(held.codes.dtype, jnp.floating):
        dtype = held.codes.dtype
        bound = _fp8_bound(share, dtype, "stochastic" in label) * scale
        error = np.abs(got - x)
        slack = 2e-6 * (scale * share + bound)
        if IS_OLD_XLA:  # rounds to float16 first
            largest = float(ml_dtypes.finfo(dtype).max)
            slack += (share * 2.0**-11 + 2.0**-25 / largest) * scale
    else:
        code = reference.INTEGERS[label.removesuffix("-stochastic"), is_signed]
        k = reference.real_code(x, scale, code)
        bound = np.where(k < code.smallest, 1.0, 0.5)
        if "stochastic" in label:
            bound = np.ones_like(k)
        error = np.abs(code.levels * found ** (1 / code.power) - k)
        slack = 1e-5 * code.levels
    is_kept = is_number & (np.abs(x) >= TINY) & (scale >= LEAST_SCALE)
    assert np.all((error <= bound + slack)[is_kept])
    assert np.all(
        np.abs(got - x)[is_number & ~is_kept & (scale < LEAST_SCALE)] <= LEAST_SCALE
    )


@st.composite
def cases(draw):
    """A codec, a layout and an array of very unlike numbers."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0, 3, 35]))
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-spread, 0, shape)
    x = np.asarray(x * draw(st.sampled_from([1e-30, 1.0, 1e30])))
    specials = [0.0, -0.0, 1e-40, -1e-45, 1e-38, 1e18, -1e18, 1e30, 8e37]
    if draw(st.booleans()):
        specials += [np.nan, np.inf, -np.inf]
    chosen = draw(st.lists(st.sampled_from(specials), max_size=4))
    for value in chosen if x.size else ():
        x[np.unravel_index(rng.integers(x.size), shape)] = value
    return (
        x.astype(np.float32),
        draw(st.sampled_from(sorted(CODECS))),
        draw(st.booleans()),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(BLOCKS)),
    )


EASY = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


def _any_array(case):
    x, label, is_signed, layout, block = case
    x = x if is_signed else np.abs(x)
    codec = make(label, layout=layout, block=block)
    check(x, stored(jnp.asarray(x), codec, is_signed), label, is_signed, layout, block)


@settings(max_examples=40, **EASY)
@given(cases())
def test_any_array_is_within_the_bound(case):
    _any_array(case)


@pytest.mark.slow
@settings(max_examples=3000, **EASY)
@given(cases())
def test_any_array_is_within_the_bound_in_its_long_version(case):
    _any_array(case)


@pytest.mark.parametrize("label", ["e4m3-stochastic", "e5m2-stochastic"])
def test_a_mean_next_to_a_power_of_two_becomes_a_neighbour(label):
    """XLA may compute a mean twice and round it in two ways, below and above the power.

    So it does with these, where it does not optimise (as tests are compiled).
    """
    codec = make(label, layout="tensor")
    rng, n, scale = np.random.default_rng(0), 1 << 14, 0.7
    dtype = codec.signed
    k = rng.uniform(8, float(ml_dtypes.finfo(dtype).max), n) / 2.0 ** rng.integers(
        0, 8, n
    )
    k[0] = ml_dtypes.finfo(dtype).max
    old = jnp.asarray(k, jnp.float32).astype(dtype)
    k = np.asarray(old, np.float64)
    ulps = rng.integers(-3, 4, n) * 2.0**-24
    unit = scale / float(ml_dtypes.finfo(dtype).max)
    want = np.where(np.arange(n), 2.0 ** np.floor(np.log2(k)) * (1 + ulps), k) * unit
    g = ((want - 0.9 * k * unit) / 0.1).astype(np.float32)

    tx = adamx.scale_by_adam(mu_dtype=codec)
    state = tx.init(jnp.zeros(n))
    scales = (jnp.full((1,), scale, jnp.float32),)
    state = state._replace(mu=state.mu._replace(codes=old, scales=scales))
    held = jax.jit(tx.update)(jnp.asarray(g), state)[1].mu
    x = 0.9 * k * unit + 0.1 * g.astype(np.float64)
    share = np.abs(x) / float(held.scales[0][0])
    error = np.abs(np.asarray(codecs.decode(held), np.float64) - x)
    assert np.all(error <= 1.001 * _fp8_step(share, dtype) * float(held.scales[0][0]))


# Of each format one, by nearest or at random.
EACH = ("int8", "int4-stochastic", "e4m3", "e5m2-stochastic")


@pytest.mark.parametrize("label", some(CODECS, *EACH))
def test_what_is_not_a_number_stays_in_its_element(label):
    """Elsewhere the codes are as beside the largest float32 (inf) or 0 (NaN)."""
    x = np.random.default_rng(0).standard_normal((18, 33)).astype(np.float32)
    for layout in ("rank1", "block"):
        for value, instead in ((np.nan, 0.0), (np.inf, 3.4028235e38)):
            for is_signed in (True, False):
                bad, good = (np.array(x if is_signed else x * x) for _ in range(2))
                bad[3, 4], good[3, 4] = value, instead
                codec = make(label, layout=layout)
                got, want = (stored(y, codec, is_signed) for y in (bad, good))
                for g, w in zip(got.scales, want.scales, strict=True):
                    np.testing.assert_array_equal(g, w)
                read, other = (np.array(codecs.decode(m)) for m in (got, want))
                assert np.isfinite(read[3, 4])
                read[3, 4] = other[3, 4]
                np.testing.assert_array_equal(read, other)


@pytest.mark.parametrize(
    "label",
    some([*CODECS, "bfloat16"], "int4-stochastic", "e5m2-stochastic", "bfloat16"),
)
def test_a_tiny_gradient_beside_large_ones_makes_no_large_step(label):
    """In a row and a column of 1 or 1e18; from 3e-18 down its square is 0 in float32.

    A mean that is read as more than it is, over a square that is read as 0, is a step
    of any size.
    """
    codec = make(label)
    tx = adamx.scale_by_adam(mu_dtype=codec, nu_dtype=codec)
    tiny = jnp.array([0.0, 1e-40, 1e-23, 3e-18, 1e-10])
    beside = jnp.array([1.0, 1e18])
    g = jnp.full((5, 2, 24, 32), 1e-3).at[..., 0, :].set(beside[None, :, None])
    g = g.at[..., 0].set(beside[None, :, None]).at[..., 0, 0].set(tiny[:, None])

    def run(g):
        def step(state, i):
            updates, state = tx.update(jnp.where(i % 7 < 3, -g, g), state)
            return state, jnp.max(jnp.abs(updates))

        return jax.lax.scan(step, tx.init(g), jnp.arange(20))[1]

    assert np.max(jax.jit(jax.vmap(jax.vmap(run)))(g)) < 3


# ------------------------------------------------------------------- a hard stream


def _gradients(steps, rare):
    """Zeros, subnormals, outliers of 1e18, and rows that are touched once in `rare`."""
    rng = np.random.default_rng(5)
    g = rng.standard_normal((steps, 24, 32)) * 10.0 ** np.linspace(-12, 0, 32)
    g[..., 3], g[..., 4], g[..., 5] = 1e-40, 0.0, 1e-23
    g[rng.random(g.shape) < 0.05] = 0.0
    outliers = rng.random(g.shape) < 1e-3
    g[outliers] = 1e18 * np.sign(rng.standard_normal(outliers.sum()))
    rows = np.arange(24)
    is_touched = (np.arange(steps)[:, None] + 37 * rows) % rare == 0
    g[(rows < 16) & ~is_touched] = 0.0
    return g.astype(np.float32)


def _survives(label, layout, steps, rare):
    codec = make(label, **({"layout": layout} if layout else {}))
    start, gradients = jnp.ones((24, 32)), _gradients(steps, rare)

    def run(eps):
        tx = adamx.adamw(1e-3, eps=eps, mu_dtype=codec, nu_dtype=codec)

        def body(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (params + updates, state), jnp.max(jnp.abs(updates))

        return jax.lax.scan(body, (start, tx.init(start)), gradients)

    (after, state), sizes = jax.jit(jax.vmap(run))(jnp.array([1e-8, 0.0]))
    assert np.all(np.isfinite(after))
    assert np.all(sizes < 0.01)  # ten times the rate
    moments = state[0].mu, state[0].nu
    for leaf in jax.tree.leaves((moments, [codecs.decode(m) for m in moments])):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
    assert np.all(np.any(np.asarray(after) != 1, axis=(1, 2)))


STREAMS = [
    *((label, layout) for label in CODECS for layout in LAYOUTS),
    ("bfloat16", None),
]
# Every codec once and every layout at least once; and the coarsest code by default.
FEW = [(label, LAYOUTS[i % len(LAYOUTS)]) for i, label in enumerate(CODECS)]
FEW += [("int4", "rank1"), ("bfloat16", None)]
# Of these, quickly, every format, by nearest or at random, and every layout.
FEWEST = [
    (label, layout)
    for label, layout in FEW
    if label in ("bfloat16", "int8-stochastic", *EACH)
]


def test_the_few_streams_have_every_codec_and_layout():
    assert {label for label, _ in FEW} == {*CODECS, "bfloat16"}
    assert {layout for _, layout in FEW} == {*LAYOUTS, None}
    assert {layout for _, layout in FEWEST} == {*LAYOUTS, None}


@pytest.mark.parametrize(("label", "layout"), some(FEW, *FEWEST))
def test_a_hard_stream_of_gradients_gives_no_nan(label, layout):
    _survives(label, layout, 130, 100)


@pytest.mark.slow
@pytest.mark.parametrize(("label", "layout"), STREAMS)
def test_a_hard_stream_of_gradients_gives_no_nan_in_its_long_version(label, layout):
    _survives(label, layout, 3000, 1000)
