"""Float64 NumPy: what codes and scales an array has, element by element.

Written from the docstrings of `adamx.codecs` and `adamx.moments._layout`, with indices
and loops instead of reshapes: no code is shared.
"""

import dataclasses
import math

import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Code:
    """x = (k / levels)^power scale, for the integers k from `smallest` to `levels`."""

    levels: float
    power: int
    smallest: int
    offset: int  # what is stored is k - offset
    is_signed: bool


INTEGERS = {
    ("int8", True): Code(127, 2, 0, 0, True),
    ("int8", False): Code(256, 2, 1, 1, False),
    ("int4", True): Code(7, 1, 0, 0, True),
    ("int4", False): Code(16, 2, 1, 1, False),
}
LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}

# ------------------------------------------------------------------------- scales


def _ceil(a, b):
    return -(-a // b)


def group_counts(shape, layout, block=None):
    """The shapes of the scales: how many groups there are along each axis."""
    rank = len(shape)
    if layout == "tensor" or rank == 0:
        return [(1,) * rank]
    if rank == 1 or layout == "block":
        return [(*shape[:-1], _ceil(shape[-1], block or 256))]
    in_row = _ceil(shape[-1], block or max(shape[-1], 1))
    in_column = _ceil(shape[-2], block or max(shape[-2], 1))
    row = (*shape[:-1], in_row)
    column = (*shape[:-2], in_column, shape[-1])
    if layout == "row":
        return [row]
    if layout == "column":
        return [column]
    # rank1: a scale of more than 1 number for 16 elements is coarser, or left out.
    few = [row] if math.prod(row) <= math.prod(shape) // 16 else []
    for one in (column, (*(1,) * (rank - 1), shape[-1])):
        if math.prod(one) <= math.prod(shape) // 16:
            return [*few, one]
    return few or [(1,) * rank]


def _group_of(index, shape, counts):
    return tuple(i // _ceil(n, d) for i, n, d in zip(index, shape, counts, strict=True))


def scales_of(x, layout, block=None):
    """The largest finite |x| of each group, for each of the scales; NaN is no part."""
    x = np.abs(np.asarray(x, np.float64))
    top = 2.0**126  # 1 over a larger one is subnormal
    found = []
    for counts in group_counts(x.shape, layout, block):
        scale = np.zeros(counts)
        for index in np.ndindex(x.shape):
            if not np.isnan(x[index]):
                group = _group_of(index, x.shape, counts)
                scale[group] = max(scale[group], min(x[index], top))
        found.append(scale)
    return found


def by_element(scales, shape):
    """Each element's scale: the smaller one where there are two."""
    spread = np.zeros(shape)
    for index in np.ndindex(*shape):
        spread[index] = min(s[_group_of(index, shape, s.shape)] for s in scales)
    return spread


# -------------------------------------------------------------------------- codes


def real_code(x, scale, code):
    """The k >= 0, not yet rounded, that |x| would have; 0 where the scale is 0."""
    share = np.abs(np.asarray(x, np.float64)) / np.where(scale > 0, scale, 1.0)
    share = np.where(scale > 0, np.minimum(share, 1.0), 0.0)
    return code.levels * share ** (1 / code.power)


def integer_codes(x, scale, code):
    """What is stored, to the nearest in k; a tie goes to the even k."""
    k = np.maximum(np.round(real_code(x, scale, code)), code.smallest)
    return (np.where(np.asarray(x) < 0, -k, k) if code.is_signed else k) - code.offset


def decoded(stored, scale, code):
    """The numbers that stored integers stand for."""
    k = np.asarray(stored, np.float64) + code.offset
    return np.sign(k) * (np.abs(k) / code.levels) ** code.power * scale


def float_codes(x, scale, name, is_square=False):
    """The float8 numbers, to the nearest; of a square at least the smallest."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    share = np.asarray(x, np.float64) / np.where(scale > 0, scale, 1.0)
    k = share * LARGEST[name]
    near = k.astype(dtype).astype(np.float64)
    smallest = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    return np.maximum(near, smallest) if is_square else near
