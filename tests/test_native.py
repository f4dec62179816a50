"""`fused(tx, kernel="native")`: the results of `kernel="xla"`, by passes in compiled C.

Each test of results asserts that the compiled program calls the passes, and holds no
loop of XLA's over a leaf: what fell back would be equal to itself.
"""

import concurrent.futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.native import in_passes
from tests.helpers import TEMPORARIES, enable_x64, some
from tests.helpers_native import (
    CALL,
    CLIP,
    LOOP,
    MARKS,
    MIXED,
    adamw,
    assert_alike,
    assert_states_alike,
    copies,
    steps_of,
    text_of,
    tree,
)
from tests.helpers_native import cache as cache
from tests.optimizers_table import NAMES, ROWS
from tests.row import LR

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map  # jax 0.6.0

pytestmark = MARKS


def row_case(row: Any, dtype: Any, *, is_slow: bool) -> Any:
    marks = [pytest.mark.slow] if is_slow else []
    return pytest.param(row, dtype, id=f"{row.id}-{dtype.__name__}", marks=marks)


QUICK = {
    ("adamw", jnp.bfloat16),
    ("adam", jnp.float16),
    ("lamb", jnp.float32),
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
        # Elements whose update jumps (a sign) may differ, where it is undecided. What
        # coupled L2 amplifies here is 20 times as much as a rounding.
        if row.conditioning is None or row.name == "adam_l2":
            bar = 2 * row.bar * (20 if row.conditioning else 1)
            assert_alike(
                found[0], wanted[0], params, bar if dtype == jnp.float32 else 4e-3
            )
        if row.name != "swats":  # records a projection, a sum that cancels
            assert_states_alike(found[1], wanted[1], grads)
        params, state = wanted


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


# Quickly: a norm before it and what is chosen, leaves apart, the stages of Optax.
QUICK_CHAINS = ("groups", "optax", "guard(clip)")


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
