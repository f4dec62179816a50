"""What ZeRO-1 leaves of an optimizer's state on one device, from real buffers.

    python benchmarks/sharding.py                 GPT-2 small on eight simulated devices
    python benchmarks/sharding.py --layers 1 --step

For each optimizer: bytes of the state on the fullest device over those of the whole,
from its buffers and as planned. With --step a step is compiled (minutes for the whole
model on CPU) and taken first, and its gathers are counted, which must be one for each
parameter whose state is divided. On accelerators, the devices there are.
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


def measure(
    name: str, make: Callable[[], Any], shapes: Any, mesh: Mesh, has_step: bool
) -> list[str]:
    """One line: the state as it is held, at first or after a step."""
    tx, whole = make(), NamedSharding(mesh, PartitionSpec())
    ones = jax.jit(lambda: [jnp.ones(s) for s in shapes], out_shardings=whole)
    like = jax.eval_shape(ones)
    shardings = state_shardings(tx, like, whole, "data")
    table = describe_shardings(tx, like, whole, "data")
    params = ones()
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    found = ""
    if has_step:
        step = compiled_step(tx, like, whole, shardings)
        params, state = step(params, state)
        divided = sum(bool(row.divided) for row in table.rows)
        found = f"{gathers(step.as_text())} of {divided}"
    jax.block_until_ready((params, state))
    held = describe_shardings(tx, like, whole, "data", state=state)
    del params, state
    gc.collect()
    return [
        name,
        f"{held.state_bytes / 2**20:.1f}",
        f"{held.bytes_per_device / 2**20:.1f}",
        f"{held.fraction:.4f}",
        f"{table.fraction:.4f}",
        str(len(table.undivided)),
        found,
    ]


def compiled_step(tx: Any, like: Any, whole: Any, shardings: Any) -> Any:
    step_of = adamx.fused(tx).step

    def descend(params: Any, state: Any) -> Any:
        # Eight copies of a gradient would not fit beside those of the parameters.
        return step_of([0.1 * p for p in params], state, params)

    step = jax.jit(
        descend,
        in_shardings=(whole, shardings),
        out_shardings=(whole, shardings),
        donate_argnums=(0, 1),
    )
    return step.lower(like, jax.eval_shape(tx.init, like)).compile()


def show(line: list[str]) -> None:
    print("| " + " | ".join(line) + " |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 (12)")
    parser.add_argument("--only", nargs="+", choices=list(rows()), default=None)
    parser.add_argument("--quick", action="store_true", help="a smoke test, few rows")
    parser.add_argument("--step", action="store_true", help="also a step: its gathers")
    options = parser.parse_args(arguments)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shapes = step_time.gpt2_shapes(layers=options.layers)
    chosen = {k: v for k, v in rows().items() if k in (options.only or rows())}
    if options.quick:
        shapes = step_time.gpt2_shapes(64, 1, 512, 64)
        chosen = {"adamx.adamw": chosen["adamx.adamw"]}
    print(f"{step_time.device_name()}; {step_time.versions()}")
    print(f"{len(shapes)} parameters, {mesh.size} devices, zero1 over all of them\n")
    head = ["", "state MiB", "per device MiB", "fraction", "planned", "not divided"]
    show([*head, "gathers"])
    show(["---"] + ["---:"] * len(head))
    for name, make in chosen.items():
        show(measure(name, make, shapes, mesh, options.step))


if __name__ == "__main__":
    main()
