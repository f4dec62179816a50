"""Lion: the sign of a mean that leans further to the new than the mean it keeps.

    c = b1 mu + (1 - b1) g            mu <- b2 mu + (1 - b2) g
    p <- p - learning_rate (sign(c) + weight_decay p)

Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023),
Algorithm 2. Differences: none; `independent_decay` is an addition.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    PyTree,
    ScalarOrSchedule,
)
from adamx.transforms import descent, wide_chain


class ScaleByLionState(NamedTuple):
    """State of `scale_by_lion`: 4 bytes per float32 parameter, 2 for 16-bit dtypes.

    Attributes:
      count: int32 scalar, steps taken.
      mu: tree like the parameters, running mean of the gradient.
      b1, b2: float32 scalars, as used in the last step.
    """

    count: Any
    mu: PyTree
    b1: Any
    b2: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}


def lion_leaf(
    g: jax.Array,
    mu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    is_from_new: bool,
) -> tuple[jax.Array, jax.Array]:
    """One leaf of Lion.

    Args:
      g, mu: gradient and mean, same shape.
      weight1, weight2: of what is new in the sign and in mu.
      is_from_new: whether weight1 is for the new mu, 1 - b1/b2, or the old, 1 - b1.

    Returns:
      update, mu.
    """
    new = moments.update_average(mu, g, weight2)
    return jnp.sign(moments.update_average(new if is_from_new else mu, g, weight1)), new


def _sign_weight(b1: Any, b2: Any) -> dict[str, Any]:
    """The weight of g in the sign, and which mu it is a weight for.

    b1 mu + (1 - b1) g is also r mu' + (1 - r) g with the new mu' and r = b1/b2. Written
    so, the old mu is read once and overwritten in place; else XLA keeps a copy of it.
    For b1 > b2, r exceeds 1 and rounding grows; where b1 or b2 is traced, which is the
    larger is not known.
    """
    if isinstance(b1, float) and isinstance(b2, float) and b1 <= b2:
        ratio = b1 / b2 if b2 else 0.0
        return {"weight1": moments.weight_of(ratio), "is_from_new": True}
    return {"weight1": moments.weight_of(b1), "is_from_new": False}


def scale_by_lion(
    b1: Any = 0.9, b2: Any = 0.99, mu_dtype: Any = None
) -> GradientTransformationExtraArgs:
    """Replaces the gradient by the sign of a running mean: -1, 0 or 1 per element.

        update = sign(b1 mu + (1 - b1) g),      mu <- b2 mu + (1 - b2) g

    Both means start from the same mu; the one that is kept is the slower one. Against
    Adam there is no second moment: the size of the gradient has no influence, and
    elements that are mostly noise move as far as the others. With a zero mean (no
    gradient so far) the update is 0.

    Args:
      b1: in [0, 1), weight of the past in the sign; smaller reacts faster.
      b2: in [0, 1), memory of the mean: about 1/(1 - b2) steps.
      mu_dtype: dtype of mu; None: the parameter's own. In bfloat16 with b2 = 0.99, mu
        stops within 20 to 40% of a constant gradient's size (a step of 1% of the way
        is then below half an ulp); its sign is right, and it forgets a gradient that
        has vanished. From b2 = 0.998 on it would not forget: pass jnp.float32.

    Returns:
      The transformation; dtypes as in `scale_by_adam`. The sign of a complex number is
      z / |z|: such an element, too, moves by the learning rate.

    Raises:
      ValueError, TypeError: as `scale_by_adam`.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_lion()
    >>> updates, _ = tx.update(jnp.array([1e-3, -50.0, 0.0]), tx.init(jnp.zeros(3)))
    >>> [float(u) for u in updates]
    [1.0, -1.0, 0.0]
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)

    def init(params: PyTree) -> ScaleByLionState:
        return ScaleByLionState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            **_scalars.initial_records(b1=b1, b2=b2),
        )

    def update(
        updates: PyTree,
        state: ScaleByLionState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByLionState]:
        del extra_args
        _checks.check_state(state, ScaleByLionState, "scale_by_lion")
        used = _scalars.resolve_all(state.count, b1=b1, b2=b2)
        updates, new = moments.apply_rule(
            lion_leaf,
            updates,
            params,
            {"mu": state.mu},
            weight2=moments.weight_of(used["b2"]),
            **_sign_weight(used["b1"], used["b2"]),
        )
        count = _tree.increment(state.count)
        recorded = _scalars.records(used, state.b1.dtype)
        return updates, ScaleByLionState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def lion(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Mask = None,
    *,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Lion: every element moves by the learning rate exactly, with one moment.

        p <- p - learning_rate * (sign(b1 mu + (1 - b1) g) + weight_decay * p)

    Args:
      learning_rate: see `scale_by_learning_rate`; 3 to 10 times smaller than AdamW's,
        since every element makes the largest step there is.
      b1, b2, mu_dtype: see `scale_by_lion`.
      weight_decay, mask: see `add_decoupled_weight_decay`; 3 to 10 times AdamW's, so
        that learning_rate * weight_decay stays what it was.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; its update needs `params`. State: `ScaleByLionState`,
      `AddDecoupledWeightDecayState`, `ScaleByLearningRateState`; the last two change
      places with `independent_decay`.

    >>> import jax.numpy as jnp
    >>> tx, params = lion(0.1, weight_decay=0.5), jnp.ones(1)
    >>> updates, _ = tx.update(jnp.array([1e-3]), tx.init(params), params)
    >>> round(float(updates[0]), 6)
    -0.15

    Source: Chen et al. (2023), Algorithm 2; see `scale_by_lion`.
    """
    return wide_chain(
        scale_by_lion(b1, b2, mu_dtype),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )
