"""Which parameters decay: matrices, and neither biases nor normalisation scales.

    decays(leaf) = own ndim >= min_ndim and no pattern of `exclude` is found in its path

The own ndim leaves out the leading axis in which scanned layers are stacked: a scale of
shape (layers, d) is `layers` vectors, no matrix.

Source: He, Zhang, Zhang, Zhang, Xie & Li, "Bag of Tricks for Image Classification with
Convolutional Neural Networks" (2019), section 3.1, "no bias decay".
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from adamx import _checks, _tree
from adamx._types import MaskedNode, PyTree
from adamx.transforms._layers import is_stacked

Patterns = str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None


def decay_mask(
    exclude: Patterns = None, *, min_ndim: int = 2, stacked: Patterns = None
) -> Callable[[PyTree], PyTree]:
    r"""A mask for weight decay: True for matrices, False for biases and scales.

        adamx.adamw(1e-3, weight_decay=0.1, mask=adamx.decay_mask(exclude="embed"))

    Paths have dict keys, list indices and field names, joined by '/'
    ("decoder/embed/kernel"). A pattern may match anywhere in one (`re.search`).

    A pattern that matches no parameter raises: it is a misprint, and would decay what
    was to be left out. Not so in a tree with `MaskedNode` (inside `groups`,
    `optax.masked` and `optax.partition`): what it means may be in another group, and
    one mask serves all groups. To have it checked there too, call it once on all
    parameters: `mask(params)`, which also shows what decays.

    Args:
      exclude: regular expression on paths, or a list of them: what does not decay
        though it is a matrix, such as r"embed"; None: nothing.
      min_ndim: >= 0: leaves of fewer dimensions do not decay. 2 leaves out biases and
        scales; 0 leaves out only what `exclude` matches.
      stacked: regular expression on paths, or a list of them: leaves whose leading axis
        counts layers (`nn.scan`, `nnx.vmap`), and is no dimension of each. None: none.

    Returns:
      A function from parameters (or their shapes) to a tree of bools like them, for the
      `mask` of any optimizer, of `optax.masked` too. What is no array does not decay.

    Raises:
      TypeError, ValueError: an argument of the wrong kind, no regular expression; on a
        call, a pattern that matches nothing, `stacked` for a scalar.

    >>> import jax.numpy as jnp
    >>> params = {"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 2)),
    ...           "norms": jnp.ones((6, 2))}
    >>> decay_mask(exclude="embed", stacked="norms")(params)
    {'embed': False, 'kernel': True, 'norms': False}

    Source: He et al. (2019), section 3.1.
    """
    patterns = {
        "exclude": _compiled("exclude", exclude),
        "stacked": _compiled("stacked", stacked),
    }
    if isinstance(min_ndim, bool) or not isinstance(min_ndim, (int, np.integer)):
        raise TypeError(
            "`min_ndim` must be a whole number of dimensions, got "
            f"{_checks.describe_value(min_ndim)}; use 2 to leave out vectors."
        )
    if min_ndim < 0:
        raise ValueError(
            f"`min_ndim` must be a number of dimensions >= 0, got {min_ndim}; use 0 to "
            "decay leaves of any dimension."
        )

    def decays(path: Any, leaf: Any) -> bool:
        shape = getattr(leaf, "shape", None)
        if shape is None:  # a function or a number in a module that was not filtered
            return False
        stacks = [is_stacked(pattern, path, shape) for pattern in patterns["stacked"]]
        name = _tree.path_name(path)
        is_excluded = any(p.search(name) for p in patterns["exclude"])
        return not is_excluded and len(shape) - any(stacks) >= min_ndim

    def mask(params: PyTree) -> PyTree:
        """Whether each parameter decays."""
        for name, each in patterns.items():
            _check_used(name, each, params)
        return jax.tree_util.tree_map_with_path(decays, params)

    return mask


def _compiled(name: str, value: Any) -> list[re.Pattern[str]]:
    """One pattern, several or none, as a list."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        if None in value:
            raise TypeError(
                f"`{name}` must be regular expressions on paths, got None in a list; "
                "leave it out."
            )
        found = [_checks.check_pattern(f"{name}[{i}]", x) for i, x in enumerate(value)]
    else:
        found = [_checks.check_pattern(name, value)]
    return [pattern for pattern in found if pattern is not None]


def _check_used(name: str, patterns: list[re.Pattern[str]], params: PyTree) -> None:
    """Raises for a pattern that matches nothing of a whole tree."""
    if not patterns:
        return
    is_masked = lambda x: isinstance(x, MaskedNode)  # noqa: E731
    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        return
    names = list(_tree.leaves_by_path(params))
    for pattern in patterns:
        if names and not any(map(pattern.search, names)):
            raise ValueError(
                f"`{name}` must match a parameter, got {pattern.pattern!r}, which is "
                "found in no path. The nearest paths are "
                f"{_tree.nearest_paths(pattern.pattern, names)}; parts are joined by "
                "'/'."
            )
