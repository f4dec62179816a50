"""SWATS: Adam that goes over to SGD by itself, at a learning rate that it estimated.

While in Adam's phase, with Adam's step s = -learning_rate * u,

    gamma  = (s . s) / (-s . g) = learning_rate (u . u) / (u . g)
    lambda <- b2 lambda + (1 - b2) gamma            over the whole tree, one scalar
    switch behind step t > 1 if |lambda / (1 - b2^t) - gamma| < tolerance
    rate   = lambda / (1 - b2^t) at the switch

and from the next step on, mu starting at 0 there,

    mu <- b1 mu + (1 - b1) g          p <- p - rate * mu

gamma is the rate at which the projection of SGD's step onto Adam's equals Adam's.

Source: Keskar & Socher, "Improving Generalization Performance by Switching from Adam to
SGD" (2017), Algorithm 1; mu is the paper's (1 - b1) v. Deviations: eps stands beside
sqrt(nu_hat) as in Adam, not beside sqrt(nu); a rate <= 0 does not switch; the rate
follows a learning-rate schedule after the switch; decoupled decay.
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
    scalar_dtype,
)
from adamx.optimizers.adam import adam_leaf
from adamx.reading import unboxed
from adamx.transforms import (
    add_decoupled_weight_decay,
    scale_tree,
    subtract_weight_decay,
    wide_chain,
)


class ScaleBySwatsState(NamedTuple):
    """State of `scale_by_swats`.

    8 bytes per float32 parameter, in both phases: nu stays, unread, behind the switch.

    Attributes:
      count: int32 scalar, steps taken.
      mu: tree like the parameters, running mean of the gradient: of all gradients in
        Adam's phase, of those behind the switch in SGD's.
      nu: tree like the parameters, real, running mean of |g|^2.
      b1, b2, eps, bias_correction_mu, bias_correction_nu, correction_rest_mu,
        correction_rest_nu: as in `ScaleByAdamState`.
      gamma: float32 scalar, the last estimate of SGD's rate; 0 at first.
      gamma_mean, gamma_mean_rest: float32 scalars, running mean of gamma, corrected for
        its bias (lambda / (1 - b2^t)), and what rounding kept out of it.
      switch_step: int32 scalar, the step behind which SGD took over; -1 before.
      switched_rate: float32 scalar, SGD's rate at the switch; 0 before.
      base_rate: float32 scalar, the learning rate at the switch; 0 before.
      applied_learning_rate: float32 scalar, the rate of the last step in either phase.
      decay_state: `AddDecoupledWeightDecayState`.
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
    gamma: Any
    gamma_mean: Any
    gamma_mean_rest: Any
    switch_step: Any
    switched_rate: Any
    base_rate: Any
    applied_learning_rate: Any
    decay_state: Any

    def readings(self) -> dict[str, Any]:
        """Steps, rate, and the step of the switch."""
        return {
            "count": self.count,
            "learning_rate": self.applied_learning_rate,
            "switch_step": self.switch_step,
        }

    def estimates(self) -> moments.Estimates:
        """The moments in Adam's phase, then NaN: see `moments.Estimates`."""
        return moments.adam_then_nothing(self, unboxed(self.switch_step) < 0)


