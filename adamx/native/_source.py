"""A region as C: one function for all leaves that go through the same operations."""

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence

from adamx.native import _operations as operations
from adamx.native._graph import PASSED_ON, Operand, Value
from adamx.native._regions import Region

# Independent sums, for the compiler to keep in one vector.
_LANES = 16


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
    reads = []
    for i, value in enumerate(region.scalars):
        dtype = value.dtype
        kind = operations.variable_type(dtype)
        place = f"*(const {operations.stored_type(dtype)}*)scalars[{i}]"
        reads.append(f"const {kind} s{i} = {operations.load(dtype, place)};")
        names[value] = f"s{i}"
    lines = []
    for i, value in enumerate(region.arrays):
        dtype = value.dtype
        stored = operations.stored_type(dtype)
        reads.append(f"const {stored}* in{i} = (const {stored}*)in[{i}];")
        kind = operations.variable_type(dtype)
        lines.append(f"const {kind} a{i} = {operations.load(dtype, f'in{i}[i]')};")
        names[value] = f"a{i}"
    lines += _computed(region, names)
    parts = {"reads": reads, "lines": lines}
    if region.reduction is None:
        text = _writes(region, names, **parts)
    else:
        text = _reduces(region, names, **parts)
    scalars, arrays = _dtypes(region.scalars), _dtypes(region.arrays)
    return Source(text, scalars, arrays, _dtypes(region.results))


def _dtypes(values: Sequence[Value]) -> tuple[str, ...]:
    return tuple(v.dtype for v in values)


def _computed(region: Region, names: dict[Value, str]) -> list[str]:
    """One line for each operation; names what it computes."""

    def name(operand: Operand) -> str:
        if isinstance(operand, Value):
            return names[operand]
        return operations.literal(operand.value, operand.dtype)

    lines = []
    for node in region.nodes:
        for output in node.outputs:
            inputs: Sequence[Operand] = node.inputs
            if node.name in PASSED_ON:
                inputs = [node.inputs[output.index]]
                if isinstance(inputs[0], Value) and inputs[0] not in names:
                    continue  # it passes on what is no part of this region
            dtypes = [x.dtype for x in inputs]
            dtype = output.dtype
            text = operations.expression(
                node.name, node.params, dtypes, dtype, [name(x) for x in inputs]
            )
            names[output] = f"t{len(names)}"
            kind = operations.variable_type(dtype)
            lines.append(f"const {kind} {names[output]} = {text};")
    return lines


def _joined(*parts: Sequence[str] | str) -> str:
    flat: list[str] = []
    for part in parts:
        flat += [part] if isinstance(part, str) else part
    return "\n".join(flat) + "\n"


def _head(region: Region, lines: Sequence[str]) -> list[str]:
    head = [
        f"#define N_SCALARS {len(region.scalars)}",
        f"#define N_IN {len(region.arrays)}",
        f"#define N_OUT {len(region.results)}",
    ]
    is_used = any("float16" in line.replace("bfloat16", "") for line in lines)
    return ["#define USES_FLOAT16", *head] if is_used else head


def _writes(
    region: Region, names: dict[Value, str], reads: list[str], lines: list[str]
) -> str:
    for i, value in enumerate(region.outputs):
        dtype = value.dtype
        stored = operations.stored_type(dtype)
        reads.append(f"{stored}* out{i} = ({stored}*)out[{i}];")
        lines.append(f"out{i}[i] = {operations.store(dtype, names[value])};")
    return _joined(
        _head(region, [*reads, *lines]),
        _text("prelude.c"),
        "static void elements(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    int64_t begin, int64_t end) {",
        reads,
        "INDEPENDENT",
        "for (int64_t i = begin; i < end; i++) {",
        lines,
        "}\n}",
        _text("pass.c"),
    )


def _reduces(
    region: Region, names: dict[Value, str], reads: list[str], lines: list[str]
) -> str:
    node, (value,) = region.reduction, region.outputs
    assert node is not None
    dtype = value.dtype
    kind, first, step = operations.reduction(node.name, dtype)
    stored = operations.stored_type(dtype)
    element = operations.variable_type(dtype)
    return _joined(
        "#define REDUCES",
        f"#define FIRST ({first})",
        _head(region, [*reads, *lines]),
        _text("prelude.c"),
        f"typedef {kind} accumulator_t;",
        f"static inline {kind} combine({kind} a, {kind} x) {{ return {step}; }}",
        f"static void finish(void* out, {kind} a) {{ *({stored}*)out = ({stored})a; }}",
        f"static inline {kind} reduce(void* const* in, const void* const* scalars,",
        "                            int64_t begin, int64_t end) {",
        reads,
        f"{kind} sums[{_LANES}];",
        f"for (int l = 0; l < {_LANES}; l++) sums[l] = FIRST;",
        "int64_t first = begin;",
        f"for (; first + {_LANES} <= end; first += {_LANES})",
        f"for (int l = 0; l < {_LANES}; l++) {{",
        "const int64_t i = first + l;",
        lines,
        f"const {element} x = {names[value]}; const {kind} a = sums[l];",
        f"sums[l] = {step};",
        "}",
        "for (int64_t i = first; i < end; i++) {",
        lines,
        f"const {element} x = {names[value]}; const {kind} a = sums[i - first];",
        f"sums[i - first] = {step};",
        "}",
        f"{kind} a = FIRST;",
        f"for (int l = 0; l < {_LANES}; l++) a = combine(a, sums[l]);",
        "return a;\n}",
        _text("pass.c"),
    )


@functools.cache
def _text(name: str) -> str:
    return importlib.resources.files("adamx.native").joinpath(name).read_text("utf-8")
