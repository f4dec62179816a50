"""How a step is traced: leaf functions once, and for whom.

A tree has many leaves and few shapes. Tracing a leaf rule takes about a millisecond and
grows with the leaves; a call of a function that was traced before takes a tenth of it.
XLA writes the calls out again before it does anything else.

Where the traced step is to be taken apart into passes (`fused(tx, kernel="native")`),
what was only written for XLA's compiler for CPUs is left out of it.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

_in_passes = contextvars.ContextVar("in_passes", default=False)


def is_for_passes() -> bool:
    """Whether what is traced now is to be taken apart into passes over memory."""
    return _in_passes.get()


@contextlib.contextmanager
def traced_for_passes() -> Iterator[None]:
    """What is traced inside the block is to be taken apart."""
    token = _in_passes.set(True)
    try:
        yield
    finally:
        _in_passes.reset(token)


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; inside a trace, a call of what was traced before.

    Args:
      function: of arrays, and of numbers, flags, names and None, which are compared by
        value; anything it reads from elsewhere must not change.

    Returns:
      A function that returns the same.
    """

    @functools.lru_cache(maxsize=1024)
    def compiled(structure: Any, fixed: tuple[Any, ...]) -> Callable[..., Any]:
        def call(*arrays: Any) -> Any:
            rest = iter(arrays)
            leaves = [next(rest) if x is _ARRAY else x for x in fixed]
            args, kwargs = structure.unflatten(leaves)
            return function(*args, **kwargs)

        return jax.jit(call)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        if not any(isinstance(x, jax.core.Tracer) for x in leaves):
            return function(*args, **kwargs)
        is_array = [hasattr(x, "shape") for x in leaves]
        fixed = tuple(
            _ARRAY if yes else x for x, yes in zip(leaves, is_array, strict=True)
        )
        arrays = [x for x, yes in zip(leaves, is_array, strict=True) if yes]
        return compiled(structure, fixed)(*arrays)

    return wrapped


class _Array:
    """Stands where an array is."""


_ARRAY = _Array()
