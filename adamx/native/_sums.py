"""Reductions as C: sums and largest elements of a leaf, of its rows, of its columns."""

import dataclasses
from collections.abc import Sequence

from adamx.native import _operations as operations
from adamx.native._graph import Node, Number, Operand, Value
from adamx.native._lines import is_made_by
from adamx.native._loops import BLOCK, Parts, stored
from adamx.native._reductions import LARGER_NUMBER, reduction, reduction_of
from adamx.native._regions import Region

# Independent sums, for the compiler to keep in one vector.
_LANES = 32


def reduces(region: Region, names: dict[Value, str], parts: Parts) -> list[str]:
    """`reduce`, and what pass.c needs to put the parts of a leaf together."""
    sums = []
    for i, (node, value) in enumerate(
        zip(region.reductions, region.outputs, strict=True)
    ):
        kind, start, step = reduction(node.name, value.dtype)
        size = _size_or_zero(node, value)
        if size is not None:
            value, start, step = size, "0", LARGER_NUMBER
        sums.append(_Sum(i, node, value, kind, start, step))
    by_kind = {k: [s for s in sums if s.kind == k] for k in ("single", "row", "column")}
    stepwise = [*by_kind["single"], *by_kind["row"]]
    buffers = {names[s.value]: s for s in stepwise}
    for name, s in buffers.items():
        parts.once.append(
            f"{operations.variable_type(s.value.dtype)} b_{name}[{BLOCK}];"
        )
        parts.lines.append(f"b_{name}[j] = {name};")
    for s in by_kind["column"]:
        first = "first_column"
        if s.span is not None:
            first = f"first_of{s.i}"
            parts.by_row.append(parts.first_of_span(first))
        parts.by_block.append(f"{s.type}* v{s.i} = col{s.i} + {first} + from;")
        step = f"v{s.i}[j] = STEP{s.i}(v{s.i}[j], {names[s.value]});"
        parts.lines.append(step)
    parts.once += _column_pointers(by_kind["column"])
    parts.behind += [line for s in stepwise for line in s.steps(f"b_{names[s.value]}")]
    return [
        *(f"#define STEP{s.i}(a, x) ({s.next})" for s in sums),
        *_wholes(by_kind["single"]),
        *_columns(by_kind["column"], len(region.spreads)),
        "static void reduce(",
        "    void* const* in, void* const* out, const void* const* scalars,",
        "    whole_t* whole, char* columns, const int64_t* n_columns,",
        "    int64_t begin, int64_t end, int64_t rows, int64_t cols,",
        "    const int64_t* spans) {",
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
    if node.name != "reduce_max" or not is_made_by(value, "select_n"):
        return None
    is_nan, size, other = _inputs(value)
    if is_made_by(other, "broadcast_in_dim"):
        (other,) = _inputs(other)
    is_zero = isinstance(other, Number) and other.value == 0
    if not is_zero or not is_made_by(is_nan, "ne") or not is_made_by(size, "abs"):
        return None
    assert isinstance(size, Value)
    return size if all(x is size for x in _inputs(is_nan)) else None


def _inputs(value: Operand) -> tuple[Operand, ...]:
    """What a value that some operation makes is made of."""
    assert isinstance(value, Value)
    assert value.node is not None
    return value.node.inputs


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
        found = reduction_of(self.node)
        return found and found.kind

    @property
    def span(self) -> int | None:
        found = reduction_of(self.node)
        return found and found.span

    def lanes(self) -> list[str]:
        return [
            f"{self.type} acc{self.i}[{_LANES}];",
            f"for (int l = 0; l < {_LANES}; l++) acc{self.i}[l] = {self.start};",
        ]

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
        kept = stored(self.value)
        return [
            *self.total(),
            f"(({kept}*)out[{self.i}])[r] = ({kept})total{self.i};",
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
            f"*({stored(s.value)}*)out[{s.i}] = ({stored(s.value)})a->w{s.i};"
            for s in sums
        ),
        "}",
    ]


def _column_pointers(sums: Sequence[_Sum]) -> list[str]:
    lines = []
    for k, s in enumerate(sums):
        lines.append(f"{s.type}* col{s.i} = ({s.type}*)columns;")
        lines.append(f"columns += n_columns[{k}] * COLUMN_BYTES;")
    return lines


def _columns(sums: Sequence[_Sum], before: int) -> list[str]:
    """Numbers by column: one set for each thread, those of one sum behind another's.

    Args:
      sums: those by column.
      before: how many spans belong to what is read.
    """
    # All as wide as the widest: a double after an odd number of floats is not aligned.
    width = 8 if any(s.type == "double" for s in sums) else 4
    counts = []
    for k, s in enumerate(sums):
        blocks = ""
        if s.span is not None:
            blocks = f" * ((rows + spans[{before}] - 1) / spans[{before}])"
            before += 1
        counts.append(f"n[{k}] = matrices * cols{blocks};")

    def loop(line: str, *pointers: str) -> list[str]:
        lines = []
        for k, s in enumerate(sums):
            lines += [
                f"for (int64_t c = 0; c < n[{k}]; c++) {{",
                line.format(
                    i=s.i,
                    start=s.start,
                    a=f"(({s.type}*)a)[c]",
                    b=f"((const {s.type}*)b)[c]",
                    out=f"(({stored(s.value)}*)out[{s.i}])[c]",
                ),
                "}",
                *(f"{p} += n[{k}] * COLUMN_BYTES;" for p in pointers),
            ]
        return lines

    return [
        f"#define COLUMN_SUMS {len(sums)}",
        f"#define COLUMN_BYTES {width}",
        "static void count_columns(int64_t matrices, int64_t rows, int64_t cols,",
        "                          const int64_t* spans, int64_t* n) {",
        *counts,
        "}",
        "static void start_columns(char* a, const int64_t* n) {",
        *loop("{a} = {start};", "a"),
        "}",
        "static void add_columns(char* a, const char* b, const int64_t* n) {",
        *loop("{a} = STEP{i}({a}, {b});", "a", "b"),
        "}",
        "static void finish_columns(",
        "    void* const* out, const char* a, const int64_t* n) {",
        *loop("{out} = {a};", "a"),
        "}",
    ]
