"""Argument checks: a bad value is answered where it enters, with the remedy.

A hyperparameter may be a Python or NumPy number, a jax array, a tracer or a schedule.
Numbers and concrete arrays are checked at construction; tracers and schedules have no
value yet and pass, but for what their type shows (rank, a dtype that rounds them).
"""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Counts are of 32 bits.
LAST_STEP = 2**31 - 1

# ---------------------------------------------------------------- what a value is


def is_schedule(value: Any) -> bool:
    """Whether `value` is a function of the step count."""
    return callable(value)


def is_constant(value: Any) -> bool:
    """Whether `value` is a host number, which can never change after construction.

    A concrete `jax.Array` is not constant: `optax.inject_hyperparams` rebuilds the
    transformation at every step with arrays whose values may change.
    """
    return isinstance(value, (numbers.Real, np.ndarray, np.generic))


def is_zero(value: Any) -> bool:
    """Whether `value` is the constant 0, which costs nothing and stays 0."""
    return is_constant(value) and float(value) == 0.0


def describe_value(value: Any) -> str:
    """A short, single-line text for error messages."""
    if isinstance(value, (jax.Array, np.ndarray)) and np.ndim(value):
        return f"an array of shape {tuple(value.shape)}"
    text = f"{type(value).__name__} {value!r}".replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."


def host_value(name: str, value: Any, expected: str) -> float | None:
    """The number behind `value`, or None where it is not known on the host."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"`{name}` must be {expected}, got {describe_value(value)}; "
            "pass a number, not a flag."
        )
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, jax.Array)):
        if value.ndim:
            raise ValueError(
                f"`{name}` must be {expected}, got {describe_value(value)}; pass a "
                "0-d value (one rate per leaf is the work of optax.partition)."
            )
        if not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(
                f"`{name}` must be {expected}, got an array of dtype {value.dtype}; "
                "pass a real number."
            )
        if isinstance(value, jax.core.Tracer):
            return None
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return None
        number = complex(value)
        if number.imag:
            raise TypeError(
                f"`{name}` must be {expected}, got {number!r}; pass a real number."
            )
        return number.real
    raise TypeError(
        f"`{name}` must be {expected}, got {describe_value(value)}; pass a number, a "
        "0-d array or, where that is accepted, a schedule (a function of the step)."
    )


# ------------------------------------------------------------- checks by meaning


def _check_number(
    name: str,
    value: Any,
    expected: str,
    is_valid: Callable[[float], bool],
    remedy: str,
    *,
    allow_schedule: bool,
    allow_16_bit: bool = True,
) -> None:
    if callable(value):
        if allow_schedule:
            return
        raise TypeError(
            f"`{name}` must be {expected}, got the function {value!r}; "
            "a schedule is not accepted here, pass a number."
        )
    if not allow_16_bit and isinstance(value, jax.Array):
        check_not_16_bit(name, value)
    number = host_value(name, value, expected)
    if number is not None and not is_valid(number):
        raise ValueError(f"`{name}` must be {expected}, got {number!r}. {remedy}")


def check_not_16_bit(name: str, value: Any) -> None:
    if value.dtype.itemsize < 4 and jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be at least float32, got {value.dtype}: rounded to 16 "
            f"bits, 0.999 becomes 1.0 and 1e-8 may become 0. Pass it as float32; with "
            "optax.inject_hyperparams, pass hyperparam_dtype=jnp.float32."
        )


def check_learning_rate(name: str, value: Any) -> None:
    """A finite number >= 0, or a schedule."""
    _check_number(
        name,
        value,
        "a finite number >= 0 or a schedule",
        lambda x: math.isfinite(x) and x >= 0,
        "The sign of the descent is applied by the transformation: pass e.g. 1e-3.",
        allow_schedule=True,
    )


def check_decay_rate(name: str, value: Any) -> None:
    """The weight b of an exponential moving average: [0, 1), or a schedule."""
    _check_number(
        name,
        value,
        "in [0, 1)",
        lambda x: 0 <= x < 1,
        "It is the weight of the past in a moving average with a memory of about "
        "1/(1 - b) steps; use e.g. 0.9 for mu, 0.999 for nu.",
        allow_schedule=True,
        allow_16_bit=False,
    )


def check_epsilon(name: str, value: Any) -> None:
    """A finite number >= 0, or a schedule; no 16-bit array."""
    remedy = "It keeps the denominator away from zero; use e.g. 1e-8."
    check_non_negative(name, value, remedy, allow_16_bit=False)


def check_momentum_decay(name: str, value: Any, nesterov: bool) -> None:
    """None, or with Nesterov's look-ahead a finite number >= 0, or a schedule."""
    if value is None:
        return
    if not nesterov:
        raise ValueError(
            f"`{name}` must be None where `nesterov` is False, got "
            f"{describe_value(value)}; it warms up the look-ahead of nadam: pass "
            "nesterov=True, or leave it out."
        )
    remedy = "It is the rate at which the look-ahead grows: use e.g. 4e-3, or None."
    check_non_negative(name, value, remedy, allow_16_bit=False)


