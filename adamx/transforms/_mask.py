"""Masks: which leaves something is done to, as trees, prefixes or functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx._types import Mask, PyTree


def expand_mask(name: str, mask: Mask, params: PyTree) -> PyTree:
    """One Python bool for each leaf of the parameters.

    Args:
      name: the argument's name, for errors.
      mask: a tree of bools with the parameters' structure or a prefix of it, or a
        function from the parameters to one; None: True everywhere.
      params: the parameters.

    Raises:
      ValueError, TypeError: another structure, or leaves that are not bools.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    if _is_mask_function(mask, params):
        try:
            mask = mask(params)
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"`{name}` must be a function of the whole tree of parameters, got one "
                f"that raises {type(error).__name__}: {str(error).rstrip('.')}. It is "
                "called once, with the parameters: pass adamx.decay_mask(), called, or "
                "lambda params: jax.tree.map(lambda p: p.ndim > 1, params)."
            ) from error
    try:
        return jax.tree.map(
            lambda m, below: jax.tree.map(lambda _: _as_bool(m), below), mask, params
        )
    except TypeError:
        _check_mask_leaves(name, mask)
        raise
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`{name}` must be a tree of bools with the parameters' structure, or a "
            f"prefix of it; got {_mask_difference(mask, params)}. Build it from the "
            "parameters, e.g. jax.tree.map(lambda p: p.ndim > 1, params)."
        ) from error


def _is_mask_function(mask: Any, params: PyTree) -> bool:
    # A module (Equinox) may be callable and still be a tree of bools; and a function
    # may be a tree of what it closes over (Optimistix makes one of it).
    if not callable(mask) or type(mask) is type(params):
        return False
    kinds = [getattr(leaf, "dtype", type(leaf)) for leaf in jax.tree.leaves(mask)]
    return any(kind not in (bool, np.bool_) for kind in kinds)


def _as_bool(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if (
        isinstance(value, (np.ndarray, jax.Array))
        and value.ndim == 0
        and value.dtype == jnp.bool_
        and not isinstance(value, jax.core.Tracer)
    ):
        return bool(value)
    raise TypeError("mask leaf")


def _check_mask_leaves(name: str, mask: PyTree) -> None:
    for path, value in jax.tree_util.tree_flatten_with_path(mask)[0]:
        try:
            _as_bool(value)
        except TypeError:
            raise TypeError(
                f"`{name}` at '{_tree.path_name(path)}' must be True or False, got "
                f"{_checks.describe_value(value)}; a mask decides what is computed and "
                "cannot be traced or be one value per element."
            ) from None


def _mask_difference(mask: PyTree, params: PyTree) -> str:
    here, there = _tree.leaves_by_path(mask), _tree.leaves_by_path(params)
    unknown = [
        name
        for name in here
        if not any(p == name or p.startswith(name + "/") for p in there)
    ]
    bare = [
        name
        for name in there
        if not any(name == m or name.startswith(m + "/") for m in here)
    ]
    parts = []
    if unknown:
        parts.append(f"no parameter at '{unknown[0]}'")
    if bare:
        parts.append(f"no mask for '{bare[0]}'")
    if not parts:
        structures = (jax.tree.structure(mask), jax.tree.structure(params))
        parts.append("the containers {} for {}".format(*structures)[:300])
    return " and ".join(parts)
