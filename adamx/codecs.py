"""Storage formats of moments, for `mu_dtype` and `nu_dtype` of every optimizer.

    tx = adamx.adamw(1e-3, mu_dtype=codecs.int8(), nu_dtype=codecs.int8())

float32 and bfloat16 are plain dtypes. The others are functions that return a codec:

                             bytes per parameter for both moments
    bfloat16_stochastic()    4
    int8(), fp8()            2, and 4 for each scale
    int4()                   1, and 4 for each scale (of large matrices 1.08)

What is stored: `Encoded`, in the place of a moment's tree; `decode` gives the moment.

Derivatives: an update has that of its step, since it is computed before the moment is
stored. A stored moment has none but that of its scales (codes are rounded), so nothing
of use passes from step to step: to differentiate through several, take float32 or
`bfloat16_stochastic`.

On many devices: under jit a scale spans what its layout says of the whole array, and
numbers are those of one device. Inside `shard_map` and `pmap` a device encodes its
piece by itself, with scales of its own, within the same bounds. Make the state there,
with out_specs of the parameter for its scales too: the whole is then a state of blocks,
one for each piece, which goes on anywhere. (A state of whole arrays has scales that are
the same on all devices; inside `shard_map` each would write another.) Pieces are
rounded at random with the same bits, which leaves each right in the mean.
"""

from typing import Any

import jax.numpy as jnp

from adamx import _checks, moments
from adamx._packed import unpacked
from adamx._types import PyTree
from adamx.moments import Codec, Encoded

float32 = jnp.float32
bfloat16 = jnp.bfloat16

__all__ = [
    "Codec",
    "Encoded",
    "bfloat16",
    "bfloat16_stochastic",
    "decode",
    "float32",
    "fp8",
    "int4",
    "int8",
]

_FLOATS = ("float8_e4m3fn", "float8_e5m2")


def int8(
    layout: str = "rank1",
    block: int | None = None,
    *,
    rounding: str = "stochastic",
    seed: int = 0,
    min_size: int = 4096,
    keep: Any = None,
) -> Codec:
    """A moment in 8 bits an element, with shared scales.

        mean:     x = sign (k / 127)^2 scale, k = 0..127
        square:   x = (k / 256)^2 scale,      k = 1..256

    k is at most one step off; half a step with rounding="nearest". The relative error
    of x is at most twice that of k: 1.6% (mean) and 0.8% (square) at the scale itself,
    16% and 8% at a hundredth of it; with "nearest" half of these.

    Args:
      layout: which elements share a scale: "rank1" (each has the smaller one of its row
        and its column; the most exact in benchmarks/README.md), "column" (faster on a
        CPU, as exact where rows are alike: not in embeddings), "row", "block" (pieces
        of rows), "tensor". Rows and columns are those of the last two axes; leading
        axes have scales of their own; vectors are divided into blocks.
      block: > 0, into blocks of at most how many elements an axis is divided that
        shares a scale; None: not at all, but vectors, and rows with "block", into 256s.
        Blocks that divide the shards of sharded parameters need no communication.
      rounding: "stochastic": to the nearest code where that is another one than before,
        else up or down at random, so that slow changes go on in the mean. "nearest" is
        faster on a CPU, by column nearly twice, and closer to float32 while gradients
        stay as they are; but a mean square (b2 = 0.999) does not fall with its
        gradients then, and a mean that nothing is added to stays for ever.
      seed: in [0, 2^64), of the random bits.
      min_size: >= 0; leaves of fewer elements stay float32 (float64 for float64).
      keep: function of a leaf's path ("encoder/embedding") that is true where it shall
        stay float32; None: nowhere.

    Returns:
      The codec. State: `Encoded`, 1 byte per parameter and 4 for each scale. NaN and
      infinities of a moment are not kept: they become the scale of their group, which
      is at most 2^126. So a gradient whose square overflows, beyond 1e19, does not end
      an element's steps, as with float32, but makes large ones: clip before, or put
      `guard(tx, spike_zscore=6)` around, which skips it. Replicas under vmap draw the
      same random bits.

    Raises:
      ValueError, TypeError: an argument out of its range.

    >>> import jax.numpy as jnp, adamx
    >>> tx = adamx.scale_by_adam(mu_dtype=int8(), nu_dtype=int8())
    >>> state = tx.init({"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)})
    >>> state.mu.codes["kernel"].dtype, state.mu.codes["bias"].dtype
    (dtype('int8'), dtype('float32'))
    >>> [scale["kernel"].shape for scale in state.mu.scales]
    [(64, 1), (1, 128)]

    Source: see `adamx.moments`: Dettmers et al. (2022), Li et al. (2023).
    """
    codes = jnp.dtype(jnp.int8), jnp.dtype(jnp.uint8)
    return Codec("int8", *codes, layout, block, rounding, seed, min_size, keep)


