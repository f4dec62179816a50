"""The question: what does control over a training step cost.

- groups: AdamW on the shapes of GPT-2 small, once as one optimizer, once in four groups
  by path (embeddings; normalisation and biases; attention; the rest) with four rates
  and decays of their own. Same arithmetic, so that what differs is the routing.

Each part runs its contestants in one process and in turns; medians over the rounds and
the median of the round-by-round ratio to the first line are printed.

    python benchmarks/control.py [--parts groups] [--rounds 30] [--quick]
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import step_time

import adamx

PARTS = ("groups",)
QUICK_SHAPES, QUICK_ROUNDS = (64, 1, 512, 64), 2

BLOCK = ("ln_1/scale", "ln_1/bias", "attn/qkv/kernel", "attn/qkv/bias")
BLOCK += ("attn/out/kernel", "attn/out/bias", "ln_2/scale", "ln_2/bias")
BLOCK += ("mlp/in/kernel", "mlp/in/bias", "mlp/out/kernel", "mlp/out/bias")


def gpt2_tree(
    shapes: list[tuple[int, ...]], dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Parameters of ones for `step_time.gpt2_shapes`, by path."""
    blocks = [
        f"h{i:02}/{name}" for i in range((len(shapes) - 4) // 12) for name in BLOCK
    ]
    names = ["wte/embedding", "wpe/embedding", *blocks, "ln_f/scale", "ln_f/bias"]
    tree: dict[str, Any] = {}
    for name, shape in zip(names, shapes, strict=True):
        node = tree
        *folders, leaf = name.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.ones(shape, dtype)
    return tree


def gpt2_groups() -> Any:
    """Four groups, of 2, 98, 24 and 24 leaves."""
    return adamx.groups(
        [
            ("embedding", adamx.adamw(3e-4)),
            ("(scale|bias)$", adamx.adamw(1e-3, weight_decay=0.0)),
            ("/attn/", adamx.adamw(6e-4, weight_decay=0.1)),
        ],
        default=adamx.adamw(5e-4, weight_decay=0.01),
    )


# --------------------------------------------------------------------- the contestants


def applied(tx: Any) -> Any:
    """(params, state, gradients) -> (params, state), through the Optax protocol."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    return step


def fused(tx: Any) -> Any:
    """The same through `adamx.fused`."""
    run = adamx.fused(tx).step
    return lambda params, state, gradients: run(gradients, state, params)


def contestant(name: str, tx: Any, step: Any, params: Any) -> step_time.Contestant:
    # Gradients and parameters of their own: all are donated but the gradients.
    own = jax.tree.map(jnp.copy, params)
    return step_time.make_donated(name, step, [own, tx.init(own)], params)


def compare(contestants: list[step_time.Contestant], rounds: int, title: str) -> None:
    step_time.measure(contestants, rounds)
    table = []
    for other in contestants:
        pairs = zip(other.times, contestants[0].times, strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        low, middle, high = statistics.quantiles(other.times, n=4)
        table.append(
            [
                other.name,
                f"{1e3 * middle:.1f}",
                f"{1e3 * low:.1f}-{1e3 * high:.1f}",
                f"{ratio:.2f}",
                f"{other.temporary:.3f}",
                f"{other.trace_s:.2f}",
                f"{other.compile_s:.2f}",
            ]
        )
    head = ["", "median ms", "quartiles", "ratio", "temporaries", "trace s"]
    show(title, [*head, "compile s"], table)


# ------------------------------------------------------------------------------- parts


def print_groups(shapes: list[tuple[int, ...]], rounds: int) -> None:
    """One AdamW, four groups of it, and the four through `fused`."""
    params = gpt2_tree(shapes)
    one, four = adamx.adamw(1e-3), gpt2_groups()
    contestants = [
        contestant("one optimizer", one, applied(one), params),
        contestant("four groups", four, applied(four), params),
        contestant("four groups, fused", four, fused(four), params),
    ]
    size = sum(p.size for p in jax.tree.leaves(params))
    title = f"groups: {len(shapes)} leaves, {size / 1e6:.1f}M elements"
    compare(contestants, rounds, title)


# -------------------------------------------------------------------------- the script


def show(title: str, head: list[str], table: list[list[str]]) -> None:
    print(f"\n**{title}**\n")
    for line in [head, ["---"] + ["---:"] * (len(head) - 1), *table]:
        print("| " + " | ".join(line) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    options = parser.parse_args(arguments)
    shapes, rounds = step_time.gpt2_shapes(layers=options.layers), options.rounds
    if options.quick:
        shapes, rounds = step_time.gpt2_shapes(*QUICK_SHAPES), QUICK_ROUNDS
    print(f"{step_time.device_name()}; {step_time.versions()}")
    for part in options.parts:
        began = time.perf_counter()
        {"groups": print_groups}[part](shapes, rounds)
        print(f"\n{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
