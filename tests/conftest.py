"""Eight simulated devices, and JAX's compilation cache shared by all workers.

How the tests compile, and why: `tests/compiling.py`.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import sys
import tempfile

from tests import compiling

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ["XLA_FLAGS"] = compiling.flags()
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"

import jax
import pytest

cache = os.environ.get(
    "ADAMX_TEST_CACHE", str(pathlib.Path(tempfile.gettempdir()) / "adamx-test-cache")
)
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# JAX makes many objects that stay: to look through all of them so often takes a sixth
# of the run's time.
gc.set_threshold(100_000, 50, 1000)
MOST_MEMORY = 2.5e9  # bytes of a worker


@pytest.fixture(autouse=True, scope="module")
def forgets_what_it_compiled():
    """A worker that keeps the programs of all tests grows to many GB.

    To forget them takes time too, and so does to compile them again: not more often
    than need be. So what is freed is given back to the system: a C library that keeps
    it, as glibc does, leaves the process as large as it was, and all would be forgotten
    at the end of every file from then on.
    """
    yield
    if memory() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        give_back()


def give_back():
    """Freed memory, to the system, where the C library has a word for it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory() -> float:
    """Bytes of this process in memory; where that is not known, infinity."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return float("inf")
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def compiled_as_users(monkeypatch):
    """What tests hand to `jax.jit` is compiled as users do (`as_users`).

    Not what the library does: inside another program it may not say how.
    """
    jit = jax.jit

    def as_users(*args, **kwargs):
        caller = sys._getframe(1).f_globals["__name__"]
        if caller.startswith("tests."):
            kwargs = {"compiler_options": compiling.AS_USERS} | kwargs
        return jit(*args, **kwargs)

    monkeypatch.setattr(jax, "jit", as_users)