def int4(
    layout: str = "rank1",
    block: int | None = None,
    *,
    rounding: str = "stochastic",
    seed: int = 0,
    min_size: int = 4096,
    keep: Any = None,
) -> Codec:
    """A moment in 4 bits an element, with shared scales.

        mean:     x = sign (k / 7) scale, k = 0..7
        square:   x = (k / 16)^2 scale,   k = 1..16

    An array of `jnp.int4` takes half a byte an element in memory, though its `nbytes`
    says one. For a mean, 15 numbers are few, and a column that is shared by many rows
    has most of its elements next to 0: with `block` None, a scale by column is there
    for 64 to 127 rows of a mean, a sixteenth of a byte per parameter at most.

    Args:
      layout, block, rounding, seed, min_size, keep: see `int8`.

    Returns:
      The codec. State: `Encoded`, half a byte per parameter and 4 for each scale; for
      both moments of large matrices 1.08 bytes.

    Raises:
      ValueError, TypeError: an argument out of its range.

    >>> import jax.numpy as jnp, adamx
    >>> tx = adamx.scale_by_adam(mu_dtype=int8(), nu_dtype=int4())
    >>> tx.init(jnp.zeros((64, 128))).nu.codes.dtype
    dtype(uint4)

    Source: Li et al. (2023): unsigned codes without zero, rank-1 scales.
    """
    codes = jnp.dtype(jnp.int4), jnp.dtype(jnp.uint4)
    return Codec("int4", *codes, layout, block, rounding, seed, min_size, keep)


def fp8(
    layout: str = "rank1",
    block: int | None = None,
    *,
    format: str = "float8_e4m3fn",
    rounding: str = "stochastic",
    seed: int = 0,
    min_size: int = 4096,
    keep: Any = None,
) -> Codec:
    """A moment in an 8-bit floating-point format, with shared scales.

        x = k / (the largest k) scale,   k: a float8 number

    The relative error is the same for large and small numbers: at most 12.5% in e4m3,
    25% in e5m2; with rounding="nearest" half of these. The smallest number is 2^-18 of
    the scale in e4m3, 2^-32 in e5m2. A mean square is never read as 0 where its group
    is not.

    Args:
      layout, block, rounding, seed, min_size, keep: see `int8`.
      format: "float8_e4m3fn" or "float8_e5m2".

    Returns:
      The codec. State: `Encoded`, 1 byte per parameter and 4 for each scale.

    Raises:
      ValueError, TypeError: an argument out of its range, or an unknown format.

    >>> import jax.numpy as jnp, adamx
    >>> tx = adamx.scale_by_adam(mu_dtype=fp8(), nu_dtype=fp8(format="float8_e5m2"))
    >>> tx.init(jnp.zeros((64, 128))).mu.codes.dtype
    dtype(float8_e4m3fn)

    Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022).
    """
    _checks.check_choice("format", format, _FLOATS)
    codes = jnp.dtype(format), jnp.dtype(format)
    return Codec("fp8", *codes, layout, block, rounding, seed, min_size, keep)


def bfloat16_stochastic(*, seed: int = 0, min_size: int = 0, keep: Any = None) -> Codec:
    """A moment in bfloat16, rounded up or down at random, right in the mean.

    Rounded to the nearest, a mean square with b2 = 0.999 stops where a step is less
    than half a unit; here it goes on, at half the bytes of float32.

    Args:
      seed, min_size, keep: see `int8`.

    Returns:
      The codec. State: `Encoded`, 2 bytes per parameter.

    Raises:
      ValueError, TypeError: an argument out of its range.

    >>> import jax.numpy as jnp, adamx
    >>> tx = adamx.scale_by_adam(nu_dtype=bfloat16_stochastic())
    >>> tx.init(jnp.zeros(3)).nu.codes.dtype
    dtype(bfloat16)

    Source: see `adamx.apply_updates`, which rounds parameters so.
    """
    codes = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.bfloat16)
    return Codec(
        "bfloat16_stochastic", *codes, None, None, "stochastic", seed, min_size, keep
    )


def decode(moment: PyTree) -> PyTree:
    """A moment as numbers: float32 arrays in the place of codes.

    Args:
      moment: an `Encoded`, such as `state.mu`; or any tree, such as a whole optimizer
        state.

    Returns:
      The tree with a tree like the parameters in the place of every `Encoded`: float32
      arrays for codes; what is not encoded stays as it is.

    Raises:
      ValueError: codes, scales, key and step that cannot be of one state.

    >>> import jax.numpy as jnp, adamx
    >>> tx = adamx.scale_by_adam(b1=0.5, mu_dtype=int8(min_size=0))
    >>> _, state = tx.update(jnp.array([4.0, -1.2]), tx.init(jnp.zeros(2)))
    >>> [round(float(m), 2) for m in decode(state.mu)]
    [2.0, -0.61]
    """
    return moments.decoded(unpacked(moment))
