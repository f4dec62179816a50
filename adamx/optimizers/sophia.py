"""Sophia: the mean gradient over an estimate of the curvature, clipped by element.

    mu <- b1 mu + (1 - b1) g                                 every step
    nu <- b2 nu + (1 - b2) (estimate of the Hessian's diagonal)     every k-th step
    update = clip(mu / max(gamma nu, eps), -1, 1)

Against Adam, where nu is a mean of g^2, curvature itself divides the step; where it is
small, negative or not known, the clip makes the step that of a sign (Lion).

Source: Liu, Li, Hall, Liang & Ma, "Sophia: A Scalable Stochastic Second-order Optimizer
for Language Model Pre-training" (2023), Algorithm 3; the estimators: Algorithms 1 and
2. As there, neither mu nor nu is bias-corrected, and a new estimate is used at once.
Differences: the probe of Algorithm 1 is of signs by default, not Gaussian.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, _varying, moments
from adamx._types import GradientTransformationExtraArgs, PyTree
from adamx.optimizers import _curvature
from adamx.reading import unboxed


class ScaleBySophiaState(NamedTuple):
    """State of `scale_by_sophia`: 8 bytes per float32 parameter, 6 for 16-bit dtypes.

    Attributes:
      count: int32 scalar, steps taken; an estimate is due where it is a multiple of
        `update_interval` before the step.
      mu: tree like the parameters, running mean of the gradient.
      nu: tree like the parameters, running mean of the estimates; of either sign.
      key: uint32 array, the data of a `jax.random` key. It stays what it is: the key of
        an estimate is made of it and the count.
      b1, b2, eps, gamma, clip_threshold: float32 scalars, as used in the last step;
        `clip_threshold` None where nothing is clipped.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    key: Any
    b1: Any
    b2: Any
    eps: Any
    gamma: Any
    clip_threshold: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The mean; its size is gamma times the curvature: `moments.Estimates`."""
        gamma, eps = map(unboxed, (self.gamma, self.eps))

        def rule(
            g: jax.Array, mu: jax.Array, nu: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            del g
            size = gamma * nu
            return mu, jnp.maximum(size, 0), jnp.maximum(size, eps)

        return moments.Estimates((self.mu, self.nu), rule)

    def clipped_fraction(self) -> jax.Array:
        """The share of elements whose last step was clipped; the paper: 0.5 to 0.9.

        A method, since as a record it would cost a pass over all moments at each step.
        A larger gamma clips less. 0 where nothing is clipped or nothing has happened.
        """
        mus, nus = (
            [unboxed(m) for m in jax.tree.leaves(moments.decoded(tree))]
            for tree in (self.mu, self.nu)
        )
        size = sum(m.size for m in mus)
        if self.clip_threshold is None or not size:
            return jnp.zeros((), jnp.float32)
        threshold, gamma, eps = map(
            unboxed, (self.clip_threshold, self.gamma, self.eps)
        )
        total = jnp.zeros((), jnp.float32)
        for mu, nu in zip(mus, nus, strict=True):
            limit = threshold * jnp.maximum(gamma * nu, eps)
            is_clipped = jnp.abs(_tree.wide(mu)).astype(limit.dtype) >= limit
            total = total + jnp.sum(is_clipped, dtype=jnp.float32)
        return jnp.where(unboxed(self.count) > 0, total / float(size), 0.0)


def sophia_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    eps: jax.Array,
    gamma: jax.Array,
    clip_threshold: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of Sophia.

    Args:
      g, mu, nu: gradient, its mean, and the mean of the curvature, same shape.
      weight1: of what is new in mu, 1 - b1.
      eps: the least curvature.
      gamma: what the curvature is multiplied by.
      clip_threshold: the largest step; None: any.

    Returns:
      update, mu, nu.
    """
    mu = moments.update_average(mu, g, weight1)
    denominator = jnp.maximum(gamma * nu, eps)
    update = moments.divide_or_zero(mu, denominator)
    if clip_threshold is None:
        return update, mu, nu
    # Not jnp.clip: over a tiny denominator the quotient may be inf, over 0 it is 0.
    is_clipped = jnp.abs(mu) >= clip_threshold * denominator
    return jnp.where(is_clipped, clip_threshold * jnp.sign(mu), update), mu, nu


def curvature_leaf(
    estimate: jax.Array, nu: jax.Array, *, weight2: moments.Weight
) -> tuple[jax.Array, jax.Array]:
    """One leaf of the mean curvature. Returns the estimate itself, and nu."""
    return estimate, moments.update_average(nu, estimate, weight2)


