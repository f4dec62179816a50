"""A pass inside a traced function: a call of compiled C, or the same operations in XLA.

Which of the two is decided where the program is made for a device: on one CPU device
the call, on others and on several at once the operations.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from adamx.native import _build
from adamx.native._graph import PASSED_ON, Value
from adamx.native._memory import Buffer, Memory
from adamx.native._regions import Region, is_position
from adamx.native._source import Source
from adamx.native._windows import Window, cut, put, window_of


class Part(NamedTuple):
    """Where a region reads or writes.

    Attributes:
      array: the number of the operand, or of the result.
      offset: of the first element there; None: all of it.
    """

    array: int
    offset: int | None


@dataclasses.dataclass(eq=False, frozen=True)
class Pass:
    """Leaves that go through one program, with the same scalars.

    Attributes:
      target: the program's name for XLA.
      source: the program.
      regions: one for each leaf.
      reads, writes: for each region, where its arrays and its results are.
      results: shape and dtype of each.
      begins: by result, the operand whose elements it has where nothing is written.
      buffers: by operand, the result that takes its memory.
    """

    target: str
    source: Source
    regions: tuple[Region, ...]
    reads: tuple[tuple[Part, ...], ...]
    writes: tuple[tuple[Part, ...], ...]
    results: tuple[Any, ...]
    begins: dict[int, int]
    buffers: dict[int, int]

    def plain(self, *operands: Any) -> list[Any]:
        """The results by JAX's own operations."""
        results: list[Any] = [None] * len(self.results)
        for result, operand in self.begins.items():
            results[result] = operands[operand]
        rows = zip(self.regions, self.reads, self.writes, strict=True)
        for region, reads, writes in rows:
            known: dict[Value, Any] = dict(zip(region.scalars, operands, strict=False))
            for value, (i, offset) in zip(region.reads, reads, strict=True):
                x = operands[i]
                known[value] = x if offset is None else cut(x, offset, value.shape)
            for x, (i, offset) in zip(run_nodes(region, known), writes, strict=True):
                results[i] = x if offset is None else put(results[i], x, offset)
        return results

    def table(self) -> np.ndarray:
        """For the program: of each leaf its size, rows and columns; then the rows that
        share a number; then of each of its arrays and results which one it is, and the
        bytes before it there: none, where two elements share a byte.
        """
        rows = []
        for region, reads, writes in zip(
            self.regions, self.reads, self.writes, strict=True
        ):
            shape = region.arrays[0].shape
            row = [math.prod(shape), *(1, 1, *shape)[-2:], *region.spans]
            dtypes = (*self.source.in_dtypes, *self.source.out_dtypes)
            for (i, offset), dtype in zip((*reads, *writes), dtypes, strict=True):
                row += [i, (offset or 0) * jnp.dtype(dtype).itemsize]
            rows.append(row)
        return np.array(rows, np.int64).reshape(-1)


def run_nodes(region: Region, known: dict[Value, Any]) -> list[Any]:
    """A region's results, from the values of its arrays and scalars."""
    for node in region.steps:
        inputs = [
            known.get(x) if isinstance(x, Value) else x.value for x in node.inputs
        ]
        if is_position(node.outputs[0]):
            # A region begins with the places in the array, not with what counts them.
            counts = [x.node for x in node.inputs if isinstance(x, Value)]
            inputs = [made.run([])[0] for made in counts if made is not None]
        if node.name in PASSED_ON and any(x is None for x in inputs):
            # Something that passes through it is no part of this region.
            known |= dict(zip(node.outputs, inputs, strict=True))
        else:
            known |= dict(zip(node.outputs, node.run(inputs), strict=True))
    return [known[value] for value in region.results]


native_pass_p = core.Primitive("adamx_native_pass")
native_pass_p.multiple_results = True


@native_pass_p.def_abstract_eval
def _shapes(*operands: Any, made: Pass) -> list[Any]:
    return list(made.results)


def _lower_plain(ctx: Any, *operands: Any, made: Pass) -> Any:
    return mlir.lower_fun(made.plain, multiple_results=True)(ctx, *operands)


def _lower_native(ctx: Any, *operands: Any, made: Pass) -> Any:
    if not _is_on_one_device(ctx.module_context.axis_context):
        return _lower_plain(ctx, *operands, made=made)
    lower = jax.ffi.ffi_lowering(made.target, operand_output_aliases=made.buffers)
    return lower(ctx, *operands, leaves=made.table())


def _is_on_one_device(context: Any) -> bool:
    """Whether a program sees whole arrays: of one device, or inside shard_map."""
    mesh = getattr(context, "mesh", None)
    if mesh is not None:
        manual: frozenset[Any] = getattr(context, "manual_axes", frozenset())
        sizes = dict(mesh.shape)
        return math.prod(n for name, n in sizes.items() if name not in manual) == 1
    return getattr(context, "num_devices", 1) == 1


mlir.register_lowering(native_pass_p, _lower_plain)
mlir.register_lowering(native_pass_p, _lower_native, platform="cpu")


def _batch(operands: Any, axes: Any, *, made: Pass) -> Any:
    found = jax.vmap(made.plain, in_axes=axes)(*operands)
    return found, [0] * len(found)


