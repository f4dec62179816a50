"""Codecs: codes and scales against float64, error, bytes, random bits."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import codecs, moments
from adamx.moments import _codes, _layout
from tests import reference_codecs as reference
from tests.compiling import AS_USERS
from tests.helpers import IS_OLD_XLA, some
from tests.helpers_codecs import CODECS, LAYOUTS, make, state_bytes, stored

# In (12, 40) a scale by column would be 1 number for 12 elements: too many for rank1.
SHAPES = [(), (1,), (600,), (7, 1), (12, 40), (33, 40), (2, 2, 5, 6)]
NEAREST = [label for label in CODECS if "stochastic" not in label]


def numbers(shape, seed=0, is_signed=True):
    """Numbers over ten powers of ten, some of them 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-10, 0, shape)
    x = np.where(rng.random(shape) < 0.1, 0.0, x).astype(np.float32)
    return x if is_signed else np.square(x)


def present(scales):
    """The scales without a second one that is one number: the first one's largest."""
    first, *more = map(np.asarray, scales)
    for s in more:
        if s.size == 1:
            np.testing.assert_array_equal(s.ravel()[0], np.max(first, initial=0))
    return [first, *(s for s in more if s.size > 1)]


# -------------------------------------------------------------- against the reference


@pytest.mark.parametrize(
    ("layout", "block"),
    some(
        itertools.product(LAYOUTS, [None, 5]),
        *[(layout, None) for layout in LAYOUTS],
        ("rank1", 5),
    ),
)
def test_scales_are_the_largest_of_their_groups(layout, block):
    codec = make("int8", layout=layout, block=block)
    for shape in SHAPES:
        x = numbers(shape)
        got = present(stored(x, codec, True).scales)
        want = reference.scales_of(x, layout, block)
        assert [s.shape for s in got] == [s.shape for s in want]
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w.astype(np.float32))


