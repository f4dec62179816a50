"""Steps that would do harm are left out: NaN, infinities, spikes of the norm.

    a gradient with NaN or inf                          the step is skipped
    (norm - mean) / sqrt(variance) > spike_zscore       skipped, where that is asked for
    anything else                                       the step of the wrapped one

mean and variance are those of the norms of the steps that were taken, see `_spikes.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _scalars, _tree, _varying
from adamx._steps import with_step_if
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    scalar_dtype,
)
from adamx.compose._choice import (
    choose,
    chosen,
    emitted_like,
    scalars_if,
    step_if_of,
    update_if,
)
from adamx.compose._finite import finite_norm
from adamx.compose._loss_scaling import scaling_states
from adamx.compose._spikes import (
    NormStatistics,
    initial_statistics,
    learn,
    zscore,
)


class GuardState(NamedTuple):
    """State of `guard`: 17 bytes, 49 with `spike_zscore`, beside the wrapped one's.

    Attributes:
      inner_state: that of the wrapped transformation.
      skipped: int32 scalar, steps skipped so far; stays at 2^31 - 1 once there.
      skipped_in_a_row: int32 scalar, those since the last step that was taken.
      is_stuck: bool scalar, whether these are more than `max_consecutive`.
      grad_norm: float32 scalar, norm of the last gradient, skipped or not: NaN or inf
        where it was not finite, inf where its squares overflow; 0 at first.
      statistics: `NormStatistics`, or None without `spike_zscore`.
    """

    inner_state: Any
    skipped: Any
    skipped_in_a_row: Any
    is_stuck: Any
    grad_norm: Any
    statistics: Any

    def readings(self) -> dict[str, Any]:
        """The counters, and the gradient's norm."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "is_stuck": self.is_stuck,
            "grad_norm": self.grad_norm,
        }


class _Verdict(NamedTuple):
    """What is thought of a gradient; all scalars."""

    is_taken: Any
    is_spike: Any
    is_new_level: Any
    norm: Any
    score: Any


