"""A region as C: one function for all leaves that go through the same operations."""

import dataclasses
import functools
import importlib.resources
import itertools
from collections.abc import Sequence
from typing import Any

from adamx.native import _operations as operations
from adamx.native._graph import PASSED_ON, Node, Number, Operand, Value
from adamx.native._regions import Region, is_position, reduced_to

# Independent sums, for the compiler to keep in one vector; and numbers that are made
# before they are reduced, in the fastest cache: loops that do one thing are vectorised.
_LANES = 32
_BLOCK = 512


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
    parts = _Parts(region)
    for i, value in enumerate(region.scalars):
        place = f"*(const {_stored(value)}*)scalars[{i}]"
        parts.once.append(_reading(f"s{i}", value, place))
        names[value] = f"s{i}"
    kinds = [*("array" for _ in region.arrays), *("row" for _ in region.rows)]
    kinds += ["column" for _ in region.columns]
    for i, (value, kind) in enumerate(zip(region.reads, kinds, strict=True)):
        names[value] = parts.read(i, value, kind)
    parts.lines += _computed(region, names, is_blocked=parts.is_blocked)
    write = _reduces if region.reductions else _writes
    text = _joined(
        *_head(region, parts),
        _text("prelude.c"),
        *write(region, names, parts),
        _text("pass.c"),
    )
    scalars, arrays = _dtypes(region.scalars), _dtypes(region.reads)
    return Source(text, scalars, arrays, _dtypes(region.results))


