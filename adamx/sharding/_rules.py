"""Which axes divide which parameter, where nobody says: by name and shape.

    batch axes         none: every group of devices has a copy
    fsdp               all parameters, along any dimension that it divides
    other axes         matrices (tensor parallel), along one of the last two dimensions:
                       the first one (rows) of what leads out of a block (out, down,
                       wo, ...) and of embeddings; the last one (columns) of the others;
                       the other one of the two where that does not divide evenly
    norms and biases   whole, except by fsdp; and so is what nothing divides

Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models
Using Model Parallelism" (2019), section 3: columns in, rows out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from adamx import _tree
from adamx._types import PyTree
from adamx.sharding import _specs
from adamx.sharding._specs import Dims

BATCH = ("data", "batch", "dp", "replica")
FSDP = "fsdp"

_WHOLE = re.compile(r"norm|bias|scale|(^|[/_.])ln([/_.]|\d|$)")
_ROWS = re.compile(r"embed|wte|wpe|(^|[/_.])(out|down|wo|w2|o_proj|c_proj)([/_.]|$)")


def spread(shapes: PyTree, sizes: Mapping[str, int], batch: Sequence[str]) -> PyTree:
    """A tree of PartitionSpecs: the rule of this file."""
    model = [a for a in sizes if a not in batch and a != FSDP and sizes[a] > 1]
    fsdp = [FSDP] if sizes.get(FSDP, 1) > 1 else []

    def spec(path: Any, x: Any) -> PartitionSpec:
        name = _tree.path_name(path).lower()
        dims: Dims = ((),) * len(x.shape)
        if len(x.shape) >= 2 and not _WHOLE.search(name):
            for axis in model:
                dims = _matrix(name, x.shape, dims, axis, sizes)
        return _specs.as_spec(_specs.divided(x.shape, dims, fsdp, sizes))

    return jax.tree_util.tree_map_with_path(spec, shapes)


def _matrix(
    name: str, shape: Sequence[int], dims: Dims, axis: str, sizes: Mapping[str, int]
) -> Dims:
    rank = len(shape)
    order = (rank - 2, rank - 1) if _ROWS.search(name) else (rank - 1, rank - 2)
    for at in order:
        count = _specs.pieces((*dims[at], axis), sizes)
        if shape[at] and shape[at] % count == 0:
            return (*dims[:at], (*dims[at], axis), *dims[at + 1 :])
    return dims
