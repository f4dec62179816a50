"""Sophia-H: Sophia with Hutchinson's estimate of the Hessian's diagonal.

Source: Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language
Model Pre-training" (2023), Algorithm 3 with the estimator of Algorithm 1.
"""

from typing import Any

from adamx._types import GradientTransformationExtraArgs, Mask, ScalarOrSchedule
from adamx.optimizers.sophia import scale_by_sophia
from adamx.transforms import descent, wide_chain


def sophia_h(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.96,
    b2: Any = 0.99,
    eps: Any = 1e-12,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask = None,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: Any = 10,
    *,
    probe: str = "rademacher",
    seed: Any = 0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Sophia with the Hessian's own diagonal, from one Hessian-vector product.

        p <- p - learning_rate * (clip(mu / max(gamma nu, eps), 1) + weight_decay * p)

    Against `optax.contrib.sophia`: the algorithm is the paper's, and so are b1, b2,
    eps, gamma and the interval (b1 is 0.965 there and eps 1e-8; mu is bias-corrected,
    and an estimate is used one step late). The decay of 1e-4 is that of `adamw`.

    `loss_fn` is called with the tree of parameters. A Flax nnx model is merged inside
    it: `graph, params, rest = nnx.split(model, nnx.Param, ...)`, then
    `loss_fn=lambda p: loss(nnx.merge(graph, p, rest), batch)`; `nnx.Optimizer.update`
    hands extra arguments on, as `optimistix.OptaxMinimiser` does by itself;
    `TrainState.apply_gradients` does not (use `tx.update`).

    Args:
      learning_rate: see `scale_by_learning_rate`; the paper's are about Adam's.
      b1, b2, eps, gamma, clip_threshold, update_interval, probe, seed, mu_dtype,
        nu_dtype: see `scale_by_sophia`.
      weight_decay, mask: see `add_decoupled_weight_decay`; the authors train language
        models with 0.2.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; its update needs `params` and `loss_fn` (or `obj_fn`,
      `value_fn`), or `hessian_fn`: see `scale_by_sophia`. State: `ScaleBySophiaState`,
      `AddDecoupledWeightDecayState`, `ScaleByLearningRateState`; the last two change
      places with `independent_decay`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
    >>> model, x, y = nn.Dense(1), jnp.ones((4, 3)), jnp.ones((4, 1))
    >>> params = model.init(jax.random.key(0), x)
    >>> tx = sophia_h(1e-3)
    >>> state = tx.init(params)
    >>> @jax.jit
    ... def step(params, state, x, y):
    ...     loss_fn = lambda p: jnp.mean((model.apply(p, x) - y) ** 2)
    ...     loss, gradients = jax.value_and_grad(loss_fn)(params)
    ...     updates, state = tx.update(gradients, state, params, loss_fn=loss_fn)
    ...     return optax.apply_updates(params, updates), state, loss
    >>> params, state, first = step(params, state, x, y)
    >>> params, state, second = step(params, state, x, y)
    >>> bool(second < first)
    True

    Source: Liu et al. (2023), Algorithms 1 and 3; see `scale_by_sophia`.
    """
    return wide_chain(
        scale_by_sophia(
            b1,
            b2,
            eps,
            gamma,
            clip_threshold,
            update_interval,
            probe=probe,
            seed=seed,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )
