"""A run that is killed at random moments, against the one that never was: the bits.

    python benchmarks/resume.py                      100 kills, about half in a save
    python benchmarks/resume.py --kills 4            a short form

A training run in a process of its own saves every step. It is killed (SIGKILL) at
a random moment, started again on what it left, killed again, ..., and at last left
alone. Its parameters, state, and data order at the end must be those of the run that
was never killed, to the bit, and after every kill the last checkpoint must be whole.
A kill "while saving" falls between the first file of a save and its manifest.
"""

import argparse
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

STEPS, KEEP, KILLS_A_RUN = 60, 3, 25
CONFIG = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def transformation():
    """What is trained with: much of what a state can hold."""
    import optax

    import adamx

    codec = adamx.codecs.int8(min_size=0)
    inner = adamx.adamw(adamx.schedules.warmup_cosine(1e-2, STEPS), nu_dtype=codec)
    clipped = optax.chain(adamx.clip_by_global_norm(1.0), inner)
    return adamx.diagnose(adamx.guard(clipped, spike_zscore=6.0), every=7)


def train(directory: str) -> None:
    """The run: from the last checkpoint, or from the start."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import adamx
    from adamx.interop import restore, save, steps

    cache = pathlib.Path(tempfile.gettempdir()) / "adamx-resume-cache"
    for name, value in zip(CONFIG, (str(cache), 0.0), strict=True):
        jax.config.update(name, value)
    tx = transformation()
    data = np.random.default_rng(0).standard_normal((256, 17)).astype(np.float32)

    @jax.jit
    def step(params, state, key, rows):
        key, own = jax.random.split(key)
        noise = 0.01 * jax.random.normal(own, rows.shape)

        def loss(p):
            x = jnp.tanh((rows + noise)[:, :16] @ p["in"]) @ p["out"]
            return jnp.mean((x[:, 0] - rows[:, 16]) ** 2)

        params, state = adamx.fused(tx).step(jax.grad(loss)(params), state, params)
        return params, state, key

    rng = np.random.default_rng(1)
    params = {
        "in": jnp.float32(rng.standard_normal((16, 64)) / 4),
        "out": jnp.float32(rng.standard_normal((64, 1)) / 8),
    }
    run = {"params": params, "state": tx.init(params), "key": jax.random.key(2)}
    run |= {"order": np.arange(256), "step": 0}
    if steps(directory):
        run = restore(directory, run)
    print(f"begun at {int(run['step'])}", flush=True)
    for i in range(int(run["step"]), STEPS):
        if i % 8 == 0:  # an epoch: an order of its own, in the checkpoint
            run["order"] = np.random.default_rng(i).permutation(run["order"])
        rows = data[run["order"][i % 8 * 32 :][:32]]
        if i % 20 == 10:
            rows = rows * np.nan  # a step to be skipped, and counted
        params, state, key = step(run["params"], run["state"], run["key"], rows)
        run |= {"params": params, "state": state, "key": key, "step": i + 1}
        save(directory, i + 1, run, keep=KEEP)
    print(f"end {_digest(run)}", flush=True)


def _digest(run) -> str:
    import jax
    import numpy as np

    # A number that was restored is an array of 32 bits.
    run = run | {"key": jax.random.key_data(run["key"]), "step": int(run["step"])}
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(run):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------- the killer


def _start(directory: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--train", str(directory)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def _in_a_save(directory: pathlib.Path, since: float) -> bool:
    """Whether a save has begun in this life and has not written its manifest."""
    for folder in directory.iterdir():
        try:
            begun = folder.stat().st_ctime >= since
        except FileNotFoundError:
            continue
        if begun and folder.name.isdigit() and not (folder / "manifest.json").exists():
            return True
    return False


def _last(directory: pathlib.Path) -> int:
    from adamx.interop import steps

    return max(steps(directory), default=0)


def _kill(process: subprocess.Popen, directory: pathlib.Path, while_saving: bool):
    """Kills it at a random moment: whether that was in a save; its first line."""
    since = time.time()
    begun = process.stdout.readline().strip()
    goal = _last(directory) + random.randint(0, 4)
    while process.poll() is None and _last(directory) < goal:
        time.sleep(0.01)
    time.sleep(random.uniform(0.0, 0.3))
    while while_saving and process.poll() is None:
        if _in_a_save(directory, since):
            break
    if while_saving:
        time.sleep(random.uniform(0.0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _in_a_save(directory, since), begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--saving", type=float, default=0.5, help="share in a save")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        return train(arguments.train)
    from adamx.interop import steps, verify

    random.seed(0)
    with tempfile.TemporaryDirectory() as root:
        whole = pathlib.Path(root) / "whole"
        whole.mkdir()
        want = _start(whole).communicate()[0].splitlines()[-1]
        kills = saving = finished = runs = unreadable = same = 0
        while kills < arguments.kills or not finished:
            runs += 1
            directory = pathlib.Path(root) / f"run{runs}"
            directory.mkdir()
            finished = False
            here = 0
            while kills < arguments.kills and here < KILLS_A_RUN:
                process = _start(directory)
                was_saving, begun = _kill(
                    process, directory, random.random() < arguments.saving
                )
                if process.returncode != -signal.SIGKILL:
                    break  # it came to its end before
                kills, here, saving = kills + 1, here + 1, saving + was_saving
                last = steps(directory)[-1:]
                try:
                    for step in last:
                        verify(directory, step)
                except ValueError as error:
                    unreadable += 1
                    print(error)
                print(f"kill {kills}: {begun}, last {last}, in a save {was_saving}")
            got = _start(directory).communicate()[0].splitlines()[-1]
            finished, same = True, same + (got == want)
            print(f"run {runs}: {here} kills, same bits {got == want}", flush=True)
        print(
            f"{kills} kills, {saving} of them in a save, over {runs} runs: {same} of "
            f"{runs} end with the bits of the run that was never killed; "
            f"{unreadable} unreadable last checkpoints"
        )


if __name__ == "__main__":
    main()
