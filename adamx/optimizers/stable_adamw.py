"""StableAdamW: AdamW whose layers slow down while their second moment lags behind.

    RMS = sqrt(mean over the layer of |g|^2 / max(nu_hat, eps^2))
    eta = learning_rate / max(1, RMS)
    p <- p - eta (mu_hat / (sqrt(nu_hat) + eps) + weight_decay p)

When a layer's gradients grow suddenly, nu_hat is too small for a while, RMS is above 1,
and the step is shortened by it: what gradient clipping is used for, without a norm to
choose. RMS is about 1 as long as gradients keep their size.

Source: Wortsman et al., "Stable and low-precision training for large-scale
vision-language models" (2023), Algorithm 2. Its debiased betas,
beta (1 - beta^(t-1)) / (1 - beta^t), give the bias-corrected moments of Adam.
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
    scalar_dtype,
)
from adamx.transforms import (
    _layers,
    decay_leaf,
    descent,
    expand_mask,
    scale_by_learning_rate,
    wide_chain,
)


class ScaleByStableAdamwState(NamedTuple):
    """State of `scale_by_stable_adamw`: 8 bytes per float32 parameter, as Adam.

    Attributes:
      count: int32 scalar, steps taken.
      mu, nu: trees like the parameters, as in `ScaleByAdamState`.
      b1, b2, eps, threshold: float32 scalars, as used in the last step.
      applied_weight_decay: float32 scalar, the rate of the last step.
      gradient_rms: float32 scalar, the largest RMS of a layer in the last step; 0 at
        first. Above `threshold`, that layer was slowed down.
      bias_correction_mu, bias_correction_nu, correction_rest_mu, correction_rest_nu:
        float32 scalars, as in `ScaleByAdamState`.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    threshold: Any
    applied_weight_decay: Any
    gradient_rms: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken, the decay rate and the largest RMS."""
        return {
            "count": self.count,
            "weight_decay": self.applied_weight_decay,
            "gradient_rms": self.gradient_rms,
        }

    def estimates(self) -> moments.Estimates:
        """The moments, for who reads them: see `moments.Estimates`."""
        return moments.adam_estimates(self, self.mu, self.nu)


def stable_adamw_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    mu_scale: jax.Array,
    nu_scale: jax.Array,
    eps: jax.Array,
    threshold: jax.Array,
    axes: tuple[int, ...],
    names: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One leaf of StableAdamW.

    Args:
      g, mu, nu, weight1, weight2, mu_scale, nu_scale, eps: as in `adam_leaf`.
      threshold: the RMS up to which nothing is slowed down.
      axes: over which a layer extends.
      names: of the mesh's axes along which it is in pieces.

    Returns:
      update, mu, nu, and the RMS of each layer.
    """
    mu = moments.update_average(mu, g, weight1)
    square = _tree.abs_squared(g)
    nu = moments.update_square(nu, square, weight2)
    nu_hat = nu * nu_scale
    direction = moments.divide_or_zero(
        moments.scale(mu, mu_scale), jnp.sqrt(nu_hat) + eps
    )
    ratio = moments.divide_or_zero(square, jnp.maximum(nu_hat, eps * eps))
    # An element that has overflowed stands still; it must not stop its whole layer.
    ratio = jnp.where(nu == jnp.inf, jnp.zeros((), ratio.dtype), ratio)
    rms = jnp.sqrt(_layers.mean(ratio, axes, names))
    factor = _layers.limit_factor(rms, threshold)
    return moments.scale(direction, factor), mu, nu, rms


