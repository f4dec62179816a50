"""What is known while passes run: values, and arrays that are being put together."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from adamx.native._graph import Graph, Node, Operand, Value
from adamx.native._windows import Join, Window, cut, put, window_of


class Buffer:
    """An array that is put together in place, in the memory of an argument.

    Attributes:
      join: what it becomes.
      owner: the argument whose memory it takes, or None.
      array: as it is now: what was not written yet is as it was.
      written: by the number of a part.
    """

    def __init__(self, join: Join, owner: Value | None, array: Any) -> None:
        self.join, self.owner, self.array = join, owner, array
        self.written = [False] * len(join.parts)

    def is_written(self, offset: int, size: int) -> bool:
        """Whether anything in a stretch of it is no longer as it was."""
        return any(self.written[i] for i in self.join.touched(offset, size))


class Memory:
    """The values of a graph, as far as they are known.

    Attributes:
      known: arrays by value.
      buffers: by the node of a join.
      places: by value, the buffer that it is written to, and the number of the part.
    """

    def __init__(
        self,
        graph: Graph,
        arrays: Sequence[Any],
        joins: dict[Node, Join],
        owner: dict[Value, Value],
    ) -> None:
        self.known: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
        self.known |= graph.constants
        self.owner = owner
        self.buffers: dict[Node, Buffer] = {}
        self.places: dict[Value, tuple[Buffer, int]] = {}
        self._of_owner: dict[Value, Buffer] = {}
        for node, join in joins.items():
            self._add(node, join, owner.get(join.value))

    def _add(self, node: Node, join: Join, owner: Value | None) -> None:
        if owner is not None and (
            owner in self._of_owner
            or owner not in self.known
            or (owner.shape, owner.dtype) != (join.value.shape, join.value.dtype)
        ):
            owner = None
        array = None if owner is None else self.known[owner]
        buffer = self.buffers[node] = Buffer(join, owner, array)
        if owner is not None:
            self._of_owner[owner] = buffer
        for i, part in enumerate(join.parts):
            if isinstance(part, Value):
                self.places.setdefault(part, (buffer, i))

    def begin(self, buffer: Buffer) -> Any:
        """The array to write to next."""
        if buffer.array is None:
            aval = buffer.join.value.aval
            buffer.array = jnp.zeros(aval.shape, aval.dtype)
        return buffer.array

    def value_of(self, operand: Operand) -> Any:
        """An array or a number."""
        if not isinstance(operand, Value):
            return operand.value
        if operand in self.known:
            return self.known[operand]
        window = window_of(operand)
        if window is not None:
            array = self._array_of(window, math.prod(operand.shape))
            return cut(array, window.offset, operand.shape)
        buffer, i = self.places[operand]
        return cut(buffer.array, buffer.join.offsets[i], operand.shape)

    def buffer_of(self, value: Value) -> Buffer | None:
        """The buffer in an argument's memory.

        Where nothing was written to it, it is the argument still: who reads it there
        does not keep the argument alive, which would have to be copied.
        """
        return self._of_owner.get(value)

    def _array_of(self, window: Window, size: int) -> Any:
        buffer = self.buffer_of(window.base)
        if buffer is None or buffer.is_written(window.offset, size):
            return self.known[window.base]
        return buffer.array

    def finish(self, node: Node) -> Any:
        """The result of a join, once all of its parts are known."""
        buffer = self.buffers[node]
        join = buffer.join
        if not any(buffer.written):
            pairs = zip(join.parts, node.inputs, strict=True)
            parts = [lax.reshape(self.value_of(x), like.shape) for x, like in pairs]
            return node.run(parts)[0]
        for i, part in enumerate(join.parts):
            if not buffer.written[i] and not self._is_there(buffer, i, part):
                new = jnp.asarray(self.value_of(part), join.value.aval.dtype)
                buffer.array = put(buffer.array, new, join.offsets[i])
                buffer.written[i] = True
        return buffer.array

    def _is_there(self, buffer: Buffer, i: int, part: Operand) -> bool:
        """Whether a part is what is there already, or nothing."""
        if not isinstance(part, Value) or buffer.owner is None:
            return 0 in part.shape
        window = Window(buffer.owner, buffer.join.offsets[i])
        return 0 in part.shape or window_of(part) == window
