"""`fused(tx).step` is update and apply_updates, without the temporaries of a choice."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.compiling import AS_USERS
from tests.helpers import IS_OLD_XLA, TEMPORARIES, some
from tests.test_contract import random_like, signature
from tests.test_loss_scaling import assert_same_bits

pytestmark = pytest.mark.filterwarnings("error")

LR, NAN = 1e-2, float("nan")
adamw = functools.partial(adamx.adamw, LR, weight_decay=0.1)


class Case(NamedTuple):
    """A transformation.

    Attributes:
      make: makes it.
      dtype: of the parameters.
      temporaries: allowed, in trees of the parameters.
      skips: whether a NaN is skipped.
      is_equal: bit for bit, where nothing is compiled.
    """

    make: Callable[[], Any]
    dtype: Any = jnp.float32
    temporaries: float = TEMPORARIES
    skips: bool = True
    is_equal: bool = True


# p and its rest are computed from one float32 copy, and overwrite what it is made of:
# two such copies of the largest leaf, here half of a tree of 16 bits.
REST = 2.02
clip = functools.partial(adamx.clip_by_global_norm, 1.0)
half = jnp.bfloat16
guard, accumulate, scaling = adamx.guard, adamx.accumulate, adamx.loss_scaling
master = adamx.master_weights
CASES = {
    "adamw": Case(adamw, skips=False),
    "clip, adamw": Case(lambda: optax.chain(clip(), adamw()), skips=False),
    # The clipped gradient, once; not the wide one of which the norm is.
    "clip, adamw, 16 bits": Case(
        lambda: optax.chain(clip(), adamw()), half, temporaries=1.02, skips=False
    ),
    "loss_scaling": Case(lambda: scaling(adamw(), initial_scale=8.0)),
    "guard": Case(lambda: guard(adamw())),
    "guard, spikes": Case(lambda: guard(adamw(), spike_zscore=4, spike_warmup=3)),
    "guard(clip, adamw)": Case(lambda: guard(optax.chain(clip(), adamw()))),
    "guard(optax)": Case(lambda: guard(optax.adamw(LR))),
    "accumulate": Case(lambda: accumulate(adamw(), 3), skips=False),
    "accumulate, a schedule": Case(
        lambda: accumulate(adamw(), lambda n: 2 + n), skips=False),
    "accumulate, bfloat16": Case(
        lambda: accumulate(adamw(), 3), half, 1.02, False, is_equal=False),
    "guard(accumulate)": Case(lambda: guard(accumulate(adamw(), 3))),
    "accumulate(guard)": Case(lambda: accumulate(guard(adamw()), 3)),
    "loss_scaling(guard(accumulate))": Case(
        lambda: scaling(guard(accumulate(adamw(), 3)), initial_scale=8.0)),
    # Of the small leaf alone nothing is put together: see test_bucketed.py.
    "bucketed": Case(lambda: adamx.bucketed(adamw()), skips=False),
    "guard(bucketed)": Case(lambda: guard(adamx.bucketed(adamw()))),
    "master_weights": Case(lambda: master(adamw()), half, skips=False),
    "split master": Case(
        lambda: master(adamw(), storage="split"), half, REST, skips=False),
    "compensated": Case(
        lambda: adamx.compensated(adamw()), jnp.float16, REST, skips=False),
    "master_weights(loss_scaling)": Case(
        lambda: master(scaling(adamw(), initial_scale=8.0)), half),
    "master_weights(guard)": Case(lambda: master(guard(adamw())), half),
    "guard(master_weights)": Case(lambda: guard(master(adamw())), half),
    "accumulate(master_weights)": Case(
        lambda: accumulate(master(adamw()), 3), half, skips=False),
    "guard(accumulate(compensated))": Case(
        lambda: guard(accumulate(adamx.compensated(adamw()), 3)), half, REST),
}  # fmt: skip


def two_ways(tx):
    """A step through the protocol, and a fused one: carry, gradients -> carry."""

    def protocol(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    def fused(carry, gradients):
        params, state = carry
        return adamx.fused(tx).step(gradients, state, params)

    return protocol, fused


def make_params(dtype):
    params = {"a": jnp.zeros((5, 7), dtype), "b": [jnp.zeros(3, dtype), None]}
    return random_like(params, 0)


def gradients_of(case, params, seed):
    """At seed 4, a NaN; at seed 6, a spike."""
    gradients = random_like(params, seed)
    if seed == 4 and case.skips:
        gradients["b"][0] = gradients["b"][0].at[1].set(NAN)
    return jax.tree.map(lambda g: g * 50, gradients) if seed == 6 else gradients


# Quickly: each wrapper once by itself or in another, each way to keep 16 bits.
QUICK = (
    "guard, spikes",
    "guard(optax)",
    "accumulate, bfloat16",
    "loss_scaling(guard(accumulate))",
    "guard(bucketed)",
    "compensated",
    "accumulate(master_weights)",
)


@pytest.mark.parametrize("name", some(CASES, *QUICK))
def test_a_step_is_update_and_apply_updates(name):
    """Operation by operation: compiled, one of two may fuse a product and a sum."""
    case = CASES[name]
    tx, params = case.make(), make_params(case.dtype)
    protocol, fused = two_ways(tx)
    want = got = (params, tx.init(params))
    with jax.disable_jit():
        for seed in range(8):
            gradients = gradients_of(case, params, seed)
            before, want = want, protocol(want, gradients)
            got = fused(got, gradients)
            assert signature(got) == signature(want)
            if case.is_equal:
                assert_same_bits(got, want)
                if seed == 4 and case.skips:
                    assert_same_bits(got[0], before[0])
    if case.is_equal:
        return
    # Float32 updates are added here, there rounded before: a last place at each step.
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True):
        np.testing.assert_allclose(*(np.float32(x) for x in (a, b)), rtol=0.02)


# The others are compiled in the slow run only.
COMPILED = ("split master", "loss_scaling(guard(accumulate))")
MORE = ("guard, spikes",)
compiled = [
    pytest.param(name, marks=[] if name in COMPILED else pytest.mark.slow)
    for name in CASES
]


@pytest.mark.parametrize("name", compiled)
def test_compiled_once_and_in_scan(name):
    case = CASES[name]
    tx, params = case.make(), make_params(case.dtype)
    _, fused = two_ways(tx)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(fused, n=1))
    want = start = (params, tx.init(params))
    gradients = [gradients_of(case, params, seed) for seed in range(8)]
    for g in gradients:
        want = step(want, g)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    many = lambda carry, g: (fused(carry, g), None)  # noqa: E731
    got = jax.jit(lambda s, g: jax.lax.scan(many, s, g)[0])(start, stacked)
    tolerance = 1e-6 if case.dtype == jnp.float32 else 0.02
    chex.assert_trees_all_close(got, want, rtol=tolerance, atol=tolerance)


def test_members_of_a_batch_choose_for_themselves():
    """Under vmap: a step that one member skips is another's."""
    case = CASES["guard(accumulate)"]
    tx, params = case.make(), make_params(case.dtype)
    _, fused = two_ways(tx)
    good = [random_like(params, seed) for seed in range(3)]
    bad = [*good]
    bad[1] = jax.tree.map(lambda g: g * NAN, good[1])

    def run(gradients):
        carry = (params, tx.init(params))
        for g in gradients:
            carry = fused(carry, g)
        return carry

    want = [jax.jit(run)(gradients) for gradients in (good, bad)]
    got = jax.jit(jax.vmap(run))(jax.tree.map(lambda *x: jnp.stack(x), good, bad))
    for i, one in enumerate(want):
        here = jax.tree.map(lambda x, i=i: x[i], got)
        chex.assert_trees_all_close(here, one, rtol=1e-6, atol=1e-6)
    assert got[1].skipped.tolist() == [0, 1]
    assert got[1].inner_state.inner_steps.tolist() == [1, 0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in COMPILED + MORE else pytest.mark.slow)
        for name in CASES
    ],
)
def test_a_donated_step_needs_no_temporaries(name):
    case = CASES[name]
    dtype = case.dtype
    # Two large ones of one shape, since XLA shares what they have in common.
    shapes = {"a": (768, 1024), "b": (1024,), "c": (768, 1024)}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype), shapes, is_leaf=is_shape
    )
    tx = case.make()
    state = jax.eval_shape(tx.init, params)
    step = adamx.fused(tx).step
    donated = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
    analysis = donated.lower(params, state, params).compile(AS_USERS).memory_analysis()
    size = sum(p.size * p.dtype.itemsize for p in jax.tree.leaves(params))
    if IS_OLD_XLA:  # it writes the squares of 16-bit gradients to memory, in float32
        size *= 4 // jnp.dtype(dtype).itemsize
    assert analysis.temp_size_in_bytes <= case.temporaries * size


def test_other_peoples_apply_has_nothing_to_promote():
    """The parameters come out in their own dtype; nothing is there to be added."""
    tx = adamx.master_weights(adamw())
    params = make_params(jnp.bfloat16)
    new, state = jax.jit(adamx.fused(tx).step)(params, tx.init(params), params)
    assert signature(new) == signature(params)
    assert float(state.uncarried) == 0.0


def test_a_target_that_cannot_be_carried_is_met():
    """p far from its master: `p + (target - p)` misses; a step does not."""
    tx = adamx.master_weights(optax.sgd(1.0))
    params = jnp.array([1.0078125], jnp.bfloat16)
    state = tx.init(params)._replace(master=jnp.array([1e-9]))
    updates, missed = tx.update(jnp.zeros(1), state, params)
    assert float(missed.uncarried) == 1.0
    assert float(adamx.apply_updates(params, updates)[0]) != pytest.approx(1e-9, 0.01)
    new, state = adamx.fused(tx).step(jnp.zeros(1), state, params)
    assert float(new[0]) == pytest.approx(1e-9, 0.01)
    assert float(state.uncarried) == 0.0
