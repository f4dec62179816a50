"""The committed fixture of the flat format, which every later version must load.

    python -m tests.format_fixture        writes tests/data/flat_format_1.npz

Once committed it stays as it is: a later format is a file of its own.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx
from adamx.interop import FORMAT, to_flat

PATH = pathlib.Path(__file__).parent / "data" / "flat_format_1.npz"


def make():
    codec = adamx.codecs.int8(min_size=16, seed=3)
    inner = optax.chain(
        adamx.clip_by_global_norm(1.0),
        adamx.adamw(1e-2, mu_dtype=codec, nu_dtype=codec, weight_decay=0.1),
    )
    guarded = adamx.guard(inner, spike_zscore=6.0)
    return adamx.diagnose(guarded, every=2, percentiles=(50,))


def _tree(rng):
    kernel, bias = rng.standard_normal((5, 4)), rng.standard_normal(4)
    layer = {"kernel": jnp.float32(kernel)}
    return {"decoder": {"layer_0": layer}, "bias": jnp.float32(bias)}


def start():
    return _tree(np.random.default_rng(0))


def gradient(seed):
    return _tree(np.random.default_rng(seed + 1))


def run(params, state, seeds):
    step = jax.jit(adamx.fused(make()).step)
    for seed in seeds:
        params, state = step(gradient(seed), state, params)
    return params, state


def main() -> None:
    params = start()
    params, state = run(params, make().init(params), range(3))
    after, _ = run(params, state, [3])
    arrays = {f"state:{name}": np.asarray(x) for name, x in to_flat(state).items()}
    for name, tree in (("before", params), ("after", after)):
        arrays[f"{name}:bias"] = np.asarray(tree["bias"])
        kernel = tree["decoder"]["layer_0"]["kernel"]
        arrays[f"{name}:kernel"] = np.asarray(kernel)
    np.savez(PATH, format=FORMAT, **arrays)


if __name__ == "__main__":
    main()
