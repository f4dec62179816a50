"""The question: what does control over a training step cost.

Donated steps on the shapes of GPT-2 small (124M parameters, float32), each in turns
with the step or sum that it is compared with: medians, and the median of the ratios
round by round. Temporaries: bytes beside parameters and state, over the bytes of the
parameters. A difference of less than 15 % is within the noise of two shared cores.

- groups: AdamW once as one optimizer, once in four groups by path (embeddings;
  normalisation and biases; attention; the rest), rates and decays of their own.
- stages: AdamW and then SGD with momentum, before and behind the switch: `adam_to_sgd`
  with SGD's rate given and matched; `stages`; and, to compare with, one conditional
  whose branches write all states.
- guard: on good gradients, on skipped ones, with the z-score of the norm.
- accumulate: a call between two steps against a bare sum (accumulator + gradient), the
  last call of a window against a bare step.

"protocol" lines run `update` and `apply_updates`, the others of wrappers `fused`.

    python benchmarks/control.py [--parts guard ...] [--rounds 20] [--quick]
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import step_time
from _tables import show

import adamx

HEAD = ["", "median ms", "quartiles", "ratio to", "ratio", "temporaries", "compile s"]
QUICK_SHAPES = (64, 1, 512, 64)
NEVER = 2**30  # a window, or a stage, that does not end
ADAMW = adamx.adamw(1e-3)

BLOCK = ("ln_1/scale", "ln_1/bias", "attn/qkv/kernel", "attn/qkv/bias")
BLOCK += ("attn/out/kernel", "attn/out/bias", "ln_2/scale", "ln_2/bias")
BLOCK += ("mlp/in/kernel", "mlp/in/bias", "mlp/out/kernel", "mlp/out/bias")

# `step(params, state, gradients) -> (params, state)`: JAX pairs donated arrays with
# results by shape, in order, so that what is changed in place must come out as it went
# in.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Entry(NamedTuple):
    """A contestant: its name, how to make it, and with what it is compared."""

    name: str
    make: Callable[[Any], step_time.Contestant]
    peer: str


def gradients_by_path(shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Random numbers for `step_time.gpt2_shapes`, by path."""
    layers = (len(shapes) - 4) // 12
    blocks = [f"h{i:02}/{name}" for i in range(layers) for name in BLOCK]
    names = ["wte/embedding", "wpe/embedding", *blocks, "ln_f/scale", "ln_f/bias"]
    keys = jax.random.split(jax.random.key(1), len(shapes))
    tree: dict[str, Any] = {}
    for name, shape, key in zip(names, shapes, keys, strict=True):
        node = tree
        *folders, leaf = name.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = 0.02 * jax.random.normal(key, shape)
    return tree


# --------------------------------------------------------------------- the contestants


def protocol(tx: Any) -> Step:
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    return step


def fused(tx: Any) -> Step:
    run = adamx.fused(tx).step
    return lambda params, state, gradients: run(gradients, state, params)


def one_switch(before: Any, after: Any, steps: int) -> tuple[Any, Step]:
    """Two optimizers and one conditional that writes both states: what not to do."""

    def init(params: Any) -> Any:
        return before.init(params), after.init(params), jnp.zeros((), jnp.int32)

    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        first, second, count = state

        def adam() -> Any:
            new, held = protocol(before)(params, first, gradients)
            return new, held, second

        def sgd() -> Any:
            new, held = protocol(after)(params, second, gradients)
            return new, first, held

        params, first, second = jax.lax.cond(count < steps, adam, sgd)
        return params, (first, second, count + 1)

    return init, step


def entry(
    name: str, tx: Any, way: Any = fused, peer: str = "adamw", is_bad: bool = False
) -> Entry:
    return of_step(name, tx.init, way(tx), peer, is_bad)


def of_step(
    name: str, init: Any, step: Step, peer: str = "adamw", is_bad: bool = False
) -> Entry:
    def make(gradients: Any) -> step_time.Contestant:
        if is_bad:
            leaves, structure = jax.tree.flatten(gradients)
            leaves[-1] = leaves[-1].at[0].set(jnp.nan)
            gradients = structure.unflatten(leaves)
        params = jax.tree.map(jnp.ones_like, gradients)
        state = jax.jit(init)(params)
        return step_time.make_donated(name, step, [params, state], gradients)

    return Entry(name, make, peer)


def bare_sum(gradients: Any) -> step_time.Contestant:
    def step(total: Any, new: Any) -> Any:
        return [jax.tree.map(jnp.add, total, new)]

    zeros = jax.tree.map(jnp.zeros_like, gradients)
    return step_time.make_donated("sum", step, [zeros], gradients)


# ------------------------------------------------------------------------------- parts