def swats_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    is_adam: jax.Array,
    is_restart: jax.Array,
    **adam: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of SWATS, both phases in one pass.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      is_adam: whether this step is Adam's; else SGD's.
      is_restart: whether it is the first of SGD's, for which mu begins at 0.
      **adam: scalars of `adam_leaf`.

    Returns:
      direction, mu, nu; the direction is u in Adam's phase, mu in SGD's.
    """
    # Here and not behind the switching step: that step's writes would have to wait for
    # its own inner products, a second pass over everything.
    mu = jnp.where(is_restart, jnp.zeros_like(mu), mu)
    direction, mu, nu = adam_leaf(g, mu, nu, g_scale=None, **adam)
    return jnp.where(is_adam, direction, mu), mu, nu


def _observe(
    state: ScaleBySwatsState,
    count: jax.Array,
    rate: jax.Array,
    products: tuple[jax.Array, jax.Array],
    second: moments.Average,
    near: dict[str, Any],
) -> dict[str, jax.Array]:
    """The scalars of the switch after one step: estimate, mean, and the decision."""
    u_u, u_g = (x.astype(rate.dtype) for x in products)
    gamma = rate * (u_u / u_g)
    # u . g = 0 is 0/0 or inf; a NaN or an overflow is no estimate either.
    is_adam = state.switch_step < 0
    is_new = is_adam & (u_g != 0) & (rate != 0) & jnp.isfinite(gamma)
    # The mean is kept corrected: lambda / c moves by (1 - b2) / c of its distance from
    # gamma, and what is compared with the tolerance is that distance, free of the
    # rounding of c. What rounding keeps out of the mean is carried: with b2 = 0.999 it
    # would stop 500 ulp short of its goal, outside the tolerance.
    correction = jnp.asarray(second.correction, rate.dtype)
    previous = state.bias_correction_nu
    part = jnp.asarray(1.0 - second.b, rate.dtype) / correction
    part = jnp.where(previous == 0, jnp.ones_like(part), part)
    change = part * ((gamma - state.gamma_mean) - state.gamma_mean_rest)
    change = change + state.gamma_mean_rest
    mean = state.gamma_mean + change
    rest = change - (mean - state.gamma_mean)
    distance = jnp.abs((mean - gamma) + rest)
    limit = near["tolerance"] + near["relative_tolerance"] * jnp.abs(mean)
    switches = is_new & (count > 1) & (distance < limit) & (mean > 0)
    # A saturated count would be that of the switch at every step: mu would not grow.
    switches &= count < jnp.iinfo(count.dtype).max
    # Without an estimate lambda stays, while its correction grows.
    kept = jnp.where(is_adam, previous / correction, jnp.ones_like(previous))
    return {
        "gamma": jnp.where(is_new, gamma, state.gamma),
        "gamma_mean": jnp.where(is_new, mean, kept * state.gamma_mean),
        "gamma_mean_rest": jnp.where(is_new, rest, kept * state.gamma_mean_rest),
        "switch_step": jnp.where(switches, count, state.switch_step),
        "switched_rate": jnp.where(switches, mean, state.switched_rate),
        "base_rate": jnp.where(switches, rate, state.base_rate),
    }


def scale_by_swats(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-9,
    tolerance: Any = 1e-9,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    relative_tolerance: Any = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Replaces the gradient by Adam's step, and later by that of SGD with momentum.

    Its updates are final: they hold the learning rate, which only this stage knows, and
    the decay. The step that decides to switch is still Adam's.

    Args:
      learning_rate: Adam's; see `scale_by_learning_rate`. Behind the switch its changes
        go on: the rate is (estimated rate) * learning_rate / (learning_rate at the
        switch). For a constant one that is the paper's; the paper's own reductions
        divide both phases' rates alike.
      b1: see `scale_by_adam`; in SGD's phase the momentum, with gradients weighted by
        1 - b1, so that the rate is per unit of gradient.
      b2: see `scale_by_adam`; also the memory of the estimate.
      eps: see `scale_by_adam`.
      tolerance: >= 0, in units of the learning rate: how near the estimate must be to
        its own mean. 0, with `relative_tolerance` 0: never switches.
      weight_decay, mask: see `add_decoupled_weight_decay`; multiplied by the rate of
        either phase. It does not enter the estimate.
      relative_tolerance: >= 0, added to `tolerance` in parts of the mean. In float32
        the paper's absolute 1e-9 is below the spacing of the numbers for estimates
        above 0.016: it then asks for equality to the last bit.
      mu_dtype, nu_dtype: see `scale_by_adam`.
      independent_decay: see `adamw`.

    Returns:
      The transformation; dtypes as in `scale_by_adam`. All elements share the estimate:
      an element that is NaN stops it, and the switch never comes.

    Raises:
      ValueError, TypeError: as `scale_by_adam`.

    >>> import jax.numpy as jnp, adamx
    >>> tx = scale_by_swats(0.1, relative_tolerance=1e-3)
    >>> params = jnp.zeros(2)
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     _, state = tx.update(jnp.array([3.0, 1.0]), state, params)
    >>> reading = adamx.read(state)
    >>> reading.switch_step, round(float(state.switched_rate), 6)
    (2, 0.05)
    """
    _checks.check_learning_rate("learning_rate", learning_rate)
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    for name, value in (
        ("tolerance", tolerance),
        ("relative_tolerance", relative_tolerance),
    ):
        _checks.check_non_negative(name, value, "Use 0 never to switch by it.")
    _checks.check_weight_decay("weight_decay", weight_decay)
    _checks.check_flag("independent_decay", independent_decay)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    kind = subtract_weight_decay if independent_decay else add_decoupled_weight_decay
    decay = kind(weight_decay, mask)

    def init(params: PyTree) -> ScaleBySwatsState:
        count = jnp.zeros((), jnp.int32)
        rate = _scalars.resolve("learning_rate", learning_rate, count)
        observed = ["gamma", "gamma_mean", "gamma_mean_rest"]
        observed += ["switched_rate", "base_rate"]
        return ScaleBySwatsState(
            count=count,
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            switch_step=jnp.full((), -1, jnp.int32),
            applied_learning_rate=_scalars.record(rate, scalar_dtype()),
            decay_state=decay.init(params),
            **moments.initial_averages(betas),
            **_scalars.initial_records(eps=eps, **dict.fromkeys(observed, 0.0)),
        )

    def update(
        updates: PyTree,
        state: ScaleBySwatsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleBySwatsState]:
        _checks.check_state(state, ScaleBySwatsState, "scale_by_swats")
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, eps=eps)
        near = _scalars.resolve_all(
            state.count, tolerance=tolerance, relative_tolerance=relative_tolerance
        )
        dtype = state.applied_learning_rate.dtype
        base = jnp.asarray(
            _scalars.resolve("learning_rate", learning_rate, state.count), dtype
        )
        is_adam = state.switch_step < 0
        change = base / jnp.where(state.base_rate == 0, base, state.base_rate)
        rate = jnp.where(is_adam, base, state.switched_rate * change)
        direction, new = moments.apply_rule(
            swats_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            is_adam=is_adam,
            is_restart=state.switch_step == state.count,
            weight1=average["mu"].weight,
            weight2=average["nu"].weight,
            mu_scale=1.0 / average["mu"].correction,
            nu_scale=1.0 / average["nu"].correction,
            eps_root=0.0,
            **used,
        )
        products = (
            _tree.global_sum(_tree.abs_squared, direction),
            _tree.inner_product(direction, updates),
        )
        seen = _observe(state, count, base, products, average["nu"], near)
        if not independent_decay:
            direction, decayed = decay.update(
                direction, state.decay_state, params, **extra_args
            )
        updates = scale_tree(direction, -rate)
        if independent_decay:
            updates, decayed = decay.update(
                updates, state.decay_state, params, **extra_args
            )
        switch_step = seen.pop("switch_step")
        seen |= recorded | used | {"applied_learning_rate": rate}
        return updates, ScaleBySwatsState(
            count=count,
            switch_step=switch_step,
            decay_state=decayed,
            **new,
            **_scalars.records(seen, dtype),
        )

    return GradientTransformationExtraArgs(init, update)