def test_columns_of_4_bit_means_have_a_scale_for_64_rows_or_more():
    heights = {63: [63], 64: [64], 127: [127], 128: [64, 64], 200: [67, 67, 66]}
    for height, sizes in heights.items():
        x = numbers((height, 96))
        held = stored(x, make("int4"), True)
        assert [s.shape for s in held.scales] == [(height, 1), (len(sizes), 96)]
        parts = np.split(np.abs(x), np.cumsum(sizes)[:-1])
        want = np.stack([part.max(0) for part in parts])
        np.testing.assert_array_equal(held.scales[1], want)
        # Asked for, blocks are as asked; squares have one scale for a column.
        (_, by_column) = stored(x, make("int4", block=height), True).scales
        assert by_column.shape == (1, 96)
        assert stored(x, make("int4"), False).scales[1].shape == (1, 96)
        (by_column,) = stored(x, make("int4", layout="column"), True).scales
        np.testing.assert_array_equal(by_column, want)
    for height in (4224, 50257):  # no block is empty
        state = jax.eval_shape(
            lambda n=height: moments.zeros(jnp.zeros((n, 2)), make("int4"))
        )
        count = state.scales[1].shape[0]
        assert (count - 1) * -(-height // count) < height


@pytest.mark.parametrize("shape", [(21,), (64,), (300,), (21, 3), (3, 21), (2, 19, 4)])
def test_the_largest_is_found_with_nan_before_and_behind_it(shape):
    """Each element in turn is the only number; what is left of a group of NaN is 0."""
    size = int(np.prod(shape))
    x = np.full((size, size), np.nan, np.float32)
    np.fill_diagonal(x, 3.0)
    for groups in {reference.group_counts(shape, name)[0] for name in LAYOUTS}:
        find = jax.jit(jax.vmap(lambda x, groups=groups: _layout.largest(x, groups)))
        got = np.asarray(find(x.reshape(size, *shape)))
        counts = np.sum(got.reshape(size, -1) == 3, axis=1)
        np.testing.assert_array_equal(counts, 1)
        np.testing.assert_array_equal(np.sum(got.reshape(size, -1), axis=1), 3)


def test_unknown_layouts_and_codes_raise():
    for shape in ((), (3,), (4, 5)):
        with pytest.raises(ValueError, match=r"`layout` must be .* 'column'.* 'rows'"):
            _layout.scale_shapes(shape, "rows", None)
    with pytest.raises(ValueError, match=r"codes with scales .* got bfloat16"):
        _codes._power(jnp.bfloat16)


@pytest.mark.parametrize(
    ("label", "is_signed"),
    some(
        itertools.product(NEAREST, [True, False]),
        *[("int8", True), ("int8", False), ("int4", True), ("e4m3", False)],
    ),
)
def test_codes_are_the_nearest(label, is_signed):
    for layout, shape in (("rank1", (33, 40)), ("block", (600,)), ("row", (3, 20, 24))):
        x = numbers(shape, 1, is_signed)
        held = stored(x, make(label, layout=layout), is_signed)
        scale = reference.by_element(reference.scales_of(x, layout), shape)
        got_numbers = np.asarray(codecs.decode(held), np.float64)
        if label in ("int8", "int4"):
            code = reference.INTEGERS[label, is_signed]
            want = reference.integer_codes(x, scale, code)
            k = reference.real_code(x, scale, code)
            decided = np.abs(k % 1 - 0.5) > 1e-4  # float32 may round a tie otherwise
            read = reference.decoded(held.codes, scale, code)
        else:
            name = held.codes.dtype.name
            # XLA of jax 0.6 rounds to float16 first.
            room = 2.0**-11 if IS_OLD_XLA else 3e-7
            want = reference.float_codes(x, scale, name, not is_signed)
            near = [
                reference.float_codes(x * (1 + e), scale, name, not is_signed)
                for e in (room, -room)
            ]
            decided = near[0] == near[1]
            read = np.asarray(held.codes, np.float64) / reference.LARGEST[name] * scale
        assert decided.mean() > 0.98
        got = np.asarray(held.codes, np.float64)
        np.testing.assert_array_equal(got[decided], want[decided])
        assert np.unique(want).size > 10
        np.testing.assert_allclose(got_numbers, read, rtol=1e-6, atol=1e-37)


def test_a_few_steps_of_an_average_equal_the_reference():
    """m <- decoded(encoded(0.9 m + g)), in float64, beside the codec in float32."""
    code = reference.INTEGERS["int8", True]
    tx = adamx.scale_by_momentum(0.9, accumulator_dtype=make("int8"))
    state, m = tx.init(jnp.zeros((32, 24))), np.zeros((32, 24))
    for step in range(4):
        g = numbers((32, 24), step)
        _, state = jax.jit(tx.update)(g, state)
        m = 0.9 * m + g
        scale = reference.by_element(reference.scales_of(m, "rank1"), m.shape)
        m = reference.decoded(reference.integer_codes(m, scale, code), scale, code)
        got = codecs.decode(state.trace)
        # Where float32 decides a tie otherwise, a step of k apart: few.
        unlike = ~np.isclose(got, m, rtol=1e-5, atol=1e-12)
        assert unlike.mean() <= 0.005


# ----------------------------------------------------------------- what was promised


GPT2 = {
    "wte": (50257, 768),
    "wpe": (1024, 768),
    **{
        f"h{i}": {
            "qkv": (768, 2304), "qkv_bias": (2304,), "proj": (768, 768), "bias": (768,),
            "up": (768, 3072), "up_bias": (3072,), "down": (3072, 768),
            "down_bias": (768,), "norms": (4, 768),
        }
        for i in range(12)
    },
}  # fmt: skip


@pytest.mark.parametrize(("label", "limit"), [("int8", 2.1), ("int4", 1.1)])
def test_bytes_of_state_per_parameter(label, limit):
    function = CODECS[label][0]
    tx = adamx.adamw(1e-3, mu_dtype=function(), nu_dtype=function())
    for shapes in (GPT2, (256, 512)):
        params = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        count = sum(p.size for p in jax.tree.leaves(params))
        got = state_bytes(jax.eval_shape(tx.init, params)) / count
        assert limit - 0.1 < got <= limit
    state = tx.init(jnp.zeros((256, 512)))
    assert state_bytes(state) / (256 * 512) <= limit


def _mean_errors(codecs_by_name, steps, rate=1e-3, shape=(256, 512)):
    """Mean |p - p32| after so many steps, by name, for all codecs in one program."""
    rng = np.random.default_rng(0)
    column = jnp.asarray(10 ** rng.uniform(-5, 0, shape[1]), jnp.float32)[None]
    start = jnp.asarray(rng.standard_normal(shape) * 0.02, jnp.float32)
    plain = adamx.adamw(rate)
    txs = {
        n: adamx.adamw(rate, mu_dtype=c, nu_dtype=c) for n, c in codecs_by_name.items()
    }
    txs["float32"] = plain

    def body(carry, key):
        g = jax.random.normal(key, shape) * column
        new = {}
        for name, (p, state) in carry.items():
            updates, state = txs[name].update(g, state, p)
            new[name] = p + updates, state
        return new, None

    carry = {name: (start, tx.init(start)) for name, tx in txs.items()}
    run, errors, done = jax.jit(lambda c, k: jax.lax.scan(body, c, k)[0]), [], 0
    keys = jax.random.split(jax.random.PRNGKey(1), steps[-1])
    for count in steps:
        carry = run(carry, keys[done:count])
        done = count
        want = carry["float32"][0]
        errors.append(
            {n: float(jnp.mean(jnp.abs(p - want))) for n, (p, _) in carry.items()}
        )
    return errors


@pytest.mark.parametrize(
    "chosen",
    [
        {"int8": (codecs.int8(), 1e-4), "int4": (codecs.int4(), 1.5e-3)},
        pytest.param(
            {"int4-nearest": (codecs.int4(rounding="nearest"), 1.35e-3)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=", ".join,
)
def test_distance_from_float32_after_50_steps(chosen):
    (got,) = _mean_errors({name: codec for name, (codec, _) in chosen.items()}, [50])
    for name, (_, limit) in chosen.items():
        assert 0 < got[name] <= limit, name


@pytest.mark.slow
def test_distance_from_float32_after_1000_steps():
    chosen = {
        "default": codecs.int8(),
        "columns": codecs.int8("column"),
        "columns, nearest": codecs.int8("column", rounding="nearest"),
    }
    got = _mean_errors(chosen, [50, 1000])
    for name in chosen:
        assert 0 < got[0][name] <= 1e-4
        assert 0 < got[1][name] <= 6e-4


def test_decode_reads_every_encoded_moment_of_a_tree():
    params = {"w": jnp.ones((9, 8)), "none": None}
    tx = adamx.adamw(1e-3, mu_dtype=make("int8"), nu_dtype=make("bfloat16"))
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    got = jax.jit(codecs.decode)((state, {"other": jnp.int8(3)}))
    adam = got[0][0]
    chex.assert_trees_all_equal(adam.mu, jax.jit(codecs.decode)(state[0].mu))
    assert adam.mu["w"].dtype == adam.nu["w"].dtype == jnp.float32
    np.testing.assert_allclose(adam.nu["w"], 1e-3, rtol=0.01)
    assert got[1]["other"].dtype == jnp.int8
    assert int(adam.count) == 1
    assert not any(isinstance(x, codecs.Encoded) for x in adam)


def test_keep_and_the_default_min_size_decide_what_stays_float32():
    """By path, and below 4,096 elements; the updates of what stays are float32's."""
    params = {
        "small": jnp.zeros((63, 65)),  # 4,095
        "large": jnp.zeros((64, 64)),
        "emb": {"table": jnp.zeros((64, 64))},
    }
    for function in (codecs.int8, codecs.int4, codecs.fp8):
        codec = function(keep=lambda path: path.startswith("emb/"))
        held = adamx.scale_by_adam(mu_dtype=codec).init(params).mu
        assert held.codes["small"].dtype == jnp.float32
        assert held.codes["large"].dtype == codec.signed
        assert held.codes["emb"]["table"].dtype == jnp.float32
        assert all(s["emb"]["table"].size == 1 for s in held.scales)
    half = codecs.bfloat16_stochastic(keep=lambda path: path == "small")
    dtypes = {n: c.dtype for n, c in half_codes(params, half).items() if n != "emb"}
    assert dtypes == {"small": jnp.float32, "large": jnp.bfloat16}
    one = {"scalar": jnp.zeros(())}
    assert half_codes(one, codecs.bfloat16_stochastic())["scalar"].dtype == jnp.bfloat16


def test_scales_of_what_stays_float32_are_not_touched():
    """No operation, and no loop, for numbers that nobody reads."""
    params = {"encoded": jnp.zeros((256, 256)), "last": jnp.zeros((4, 4))}
    tx = adamx.adamw(1e-3, mu_dtype=codecs.int8(), nu_dtype=codecs.int8())
    state = tx.init(params)
    jaxpr = jax.make_jaxpr(lambda s, g: tx.update(g, s, params)[1])(state, params).jaxpr
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    held = zip(paths, jaxpr.invars, jaxpr.outvars, strict=False)
    untouched = {jax.tree_util.keystr(path) for (path, _), v, w in held if v is w}
    scales = {p for p in untouched if ".scales" in p}
    assert len(scales) == 4
    assert all("'last'" in path for path in scales)


def half_codes(params, codec):
    return adamx.scale_by_adam(nu_dtype=codec).init(params).nu.codes


# ------------------------------------------------------------------------- the bits


STOCHASTIC = [label for label in CODECS if "stochastic" in label] + ["bfloat16"]
# How far a mean that is rounded to the nearest is from 0 for ever, at least.
DYING = {"int8-stochastic": 1e-4, "int4-stochastic": 1e-4, "e4m3-stochastic": 1e-6}


@pytest.mark.parametrize("label", some(STOCHASTIC, "int8-stochastic", "bfloat16"))
def test_random_bits_are_reproducible_and_never_the_same(label):
    params = {"a": jnp.zeros((32, 32)), "b": jnp.zeros((32, 32))}
    rng = np.random.default_rng(3)
    one = jnp.asarray(rng.uniform(0.5, 1.0, (32, 32)), jnp.float32)
    gradients = {"a": one, "b": one}
    noisy = jax.tree.map(lambda g: 1.5 * g, gradients)

    def run(seed=0):
        codec = make(label, seed=seed)
        tx = adamx.scale_by_adam(b1=0.999, b2=0.999, mu_dtype=codec, nu_dtype=codec)
        update, state = jax.jit(tx.update), tx.init(params)
        for step in range(60):  # then changes are slow
            _, state = update(gradients if step < 59 else noisy, state)
        return state

    first = run()
    chex.assert_trees_all_equal(run(), first)
    assert int(first.mu.step) == 60

    def unlike(x, y):
        return np.mean(np.asarray(x, np.float32) != np.asarray(y, np.float32))

    # Equal leaves, and an equal gradient with another seed, are rounded otherwise.
    assert unlike(first.mu.codes["a"], first.mu.codes["b"]) > 0.1
    assert unlike(first.nu.codes["a"], first.nu.codes["b"]) > 0.1
    assert unlike(first.mu.codes["a"], run(1).mu.codes["a"]) > 0.1
    assert unlike(first.mu.codes["a"], run(2**40).mu.codes["a"]) > 0.1


@pytest.mark.parametrize(
    "label",
    [
        "int8-stochastic",
        pytest.param("bfloat16", marks=pytest.mark.slow),
        pytest.param("e4m3-stochastic", marks=pytest.mark.slow),
    ],
)
def test_moments_and_leaves_draw_apart(label):
    """Two moments of two leaves, all equal: no two are rounded alike."""
    codec = make(label)
    x = jnp.asarray(np.random.default_rng(4).uniform(0.5, 1, (32, 32)), jnp.float32)
    tree = {"a": x, "b": x}
    held = {name: moments.zeros(tree, codec) for name in ("first", "second")}

    def rule(g, first, second):
        return g, g, g

    step = jax.jit(lambda g, held: moments.apply_rule(rule, g, None, signed=held)[1])
    for g in (x, 1.003 * x):  # first to the nearest, then a slow change
        held = step({"a": g, "b": g}, held)
    codes = [np.asarray(c, np.float32) for m in held.values() for c in m.codes.values()]
    for i, one in enumerate(codes):
        for other in codes[:i]:
            assert np.mean(one != other) > 0.05


# Quickly: codes, and none.
@pytest.mark.parametrize("label", some(STOCHASTIC, "int8-stochastic", "bfloat16"))
def test_slow_changes_go_on_in_the_mean(label):
    """Gradients fall to a tenth, but for those that keep the scale: nu follows."""
    is_large = (np.add.outer(np.arange(64), np.arange(64)) % 8) == 0
    codec = make(label)
    txs = {
        "float32": adamx.scale_by_rms(0.999),
        "stochastic": adamx.scale_by_rms(0.999, nu_dtype=codec),
        "nearest": adamx.scale_by_rms(
            0.999, nu_dtype=dataclasses.replace(codec, rounding="nearest")
        ),
    }

    def step(states, i):
        g = jnp.where(is_large | (i < 500), 1.0, 0.1)
        return {n: txs[n].update(g, s)[1] for n, s in states.items()}, None

    states = {n: tx.init(jnp.zeros((64, 64))) for n, tx in txs.items()}
    states = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(2000))[0])(states)
    means = {
        n: float(np.mean(np.asarray(codecs.decode(s.nu))[~is_large]))
        for n, s in states.items()
    }
    assert abs(means["stochastic"] / means["float32"] - 1) < 0.1
    assert means["nearest"] > 1.5 * means["float32"]


@pytest.mark.parametrize("label", some(DYING, "int4-stochastic"))
def test_a_mean_that_nothing_is_added_to_dies_away(label):
    """Ten gradients, then zeros: to the nearest, mu stays and p moves for ever."""
    is_brief = np.zeros((64, 64), bool)
    is_brief[::8, ::16] = True
    size = np.where(np.arange(64)[:, None] % 16 == 0, 0.5, -0.5)
    codec = make(label)
    nearest = dataclasses.replace(codec, rounding="nearest")
    txs = {
        n: adamx.scale_by_adam(mu_dtype=c)
        for n, c in {"stochastic": codec, "nearest": nearest}.items()
    }

    def step(states, i):
        g = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (64, 64))
        g = jnp.where(is_brief, jnp.where(i < 10, size, 0.0), g)
        return {n: txs[n].update(g, s)[1] for n, s in states.items()}, None

    states = {n: tx.init(jnp.zeros((64, 64))) for n, tx in txs.items()}
    states = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(300))[0])(states)
    left = {
        n: np.asarray(codecs.decode(s.mu))[is_brief].reshape(8, 4)
        for n, s in states.items()
    }
    assert np.all(left["stochastic"] == 0)
    assert left["nearest"][::2].mean() > DYING[label]
    assert left["nearest"][1::2].mean() < -DYING[label]


