"""LAMB: Adam whose step is, in every layer, a fixed part of the layer's own norm.

    r = mu_hat / (sqrt(nu_hat) + eps) + weight_decay p
    p <- p - learning_rate phi(||p||) / ||r|| r         phi(z) = min(max(z, low), high)

The factor phi(||p||) / ||r|| is the trust ratio. The learning rate becomes the relative
change of a layer in a step, which lets the batch, and the rate with it, grow large.

Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76
minutes" (2020), Algorithm 2.
"""

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
from adamx.optimizers.adam import scale_by_adam
from adamx.transforms import (
    _layers,
    descent,
    expand_mask,
    wide_chain,
)


class ScaleByLambTrustRatioState(NamedTuple):
    """State of `scale_by_lamb_trust_ratio`; 20 bytes in all.

    Attributes:
      trust_ratio_min, trust_ratio_mean, trust_ratio_max: float32 scalars, over all
        layers that have one, in the last step; 1 at first.
      min_param_norm, max_param_norm: float32 scalars, as used in the last step; the
        second is None where there is no upper bound.
    """

    trust_ratio_min: Any
    trust_ratio_mean: Any
    trust_ratio_max: Any
    min_param_norm: Any
    max_param_norm: Any = None

    def readings(self) -> dict[str, Any]:
        """The trust ratios' range and mean."""
        return {
            "trust_ratio_min": self.trust_ratio_min,
            "trust_ratio_mean": self.trust_ratio_mean,
            "trust_ratio_max": self.trust_ratio_max,
        }


def lamb_leaf(
    r: jax.Array,
    *,
    p: jax.Array,
    min_param_norm: jax.Array,
    axes: tuple[int, ...] | None,
    max_param_norm: jax.Array | None = None,
    names: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array | None]:
    """One leaf of LAMB.

    Args:
      r: the direction, decay included.
      p: the parameter.
      min_param_norm, max_param_norm: bounds of phi; None: no upper one.
      axes: over which a layer extends; None: no trust ratio here.
      names: of the mesh's axes along which it is in pieces.

    Returns:
      update; the trust ratio of each layer, or None.
    """
    if axes is None:
        return r, None
    norm = jnp.maximum(_layers.norm(p, axes, names), min_param_norm)
    if max_param_norm is not None:
        norm = jnp.minimum(norm, max_param_norm)
    size = _layers.norm(r, axes, names)
    ratio = moments.divide_or_zero(norm, size)
    ratio = jnp.where((norm == 0) | (size == 0), jnp.ones((), ratio.dtype), ratio)
    return moments.scale(r, ratio), ratio