def check_finite(name: str, value: Any) -> None:
    """A finite number, or a schedule."""
    _check_number(
        name,
        value,
        "a finite number",
        math.isfinite,
        "Use 0 to switch it off.",
        allow_schedule=True,
    )


def check_weight_decay(name: str, value: Any) -> None:
    """A finite number >= 0, or a schedule: the decay of an optimizer."""
    check_non_negative(name, value, "It shrinks the parameters; use 0 for no decay.")


def check_non_negative(
    name: str,
    value: Any,
    remedy: str = "",
    *,
    allow_schedule: bool = True,
    allow_infinite: bool = False,
    allow_16_bit: bool = True,
) -> None:
    """A number >= 0, or a schedule."""
    _check_number(
        name,
        value,
        "a number >= 0" if allow_infinite else "a finite number >= 0",
        lambda x: x >= 0 and (allow_infinite or math.isfinite(x)),
        remedy or "Use 0 to switch it off.",
        allow_schedule=allow_schedule,
        allow_16_bit=allow_16_bit,
    )


def check_at_least(name: str, value: Any, low: float, remedy: str) -> None:
    """A finite number >= `low`; no schedule, and no 16-bit array."""
    _check_number(
        name,
        value,
        f"a finite number >= {low:g}",
        lambda x: x >= low and math.isfinite(x),
        remedy,
        allow_schedule=False,
        allow_16_bit=False,
    )


def check_positive(
    name: str, value: Any, remedy: str = "", *, allow_schedule: bool = False
) -> None:
    """A finite number > 0, or a schedule where that is accepted."""
    _check_number(
        name,
        value,
        "a finite number > 0",
        lambda x: x > 0 and math.isfinite(x),
        remedy or "Use a positive value.",
        allow_schedule=allow_schedule,
    )


def check_in_interval(
    name: str, value: Any, low: float, high: float, remedy: str = ""
) -> None:
    """A number in [low, high]."""
    _check_number(
        name,
        value,
        f"in [{low:g}, {high:g}]",
        lambda x: low <= x <= high,
        remedy or "Use a value inside the interval.",
        allow_schedule=False,
    )


def check_between(name: str, value: Any, low: float, high: float, remedy: str) -> None:
    """A number in the open interval (low, high); no schedule, and no 16-bit array."""
    _check_number(
        name,
        value,
        f"in ({low:g}, {high:g})",
        lambda x: low < x < high,
        remedy,
        allow_schedule=False,
        allow_16_bit=False,
    )


def check_steps(name: str, value: Any, *, minimum: int = 1, remedy: str = "") -> int:
    """A whole number of steps up to `LAST_STEP`, known on the host; as an int.

    Floats with an integral value (1e5) pass; tracers do not, since the number of steps
    decides the form of a schedule.
    """
    expected = f"a whole number of steps >= {minimum}"
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`{name}` must be {expected} known at construction, got a traced value; "
            "build the schedule outside jit and close over it."
        )
    if callable(value):
        raise TypeError(
            f"`{name}` must be {expected}, got the function {value!r}; pass an int."
        )
    number = host_value(name, value, expected)
    assert number is not None
    if not math.isfinite(number) or number != int(number):
        raise ValueError(
            f"`{name}` must be {expected}, got {number!r}. "
            + (remedy or "Are two arguments swapped? Pass an int.")
        )
    if not minimum <= number <= LAST_STEP:
        raise ValueError(
            f"`{name}` must be {expected}"
            + (f" and <= {LAST_STEP}" if number > LAST_STEP else "")
            + f", got {int(number)}. "
            + (remedy or "Count steps from the start of training.")
        )
    return int(number)


