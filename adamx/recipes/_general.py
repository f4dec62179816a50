"""For any task, and for reinforcement learning."""

from typing import Any

from adamx import schedules
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    ScalarOrSchedule,
    Schedule,
)
from adamx.optimizers.adam import adam
from adamx.optimizers.adamw import adamw
from adamx.recipes._arguments import Num, checked_peak, decayed
from adamx.transforms import clip_by_global_norm, wide_chain


def prototype(
    learning_rate: ScalarOrSchedule = 3e-4,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    max_norm: Any = 1.0,
    mask: Mask = None,
) -> GradientTransformationExtraArgs:
    """Adam at a constant rate: the first run of anything.

        optax.chain(clip_by_global_norm(1.0),
                    adamw(3e-4, weight_decay=0.0, mask=decay_mask()))

    It needs no length of the run. A model that does not learn with it has a bug, or
    wants another rate; a schedule and a decay come when it overfits.

    Args:
      learning_rate: see `scale_by_learning_rate`. 3e-4, constant: Karpathy, "A Recipe
        for Training Neural Networks" (2019), "Overfit".
      weight_decay: see `add_decoupled_weight_decay`. 0: the same, where regularisation
        is the step after overfitting.
      max_norm: see `clip_by_global_norm`. 1.0: our choice, that of the transformers.
      mask: which parameters decay, where any do; None: `decay_mask()`.

    Returns:
      The transformation. State: those of `clip_by_global_norm` and `adamw`, 8 bytes per
      float32 parameter.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.recipes.prototype()
    >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))
    >>> round(float(updates[0]), 7)
    -0.0003

    Source: Karpathy (2019); b1 0.9, b2 0.999, eps 1e-8: Kingma & Ba, "Adam" (2015),
    Algorithm 1.
    """
    return wide_chain(
        clip_by_global_norm(max_norm),
        adamw(learning_rate, weight_decay=weight_decay, mask=decayed(mask)),
    )


def rl(
    learning_rate: Num = 3e-4,
    *,
    total_steps: int | None = None,
    max_norm: Any = 0.5,
    eps: Any = 1e-5,
) -> GradientTransformationExtraArgs:
    """Adam with a large eps and tight clipping, for policies and values (PPO, A2C).

        optax.chain(clip_by_global_norm(0.5),
                    adam(linear(3e-4, 0.0, total_steps), eps=1e-5))

    There is no weight decay: none of the sources has one.

    Args:
      learning_rate: of the first step. 3e-4: PPO, table 3 (MuJoCo), and Andrychowicz et
        al., section 3.7, "a safe default"; 2.5e-4 in PPO, table 5 (Atari).
      total_steps: updates of the parameters in the whole run (iterations * epochs *
        minibatches), over which the rate falls to 0 in a straight line: Huang et al.,
        "Adam learning rate annealing". None: the rate is constant.
      max_norm: see `clip_by_global_norm`. 0.5: Huang et al., "global gradient
        clipping".
      eps: see `scale_by_adam`. 1e-5: Huang et al., "the epsilon parameter of Adam".

    Returns:
      The transformation. State: those of `clip_by_global_norm` and `adam`.

    Raises:
      ValueError, TypeError: the argument is named; a schedule in the place of the rate.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.recipes.rl(2.5e-4)
    >>> updates, state = tx.update(jnp.full(1, 2.0), tx.init(jnp.zeros(1)))
    >>> float(adamx.read(state).grad_norm), round(float(updates[0]), 7)
    (2.0, -0.00025)

    Source: Schulman et al., "Proximal Policy Optimization Algorithms" (PPO, 2017);
    Huang et al., "The 37 Implementation Details of Proximal Policy Optimization"
    (2022); Andrychowicz et al., "What Matters for On-Policy Deep Actor-Critic Methods?"
    (2021). b1 0.9, b2 0.999: Kingma & Ba, "Adam" (2015), Algorithm 1.
    """
    rate: Num | Schedule = checked_peak(learning_rate)
    if total_steps is not None:
        rate = schedules.linear(learning_rate, 0.0, total_steps)
    return wide_chain(clip_by_global_norm(max_norm), adam(rate, eps=eps))
