"""A region as C: one function for all leaves that go through the same operations."""

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence

from adamx.native import _operations as operations
from adamx.native._graph import Value
from adamx.native._lines import (
    SHARES,
    computed,
    limits_of,
    shared_roots,
    steps_of_places,
)
from adamx.native._loops import BLOCK, Parts, reading, stored
from adamx.native._regions import Region
from adamx.native._sums import reduces


@dataclasses.dataclass(frozen=True)
class Source:
    """A program in C.

    Attributes:
      text: the program; equal for leaves that go through the same operations.
      scalar_dtypes, in_dtypes, out_dtypes: of what it reads and writes, for each leaf.
    """

    text: str
    scalar_dtypes: tuple[str, ...]
    in_dtypes: tuple[str, ...]
    out_dtypes: tuple[str, ...]


def source_of(region: Region) -> Source:
    """The program of a region."""
    names: dict[Value, str] = {}
    parts = Parts(region)
    for i, value in enumerate(region.scalars):
        place = f"*(const {stored(value)}*)scalars[{i}]"
        parts.once.append(reading(f"s{i}", value, place))
        names[value] = f"s{i}"
    kinds = [*("array" for _ in region.arrays), *("row" for _ in region.rows)]
    kinds += ["column" for _ in region.columns] + ["span" for _ in region.spreads]
    named = [*region.arrays, *region.rows, *region.columns, *region.spreads]
    for i, (value, kind) in enumerate(zip(named, kinds, strict=True)):
        names[value] = parts.read(i, value, kind)
    for (dtype, text), name in limits_of(region).items():
        kind = operations.variable_type(dtype)
        parts.once.append(f"volatile {kind} v_{name} = {text};")
        parts.once.append(f"const {kind} {name} = v_{name};")
    for step in steps_of_places(region) if parts.is_blocked else ():
        parts.once.append(f"uint32_t p{step}[{BLOCK}];")
        parts.once.append(
            f"for (int j = 0; j < {BLOCK}; j++) p{step}[j] = {step}u * j;"
        )
    parts.lines += computed(region, names, is_blocked=parts.is_blocked)
    write = reduces if region.reductions else _writes
    text = _joined(
        *_head(region, parts),
        _text("prelude.c"),
        *write(region, names, parts),
        _text("pass.c"),
    )
    scalars, arrays = _dtypes(region.scalars), _dtypes(region.reads)
    return Source(text, scalars, arrays, _dtypes(region.results))


def _dtypes(values: Sequence[Value]) -> tuple[str, ...]:
    return tuple(v.dtype for v in values)


def _joined(*parts: Sequence[str] | str) -> str:
    flat: list[str] = []
    for part in parts:
        flat += [part] if isinstance(part, str) else part
    return "\n".join(flat) + "\n"


def _head(region: Region, parts: Parts) -> list[str]:
    lines = [*parts.once, *parts.by_row, *parts.lines]
    is_used = any("float16" in line.replace("bfloat16", "") for line in lines)
    held = [x.dtype for x in (*region.scalars, *region.reads, *region.results)]
    return [
        *(["#define USES_FLOAT16"] if is_used or "float16" in held else []),
        *(["#define BY_ROWS"] if region.is_by_rows else []),
        *(["#define REDUCES"] if region.reductions else []),
        *(["#define PACKED"] if any(map(operations.is_packed, held)) else []),
        f"#define N_SPANS {len(region.spans)}",
        f"#define N_SCALARS {len(region.scalars)}",
        f"#define N_IN {len(region.reads)}",
        f"#define N_OUT {len(region.results)}",
    ]


def _writes(region: Region, names: dict[Value, str], parts: Parts) -> list[str]:
    for i, value in enumerate(region.outputs):
        parts.write(i, value, names[value])
    factors = {factor for _, _, factor in shared_roots(region).values()}
    numbers = [i for i, s in enumerate(region.scalars) if s in factors]
    if not numbers:
        return [
            *_function("static void elements", ""),
            *parts.once,
            *parts.loops(),
            "}",
        ]
    # Two loops, and one question before both.
    inlined = "static inline __attribute__((always_inline)) void elements_of"
    given = "in, out, scalars, begin, end, rows, cols, spans"
    tests = [f"*(const float*)scalars[{i}] > 0" for i in numbers]
    return [
        *_function(inlined, f", const int {SHARES}"),
        *parts.once,
        *parts.loops(),
        "}",
        *_function("static void elements", ""),
        f"if ({' && '.join(tests)}) elements_of({given}, 1);",
        f"else elements_of({given}, 0);",
        "}",
    ]


def _function(name: str, more: str) -> list[str]:
    return [
        f"{name}(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    int64_t begin, int64_t end, int64_t rows, int64_t cols,",
        f"    const int64_t* spans{more}) {{",
    ]


@functools.cache
def _text(name: str) -> str:
    return importlib.resources.files("adamx.native").joinpath(name).read_text("utf-8")
