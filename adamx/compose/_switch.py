"""When Adam's phase ends: at a step, a signal or a plateau, whichever comes first."""

from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks
from adamx.compose._plateau import Plateau

DEFAULT_FRACTION = 0.8


def decision(
    count: jax.Array,
    last: Any,
    on_plateau: Plateau | None,
    watched: Any,
    extra_args: dict[str, Any],
) -> tuple[jax.Array, Any]:
    """Whether the step that makes the count `count` is the last of Adam's phase."""
    signal, plateau, found = extra_args.get("switch"), watched, []
    if last is not None:
        found.append(count >= jnp.asarray(last).astype(count.dtype))
    if signal is not None:
        found.append(_checked_signal(signal))
    if on_plateau is not None:
        if extra_args.get("value") is None:
            raise ValueError(
                "`value` must be the loss that `on_plateau` watches, got None. Call "
                "tx.update(gradients, state, params, value=loss) at every step."
            )
        is_plateau, plateau = on_plateau.update(extra_args["value"], watched)
        found.append(is_plateau)
    if not found:
        raise ValueError(
            "`switch` must be passed to update where nothing else says when to hand "
            "over, got None. Call tx.update(gradients, state, params, switch=...) with "
            "a bool scalar, or give `switch_step`, `total_steps` or `on_plateau`."
        )
    # A count that is saturated would be that of the switch at every step.
    decides = count < jnp.iinfo(count.dtype).max
    return decides & jnp.any(jnp.stack(found)), plateau


def _checked_signal(signal: Any) -> jax.Array:
    array = jnp.asarray(signal)
    if array.ndim or array.dtype != jnp.bool_:
        raise TypeError(
            "`switch` must be a bool scalar, True where Adam's phase is to end, got "
            f"{_checks.describe_value(signal)}. Pass e.g. loss < 0.1, or "
            "jnp.all(...) of several."
        )
    return array


def last_step_of_adam(switch_step: Any, total_steps: Any, fraction: Any) -> Any:
    """The step after which SGD takes over, a number or traced; None: unknown."""
    if switch_step is not None and total_steps is not None:
        raise ValueError(
            "`switch_step` must be None where `total_steps` is given, got "
            f"{_checks.describe_value(switch_step)} and "
            f"{_checks.describe_value(total_steps)}. Both say when to hand over: give "
            "the step, or the length of the run and `switch_fraction`."
        )
    is_chosen = _checks.is_constant(fraction) and fraction != DEFAULT_FRACTION
    if total_steps is None and is_chosen:
        raise ValueError(
            "`switch_fraction` must stand beside `total_steps`, of which it is a part, "
            f"got `total_steps` None and {_checks.describe_value(fraction)}. Give the "
            "length of the whole run."
        )
    remedy = "Use 0.7 to 0.9: SGD for the last 10 to 30 % of the steps."
    _checks.check_between("switch_fraction", fraction, 0.0, 1.0, remedy)
    if switch_step is not None:
        if not isinstance(switch_step, jax.core.Tracer):
            _checks.check_steps("switch_step", switch_step)
        return switch_step
    if total_steps is None:
        return None
    if not isinstance(total_steps, jax.core.Tracer):
        remedy = "It is the length of the whole run, both phases."
        _checks.check_steps("total_steps", total_steps, minimum=2, remedy=remedy)
    last = jnp.round(jnp.asarray(total_steps) * jnp.asarray(fraction))
    return jnp.clip(last, 1, total_steps - 1)


def check_plateau(value: Any) -> None:
    if value is not None and not isinstance(value, Plateau):
        raise TypeError(
            "`on_plateau` must be a plateau or None, got "
            f"{_checks.describe_value(value)}. Pass adamx.plateau(patience=10), say."
        )
