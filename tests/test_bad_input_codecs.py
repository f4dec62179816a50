"""Bad input to codecs: see `tests.test_bad_input`."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import codecs
from tests.helpers_codecs import make
from tests.test_bad_input import NAN, _check

CONSTRUCTION = {
    "unknown layout": (
        lambda: codecs.int8("rows"), ValueError, "`layout` 'rank1' 'column' 'rows'"),
    "layout None": (lambda: codecs.int4(None), ValueError, "`layout` NoneType"),
    "layout a number": (
        lambda: codecs.fp8(256), ValueError, "`layout` 'block' int 256 string"),
    "block zero": (
        lambda: codecs.int8(block=0), ValueError, "`block` >= 1 0 None vectors 256s"),
    "block negative": (lambda: codecs.int4(block=-8), ValueError, "`block` >= 1 -8"),
    "block a float": (
        lambda: codecs.int8(block=64.0), TypeError, "`block` int >= 1 float 64.0"),
    "block NaN": (lambda: codecs.fp8(block=NAN), TypeError, "`block` int nan"),
    "block a flag": (lambda: codecs.int8(block=True), TypeError, "`block` int True"),
    "block a string": (lambda: codecs.int8(block="64"), TypeError, "`block` '64'"),
    "block traced": (
        lambda: jax.jit(lambda b: codecs.int8(block=b))(4), TypeError,
        "`block` int construction"),
    "seed negative": (lambda: codecs.int8(seed=-1), ValueError, "`seed` >= 0 -1 0"),
    "seed too large": (
        lambda: codecs.int8(seed=2**64), ValueError, "`seed` 2**64 18446744073709551616 0"),
    "seed a float": (
        lambda: codecs.bfloat16_stochastic(seed=0.5), TypeError, "`seed` int 0.5"),
    "seed a key": (
        lambda: codecs.int4(seed=jax.random.key(0)), TypeError, "`seed` int"),
    "min_size negative": (
        lambda: codecs.int8(min_size=-1), ValueError, "`min_size` >= 0 -1"),
    "min_size a float": (
        lambda: codecs.fp8(min_size=4e3), TypeError, "`min_size` int 4000.0"),
    "min_size None": (
        lambda: codecs.int8(min_size=None), TypeError, "`min_size` int NoneType"),
    "keep a pattern": (
        lambda: codecs.int8(keep="embedding"), TypeError,
        "`keep` function path 'embedding' lambda"),
    "keep a flag": (lambda: codecs.fp8(keep=True), TypeError, "`keep` function True"),
    "rounding unknown": (
        lambda: codecs.int8(rounding="up"), ValueError,
        "`rounding` 'nearest' 'stochastic' 'up'"),
    "format unknown": (
        lambda: codecs.fp8(format="e4m3"), ValueError,
        "`format` 'float8_e4m3fn' 'float8_e5m2' 'e4m3'"),
    "format a dtype": (
        lambda: codecs.fp8(format=jnp.float8_e5m2), ValueError,
        "`format` 'float8_e5m2' string"),
    "codec not called": (
        lambda: adamx.adamw(1e-3, mu_dtype=codecs.int8), TypeError,
        "`mu_dtype` codec function int8 adamx.codecs.int8()"),
    "codec not called, nu": (
        lambda: adamx.adamw(1e-3, nu_dtype=codecs.bfloat16_stochastic), TypeError,
        "`nu_dtype` adamx.codecs.bfloat16_stochastic()"),
    "codec not called, trace": (
        lambda: adamx.sgd(1e-3, 0.9, accumulator_dtype=codecs.fp8), TypeError,
        "`accumulator_dtype` adamx.codecs.fp8()"),
    "codec not called, slow mean": (
        lambda: adamx.ademamix(1e-3, mu_slow_dtype=codecs.int4), TypeError,
        "`mu_slow_dtype` adamx.codecs.int4()"),
    "the name of a codec": (
        lambda: adamx.adamw(1e-3, mu_dtype="int8"), ValueError,
        "`mu_dtype` int8 codec adamx.codecs.int8()"),
    "the name of another codec": (
        lambda: adamx.adamw(1e-3, nu_dtype="fp8"), TypeError,
        "`nu_dtype` 'fp8' codec adamx.codecs.fp8()"),
    "the name of a third codec": (
        lambda: adamx.adamw(1e-3, mu_dtype="int4"), ValueError,
        "`mu_dtype` int4 codec adamx.codecs.int4()"),
    "the name of a fourth codec": (
        lambda: adamx.adamw(1e-3, mu_dtype="bfloat16_stochastic"), TypeError,
        "`mu_dtype` codec adamx.codecs.bfloat16_stochastic()"),
    "a function that makes no codec": (
        lambda: adamx.adamw(1e-3, mu_dtype=codecs.decode), TypeError,
        "`mu_dtype` floating decode codec adamx.codecs.int8()"),
    "a float8 dtype": (
        lambda: adamx.adamw(1e-3, mu_dtype=jnp.float8_e4m3fn), ValueError,
        "`mu_dtype` 16 float8_e4m3fn adamx.codecs.fp8(format='float8_e4m3fn')"),
    "a float8 dtype, nu": (
        lambda: adamx.adamw(1e-3, nu_dtype="float8_e5m2"), ValueError,
        "`nu_dtype` 16 float8_e5m2 adamx.codecs.fp8(format='float8_e5m2')"),
    "another float8 dtype": (
        lambda: adamx.sgd(1e-3, 0.9, accumulator_dtype=jnp.float8_e4m3b11fnuz),
        ValueError, "`accumulator_dtype` 16 float8_e4m3b11fnuz adamx.codecs.fp8()"),
    "a float8 dtype, slow mean": (
        lambda: adamx.ademamix(1e-3, mu_slow_dtype=jnp.float8_e5m2), ValueError,
        "`mu_slow_dtype` 16 float8_e5m2 adamx.codecs.fp8("),
    "a float8 dtype, Schedule-Free's z": (
        lambda: adamx.schedule_free_adamw(1e-3, state_dtype=jnp.float8_e5m2),
        ValueError, "`state_dtype` 16 float8_e5m2 jnp.float32"),
    "the integer dtype": (
        lambda: adamx.adamw(1e-3, nu_dtype=jnp.int8), ValueError,
        "`nu_dtype` int8 codec adamx.codecs.int8()"),
    "the 4-bit dtype": (
        lambda: adamx.adamw(1e-3, mu_dtype=jnp.int4), ValueError,
        "`mu_dtype` int4 codec adamx.codecs.int4()"),
    "another integer dtype": (
        lambda: adamx.adamw(1e-3, mu_dtype=jnp.int32), ValueError,
        "`mu_dtype` int32 jnp.bfloat16"),
    "an unknown codec": (
        lambda: adamx.adamw(1e-3, mu_dtype="int3"), TypeError,
        "`mu_dtype` 'int3' codec"),
    "a codec for Adam-mini's nu": (
        lambda: adamx.adam_mini(1e-3, nu_dtype=codecs.int8()), TypeError,
        "`nu_dtype` dtype None int8 mu_dtype"),
    "a codec for Schedule-Free's z": (
        lambda: adamx.schedule_free_adamw(1e-3, state_dtype=codecs.int8()), TypeError,
        "`state_dtype` dtype codec int8 nu_dtype"),
}  # fmt: skip


@pytest.mark.parametrize("label", CONSTRUCTION)
def test_construction(label):
    _check(*CONSTRUCTION[label])


def test_a_function_that_makes_no_codec_is_not_to_be_called():
    with pytest.raises(TypeError) as caught:
        adamx.adamw(1e-3, mu_dtype=codecs.decode)
    assert "decode()" not in str(caught.value)


INT8, HALF = codecs.int8(), codecs.bfloat16_stochastic()
# label: (codec, changes, what is said)
WRONG_CODECS = {
    "integers without scales": (INT8, {"layout": None}, "`layout` 'rank1' NoneType"),
    "unknown layout": (INT8, {"layout": "rows"}, "`layout` 'rank1' 'rows'"),
    "scales beside bfloat16": (
        HALF, {"layout": "row"}, "`layout` `block` None bfloat16 'row' leave"),
    "blocks beside bfloat16": (
        HALF, {"block": 8}, "`layout` `block` None bfloat16 8 leave"),
    "float16": (
        HALF, dict.fromkeys(("signed", "unsigned"), jnp.float16),
        "`signed` `unsigned` pairs float16 adamx.codecs"),
    "a pair of two codecs": (
        INT8, {"unsigned": jnp.dtype("uint4")}, "`signed` `unsigned` int8 uint4"),
    "no dtype": (INT8, {"signed": "eight"}, "`signed` `unsigned` pairs 'eight'"),
    "unknown rounding": (INT8, {"rounding": "up"}, "`rounding` 'nearest' 'up'"),
    "negative seed": (HALF, {"seed": -1}, "`seed` >= 0 -1"),
}  # fmt: skip


@pytest.mark.parametrize("label", WRONG_CODECS)
def test_no_wrong_codec_can_be_built(label):
    codec, changes, parts = WRONG_CODECS[label]
    _check(lambda: dataclasses.replace(codec, **changes), ValueError, parts)


def test_a_codec_has_no_defaults():
    with pytest.raises(TypeError, match=r"missing .* 'layout'"):
        codecs.Codec("int8", jnp.dtype("int8"), jnp.dtype("uint8"))


def _adamw(label="int8", **more):
    return adamx.adamw(1e-3, mu_dtype=make(label, **more), nu_dtype=make(label, **more))


@pytest.mark.parametrize("argument", ["mu_dtype", "nu_dtype"])
def test_complex_parameters_are_refused_by_their_path(argument):
    params = {"a": jnp.ones(3), "b": {"z": jnp.ones(3, jnp.complex64)}}
    tx = adamx.adamw(1e-3, **{argument: codecs.int8()})
    _check(lambda: tx.init(params), ValueError,
           "int8 real 'b/z' complex64 None split_real_and_imaginary")  # fmt: skip


def test_integer_parameters_are_refused_by_their_path():
    params = {"table": jnp.ones(3), "ids": jnp.ones(3, jnp.int32)}
    _check(lambda: _adamw().init(params), TypeError,
           "parameter 'ids' int32 optax.masked")  # fmt: skip


def test_a_gradient_of_another_shape_or_structure():
    tx, params = _adamw(), {"a": jnp.ones((3, 2))}
    state = tx.init(params)
    _check(lambda: tx.update({"a": jnp.ones((1, 2))}, state, params), ValueError,
           "gradient 'a' (3, 2) (1, 2)")  # fmt: skip
    _check(lambda: tx.update({"b": jnp.ones((3, 2))}, state, params), ValueError,
           "gradient 'a' 'b'")  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        adamx.adamw(1e-3),
        adamx.adamw(1e-3, mu_dtype=jnp.bfloat16, nu_dtype=codecs.int4()),
        pytest.param(_adamw(layout="column"), marks=pytest.mark.slow),
        pytest.param(_adamw("int8-stochastic", block=4), marks=pytest.mark.slow),
        pytest.param(_adamw("e4m3"), marks=pytest.mark.slow),
    ],
    ids=["float32", "mixed", "column", "stochastic", "float8"],
)
def test_a_state_is_continued_as_it_is_stored(other):
    """What a state is made with decides: an update with other codecs changes nothing."""
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((9, 8)))}
    own = _adamw()
    _, state = own.update(params, own.init(params), params)
    want = jax.jit(own.update)(params, state, params)
    got = jax.jit(other.update)(params, state, params)
    chex.assert_trees_all_equal(got, want)


def test_a_state_of_another_optimizer_or_of_optax():
    params = {"w": jnp.ones((9, 8))}
    state = adamx.scale_by_momentum(accumulator_dtype=make("int8")).init(params)
    tx = adamx.scale_by_adam(mu_dtype=make("int8"))
    _check(lambda: tx.update(params, state, params), TypeError, "`state` tx.init")
    theirs = optax.scale_by_adam().init(params)
    _check(lambda: tx.update(params, theirs, params), TypeError, "`state` optax")


@pytest.mark.parametrize("shape", [(8,), (10, 8)], ids=str)
def test_scales_that_do_not_fit_their_codes(shape):
    """As of a checkpoint that was put together by hand."""
    params = {"w": jnp.ones((9, 8))}
    tx = adamx.scale_by_adam(mu_dtype=make("int8", layout="column"))
    state = tx.init(params)
    wrong = state._replace(mu=state.mu._replace(scales=({"w": jnp.ones(shape)},)))
    with pytest.raises(ValueError, match="scale") as caught:
        tx.update(params, wrong, params)
    for part in ("'w'", "rank of its codes", "(9, 8)", str(shape), "tx.init"):
        assert part in str(caught.value)


# label: (codec, changes of what is stored, what is said)
MIXED_UP = {
    "codes without scales": (
        "int8", lambda _: {"scales": ()}, "'w' at least one scale int8 0 tx.init"),
    "float8 codes without scales": (
        "e5m2", lambda _: {"scales": ()}, "'w' at least one scale float8_e5m2 0"),
    "4-bit codes without scales": (
        "int4", lambda _: {"scales": ()}, "'w' at least one scale int4 0 tx.init"),
    "bfloat16 with scales": (
        "bfloat16", lambda _: {"scales": ({"w": jnp.ones((9, 1))},)},
        "'w' no scales bfloat16 1 tx.init"),
    "codes of no codec": (
        "int8", lambda m: {"codes": jax.tree.map(jnp.float16, m.codes)},
        "'w' dtypes 'int8' float16 tx.init"),
    "a step without a key": (
        "int8-stochastic", lambda _: {"key": None}, "`key` `step` None tx.init"),
    "a key without a step": (
        "int8-stochastic", lambda _: {"step": None}, "`key` `step` None tx.init"),
    "a step beside codes to the nearest": (
        "int8", lambda _: {"step": jnp.zeros((), jnp.uint32)}, "`key` `step` tx.init"),
}  # fmt: skip


@pytest.mark.parametrize("label", MIXED_UP)
def test_a_mixed_up_checkpoint_is_not_read_as_garbage(label):
    name, change, parts = MIXED_UP[label]
    params = {"w": jnp.ones((9, 8))}
    tx = adamx.scale_by_adam(mu_dtype=make(name))
    state = tx.init(params)
    wrong = state._replace(mu=state.mu._replace(**change(state.mu)))
    _check(lambda: jax.jit(tx.update)(params, wrong, params), ValueError, parts)
    _check(lambda: codecs.decode(wrong), ValueError, parts)
