"""What numbers are measured on: the device, the versions, the C compiler, the clock."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import optax

import adamx


class Seconds(NamedTuple):
    """A point in time, or with `since` what went by.

    Attributes:
      wall: by the clock.
      processor: of all threads of this process.
      children: processor seconds of programs that it ran, here the C compiler.
    """

    wall: float
    processor: float
    children: float

    @classmethod
    def now(cls) -> "Seconds":
        times = os.times()
        children = times.children_user + times.children_system
        return cls(time.perf_counter(), time.process_time(), children)

    def since(self, begin: "Seconds") -> "Seconds":
        return Seconds(*(b - a for a, b in zip(begin, self, strict=True)))


def device_name() -> str:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} ({device.platform})"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        model = next(line for line in file if "model name" in line).split(":")[1]
    return f"{model.strip()}, {os.cpu_count()} cores"


def versions() -> str:
    """The packages that took part, and Python, whose own texts `_tasks` trains on."""
    names = [f"jax {jax.__version__}", f"optax {optax.__version__}"]
    names.append(f"python {platform.python_version()}")
    try:
        names.append(f"torch {importlib.metadata.version('torch')}")
    except importlib.metadata.PackageNotFoundError:
        names.append("torch not installed")
    return ", ".join([f"adamx {adamx.__version__}", *names])


def compiler() -> str | None:
    """The C compiler: that of `CC`, else the system's; None without one."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        if os.name == "posix" and (path := shutil.which(name)):
            return path
    return None


def heading() -> str:
    """Date, device, versions and compiler, for the top of a run."""
    found, told = compiler(), "no C compiler"
    if found is not None:
        run = subprocess.run([found, "--version"], capture_output=True, text=True)
        told = (run.stdout.splitlines() or [found])[0]
    return f"{datetime.date.today()}, {device_name()}; {versions()}; {told}; float32"


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """adamx's compiled programs are made anew inside, and not kept."""
    before = os.environ.get("ADAMX_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAMX_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["ADAMX_CACHE"]
            if before is not None:
                os.environ["ADAMX_CACHE"] = before
