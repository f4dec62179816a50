"""RECORD <-> LINE: a record as one line of strict JSON.

    {"count": 200, "learning_rate": 0.001, "seen": 200, "metrics": {"loss": 0.5},
     "diagnostics": {"count": 200, "numbers": ["r/p50", "grad_norm"],
                     "layers": {"dense/kernel": [0.1, "NaN"]}}}

Each line stands alone, so that a broken one costs only itself. JSON has no NaN and no
infinities: they are written as the strings "NaN", "Infinity" and "-Infinity", which
float() of Python and Number() of JavaScript read. What is None is left out. Keys that
this version does not know are passed over.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from adamx import _checks
from adamx.diagnostics._record import (
    FIELDS,
    Measurement,
    Row,
    check,
    check_number,
    check_steps,
)

# What a line says: one of them at least. A step alone says nothing.
_KEYS = {*FIELDS, "metrics", "diagnostics"}
_WHOLE = ("step", "unseen", "seen")
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


class BrokenLine(NamedTuple):
    """A line of a file that is no record.

    Attributes:
      number: of the line, from 1.
      reason: what is wrong with it.
      text: how it begins.
    """

    number: int
    reason: str
    text: str


def to_line(row: Row) -> bytes:
    """One line, its end included."""
    out: dict[str, Any] = _encoded(row.fields)
    if row.passed_step is not None:
        out["step"] = row.passed_step
    if row.unseen is not None:
        out["unseen"] = row.unseen
    if row.seen is not None:
        out["seen"] = row.seen
    if row.metrics:
        out["metrics"] = _encoded(row.metrics)
    if row.measured is not None:
        rows = row.measured.values.tolist()
        if not np.isfinite(row.measured.values).all():
            rows = [[_encoded(x) for x in values] for values in rows]
        out["diagnostics"] = {
            "count": row.measured.count,
            "numbers": row.measured.numbers,
            "layers": dict(zip(row.measured.layers, rows, strict=True)),
        }
        if row.measured.unseen:
            out["diagnostics"]["unseen"] = row.measured.unseen
    text = json.dumps(out, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def from_line(line: bytes) -> Row:
    """The row of a line; ValueError says why there is none."""
    found = json.loads(line.decode())  # both errors are ValueErrors
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    if not _KEYS & set(found):
        raise ValueError(f"expected one of {', '.join(sorted(_KEYS))}, got none")
    fields = {name: _decoded(found[name]) for name in FIELDS if name in found}
    metrics = _decoded(found.get("metrics", {}))
    measured = _measurement(found.get("diagnostics"))
    return check(Row(fields, metrics, measured, *(found.get(name) for name in _WHOLE)))


def read(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes, Row | str]]:
    """Number (from 1), text, and the row or what is wrong, for each line with text."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if line:
                try:
                    yield number, line, from_line(line)
                except (ValueError, RecursionError) as error:
                    yield number, line, str(error)


def append(path: str | os.PathLike[str], line: bytes) -> None:
    """Adds a line, on a line of its own even where the last one was cut short.

    One system call, so that what is written is written whole also where the process is
    killed right after, or a second one appends to the same file.
    """
    with open(path, "a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        written = file.write(line)
        while written < len(line):  # a signal, or a disk that is nearly full
            written += file.write(line[written:])


def _measurement(found: Any) -> Measurement | None:
    if found is None:
        return None
    try:
        count, numbers, layers = found["count"], found["numbers"], found["layers"]
        if not isinstance(numbers, list):
            raise ValueError(f"'numbers' must be a list, got {numbers!r}")
        rows = [_decoded(row) for row in layers.values()]
        for layer, row in zip(layers, rows, strict=True):
            for x in row:
                check_number(layer, x)
        values = np.array(rows, np.float64).reshape(len(rows), len(numbers))
        names = tuple(map(str, numbers))
        unseen = found.get("unseen", 0)
        for name, value in (("count", count), ("unseen", unseen)):
            check_steps(name, value)
        return Measurement(count, tuple(layers), names, values, unseen)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"'diagnostics' cannot be read: {error}") from None


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(name): _encoded(inner)
            for name, inner in value.items()
            if inner is not None
        }
    if isinstance(value, float) and not math.isfinite(value):
        sign = "-" if value < 0 else ""
        return "NaN" if math.isnan(value) else f"{sign}Infinity"
    return value


def _decoded(value: Any) -> Any:
    """What `_encoded` had; unchecked."""
    if isinstance(value, dict):
        return {key: _decoded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_decoded(inner) for inner in value]
    return float(value) if value in _NOT_FINITE else value


def checked_path(path: Any) -> pathlib.Path:
    """A path at which a file can be."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"`path` must be a file's path or None, got "
            f"{_checks.describe_value(path)}; "
            "pass e.g. 'run.jsonl'."
        )
    checked = pathlib.Path(path)
    if checked.is_dir():
        raise IsADirectoryError(
            f"`path` must be a file, got the folder '{checked}'; pass e.g. "
            f"'{checked / 'run.jsonl'}'."
        )
    if not checked.parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that exists, got '{checked}'; make "
            f"'{checked.parent}' first."
        )
    return checked