def check_flag(name: str, value: Any) -> None:
    """True or False, known at construction."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"`{name}` must be True or False, got {describe_value(value)}; "
            "it decides the form of the computation and cannot be traced."
        )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """One of a few names."""
    if not (isinstance(value, str) and value in choices):
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{name}` must be one of {known}, got {describe_value(value)}; "
            "pass one of these names as a string."
        )


def check_pattern(name: str, value: Any) -> re.Pattern[str] | None:
    """A regular expression on paths, compiled; None stays None."""
    is_compiled = isinstance(value, re.Pattern) and isinstance(value.pattern, str)
    if value is None or is_compiled:
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"`{name}` must be a regular expression on paths such as 'a/b/kernel', or "
            f"None, got {describe_value(value)}; pass a string, e.g. '^layers/'."
        )
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(
            f"`{name}` must be a regular expression on paths, got {value!r}: {error}. "
            "Escape what is meant literally (re.escape)."
        ) from None


def check_has_params(params: Any, reason: str) -> None:
    """Raises ValueError where `update` was not given the parameters that it needs."""
    if params is None:
        raise ValueError(
            f"`params` must be the current parameters, got None: {reason}. Call "
            "tx.update(gradients, state, params)."
        )


def check_dtype(name: str, value: Any) -> Any:
    """A floating or complex dtype, or None; returned canonical (x64 rules applied)."""
    if value is None:
        return None
    try:
        # NumPy would take an array's dtype: that of an eps in the wrong place.
        if isinstance(value, (jax.Array, np.ndarray, np.generic)):
            raise TypeError
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a floating dtype or None, got {describe_value(value)}; "
            "pass e.g. jnp.float32 or 'bfloat16'."
        ) from None
    # float8 without a scale holds nothing below 1e-3 (e4m3) or 1e-5 (e5m2).
    if not jnp.issubdtype(dtype, jnp.inexact) or dtype.itemsize < 2:
        raise ValueError(
            f"`{name}` must be a floating dtype of 16 bits or more, or None, got "
            f"{dtype}; a moment has small fractions: pass jnp.float32 or jnp.bfloat16."
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def check_transformation(name: str, value: Any) -> None:
    """Something with init and update, as `optax.GradientTransformation` has them."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"`{name}` must be a gradient transformation, got "
            f"{type(value).__name__} {value!r}; pass e.g. adamx.adamw(1e-3)."
        )


def check_state(state: Any, kind: type, name: str) -> None:
    """Raises TypeError unless `state` is what this transformation's init returns."""
    if not isinstance(state, kind):
        raise state_error(state, f"{kind.__module__}.{kind.__qualname__}", name)


def state_error(state: Any, expected: str, name: str) -> TypeError:
    """The error for a state that another init returned, or that is no state."""
    got = f"{type(state).__module__}.{type(state).__qualname__}"
    if type(state) is tuple:
        got = f"a tuple of {len(state)}"
    if hasattr(state, "init") and hasattr(state, "update"):
        got = "a transformation, not its state"
    elif got.startswith("optax."):
        got += (
            " (Optax's states have fewer fields: start from tx.init(params) and carry "
            "the moments over with state._replace(count=..., mu=..., nu=...))"
        )
    return TypeError(
        f"`state` must be the {expected} that init of {name} returns, got {got}. Is it "
        "the state of another optimizer, or are arguments swapped? Call "
        "tx.update(gradients, state, params) with the state of tx.init(params); a "
        "restored checkpoint must be put back into that structure."
    )
