"""How exact adamx, Optax and PyTorch are, and what they do at the edges of a dtype.

Question: how far is the update of Adam from float64, step by step; and what happens to
a second moment in bfloat16, to large float16 gradients, to a b2 that changes, to a
gradient of the wrong shape? Every number is measured here, by the installed packages,
against float64 NumPy written from Kingma & Ba (2015), Algorithm 1.

    python benchmarks/exactness.py [--markdown]
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx

LR, SIZE, STEPS = 1e-2, 4099, (1, 2, 10, 100, 1000)
B1, B2, EPS = 0.9, 0.999, 1e-8


def gradients(steps: int = max(STEPS)) -> np.ndarray:
    """Normal, each element with a scale of its own between 1e-4 and 1e2."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-4, 2, SIZE)
    return (rng.standard_normal((steps, SIZE)) * scales).astype(np.float32)


def oracle() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Update and second moment of each step, in float64."""
    m, v = np.zeros(SIZE), np.zeros(SIZE)
    for t, g in enumerate(gradients().astype(np.float64), start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        yield -LR * (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS), v


def run_jax(library: Any) -> tuple[np.ndarray, np.ndarray]:
    """All updates, and the last second moment."""
    tx = library.adam(LR, B1, B2, EPS)

    def step(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state)
        return state, updates

    run = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g))
    state, updates = run(gradients())
    return np.asarray(updates), np.asarray(state[0].nu)


def run_torch() -> tuple[np.ndarray, np.ndarray]:
    """The same, each update read off a parameter that is set back to zero."""
    import torch

    p = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = torch.optim.Adam([p], lr=LR, betas=(B1, B2), eps=EPS)
    updates = []
    for g in gradients():
        p.grad = torch.from_numpy(g)
        optimizer.step()
        updates.append(p.detach().numpy().copy())
        p.data.zero_()
    return np.stack(updates), optimizer.state[p]["exp_avg_sq"].numpy()


def error_rows(libraries: dict[str, Callable[[], Any]]) -> list[list[str]]:
    """max |u - u64| / lr at each step, and the median error of nu in ulp."""
    wants = list(oracle())
    columns = []
    for run in libraries.values():
        updates, nu = run()
        error = [np.max(np.abs(updates[t - 1] - wants[t - 1][0])) / LR for t in STEPS]
        ulp = np.abs(nu - wants[-1][1]) / np.spacing(wants[-1][1].astype(np.float32))
        columns.append([f"{e:.1e}" for e in error] + [f"{np.median(ulp):.0f}"])
    names = [f"update error / lr, step {t}" for t in STEPS]
    names.append("median error of nu at step 1000, ulp")
    return [list(row) for row in zip(names, *columns, strict=True)]


# ------------------------------------------------------------------------ the edges


def bfloat16_nu(library: Any) -> str:
    """nu after 3,000 steps of gradient 1 and bfloat16 parameters; true: 0.950."""
    tx = library.scale_by_adam()
    start = tx.init(jnp.zeros((), jnp.bfloat16))
    g = jnp.ones((), jnp.bfloat16)

    def step(state: Any, _: Any) -> Any:
        return tx.update(g, state)[1], None

    state = jax.jit(lambda s: jax.lax.scan(step, s, None, length=3000)[0])(start)
    return f"{float(state.nu):.3f}"


def float16_clip(library: Any) -> str:
    """Norm after clipping 1,000 float16 gradients of 300 at 1.0; true: 1."""
    tx = library.clip_by_global_norm(1.0)
    g = jnp.full(1000, 300.0, jnp.float16)
    clipped = np.asarray(tx.update(g, tx.init(g))[0], np.float64)
    return f"{np.linalg.norm(clipped):.3f}"


def changing_b2(library: Any) -> str:
    """nu_hat (gradient 1) one step after b2 went from 0.999 to 0.99 at step 10."""
    tx = optax.inject_hyperparams(library.adam)(1.0, b1=0.0)
    state = tx.init(jnp.zeros(()))
    for t in range(11):
        if t == 10:
            state.hyperparams["b2"] = jnp.float32(0.99)
        update, state = tx.update(jnp.ones(()), state, jnp.zeros(()))
    return f"{float(update) ** -2:.2f}"  # update = -1 / sqrt(nu_hat)


def wrong_shape(library: Any) -> str:
    """A gradient of shape (1,) for a parameter of shape (3,)."""
    tx, params = library.adam(LR), jnp.zeros(3)
    try:
        tx.update(jnp.ones(1), tx.init(params), params)
    except ValueError:
        return "error"
    return "broadcast"


def bad_value(library: Any) -> str:
    """adam(1e-3, b1=1.5)."""
    try:
        library.adam(1e-3, b1=1.5)
    except ValueError:
        return "error"
    return "accepted"


EDGES: dict[str, Callable[[Any], str]] = {
    "bfloat16 parameters: nu after 3,000 gradients of 1 (true: 0.950)": bfloat16_nu,
    "float16 gradients of 300 clipped to norm 1: norm (true: 1)": float16_clip,
    "b2 from 0.999 to 0.99 at step 10: nu_hat of gradients of 1 (true: 1)": changing_b2,
    "gradient of shape (1,) for a parameter of shape (3,)": wrong_shape,
    "adam(1e-3, b1=1.5)": bad_value,
}


def show(header: list[str], rows: list[list[str]], markdown: bool) -> None:
    """Prints one table, as Markdown or with rich."""
    if markdown:
        for row in [header, ["---"] + ["---:"] * (len(header) - 1), *rows]:
            print("| " + " | ".join(row) + " |")
        print()
        return
    from rich.console import Console
    from rich.table import Table

    view = Table()
    for i, column in enumerate(header):
        view.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        view.add_row(*row)
    Console().print(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    jaxes = {"adamx": adamx, "optax": optax}
    print(
        f"adamx {adamx.__version__}, optax {optax.__version__}, jax {jax.__version__}, "
        f"{jax.devices()[0].platform}; Adam, b2 = {B2}, {SIZE:,} parameters, float32\n"
    )
    runs: dict[str, Callable[[], Any]] = {
        name: lambda library=library: run_jax(library)
        for name, library in jaxes.items()
    }
    if importlib.util.find_spec("torch"):
        runs["torch"] = run_torch
    show(["", *runs], error_rows(runs), options.markdown)
    edges = [[name, *(f(lib) for lib in jaxes.values())] for name, f in EDGES.items()]
    show(["", *jaxes], edges, options.markdown)


if __name__ == "__main__":
    main()
