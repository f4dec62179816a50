"""A pass inside a traced function: a call of compiled C, or the same operations in XLA.

Which of the two is decided where the program is made for a device: on one CPU device
the call, on others and on several at once the operations.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from adamx.native import _build
from adamx.native._graph import PASSED_ON, Value
from adamx.native._regions import Region, is_position
from adamx.native._source import Source


@dataclasses.dataclass(eq=False, frozen=True)
class Pass:
    """Leaves that go through one program, with the same scalars.

    Attributes:
      target: the program's name for XLA.
      source: the program.
      regions: one for each leaf.
      aliases: for each region, pairs (which array, which result) of one buffer.
    """

    target: str
    source: Source
    regions: tuple[Region, ...]
    aliases: tuple[tuple[tuple[int, int], ...], ...]

    def plain(self, *operands: Any) -> list[Any]:
        """The results by JAX's own operations."""
        n = len(self.source.scalar_dtypes)
        scalars, arrays = operands[:n], iter(operands[n:])
        results = []
        for region in self.regions:
            known: dict[Value, Any] = dict(zip(region.scalars, scalars, strict=True))
            known |= {value: next(arrays) for value in region.reads}
            results += run_nodes(region, known)
        return results

    def buffers(self) -> dict[int, int]:
        """Which operand's memory each result takes."""
        n, reads = len(self.source.scalar_dtypes), len(self.source.in_dtypes)
        writes = len(self.source.out_dtypes)
        return {
            n + leaf * reads + i: leaf * writes + o
            for leaf, pairs in enumerate(self.aliases)
            for i, o in pairs
        }


def run_nodes(region: Region, known: dict[Value, Any]) -> list[Any]:
    """A region's results, from the values of its arrays and scalars."""
    for node in (*region.nodes, *region.reductions):
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


def call(made: Pass, operands: Sequence[Any]) -> list[Any]:
    """The results of a pass, for scalars and then the arrays of each leaf."""
    return list(native_pass_p.bind(*operands, made=made))


@native_pass_p.def_abstract_eval
def _shapes(*operands: Any, made: Pass) -> list[Any]:
    return [value.aval for region in made.regions for value in region.results]


def _lower_plain(ctx: Any, *operands: Any, made: Pass) -> Any:
    return mlir.lower_fun(made.plain, multiple_results=True)(ctx, *operands)


def _lower_native(ctx: Any, *operands: Any, made: Pass) -> Any:
    if not _is_on_one_device(ctx.module_context.axis_context):
        return _lower_plain(ctx, *operands, made=made)
    lower = jax.ffi.ffi_lowering(made.target, operand_output_aliases=made.buffers())
    return lower(ctx, *operands)


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


def prepare(
    source: Source, regions: Sequence[Region], owner: dict[Value, Value]
) -> Pass | None:
    """A pass for regions of one program, or None where it cannot be compiled.

    Args:
      source: the regions' program.
      regions: leaf by leaf.
      owner: by result, the argument whose memory it may take.
    """
    target = _build.target_of(source.text)
    if target is None:
        return None
    aliases = tuple(_shared(region, owner) for region in regions)
    return Pass(target, source, tuple(regions), aliases)


def _shared(region: Region, owner: dict[Value, Value]) -> tuple[tuple[int, int], ...]:
    """Pairs (which array, which result) that share their memory."""
    if region.reductions:
        return ()
    places = {value: i for i, value in enumerate(region.arrays)}
    return tuple(
        (places[owner[value]], o)
        for o, value in enumerate(region.outputs)
        if owner.get(value) in places and owner[value].dtype == value.dtype
    )
