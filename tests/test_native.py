"""`fused(tx, kernel="native")`: the results of `kernel="xla"`, by passes in compiled C.

Each test of results asserts that the compiled program calls the passes, and holds no
loop of XLA's over a leaf: what fell back would be equal to itself.
"""

import concurrent.futures
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.native import _build, in_passes
from tests.helpers import ROOT, TEMPORARIES, enable_x64, some
from tests.optimizers_table import NAMES, ROWS
from tests.row import LR

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map  # jax 0.6.0

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(_build.compiler() is None, reason="there is no C compiler here"),
]

SHAPES = {"matrix": (33, 17), "odd": (3, 5, 7), "one": (1,), "vector": (70_001,)}
CALL = re.compile(r'custom_call_target="adamx_')
# A loop of XLA's over a leaf; in a conditional too.
LOOP = re.compile(r"= \w+\[(33,17|3,5,7|70001)\]\S* fusion\(")
# Their updates hold more than single elements: means of rows, another gradient, and
# whether anything in a row has a gradient.
MIXED = ("adam_mini", "sophia_h", "sophia_g", "sparse_adam")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Programs of this file are compiled anew, and not left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tree(seed: int, scale: float = 1.0, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), dtype)
        for name, shape in SHAPES.items()
    }


def steps_of(tx: Any, **extra: Any) -> tuple[Any, Any]:
    """The jitted steps of the two kernels: (params, state, grads) -> both."""

    def step(kernel: str) -> Any:
        made = adamx.fused(tx, kernel=kernel).step
        return jax.jit(
            lambda params, state, grads: made(grads, state, params, **extra),
            donate_argnums=(0, 1),
        )

    return step("xla"), step("native")


def copies(carry: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), carry)


def text_of(step: Any, *args: Any) -> str:
    return step.lower(*args).compile().as_text()


def ulp(x: np.ndarray, dtype: Any) -> np.ndarray:
    info = jnp.finfo(dtype)
    return np.maximum(np.abs(x), float(info.tiny)) * float(info.eps)


def assert_alike(found: Any, wanted: Any, before: Any, bar: float) -> None:
    """Parameters after a step: |du| <= bar * lr * max(1, |u| / lr), and a rounding."""
    for name, p in before.items():
        dtype = p.dtype
        p, new, old = (np.asarray(x[name], np.float64) for x in (before, found, wanted))
        change = np.abs(old - p) / LR
        allowed = bar * LR * np.maximum(1.0, change) + ulp(old, dtype)
        np.testing.assert_array_less(np.abs(new - old), allowed * (1 + 1e-12))


def assert_states_alike(found: Any, wanted: Any, grads: Any) -> None:
    """Moments after a step: within 2 units in the last place of what was averaged."""
    largest = max(float(jnp.max(jnp.abs(g))) for g in grads.values()) ** 2 + 1.0
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True)
    for old, new in pairs:
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        if not jnp.issubdtype(old.dtype, jnp.floating):
            np.testing.assert_array_equal(old, new)
            continue
        old, new = np.asarray(old), np.asarray(new)
        size = np.maximum(np.abs(old.astype(np.float64)), largest * 0.1)
        allowed = 2 * ulp(size, old.dtype)
        assert np.all(np.abs(new.astype(np.float64) - old) <= allowed)


def row_case(row: Any, dtype: Any, *, is_slow: bool) -> Any:
    marks = [pytest.mark.slow] if is_slow else []
    return pytest.param(row, dtype, id=f"{row.id}-{dtype.__name__}", marks=marks)