def test_stochastic_bfloat16_follows_an_average_where_bfloat16_stalls():
    """10,000 constant gradients at b2 = 0.999: nu is 1 - 0.999^10,000 = 0.99995."""
    g = jnp.ones(64)
    with pytest.warns(UserWarning, match="cannot follow"):
        plain = adamx.scale_by_rms(0.999, nu_dtype=jnp.bfloat16)
    ours = adamx.scale_by_rms(0.999, nu_dtype=make("bfloat16"))
    got = {}
    for name, tx in (("plain", plain), ("ours", ours)):

        def step(state, _, tx=tx):
            return tx.update(g, state)[1], None

        state, _ = jax.jit(lambda s, f=step: jax.lax.scan(f, s, None, length=10_000))(
            tx.init(g)
        )
        got[name] = np.asarray(codecs.decode(state.nu), np.float64)
    assert np.all(got["plain"] < 0.75)
    assert abs(got["ours"].mean() - 1) < 0.02
    assert np.all(np.abs(got["ours"] - 1) < 0.15)


# --------------------------------------------------------------------- memory, traces


@pytest.mark.skipif(IS_OLD_XLA, reason="XLA of jax 0.6 writes them to memory")
@pytest.mark.parametrize("layout", some(["rank1", "column"], "rank1"))
def test_no_float32_copy_of_the_moments_lives_across_leaves(layout):
    params = {str(i): jnp.zeros((256, 512)) for i in range(8)}
    codec = codecs.int8(layout)
    tx = adamx.adamw(1e-3, mu_dtype=codec, nu_dtype=codec)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    state = tx.init(params)
    compiled = donated.lower(params, state, params).compile(AS_USERS)
    size = sum(p.nbytes for p in params.values())
    # The 8-bit codes are a quarter of them each; a copy of a moment would be all. Leaf
    # by leaf: what is in the way of one is gone before the next.
    assert " conditional(" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.45 * size


