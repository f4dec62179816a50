"""Adam-mini: one second moment for a block of parameters, not for each of them.

    mu <- b1 mu + (1 - b1) g                               mu_hat = mu / (1 - b1^t)
    nu <- b2 nu + (1 - b2) mean over the block of |g|^2    nu_hat = nu / (1 - b2^t)
    update = mu_hat / (sqrt(nu_hat) + eps)

Half of Adam's state is gone. A block is what shares a dense block of the Hessian: an
output neuron of a matrix, a head of queries or keys, a row of an embedding. Larger
blocks, such as whole tensors, make training of transformers unstable (the paper).

Source: Zhang et al., "Adam-mini: Use Fewer Learning Rates To Gain More" (2024),
Algorithm 1; the partition follows its principle that a block of parameters be a
smallest dense block of the Hessian.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, _varying, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    PyTree,
    ScalarOrSchedule,
)
from adamx.transforms import _layers, descent, wide_chain

Shape = tuple[int, ...]
Axes = Callable[[str, Shape], Shape | None]

_WORD = r"(^|[/_.])({})([/_.\d]|$)"
_QUERY_OR_KEY = re.compile(_WORD.format("query|key|q_proj|k_proj|wq|wk"))
_PROJECTION = re.compile(_WORD.format("query|key|value|[qkv]_proj|w[qkv]"))
_EMBEDDING = re.compile(r"embed|embd|(^|[/_.])(wte|wpe)([/_.]|$)", re.IGNORECASE)


class ScaleByAdamMiniState(NamedTuple):
    """State of `scale_by_adam_mini`.

    Per parameter 4 bytes for float32, 2 for 16-bit dtypes, and 4 for each block.

    Attributes:
      count: int32 scalar, steps taken.
      mu: tree like the parameters, running mean of the gradient.
      nu: tree with the parameters' ranks: of length 1 along the axes of a block, else
        the parameter's own; real, running mean of the block's mean |g|^2.
      b1, b2, eps: float32 scalars, as used in the last step.
      bias_correction_mu, bias_correction_nu, correction_rest_mu, correction_rest_nu:
        float32 scalars, as in `ScaleByAdamState`.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments, for who reads them: see `moments.Estimates`."""
        return moments.adam_estimates(self, self.mu, self.nu)


def adam_mini_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    nu_scale: jax.Array,
    eps: jax.Array,
    axes: Shape,
    names: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of Adam-mini.

    Args:
      g, mu: gradient and first moment, same shape.
      nu: real, of length 1 along `axes`.
      weight1, weight2, mu_scale, nu_scale, eps: as in `adam_leaf`.
      axes: over which a block extends.
      names: of the mesh's axes along which it is in pieces.

    Returns:
      update, mu, nu.
    """
    mu = moments.update_average(mu, g, weight1)
    square = _layers.mean(_tree.abs_squared(g), axes, names)
    nu = moments.update_square(nu, square, weight2)
    # One root and one division for a block, not for each element.
    scale = moments.divide_or_zero(
        jnp.broadcast_to(mu_scale, nu.shape), jnp.sqrt(nu * nu_scale) + eps
    )
    return moments.scale(mu, scale), mu, nu


def block_axes(path: str, shape: Shape) -> Shape:
    """The axes over which one second moment is shared by default, for Flax's layouts.

    Vectors, scalars and all that is named bias or scale: the whole leaf. Embeddings
    (named embed, embd, wte or wpe): one number a row. Kernels (..., in, out): one for
    each output neuron. Attention kernels (in, heads, head_dim): one a head for queries
    and keys, one for each output neuron for values.
    """
    rank = len(shape)
    name = path.rsplit("/", 1)[-1]
    is_matrix = rank > 1 and name not in ("bias", "scale")
    if is_matrix and name != "kernel" and _EMBEDDING.search(path):
        return (rank - 1,)
    if is_matrix and rank == 3 and _QUERY_OR_KEY.search(path):
        return (0, 2)
    if is_matrix and rank == 3 and _PROJECTION.search(path):
        return (0,)
    return tuple(range(rank - 1 if is_matrix else rank))