def swats(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-9,
    tolerance: Any = 1e-9,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    relative_tolerance: Any = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam that switches to SGD with momentum when its estimate of SGD's rate settles.

        p <- p - learning_rate * (u + weight_decay * p)         Adam's phase
        p <- p - rate * (mu + weight_decay * p)                 SGD's

    `read(state)` tells the phase: `switch_step` is -1 in Adam's, then the last step of
    Adam's. `learning_rate` is the rate of the last step; in SGD's phase that of a plain
    SGD whose momentum averages (mu is a mean of gradients): in the convention of
    `momentum`, whose trace is a sum, it is that rate times (1 - b1).

    With minibatches the paper's tolerance of 1e-9 may never be met in float32: look at
    `read(state).switch_step`, and pass relative_tolerance=1e-3 or so (larger ones may
    switch within tens of steps).

    Args:
      learning_rate: Adam's, in units of the parameters; the paper uses 1e-3. See
        `scale_by_swats` for schedules.
      b1, b2, eps, tolerance, weight_decay, mask, relative_tolerance, mu_dtype,
        nu_dtype, independent_decay: see `scale_by_swats`.

    Returns:
      The optimizer. State: a tuple of one, `ScaleBySwatsState`, of the same shapes in
      both phases.

    >>> import jax.numpy as jnp, optax
    >>> tx = swats(1e-3)
    >>> params = jnp.array([1.0])
    >>> updates, state = tx.update(jnp.array([0.5]), tx.init(params), params)
    >>> round(float(optax.apply_updates(params, updates)[0]), 6)
    0.999

    Source: Keskar & Socher (2017), Algorithm 1; see `scale_by_swats`.
    """
    return wide_chain(
        scale_by_swats(
            learning_rate,
            b1,
            b2,
            eps,
            tolerance,
            weight_decay,
            mask,
            relative_tolerance=relative_tolerance,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            independent_decay=independent_decay,
        )
    )