def test_one_compilation_for_all_steps():
    tx = adamx.adamw(1e-3, mu_dtype=make("int8-stochastic"), nu_dtype=make("int4"))
    step, p = jax.jit(chex.assert_max_traces(tx.update, n=1)), jnp.ones((5, 7))
    state = tx.init(p)
    for _ in range(4):
        _, state = step(p, state, p)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    "dtype",
    some(
        ["int8", "uint8", "int4", "uint4", "float8_e4m3fn", "float8_e5m2"],
        *["int8", "uint4", "float8_e5m2"],
    ),
)
def test_rounding_at_random_is_right_in_the_mean_for_every_old_code(dtype):
    dtype, grid = jnp.dtype(dtype), 4096
    every = jnp.arange(2 ** (8 * dtype.itemsize), dtype=jnp.uint32)
    if dtype.name in ("int4", "uint4"):
        old = (jnp.arange(16) - 8 * (dtype.name == "int4")).astype(dtype)
        old = old[old.astype(jnp.float32) != -8]  # no code
    else:
        old = jax.lax.bitcast_convert_type(every.astype(jnp.uint8), dtype)
        old = old[jnp.isfinite(old.astype(jnp.float32))]
        old = old[old.astype(jnp.float32) != -128]
    one = (jnp.ones((1,)),)
    before = np.asarray(_codes.decode(old, one, jnp.float32), np.float64)
    bits = (jnp.arange(grid, dtype=jnp.uint32) * (2**32 // grid))[:, None]
    bits = bits + jnp.uint32(2**31 // grid)
    levels = np.unique(np.abs(before))

    @functools.partial(jax.jit, static_argnums=1)
    def rounded(x, is_random=True):
        shape = (grid if is_random else 1, old.size)
        x, was = jnp.broadcast_to(x, shape), jnp.broadcast_to(old, shape)
        draws = jnp.broadcast_to(bits, shape) if is_random else None
        codes = _codes.encode(x, (jnp.ones((1, 1)),), was, draws)
        return _codes.decode(codes, (jnp.ones((1, 1)),), jnp.float32)

    for change in (0.0, 0.003, 0.1, 0.3, -0.003, -0.1, -0.3):
        # So much of the way to the next code up, or down, in size.
        at = np.searchsorted(levels, np.abs(before))
        other = levels[np.clip(at + np.sign(change).astype(int), 0, levels.size - 1)]
        size = np.abs(before) + abs(change) * (other - np.abs(before))
        x = np.asarray(np.where(before < 0, -size, size), np.float32)
        got = np.asarray(rounded(x), np.float64)
        gap = np.maximum(np.abs(other - np.abs(before)), 1e-30)
        tolerance = (2 / grid + 1e-4) * gap + 1e-6 * size
        assert np.all(np.abs(got.mean(0) - x) <= tolerance)
        is_old, is_other = np.abs(got) == np.abs(before), np.abs(got) == other
        assert np.all(is_old | is_other | (np.abs(np.abs(got) - other) < 1e-6))
        if "u" in dtype.name or change == 0:
            continue
        # With the other sign than the old code's, the nearest is never the old one:
        # whatever is drawn, it is rounded to the nearest.
        crossed = np.asarray(rounded(-x))[:, before != 0]
        nearest = np.asarray(rounded(-x, False))[:, before != 0]
        np.testing.assert_array_equal(crossed, np.broadcast_to(nearest, crossed.shape))
        gaps = np.maximum(gap, size / levels.size)[before != 0]
        assert np.all(np.abs(nearest[0] + x[before != 0]) <= 0.51 * gaps + 1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4", "float8_e4m3fn", "float8_e5m2"])
def test_zeros_beside_the_smallest_numbers_have_the_code_0(dtype):
    """Also where levels / scale is beyond float32, and 0 times it would be NaN."""
    scale = jnp.exp2(jnp.arange(-128.0, -100.0))[:, None]
    x = scale * jnp.array([1.0, 0.0, -0.0])
    codes = jax.jit(_codes.encode)(x, (scale,), jnp.zeros(x.shape, dtype), None)
    assert not np.any(np.asarray(codes.astype(jnp.float32))[:, 1:])
    read = np.asarray(_codes.decode(codes, (scale,), jnp.float32))[:, 0]
    is_kept = np.asarray(scale)[:, 0] >= 2.0**-110
    np.testing.assert_allclose(read[is_kept], scale[is_kept, 0], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "is_always"), [("uint8", True), ("uint4", False)])
def test_a_square_that_moves_on_is_rounded_at_random_in_8_bits_alone(dtype, is_always):
    """Three codes away from the old one: a mean to keep, or the nearest."""
    grid, levels = 4096, 2.0 ** (8 if dtype == "uint8" else 4)
    k = np.arange(4, levels - 1)
    x = np.float32(((k + 0.3) / levels) ** 2)
    bits = (jnp.arange(grid, dtype=jnp.uint32) * (2**32 // grid))[:, None]
    bits = jnp.broadcast_to(bits + jnp.uint32(2**31 // grid), (grid, k.size))
    old = jnp.asarray(k - 3 - 1).astype(dtype)
    one = (jnp.ones((1, 1)),)
    codes = _codes.encode(
        jnp.broadcast_to(x, bits.shape), one, jnp.broadcast_to(old, bits.shape), bits
    )
    read = np.asarray(_codes.decode(codes, one, jnp.float32), np.float64)
    below, above = (k / levels) ** 2, ((k + 1) / levels) ** 2
    if is_always:
        step = above - below
        assert np.all(np.abs(read.mean(0) - x) < 2 / grid * step + 1e-6 * x)
        assert np.all(np.ptp(read, axis=0) > 0.99 * step)
    else:
        np.testing.assert_allclose(read, np.broadcast_to(below, read.shape), rtol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    some(["int8", "int4", "float8_e4m3fn", "float8_e5m2"], "int8", "float8_e5m2"),
)
def test_a_mean_leaves_0_alike_in_both_directions(dtype):
    dtype, grid, one = jnp.dtype(dtype), 4096, (jnp.ones((1, 1)),)
    if jnp.issubdtype(dtype, jnp.integer):
        first = jnp.ones((1, 1), dtype)
    else:
        first = jnp.full((1, 1), jnp.finfo(dtype).smallest_subnormal, dtype)
    step = float(_codes.decode(first, one, jnp.float32)[0, 0])
    x = step * jnp.array([0.3, -0.3, 0.9, -0.9])
    bits = (jnp.arange(grid, dtype=jnp.uint32) * (2**32 // grid))[:, None]
    bits = jnp.broadcast_to(bits + jnp.uint32(2**31 // grid), (grid, 4))
    # To the nearest where that is not 0; at random, with the right mean, where it is.
    for old, want in ((0, [0.3, -0.3, 1, -1]), (1, [0, 0, 0.9, -1])):
        was = jnp.broadcast_to(first if old else jnp.zeros_like(first), bits.shape)
        codes = _codes.encode(jnp.broadcast_to(x, bits.shape), one, was, bits)
        read = np.asarray(_codes.decode(codes, one, jnp.float32), np.float64) / step
        np.testing.assert_allclose(read.mean(0), want, atol=2 / grid + 1e-4)