def guard(
    tx: GradientTransformation,
    *,
    spike_zscore: Any = None,
    spike_decay: Any = 0.99,
    spike_warmup: Any = 100,
    max_consecutive: Any = 10,
    axis_name: Any = None,
) -> GradientTransformationExtraArgs:
    """Skips a step whose gradient is not finite or, if asked, whose norm is a spike.

        skip where any g is NaN or inf, or z > spike_zscore
        z = (norm - mean) / sqrt(variance),     norm = sqrt(sum of all |g|^2)

    A skipped step leaves the state of `tx` as it is, bit by bit, its counts and moments
    included, and emits -0.0, which added to a parameter gives that parameter, -0.0
    included. Mean and variance are exponential, without bias, and learned from the
    steps that are taken.

    More than `max_consecutive` spikes in a row are no spikes but another level: the
    step is taken, and the statistics begin anew with it, warm-up included. A gradient
    that is not finite is never taken: beyond that limit `is_stuck` is set, to be seen
    by `read`. A gradient whose norm overflows (above 1.8e19 in float32) is finite; its
    z is inf.

    What the gradient is made of at the end is judged: put the guard around clipping.
    `guard(accumulate(tx, k))` leaves single micro-batches out of a window,
    `accumulate(guard(tx), k)` judges the window's mean. With float16, loss_scaling
    skips by itself and has to see what is not finite: `loss_scaling(guard(tx))`.

    Judging costs one pass over the gradient. Through Optax's protocol the choice costs
    a tree of temporaries, since the update is written before it is added; through
    `adamx.fused` none.

    Args:
      tx: any transformation.
      spike_zscore: > 0, in standard deviations, e.g. 6; None: no norm is a spike. Norms
        are skewed to above: at 3, good steps are lost.
      spike_decay: in (0, 1), memory of about 1 / (1 - decay) steps of mean and
        variance.
      spike_warmup: >= 2, steps taken before any is a spike. The first steps of a
        training are unlike the others.
      max_consecutive: >= 1, skipped steps in a row, see above. None: no limit. Then a
        norm that rises and stays where it is ends the training.
      axis_name: inside `shard_map` and `pmap`, the axes along which the gradient is in
        pieces; see `clip_by_global_norm`. All devices then judge as one.

    Returns:
      The optimizer. State: `GuardState`. Updates have the dtypes of those of `tx`.
      Extra arguments are handed on. Inside `jax.shard_map` or `jax.pmap`, each device
      judges what it has, and they may part: sum gradients of copies over the devices
      first, and name the axes of pieces in `axis_name`.

    Raises:
      TypeError: `tx` is not a transformation; an argument is no number, or a schedule;
        another state; a gradient that is no float; `axis_name` is no name.
      ValueError: an argument out of range; axes that are not there; a
        loss_scaling inside `tx`.

    >>> import adamx, jax.numpy as jnp
    >>> tx = guard(adamx.sgd(1.0, momentum=0.5), spike_zscore=6.0, spike_warmup=2)
    >>> params = jnp.zeros(2)
    >>> state = tx.init(params)
    >>> for g in (1.0, 1.1, jnp.nan, 50.0, 1.0):
    ...     updates, state = tx.update(jnp.full(2, g), state, params)
    ...     print(updates, adamx.read(state).skipped)
    [-1. -1.] 0
    [-1.6 -1.6] 0
    [-0. -0.] 1
    [-0. -0.] 2
    [-1.8 -1.8] 2
    """
    _checks.check_transformation("tx", tx)
    _check_spikes(spike_zscore, spike_decay, spike_warmup)
    _varying.check_names(axis_name)
    if max_consecutive is not None and not isinstance(max_consecutive, jax.core.Tracer):
        remedy = "Use e.g. 10, or None for no limit."
        _checks.check_steps("max_consecutive", max_consecutive, remedy=remedy)
    inner, inner_step = optax.with_extra_args_support(tx), step_if_of(tx)

    def init(params: PyTree) -> GuardState:
        held = inner.init(params)
        if scaling_states(held):
            raise ValueError(
                "`tx` must not hold a loss_scaling, whose scale falls only where it "
                "sees what is not finite. Put it outside: "
                "loss_scaling(guard(tx, spike_zscore=...))."
            )
        return GuardState(
            inner_state=held,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
            is_stuck=jnp.zeros((), bool),
            grad_norm=jnp.zeros((), scalar_dtype()),
            statistics=None if spike_zscore is None else initial_statistics(),
        )

    def check(updates: PyTree, state: Any, params: PyTree | None) -> None:
        _checks.check_state(state, GuardState, "guard")
        if (state.statistics is None) != (spike_zscore is None):
            got = "without" if state.statistics is None else "with"
            raise ValueError(
                "`state` must be of the same `spike_zscore`, on or off, as the guard, "
                f"got one {got} statistics of the norm; make a new one (tx.init), or "
                "guard as before."
            )
        _tree.check_gradient(updates, params)

    def judge(updates: Callable[[], PyTree], state: GuardState) -> _Verdict:
        is_finite, norm = finite_norm(updates, axis_name)
        norm = norm.astype(state.grad_norm.dtype)
        none = jnp.zeros_like(is_finite)
        if spike_zscore is None:
            return _Verdict(is_finite, none, none, norm, jnp.zeros_like(norm))
        known: NormStatistics = state.statistics
        score = zscore(norm, known, spike_warmup)
        is_spike = is_finite & (score > jnp.asarray(spike_zscore, score.dtype))
        is_new = none
        if max_consecutive is not None:
            limit = jnp.asarray(max_consecutive).astype(jnp.int32)
            is_new = is_spike & (known.spikes_in_a_row >= limit)
        is_spike = is_spike & ~is_new
        return _Verdict(is_finite & ~is_spike, is_spike, is_new, norm, score)

    def after(state: GuardState, held: Any, verdict: _Verdict) -> GuardState:
        none = jnp.zeros((), jnp.int32)
        more = _tree.increment(state.skipped_in_a_row)
        in_a_row = jnp.where(verdict.is_taken, none, more)
        is_stuck = jnp.zeros_like(state.is_stuck)
        if max_consecutive is not None:
            is_stuck = in_a_row > jnp.asarray(max_consecutive).astype(jnp.int32)
        statistics = state.statistics
        if statistics is not None:
            statistics = _after(statistics, verdict, spike_decay)
        skipped = _tree.increment(state.skipped)
        skipped = jnp.where(verdict.is_taken, state.skipped, skipped)
        norm = verdict.norm
        return GuardState(held, skipped, in_a_row, is_stuck, norm, statistics)

    def update(
        updates: PyTree,
        state: GuardState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, GuardState]:
        check(updates, state, params)
        held, verdict = state.inner_state, judge(lambda: updates, state)
        like = emitted_like(inner.update, updates, held, params, **extra_args)

        def take() -> tuple[PyTree, Any]:
            return inner.update(updates, held, params, **extra_args)

        new, held = update_if(verdict.is_taken, take, updates, held, params, like)
        return new, after(state, held, verdict)

    def step_if(
        is_taken: jax.Array | None,
        grads: Callable[[], PyTree],
        state: GuardState,
        params: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, GuardState]:
        check(jax.eval_shape(grads), state, params)
        verdict = scalars_if(is_taken, lambda: judge(grads, state))
        params, held = inner_step(
            verdict.is_taken, grads, state.inner_state, params, **extra_args
        )
        return params, chosen(is_taken, after(state, held, verdict), state)

    return with_step_if(init, update, step_if)


def _after(known: NormStatistics, verdict: _Verdict, decay: Any) -> NormStatistics:
    decay = _scalars.resolve("spike_decay", decay, jnp.zeros((), jnp.int32))
    learned = learn(verdict.norm, known, decay, verdict.is_new_level)
    new = choose(verdict.is_taken, learned, known)
    spikes, in_a_row = known.spikes, known.spikes_in_a_row
    more, longer = _tree.increment(spikes), _tree.increment(in_a_row)
    in_a_row = jnp.where(verdict.is_spike, longer, in_a_row)
    return new._replace(
        zscore=verdict.score,
        spikes=jnp.where(verdict.is_spike, more, spikes),
        spikes_in_a_row=jnp.where(verdict.is_taken, jnp.zeros_like(in_a_row), in_a_row),
    )


def _check_spikes(zscore: Any, decay: Any, warmup: Any) -> None:
    if zscore is not None:
        remedy = "It is in standard deviations: use e.g. 6.0, or None for no spikes."
        _checks.check_positive("spike_zscore", zscore, remedy)
    remedy = "It is the weight of the past in mean and variance: use e.g. 0.99."
    _checks.check_between("spike_decay", decay, 0.0, 1.0, remedy)
    if not isinstance(warmup, jax.core.Tracer):
        remedy = "A spread needs two norms at least: use e.g. 100."
        _checks.check_steps("spike_warmup", warmup, minimum=2, remedy=remedy)
