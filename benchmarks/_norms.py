"""The global norm alone: against reading as many bytes, and a sum for each leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _bounds import make_read
from _contestants import Contestant, Entry, Result, compare, make_donated

from adamx import _tree, native

PER_LEAF = "a sum for each leaf"


def per_leaf(gradients: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))


def in_passes(gradients: Any) -> jax.Array:
    return native.in_passes(_tree.global_norm, gradients)


WAYS = {
    "optax": (PER_LEAF, per_leaf),
    "adamx": ("adamx", _tree.global_norm),
    "native": ("adamx native", in_passes),
}


def make_norm(name: str, norm: Callable[[Any], jax.Array], given: Any) -> Contestant:
    return make_donated(
        name, lambda last, gradients: [norm(gradients)], [jnp.float32(0)], given
    )


def results(gradients: Any, names: list[str], rounds: int) -> list[Result]:
    """Those chosen of `optax` (a sum for each leaf), `adamx` and `native`, in turns."""
    size = sum(g.size for g in gradients)
    entries = [Entry(lambda: make_read(size), True)]
    for name, way in WAYS.items():
        if name in names:
            make = lambda way=way: make_norm(*way, gradients)  # noqa: E731
            entries.append(Entry(make, name == "optax"))
    return compare(entries, rounds, len(WAYS))