QUICK = {
    ("adamw", jnp.float32),
    ("adamw", jnp.bfloat16),
    ("adam", jnp.float16),
    ("lamb", jnp.float32),
    ("lion", jnp.bfloat16),
    ("schedule_free_adamw", jnp.float32),
}


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        row_case(
            row,
            dtype,
            is_slow=row not in NAMES or (row.name, dtype) not in QUICK,
        )
        for row in ROWS
        # Rows that were looked up have a scatter in their update: left to XLA.
        if row.id != "sparse_adam-counted"
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    ],
)
def test_a_step_is_that_of_xla(row, dtype):
    tx = getattr(adamx, row.name)(LR, **row.hyperparameters)
    xla, native = steps_of(tx, **row.extra)
    params = tree(0, 1e-3, dtype)
    state = tx.init(params)
    text = text_of(native, params, state, params)
    assert CALL.search(text)
    assert row.name in MIXED or not LOOP.search(text)
    for i in range(3):
        grads = tree(1 + i, dtype=dtype)
        wanted = xla(*copies((params, state)), grads)
        found = native(*copies((params, state)), grads)
        # Elements whose update jumps (a sign) may differ, where it is undecided.
        if row.conditioning is None:
            bar = 2 * row.bar
            assert_alike(
                found[0], wanted[0], params, bar if dtype == jnp.float32 else 4e-3
            )
        if row.name != "swats":  # records a projection, a sum that cancels
            assert_states_alike(found[1], wanted[1], grads)
        params, state = wanted


def adamw(**kwargs: Any) -> Any:
    return adamx.adamw(LR, weight_decay=0.1, **kwargs)


CLIP = adamx.clip_by_global_norm(1.0)
CHAINS = {
    "clip": (optax.chain(CLIP, adamw()), 2),
    "schedule": (adamx.adamw(adamx.schedules.warmup_cosine(LR, 10)), 1),
    "mask": (
        adamw(mask={"matrix": True, "odd": False, "one": False, "vector": True}),
        2,
    ),
    "groups": (adamx.groups([("odd", adamx.lion(LR))], default=adamw()), 2),
    "optax": (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR)), 2),
    "optax.masked": (
        optax.masked(adamw(), lambda p: {k: k != "one" for k in p}),
        2,
    ),
    "inject_hyperparams": (optax.inject_hyperparams(adamx.adamw)(LR), 1),
    "guard(clip)": (adamx.guard(optax.chain(CLIP, adamw())), 2),
    "accumulate": (adamx.accumulate(adamw(), 2), 2),
    "adam_to_sgd": (adamx.adam_to_sgd(LR, 2), 2),
    "loss_scaling": (adamx.loss_scaling(adamw()), 2),
    "cautious": (adamx.cautious(adamw()), 1),
    "mu_dtype": (adamw(mu_dtype=jnp.bfloat16), 1),
}


# Quickly: a norm before it, leaves apart, the stages of Optax, what is chosen, 16 bits.
QUICK_CHAINS = ("groups", "optax", "guard(clip)", "accumulate", "loss_scaling")


@pytest.mark.parametrize("name", some(CHAINS, *QUICK_CHAINS, "mu_dtype"))
def test_wrappers_and_foreign_stages_run_in_passes(name):
    tx, calls = CHAINS[name]
    xla, native = steps_of(tx)
    params = tree(0, 1e-3)
    state = tx.init(params)
    compiled = native.lower(params, state, params).compile()
    text = compiled.as_text()
    assert len(CALL.findall(text)) >= calls
    assert not LOOP.search(text)
    size = sum(p.nbytes for p in params.values())
    assert compiled.memory_analysis().temp_size_in_bytes <= TEMPORARIES * size + 9_000
    for i in range(4):
        grads = tree(1 + i)
        wanted = xla(*copies((params, state)), grads)
        found = native(*copies((params, state)), grads)
        assert_alike(found[0], wanted[0], params, 1e-6)
        assert_states_alike(found[1], wanted[1], grads)
        params, state = wanted


CODECS = {
    "int8": lambda: adamx.codecs.int8(min_size=0),
    "column": lambda: adamx.codecs.int8("column", rounding="nearest", min_size=0),
    "row": lambda: adamx.codecs.int8("row", min_size=0),
    "bfloat16": adamx.codecs.bfloat16_stochastic,
}