def groups_entries() -> list[Entry]:
    four = adamx.groups(
        [
            ("embedding", adamx.adamw(3e-4)),
            ("(scale|bias)$", adamx.adamw(1e-3, weight_decay=0.0)),
            ("/attn/", adamx.adamw(6e-4, weight_decay=0.1)),
        ],
        default=adamx.adamw(5e-4, weight_decay=0.01),
    )
    return [
        entry("adamw", ADAMW, protocol),
        entry("protocol: four groups", four, protocol),
        entry("four groups", four),
    ]


def stages_entries() -> list[Entry]:
    sgd = adamx.sgd(1e-3, 0.9)
    entries = [entry("adamw", ADAMW, protocol), entry("sgd, momentum", sgd, protocol)]
    phases = (("before", NEVER), ("behind", 1))
    for name, rate in (("given", 1e-3), ("matched", None)):
        for phase, steps in phases:
            tx = adamx.adam_to_sgd(
                1e-3, steps, sgd_learning_rate=rate, weight_decay=1e-4
            )
            entries.append(entry(f"adam_to_sgd, {name}: {phase}", tx))
    for prefix, way in (("", fused), ("protocol: ", protocol)):
        for phase, steps in phases:
            tx = adamx.stages([(ADAMW, steps), (sgd, None)])
            entries.append(entry(f"{prefix}stages: {phase}", tx, way))
    for phase, steps in phases:
        entries.append(of_step(f"one switch: {phase}", *one_switch(ADAMW, sgd, steps)))
    return entries


def guard_entries() -> list[Entry]:
    guard, accumulate, spikes = adamx.guard, adamx.accumulate, {"spike_zscore": 6.0}
    clipped = optax.chain(adamx.clip_by_global_norm(1.0), ADAMW)
    if_finite = optax.apply_if_finite(optax.adamw(1e-3), 5)
    return [
        entry("adamw", ADAMW, protocol),
        entry("guard", guard(ADAMW)),
        entry("guard, skipped", guard(ADAMW), is_bad=True),
        entry("guard, spikes", guard(ADAMW, **spikes)),
        entry("clip, adamw", clipped, protocol),
        entry("guard(clip, adamw)", guard(clipped)),
        entry("guard(accumulate(adamw, 1))", guard(accumulate(ADAMW, 1))),
        entry("loss_scaling", adamx.loss_scaling(ADAMW, initial_scale=1.0)),
        entry("protocol: guard", guard(ADAMW), protocol),
        entry("protocol: guard, skipped", guard(ADAMW), protocol, is_bad=True),
        entry("protocol: optax.apply_if_finite", if_finite, protocol),
    ]


def accumulate_entries() -> list[Entry]:
    between, last = adamx.accumulate(ADAMW, NEVER), adamx.accumulate(ADAMW, 1)
    guarded = adamx.guard(between)
    multi = functools.partial(optax.MultiSteps, optax.adamw(1e-3))
    multi_between = multi(NEVER).gradient_transformation()
    multi_last = multi(1).gradient_transformation()
    return [
        entry("adamw", ADAMW, protocol),
        Entry("sum", bare_sum, "adamw"),
        entry("between", between, peer="sum"),
        entry("last", last),
        entry("guard(accumulate), between", guarded, peer="sum"),
        entry("guard(accumulate), last", adamx.guard(last)),
        entry("protocol: between", between, protocol, "sum"),
        entry("protocol: last", last, protocol),
        entry("protocol: optax.MultiSteps, between", multi_between, protocol, "sum"),
        entry("protocol: optax.MultiSteps, last", multi_last, protocol),
    ]


PARTS = {
    "groups": groups_entries,
    "stages": stages_entries,
    "guard": guard_entries,
    "accumulate": accumulate_entries,
}


def table(entries: list[Entry], gradients: Any, rounds: int) -> list[list[str]]:
    """One line for each entry, each in turns with what it is compared with."""
    peers: dict[str, step_time.Contestant] = {}
    lines = []
    for name, make, peer in entries:
        contestant = make(gradients)
        base = peers.get(peer, contestant)
        base.times.clear()
        step_time.measure([base] if base is contestant else [base, contestant], rounds)
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
                f"{contestant.build_s:.1f}",
            ]
        )
        if name in ("adamw", "sum"):
            peers[name] = contestant
        del contestant  # before the next is made
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    options = parser.parse_args(arguments)
    shapes, rounds = step_time.gpt2_shapes(layers=options.layers), options.rounds
    if options.quick:
        shapes, rounds = step_time.gpt2_shapes(*QUICK_SHAPES), 2
    print(f"{step_time.device_name()}; {step_time.versions()}")
    gradients = gradients_by_path(shapes)
    for part in options.parts:
        began = time.perf_counter()
        lines = table(PARTS[part](), gradients, rounds)
        show(f"{part}, {len(shapes)} leaves", HEAD, lines)
        print(f"\n{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
