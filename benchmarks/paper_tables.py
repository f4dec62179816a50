"""What the papers say, and what is got here.

Each table names its setting, its metric and its seeds, fixed before the first run. What
does not reproduce is printed as it is.

    python benchmarks/paper_tables.py [table ...] [--out docs]

Tables: counterexample, separable, rectification, warmup, decay, invariance, switch,
lion, bytes, problems.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _problems
import _tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx
from adamx import catalogue

Table = tuple[str, list[str], list[list[Any]]]  # title, head, rows


# --------------------------------------------------------- Reddi et al. 2018, section 3


def counterexample(out: Path) -> Iterator[Table]:
    """Adam does not converge: a rare large gradient is divided by its own size.

    Reddi, Kale & Kumar (2018), section 5: on [-1, 1], f_t(x) = 1010 x at every 101st
    step and -10 x otherwise. The mean slope is positive, so that the optimum is -1.
    b1 = 0.9, b2 = 0.99, alpha = 0.5 / sqrt(t), 10^6 steps, from 0. Metric: the last x.
    """
    steps = 1_000_000

    def last(make_tx: Callable[[Any], Any]) -> float:
        tx = make_tx(lambda count: 0.5 * jax.lax.rsqrt(count + 1.0))

        def step(carry: Any, t: Any) -> Any:
            x, state = carry
            gradient = jnp.where(t % 101 == 0, 1010.0, -10.0)
            updates, state = tx.update(gradient, state, x)
            return (jnp.clip(x + updates, -1.0, 1.0), state), None

        start = jnp.zeros(())
        run = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0][0])
        return float(run((start, tx.init(start))))

    rows = [
        [
            "Adam",
            "+1 (the worst point)",
            f"{last(lambda r: adamx.adam(r, b2=0.99)):+.3f}",
        ],
        ["AMSGrad", "-1", f"{last(lambda r: adamx.amsgrad(r, b2=0.99)):+.3f}"],
    ]
    yield "Reddi et al. 2018: x after 10^6 steps", ["", "paper", "here"], rows


# ------------------------------------------------------ Wilson et al. 2017, section 3.3


def separable(out: Path) -> Iterator[Table]:
    """Adaptive methods may find solutions that do not generalise.

    Wilson et al. (2017), section 3.3: 200 examples, P(label = 1) = 0.6, seed 0; least
    squares from 0, full batches, 3,000 steps; test on 10,000 new examples, whose own
    columns were never seen. Metric: test error, %. A staged switch is Adam for the
    first k steps, then gradient descent.
    """
    n, p, steps, tests = 200, 0.6, 3000, 10_000
    features, labels = _problems.separable_data(n, p)
    unseen = np.where(np.random.default_rng(1).random(tests) < p, 1.0, -1.0)

    def loss(w: Any) -> Any:
        return _problems.squared_loss(w, jnp.asarray(features, jnp.float32), labels)

    def run(tx: Any, w: Any, number: int) -> tuple[Any, Any]:
        def step(carry: Any, _: Any) -> Any:
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return (w + updates, state), None

        return jax.jit(lambda c: jax.lax.scan(step, c, None, length=number)[0])(
            (w, tx.init(w))
        )

    def error(w: Any) -> str:
        scores = _problems.separable_test_scores(np.asarray(w), unseen)
        return f"{100 * np.mean(np.sign(scores) != unseen):.1f}"

    def row(name: str, said: str, w: Any, note: str = "") -> list[Any]:
        return [name, said, error(w), f"{float(loss(w)):.1e}", note]

    zero = jnp.zeros(3 + 5 * n)
    makers = {
        "gradient descent": (adamx.sgd(0.1), "0"),
        "momentum": (adamx.momentum(0.01), "0"),
        "Adam": (adamx.adam(1e-3), f"{100 * (1 - p):.0f}"),
        "RMSProp": (adamx.rmsprop(1e-3), f"{100 * (1 - p):.0f}"),
        "AdamW, decay 0.1": (adamx.adamw(1e-3, weight_decay=0.1), "-"),
    }
    rows = [row(k, said, run(tx, zero, steps)[0]) for k, (tx, said) in makers.items()]
    for before in (10, 100, 1000):
        w = run(adamx.adam(1e-3), zero, before)[0]
        w = run(adamx.sgd(0.1), w, steps - before)[0]
        rows.append(row(f"Adam, then descent after {before}", "-", w))
    for relative in (0.0, 0.01, 0.1):
        w, state = run(adamx.swats(1e-3, relative_tolerance=relative), zero, steps)
        switched = adamx.read(state).switch_step
        name = f"SWATS, relative tolerance {relative:g}" if relative else "SWATS"
        rows.append(row(name, "-", w, f"switch: {switched}"))
    share = 100 * np.mean(unseen < 0)
    title = (
        f"Wilson et al. 2017: test error, % ({share:.1f} % of the test set is negative)"
    )
    yield title, ["", "paper", "here", "training loss", ""], rows


# ----------------------------------------------------------- Liu et al. 2020 (RAdam)


def rectification(out: Path) -> Iterator[Table]:
    """Liu et al. (2020), equations 4 and 5, b2 = 0.999: rho_t and r_t."""
    said = {5: "-", 6: "0.0258", 100: "0.2153", 1000: "0.6453"}
    rows = []
    for t, paper in said.items():
        tx = adamx.scale_by_radam()
        state = tx.init(jnp.zeros(1))

        def step(state: Any, _: Any, tx: Any = tx) -> Any:
            return tx.update(jnp.ones(1), state)[1], None

        state = jax.jit(lambda s, t=t: jax.lax.scan(step, s, None, length=t)[0])(state)
        b2, limit = 0.999, 2 / (1 - 0.999) - 1
        rho = limit - 2 * t * b2**t / (1 - b2**t)
        exact = "-"
        if rho > 5:
            top = (rho - 4) * (rho - 2) * limit
            exact = f"{np.sqrt(top / ((limit - 4) * (limit - 2) * rho)):.4f}"
        rows.append(
            [t, f"{rho:.4f}", exact, paper, f"{float(state.rectification):.4f}"]
        )
    head = ["t", "rho, float64", "r, float64", "stated", "r here"]
    yield "Liu et al. 2020: the rectification", head, rows


def warmup(out: Path) -> Iterator[Table]:
    """Liu et al. (2020): RAdam is robust to the rate without warmup.

    Digits, 200 steps, 20 rates from 1e-4 to 1, five seeds (0 to 4). Metric: the rates
    at which the mean test accuracy is at least 90 %.
    """
    rates, seeds, steps = np.geomspace(1e-4, 1.0, 20), np.arange(5), 200
    task = _tasks.digits()
    makers = {
        "Adam": adamx.adam,
        "Adam, 20 steps of warmup": lambda r: adamx.adam(
            lambda count: r * jnp.minimum(1.0, (count + 1) / 20)
        ),
        "RAdam": adamx.radam,
    }
    rows = []
    for name, make_tx in makers.items():
        runs = _tasks.make_train(make_tx, task, steps)(
            np.repeat(rates, len(seeds)), np.tile(seeds, len(rates))
        )
        mean = runs.score.reshape(len(rates), -1).mean(axis=1)
        good = rates[mean >= 90.0]
        width = f"{good.max() / good.min():.0f} x" if len(good) else "-"
        span = f"{good.min():.1e} to {good.max():.1e}" if len(good) else "none"
        rows.append([name, span, width, f"{mean.max():.1f}"])
    head = ["", "usable rates", "width", "best accuracy, %"]
    yield "RAdam: rates with at least 90 % on digits", head, rows


# ------------------------------------------------------- Loshchilov & Hutter 2019


def decay(out: Path) -> Iterator[Table]:
    """Loshchilov & Hutter (2019), figure 2: rate and decay separate in AdamW.

    Digits, 200 steps, cosine schedule, a grid of 8 rates (1e-4 to 0.3) and 8 decays
    (1e-4 to 3 for AdamW, 1e-6 to 0.03 for L2), seed 0. Metric: test
    accuracy. Separation: the correlation over the best tenth of the grid between log
    rate and log decay (0: they can be tuned one after the other).
    """
    steps, rates = 200, np.geomspace(1e-4, 0.3, 8)
    grids = {
        "AdamW": np.geomspace(1e-4, 3, 8),
        "Adam with L2": np.geomspace(1e-6, 0.03, 8),
    }
    task = _tasks.digits()
    found, rows = {}, []
    for name, decays in grids.items():
        lr, wd = (x.ravel() for x in np.meshgrid(rates, decays, indexing="ij"))

        def make_tx(pair: Any, name: str = name) -> Any:
            rate, strength = pair[0], pair[1]
            schedule = optax.cosine_decay_schedule(1.0, steps)
            if name == "AdamW":
                return adamx.adamw(lambda t: rate * schedule(t), weight_decay=strength)
            return adamx.adam_l2(lambda t: rate * schedule(t), weight_decay=strength)

        run = _tasks.make_train(make_tx, task, steps)
        pairs = np.stack([lr, wd], axis=1)
        score = run(pairs, np.zeros(len(pairs), int)).score
        found[name] = score.reshape(len(rates), len(decays))
        best = np.argsort(-score)[: len(score) // 10 + 1]
        logs = np.log(pairs[best])
        r = np.corrcoef(logs.T)[0, 1] if np.ptp(logs, axis=0).all() else 0.0
        at = f"{lr[best[0]]:.1e}, {wd[best[0]]:.1e}"
        rows.append([name, f"{score.max():.1f}", at, f"{r:+.2f}"])
    _draw_grids(found, rates, grids, out / "decay_grid.png")
    head = ["", "best accuracy, %", "at rate, decay", "correlation in the best tenth"]
    yield "Loshchilov & Hutter 2019: the grid of rate and decay", head, rows


def _draw_grids(found: Any, rates: Any, grids: Any, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.titlelocation": "left"})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    top = max(score.max() for score in found.values())
    for axis, (name, score) in zip(axes, found.items(), strict=True):
        image = axis.imshow(
            score, origin="lower", vmin=top - 12, vmax=top, cmap="viridis"
        )
        axis.set_xticks(range(8), [f"{d:.0e}" for d in grids[name]], rotation=45)
        axis.set_yticks(range(8), [f"{r:.0e}" for r in rates])
        axis.set_xlabel("weight decay")
        axis.set_ylabel("peak learning rate")
        axis.set_title(name)
    figure.colorbar(image, ax=axes, label="test accuracy, %", extend="min", shrink=0.85)
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


def invariance(out: Path) -> Iterator[Table]:
    """AdamW does not see the scale of the loss; L2's decay does.

    A quadratic in 64 dimensions, seed 0, 200 steps, eps = 1e-30, decay 0.01, loss times
    1024 (a power of two: no rounding). Metric: the largest change of the trajectory.
    """
    rng = np.random.default_rng(0)
    scale = jnp.asarray(10.0 ** rng.uniform(-2, 2, 64), jnp.float32)
    start = jnp.asarray(rng.standard_normal(64), jnp.float32)

    def trajectory(tx: Any, factor: float) -> Any:
        def step(carry: Any, _: Any) -> Any:
            p, state = carry
            updates, state = tx.update(factor * scale * (p - 0.5), state, p)
            return (p + updates, state), p

        return jax.jit(
            lambda c: jax.lax.scan(step, c, None, length=200)[1],
        )((start, tx.init(start)))

    rows = []
    for name, tx, paper in [
        ("AdamW", adamx.adamw(1e-2, eps=1e-30, weight_decay=0.01), "0"),
        ("Adam with L2", adamx.adam_l2(1e-2, eps=1e-30, weight_decay=0.01), "not 0"),
    ]:
        change = jnp.max(jnp.abs(trajectory(tx, 1.0) - trajectory(tx, 1024.0)))
        rows.append([name, paper, f"{float(change):.1e}"])
    yield "Loss x 1024: change of the trajectory", ["", "expected", "here"], rows


# --------------------------------------------------------- Keskar & Socher 2017


def switch(out: Path) -> Iterator[Table]:
    """Keskar & Socher (2017), Algorithm 1: the estimated rate, against float64.

    A quadratic in 1,000 dimensions (condition number 100), seed 0, rate 1e-3, 2,000
    steps, the paper's tolerance 1e-9 (from 1e-8 on it switches at step 2 already).
    Metric: the switch step, and the error of the switched rate.
    """
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(0, 2, 1000)
    start = rng.standard_normal(1000)
    lr, b1, b2, eps, tolerance = 1e-3, 0.9, 0.999, 1e-9, 1e-9
    w, m, v, average, want = start.copy(), np.zeros(1000), np.zeros(1000), 0.0, None
    for t in range(1, 2001):
        g = scale * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = -lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        w = w + p
        if p @ g != 0:
            gamma = (p @ p) / -(p @ g)
            average = b2 * average + (1 - b2) * gamma
            if t > 1 and abs(average / (1 - b2**t) - gamma) < tolerance:
                want = (t, average / (1 - b2**t))
                break
    tx = adamx.swats(lr, b1=b1, b2=b2, eps=eps, tolerance=tolerance)
    scale32, p = jnp.asarray(scale, jnp.float32), jnp.asarray(start, jnp.float32)

    def step(carry: Any, _: Any) -> Any:
        p, state = carry
        updates, state = tx.update(scale32 * p, state, p)
        return (p + updates, state), None

    run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=2000)[0])
    reading = adamx.read(run((p, tx.init(p)))[1])
    want = want or (-1, float("nan"))
    rate = float(reading.learning_rate)
    rows = [
        ["switch step", want[0], reading.switch_step],
        ["rate", f"{want[1]:.6e}", f"{rate:.6e} ({abs(rate / want[1] - 1):.1e} off)"],
    ]
    yield "Keskar & Socher 2017: the switch", ["", "float64", "here"], rows


# ------------------------------------------------------------------ Chen et al. 2023


def lion(out: Path) -> Iterator[Table]:
    """Chen et al. (2023): every step of Lion has the size of the rate.

    1,000 normal gradients of 4,096 elements, some zero, seed 0, rate 1e-3, no decay.
    """
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((1000, 4096)).astype(np.float32)
    gradients[:, ::64] = 0.0
    tx = adamx.lion(1e-3, weight_decay=0.0)

    def step(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, g)
        return state, updates

    run = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])
    sizes = np.unique(np.abs(np.asarray(run(gradients))))
    rows = [["sizes of all steps", "0 and 1e-3", ", ".join(f"{x:g}" for x in sizes)]]
    yield "Chen et al. 2023: Lion", ["", "paper", "here"], rows


# -------------------------------------------------------------------- state, problems


def bytes_(out: Path) -> Iterator[Table]:
    """Bytes of state per float32 parameter of a 4096 x 256 matrix, from eval_shape."""
    rows = [[name, size] for name, size, *_ in catalogue.rows()]
    yield "State, bytes per parameter", ["optimizer", "bytes"], rows


def problems(out: Path) -> Iterator[Table]:
    """Rosenbrock, Beale, and a quadratic of condition number 10^4.

    10,000 steps from the customary starts, cosine decay to 0, the best of ten rates
    (1e-4 to 3.2). Metric: distance to the minimum; the bar is 3e-2.
    """
    import family

    steps = 10_000

    def distances(make_tx: Any, case: str) -> Any:
        height, start, (minimum,), _ = _problems.PROBLEMS[case]
        start = jnp.asarray(start, jnp.float32)

        def run(rate: Any) -> Any:
            tx = make_tx(lambda t: rate * optax.cosine_decay_schedule(1.0, steps)(t))

            def step(carry: Any, _: Any) -> Any:
                p, state = carry
                updates, state = tx.update(
                    jax.grad(height)(p),
                    state,
                    p,
                    loss_fn=height,
                    logits_fn=lambda q: jnp.stack([height(q), -height(q)])[None],
                )
                return (p + updates, state), None

            last, _ = jax.lax.scan(step, (start, tx.init(start)), None, length=steps)
            p, state = last
            return jnp.linalg.norm(_tasks.evaluation_params(state, p) - minimum)

        rates = jnp.asarray(family.RATES, jnp.float32)
        return np.asarray(jax.jit(jax.vmap(run))(rates))

    rows = []
    for name, make_tx in family.makers().items():
        found = [distances(make_tx, case) for case in _problems.PROBLEMS]
        best = [np.min(np.where(np.isfinite(d), d, np.inf)) for d in found]
        marks = ["" if d <= 3e-2 else " (missed)" for d in best]
        texts = [f"{d:.1e}" if np.isfinite(d) else "diverged" for d in best]
        rows.append([name, *(t + m for t, m in zip(texts, marks, strict=True))])
    head = ["optimizer", *_problems.PROBLEMS]
    yield "Distance to the minimum after 10,000 steps", head, rows


TABLES = {
    "counterexample": counterexample,
    "separable": separable,
    "rectification": rectification,
    "warmup": warmup,
    "decay": decay,
    "invariance": invariance,
    "switch": switch,
    "lion": lion,
    "bytes": bytes_,
    "problems": problems,
}


def show(table: Table) -> None:
    """Prints a table as Markdown, which reads well as text too."""
    title, head, rows = table
    cells = [list(map(str, head)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n**{title}**\n")
    for number, row in enumerate(cells):
        padded = (c.ljust(w) for c, w in zip(row, widths, strict=True))
        print("| " + " | ".join(padded) + " |")
        if number == 0:
            print("| " + " | ".join("-" * max(3, w) for w in widths) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    device = f"{jax.devices()[0].device_kind} ({platform.machine()})"
    print(f"adamx {adamx.__version__}, jax {jax.__version__}, {device}")
    for name in options.tables or TABLES:
        began = time.time()
        for table in TABLES[name](options.out):
            show(table)
        print(f"\n{name}: {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
