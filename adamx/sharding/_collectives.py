"""HLO -> COLLECTIVES: what a compiled step moves between devices, in bytes.

Bytes are those that one device receives (it sends as many), on a ring of n devices:

    all-gather          (n - 1)/n  of the result
    reduce-scatter      (n - 1)    of the result, a piece
    all-reduce          2 (n - 1)/n of the result: scatter, then gather
    all-to-all          (n - 1)/n  of the result
    collective-permute  the result

Of a conditional's branches the one that moves most counts; a loop's body as often as it
runs, once where that is not known.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|" + (
    "collective-permute|collective-broadcast"
)
_INSTRUCTION = re.compile(rf"=\s+(.*?)\s({_KINDS})(-start)?\(")
_HEAD = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*)?(?:->.*)?\{\s*$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=")
_MESH = re.compile(r"replica_groups=@?\w*\[?([^\]]*)\]?\s*\{('[^}]*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_NAMED = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_CALLS = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_EITHER = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size.

    Attributes:
      kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', ...
      devices: of one group.
      count: how many arrays in a step.
      bytes: that one device receives in a step, all of them together, on a ring.
    """

    kind: str
    devices: int
    count: int
    bytes: float


def received(kind: str, devices: int, result: float) -> float:
    """Bytes that one device receives for a result of so many bytes on it."""
    if devices <= 1:
        return 0.0
    kept = (devices - 1) / devices
    if kind == "all-reduce":
        return 2 * kept * result
    if kind == "reduce-scatter":
        return (devices - 1) * result
    if kind in ("all-gather", "all-to-all", "ragged-all-to-all"):
        return kept * result
    return result


def gathered(collectives: Iterable[Collective]) -> tuple[Collective, ...]:
    """One entry for each kind and size of groups, the most bytes first."""
    counts: Counter[tuple[str, int]] = Counter()
    sums: dict[tuple[str, int], float] = {}
    for c in collectives:
        key = c.kind, c.devices
        counts[key] += c.count
        sums[key] = sums.get(key, 0.0) + c.bytes
    found = [Collective(*key, counts[key], sums[key]) for key in counts]
    return tuple(sorted(found, key=lambda c: (-c.bytes, c.kind, c.devices)))


def collectives_of(text: str, devices: int) -> tuple[Collective, ...]:
    """Those of a compiled program.

    Args:
      text: `compiled.as_text()`.
      devices: of the program.
    """
    bodies, entry = _computations(text)
    known: dict[str, list[Collective]] = {}

    def of(name: str) -> list[Collective]:
        if name not in known:
            known[name] = []
            found: list[Collective] = []
            for line in bodies.get(name, ()):
                found += _own(line, devices)
                trips = int(m[1]) if (m := _TRIPS.search(line)) else 1
                for called in _CALLS.findall(line):
                    found += [_times(c, trips) for c in of(called)]
                branches = [of(b) for b in _branches(line)]
                found += max(branches, key=_total, default=[])
            known[name] = found
        return known[name]

    return gathered(of(entry))


def _times(c: Collective, trips: int) -> Collective:
    return dataclasses.replace(c, count=c.count * trips, bytes=c.bytes * trips)


def _total(found: Iterable[Collective]) -> tuple[float, int]:
    found = list(found)
    return sum(c.bytes for c in found), len(found)


def _branches(line: str) -> list[str]:
    listed = _BRANCHES.search(line)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return _EITHER.findall(line)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, name = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = _HEAD.match(line)
            name = head[2] if head else None
            if head and name is not None and not line.startswith("HloModule"):
                bodies[name] = []
                entry = name if head[1] else entry
        elif name is not None:
            bodies.setdefault(name, []).append(line)
    return bodies, entry


def _own(line: str, devices: int) -> list[Collective]:
    found = _INSTRUCTION.search(line)
    if found is None:
        return []
    kind, arrays = found[2], _ARRAY.findall(found[1])
    group = _group(line, devices)
    result = sum(_byte_count(*array) for array in arrays)
    count = max(len(arrays), 1)
    if found[3] and kind == "all-gather":  # operands and results, n times as large
        result, count = result * group / (group + 1), count // 2
    elif found[3] and kind == "collective-permute":  # and two words of context
        result, count = _byte_count(*arrays[0]), 1
    return [Collective(kind, group, count, received(kind, group, result))]


def _group(line: str, devices: int) -> int:
    if listed := _LISTED.search(line):
        return len(listed[1].split(","))
    if iota := _IOTA.search(line):
        return int(iota[1].split(",")[-1])
    if mesh := _MESH.search(line):
        sizes = {name: int(size) for name, size in _AXIS.findall(mesh[1])}
        named = _NAMED.findall(mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in named)
    return devices  # replica_groups={}, and pairs


def _byte_count(dtype: str, sizes: str) -> float:
    bits = re.search(r"\d+", dtype)
    width = 8 if dtype == "pred" else int(bits[0]) if bits else 0
    return math.prod(int(n) for n in sizes.split(",") if n) * width / 8
