"""Sums over arrays and samples, row by row, and the numbers that follow of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _tree, moments
from adamx.diagnostics._views import View

STILL = 0.01  # r below this moves next to nothing
# Of samples: |g|^2, |p|^2, |u|^2, what is not finite, what eps dominates, what stands
# still; g m, |g|^2, |m|^2 in units of the row's `LARGEST`; and the rate.
SUMS = (
    "gradient",
    "params",
    "updates",
    "bad",
    "eps",
    "still",
    "gm",
    "gg",
    "mm",
    "rate",
)
LARGEST = ("g", "mean")

# Many small arrays of one shape are stacked first: a reduction for each would take
# long to compile (see `_tree.global_sum`).
_SMALL = 16_384
_MANY = 4


def row_squares(
    arrays: Sequence[jax.Array], rows: Sequence[int], is_stack: Sequence[bool]
) -> jax.Array:
    """The sum of |x|^2 over each row of each array.

    Args:
      arrays: of the shape (rows, ...), or of any for one row.
      rows: how many each has.
      is_stack: whether it is of the first kind.

    Returns:
      float32 (rows of all arrays,), in their order.
    """
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        small = 0 < math.prod(x.shape) <= _SMALL
        sharding = str(getattr(jax.typeof(x), "sharding", None))
        key = (x.shape, x.dtype, is_stack[i], sharding) if small else i
        groups.setdefault(key, []).append(i)
    found, order = [jnp.zeros(0, jnp.float32)], []
    for members in groups.values():
        first = int(is_stack[members[0]])
        if len(members) < _MANY:
            own = [_minus_squares(arrays[i], first) for i in members]
        else:
            own = [_minus_squares(jnp.stack([arrays[i] for i in members]), 1 + first)]
        found += [x.reshape(-1).astype(jnp.float32) for x in own]
        order += members
    # Put in order and made positive at once: a step for each would be slow to compile.
    ends = np.cumsum([rows[i] for i in order])
    start = {i: end - rows[i] for i, end in zip(order, ends, strict=True)}
    places = [start[i] + np.arange(rows[i]) for i in range(len(arrays))]
    if not places:
        return found[0]
    return -jnp.concatenate(found)[np.concatenate(places)]


def _minus_squares(x: jax.Array, first: int) -> jax.Array:
    """-sum(|x|^2) over all axes from the first on."""
    x, axes = _tree.wide(x), tuple(range(first, x.ndim))
    if jnp.iscomplexobj(x):
        return -jnp.sum(_tree.abs_squared(x), axis=axes)
    # Not x * x, which is also a part of Adam's updates: what is read twice, XLA
    # writes to memory.
    return jnp.sum(x * -x, axis=axes)


def sums_of(view: View) -> dict[str, jax.Array]:
    """`SUMS` and `LARGEST` of each row of the samples of some parts."""

    def squares(x: jax.Array | None) -> jax.Array:
        if x is None:
            return jnp.full(view.r.shape[:1], jnp.nan)
        return jnp.sum(_tree.abs_squared(x), axis=1)

    def count(is_so: jax.Array) -> jax.Array:
        is_so = is_so if view.inside is None else is_so & view.inside
        return jnp.sum(jnp.where(jnp.isnan(view.r), jnp.nan, is_so), axis=1)

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(_tree.real_product(x, y), axis=1)

    # Squares of small gradients are 0 in float32.
    largest = {name: jnp.max(jnp.abs(getattr(view, name)), axis=1) for name in LARGEST}
    g, mean = (
        moments.scale(getattr(view, k), (1.0 / jnp.where(x == 0, 1.0, x))[:, None])
        for k, x in largest.items()
    )
    return {
        "gradient": squares(view.g),
        "params": squares(view.params),
        "updates": squares(view.updates),
        "bad": jnp.sum((~jnp.isfinite(view.g)).astype(jnp.float32), axis=1),
        "eps": count(view.denominator > 2.0 * view.sqrt_v),
        "still": count(view.r < STILL),
        "gm": product(g, mean),
        "gg": product(g, g),
        "mm": product(mean, mean),
        "rate": jnp.broadcast_to(view.rate, view.r.shape[:1]),
        **largest,
    }


def of_one_unit(largest: jax.Array, most: jax.Array) -> jax.Array:
    """By what `SUMS` are multiplied, to be in units of the layer's largest elements.

    Args:
      largest: of each row of each part, (2, rows).
      most: of the layers that these belong to, as long.
    """
    g, mean = largest / jnp.where(most == 0, 1.0, most)
    units = {"gm": g * mean, "gg": g * g, "mm": mean * mean}
    return jnp.stack([units.get(name, jnp.ones_like(g)) for name in SUMS])


def numbers_of(sums: dict[str, jax.Array], sizes: np.ndarray) -> dict[str, jax.Array]:
    """The numbers of each layer; and the rate, by which `step` is computed.

    Args:
      sums: by name, (layers,); that of "gradient" is over all elements.
      sizes: elements of each layer.
    """
    g, p, u = (jnp.sqrt(sums[name]) for name in ("gradient", "params", "updates"))
    is_lost = ~jnp.isfinite(sums["gradient"])
    bad = jnp.maximum(jnp.round(sums["bad"]), is_lost.astype(jnp.float32))
    size = jnp.sqrt(sums["gg"]) * jnp.sqrt(sums["mm"])
    return {
        "grad_norm": g,
        "param_norm": p,
        "update_norm": u,
        "update_ratio": jnp.where(p == 0, jnp.nan, u / p),
        "eps_share": sums["eps"] / sizes,
        "still_share": sums["still"] / sizes,
        "cosine": moments.divide_or_zero(sums["gm"], size),
        "nonfinite": bad,
        "rate": sums["rate"],
    }
