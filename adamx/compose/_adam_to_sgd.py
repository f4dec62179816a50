"""AdamW first, then SGD with momentum: a hand-over without a third buffer.

    Adam's phase:  mu <- b1 mu + (1 - b1) g;   nu <- b2 nu + (1 - b2) |g|^2
                   p <- p - learning_rate * mu_hat / (sqrt(nu_hat) + eps) - decay * p
    SGD's phase:   trace <- momentum * trace + g        in mu's buffer, 0 at its start
                   p <- p - sgd_rate * trace - decay * p
    in both        decay = learning_rate * weight_decay

sgd_rate is given, or matched once, at the switch, to Adam's last step, so that SGD's
step under a constant gradient mu_hat is as long as that was:

    matched = (1 - momentum) * learning_rate * |u| / |mu_hat|,  u = mu_hat / (...)

Source: Keskar & Socher, "Improving Generalization Performance by Switching from Adam to
SGD" (2017), for the hand-over and the idea of a matched rate. Theirs (`swats`) is that
at which the projection of SGD's step on Adam's is Adam's, (u . u) / (u . g); the one
here takes lengths and the mean gradient: it is never larger for the same gradient
(Cauchy-Schwarz), never negative, and what it reads is in the state at the switch.
"""

import functools
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
from adamx.compose._matched_rate import matched_rate
from adamx.compose._plateau import Plateau
from adamx.compose._switch import (
    DEFAULT_FRACTION,
    check_plateau,
    decision,
    last_step_of_adam,
)
from adamx.optimizers.adam import adam_averages_leaf, adam_direction_leaf
from adamx.optimizers.sgd import momentum_leaf
from adamx.reading import unboxed
from adamx.transforms import (
    add_decoupled_weight_decay,
    scale_tree,
    subtract_weight_decay,
    wide_chain,
)

_SMALL_RATE = 2.0**-100


class AdamToSgdState(NamedTuple):
    """State of `adam_to_sgd`: AdamW's bytes, and 12 more in all (32 with a plateau).

    8 bytes per float32 parameter, in both phases: nu stays, unread, behind the switch.

    Attributes:
      count: int32 scalar, steps taken in both phases.
      mu: tree like the parameters: Adam's running mean of the gradient; in SGD's phase
        the decaying sum of the gradients behind the switch.
      nu: tree like the parameters, real, running mean of |g|^2 in Adam's phase.
      b1, b2, eps, eps_root, bias_correction_mu, bias_correction_nu, correction_rest_mu,
        correction_rest_nu: as in `ScaleByAdamState`, those of Adam's last step.
      momentum: float32 scalar, as used in SGD's last step.
      switch_step: int32 scalar, the last step of Adam's phase; -1 in it.
      matched_rate: float32 scalar, SGD's rate as matched to Adam's last step; 0 before
        SGD's first step, and where SGD's rate is given.
      base_rate: float32 scalar, the learning rate of Adam's last step; 0 before.
      applied_learning_rate: float32 scalar, the rate of the last step in either phase.
      applied_weight_decay: float32 scalar, as used in the last step.
      plateau: `PlateauState`; None without `on_plateau`.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any
    momentum: Any
    switch_step: Any
    matched_rate: Any
    base_rate: Any
    applied_learning_rate: Any
    applied_weight_decay: Any
    plateau: Any

    def readings(self) -> dict[str, Any]:
        """Steps, rates, the step of the switch; and the stage of the last step."""
        count, stage = unboxed(self.count), unboxed(self.switch_step)
        if not isinstance(stage, jax.ShapeDtypeStruct):
            stage = ((stage >= 0) & (count > stage)) * 1
        return {
            "count": self.count,
            "learning_rate": self.applied_learning_rate,
            "weight_decay": self.applied_weight_decay,
            "switch_step": self.switch_step,
            "stage": stage,
        }

    def estimates(self) -> moments.Estimates:
        """The moments in Adam's phase, then NaN: see `moments.Estimates`."""
        is_adam = unboxed(self.switch_step) < 0
        return moments.adam_then_nothing(self, is_adam, self.eps_root)


