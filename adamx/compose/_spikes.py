"""How unlike its past a gradient's norm is: a z-score against running statistics.

With x_i the norms so far, x_n the last, and the weights w_i = decay^(n - i):

    W = sum of w_i,   Q = sum of w_i^2
    mean     = sum of w_i x_i / W
    variance = sum of w_i (x_i - mean)^2 / (W - Q / W)       no bias: n - 1 for decay 1
    z        = (x - mean) / sqrt(variance)

Carried are W, Q, the mean and the root of the variance: sums of squares would cancel.

Source: West, "Updating Mean and Variance Estimates: An Improved Method" (1979), for the
recursion with weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._types import scalar_dtype
from adamx.compose._choice import choose

# A spread below this part of the mean is rounding's, and counts as this part.
_LEAST_SPREAD = 1e-6


class NormStatistics(NamedTuple):
    """What `guard` knows of the gradient's norm: 32 bytes.

    Attributes:
      zscore: float32 scalar, of the last gradient, by the statistics before it; 0
        during the warm-up.
      norm_mean: float32 scalar, running mean of the norms of the steps taken.
      norm_spread: float32 scalar, root of their running variance.
      weight: float32 scalar, W.
      squared_weight: float32 scalar, Q.
      learned: int32 scalar, steps that the statistics were learned from.
      spikes: int32 scalar, steps skipped as spikes.
      spikes_in_a_row: int32 scalar, those since the last step that was taken.
    """

    zscore: Any
    norm_mean: Any
    norm_spread: Any
    weight: Any
    squared_weight: Any
    learned: Any
    spikes: Any
    spikes_in_a_row: Any

    def readings(self) -> dict[str, Any]:
        """The last z-score, and the spikes so far."""
        return {"zscore": self.zscore, "spikes": self.spikes}


def initial_statistics() -> NormStatistics:
    numbers = [jnp.zeros((), scalar_dtype()) for _ in range(5)]
    return NormStatistics(*numbers, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def zscore(norm: jax.Array, known: NormStatistics, warmup: Any) -> jax.Array:
    """Of a new norm; 0 until the statistics were learned from `warmup` others."""
    spread = jnp.maximum(known.norm_spread, _LEAST_SPREAD * known.norm_mean)
    # Nothing but zeros so far: no spread is known.
    is_known = (known.learned >= jnp.asarray(warmup).astype(jnp.int32)) & (spread > 0)
    divisor = jnp.where(spread > 0, spread, jnp.ones_like(spread))
    score = (norm.astype(spread.dtype) - known.norm_mean) / divisor
    return jnp.where(is_known, score, jnp.zeros_like(score))


def learn(
    norm: jax.Array, known: NormStatistics, decay: Any, is_new: jax.Array
) -> NormStatistics:
    """Statistics with a norm added; where `is_new`, forgetting all others before.

    A norm that is not finite, be it that its squares overflow, is left out.
    """
    dtype = known.weight.dtype
    x, decay = norm.astype(dtype), jnp.asarray(decay, dtype)
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    mean, spread, weight, squared, learned = (
        jnp.where(is_new, jnp.zeros_like(old), old)
        for old in (
            known.norm_mean,
            known.norm_spread,
            known.weight,
            known.squared_weight,
            known.learned,
        )
    )
    freedom = jnp.where(weight > 0, weight - squared / jnp.maximum(weight, one), zero)
    weight, squared = decay * weight + one, decay * decay * squared + one
    change = x - mean
    mean = mean + change / weight
    left = weight - squared / weight
    divisor = jnp.where(left > 0, left, one)
    old, new = decay * freedom / divisor, (one - one / weight) / divisor
    spread = jnp.sqrt(old * spread * spread + new * change * change)
    spread = jnp.where(left > 0, spread, zero)
    after = known._replace(
        norm_mean=mean,
        norm_spread=spread,
        weight=weight,
        squared_weight=squared,
        learned=_tree.increment(learned),
    )
    # What is a new level by a norm that is not finite is learned from the next one on.
    nothing = known._replace(
        norm_mean=zero,
        norm_spread=zero,
        weight=zero,
        squared_weight=zero,
        learned=jnp.zeros_like(known.learned),
    )
    return choose(jnp.isfinite(x), after, choose(is_new, nothing, known))
