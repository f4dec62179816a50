"""What GPUs and TPUs are given: it lowers for them, and computes the same.

Some orders are for the compiler for CPUs alone (`lax.platform_dependent`); the branch
that other platforms take is made to run here, so that it has been run at all.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import adamx
from adamx import codecs
from tests.helpers import IS_OLD_XLA, some
from tests.optimizers_table import NAMES

OTHERS = ("cuda", "rocm", "tpu")
# Of codes, masters and buckets, leaves in which there is an order for CPUs; and of two
# of them there is one.
LARGE = {
    "kernel": jnp.zeros((260, 256)),
    "bias": jnp.zeros(256),
    "head": jnp.zeros((256, 264)),
}
MANY = {f"leaf_{i}": jnp.zeros((3, 5)) for i in range(20)}
QUICK = ("adamw", "lamb", "sophia_g")


def int8():
    return adamx.adamw(1e-2, mu_dtype=codecs.int8(), nu_dtype=codecs.int8())


def fp8_square():
    return adamx.adamw(1e-2, nu_dtype=codecs.fp8())


CHAINS = {
    "int8": int8,
    "int4": lambda: adamx.adamw(
        1e-2, mu_dtype=codecs.int4(), nu_dtype=codecs.int4(), weight_decay=0.1
    ),
    "fp8 square": fp8_square,
    "bfloat16": lambda: adamx.adamw(
        1e-2,
        mu_dtype=codecs.bfloat16_stochastic(),
        nu_dtype=codecs.bfloat16_stochastic(),
    ),
    "master_weights": lambda: adamx.master_weights(adamx.adamw(1e-2)),
    "split": lambda: adamx.master_weights(adamx.adamw(1e-2), storage="split"),
    "rest": lambda: adamx.compensated(adamx.adamw(1e-2)),
    "bucketed": lambda: adamx.bucketed(adamx.adamw(1e-2)),
    "clip, guard, diagnose": lambda: adamx.diagnose(
        adamx.guard(optax.chain(adamx.clip_by_global_norm(1.0), int8())), every=2
    ),
    "adam_to_sgd": lambda: adamx.adam_to_sgd(1e-2, 2),
}


QUICK_CHAINS = {("bfloat16", "fused"), ("split", "protocol"), ("bucketed", "protocol")}
CASES = some(itertools.product(CHAINS, ["protocol", "fused"]), *QUICK_CHAINS)


def lowered(tx, params, form, platform):
    state = jax.eval_shape(tx.init, params)
    function = {
        "protocol": lambda g, s, p: tx.update(g, s, p),
        "fused": lambda g, s, p: adamx.fused(tx).step(g, s, p),
    }[form]
    traced = jax.jit(function).trace(params, state, params)
    return traced.lower(lowering_platforms=(platform,))


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row.name in QUICK else pytest.mark.slow)
        for row in NAMES
    ],
    ids=lambda row: row.id,
)
def test_an_optimizer_lowers_for_every_platform(row):
    """And as for a CPU: no primitive that one of them lacks, nothing of its own."""
    tx = row.make()
    on_cpu = text_of(lowered(tx, LARGE, "protocol", "cpu"))
    draws = "threefry" in on_cpu  # JAX's own code for it is another on GPUs
    for platform in OTHERS:
        there = text_of(lowered(tx, LARGE, "protocol", platform))
        assert draws or there == on_cpu


@pytest.mark.skipif(IS_OLD_XLA, reason="jax 0.6 lowers the branches of all platforms")
@pytest.mark.parametrize(("name", "form"), CASES)
def test_what_has_an_order_lowers_for_every_platform(name, form):
    for platform in OTHERS:
        text = text_of(lowered(CHAINS[name](), LARGE, form, platform))
        # No conditional but those that are asked for: one may wait for the host.
        asked = "diagnose" in name or name == "adam_to_sgd"
        assert asked or not open_cases(text)


def open_cases(text):
    """How many conditionals are not on a constant, which the compiler resolves.

    (The number of a platform is such a constant, and so is what is chosen by it.)
    """
    known, found = set(), 0
    for line in text.splitlines():
        if "func.func" in line:
            known = set()
        if match := re.match(r"\s*(%\w+) = stablehlo\.constant", line):
            known.add(match[1])
        elif match := re.match(r'\s*(%\w+).* = "stablehlo\.case"\((%\w+)\)', line):
            found += match[2] not in known
            known |= {match[1]} if match[2] in known else set()
    return found


def test_a_conditional_that_is_asked_for_is_counted():
    """So that the count above can fail."""
    tx = adamx.diagnose(adamx.adamw(1e-2), every=2)
    assert open_cases(text_of(lowered(tx, LARGE, "protocol", "tpu")))


def text_of(program):
    """StableHLO, without the numbers that tell functions of one name apart."""
    return re.sub(r"(@\w+?)_\d+\b", r"\1", program.as_text())


def elsewhere(*operands, default=None, **platforms):
    """`lax.platform_dependent`, on a platform that is not named."""
    del platforms
    return default(*operands)


# The others have no such branch: they would be compared with themselves.
@pytest.mark.parametrize(
    ("name", "form"),
    [
        case
        for case in CASES
        if case.values[0] != "adam_to_sgd"
        and case.values not in (("bfloat16", "protocol"), ("master_weights", "fused"))
    ],
)
def test_the_branches_of_other_platforms_compute_the_same(name, form, monkeypatch):
    dtype = jnp.bfloat16 if name in ("master_weights", "split", "rest") else jnp.float32
    like = MANY if name == "bucketed" else LARGE
    rng = np.random.default_rng(0)
    params, *grads = (
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), like)
        for _ in range(4)
    )

    def run():
        tx = CHAINS[name]()
        step = adamx.fused(tx).step if form == "fused" else stepped(tx)
        step, p, state = jax.jit(step), params, tx.init(params)
        for g in grads:
            p, state = step(g, state, p)
        return p, state

    wanted = run()
    jax.clear_caches()
    called: list[int] = []
    monkeypatch.setattr(
        lax,
        "platform_dependent",
        lambda *a, **k: called.append(1) or elsewhere(*a, **k),
    )
    found = run()
    jax.clear_caches()  # programs of the other branch
    assert called
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def stepped(tx):
    @functools.wraps(tx.update)
    def step(g, state, p):
        updates, state = tx.update(g, state, p)
        return adamx.apply_updates(p, updates), state

    return step
