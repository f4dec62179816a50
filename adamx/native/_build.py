"""Programs in C, compiled once and kept: the system's compiler, the user's cache."""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from typing import Any

import jax

# No contraction: a product is rounded before it is added, on every machine.
_FLAGS = (
    *("-O3", "-shared", "-fPIC", "-std=gnu11", "-w"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
# Its PRE makes of two conditions a third that its vectoriser does not know; and of a
# choice that depends on another it makes paths, which are all computed in the end.
_FLAGS_OF_GCC = ("-fno-tree-pre", "-fno-thread-jumps")
_loaded: dict[str, Any] = {}
_lock = threading.Lock()


@functools.cache
def compiler() -> str | None:
    """The path of the C compiler: that of `CC`, else the system's; None without one.

    What follows the name in `CC` ("ccache gcc") is in `_command`.

    Warns, once, where there is none.
    """
    names = _words("CC")[:1] or ["cc", "gcc", "clang"]
    for name in names:
        path = shutil.which(name)
        if path is not None and os.name == "posix":
            return path
    warnings.warn(
        "adamx: no C compiler found (CC, cc, gcc, clang); kernel='native' runs as "
        "kernel='xla'.",
        UserWarning,
        stacklevel=2,
    )
    return None


def _words(variable: str) -> list[str]:
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError:  # a quote that does not end
        return os.environ[variable].split()


def _command() -> list[str]:
    """The compiler, and the arguments that `CC` gives it."""
    return [str(compiler()), *_words("CC")[1:]]


def cache_folder() -> pathlib.Path:
    """Where compiled programs are kept: `ADAMX_CACHE`, else the user's cache folder."""
    if os.environ.get("ADAMX_CACHE"):
        return pathlib.Path(os.environ["ADAMX_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "adamx"


@functools.cache
def _machine() -> str:
    """What a compiled program depends on beside its source."""
    processor = platform.processor()
    known = pathlib.Path("/proc/cpuinfo")
    if known.is_file():
        lines = known.read_text(errors="replace").splitlines()
        features = [
            line for line in lines if line.lower().startswith(("flags", "feat"))
        ]
        processor += "".join(features[:1])
    parts = (platform.machine(), processor, _version(), *_command()[1:], *_flags())
    return "\n".join(parts)


@functools.cache
def _version() -> str:
    """What the compiler says of itself."""
    return _run([*_command(), "--version"]).stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def _flags() -> tuple[str, ...]:
    tuned = (
        "-mcpu=native"
        if platform.machine() in ("arm64", "aarch64")
        else "-march=native"
    )
    own = () if "clang" in _version() else _FLAGS_OF_GCC
    return (*_FLAGS, *own, tuned, *os.environ.get("ADAMX_CFLAGS", "").split())


def target_of(text: str) -> str | None:
    """The name under which XLA finds a program; compiled and registered if need be.

    Returns:
      The name, or None where it cannot be compiled (warns).
    """
    if compiler() is None:
        return None
    with _lock:  # a name is registered once, whichever thread traces it first
        return _registered(text)


def _registered(text: str) -> str | None:
    header = pathlib.Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h"
    parts = (text, _machine(), header.read_text("utf-8"))
    name = f"adamx_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}"
    if name not in _loaded:
        library = _library(name, text)
        if library is None:
            return None
        capsule = jax.ffi.pycapsule(library.adamx_pass)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
        _loaded[name] = library
    return name


def _library(name: str, text: str) -> Any:
    """The program, loaded; None where it cannot be compiled or loaded (warns)."""
    try:
        path = _compiled(_own_folder(), name, text)
        return path and ctypes.CDLL(str(path))
    except OSError:
        pass  # a broken file, a full disk, a folder that nothing is run from
    try:
        path = _compiled(_temporary_folder(), name, text)
        return path and ctypes.CDLL(str(path))
    except OSError as error:
        _warn_of_failure(str(error))
        return None


def _compiled(folder: pathlib.Path, name: str, text: str) -> pathlib.Path | None:
    path = folder / f"{name}.so"
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source, made = pathlib.Path(work, f"{name}.c"), pathlib.Path(work, f"{name}.so")
        source.write_text(text, "utf-8")
        command = [*_command(), *_flags(), f"-I{jax.ffi.include_dir()}"]
        run = _run([*command, str(source), "-o", str(made), "-lm"])
        if run.returncode:
            _warn_of_failure(run.stderr)
            return None
        os.replace(made, path)  # whole or not there, whoever else compiles it
    return path


@functools.cache
def _warn_of_failure(message: str) -> None:
    first = next((line for line in message.splitlines() if "error" in line), message)
    warnings.warn(
        f"adamx: the C compiler {compiler()} failed; kernel='native' runs as "
        f"kernel='xla'. It says: {first.strip()[:300]}",
        UserWarning,
        stacklevel=2,
    )


def _own_folder() -> pathlib.Path:
    """The cache folder if it is the user's alone, else one for this process."""
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
        if is_own and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # the second: nobody knows a home
        pass
    return _temporary_folder()


@functools.cache
def _temporary_folder() -> pathlib.Path:
    """What others could write to is not loaded from."""
    return pathlib.Path(tempfile.mkdtemp(prefix="adamx-"))
