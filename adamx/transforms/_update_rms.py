"""Clipping by the size of a typical element, layer by layer.

    RMS = sqrt(mean over the layer of |u|^2)
    update = u / max(1, RMS / threshold)

Adam's direction has elements of about 1, so a threshold of 1 cuts only the steps that
a second moment lagging behind has made too long. Against `clip_by_global_norm`, one
wild layer slows down only itself.

Source: Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"
(2018), section 6.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, _varying, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    PyTree,
    real_dtype,
    scalar_dtype,
)
from adamx.transforms import _layers


class ClipByUpdateRmsState(NamedTuple):
    """State of `clip_by_update_rms`; 4 bytes in all.

    Attributes:
      update_rms: float32 scalar, the largest RMS of a layer before clipping in the last
        step; 0 at first.
    """

    update_rms: Any

    def readings(self) -> dict[str, Any]:
        """The largest root mean square of a layer's update."""
        return {"update_rms": self.update_rms}


def clip_by_update_rms(
    threshold: Any = 1.0, *, stacked: Any = None, axis_name: Any = None
) -> GradientTransformationExtraArgs:
    """Scales each layer's update down to a root mean square of at most `threshold`.

        update = u * min(1, threshold / RMS),   RMS = sqrt(mean |u|^2) over the layer

    The mean is taken in float32 (float64 for float64 updates); where the sum of |u|^2
    exceeds 3.4e38 the RMS reads inf and the layer's update is 0. A NaN makes its layer
    NaN; an inf makes its own update NaN and its layer's others 0.

    Args:
      threshold: >= 0, in units of the update, 1.0 behind an Adam direction; a number,
        array or tracer. inf only measures.
      stacked: regular expression; a leaf whose path ('layers/attention/kernel') it
        matches (`re.search`) holds one layer for each index of its leading axis, as
        `nn.scan` stacks them. None: every leaf is one layer.
      axis_name: inside `shard_map` and `pmap`, the axes along which every layer is in
        pieces, or a tree of them; see `clip_by_global_norm`. The mean is over equal
        pieces. A stack that is cut between its layers alone has ().

    Returns:
      The transformation; updates keep their dtypes. State: `ClipByUpdateRmsState`.

    Raises:
      ValueError, TypeError: `threshold` is negative or not a number, `stacked` is no
        regular expression or matches a scalar; `axis_name` is no name, or not an axis
        there.

    >>> import jax.numpy as jnp
    >>> tx = clip_by_update_rms(1.0)
    >>> u = {"a": jnp.array([3.0, 3.0]), "b": jnp.array([0.5])}
    >>> updates, state = tx.update(u, tx.init(u))
    >>> [float(x) for k in "ab" for x in updates[k]], float(state.update_rms)
    ([1.0, 1.0, 0.5], 3.0)

    Source: Shazeer & Stern (2018), section 6.
    """
    _checks.check_non_negative(
        "threshold",
        threshold,
        "It is the largest root mean square that passes unclipped, e.g. 1.0.",
        allow_schedule=False,
        allow_infinite=True,
    )
    pattern = _checks.check_pattern("stacked", stacked)
    _varying.check_names(axis_name)

    def init(params: PyTree) -> ClipByUpdateRmsState:
        _layers.check_stacked(pattern, params)
        return ClipByUpdateRmsState(update_rms=jnp.zeros((), scalar_dtype()))

    def update(
        updates: PyTree,
        state: ClipByUpdateRmsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ClipByUpdateRmsState]:
        del params, extra_args
        _checks.check_state(state, ClipByUpdateRmsState, "clip_by_update_rms")
        _tree.check_inexact(updates, "update")
        limit = _scalars.resolve("threshold", threshold, jnp.zeros((), jnp.int32))
        axes = iter(_layers.layer_axes(pattern, updates))
        names = iter(_varying.names_of(updates, axis_name))

        def leaf(u: Any) -> tuple[jax.Array, jax.Array]:
            x = _tree.wide(u)
            scalar = jnp.asarray(limit, real_dtype(x.dtype))
            own: Any = {"axes": next(axes), "names": next(names)}
            clipped, rms = clip_rms_leaf(x, threshold=scalar, **own)
            return clipped.astype(jnp.asarray(u).dtype), rms

        clipped, sizes = _tree.map_leaves(leaf, 2, updates)
        largest = jnp.max(_layers.all_layers(sizes, 0.0, state.update_rms.dtype))
        return clipped, ClipByUpdateRmsState(update_rms=largest)

    return GradientTransformationExtraArgs(init, update)


def clip_rms_leaf(
    u: jax.Array,
    *,
    threshold: jax.Array,
    axes: _layers.Axes,
    names: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """One leaf, clipped, and the root mean square of each of its layers before that.

    Args:
      u: the update.
      threshold: what a root mean square may be.
      axes: over which a layer extends.
      names: of the mesh's axes along which it is in pieces.
    """
    rms = jnp.sqrt(_layers.mean(_tree.abs_squared(u), axes, names))
    return moments.scale(u, _layers.limit_factor(rms, threshold)), rms
