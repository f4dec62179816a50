"""Whether a plan is what a run takes, and what it takes to make one.

    python benchmarks/plan.py                      both parts
    python benchmarks/plan.py --parts agreement    GPT-2 small, against a real step
    python benchmarks/plan.py --parts cost         70B on 256 devices, 405B on 1,024

agreement: a step of GPT-2 small on eight simulated devices, with ZeRO-1. Bytes on the
fullest device from its buffers, and the temporaries of the compiled step, over those of
a plan made in another process.
cost: seconds and the peak memory of `python -m adamx plan` and the process that it
starts, the larger one of the two.
"""

import argparse
import gc
import os
import re
import subprocess
import sys
import time
from typing import Any

_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import step_time  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import adamx  # noqa: E402
from adamx import catalogue  # noqa: E402
from adamx.sharding import _plan, model_shapes, plan, state_shardings  # noqa: E402

ROWS = ("adamw", "adamw-int8", "lion")
# (model, mesh, optimizer)
LARGE = (
    ("llama-70b", "data=64,model=4", "adamw"),
    ("llama-70b", "data=64,model=4", "adamw-int8"),
    ("llama-405b", "data=128,model=8", "adamw"),
)


def fullest(tree: Any) -> int:
    """Bytes of a tree on the device that has most of it, from its buffers."""
    held: dict[Any, int] = {}
    for x in jax.tree.leaves(tree):
        for piece in x.addressable_shards:
            held[piece.device] = held.get(piece.device, 0) + piece.data.nbytes
    return max(held.values())


def agreement(name: str, model: str) -> list[str]:
    """One line: MiB per device of a run, of a plan, and the largest difference."""
    # Its devices would be enough to plan for.
    _plan._here = lambda count: None
    planned = plan(catalogue.transformation(name), model, {"data": 8}, zero1="data")
    tx = catalogue.transformation(name)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = model_shapes(model)
    shardings = state_shardings(tx, shapes, whole, "data")

    def start() -> Any:
        return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

    def step(params: Any, state: Any, grads: Any) -> Any:
        return adamx.fused(tx).step(grads, state, params)

    params, grads = (jax.jit(start, out_shardings=whole)() for _ in range(2))
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    lie = (whole, shardings)
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=lie)
    compiled = jitted.lower(params, state, grads).compile()
    params, state = jax.block_until_ready(compiled(params, state, grads))
    sizes = compiled.memory_analysis()
    copies = max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
    real = [*map(fullest, (params, grads, state)), sizes.temp_size_in_bytes + copies]
    del params, grads, state, compiled
    gc.collect()
    made = [planned.parameters, planned.gradients, planned.state, planned.temporaries]
    pairs = list(zip(real, made, strict=True))
    worst = max(abs(b / a - 1) for a, b in pairs if a)
    cells = [f"{a / 2**20:.1f} / {b / 2**20:.1f}" for a, b in pairs]
    return [name, *cells, f"{100 * worst:.2f}"]


def cost(model: str, mesh: str, name: str) -> list[str]:
    """One line: seconds and GiB of planning, and what was planned."""
    command = [sys.executable, "-m", "adamx", "plan", "--model", model, "--mesh", mesh]
    command += ["--optimizer", name, "--zero1", "data"]
    flags = re.sub(rf"{_FLAG}=\d+", "", os.environ["XLA_FLAGS"]).strip()
    # A process between, so that its children are this row's alone.
    script = (
        "import resource, subprocess, sys\n"
        "run = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(run.stdout + run.stderr + str(peak)); sys.exit(run.returncode)"
    )
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    seconds = time.perf_counter() - start
    lines = run.stdout.splitlines()
    if run.returncode:
        raise SystemExit("\n".join(lines))
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes; KiB
    together = next(x for x in lines if x.startswith("together"))
    size = " ".join(together.split()[1:3])
    return [model, mesh, name, f"{seconds:.1f}", f"{int(lines[-1]) / unit:.2f}", size]


def show(line: list[str]) -> None:
    print("| " + " | ".join(line) + " |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("agreement", "cost")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--model", default="gpt2-small", help="of the agreement")
    parser.add_argument("--quick", action="store_true", help="a smoke test, few rows")
    options = parser.parse_args(arguments)
    print(f"{step_time.device_name()}; {step_time.versions()}")
    if "agreement" in options.parts:
        print(f"\n{options.model} on eight devices; MiB per device, run / plan\n")
        head = ["parameters", "gradients", "state", "temporaries", "worst, %"]
        show(["", *head])
        show(["---"] + ["---:"] * len(head))
        for name in ROWS[:1] if options.quick else ROWS:
            show(agreement(name, options.model))
    if "cost" in options.parts:
        print()
        show(["model", "mesh", "optimizer", "s", "peak GiB", "planned, per device"])
        show(["---"] * 3 + ["---:"] * 3)
        for row in LARGE[:1] if options.quick else LARGE:
            show(cost(*row))


if __name__ == "__main__":
    main()