@pytest.mark.parametrize("codec", some(CODECS, "int8", "bfloat16"))
def test_codes_are_read_and_written_in_passes(codec):
    """Scales are exact: two passes, one that finds them and one that uses them."""
    tx = adamw(mu_dtype=CODECS[codec](), nu_dtype=CODECS[codec]())
    xla, native = steps_of(tx)
    rng = np.random.default_rng(0)
    params = {
        "matrix": jnp.asarray(rng.standard_normal((90, 530)) * 1e-3, jnp.float32),
        "layers": jnp.asarray(rng.standard_normal((3, 20, 33)) * 1e-3, jnp.float32),
    }
    state = tx.init(params)
    text = text_of(native, params, state, params)
    assert CALL.search(text)
    assert not re.search(r"= \w+\[(90,530|3,20,33)\]\S* fusion\(", text)
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
            if old.dtype.name in ("int8", "uint8", "bfloat16"):
                # A last bit decides which of two codes is the nearer one: rarely.
                off = np.asarray(old, np.float32) - np.asarray(new, np.float32)
                assert np.mean(off != 0) < 2e-4
                if old.dtype.name != "bfloat16":
                    assert np.max(np.abs(off)) <= 1
            else:
                np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-12)
        params, state = wanted


def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of every program in C that is asked for from now on."""
    texts, compile_own = [], _build.target_of

    def target_of(text: str) -> Any:
        texts.append(text)
        return compile_own(text)

    monkeypatch.setattr(_build, "target_of", target_of)
    return texts


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
    assert sum("uint8_t* out" in t for t in set(texts)) == 1
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


def test_squares_that_overflow_in_codes_are_those_of_xla():
    """nu is at most 2^126 in codes, and infinite again over its bias correction."""
    codec = adamx.codecs.int8(min_size=0)
    tx = adamx.adamw(LR, mu_dtype=codec, nu_dtype=codec)
    xla, native = steps_of(tx)
    carry = {"p": jnp.zeros((20, 33))}, tx.init({"p": jnp.zeros((20, 33))})
    grads = {"p": jnp.ones((20, 33)).at[3, 4].set(-1e38)}
    for _ in range(3):
        wanted, found = xla(*copies(carry), grads), native(*copies(carry), grads)
        assert np.max(np.abs(wanted[0]["p"])) < 1
        assert_alike(found[0], wanted[0], carry[0], 1e-6)
        carry = wanted


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_special_gradients(eps):
    """NaN, inf, zeros of both signs and numbers below the range, element by element."""
    tx = optax.chain(adamx.adamw(LR, eps=eps, weight_decay=0.1))
    xla, native = steps_of(tx)
    special = [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        1e-30,
        1e20,
        3e38,
        1.0,
    ]
    values = jnp.array(special * 3, jnp.float32)  # both the vector loop and its rest
    params = {"p": jnp.zeros_like(values)}
    state = tx.init(params)
    assert CALL.search(text_of(native, params, state, params))
    for _ in range(2):
        wanted = xla(*copies((params, state)), {"p": values})
        found = native(*copies((params, state)), {"p": values})
        for old, new in zip(
            jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True
        ):
            np.testing.assert_allclose(new, old, rtol=5e-7, atol=0)
        params, state = wanted


def test_reductions_are_deterministic_and_exact():
    """A sum has the same bits however threads share it, and rounds once."""
    tx = adamx.clip_by_global_norm(1.0)
    _, native = steps_of(tx)
    values = {
        "w": jnp.asarray(np.random.default_rng(0).normal(size=700_003), jnp.float32)
    }
    zero = jax.tree.map(jnp.zeros_like, values)
    norms = {
        np.asarray(native(copies(zero), tx.init(zero), values)[1].grad_norm).tobytes()
        for _ in range(20)
    }
    assert len(norms) == 1
    exact = np.sqrt(np.sum(np.asarray(values["w"], np.float64) ** 2))
    assert abs(np.frombuffer(norms.pop(), np.float32)[0] / exact - 1) < 6e-8


def test_float64():
    with enable_x64():
        params = {"w": jnp.linspace(-1, 1, 999, dtype=jnp.float64)}
        xla, native = steps_of(optax.chain(CLIP, adamw()))
        state = optax.chain(CLIP, adamw()).init(params)
        assert CALL.search(text_of(native, params, state, params))
        found, wanted = (
            f(*copies((params, state)), params)[0]["w"] for f in (native, xla)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=1e-17)


def test_complex_leaves_are_left_to_xla():
    params = {"c": jnp.ones(9, jnp.complex64), "r": jnp.ones(9)}
    xla, native = steps_of(adamw())
    state = adamw().init(params)
    assert len(CALL.findall(text_of(native, params, state, params))) == 1
    found, wanted = (f(*copies((params, state)), params)[0] for f in (native, xla))
    for name in params:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)


def test_nothing_recompiles_and_nothing_is_traced_eagerly():
    tx = adamx.with_hyperparams(adamx.adamw, learning_rate=LR)
    _, native = steps_of(tx)
    params = tree(0)
    state = tx.init(params)
    for i in range(5):
        params, state = native(params, state, tree(i))
        state = adamx.set_hyperparams(state, learning_rate=LR / (i + 1))
    assert native._cache_size() == 1
    eager = adamx.fused(tx, kernel="native").step
    plain = adamx.fused(tx).step
    for new, old in zip(
        jax.tree.leaves(eager(tree(7), state, params)),
        jax.tree.leaves(plain(tree(7), state, params)),
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)


def test_scan_vmap_and_grad():
    tx = adamw()
    xla, native = adamx.fused(tx), adamx.fused(tx, kernel="native")
    many = jnp.linspace(-1, 1, 60).reshape(5, 12)

    def run(kernel: Any, p: jax.Array) -> jax.Array:
        def body(carry: Any, g: Any) -> Any:
            return kernel.step(g, carry[1], carry[0]), None

        return jax.lax.scan(body, (p, kernel.init(p)), many * 0.1)[0][0]

    text = jax.jit(lambda p: run(native, p)).lower(many[0]).compile().as_text()
    assert CALL.search(text)
    for transform in (
        lambda f: f,
        lambda f: jax.vmap(f),
        lambda f: jax.vmap(jax.grad(lambda p: jnp.sum(f(p) ** 2))),
    ):
        argument = many[0] if transform(len) is len else many
        found, wanted = (
            jax.jit(transform(lambda p, k=k: run(k, p)))(argument)
            for k in (native, xla)
        )
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("codec", some(["int8", "bfloat16"], "bfloat16"))
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


def test_a_result_that_waits_for_another_is_a_pass_of_its_own():
    def chained(x: jax.Array) -> dict[str, jax.Array]:
        doubled = x * 2
        last = jnp.cumsum(doubled)[-1:].reshape(())
        return {"doubled": doubled, "scaled": x * last, "both": doubled + last}

    x = jnp.linspace(-1, 3, 9)
    found = jax.jit(lambda x: in_passes(chained, x))(x)
    for name, old in chained(x).items():
        np.testing.assert_allclose(found[name], old, rtol=1e-6, err_msg=name)
    tx = optax.chain(
        *(optax.ema(0.9), optax.trace(0.9, nesterov=True), optax.centralize()),
        *(optax.clip(0.1), optax.adaptive_grad_clip(0.1), optax.zero_nans()),
        optax.clip_by_block_rms(0.1),
    )
    params = {"w": jnp.linspace(-1, 1, 40).reshape(5, 8), "b": jnp.ones(7)}
    xla, native = (jax.jit(adamx.fused(tx, kernel=k).step) for k in ("xla", "native"))
    args = (jax.tree.map(jnp.sin, params), tx.init(params), params)
    assert CALL.search(text_of(native, *args))
    for old, new in zip(
        jax.tree.leaves(xla(*args)), jax.tree.leaves(native(*args)), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-7)


def test_codes_have_no_derivative_and_say_so():
    codec = adamx.codecs.bfloat16_stochastic()
    made = adamx.fused(adamw(mu_dtype=codec, nu_dtype=codec), kernel="native")

    def loss(p: jax.Array) -> jax.Array:
        return jnp.sum(made.step(p, made.init(p), p)[0])

    with pytest.raises(NotImplementedError, match=r"differentiate .* kernel='xla'"):
        jax.jit(jax.grad(loss))(jnp.ones(9))


def test_on_several_devices_it_is_left_to_xla_and_not_inside_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    rows = jax.sharding.NamedSharding(mesh, spec)
    p = jnp.linspace(-1, 1, 64).reshape(8, 8)
    xla, native = (adamx.fused(adamw(), kernel=k) for k in ("xla", "native"))
    state = native.init(p)
    wanted = jax.jit(xla.step)(p, state, p)[0]

    def sharded(p: jax.Array) -> jax.Array:
        return native.step(p, native.init(p), p)[0]

    split = jax.jit(sharded, in_shardings=rows, out_shardings=rows)
    compiled = split.lower(p).compile()
    assert not CALL.search(compiled.as_text())
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(split(p), wanted, rtol=1e-6)

    mapped = jax.jit(shard_map(sharded, mesh=mesh, in_specs=spec, out_specs=spec))
    assert CALL.search(mapped.lower(p).compile().as_text())
    np.testing.assert_allclose(mapped(p), wanted, rtol=1e-6)


def test_many_threads_at_once():
    """Calls share XLA's pool: none waits for a task that has no thread."""
    tx = optax.chain(CLIP, adamw())
    _, native = steps_of(tx)
    params = {"w": jnp.ones(200_000), "v": jnp.ones(70_001)}
    compiled = native.lower(params, tx.init(params), params).compile()

    def run(seed: int) -> bytes:
        p, state = jax.tree.map(jnp.ones_like, params), tx.init(params)
        for i in range(25):
            grads = jax.tree.map(lambda x, i=i: x * (i + 1.0), params)
            p, state = compiled(p, state, grads)
        return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves((p, state)))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(run, range(16)))) == 1


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


