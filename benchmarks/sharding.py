"""What ZeRO-1 leaves of an optimizer's state on one device, from real buffers.

    python benchmarks/sharding.py                 GPT-2 small on eight simulated devices
    python benchmarks/sharding.py --layers 2      a shorter one

For each optimizer: bytes of the state on the fullest device over those of the whole,
as held after one compiled step; the gathers of that step, which must be one for each
parameter whose state is divided; and their bytes. On accelerators, the devices there
are.
"""

import argparse
import gc
import os
import re
from collections.abc import Callable
from typing import Any

# Before JAX starts; of no effect where there are accelerators.
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import step_time  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import adamx  # noqa: E402
from adamx import codecs  # noqa: E402
from adamx.sharding import describe_shardings, state_shardings  # noqa: E402

RATE = 1e-3


def rows() -> dict[str, Callable[[], Any]]:
    int8 = codecs.int8()
    return {
        "adamx.adamw": lambda: adamx.adamw(RATE),
        "optax.adamw": lambda: optax.adamw(RATE),
        "adamx.adamw, int8": lambda: adamx.adamw(RATE, mu_dtype=int8, nu_dtype=int8),
        "adamx.lion": lambda: adamx.lion(RATE),
        "adamx.adam_mini": lambda: adamx.adam_mini(RATE),
        "clip, guard, adamw": lambda: adamx.guard(
            optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(RATE))
        ),
    }


def gathers(text: str) -> int:
    """How many arrays a compiled program gathers."""
    found = re.findall(r" all-gather(?:-start)?\(([^)]*)\)", text)
    return sum(len(operands.split(",")) for operands in found)


def measure(name: str, make: Callable[[], Any], shapes: Any, mesh: Mesh) -> list[str]:
    """One line: the state as it is held after a step."""
    tx, whole = make(), NamedSharding(mesh, PartitionSpec())
    # As one of zeros takes all of them: a state's bytes do not depend on its values.
    zeros = jax.jit(lambda: [jnp.zeros(s) for s in shapes], out_shardings=whole)
    like = jax.eval_shape(zeros)
    shardings = state_shardings(tx, like, whole, "data")
    table = describe_shardings(tx, like, whole, "data")
    step_of = adamx.fused(tx).step
    step = jax.jit(
        lambda params, state, grads: step_of(grads, state, params),
        in_shardings=(whole, shardings, whole),
        out_shardings=(whole, shardings),
        donate_argnums=(0, 1),
    )
    init = jax.jit(tx.init, out_shardings=shardings)
    compiled = step.lower(like, jax.eval_shape(tx.init, like), like).compile()
    params = zeros()
    state = init(params)
    params, state = compiled(params, state, zeros())
    jax.block_until_ready((params, state))
    held = describe_shardings(tx, like, whole, "data", state=state)
    divided = sum(bool(row.divided) for row in table.rows)
    del params, state
    gc.collect()
    return [
        name,
        f"{held.state_bytes / 2**20:.1f}",
        f"{held.bytes_per_device / 2**20:.1f}",
        f"{held.fraction:.4f}",
        f"{table.fraction:.4f}",
        f"{gathers(compiled.as_text())} of {divided}",
        str(len(table.undivided)),
    ]


def show(head: list[str], table: list[list[str]]) -> None:
    for line in [head, ["---"] + ["---:"] * (len(head) - 1), *table]:
        print("| " + " | ".join(line) + " |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--only", nargs="+", choices=list(rows()), default=None)
    parser.add_argument("--quick", action="store_true", help="a smoke test, few rows")
    options = parser.parse_args(arguments)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shapes = step_time.gpt2_shapes(layers=options.layers)
    chosen = {k: v for k, v in rows().items() if k in (options.only or rows())}
    if options.quick:
        shapes = step_time.gpt2_shapes(64, 1, 512, 64)
        chosen = {"adamx.adamw": chosen["adamx.adamw"]}
    print(f"{step_time.device_name()}; {step_time.versions()}")
    print(f"{len(shapes)} parameters, {mesh.size} devices, zero1 over all of them\n")
    head = ["", "state MiB", "per device MiB", "fraction", "planned", "gathers"]
    table = [measure(name, make, shapes, mesh) for name, make in chosen.items()]
    show([*head, "not divided"], table)


if __name__ == "__main__":
    main()
