"""The manifest of a checkpoint: every file with its size and SHA-256, written last.

A folder without one is no checkpoint; one whose files are others is refused. The
manifest has a checksum of itself.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from adamx.interop._names import FORMAT

ARRAYS, MANIFEST = "arrays", "manifest.json"
_CHUNK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that is not what was saved; it names the file and what to do."""


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps that have a checkpoint which was written to its end, in order.

    Args:
      directory: see `save`; one that does not exist has none.

    Returns:
      The steps. Whether their files are still what was written, `verify` says.

    >>> import tempfile, numpy as np
    >>> from adamx.interop import save
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     folder = save(directory, 5, {"w": np.ones(2)})
    ...     whole = steps(directory)
    ...     (folder / "manifest.json").unlink()  # as a kill before its end leaves it
    ...     whole, steps(directory)
    ([5], [])
    """
    root = pathlib.Path(directory)
    names = [p.parent.name for p in root.glob(f"*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdigit())


def verify(directory: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """Reads every file of a checkpoint, and compares it with the manifest.

    Args:
      directory, step: see `save`.

    Returns:
      The manifest: "format", "step", "arrays" (form by name), "files".

    Raises:
      CheckpointError: a file that is damaged, missing or cut, which it names.

    >>> import tempfile, numpy as np
    >>> from adamx.interop import save
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     folder = save(directory, 5, {"w": np.ones(2, np.float32)})
    ...     verify(directory, 5)["arrays"]
    {'w': 'float32[2]'}
    """
    folder = pathlib.Path(directory).absolute() / str(step)
    body = _read_manifest(folder)
    for name, (size, digest) in body["files"].items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if path.stat().st_size != size:
            got = f"it has {path.stat().st_size} bytes, {size} were written"
            raise _damaged(path, got)
        if _digest(path) != digest:
            raise _damaged(path, "its SHA-256 is not that of what was written")
    return body


# ------------------------------------------------------------------------- the files


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file())


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: pathlib.Path, step: int, arrays: Mapping[str, str]) -> None:
    """Writes it, once all of its files are on the disk."""
    files = {}
    for path in _files(folder / ARRAYS):
        _flush(path)
        name = path.relative_to(folder).as_posix()
        files[name] = [path.stat().st_size, _digest(path)]
    body = {
        "format": FORMAT,
        "step": step,
        "arrays": dict(arrays),
        "files": files,
    }
    text = json.dumps(body, sort_keys=True)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(sealed, sort_keys=True))
    _flush(part)
    os.replace(part, folder / MANIFEST)
    for path in (folder, folder.parent):
        _flush(path)


def _flush(path: pathlib.Path) -> None:
    """Onto the disk, before the manifest says that it is there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        sealed = json.loads(path.read_bytes())
        body = sealed["body"]
        text = json.dumps(body, sort_keys=True)
        is_whole = hashlib.sha256(text.encode()).hexdigest() == sealed["sha256"]
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "it is no manifest") from None
    if not is_whole:
        raise _damaged(path, "its SHA-256 is not that of what was written")
    if body["format"] > FORMAT:
        raise ValueError(
            f"'{path}' has format {body['format']}, this version of adamx reads up to "
            f"{FORMAT}; install a later one."
        )
    return dict(body)


def _damaged(path: pathlib.Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint's file '{path}' is damaged: {what}. Copy it anew from where "
        "it is whole, or pass fallback=True to take the last checkpoint that is; then "
        "delete this one."
    )