# ------------------------------------------------------------------- the compiler


def script(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    head = """
        import warnings
        import jax, jax.numpy as jnp, adamx
        init, step = adamx.fused(adamx.adamw(1e-3), kernel="native")
        p = {"w": jnp.linspace(-1, 1, 100_001), "b": jnp.ones(3)}
        g = {"w": jnp.ones(100_001), "b": jnp.ones(3)}
        run = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    paths = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_a_compiler_xla_runs_and_a_warning_says_so(tmp_path):
    body = """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            q, s = run(p, init(p), g)
            again = jax.jit(lambda p, s, g: step(g, s, p))(q, s, q)
        assert "adamx_" not in run.lower(q, s, q).compile().as_text()
        print(len(caught), caught[0].message, float(q["b"][0]))
    """
    run = script(body, CC="no-such-compiler", ADAMX_CACHE=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 adamx: no C compiler found"), run.stdout
    assert "0.998" in run.stdout or "0.999" in run.stdout


def test_a_compiler_that_fails_is_quoted(tmp_path):
    body = """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            q, s = run(p, init(p), g)
        print(len(caught), caught[0].message)
    """
    run = script(body, ADAMX_CFLAGS="--no-such-option", ADAMX_CACHE=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "failed; kernel='native' runs as kernel='xla'" in run.stdout
    assert "no-such-option" in run.stdout
    assert not list(tmp_path.glob("*"))


def test_programs_are_kept_and_serve_programs_that_xla_kept(tmp_path):
    """A second process compiles nothing, neither here nor in XLA."""
    body = """
        q, s = run(p, init(p), g)
        q, s = run(q, s, g)
        print(float(q["w"][0]), float(q["w"][-1]))
    """
    kept = {
        "ADAMX_CACHE": str(tmp_path / "c"),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = script(body, **kept)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "c"
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(made) == 1
    second = script(body, **kept)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert made == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()
    }


def test_a_cache_that_others_could_write_to_is_not_used(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    run = script("q, s = run(p, init(p), g); print('ran')", ADAMX_CACHE=str(shared))
    assert run.stdout == "ran\n", run.stderr
    assert not list(shared.iterdir())


def test_a_compiler_with_arguments_and_a_folder_with_a_space(tmp_path):
    folder = tmp_path / "a folder"
    cc = f"{_build.compiler()} -DWITH_ARGUMENTS"
    run = script("run(p, init(p), g); print('ran')", CC=cc, ADAMX_CACHE=str(folder))
    assert run.stdout == "ran\n", run.stderr
    assert "adamx: " not in run.stderr
    assert len(list(folder.glob("*.so"))) == 1


@pytest.mark.skipif(shutil.which("clang") is None, reason="there is no clang")
def test_another_compiler_makes_the_same_of_it(tmp_path):
    """It refuses what only GCC knows."""
    run = script(
        "q, s = run(p, init(p), g); print('ran')", CC="clang", ADAMX_CACHE=str(tmp_path)
    )
    assert run.stdout == "ran\n", run.stderr
    assert "adamx: " not in run.stderr
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_only_what_a_compiler_knows_is_asked_of_it(monkeypatch):
    monkeypatch.setattr(_build, "_version", lambda: "Apple clang version 15.0.0")
    assert "-fno-tree-pre" not in _build._flags()
    monkeypatch.setattr(_build, "_version", lambda: "gcc (GCC) 12.2.0")
    assert "-fno-tree-pre" in _build._flags()


def compiled_anew(x: float) -> Any:
    """A program that no other test has: it is not loaded yet."""
    return jax.jit(lambda p: in_passes(lambda p: p * x, p))


def test_a_broken_file_in_the_cache_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path))
    real = _build._compiled

    def broken(folder: Any, name: str, text: str) -> Any:
        if folder == tmp_path:
            (folder / f"{name}.so").write_bytes(b"")
        return real(folder, name, text)

    monkeypatch.setattr(_build, "_compiled", broken)
    np.testing.assert_array_equal(compiled_anew(1.25)(jnp.ones(3)), 1.25)


def test_without_a_home_programs_are_kept_for_this_process(monkeypatch):
    def home() -> Any:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADAMX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(_build.pathlib.Path, "home", home)
    assert _build._own_folder() == _build._temporary_folder()


def test_threads_that_trace_one_program_register_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path))
    made: list[str] = []
    real = _build._compiled

    def slow(folder: Any, name: str, text: str) -> Any:
        made.append(name)
        path = real(folder, name, text)
        made[-1] += " is there"
        return path

    monkeypatch.setattr(_build, "_compiled", slow)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: compiled_anew(1.75)(jnp.ones(3)), range(4))
        assert all(np.all(np.asarray(x) == 1.75) for x in found)
    assert len(made) == 1


def test_columns_of_two_widths_are_aligned(tmp_path):
    """The compiler's own check stops the process at an address that is not."""
    body = """
        from adamx.native import in_passes
        jax.config.update("jax_enable_x64", True)
        x = jnp.arange(70_000 * 7, dtype=jnp.float64).reshape(-1, 7)
        widths = lambda x: (jnp.max(x.astype(jnp.float32), axis=0), jnp.max(x, axis=0))
        print(jax.jit(lambda x: in_passes(widths, x))(x)[1][0])
    """
    flags = "-fsanitize=alignment -fsanitize-undefined-trap-on-error"
    run = script(body, ADAMX_CFLAGS=flags, ADAMX_CACHE=str(tmp_path))
    assert run.stdout == f"{69_999 * 7}.0\n", run.stderr


@pytest.mark.slow
def test_address_sanitizer_finds_nothing(tmp_path):
    def library(name: str) -> str:
        command = [str(_build.compiler()), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    # The second for the first, which looks there for what throws exceptions.
    found = [library("libasan.so"), library("libstdc++.so")]
    if not all(map(os.path.isabs, found)):
        pytest.skip("the compiler has no address sanitizer")
    body = """
        import optax
        tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
        init, step = adamx.fused(tx, kernel="native")
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            shapes = ((1,), (17,), (32768,), (32769,), (5, 77, 3), (200_000,))
            p = [jnp.ones(shape, dtype) for shape in shapes]
            run = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
            s = init(p)
            for _ in range(5):
                p, s = run(p, s, [jnp.ones(x.shape, dtype) for x in p])
            jax.block_until_ready(p)
        print("clean")
    """
    run = script(
        body,
        LD_PRELOAD=" ".join(found),
        ASAN_OPTIONS="detect_leaks=0",
        ADAMX_CFLAGS="-fsanitize=address -g",
        ADAMX_CACHE=str(tmp_path),
    )
    assert run.stdout == "clean\n", run.stderr[-3000:]


def test_another_kernel_is_refused():
    with pytest.raises(ValueError, match=r"`kernel` must be one of 'xla', 'native'"):
        adamx.fused(adamw(), kernel="c")