def scale_by_sophia(
    b1: Any = 0.96,
    b2: Any = 0.99,
    eps: Any = 1e-12,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: Any = 10,
    *,
    estimator: str = "hutchinson",
    probe: str = "rademacher",
    seed: Any = 0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Divides the gradient's running mean by the curvature, and clips each element.

        update = clip(mu / max(gamma nu, eps), -clip_threshold, clip_threshold)

    The curvature comes from extra arguments of `update`, functions of the parameters
    alone that close over the batch; a part of it will do (the paper takes 1/15 to 1/2):

        tx.update(gradients, state, params, loss_fn=lambda p: loss(p, batch))
        tx.update(gradients, state, params, logits_fn=lambda p: model(p, inputs))
        tx.update(gradients, state, params, hessian_fn=lambda p, key: estimate)

    They are called in one branch of a `jax.lax.cond`, so that they cost nothing but in
    every `update_interval`-th step (under `vmap` over states: in every step).
    `loss_fn` (or `obj_fn`, as in Optax's Sophia, or `value_fn`, as in its line searches
    and in Optimistix) serves "hutchinson", `logits_fn` "gauss_newton"; `hessian_fn`
    goes before both and returns a tree like the parameters: there, average over devices
    where gradients are averaged by hand.
    Behind optax.masked or partition, all are given the parameters of the group only,
    with MaskedNode for the others.

    Args:
      b1: in [0, 1), memory of the mean: about 1/(1 - b1) steps.
      b2: in [0, 1), memory of the curvature, in estimates: 100 for 0.99.
      eps: >= 0, in units of the gradient; the least denominator.
      gamma: >= 0; the smaller, the more elements are clipped. The paper asks that 10 to
        50% of them are not: `clipped_fraction()` of the state tells.
      clip_threshold: > 0, the largest step in units of the learning rate; None: steps
        are not clipped, and those of elements without curvature are mu / eps.
      update_interval: >= 1, steps from one estimate to the next; the first step has
        one.
      estimator: "hutchinson" (the Hessian's diagonal; one Hessian-vector product) or
        "gauss_newton" (that of the Gauss-Newton matrix, never negative, for
        cross-entropies; one gradient). Logits of padding set to a constant have no
        part in it, but count among the positions that it averages over.
      probe: "rademacher" (signs) or "gaussian" (the paper's, of larger variance); for
        "hutchinson".
      seed: an int, or a key of `jax.random`; what is drawn depends on it and the count.
      mu_dtype, nu_dtype: see `scale_by_adam`.

    Returns:
      The transformation; its update needs `params` and one of the functions above;
      dtypes as in `scale_by_adam`.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; no function to estimate the curvature
        with, or one whose result is of another shape; complex parameters.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_sophia(b1=0.0, b2=0.5, gamma=1.0)
    >>> params = jnp.array([1.0, 1.0, 1.0])
    >>> loss = lambda p: jnp.sum(jnp.array([8.0, 1.0, -1.0]) * p**2) / 2
    >>> gradient = jnp.array([2.0, 2.0, -2.0])
    >>> updates, _ = tx.update(gradient, tx.init(params), params, loss_fn=loss)
    >>> [float(u) for u in updates]  # 2 / (8 / 2), and twice the clip
    [0.5, 1.0, -1.0]
    """
    _check_arguments(b1, b2, eps, gamma, clip_threshold, update_interval)
    _checks.check_choice("estimator", estimator, list(_curvature.SOURCES))
    _checks.check_choice("probe", probe, _curvature.PROBES)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    values = {"b1": b1, "b2": b2, "eps": eps, "gamma": gamma}
    if clip_threshold is not None:
        values["clip_threshold"] = clip_threshold

    def init(params: PyTree) -> ScaleBySophiaState:
        _tree.check_real(params, "parameter", "curvature is that of a real function")
        return ScaleBySophiaState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype, is_signed=True),
            key=_key_data(seed),
            **{"clip_threshold": None, **_scalars.initial_records(**values)},
        )

    def update(
        updates: PyTree,
        state: ScaleBySophiaState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleBySophiaState]:
        _checks.check_state(state, ScaleBySophiaState, "scale_by_sophia")
        moments.check_gradient(updates, state.mu)
        used = _scalars.resolve_all(state.count, **values)
        source = _curvature.source(estimator, extra_args)
        if params is None and jax.tree.leaves(updates):
            raise ValueError(
                "`params` must be the current parameters, got None: their curvature is "
                "estimated. Call tx.update(gradients, state, params, loss_fn=...)."
            )
        weight2 = moments.weight_of(used["b2"])

        def estimate(nu: PyTree) -> PyTree:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.count)
            found = _curvature.estimate(source, probe, updates, params, key)
            return moments.apply_rule(
                curvature_leaf, found, None, {"nu": nu}, weight2=weight2
            )[1]["nu"]

        interval = jnp.asarray(update_interval).astype(state.count.dtype)
        is_due = state.count % interval == 0
        nu = _varying.cond(is_due, lambda: estimate(state.nu), lambda: state.nu)
        updates, new = moments.apply_rule(
            sophia_leaf,
            updates,
            params,
            {"mu": state.mu, "nu": nu},
            unchanged=("nu",),
            weight1=moments.weight_of(used["b1"]),
            eps=used["eps"],
            gamma=used["gamma"],
            clip_threshold=used.get("clip_threshold"),
        )
        return updates, state._replace(
            count=_tree.increment(state.count),
            **new,
            **_scalars.records(used, state.b1.dtype),
        )

    return GradientTransformationExtraArgs(init, update)


def _check_arguments(
    b1: Any, b2: Any, eps: Any, gamma: Any, clip_threshold: Any, update_interval: Any
) -> None:
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_non_negative(
        "gamma", gamma, "It multiplies the curvature; use e.g. 0.01."
    )
    if clip_threshold is not None:
        _checks.check_positive(
            "clip_threshold", clip_threshold, "Use 1.0, or None for no clipping."
        )
    if not isinstance(update_interval, jax.core.Tracer):
        _checks.check_steps(
            "update_interval",
            update_interval,
            remedy="It is the number of steps from one estimate to the next, e.g. 10.",
        )


def _key_data(seed: Any) -> jax.Array:
    """The data of a key: arrays of integers pass through checkpoints, keys do not."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        seed = jax.random.bits(seed, (), jnp.uint32)
    elif not isinstance(seed, jax.core.Tracer):
        number = _checks.host_value("seed", seed, "an int or a jax.random.key")
        if number is None or not math.isfinite(number) or number != int(number):
            raise ValueError(
                f"`seed` must be an int or a jax.random.key, got {seed!r}; use e.g. 0."
            )
        seed = int(number)
    elif jnp.issubdtype(seed.dtype, jnp.floating):  # inject_hyperparams makes it one
        seed = seed.astype(jnp.int32)
    return jax.random.key_data(jax.random.key(seed))