@dataclasses.dataclass
class _Parts:
    """Lines of C: what is done once, for each row, each block and each element.

    A row (or, where rows do not matter, a chunk) is done in blocks where something is
    reduced, and where bytes are read or written. The bytes are made 32 bits wide in a
    loop of their own: a compiler that meets both in one takes as many elements at once
    as bytes fit into a vector, and runs out of registers.
    """

    region: Region
    once: list[str] = dataclasses.field(default_factory=list)
    by_row: list[str] = dataclasses.field(default_factory=list)
    by_block: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    behind: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_blocked(self) -> bool:
        stored = [*self.region.arrays, *self.region.results]
        return bool(self.region.reductions) or any(map(_is_byte, stored))

    def read(self, i: int, value: Value, kind: str) -> str:
        """Declares an array; the name of its element."""
        stored = _stored(value)
        self.once.append(f"const {stored}* in{i} = (const {stored}*)in[{i}];")
        if kind == "row":
            self.by_row.append(_reading(f"r{i}", value, f"in{i}[r]"))
            return f"r{i}"
        start = "first" if kind == "array" else "first_column"
        if not self.is_blocked:
            index = "i" if kind == "array" else "first_column + c"
            self.lines.append(_reading(f"a{i}", value, f"in{i}[{index}]"))
            return f"a{i}"
        self.by_block.append(f"const {stored}* x{i} = in{i} + {start} + from;")
        place = f"x{i}[j]"
        if kind == "array" and _is_byte(value):
            self.once.append(f"{operations.variable_type(value.dtype)} n{i}[{_BLOCK}];")
            self.by_block.append(f"for (int j = 0; j < n; j++) n{i}[j] = {place};")
            place = f"n{i}[j]"
        self.lines.append(_reading(f"a{i}", value, place))
        return f"a{i}"

    def write(self, i: int, value: Value, name: str) -> None:
        """Declares a result, and writes its element."""
        stored = _stored(value)
        self.once.append(f"{stored}* out{i} = ({stored}*)out[{i}];")
        found = operations.store(value.dtype, name)
        if not self.is_blocked:
            self.lines.append(f"out{i}[i] = {found};")
            return
        self.by_block.append(f"{stored}* y{i} = out{i} + first + from;")
        if not _is_byte(value):
            self.lines.append(f"y{i}[j] = {found};")
            return
        self.once.append(f"{operations.variable_type(value.dtype)} m{i}[{_BLOCK}];")
        self.lines.append(f"m{i}[j] = {name};")
        self.behind.append(f"for (int j = 0; j < n; j++) y{i}[j] = ({stored})m{i}[j];")

    def loops(self, before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
        """The loops over rows, blocks and elements; lines by row before and after."""
        is_by_rows = self.region.is_by_rows
        if not self.is_blocked:
            start, end = ("0", "cols") if is_by_rows else ("begin", "end")
            inner = [
                "INDEPENDENT",
                f"for (int64_t c = {start}; c < {end}; c++) {{",
                f"const int64_t i = {'first + c' if is_by_rows else 'c'};",
                *self.lines,
                "}",
            ]
        else:
            inner = [
                f"const int64_t length = {'cols' if is_by_rows else 'end - begin'};",
                f"for (int64_t from = 0; from < length; from += {_BLOCK}) {{",
                f"const int n = (int)(length - from < {_BLOCK} ? length - from : "
                f"{_BLOCK});",
                "const uint32_t place = (uint32_t)(first + from);",
                *self.by_block,
                "INDEPENDENT",
                "for (int j = 0; j < n; j++) {",
                *self.lines,
                "}",
                *self.behind,
                "}",
            ]
        row = _ROW if is_by_rows else ["{ const int64_t first = begin;"]
        return [*row, *before, *self.by_row, *inner, *after, "}"]


def _is_byte(value: Value) -> bool:
    return _stored(value) in ("int8_t", "uint8_t")


def _stored(value: Value) -> str:
    return operations.stored_type(value.dtype)


def _reading(name: str, value: Value, place: str) -> str:
    kind = operations.variable_type(value.dtype)
    return f"const {kind} {name} = {operations.load(value.dtype, place)};"


def _dtypes(values: Sequence[Value]) -> tuple[str, ...]:
    return tuple(v.dtype for v in values)


def _computed(
    region: Region, names: dict[Value, str], *, is_blocked: bool
) -> list[str]:
    """One line for each operation; names what it computes."""

    def name(operand: Operand) -> str:
        if isinstance(operand, Value):
            return names[operand]
        return operations.literal(operand.value, operand.dtype)

    lines = []

    def define(output: Value, text: str) -> None:
        names[output] = f"t{len(names)}"
        kind = operations.variable_type(output.dtype)
        lines.append(f"const {kind} {names[output]} = {text};")

    cut = _cut_when_written(region) if is_blocked else set()
    roots = _shared_roots(region)
    for node in region.nodes:
        for output in node.outputs:
            inputs: Sequence[Operand] = node.inputs
            if node.name in PASSED_ON:
                inputs = [node.inputs[output.index]]
                if isinstance(inputs[0], Value) and inputs[0] not in names:
                    continue  # it passes on what is no part of this region
            if output in names:
                continue
            if is_position(output):
                define(output, "place + (uint32_t)j" if is_blocked else "(uint32_t)i")
                continue
            given = [name(x) for x in inputs]
            if output in roots:
                root, factor = roots[output]
                if root not in names:
                    define(root, f"sqrtf({name(root.node.inputs[0])})")
                define(output, f"({names[root]} * sqrtf({name(factor)}))")
                continue
            if output in cut:
                text: str | None = (
                    f"({operations.variable_type(output.dtype)}){given[0]}"
                )
            else:
                dtypes = [x.dtype for x in inputs]
                text = operations.expression(
                    node.name, node.params, dtypes, output.dtype, given
                )
            if text in given:
                names[output] = text
            else:
                define(output, text)
    return lines


def _cut_when_written(region: Region) -> set[Value]:
    """Integers cut to a byte that are only written: writing them cuts them."""
    read = {x for node in region.nodes for x in node.inputs if isinstance(x, Value)}
    return {
        value
        for value in region.outputs
        if _is_byte(value)
        and value not in read
        and value.node is not None
        and value.node.name == "convert_element_type"
        and value.node.inputs[0].dtype in ("int32", "uint32")
    }


def _shared_roots(region: Region) -> dict[Value, tuple[Value, Operand]]:
    """Roots of s x, s a scalar, as (the root of x that is there too, s): one is saved."""
    roots = {
        node.inputs[0]: node.outputs[0]
        for node in region.nodes
        if node.name == "sqrt" and node.outputs[0].dtype == "float32"
    }
    found: dict[Value, tuple[Value, Operand]] = {}
    for inner, root in roots.items():
        value: Any = inner
        if _is_node(value, "add"):  # of nothing, as an eps_root that is 0
            terms = value.node.inputs
            rest = [x for x in terms if not (isinstance(x, Number) and x.value == 0)]
            value = rest[0] if len(rest) == 1 else value
        if not _is_node(value, "mul"):
            continue
        for x, factor in itertools.permutations(value.node.inputs):
            is_scalar = isinstance(factor, Number) or factor in region.scalars
            if is_scalar and x in roots:
                found[root] = roots[x], factor
    return found


def _is_node(value: Any, name: str) -> bool:
    return (
        isinstance(value, Value) and value.node is not None and value.node.name == name
    )


def _joined(*parts: Sequence[str] | str) -> str:
    flat: list[str] = []
    for part in parts:
        flat += [part] if isinstance(part, str) else part
    return "\n".join(flat) + "\n"


def _head(region: Region, parts: _Parts) -> list[str]:
    lines = [*parts.once, *parts.by_row, *parts.lines]
    is_used = any("float16" in line.replace("bfloat16", "") for line in lines)
    stored = [x.dtype for x in (*region.scalars, *region.reads, *region.results)]
    return [
        *(["#define USES_FLOAT16"] if is_used or "float16" in stored else []),
        *(["#define BY_ROWS"] if region.is_by_rows else []),
        *(["#define REDUCES"] if region.reductions else []),
        f"#define N_SCALARS {len(region.scalars)}",
        f"#define N_IN {len(region.reads)}",
        f"#define N_OUT {len(region.results)}",
    ]


def _writes(region: Region, names: dict[Value, str], parts: _Parts) -> list[str]:
    for i, value in enumerate(region.outputs):
        parts.write(i, value, names[value])
    return [
        "static void elements(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    int64_t begin, int64_t end, int64_t rows, int64_t cols) {",
        *parts.once,
        *parts.loops(),
        "}",
    ]


_ROW = [
    "for (int64_t r = begin; r < end; r++) {",
    "const int64_t first = r * cols, first_column = (r / rows) * cols;",
    "(void)first_column;",
]


def _reduces(region: Region, names: dict[Value, str], parts: _Parts) -> list[str]:
    """`reduce`, and what pass.c needs to put the parts of a leaf together."""
    sums = []
    for i, (node, value) in enumerate(
        zip(region.reductions, region.outputs, strict=True)
    ):
        kind, start, step = operations.reduction(node.name, value.dtype)
        size = _size_or_zero(node, value)
        if size is not None:
            value, start, step = size, "0", operations.LARGER_NUMBER
        sums.append(_Sum(i, node, value, kind, start, step))
    by_kind = {k: [s for s in sums if s.kind == k] for k in ("single", "row", "column")}
    stepwise = [*by_kind["single"], *by_kind["row"]]
    buffers = {names[s.value]: s for s in stepwise}
    for name, s in buffers.items():
        parts.once.append(
            f"{operations.variable_type(s.value.dtype)} b_{name}[{_BLOCK}];"
        )
        parts.lines.append(f"b_{name}[j] = {name};")
    for s in by_kind["column"]:
        parts.once.append(s.column_pointer())
        parts.by_block.append(f"{s.type}* v{s.i} = col{s.i} + first_column + from;")
        step = f"v{s.i}[j] = STEP{s.i}(v{s.i}[j], {names[s.value]});"
        parts.lines.append(step)
    parts.behind += [line for s in stepwise for line in s.steps(f"b_{names[s.value]}")]
    return [
        *(f"#define STEP{s.i}(a, x) ({s.next})" for s in sums),
        *_wholes(by_kind["single"]),
        *_columns(by_kind["column"]),
        "static void reduce(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    whole_t* whole, char* columns, int64_t all_columns,",
        "    int64_t begin, int64_t end, int64_t rows, int64_t cols) {",
        *parts.once,
        *(line for s in by_kind["single"] for line in s.lanes()),
        *parts.loops(
            [line for s in by_kind["row"] for line in s.lanes()],
            [line for s in by_kind["row"] for line in s.row_result()],
        ),
        *(line for s in by_kind["single"] for line in s.whole_result()),
        "}",
    ]


def _size_or_zero(node: Node, value: Value) -> Value | None:
    """|x|, where the largest of where(isnan(|x|), 0, |x|) is asked for.

    A comparison leaves NaN out by itself then.
    """
    if node.name != "reduce_max" or not _is_node(value, "select_n"):
        return None
    assert value.node is not None
    is_nan, size, other = value.node.inputs
    if _is_node(other, "broadcast_in_dim"):
        other = other.node.inputs[0]  # type: ignore[union-attr]
    is_zero = isinstance(other, Number) and other.value == 0
    if not is_zero or not _is_node(is_nan, "ne") or not _is_node(size, "abs"):
        return None
    same = is_nan.node.inputs  # type: ignore[union-attr]
    return size if same[0] is size and same[1] is size else None  # type: ignore[return-value]


@dataclasses.dataclass
class _Sum:
    """One reduction: its place among the results, its accumulator in C."""

    i: int
    node: Node
    value: Value
    type: str
    start: str
    next: str

    @property
    def kind(self) -> str | None:
        return reduced_to(self.node)

    def lanes(self) -> list[str]:
        return [
            f"{self.type} acc{self.i}[{_LANES}];",
            f"for (int l = 0; l < {_LANES}; l++) acc{self.i}[l] = {self.start};",
        ]

    def column_pointer(self) -> str:
        return (
            f"{self.type}* col{self.i} = "
            f"({self.type}*)(columns + COLUMN_OFFSET{self.i} * all_columns);"
        )

    def steps(self, buffer: str) -> list[str]:
        """The loops that take in the numbers of a block."""
        i = self.i
        lanes = f"for (int l = 0; l < {_LANES}; l++)"
        return [
            # A copy, for the compiler to keep in registers.
            f"{{ {self.type} t[{_LANES}];",
            f"{lanes} t[l] = acc{i}[l];",
            f"const int whole = n & ~{_LANES - 1};",
            f"for (int j = 0; j < whole; j += {_LANES})",
            f"{lanes} t[l] = STEP{i}(t[l], {buffer}[j + l]);",
            f"{lanes} acc{i}[l] = t[l];",
            "for (int j = whole; j < n; j++)",
            f"acc{i}[j - whole] = STEP{i}(acc{i}[j - whole], {buffer}[j]); }}",
        ]

    def total(self) -> list[str]:
        i = self.i
        return [
            f"{self.type} total{i} = {self.start};",
            f"for (int l = 0; l < {_LANES}; l++)",
            f"total{i} = STEP{i}(total{i}, acc{i}[l]);",
        ]

    def row_result(self) -> list[str]:
        stored = _stored(self.value)
        return [
            *self.total(),
            f"(({stored}*)out[{self.i}])[r] = ({stored})total{self.i};",
        ]

    def whole_result(self) -> list[str]:
        return [*self.total(), f"whole->w{self.i} = total{self.i};"]


def _wholes(sums: Sequence[_Sum]) -> list[str]:
    """Numbers for a whole leaf: one set for each chunk, added up in their order."""
    return [
        "typedef struct { char unused;",
        *(f"{s.type} w{s.i};" for s in sums),
        "} whole_t;",
        "static void start_whole(whole_t* a) {",
        *(f"a->w{s.i} = {s.start};" for s in sums),
        "}",
        "static void add_whole(whole_t* a, const whole_t* b) {",
        *(f"a->w{s.i} = STEP{s.i}(a->w{s.i}, b->w{s.i});" for s in sums),
        "}",
        "static void finish_whole(void* const* out, const whole_t* a) {",
        *(
            f"*({_stored(s.value)}*)out[{s.i}] = ({_stored(s.value)})a->w{s.i};"
            for s in sums
        ),
        "}",
    ]


def _columns(sums: Sequence[_Sum]) -> list[str]:
    """Numbers by column: one set for each thread, in blocks of one type each."""
    # All as wide as the widest: a double after an odd number of floats is not aligned.
    width = 8 if any(s.type == "double" for s in sums) else 4
    offsets = [f"#define COLUMN_OFFSET{s.i} {n * width}" for n, s in enumerate(sums)]
    size = width * len(sums)

    def loop(line: str) -> list[str]:
        lines = []
        for s in sums:
            lines += [
                "for (int64_t c = 0; c < n; c++) {",
                line.format(
                    i=s.i,
                    start=s.start,
                    a=f"(({s.type}*)(a + COLUMN_OFFSET{s.i} * n))[c]",
                    b=f"((const {s.type}*)(b + COLUMN_OFFSET{s.i} * n))[c]",
                    out=f"(({_stored(s.value)}*)out[{s.i}])[c]",
                ),
                "}",
            ]
        return lines

    return [
        *offsets,
        f"#define COLUMN_BYTES {size}",
        "static void start_columns(char* a, int64_t n) {",
        *loop("{a} = {start};"),
        "}",
        "static void add_columns(char* a, const char* b, int64_t n) {",
        *loop("{a} = STEP{i}({a}, {b});"),
        "}",
        "static void finish_columns(void* const* out, const char* a, int64_t n) {",
        *loop("{out} = {a};"),
        "}",
    ]


@functools.cache
def _text(name: str) -> str:
    return importlib.resources.files("adamx.native").joinpath(name).read_text("utf-8")
