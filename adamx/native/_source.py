"""A region as C: one function for all leaves that go through the same operations."""

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence

from adamx.native import _operations as operations
from adamx.native._graph import PASSED_ON, Node, Operand, Value
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
    places = [*("[i]" for _ in region.arrays), *("[r]" for _ in region.rows)]
    places += ["[first_column + c]" for _ in region.columns]
    for i, (value, place) in enumerate(zip(region.reads, places, strict=True)):
        pointer = f"const {_stored(value)}* in{i} = (const {_stored(value)}*)in[{i}];"
        parts.once.append(pointer)
        lines = parts.by_row if place == "[r]" else parts.lines
        names[value] = f"r{i}" if place == "[r]" else f"a{i}"
        lines.append(_reading(names[value], value, f"in{i}{place}"))
    parts.lines += _computed(region, names)
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
    """Lines of C: what is done once, for each row, and for each element."""

    region: Region
    once: list[str] = dataclasses.field(default_factory=list)
    by_row: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)


def _stored(value: Value) -> str:
    return operations.stored_type(value.dtype)


def _reading(name: str, value: Value, place: str) -> str:
    kind = operations.variable_type(value.dtype)
    return f"const {kind} {name} = {operations.load(value.dtype, place)};"


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
            if is_position(output):
                text: str | None = "(uint32_t)i"
            else:
                given = [name(x) for x in inputs]
                text = operations.expression(
                    node.name, node.params, dtypes, dtype, given
                )
                if text in given:
                    names[output] = text
                    continue
            names[output] = f"t{len(names)}"
            kind = operations.variable_type(dtype)
            lines.append(f"const {kind} {names[output]} = {text};")
    return lines


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
        stored = _stored(value)
        parts.once.append(f"{stored}* out{i} = ({stored}*)out[{i}];")
        found = operations.store(value.dtype, names[value])
        parts.lines.append(f"out{i}[i] = {found};")
    return [
        "static void elements(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    int64_t begin, int64_t end, int64_t rows, int64_t cols) {",
        *parts.once,
        *(_ROW if region.is_by_rows else []),
        *parts.by_row,
        "INDEPENDENT",
        f"for (int64_t c = {'0; c < cols' if region.is_by_rows else 'begin; c < end'};",
        "     c++) {",
        f"const int64_t i = {'first + c' if region.is_by_rows else 'c'};",
        *parts.lines,
        "}",
        *(["}"] if region.is_by_rows else []),
        "}",
    ]


_ROW = [
    "for (int64_t r = begin; r < end; r++) {",
    "const int64_t first = r * cols, first_column = (r / rows) * cols;",
    "(void)first_column;",
]


def _reduces(region: Region, names: dict[Value, str], parts: _Parts) -> list[str]:
    """`reduce`, and what pass.c needs to put the parts of a leaf together."""
    sums = [
        _Sum(i, node, value, *operations.reduction(node.name, value.dtype))
        for i, (node, value) in enumerate(
            zip(region.reductions, region.outputs, strict=True)
        )
    ]
    by_kind = {k: [s for s in sums if s.kind == k] for k in ("single", "row", "column")}
    values = {names[value]: value for value in region.outputs}
    buffers = {name: f"b{i}" for i, name in enumerate(values)}
    return [
        *(f"#define STEP{s.i}(a, x) ({s.next})" for s in sums),
        *_wholes(by_kind["single"]),
        *_columns(by_kind["column"]),
        "static void reduce(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    whole_t* whole, char* columns, int64_t all_columns,",
        "    int64_t begin, int64_t end, int64_t rows, int64_t cols) {",
        *parts.once,
        *(
            f"{operations.variable_type(value.dtype)} {buffers[name]}[{_BLOCK}];"
            for name, value in values.items()
        ),
        *(line for s in by_kind["single"] for line in s.lanes()),
        *(s.column_pointer() for s in by_kind["column"]),
        *(_ROW if region.is_by_rows else ["const int64_t first = begin;"]),
        f"const int64_t length = {'cols' if region.is_by_rows else 'end - begin'};",
        *(line for s in by_kind["row"] for line in s.lanes()),
        *parts.by_row,
        f"for (int64_t from = 0; from < length; from += {_BLOCK}) {{",
        f"const int n = (int)(length - from < {_BLOCK} ? length - from : {_BLOCK});",
        "INDEPENDENT",
        "for (int j = 0; j < n; j++) {",
        "const int64_t c = from + j, i = first + c;",
        *parts.lines,
        *(f"{buffer}[j] = {name};" for name, buffer in buffers.items()),
        "}",
        *(line for s in sums for line in s.steps(buffers[names[s.value]])),
        "}",
        *(line for s in by_kind["row"] for line in s.row_result()),
        *(["}"] if region.is_by_rows else []),
        *(line for s in by_kind["single"] for line in s.whole_result()),
        "}",
    ]


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
        if self.kind == "column":
            place = f"col{i}[first_column + from + j]"
            step = f"{place} = STEP{i}({place}, {buffer}[j]);"
            return ["INDEPENDENT", "for (int j = 0; j < n; j++)", step]
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
