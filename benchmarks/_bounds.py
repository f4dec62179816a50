"""What no step can beat: the memory itself, and JAX's handling of so many arrays.

`stream` moves as many bytes as the step must, in C, on as many threads as there are
cores; `read` reads an array once. Where everything fits the caches, they are those of
the caches. `identity` is a donated program that returns the arrays that it was given.
"""

import concurrent.futures
import ctypes
import functools
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _contestants import Contestant, make_donated
from _machine import compiler

THREADS = os.cpu_count() or 1
# 7 accesses for each element, and next to no arithmetic. Sums in lanes: a compiler may
# not reorder one sum by itself.
SOURCE = """
void stream(float* restrict p, float* restrict m, float* restrict v,
            const float* restrict g, long n) {
  for (long i = 0; i < n; i++) {
    m[i] += 0.1f * (g[i] - m[i]);
    v[i] += 0.001f * (g[i] * g[i] - v[i]);
    p[i] -= 0.001f * m[i] * v[i];
  }
}
float read(const float* x, long n) {
  float sums[64] = {0}, sum = 0;
  long i = 0;
  for (; i + 64 <= n; i += 64)
    for (int l = 0; l < 64; l++) sums[l] += x[i + l];
  for (; i < n; i++) sum += x[i];
  for (int l = 0; l < 64; l++) sum += sums[l];
  return sum;
}
"""
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
POINTER = ctypes.POINTER(ctypes.c_float)


@functools.cache
def library() -> Any:
    """The loops, compiled by the system's compiler; None where that is not possible."""
    found = compiler()
    if found is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, made = pathlib.Path(folder, "loops.c"), pathlib.Path(folder, "loops.so")
        source.write_text(SOURCE, "utf-8")
        command = [found, *FLAGS, str(source), "-o", str(made)]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        loaded = ctypes.CDLL(str(made))
    loaded.stream.argtypes = [POINTER] * 4 + [ctypes.c_long]
    loaded.stream.restype = None
    loaded.read.argtypes = [POINTER, ctypes.c_long]
    loaded.read.restype = ctypes.c_float
    return loaded


def in_threads(work: Callable[..., Any], *arrays: np.ndarray) -> Callable[[], None]:
    """Runs `work` on the arrays' pieces, one for each core."""
    pieces = list(zip(*(np.array_split(x, THREADS) for x in arrays), strict=True))
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)

    def run() -> None:
        list(pool.map(lambda piece: work(*piece), pieces))

    return run


def pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(POINTER)


def make_stream(elements: int, accesses: float = 7) -> Contestant:
    """The bytes of so many float32 accesses for each element.

    AdamW has 7: it reads p, m, v, g and writes p, m, v. Others are of the same loop
    over more or fewer elements. Without a compiler NumPy multiplies one array in place:
    as many bytes, half of them written. On other devices than CPUs that is what XLA
    does, too.
    """
    name = f"stream, {accesses:g} accesses"
    if jax.default_backend() != "cpu":
        whole = jnp.ones(round(elements * accesses / 2), jnp.float32)
        return make_donated(f"{name} (XLA)", lambda x: [x * 0.9999999], [whole])
    loops = library()
    if loops is None:
        array, one = np.ones(round(elements * accesses / 2), np.float32), np.float32(1)
        work = in_threads(lambda x: np.multiply(x, one, out=x), array)
        return Contestant(f"{name} (NumPy)", work)
    arrays = [np.ones(round(elements * accesses / 7), np.float32) for _ in range(4)]

    def piece(*given: np.ndarray) -> None:
        loops.stream(*map(pointer, given), given[0].size)

    return Contestant(f"{name} (C)", in_threads(piece, *arrays))


def make_read(elements: int) -> Contestant:
    """One array read once."""
    array = np.ones(elements, np.float32)
    loops = library()
    if jax.default_backend() != "cpu":
        whole, run = jnp.asarray(array), jax.jit(jnp.sum)
        return Contestant("read (XLA)", lambda: run(whole).block_until_ready())
    if loops is None:
        return Contestant("read (NumPy)", in_threads(np.add.reduce, array))
    work = in_threads(lambda x: loops.read(pointer(x), x.size), array)
    return Contestant("read (C)", work)


def make_identity(name: str, *trees: Any) -> Contestant:
    """A program that returns the trees, which it may keep where they are."""
    # Copies: they are donated, and others need theirs.
    carry = [jax.tree.map(jnp.copy, tree) for tree in trees]
    return make_donated(name, lambda *given: list(given), carry)
