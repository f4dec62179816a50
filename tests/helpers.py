"""Shared by the tests: running a transformation, x64 on both old and new JAX."""

import contextlib
import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import AS_USERS, flags

# Bytes of temporaries of a clipped step, over the bytes of the parameters. XLA of jax
# 0.6 writes the squared gradient to memory before it sums; that of 0.10 does not.
IS_OLD_XLA = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 10)
TEMPORARIES = 1.02 if IS_OLD_XLA else 0.02


ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run_quickly(example: str, out: pathlib.Path) -> str:
    """What an example prints with --quick, run as a user runs it, from the root."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "XLA_FLAGS": flags(quickly=True),
    }
    run = subprocess.run(
        [sys.executable, EXAMPLES / example, "--quick", "--out", out],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def some(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Cases of a parametrised test: those not named here in the slow run only.

    A case is one value, or a tuple of them.
    """
    cases = list(cases)
    assert set(quick) <= set(cases), f"no such cases: {set(quick) - set(cases)}"
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in quick else pytest.mark.slow,
        )
        for case in cases
    ]


@contextlib.contextmanager
def enable_x64() -> Iterator[None]:
    """Double precision inside the block, whatever the JAX version calls it."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def run_updates(
    tx: Any, gradients: Any, params: Any, *hyperparameters: Any
) -> tuple[np.ndarray, np.ndarray]:
    """All updates of a run compiled as users do, and the parameters before each step.

    `tx` may be a function of traced hyperparameters that makes the transformation.
    """

    def run(gradients: Any, params: Any, *traced: Any) -> Any:
        made = tx(*traced) if traced else tx

        def step(carry: Any, g: Any) -> Any:
            p, state = carry
            updates, state = made.update(g, state, p)
            return (p + updates, state), (updates, p)

        return jax.lax.scan(step, (params, made.init(params)), gradients)[1]

    updates, trajectory = jax.jit(run, compiler_options=AS_USERS)(
        jnp.asarray(gradients), jnp.asarray(params), *hyperparameters
    )
    return np.asarray(updates), np.asarray(trajectory)


def load_benchmark(name: str) -> Any:
    """A module of benchmarks/, which is no package and not on the path."""
    path = pathlib.Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module