def scale_by_lamb_trust_ratio(
    *,
    trust_mask: Mask = None,
    stacked: Any = None,
    min_param_norm: Any = 0.0,
    max_param_norm: Any = None,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """Gives each layer's update the norm of the layer itself.

        update = phi(||p||) / ||u|| u,   phi(z) = min(max(z, min_param_norm), max_...)

    Where phi(||p||) or ||u|| is 0, the update stays as it is (a ratio of 1). Norms are
    taken in at least float32 and overflow above 1.8e19.

    Args:
      trust_mask: which leaves have a trust ratio; others keep their update. A tree of
        bools, a prefix of it, or a function, as `mask` of `add_decoupled_weight_decay`.
        None: all. Biases and normalisation scales are often left out, since their norms
        say little: `lambda p: jax.tree.map(lambda x: x.ndim > 1, p)`.
      stacked: which leaves hold one layer for each index of their leading axis; see
        `clip_by_update_rms`.
      min_param_norm, max_param_norm: >= 0 and > 0, in units of the parameters; bounds
        of phi; None: no upper one. With a `min_param_norm` above 0, a layer that begins
        at zero has a ratio too.
      axis_name: inside `shard_map` and `pmap`, the axes along which every layer is in
        pieces, or a tree of them; see `clip_by_update_rms`.

    Returns:
      The transformation; its update needs `params`. Updates have the wider dtype of
      gradient and parameter. A NaN spreads over its layer. State:
      `ScaleByLambTrustRatioState`.

    Raises:
      ValueError, TypeError: no `params`; a mask of another structure; a bound that is
        negative, no number or on the wrong side of the other; `stacked` is no regular
        expression or matches a scalar; `axis_name` is no name, or not an axis there.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_lamb_trust_ratio()
    >>> params = jnp.array([0.0, 3.0])
    >>> updates, state = tx.update(jnp.array([0.6, 0.8]), tx.init(params), params)
    >>> [round(float(u), 3) for u in updates], float(state.trust_ratio_max)
    ([1.8, 2.4], 3.0)

    Source: You et al. (2020), Algorithm 2 and section 3 (phi).
    """
    bounds = _check_bounds(min_param_norm, max_param_norm)
    _varying.check_names(axis_name)
    pattern = _checks.check_pattern("stacked", stacked)

    def init(params: PyTree) -> ScaleByLambTrustRatioState:
        if jax.tree.leaves(params):  # not for the placeholder of map_params
            _tree.check_inexact(params, "parameter")
            expand_mask("trust_mask", trust_mask, params)
            _layers.check_stacked(pattern, params)
        return ScaleByLambTrustRatioState(
            **_scalars.initial_records(
                trust_ratio_min=1.0,
                trust_ratio_mean=1.0,
                trust_ratio_max=1.0,
                **bounds,
            )
        )

    def update(
        updates: PyTree,
        state: ScaleByLambTrustRatioState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByLambTrustRatioState]:
        del extra_args
        _checks.check_state(
            state, ScaleByLambTrustRatioState, "scale_by_lamb_trust_ratio"
        )
        if jax.tree.leaves(updates):
            _checks.check_has_params(params, "a trust ratio begins with their norm")
        used = _scalars.resolve_all(jnp.zeros((), jnp.int32), **bounds)
        axes = _layers.layer_axes(pattern, updates)
        has_ratio = expand_mask("trust_mask", trust_mask, params)
        picked = zip(axes, _tree.leaves_below(updates, has_ratio), strict=True)
        updates, new = moments.apply_rule(
            lamb_leaf,
            updates,
            params,
            each={
                "axes": [layer if has else None for layer, has in picked],
                "names": _varying.names_of(updates, axis_name),
            },
            emits=("ratios",),
            reads_params=True,
            **used,
        )
        dtype = state.trust_ratio_mean.dtype
        ratios = _layers.all_layers(new["ratios"], 1.0, dtype)
        return updates, ScaleByLambTrustRatioState(
            trust_ratio_min=jnp.min(ratios),
            trust_ratio_mean=jnp.mean(ratios),
            trust_ratio_max=jnp.max(ratios),
            **_scalars.records(used, dtype),
        )

    return GradientTransformationExtraArgs(init, update)


def _check_bounds(low: Any, high: Any) -> dict[str, Any]:
    """The bounds of phi by name, without an upper one that is None."""
    remedy = "It bounds a layer's norm in the trust ratio; 0 is no bound."
    _checks.check_non_negative("min_param_norm", low, remedy, allow_schedule=False)
    if high is None:
        return {"min_param_norm": low}
    remedy = "It bounds a layer's norm in the trust ratio; None is no bound."
    _checks.check_positive("max_param_norm", high, remedy)
    least = _checks.host_value("min_param_norm", low, "a number")
    most = _checks.host_value("max_param_norm", high, "a number")
    if least is not None and most is not None and least > most:
        raise ValueError(
            f"`max_param_norm` must be at least `min_param_norm`, {least!r}, got "
            f"{most!r}: every layer would have the same norm. Are the two swapped?"
        )
    return {"min_param_norm": low, "max_param_norm": high}


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    trust_mask: Mask = None,
    stacked: Any = None,
    min_param_norm: Any = 0.0,
    max_param_norm: Any = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam for large batches: a step changes each layer by a part of its own norm.

        r = mu_hat / (sqrt(nu_hat + eps_root) + eps) + weight_decay p
        p <- p - learning_rate phi(||p||) / ||r|| r

    The paper's recipe for BERT: a rate of 5e-3 for a batch of 32,768, divided by
    sqrt(2) each time the batch is halved; a linear warm-up over 1/5 of the steps, half
    that part for half the batch; then a linear decay to 0. Its run at a batch of 65,536
    has two stages and 8,599 steps in all: that batch with sequences of 128 for nine
    tenths of the epochs, then 32,768 with sequences of 512, which begins with a warm-up
    of its own: `optax.join_schedules([warmup_linear(...), warmup_linear(...)], [n])`,
    n the steps of the first.

    Args:
      learning_rate: the relative change of a layer per step; see
        `scale_by_learning_rate`.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`.
      weight_decay, mask: see `add_decoupled_weight_decay`. The decay is a part of r: it
        turns the step away from the gradient and towards zero, but never lengthens it.
      trust_mask, stacked, min_param_norm, max_param_norm, axis_name: see
        `scale_by_lamb_trust_ratio`.
      independent_decay: whether the decay stands behind the learning rate, outside of
        the trust ratio: p shrinks by `weight_decay` a step. Not the paper's form.

    Returns:
      The optimizer; its update needs `params`. State: `ScaleByAdamState`,
      `AddDecoupledWeightDecayState`, `ScaleByLambTrustRatioState`,
      `ScaleByLearningRateState`; the decay's is last with `independent_decay`.

    Raises:
      ValueError: a decay below 0; no `params` in update; see also `scale_by_adam` and
        `scale_by_lamb_trust_ratio`.
      TypeError: a decay that is not a number; see also `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx = lamb(0.1)
    >>> params = jnp.array([3.0, 4.0])
    >>> updates, _ = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
    >>> round(float(jnp.linalg.norm(updates)), 4)  # a tenth of 5
    0.5

    Source: You et al. (2020), Algorithm 2; see `scale_by_lamb_trust_ratio`. eps_root is
    an addition, as in Optax.
    """
    _checks.check_weight_decay("weight_decay", weight_decay)
    direction = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype)
    trust = scale_by_lamb_trust_ratio(
        trust_mask=trust_mask,
        stacked=stacked,
        min_param_norm=min_param_norm,
        max_param_norm=max_param_norm,
        axis_name=axis_name,
    )
    behind = descent(learning_rate, weight_decay, mask, independent_decay)
    if independent_decay:
        return wide_chain(direction, trust, *behind)
    decay, rate = behind
    return wide_chain(direction, decay, trust, rate)