def _differentiate(primals: Any, tangents: Any, *, made: Pass) -> Any:
    nodes = {node.name for region in made.regions for node in region.nodes}
    if "bitcast_convert_type" in nodes:
        raise NotImplementedError(
            "a step with kernel='native' has no derivative where it writes codes or "
            "rounds at random; differentiate through one with kernel='xla'."
        )
    changes = tuple(ad.instantiate_zeros(t) for t in tangents)
    return jax.jvp(made.plain, tuple(primals), changes)


batching.primitive_batchers[native_pass_p] = _batch
ad.primitive_jvps[native_pass_p] = _differentiate


def run_pass(source: Source, regions: Sequence[Region], memory: Memory) -> bool:
    """Runs regions of one program, leaf by leaf; their results are known then.

    Returns:
      Whether there is a program; where it cannot be compiled, nothing is done.
    """
    target = _build.target_of(source.text)
    if target is None:
        return False
    arrays = _Arrays(regions, memory)
    made = Pass(
        target,
        source,
        tuple(regions),
        tuple(arrays.reads),
        tuple(arrays.writes),
        tuple(arrays.results),
        arrays.begins,
        arrays.aliases,
    )
    results = native_pass_p.bind(*arrays.operands, made=made)
    for buffer, i in arrays.buffers.items():
        buffer.array = results[i]
    for value, i in arrays.made.items():
        memory.known[value] = results[i]
    return True


class _Arrays:
    """The operands and results of a call, and which part of them is whose."""

    def __init__(self, regions: Sequence[Region], memory: Memory) -> None:
        self.memory = memory
        self.operands = [memory.value_of(v) for v in regions[0].scalars]
        self.reads: list[tuple[Part, ...]] = []
        self.writes: list[tuple[Part, ...]] = []
        self.results: list[Any] = []
        self.begins: dict[int, int] = {}
        self.aliases: dict[int, int] = {}
        self.buffers: dict[Buffer, int] = {}
        self.made: dict[Value, int] = {}
        self._places: dict[object, int] = {}
        self._mark(regions)
        for region in regions:
            self._add(region)
        self._share(regions)

    def _mark(self, regions: Sequence[Region]) -> None:
        """What this call writes to a buffer is written, for all that it reads."""
        places = self.memory.places
        self.own = {
            places[value]: region
            for region in regions
            if not region.reductions
            for value in region.outputs
            if value in places
        }
        for buffer, part in self.own:
            self._buffer(buffer)
            buffer.written[part] = True

    def _buffer(self, buffer: Buffer) -> int:
        """The number of a buffer's operand."""
        if buffer not in self.buffers:
            operand = self._operand(buffer, self.memory.begin(buffer))
            result = self.buffers[buffer] = len(self.results)
            self.results.append(buffer.join.value.aval)
            self.begins[result] = operand
            self.aliases[operand] = result
        return self._places[buffer]

    def _operand(self, key: object, array: Any) -> int:
        if key not in self._places:
            self._places[key] = len(self.operands)
            self.operands.append(array)
        return self._places[key]

    def _add(self, region: Region) -> None:
        reads = tuple(self._read(value, region) for value in region.reads)
        self.reads.append(reads)
        if region.reductions:
            self.writes.append(tuple(self._result(v) for v in region.results))
            return
        writes = []
        for value in region.outputs:
            place = self.memory.places.get(value)
            if place is not None and self.own.get(place) is region:
                buffer, i = place
                writes.append(Part(self.buffers[buffer], buffer.join.offsets[i]))
                continue
            writes.append(self._result(value))
        self.writes.append(tuple(writes))

    def _share(self, regions: Sequence[Region]) -> None:
        """Results take their owners' memory, where nothing else reads it.

        Another leaf of this call may read it before or behind, or in another thread.
        """
        readers = collections.Counter(x.array for reads in self.reads for x in reads)
        for region, writes in zip(regions, self.writes, strict=True):
            for value, part in zip(region.results, writes, strict=True):
                owner = self.memory.owner.get(value)
                if owner not in region.arrays or owner.dtype != value.dtype:
                    continue
                operand = self._places[owner]
                if part.offset is None and readers[operand] == 1:
                    self.aliases[operand] = part.array

    def _result(self, value: Value) -> Part:
        self.made[value] = len(self.results)
        self.results.append(value.aval)
        return Part(self.made[value], None)

    def _read(self, value: Value, region: Region) -> Part:
        """Where a region reads an array: whole, or a part of a larger one."""
        memory = self.memory
        window = window_of(value)
        if window is None or window.base is value:
            return Part(self._operand(value, memory.value_of(value)), None)
        size = math.prod(value.shape)
        buffer = memory.buffer_of(window.base)
        if buffer is None or not self._is_as_it_was(buffer, window, size, region):
            array = memory.known[window.base]
            return Part(self._operand(window.base, array), window.offset)
        return Part(self._operand(buffer, buffer.array), window.offset)

    def _is_as_it_was(
        self, buffer: Buffer, window: Window, size: int, region: Region
    ) -> bool:
        """Whether nothing was written there, or only what this reads, by itself."""
        touched = buffer.join.touched(window.offset, size)
        if not any(buffer.written[i] for i in touched):
            return True
        (first, *others) = touched
        ends = buffer.join.offsets[first : first + 2]
        is_own = self.own.get((buffer, first)) is region
        return is_own and not others and ends == [window.offset, window.offset + size]
