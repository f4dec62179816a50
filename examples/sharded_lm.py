"""The question: what a training step needs when a model lies on many devices.

Little more than on one: a mesh, a sharding for each parameter, and `state_shardings`
for the state. A character-level transformer learns the texts of Python's own help on a
mesh of data x model, its optimizer state divided over both (ZeRO-1), with clipping, a
guard and diagnostics. Run it from the repository root, after `pip install -e
'.[examples]'`; it needs no network and takes less than a minute:

    python examples/sharded_lm.py                  # one process, 8 simulated devices
    python examples/sharded_lm.py --processes 2    # two processes of 2 CPU devices each
    python examples/sharded_lm.py --quick          # a smaller model, fewer steps

What to see: where each parameter and its moments lie, bytes per device, the losses
falling, and what `adamx.read` says of a state that no process has whole.

On a cluster the same script runs, once in each process. Where JAX knows the cluster
(SLURM, Open MPI, GKE, Cloud TPU) `jax.distributed.initialize()` finds the rest:

    srun python examples/sharded_lm.py --cluster                           # SLURM
    command: ["python", "examples/sharded_lm.py", "--cluster"]             # GKE

(GKE: an indexed Job or a JobSet with a headless service, as JAX asks for.) Elsewhere,
with the address of the first process, on each machine i of n:

    python examples/sharded_lm.py --coordinator 10.0.0.1:8476 \
        --num-processes n --process-id i

CPUs talk over gloo, GPUs and TPUs as they always do. Every process draws the same
batch and puts the pieces of its own devices onto them; a loader of files would read
only those. Only process 0 prints and keeps the history; all of them run all programs.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data import topics
from typing import Any

import _style
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

import adamx
from adamx.sharding import describe_shardings, state_shardings

shard_map = getattr(jax, "shard_map", None)
if shard_map is None:  # JAX below 0.6.1
    from jax.experimental.shard_map import shard_map

HEADS, LENGTH, BATCH = 4, 32, 16
RATE, EVERY = 3e-3, 10
SHOWN = ("qkv", "embedding", "head")  # measured layer by layer
CHUNK = 64 * 1024  # float32: 256 KiB, more than any array that the step sends


# ------------------------------------------------------------------- processes, mesh


def launch(count: int, arguments: list[str]) -> int:
    """Starts this script in so many processes here; the first failure ends them all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments, "--coordinator", address]
    command += ["--num-processes", str(count), "--process-id"]
    settings = os.environ | {"JAX_PLATFORMS": "cpu"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`
    running = [subprocess.Popen([*command, str(i)], env=settings) for i in range(count)]
    try:
        while any(one.poll() is None for one in running):
            if any(one.poll() for one in running):
                break
            time.sleep(0.1)
        return next((one.returncode for one in running if one.poll()), 0)
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
            one.wait()


def connect(args: argparse.Namespace) -> None:
    """Before all else: the devices of this process, and the other processes."""
    is_alone = not (args.cluster or args.coordinator)
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        devices = args.devices or (8 if is_alone else 2)
        jax.config.update("jax_num_cpu_devices", devices)
    if is_alone:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Without an address, all of it is found by JAX.
    jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)


def make_mesh(devices: Any = None) -> Mesh:
    """data x model: two devices share the model, where their number is even."""
    count = len(devices or jax.devices())
    model = 2 if count % 2 == 0 else 1
    shape, names = (count // model, model), ("data", "model")
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)


def check_collectives(mesh: Mesh, chunk: int = CHUNK) -> None:
    """Refuses to go on where a sum over devices is not what it is known to be.

    Sums over gloo were wrong before, without a word (JAX's issue 40830: chunks of 4
    MiB). The numbers are integers, which float32 adds up exactly.
    """
    size = mesh.shape["data"]

    def wrong() -> jax.Array:
        own = jax.lax.axis_index("data").astype(jnp.float32)
        known = (jnp.arange(size * chunk) % 1009).astype(jnp.float32)
        total = size * known + size * (size - 1) / 2
        begin = jax.lax.axis_index("data") * chunk
        part = jax.lax.dynamic_slice(total, (begin,), (chunk,))
        found = jax.lax.psum_scatter(known + own, "data", tiled=True)
        again = jax.lax.psum(known[:chunk] + own, "data")
        whole = jax.lax.all_gather(part, "data", tiled=True)
        counts = [found != part, again != total[:chunk], whole != total]
        return jnp.stack([jnp.sum(x) for x in counts])[None, None]

    mapped = shard_map(wrong, mesh=mesh, in_specs=(), out_specs=P("data", "model"))
    count = jax.jit(mapped)
    for _ in range(3):
        for piece in count().addressable_shards:
            bad = np.asarray(piece.data).reshape(3)
            if bad.any():
                names = ("reduce-scatter", "all-reduce", "all-gather")
                found = ", ".join(f"{n} {k}" for n, k in zip(bad, names, strict=True))
                raise SystemExit(
                    f"Collectives of {4 * chunk // 1024} KiB are wrong on "
                    f"{piece.device} of process {jax.process_index()}, elements: "
                    f"{found}. Training "
                    "would go wrong without a word. Use another jaxlib, or other "
                    "collectives (jax_cpu_collectives_implementation: mpi)."
                )


# ----------------------------------------------------------------------------- model


def load_text() -> tuple[np.ndarray, int]:
    """Codes of the characters, and how many there are, rounded up to eights."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    alphabet = {letter: i for i, letter in enumerate(sorted(set(text)))}
    codes = np.array([alphabet[letter] for letter in text], np.int32)
    return codes, -(-len(alphabet) // 8) * 8


def init_params(key: jax.Array, width: int, blocks: int, size: int) -> Any:
    shapes = {
        f"block_{i}": {
            "qkv": (width, 3, width),
            "out": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        }
        for i in range(blocks)
    }
    ends = {"embedding": (size, width), "position": (LENGTH, width)}
    shapes |= {**ends, "head": (width, size)}
    flat, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(flat))
    leaves = [0.1 * jax.random.normal(k, s) for k, s in zip(keys, flat, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """Columns of what goes into a layer and rows of what comes out, over "model"."""
    specs = {
        "qkv": P(None, None, "model"),
        "out": P("model"),
        "up": P(None, "model"),
        "down": P("model"),
        "head": P(None, "model"),
    }

    def place(path: Any, _: Any) -> NamedSharding:
        return NamedSharding(mesh, specs.get(path[-1].key, P()))

    return jax.tree_util.tree_map_with_path(place, params)


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def loss_fn(params: Any, rows: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per character; rows: (batch, LENGTH + 1)."""
    x = params["embedding"][rows[:, :-1]] + params["position"]
    for p in (params[name] for name in params if name.startswith("block_")):
        parts = jnp.einsum("btd,dkw->kbtw", norm(x), p["qkv"])
        q, k, v = (part.reshape(*part.shape[:2], HEADS, -1) for part in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.reshape(x.shape) @ p["out"]
        x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
    logits = norm(x) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def make_optimizer(steps: int) -> Any:
    rate = adamx.schedules.warmup_cosine(RATE, steps, warmup=0.1)
    tx = optax.chain(
        adamx.clip_by_global_norm(1.0), adamx.adamw(rate, weight_decay=0.01)
    )
    guarded = adamx.guard(tx, spike_zscore=6.0)
    shown = lambda path: path if path.endswith(SHOWN) else None  # noqa: E731
    return adamx.diagnose(guarded, every=EVERY, by=shown)


# -------------------------------------------------------------------------- training


def batch_of(codes: np.ndarray, step: int, place: NamedSharding) -> jax.Array:
    """The rows of a step, of which each process cuts those of its devices."""
    rng = np.random.default_rng([0, step])
    starts = rng.integers(0, len(codes) - LENGTH - 1, BATCH)
    rows = codes[starts[:, None] + np.arange(LENGTH + 1)]
    return jax.make_array_from_callback(rows.shape, place, lambda at: rows[at])


def prepare(mesh: Mesh, steps: int, width: int, blocks: int, size: int) -> Any:
    """The step, parameters and state in their places, and the table of these places."""
    init_model = lambda key: init_params(key, width, blocks, size)  # noqa: E731
    shapes = jax.eval_shape(init_model, jax.random.key(0))
    tx = make_optimizer(steps)
    place = param_shardings(shapes, mesh)
    zero1 = "data" if mesh.shape["data"] > 1 else None
    held = state_shardings(tx, shapes, place, zero1)
    init, apply = adamx.fused(tx)

    def step(params: Any, state: Any, rows: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, rows)
        return *apply(grads, state, params), loss

    params = jax.jit(init_model, out_shardings=place)(jax.random.key(0))
    state = jax.jit(init, out_shardings=held)(params)
    outs = (place, held, NamedSharding(mesh, P()))
    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=outs)
    table = describe_shardings(tx, shapes, place, zero1, state=state)
    return step, params, state, table


def train(args: argparse.Namespace, mesh: Mesh, console: Console) -> Any:
    """Trains; the parameters, the state and the losses, known to every process."""
    codes, size = load_text()
    step, params, state, table = prepare(
        mesh, args.steps, args.width, args.blocks, size
    )
    console.print(table)
    is_first = jax.process_index() == 0
    path = args.out / "sharded_lm.jsonl" if args.out and is_first else None
    history, losses = adamx.History(path), []
    place = NamedSharding(mesh, P("data"))
    with _style.progress(console, "steps") as bar:
        task = bar.add_task("training", total=args.steps)
        for i in range(args.steps):
            params, state, loss = step(params, state, batch_of(codes, i, place))
            losses.append(loss)
            # Recorded numbers are on every device: one process may read them alone.
            if is_first and (i + 1) % EVERY == 0:
                history.append(adamx.read(state), loss=loss)
            bar.advance(task)
    return params, state, np.array([float(loss) for loss in losses]), history


def keep(args: argparse.Namespace, mesh: Mesh, run: Any) -> None:
    """What each process has at the end, in a file of its own."""
    params, state, losses, _ = run
    args.out.mkdir(parents=True, exist_ok=True)
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
    named = adamx.read(state).scalars()
    arrays = {f"reading:{name}": np.float64(x) for name, x in named.items()}
    for path, x in jax.tree_util.tree_flatten_with_path(everywhere(params))[0]:
        arrays["params:" + "/".join(key.key for key in path)] = np.asarray(x)
    name = f"process_{jax.process_index()}.npz"
    np.savez(args.out / name, losses=losses, **arrays)


def print_run(run: Any, console: Console) -> None:
    _, state, _, history = run
    shown = _style.table("The run", "Step", "Loss", "Rate", "Gradient norm", "Skipped")
    for record in history[:: max(len(history) // 8, 1)]:
        now = record.reading
        numbers = (f"{record.metrics['loss']:.3f}", f"{now.learning_rate:.1e}")
        more = (f"{now.grad_norm:.3f}", str(now.skipped))
        shown.add_row(str(record.step), *numbers, *more)
    console.print(shown)
    layers = adamx.read(state).diagnostics.layers
    shown = _style.table(
        "Some layers, at the end", "Layer", "Update ratio", "r, median"
    )
    for name, numbers in layers.items():
        shown.add_row(name, f"{numbers['update_ratio']:.1e}", f"{numbers['r/p50']:.2f}")
    console.print(shown)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="20 steps, 1 small block")
    parser.add_argument("--out", type=Path, help="folder for history and parameters")
    parser.add_argument("--devices", type=int, help="simulated ones of each process")
    parser.add_argument("--processes", type=int, default=1, help="to start here")
    parser.add_argument("--cluster", action="store_true", help="as JAX detects it")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    args = parser.parse_args()
    if args.coordinator and (args.num_processes is None or args.process_id is None):
        parser.error("--coordinator wants --num-processes and --process-id too")
    if args.quick:
        args.steps, args.width, args.blocks = 20, 16, 1
    return args


def main() -> None:
    args = parse()
    if args.processes > 1 and args.coordinator is None:
        raise SystemExit(launch(args.processes, sys.argv[1:]))
    connect(args)
    console = Console(quiet=jax.process_index() > 0)
    mesh = make_mesh()
    count = jax.process_count()
    console.print(
        f"{count} process{'es' * (count > 1)}, {jax.device_count()} devices "
        f"({jax.devices()[0].device_kind})"
    )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    check_collectives(mesh)
    run = train(args, mesh, console)
    if args.out:
        keep(args, mesh, run)
    if jax.process_index() == 0:
        print_run(run, console)
    if jax.process_count() > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