def scale_by_stable_adamw(
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    threshold: Any = 1.0,
    stacked: Any = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam's direction and decay, divided by how far nu_hat lags behind the gradient.

        RMS = sqrt(mean over the layer of |g|^2 / max(nu_hat, eps^2))
        update = (mu_hat / (sqrt(nu_hat) + eps) + weight_decay p) / max(1, RMS)

    Args:
      b1, eps, mu_dtype, nu_dtype: see `scale_by_adam`.
      b2: in [0, 1), memory of the mean square. RMS is at most 1 / sqrt(1 - b2): with
        0.999 a layer can be slowed down 30 times, with 0.99 10 times.
      weight_decay, mask: as in `add_decoupled_weight_decay`; here, since the decay is
        slowed down too.
      threshold: > 0, the RMS up to which nothing is slowed down.
      stacked: which leaves hold one layer for each index of their leading axis; see
        `clip_by_gradient_rms`.
      axis_name: inside `shard_map` and `pmap`, the axes along which every layer is in
        pieces, or a tree of them; see `clip_by_update_rms`.

    Returns:
      The transformation; dtypes as in `scale_by_adam`. Its update needs `params` where
      there is a decay. A NaN spreads over its layer. State: `ScaleByStableAdamwState`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`, `add_decoupled_weight_decay` and
        `clip_by_gradient_rms`.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_stable_adamw(b1=0.0, b2=0.99)
    >>> state = tx.init(jnp.zeros(1))
    >>> for g in (1.0, 1.0, 100.0):
    ...     updates, state = tx.update(jnp.array([g]), state)
    >>> round(float(updates[0]), 3), round(float(state.gradient_rms), 2)
    (1.0, 1.72)

    Source: Wortsman et al. (2023), Algorithm 2; `threshold` is 1 there.
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_weight_decay("weight_decay", weight_decay)
    _checks.check_positive("threshold", threshold, "Use 1.0, as in the paper.")
    pattern = _checks.check_pattern("stacked", stacked)
    _varying.check_names(axis_name)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    is_free = _checks.is_zero(weight_decay)

    def init(params: PyTree) -> ScaleByStableAdamwState:
        if jax.tree.leaves(params):  # not for the placeholder of map_params
            _tree.check_inexact(params, "parameter")
            expand_mask("mask", mask, params)
            _layers.check_stacked(pattern, params)
        count = jnp.zeros((), jnp.int32)
        rate = _scalars.resolve("weight_decay", weight_decay, count)
        return ScaleByStableAdamwState(
            count=count,
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **moments.initial_averages(betas),
            **_scalars.initial_records(eps=eps, threshold=threshold, gradient_rms=0.0),
            applied_weight_decay=_scalars.record(rate, scalar_dtype()),
        )

    def update(
        updates: PyTree,
        state: ScaleByStableAdamwState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByStableAdamwState]:
        _checks.check_state(state, ScaleByStableAdamwState, "scale_by_stable_adamw")
        if not is_free and jax.tree.leaves(updates):
            _checks.check_has_params(params, "weight decay is a multiple of them")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, eps=eps, threshold=threshold)
        rate = _scalars.resolve("weight_decay", weight_decay, state.count)
        updates, new = moments.apply_rule(
            stable_adamw_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            each={
                "axes": _layers.layer_axes(pattern, updates),
                "names": _varying.names_of(updates, axis_name),
            },
            emits=("rms",),
            weight1=average["mu"].weight,
            weight2=average["nu"].weight,
            mu_scale=1.0 / average["mu"].correction,
            nu_scale=1.0 / average["nu"].correction,
            **used,
        )
        dtype, rms = state.b1.dtype, new.pop("rms")
        if extra_args.get("on_direction") is not None:
            updates = extra_args["on_direction"](updates, 1.0)
        if not is_free:
            decays = expand_mask("mask", mask, params)

            def decayed(u: Any, p: Any, r: Any, is_decayed: bool) -> tuple[Any]:
                factor = _layers.limit_factor(
                    r, jnp.asarray(used["threshold"], r.dtype)
                )
                return (decay_leaf(u, p, rate * factor) if is_decayed else u,)

            (updates,) = _tree.map_leaves(decayed, 1, updates, params, rms, decays)
        recorded |= used | {"applied_weight_decay": rate}
        largest = jnp.max(_layers.all_layers(rms, 0.0, dtype))
        return updates, ScaleByStableAdamwState(
            count=count,
            gradient_rms=largest,
            **new,
            **_scalars.records(recorded, dtype),
        )

    return GradientTransformationExtraArgs(init, update)


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 1e-6,
    weight_decay: ScalarOrSchedule = 0.2,
    mask: Mask = None,
    *,
    threshold: Any = 1.0,
    stacked: Any = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """AdamW that needs no gradient clipping: a layer with a sudden gradient slows down.

        eta = learning_rate / max(1, RMS)
        p <- p - eta (mu_hat / (sqrt(nu_hat) + eps) + weight_decay p)

    b2, eps and the decay, 0.2, differ from `adamw`'s: they are the defaults of the
    authors' code for CLIP (copies of it with an eps of 1e-8 are about).

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, threshold, stacked, mu_dtype, nu_dtype, axis_name: see
        `scale_by_stable_adamw`.
      weight_decay, mask: see `add_decoupled_weight_decay`.
      independent_decay: whether a parameter shrinks by `weight_decay` a step, whatever
        the learning rate and RMS. Pass a rate small enough; see `adamw`.

    Returns:
      The optimizer; its update needs `params`. State: `ScaleByStableAdamwState`,
      `ScaleByLearningRateState`, and with `independent_decay` that of the decay.

    Raises:
      ValueError: a hyperparameter out of range; no `params` in update; see also
        `scale_by_stable_adamw`.
      TypeError: `independent_decay` is not True or False; see also
        `scale_by_stable_adamw`.

    >>> import jax.numpy as jnp
    >>> tx = stable_adamw(1e-3, weight_decay=0.0)
    >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)), jnp.zeros(1))
    >>> round(float(updates[0]), 6)
    -0.001

    Source: Wortsman et al. (2023), Algorithm 2.
    """
    _checks.check_flag("independent_decay", independent_decay)
    options = {"threshold": threshold, "stacked": stacked, "axis_name": axis_name}
    dtypes = {"mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    if independent_decay:
        return wide_chain(
            scale_by_stable_adamw(b1, b2, eps, **options, **dtypes),
            *descent(learning_rate, weight_decay, mask, independent_decay),
        )
    return wide_chain(
        scale_by_stable_adamw(b1, b2, eps, weight_decay, mask, **options, **dtypes),
        scale_by_learning_rate(learning_rate),
    )
