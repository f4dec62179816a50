"""The loops of a pass: over rows, blocks and elements."""

import dataclasses
from collections.abc import Sequence

from adamx.native import _operations as operations
from adamx.native._graph import Value
from adamx.native._regions import Region

# Elements of a block: what is made before it is reduced, or in 32 bits before it is
# written in 8, in the fastest cache. Loops that do one thing are vectorised.
BLOCK = 512
# So many elements ahead, a reduction asks for what it will read, block by block. A
# processor does so of its own accord, but not beyond a page of memory.
AHEAD = 8 * BLOCK
# So many elements ahead, a loop that writes asks for what it will read, and as often.
# (Many at a time, or further ahead, and it gains nothing.)
SOON, OFTEN = 768, 64

_ROW = [
    "for (int64_t r = begin; r < end; r++) {",
    "const int64_t first = r * cols, first_column = (r / rows) * cols;",
    "(void)first_column;",
]


@dataclasses.dataclass
class Parts:
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
    asks: list[str] = dataclasses.field(default_factory=list)
    spans: int = 0

    @property
    def is_blocked(self) -> bool:
        held = [*self.region.arrays, *self.region.results]
        is_wide = not any(operations.is_byte(value.dtype) for value in held)
        return bool(self.region.reductions) or not is_wide

    def read(self, i: int, value: Value, kind: str) -> str:
        """Declares an array; the name of its element.

        Args:
          i: its place among the arrays.
          value: the array.
          kind: "array", "row", "column", or "span": by column, for so many rows.
        """
        kept = stored(value)
        is_packed = operations.is_packed(value.dtype)
        assert kind == "array" or not is_packed  # see `_regions`
        self.once.append(f"const {kept}* in{i} = (const {kept}*)in[{i}];")
        if kind == "row":
            self.by_row.append(reading(f"r{i}", value, f"in{i}[r]"))
            return f"r{i}"
        starts = {"array": "first", "column": "first_column", "span": f"first{i}"}
        start = starts[kind]
        if kind == "span":
            self.by_row.append(self.first_of_span(start))
        if not self.is_blocked:
            index = "i" if kind == "array" else f"{start} + c"
            if kind == "array":
                begin = "first + from" if self.region.is_by_rows else "from"
                self.asks.append(asking(f"in{i} + {begin} + {SOON}", OFTEN, kept, 3))
            self.lines.append(reading(f"a{i}", value, f"in{i}[{index}]"))
            return f"a{i}"
        if is_packed:
            self.once.append(f"{operations.written_type(value.dtype)} n{i}[{BLOCK}];")
            self.by_block.append(f"unpack_{value.dtype}(n{i}, in{i}, first + from, n);")
            self.lines.append(reading(f"a{i}", value, f"n{i}[j]"))
            return f"a{i}"
        self.by_block.append(f"const {kept}* x{i} = in{i} + {start} + from;")
        place = f"x{i}[j]"
        if kind == "array" and self.region.reductions:
            self.by_block.append(asking(f"x{i} + {AHEAD}", BLOCK, kept, 2))
        if kind == "array" and operations.is_byte(value.dtype):
            self.once.append(f"{operations.written_type(value.dtype)} n{i}[{BLOCK}];")
            self.by_block.append(f"for (int j = 0; j < n; j++) n{i}[j] = {place};")
            place = f"n{i}[j]"
        self.lines.append(reading(f"a{i}", value, place))
        return f"a{i}"

    def write(self, i: int, value: Value, name: str) -> None:
        """Declares a result, and writes its element."""
        kept = stored(value)
        self.once.append(f"{kept}* out{i} = ({kept}*)out[{i}];")
        found = operations.store(value.dtype, name)
        if not self.is_blocked:
            self.lines.append(f"out{i}[i] = {found};")
            return
        if operations.is_byte(value.dtype):
            self.once.append(f"{operations.written_type(value.dtype)} m{i}[{BLOCK}];")
            self.lines.append(f"m{i}[j] = {found};")
        if operations.is_packed(value.dtype):
            self.behind.append(f"pack_4(out{i}, first + from, m{i}, n);")
            return
        self.by_block.append(f"{kept}* y{i} = out{i} + first + from;")
        if not operations.is_byte(value.dtype):
            self.lines.append(f"y{i}[j] = {found};")
            return
        self.behind.append(f"for (int j = 0; j < n; j++) y{i}[j] = ({kept})m{i}[j];")

    def first_of_span(self, name: str) -> str:
        """The line that finds where the numbers are of the rows that r belongs to."""
        span = f"spans[{self.spans}]"
        self.spans += 1
        blocks = f"((rows + {span} - 1) / {span})"
        place = f"(r / rows) * {blocks} + r % rows / {span}"
        return f"const int64_t {name} = ({place}) * cols;"

    def loops(self, before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
        """The loops over rows, blocks and elements; lines by row before and after."""
        is_by_rows = self.region.is_by_rows
        if not self.is_blocked:
            start, end = ("0", "cols") if is_by_rows else ("begin", "end")
            inner = [
                f"for (int64_t from = {start}; from < {end}; from += {OFTEN}) {{",
                f"const int64_t left = {end} - from;",
                f"const int64_t stop = left < {OFTEN} ? {end} : from + {OFTEN};",
                *self.asks,
                "INDEPENDENT",
                "for (int64_t c = from; c < stop; c++) {",
                f"const int64_t i = {'first + c' if is_by_rows else 'c'};",
                *self.lines,
                "}",
                "}",
            ]
        else:
            inner = [
                f"const int64_t length = {'cols' if is_by_rows else 'end - begin'};",
                f"for (int64_t from = 0; from < length; from += {BLOCK}) {{",
                f"const int n = (int)(length - from < {BLOCK} ? length - from : "
                f"{BLOCK});",
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


def asking(place: str, n: int, kind: str, level: int) -> str:
    """The line that asks for n elements of a C type, to be brought to a cache."""
    line = f"__builtin_prefetch((const char*)({place}) + b, 0, {level});"
    return f"for (int b = 0; b < {n} * (int)sizeof({kind}); b += 64) {line}"


def stored(value: Value) -> str:
    """The C type of a value's elements in memory."""
    return operations.stored_type(value.dtype)


def reading(name: str, value: Value, place: str) -> str:
    """The line that reads an element into a variable."""
    kind = operations.variable_type(value.dtype)
    return f"const {kind} {name} = {operations.load(value.dtype, place)};"
