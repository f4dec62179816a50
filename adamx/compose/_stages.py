"""One optimizer after another: each with a state of its own, one at work.

stage(t) = the first i with t < steps_0 + ... + steps_i,  t steps taken before
p, s_i <- step of stage i;   all other s_j stay as they are
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _tree, _varying
from adamx._steps import step_of, with_step
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    update_dtype,
)
from adamx.compose._carry import carried, carries, continued
from adamx.compose._choice import as_stored, step_if
from adamx.compose._precision import outermost_in
from adamx.compose._stages_state import StagesState
from adamx.moments import placed_like


def stages(
    plan: Sequence[tuple[GradientTransformation, int | None]],
    *,
    schedules: str = "restart",
    moments: str = "reset",
) -> GradientTransformationExtraArgs:
    """Runs one optimizer for so many steps, then the next, and the last to the end.

        stages([(adamw(1e-3), 8000), (sgd(0.1, 0.9), 2000), (sgd(0.01, 0.9), None)])

    Only the stage at work is computed; the others' states wait as they are, and take
    memory: for AdamW and then SGD, `adam_to_sgd` needs no third buffer.

    Args:
      plan: pairs of a transformation and its number of steps, >= 1; the last has None.
      schedules: "restart": each stage counts its own steps, as if it were alone.
        "continue": where a stage begins, what in its state is nothing but a schedule's
        position is set to the steps taken in all: `count` of
        `ScaleByScheduledLearningRateState` and of `optax.scale_by_schedule`, `step` of
        `ScaleByLearningRateState`, of `AddDecoupledWeightDecayState`, of
        `ScaleByMomentumState` and of `WithHyperparamsState`, `count` of
        `optax.inject_hyperparams`. Counts that correct the bias of moments start anew,
        and with them schedules that are asked for these: of b1, b2 and eps, and the
        learning rates of `swats`, `adam_to_sgd` and `schedule_free_adamw`, which hold
        their own. Stages in a stage go on from there if they, too, are to continue.
      moments: "reset": each stage starts without a past. "carry": a stage that begins
        takes over the mean gradient and the mean squared gradient of the one that
        ends, in its own units: mu / (bias correction) of Adam's is trace *
        (1 - momentum) of momentum's, a sum. Bias corrections are taken over with the
        moments, so that both hold for the steps of both stages. It is done for
        `scale_by_adam` and `scale_by_momentum` (and so for adam, adamw, nadam, sgd,
        momentum, ...) whose moments have the same tree, and no codec; a stage with two
        moments takes them from one with two.

    Returns:
      The optimizer; extra arguments go to the stage at work. State: `StagesState`, of
      the same shapes throughout. `read(state)` reports the stage of the last step only;
      `more` has its number, `stage` (from 0), and `stage_since`, the steps taken before
      it. Through `fused` a step takes the time of its stage and no temporaries; through
      `update` it holds one tree, the updates.

    Raises:
      TypeError: `plan` is no sequence of such pairs; a step count that is no number.
      ValueError: an empty plan; a step count < 1; None before the last stage, or none
        there; moments="carry" where a stage can take over nothing (at init).

    >>> import adamx, jax.numpy as jnp
    >>> tx = stages([(adamx.sgd(1.0), 2), (adamx.sgd(0.5), None)])
    >>> params = jnp.zeros(1)
    >>> state, steps = tx.init(params), []
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.ones(1), state, params)
    ...     steps.append(float(updates[0]))
    >>> reading = adamx.read(state)
    >>> steps, reading.learning_rate, reading.more["stage"], reading.more["stage_since"]
    ([-1.0, -1.0, -0.5], 0.5, 1, 2)
    """
    txs, starts = _check_plan(plan)
    _checks.check_choice("schedules", schedules, ("restart", "continue"))
    _checks.check_choice("moments", moments, ("reset", "carry"))
    updates_of = [optax.with_extra_args_support(tx).update for tx in txs]
    steps_of = [step_of(tx) for tx in txs]

    def init(params: PyTree) -> StagesState:
        held = tuple(tx.init(params) for tx in txs)
        _check_writes(held)
        if moments == "carry":
            _check_carries(held)
        zeros = (jnp.zeros((), jnp.int32) for _ in range(4))
        return StagesState(held, *zeros)

    def run(
        state: StagesState,
        value: PyTree,
        choose: Callable[[int, jax.Array, Any, PyTree], tuple[PyTree, Any]],
    ) -> tuple[PyTree, StagesState]:
        """Hands `value` from stage to stage; only the one at work changes anything."""
        _checks.check_state(state, StagesState, "stages")
        stage = jnp.sum(state.count >= jnp.asarray(starts[1:], jnp.int32))
        stage = stage.astype(jnp.int32)
        begins = (stage != state.stage) | (state.count == 0)
        held = list(state.inner_states)
        for i in range(len(txs)):
            mine, is_first = held[i], (stage == i) & begins
            if i and moments == "carry":
                mine = carried(held[i - 1], mine, is_first)
            if schedules == "continue":
                mine = continued(mine, state.before + state.count, is_first)
            # One conditional for each stage, behind one another: each changes its own
            # state and `value`, and leaves them alone at no cost otherwise. One switch
            # over all states keeps them twice, at five times the time.
            value, held[i] = choose(i, stage == i, mine, value)
        since = jnp.where(begins, state.count, state.since)
        count = _tree.increment(state.count)
        return value, StagesState(tuple(held), count, stage, since, state.before)

    def update(
        updates: PyTree,
        state: StagesState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, StagesState]:
        def as_emitted(values: PyTree) -> PyTree:
            def leaf(g: Any, u: Any, p: Any) -> tuple[jax.Array]:
                u = jnp.asarray(u).astype(update_dtype(g, p))
                return (placed_like(u, jnp.asarray(g)),)

            return _tree.map_leaves(leaf, 1, updates, values, params)[0]

        def choose(
            i: int, is_mine: jax.Array, mine: Any, value: PyTree
        ) -> tuple[PyTree, Any]:
            def take() -> tuple[PyTree, Any]:
                new, after = updates_of[i](updates, mine, params, **extra_args)
                return as_emitted(new), as_stored(after, mine)

            def leave() -> tuple[PyTree, Any]:
                if i:
                    return value, mine
                # Not the gradient: a parameter that all stages freeze depends on none.
                return as_emitted(jax.tree.map(jnp.zeros_like, updates)), mine

            return _varying.cond(is_mine, take, leave)

        _tree.check_gradient(updates, params)
        return run(state, updates, choose)

    def step(
        grads: PyTree, state: StagesState, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, StagesState]:
        def choose(
            i: int, is_mine: jax.Array, mine: Any, value: PyTree
        ) -> tuple[PyTree, Any]:
            def take() -> tuple[PyTree, Any]:
                return steps_of[i](grads, mine, value, **extra_args)

            return step_if(is_mine, take, value, mine)

        _tree.check_gradient(grads, params)
        return run(state, params, choose)

    return with_step(init, update, step)


def _check_plan(plan: Any) -> tuple[list[GradientTransformation], list[int]]:
    """The transformations, and the steps taken before each begins."""
    expected = "a list of pairs (transformation, steps), the last with None"
    if hasattr(plan, "init") or not isinstance(plan, (list, tuple)):
        raise TypeError(
            f"`plan` must be {expected}, got {_checks.describe_value(plan)}; pass e.g. "
            "[(adamx.adamw(1e-3), 1000), (adamx.sgd(0.1), None)]."
        )
    if not plan:
        raise ValueError(f"`plan` must be {expected}, got none; give at least one.")
    txs, starts = [], [0]
    for i, pair in enumerate(plan):
        tx, steps = _check_stage(f"plan[{i}]", pair, is_last=i == len(plan) - 1)
        txs.append(tx)
        if steps is not None:
            starts.append(starts[-1] + steps)
    if starts[-1] > _checks.LAST_STEP:
        raise ValueError(
            f"`plan` must begin its last stage by step {_checks.LAST_STEP}, got "
            f"{starts[-1]}: steps are counted in 32 bits. Shorten the stages."
        )
    return txs, starts


def _check_stage(
    name: str, pair: Any, is_last: bool
) -> tuple[GradientTransformation, int | None]:
    """A transformation, and its number of steps; None for the last."""
    is_pair = isinstance(pair, (list, tuple)) and not hasattr(pair, "init")
    if not is_pair or len(pair) != 2:
        raise TypeError(
            f"`{name}` must be a pair (transformation, steps), got "
            f"{_checks.describe_value(pair)}; write (tx, 1000), or (tx, None) last."
        )
    tx, steps = pair
    _checks.check_transformation(f"{name}[0]", tx)
    if is_last and steps is not None:
        raise ValueError(
            f"`{name}[1]` must be None, for the last stage has no end, got "
            f"{_checks.describe_value(steps)}. Pass None: what runs longer than "
            "planned stays in it."
        )
    if not is_last and steps is None:
        raise ValueError(
            f"`{name}[1]` must be a number, got None. Only the last stage goes on for "
            "ever: those behind this one would never run. Give its steps, or drop them."
        )
    remedy = "It is the stage's own number of steps, not where it ends."
    count = None if is_last else _checks.check_steps(f"{name}[1]", steps, remedy=remedy)
    return tx, count


def _check_writes(held: tuple[Any, ...]) -> None:
    """Raises where a stage's update is what parameters lack of a target in 32 bits."""
    name = next((n for n in map(outermost_in, held) if n is not None), None)
    if name is not None:
        raise ValueError(
            f"the stages of `plan` must not hold {name}, whose float32 updates must "
            f"not be rounded, and of which each would keep a copy. Put it outside: "
            f"{name}(stages([...]))."
        )


def _check_carries(held: tuple[Any, ...]) -> None:
    for i in range(1, len(held)):
        if not carries(held[i - 1], held[i]):
            raise ValueError(
                f"`moments` must be 'reset' where a stage can take over nothing, got "
                f"'carry', and plan[{i}] has no moments that plan[{i - 1}] could give "
                "it. Those of scale_by_adam and scale_by_momentum are carried, where "
                "they have the same tree and no codec, and Adam's two from Adam's."
            )
