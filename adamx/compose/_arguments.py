"""A factory's arguments: which are numbers, which schedules, which neither."""

import dataclasses
import difflib
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks

_EMPTY = inspect.Parameter.empty


# Compared by identity: bound arguments have no hash, and who takes a transformation for
# a tree (Optimistix, of its closures) wants one of every leaf that is no array.
@dataclasses.dataclass(frozen=True, eq=False)
class Arguments:
    """A factory with all of its arguments, defaults included.

    Attributes:
      factory: the function.
      name: how messages call it.
      bound: the arguments as `inspect` binds them.
      spread: name of the `**kwargs` argument of the factory, or None.
    """

    factory: Callable[..., Any]
    name: str
    bound: inspect.BoundArguments
    spread: str | None

    @property
    def named(self) -> dict[str, Any]:
        """The values by name; those of `*args` have none and are left out."""
        parameters = self.bound.signature.parameters
        found = {
            name: value
            for name, value in self.bound.arguments.items()
            if parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL
        }
        return {**found, **found.pop(self.spread, {})} if self.spread else found

    def default(self, name: str) -> Any:
        """The default in the signature, or `inspect.Parameter.empty`."""
        parameter = self.bound.signature.parameters.get(name)
        return _EMPTY if parameter is None else parameter.default

    def call(self, values: Mapping[str, Any]) -> Any:
        """What the factory returns with other values for some arguments."""
        arguments = dict(self.bound.arguments)
        own = {k: v for k, v in values.items() if k in arguments and k != self.spread}
        arguments |= own
        if self.spread:
            more = {k: v for k, v in values.items() if k not in own}
            arguments[self.spread] = {**arguments[self.spread], **more}
        bound = inspect.BoundArguments(self.bound.signature, arguments)
        return self.factory(*bound.args, **bound.kwargs)


def bind(
    factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """Binds the arguments; raises TypeError where the factory cannot be called so."""
    if not callable(factory):
        raise TypeError(
            "`factory` must be a function that returns a transformation, got "
            f"{_checks.describe_value(factory)}; pass the function and its arguments "
            "apart: with_hyperparams(adamx.adamw, learning_rate=1e-3)."
        )
    name = getattr(factory, "__name__", None) or repr(factory)
    try:
        signature = inspect.signature(factory)
    except ValueError:
        raise TypeError(
            f"`factory` must have a signature, got {name}, which has none; wrap it in "
            "a lambda that names its arguments."
        ) from None
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [key for key in kwargs if key not in signature.parameters]
        hint = "".join(nearest(key, signature.parameters) for key in unknown)
        raise TypeError(
            f"`factory` must accept these arguments, got for {name}: {error}. It has "
            f"{', '.join(map(str, signature.parameters))}.{hint}"
        ) from None
    bound.apply_defaults()
    spread = [
        key
        for key, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    ]
    return Arguments(factory, name, bound, spread[0] if spread else None)


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean `b2`?', or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean `{close[0]}`?" if close else ""


def sort_arguments(
    arguments: Arguments, static: str | Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers and the schedules among the arguments, but for the static ones."""
    named = arguments.named
    kept = _checked_names(static, arguments.name, named)
    found: dict[str, Any] = {}
    schedules: dict[str, Any] = {}
    for name, value in named.items():
        default = arguments.default(name)
        if name in kept:
            continue
        if is_number(value) and not (_is_whole(value) and _wants_whole(default)):
            found[name] = value
        elif callable(value) and _is_schedule(name, value, default):
            schedules[name] = value
    return found, schedules


def _checked_names(static: Any, factory: str, known: Iterable[str]) -> set[str]:
    names = {static} if isinstance(static, str) else set(static)
    for name in names:
        if name not in known:
            raise ValueError(
                f"`static` must name arguments of {factory}, got {name!r}; it has "
                f"{', '.join(known)}.{nearest(str(name), known)}"
            )
    return names


def is_number(value: Any) -> bool:
    """Whether it is one real number, on the host or not; a flag is none."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)):
        kinds = (jnp.floating, jnp.integer)
        return value.shape == () and any(jnp.issubdtype(value.dtype, k) for k in kinds)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    if hasattr(value, "dtype"):
        return jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, numbers.Integral)


def _wants_whole(default: Any) -> bool:
    """Whether an int is more likely a number of steps than a rate written short."""
    is_rate = is_number(default) and not _is_whole(default)
    return not (is_rate or default is _EMPTY)


def _is_schedule(name: str, value: Any, default: Any) -> bool:
    """Whether a callable is a function of the step, and not a mask, dtype or rule.

    Where the default is a number, it must be; where there is none, or None, what it
    returns for a step decides (a mask returns bools).
    """
    if isinstance(value, type):
        return False
    if hasattr(value, "init") and hasattr(value, "update"):
        raise TypeError(
            f"`{name}` must be a number or a function of the step, got the stateful "
            f"schedule {_checks.describe_value(value)}; use optax.inject_hyperparams "
            "for it."
        )
    if default is not None and default is not _EMPTY:
        return is_number(default)
    try:
        result = jax.eval_shape(value, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception:  # whatever it is a function of, it is not the step
        return False
    return is_number(result)
