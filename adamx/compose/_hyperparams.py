"""Hyperparameters in the state: changed between steps, by one compiled program.

    state:   each number that the factory takes, as a float32 scalar
    update:  that of factory(numbers of the state)

The numbers reach the factory as traced values, whatever the parameters' dtype: a b2 of
0.999 is never rounded to bfloat16, where it is 1. Bias corrections of traced b1 and b2
are by the product of what was applied (`moments/_ema.py`), so that b2 may change in
mid-run.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx import _checks, _scalars, _tree
from adamx._steps import step_of, with_step
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
    scalar_dtype,
)
from adamx.compose._arguments import Arguments, bind, sort_arguments
from adamx.reading import Reading, recorded_kinds

# Names under which a Reading holds what a State did, not what it was told.
_DEEDS = {field.name for field in dataclasses.fields(Reading)}
_DEEDS -= {"learning_rate", "weight_decay"}


class WithHyperparamsState(NamedTuple):
    """State of `with_hyperparams`: 4 bytes for each number, beside the factory's state.

    Attributes:
      step: int32 scalar, steps taken: what schedules are asked. None without schedules.
      hyperparams: by argument, a float32 scalar (float64 in x64 mode): what the next
        step uses; `set_hyperparams` changes it.
      scheduled: by argument, a float32 scalar: the value of a schedule in the last
        step; before the first one, at step 0.
      inner_state: that of the factory's transformation.
    """

    step: Any
    hyperparams: dict[str, Any]
    scheduled: dict[str, Any]
    inner_state: Any

    def readings(self) -> dict[str, Any]:
        """What no State inside records: b1, eps, ..., as they stand."""
        told = _DEEDS | recorded_kinds(self.inner_state)
        held = {**self.hyperparams, **self.scheduled}
        return {name: value for name, value in held.items() if name not in told}


def with_hyperparams(
    factory: Callable[..., GradientTransformation],
    /,
    *args: Any,
    static: str | Iterable[str] = (),
    **kwargs: Any,
) -> GradientTransformationExtraArgs:
    """Keeps the numbers that a factory is given in the state, to be changed between.

        tx = with_hyperparams(adamx.adamw, learning_rate=1e-3, weight_decay=0.1)
        state = set_hyperparams(state, learning_rate=1e-4, b2=0.99)

    Nothing is compiled again. The update is that of `factory` with these numbers, b1
    and b2 corrected for by the product of what was applied. Numbers are rounded to
    float32 first: 1 - b2 is exact for float32(0.999), which is 0.99900001.

    In the state are all numbers, given or a default of the factory's signature: b1, b2,
    eps, weight_decay of `adamw` too. A schedule is asked for the number of steps taken
    and its value recorded; it cannot be set. As given stay flags, None, dtypes, codecs,
    masks and other functions, and whole numbers: an `int` (warmup_steps=100, seed=0)
    whose argument has a default other than a float. Such a number may be wanted in the
    state: write 100.0.

    A weight decay in the state is never known to be 0: `update` needs `params` wherever
    the factory takes a decay (static="weight_decay" mends that).

    Args:
      factory: what returns a transformation: an optimizer of this library or of Optax,
        or a function of your own, lambda learning_rate, clip: optax.chain(...).
      *args, **kwargs: its arguments (`args`, `kwargs`), each a number, a schedule or
        what else it takes.
      static: name or names of arguments that stay as given: numbers that decide a shape
        or a branch, schedules that the factory should ask itself, and functions taken
        for schedules.

    Returns:
      The transformation. State: `WithHyperparamsState`. `read(state)` has the numbers
      in `more`, but for those that the factory's own states record as applied
      (learning_rate, weight_decay). Extra arguments are handed on.

    Raises:
      TypeError: `factory` cannot be called so; it returns no transformation; it accepts
        an argument as a constant only; another state.
      ValueError: what the factory raises for a number out of range; `static` names an
        argument that it does not have.

    >>> import adamx, jax.numpy as jnp
    >>> tx = with_hyperparams(adamx.sgd, learning_rate=0.5)
    >>> state = tx.init(jnp.zeros(1))
    >>> updates, state = tx.update(jnp.ones(1), state)
    >>> state = adamx.set_hyperparams(state, learning_rate=0.25)
    >>> updates, state = tx.update(jnp.ones(1), state)
    >>> updates.tolist(), adamx.read(state).learning_rate
    ([-0.25], 0.25)
    """
    arguments = bind(factory, args, kwargs)
    numbers, schedules = sort_arguments(arguments, static)
    _check_by_building(arguments, numbers, schedules)

    def at(
        state: WithHyperparamsState,
    ) -> tuple[GradientTransformationExtraArgs, dict[str, Any], dict[str, Any]]:
        """The transformation of this step, its numbers, and those of schedules."""
        _checks.check_state(state, WithHyperparamsState, "with_hyperparams")
        _check_same_names("hyperparams", state.hyperparams, numbers)
        _check_same_names("scheduled", state.scheduled, schedules)
        dtype = scalar_dtype()
        # Strong again, where optax.tree.set has put a Python number.
        held = {k: jnp.asarray(v, dtype) for k, v in state.hyperparams.items()}
        asked = _scheduled(schedules, state.step)
        made = arguments.call({**held, **asked})
        return optax.with_extra_args_support(made), held, asked

    def init(params: PyTree) -> WithHyperparamsState:
        dtype = scalar_dtype()
        held = {k: _scalars.record(v, dtype) for k, v in numbers.items()}
        step = jnp.zeros((), jnp.int32) if schedules else None
        asked = _scheduled(schedules, step)
        inner_state = arguments.call({**held, **asked}).init(params)
        return WithHyperparamsState(step, held, asked, inner_state)

    def after(
        state: WithHyperparamsState, held: Any, asked: Any, inner_state: Any
    ) -> WithHyperparamsState:
        step = _tree.increment(state.step) if schedules else None
        return WithHyperparamsState(step, held, asked, inner_state)

    def update(
        updates: PyTree,
        state: WithHyperparamsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, WithHyperparamsState]:
        inner, held, asked = at(state)
        updates, below = inner.update(updates, state.inner_state, params, **extra_args)
        return updates, after(state, held, asked, below)

    def step(
        grads: PyTree, state: WithHyperparamsState, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, WithHyperparamsState]:
        inner, held, asked = at(state)
        params, below = step_of(inner)(grads, state.inner_state, params, **extra_args)
        return params, after(state, held, asked, below)

    return with_step(init, update, step)


def _scheduled(schedules: Mapping[str, Any], step: Any) -> dict[str, Any]:
    """The values of the schedules at a step, as the state records them."""
    return {
        name: _scalars.record(_scalars.resolve(name, f, step), scalar_dtype())
        for name, f in schedules.items()
    }


def _check_same_names(field: str, held: Any, wanted: Mapping[str, Any]) -> None:
    if set(held) != set(wanted):
        raise ValueError(
            f"`state` must hold {sorted(wanted)} in its field `{field}`, got "
            f"{sorted(held)}. It was made with other arguments of with_hyperparams "
            "(numbers, schedules and `static` decide which): call tx.init(params)."
        )


# ------------------------------------------------------------ checks by construction


def _check_by_building(
    arguments: Arguments, numbers: Mapping[str, Any], schedules: Mapping[str, Any]
) -> None:
    """Lets the factory judge: what was given, what float32 makes of it, and tracers."""
    start = jnp.zeros((), jnp.int32)
    with jax.ensure_compile_time_eval():
        first = {name: f(start) for name, f in schedules.items()}
    made = arguments.call({**numbers, **first})
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise TypeError(
            f"`factory` must return a gradient transformation, got "
            f"{_checks.describe_value(made)} of {arguments.name}; pass e.g. "
            "adamx.adamw and its arguments."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same ones again
        _check_traced(arguments, (*numbers, *schedules), {**numbers, **first})
        _check_rounded(arguments, numbers, first)


def _check_rounded(
    arguments: Arguments, numbers: Mapping[str, Any], first: Mapping[str, Any]
) -> None:
    kind = np.dtype(scalar_dtype())
    known = {k: v for k, v in numbers.items() if not isinstance(v, jax.Array)}
    with np.errstate(over="ignore"):
        rounded = {k: kind.type(v) for k, v in known.items()}
    rounded = {**numbers, **{k: v for k, v in rounded.items() if float(v) != known[k]}}
    try:
        arguments.call({**rounded, **first})
    except ValueError as error:
        raise ValueError(
            f"{error} (with_hyperparams keeps numbers as {kind}, rounded to 7 digits.)"
        ) from error


def _check_traced(
    arguments: Arguments, names: Iterable[str], values: Mapping[str, Any]
) -> None:
    """Raises TypeError naming the arguments that the factory wants as constants."""

    def attempt(*some: str) -> Exception | None:
        def build(traced: dict[str, Any]) -> None:
            arguments.call({**values, **traced})

        scalar = jax.ShapeDtypeStruct((), scalar_dtype())
        try:
            jax.eval_shape(build, dict.fromkeys(some, scalar))
        except Exception as error:
            return error
        return None

    error = attempt(*names)
    if error is None:
        return
    culprits = [name for name in names if attempt(name) is not None] or list(names)
    listed = ", ".join(f"`{name}`" for name in culprits)
    raise TypeError(
        f"{listed} of {arguments.name} must be static: it does not accept traced "
        f"values there ({str(error).splitlines()[0]}). Pass static={tuple(culprits)!r}."
    ) from error