def adam_to_sgd_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    is_adam: jax.Array,
    is_restart: jax.Array,
    weight1: moments.Weight,
    weight2: moments.Weight,
    momentum_weight: moments.Weight,
    **adam: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of either phase, in one pass.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      is_adam: whether this step is Adam's; else SGD's.
      is_restart: whether it is the first of SGD's, for which the trace begins at 0.
      weight1, weight2, momentum_weight: 1 - b1, 1 - b2, 1 - momentum.
      **adam: scalars of `adam_direction_leaf`.

    Returns:
      direction, mu, nu.
    """
    # Here and not behind Adam's last step, as in SWATS: that step is Adam's to the end.
    start = jnp.where(is_restart, jnp.zeros_like(mu), mu)
    _, trace = momentum_leaf(g, start, weight=momentum_weight, decay=None)
    mean, square = adam_averages_leaf(g, mu, nu, weight1=weight1, weight2=weight2)
    # The moments are selected first, the direction computed from what was: selected
    # side by side, all three are computed from the old moments, which are then copied
    # (measured: five times the time, two trees of temporaries).
    mu, nu = jnp.where(is_adam, mean, trace), jnp.where(is_adam, square, nu)
    direction = adam_direction_leaf(g, mu, nu, g_scale=None, **adam)
    return jnp.where(is_adam, direction, mu), mu, nu


def adam_to_sgd(
    learning_rate: ScalarOrSchedule,
    switch_step: Any = None,
    *,
    total_steps: Any = None,
    switch_fraction: Any = DEFAULT_FRACTION,
    sgd_learning_rate: ScalarOrSchedule | None = None,
    momentum: Any = 0.9,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
    on_plateau: Plateau | None = None,
) -> GradientTransformationExtraArgs:
    """AdamW, which hands over to SGD with momentum: at a step, a signal or a plateau.

        p <- p - learning_rate * adam - learning_rate * weight_decay * p      up to it
        p <- p - sgd_rate * trace     - learning_rate * weight_decay * p      behind it

    Up to the switch it is `adamw`, behind it `sgd(sgd_rate, momentum)` started there,
    with the decay that Adam had: each parameter goes on to lose the same part of itself
    a step, whatever SGD's rate is. The step that decides is still Adam's. In SGD's
    phase, the trace is kept in mu's buffer; nu stays as it is.

    When to switch: at the first of those that are given. Hand over for the last 10 to
    30 % of the steps, with the rate annealed; after Adam has fitted everything there is
    no gradient left for SGD to do better with.

    Args:
      learning_rate: Adam's; see `scale_by_learning_rate`. Asked for the steps taken in
        all, in SGD's phase too: for the decay, and for a matched rate.
      switch_step: >= 1, the last step of Adam's phase.
      total_steps: >= 2, the steps of the whole run, in the place of `switch_step`: the
        last step of Adam's phase is then round(switch_fraction * total_steps).
      switch_fraction: in (0, 1), Adam's part of `total_steps`.
      sgd_learning_rate: SGD's rate, in the convention of `sgd`, whose momentum is a
        sum; a schedule is asked for the steps taken since the switch. None: matched,

            sgd_rate = matched * learning_rate / (learning_rate of Adam's last step)
            matched = (1 - momentum) * (that learning rate) * |u| / |mu_hat|

        with lengths over all parameters, u the direction of Adam's last step and mu_hat
        its mean gradient: SGD's step under a constant gradient mu_hat is as long as
        Adam's last step was. `matched_rate` of the state records it. A learning rate
        that has come to 0 by the switch makes it 0.
      momentum: see `decay` of `scale_by_momentum`; its schedule is asked for the steps
        taken since the switch.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype: see `scale_by_adam`. mu_dtype is that
        of the trace too.
      weight_decay, mask, independent_decay: see `adamw`.
      on_plateau: a `plateau(...)`, which is shown the extra argument `value` of update:
        the plateau's end is the switch.

    Returns:
      The optimizer. State: a tuple of one, `AdamToSgdState`, of the same shapes in both
      phases. Its update takes the extra arguments `switch`, a bool scalar, which hands
      over behind the step at which it is True and must be passed where nothing else
      decides; and `value`, the loss to be watched, which `on_plateau` needs.
      `read(state)` has `switch_step` and, in `more`, `stage`: 0 if the last step was
      Adam's, 1 if it was SGD's.

    Raises:
      ValueError, TypeError: as `adamw`; both `switch_step` and `total_steps`; nothing
        that decides when to switch; `switch` or `value` of a wrong type.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adam_to_sgd(0.1, switch_step=2, sgd_learning_rate=1.0)
    >>> params = jnp.zeros(1)
    >>> state, steps = tx.init(params), []
    >>> for _ in range(4):
    ...     updates, state = tx.update(jnp.array([0.5]), state, params)
    ...     steps.append(round(float(updates[0]), 3))
    >>> steps, adamx.read(state).switch_step
    ([-0.1, -0.1, -0.5, -0.95], 2)

    Source: Keskar & Socher (2017); see the module for what differs.
    """
    last = last_step_of_adam(switch_step, total_steps, switch_fraction)
    _checks.check_learning_rate("learning_rate", learning_rate)
    if sgd_learning_rate is not None:
        _checks.check_learning_rate("sgd_learning_rate", sgd_learning_rate)
    for name, value in (("momentum", momentum), ("b1", b1), ("b2", b2)):
        _checks.check_decay_rate(name, value)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        _checks.check_epsilon(name, value)
    _checks.check_weight_decay("weight_decay", weight_decay)
    _checks.check_flag("independent_decay", independent_decay)
    check_plateau(on_plateau)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    epsilons = {"eps": eps, "eps_root": eps_root}
    descend = functools.partial(_descend, mask=mask, is_independent=independent_decay)

    def init(params: PyTree) -> AdamToSgdState:
        count = jnp.zeros((), jnp.int32)
        decayed = subtract_weight_decay(weight_decay, mask).init(params)
        rates = {
            "applied_learning_rate": _rate_at("learning_rate", learning_rate, count),
            "applied_weight_decay": decayed.applied_weight_decay,
        }
        return AdamToSgdState(
            count=count,
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            switch_step=jnp.full((), -1, jnp.int32),
            **moments.initial_averages(betas),
            **_scalars.initial_records(
                **epsilons, momentum=momentum, matched_rate=0.0, base_rate=0.0
            ),
            **_scalars.records(rates, scalar_dtype()),
            plateau=None if on_plateau is None else on_plateau.init(),
        )

    def rate_of_sgd(
        state: AdamToSgdState, match: Any, base: jax.Array, since: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """SGD's rate at a step; and the matched one, with Adam's last, as recorded."""
        if sgd_learning_rate is not None:
            rate = _rate_at("sgd_learning_rate", sgd_learning_rate, since)
            names = ("matched_rate", "base_rate")
            return rate, {name: getattr(state, name) for name in names}
        matched = match()
        then = matched["base_rate"]  # in Adam's phase 0, as the matched rate is
        follows = base / jnp.where(then == 0, jnp.ones_like(then), then)
        return matched["matched_rate"] * follows, matched

    def update(
        updates: PyTree,
        state: AdamToSgdState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AdamToSgdState]:
        _checks.check_state(state, AdamToSgdState, "adam_to_sgd")
        count = _tree.increment(state.count)
        decides, plateau = decision(count, last, on_plateau, state.plateau, extra_args)
        is_adam = state.switch_step < 0
        is_restart = state.switch_step == state.count
        since = jnp.where(is_adam, 0, state.count - state.switch_step)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, **epsilons)
        slow = _scalars.resolve_all(since, momentum=momentum)
        base = _rate_at("learning_rate", learning_rate, state.count)
        match = functools.partial(_matched, state, is_restart, updates, params, **slow)
        sgd_rate, matched = rate_of_sgd(state, match, base, since)
        # Never below 0, which XLA cannot know: whatever overwrites the moments waits
        # until they have been read for the rate. Otherwise they are copied.
        is_adam &= ~(sgd_rate < 0)
        rate = jnp.where(is_adam, base, sgd_rate)
        direction, new = moments.apply_rule(
            adam_to_sgd_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            is_adam=is_adam,
            is_restart=is_restart,
            weight1=average["mu"].weight,
            weight2=average["nu"].weight,
            momentum_weight=moments.weight_of(slow["momentum"]),
            mu_scale=1.0 / average["mu"].correction,
            nu_scale=1.0 / average["nu"].correction,
            **used,
        )
        decay = _scalars.resolve("weight_decay", weight_decay, state.count)
        updates = descend(
            direction, params, extra_args, is_adam, rate, base=base, decay=decay
        )
        kept = {
            name: jnp.where(is_adam, value, getattr(state, name))
            for name, value in _scalars.records(recorded | used, base.dtype).items()
        }
        applied = {"applied_learning_rate": rate, "applied_weight_decay": decay}
        return updates, AdamToSgdState(
            count=count,
            switch_step=jnp.where(is_adam & decides, count, state.switch_step),
            plateau=plateau,
            **new,
            **kept,
            **_scalars.records(slow | applied | matched, base.dtype),
        )

    return wide_chain(GradientTransformationExtraArgs(init, update))


def _rate_at(name: str, rate: ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """A rate as a State records it."""
    return jnp.asarray(_scalars.resolve(name, rate, count), scalar_dtype())


def _descend(
    direction: PyTree,
    params: PyTree | None,
    extra_args: dict[str, Any],
    is_adam: jax.Array,
    rate: jax.Array,
    *,
    base: jax.Array,
    decay: Any,
    mask: Mask,
    is_independent: bool,
) -> PyTree:
    """Rate and decay in the form of `adamw`, whose numbers they are in Adam's phase.

    In SGD's, with base * decay / rate for a decay: the same part of p a step as before.
    """
    if is_independent:
        shrink = subtract_weight_decay(decay, mask)
        direction = scale_tree(direction, -rate)
    elif _checks.is_zero(decay):
        shrink = add_decoupled_weight_decay(0.0, mask)
    else:
        # No quotient by 0: at this rate the direction is nothing beside the decay.
        rate = jnp.where(is_adam | (rate != 0), rate, _SMALL_RATE)
        beside = jnp.where(is_adam, decay, decay * base / rate)
        shrink = add_decoupled_weight_decay(beside, mask)
    updates, _ = shrink.update(direction, shrink.init({}), params, **extra_args)
    return updates if is_independent else scale_tree(updates, -rate)


def _matched(
    state: AdamToSgdState,
    is_restart: jax.Array,
    updates: PyTree,
    params: PyTree | None,
    momentum: Any,
) -> dict[str, jax.Array]:
    """SGD's matched rate, found in its first step, and Adam's last; then as found."""

    def find() -> tuple[jax.Array, jax.Array]:
        rate = matched_rate(state, updates, params, momentum)
        return rate, state.applied_learning_rate

    found = _varying.cond(
        is_restart, find, lambda: (state.matched_rate, state.base_rate)
    )
    return dict(zip(("matched_rate", "base_rate"), found, strict=True))
