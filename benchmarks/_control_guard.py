"""The parts `guard` and `accumulate` of control.py: what a choice costs.

Each contestant's donated step in turns with the bare one, on GPT-2's shapes:

- guard: against bare AdamW, through `fused` and through Optax's protocol; on good
  gradients, on skipped ones, with the z-score of the norm; `optax.apply_if_finite`.
- accumulate: a call between two steps against a bare sum (accumulator + gradient,
  donated), the last call of a window against a bare step; `optax.MultiSteps`.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import step_time

import adamx

HEAD = ["", "median ms", "quartiles", "ratio to", "ratio", "temporaries", "compile s"]
ALWAYS = 2**30  # a window that does not end


class Entry(NamedTuple):
    """A contestant: its name, how to make it, and with what it is compared."""

    name: str
    make: Callable[[list[jax.Array]], step_time.Contestant]
    peer: str


def normal(shapes: list[tuple[int, ...]], seed: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    pairs = zip(keys, shapes, strict=True)
    return [0.02 * jax.random.normal(key, shape) for key, shape in pairs]


def donated(
    name: str, tx: Any, way: str, gradients: list[jax.Array], is_bad: bool = False
) -> step_time.Contestant:
    """A step of `tx` through `fused`, or through update and apply_updates."""
    if is_bad:
        gradients = [*gradients[:-1], gradients[-1].at[0].set(jnp.nan)]

    def protocol(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    def fused(params: Any, state: Any, grads: Any) -> Any:
        return adamx.fused(tx).step(grads, state, params)

    params = jax.tree.map(lambda g: g + 1, gradients)
    if is_bad:
        params = jax.tree.map(jnp.ones_like, params)
    step = fused if way == "fused" else protocol
    state = jax.jit(tx.init)(params)
    return step_time.make_donated(name, step, [params, state], gradients)


def bare_sum(name: str, gradients: list[jax.Array]) -> step_time.Contestant:
    def step(total: Any, grads: Any) -> Any:
        return [jax.tree.map(jnp.add, total, grads)]

    return step_time.make_donated(
        name, step, [jax.tree.map(jnp.zeros_like, gradients)], gradients
    )


def entry(name: str, tx: Any, peer: str, way: str = "fused", **options: Any) -> Entry:
    return Entry(name, functools.partial(_make, name, tx, way, **options), peer)


def _make(name: str, tx: Any, way: str, gradients: Any, **options: Any) -> Any:
    return donated(name, tx, way, gradients, **options)


def guard_entries() -> list[Entry]:
    tx, bare = adamx.adamw(1e-3), "adamw"
    clipped = optax.chain(adamx.clip_by_global_norm(1.0), tx)
    guard, accumulate, spikes = adamx.guard, adamx.accumulate, {"spike_zscore": 6.0}
    if_finite = optax.apply_if_finite(optax.adamw(1e-3), 5)
    return [
        entry("adamw", tx, bare),
        entry("guard", guard(tx), bare),
        entry("guard, skipped", guard(tx), bare, is_bad=True),
        entry("guard, spikes", guard(tx, **spikes), bare),
        entry("clip, adamw", clipped, bare),
        entry("guard(clip, adamw)", guard(clipped), bare),
        entry("guard(accumulate(adamw, 1))", guard(accumulate(tx, 1)), bare),
        entry("loss_scaling", adamx.loss_scaling(tx, initial_scale=1.0), bare),
        entry("protocol: guard", guard(tx), bare, "protocol"),
        entry("protocol: guard, skipped", guard(tx), bare, "protocol", is_bad=True),
        entry("protocol: optax.apply_if_finite", if_finite, bare, "protocol"),
    ]


def accumulate_entries() -> list[Entry]:
    tx, bare, total = adamx.adamw(1e-3), "adamw", "sum"
    between, last = adamx.accumulate(tx, ALWAYS), adamx.accumulate(tx, 1)
    guarded = adamx.guard(between)
    multi = functools.partial(optax.MultiSteps, optax.adamw(1e-3))
    multi_between = multi(ALWAYS).gradient_transformation()
    multi_last = multi(1).gradient_transformation()
    return [
        entry("adamw", tx, bare),
        Entry("sum", functools.partial(bare_sum, "sum"), bare),
        entry("between", between, total),
        entry("last", last, bare),
        entry("guard(accumulate), between", guarded, total),
        entry("guard(accumulate), last", adamx.guard(last), bare),
        entry("protocol: between", between, total, "protocol"),
        entry("protocol: last", last, bare, "protocol"),
        entry("protocol: guard(accumulate), between", guarded, total, "protocol"),
        entry("protocol: optax.MultiSteps, between", multi_between, total, "protocol"),
        entry("protocol: optax.MultiSteps, last", multi_last, bare, "protocol"),
    ]


ENTRIES = {"guard": guard_entries, "accumulate": accumulate_entries}


def table(
    part: str, shapes: list[tuple[int, ...]], rounds: int, warm_up: int = 3
) -> list[list[str]]:
    """One line for each entry, each in turns with what it is compared with."""
    gradients, peers, lines = normal(shapes, 1), {}, []
    for name, make, peer in ENTRIES[part]():
        contestant = make(gradients)
        base = peers.get(peer, contestant)
        base.times.clear()
        pair = [base] if base is contestant else [base, contestant]
        step_time.measure(pair, rounds, warm_up)
        both = zip(contestant.times, base.times, strict=True)
        ratio = statistics.median(a / b for a, b in both)
        low, middle, high = statistics.quantiles(contestant.times, n=4)
        lines.append(
            [
                name,
                f"{1e3 * middle:.1f}",
                f"{1e3 * low:.1f}-{1e3 * high:.1f}",
                peer,
                f"{ratio:.2f}",
                f"{contestant.temporary:.3f}",
                f"{contestant.trace_s + contestant.compile_s:.1f}",
            ]
        )
        if name in ("adamw", "sum"):
            peers[name] = contestant
        del contestant  # before the next is made
    return lines
