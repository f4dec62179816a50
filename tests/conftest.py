"""Eight simulated devices, and JAX's compilation cache shared by all workers.

Most of the time goes into compiling: LLVM leaves out its expensive passes here, which
saves an eighth of it. ADAMX_TEST_COMPILE=full compiles as users do; the exhaustive runs
are made so (CONTRIBUTING.md).
"""

import gc
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if os.environ.get("ADAMX_TEST_COMPILE") != "full":
    flags = os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_llvm_disable_expensive_passes=true"
    )
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import pytest  # noqa: E402

cache = os.environ.get(
    "ADAMX_TEST_CACHE", str(pathlib.Path(tempfile.gettempdir()) / "adamx-test-cache")
)
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True, scope="module")
def forgets_what_it_compiled():
    """A worker that keeps the programs of all tests grows to 5 GB; so, to 2."""
    yield
    jax.clear_caches()
    gc.collect()
