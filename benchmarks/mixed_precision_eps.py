"""The eps that Adam needs where parameters and gradients have 16 bits.

Question: what do zero gradients, tiny ones and ordinary ones do to Adam's update, for
each dtype of parameters and gradients and for each eps, here and in Optax? All get the
same gradients, rounded to the dtype. Optax keeps both moments in it; adamx keeps nu in
float32, and mu with mu_dtype=jnp.float32. A cell is the largest update and, in
brackets, the largest error against float64 NumPy written from Kingma & Ba (2015),
Algorithm 1, on the same rounded gradients; both in units of the learning rate.

    python benchmarks/mixed_precision_eps.py [--markdown]
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exactness import show

import adamx

LR, B1, B2, STEPS, SIZE = 1.0, 0.9, 0.999, 20, 64
DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32)
EPSILONS = (0.0, 1e-8, 1e-7, 1e-6, 1e-4)
# Name: size of the gradients; their signs and sizes vary by a factor of three.
KINDS = {"zero": 0.0, "1e-8": 1e-8, "1e-6": 1e-6, "1": 1.0}
CONTESTANTS = (
    ("optax", optax, None),
    ("adamx", adamx, None),
    ("adamx, mu float32", adamx, jnp.float32),
)


def gradients(dtype: Any) -> jax.Array:
    """STEPS gradients of every kind, SIZE elements of each, rounded to the dtype."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(1.0, 3.0, (STEPS, SIZE)) * rng.choice([-1, 1], (STEPS, SIZE))
    all_kinds = np.concatenate([spread * size for size in KINDS.values()], axis=1)
    return jnp.asarray(all_kinds, jnp.float32).astype(dtype)


def oracle(stream: np.ndarray, eps: float) -> np.ndarray:
    """All updates in float64; 0 for 0/0."""
    m = v = np.zeros(stream.shape[1])
    updates = []
    for t, g in enumerate(stream.astype(np.float64), start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        above, below = m / (1 - B1**t), np.sqrt(v / (1 - B2**t)) + eps
        updates.append(-LR * np.divide(above, below, where=below > 0, out=above * 0))
    return np.stack(updates)


def run(library: Any, stream: jax.Array, eps: float, mu_dtype: Any) -> np.ndarray:
    """All updates of a run whose parameters have the gradients' dtype."""
    tx = library.adam(LR, B1, B2, eps, mu_dtype=mu_dtype)
    params = jnp.ones(stream.shape[1], stream.dtype)

    def step(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params)
        return state, updates

    scan = jax.jit(lambda s: jax.lax.scan(step, tx.init(params), s)[1])
    return np.asarray(scan(stream), np.float64)


def cell(updates: np.ndarray, want: np.ndarray) -> str:
    """'largest update (largest error)', or what is not finite."""
    if not np.all(np.isfinite(updates)):
        return "NaN" if np.any(np.isnan(updates)) else "inf"
    largest, error = np.max(np.abs(updates)), np.max(np.abs(updates - want))
    return f"{largest:.2g} ({error:.0e})" if error else f"{largest:.2g}"


def rows() -> list[list[str]]:
    """One row for each dtype, kind of gradient and contestant; one column per eps."""
    table = []
    for dtype in DTYPES:
        stream = gradients(dtype)
        wants = [oracle(np.asarray(stream), eps) for eps in EPSILONS]
        runs = {"float64": wants}
        for label, library, mu_dtype in CONTESTANTS:
            if mu_dtype is None or dtype != mu_dtype:
                found = [run(library, stream, eps, mu_dtype) for eps in EPSILONS]
                runs[label] = found
        for i, kind in enumerate(KINDS):
            columns = np.s_[:, i * SIZE : (i + 1) * SIZE]
            for label, found in runs.items():
                cells = [
                    cell(updates[columns], want[columns])
                    for updates, want in zip(found, wants, strict=True)
                ]
                table.append([jnp.dtype(dtype).name, kind, label, *cells])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(
        f"adamx {adamx.__version__}, optax {optax.__version__}, jax {jax.__version__}, "
        f"{jax.devices()[0].platform}; Adam, b1 = {B1}, b2 = {B2}, {STEPS} steps of "
        f"{SIZE} parameters\n"
    )
    header = ["dtype", "gradient", "", *(f"eps {eps:g}" for eps in EPSILONS)]
    show(header, rows(), options.markdown)


if __name__ == "__main__":
    main()