def _partition(
    axes: Axes | None, pattern: re.Pattern[str] | None, tree: PyTree
) -> list[Shape]:
    """For each leaf, the axes of its blocks, counted from its own first axis."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shape = tuple(jnp.shape(leaf))
        skipped = int(_layers.is_stacked(pattern, path, shape))
        name = _tree.path_name(path)
        chosen = axes(name, shape[skipped:]) if axes is not None else None
        if chosen is None:
            chosen = block_axes(name, shape[skipped:])
        own = _check_axes(chosen, name, len(shape) - skipped)
        found.append(tuple(axis + skipped for axis in own))
    return found


def _check_axes(axes: Any, path: str, rank: int) -> Shape:
    if not isinstance(axes, tuple) or not all(type(a) is int for a in axes):
        raise TypeError(
            f"`axes` must return a tuple of ints or None for '{path}', got "
            f"{_checks.describe_value(axes)}; e.g. (0,) for one number per column."
        )
    own = tuple(sorted(axis % rank if rank else axis for axis in axes))
    if len(set(own)) < len(own) or not all(-rank <= axis < rank for axis in axes):
        raise ValueError(
            f"`axes` must return different axes of the {rank} that '{path}' has, got "
            f"{axes}; the leading axis of a leaf that `stacked` matches is not counted."
        )
    return own


def scale_by_adam_mini(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    axes: Axes | None = None,
    stacked: Any = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """Divides the gradient's mean by the root mean square of its whole block.

        nu <- b2 nu + (1 - b2) mean over the block of |g|^2
        update = mu_hat / (sqrt(nu_hat) + eps)

    Args:
      b1, b2, eps, mu_dtype, nu_dtype: see `scale_by_adam`; the same values are good.
      axes: function of a leaf's path ('encoder/query/kernel', also in Flax NNX, whose
        trailing 'value' is left out) and shape, giving the axes over which it shares
        one second moment: `(0,)` for one per column, `()` for Adam itself, all axes for
        one per leaf; None for the default. The default is made for Flax's layouts:

        - 0 or 1 axes, or named bias or scale: one number for the leaf;
        - embed, embd, wte or wpe in its path, and not a kernel: one per row;
        - 3 axes (in, heads, head_dim) and query, key, q_proj, k_proj, wq or wk in its
          path: one per head; value, v_proj or wv: one per output neuron;
        - other kernels (..., in, out): one per output neuron, that is, per column.
          Queries and keys with 2 axes do not tell their heads and belong here.

        Equinox and PyTorch keep (out, in): pass `axes=lambda path, shape: (1,)` there.
      stacked: which leaves hold one layer for each index of their leading axis; see
        `clip_by_update_rms`. That axis is never shared, nor counted in `axes`.
      axis_name: inside `shard_map` and `pmap`, the axes along which every block is in
        pieces, or a tree of them; see `clip_by_global_norm`. A kernel that is cut by
        columns, each a block of its own, has (); cut by rows, the axis of the rows.

    Returns:
      The transformation; dtypes as in `scale_by_adam`. A NaN spreads over its block;
      so does a |g| whose square overflows: the block then stands still.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; `axes` returned no tuple, or axes that
        the leaf has not; `stacked` is no regular expression or matches a scalar.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_adam_mini()
    >>> state = tx.init({"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)})
    >>> state.nu["kernel"].shape, state.nu["bias"].shape
    ((1, 2), (1,))

    Source: Zhang et al. (2024), Algorithm 1. Embeddings by row, as in the authors'
    PyTorch code since its version 1.1 (Adam before); biases have one number for the
    leaf, where that code keeps Adam.
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    if axes is not None and not callable(axes):
        raise TypeError(
            "`axes` must be a function of a path and a shape, or None, got "
            f"{_checks.describe_value(axes)}; e.g. lambda path, shape: (0,)."
        )
    pattern = _checks.check_pattern("stacked", stacked)
    _varying.check_names(axis_name)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    moments.refuse_codec(
        "nu_dtype",
        nu_dtype,
        "one second moment serves a whole block here, and there is nothing to save. "
        "Pass the codec as mu_dtype.",
    )
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}

    def init(params: PyTree) -> ScaleByAdamMiniState:
        _tree.check_inexact(params, "parameter")
        _layers.check_stacked(pattern, params)
        shared = _partition(axes, pattern, params)
        return ScaleByAdamMiniState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_reduced(params, shared, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(eps=eps),
        )

    def update(
        updates: PyTree,
        state: ScaleByAdamMiniState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdamMiniState]:
        del extra_args
        _checks.check_state(state, ScaleByAdamMiniState, "scale_by_adam_mini")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, eps=eps)
        shared = _partition(axes, pattern, updates)
        updates, new = moments.apply_rule(
            adam_mini_leaf,
            updates,
            params,
            {"mu": state.mu},
            reduced={"nu": state.nu},
            each={
                "axes": shared,
                "names": _varying.names_of(updates, axis_name),
            },
            weight1=average["mu"].weight,
            weight2=average["nu"].weight,
            mu_scale=1.0 / average["mu"].correction,
            nu_scale=1.0 / average["nu"].correction,
            **used,
        )
        recorded = _scalars.records(recorded | used, state.b1.dtype)
        return updates, ScaleByAdamMiniState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def adam_mini(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    axes: Axes | None = None,
    stacked: Any = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """AdamW with half of its state: a block of parameters shares one second moment.

        p <- p - learning_rate (mu_hat / (sqrt(nu_hat) + eps) + weight_decay p)

    Rates and decays that are good for AdamW are good here (the paper).

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, axes, stacked, mu_dtype, nu_dtype, axis_name: see
        `scale_by_adam_mini`.
      weight_decay, mask: see `add_decoupled_weight_decay`.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; with a decay its update needs `params`. State:
      `ScaleByAdamMiniState`,
      `AddDecoupledWeightDecayState`, `ScaleByLearningRateState`; the last two change
      places with `independent_decay`.

    >>> import jax.numpy as jnp
    >>> tx = adam_mini(0.1)
    >>> params = jnp.zeros(2)
    >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
    >>> [round(float(u), 4) for u in updates]  # by sqrt((9 + 16) / 2)
    [-0.0849, -0.1131]

    Source: Zhang et al. (2024), Algorithm 1.
    """
    return wide_chain(
        scale_by_adam_mini(
            b1,
            b2,
            eps,
            axes=axes,
            stacked=stacked,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            axis_name=axis_name,
        ),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )
