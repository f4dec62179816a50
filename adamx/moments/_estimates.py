"""What a State estimates of the gradient: its mean and its size, element by element.

    m_hat, sqrt(v_hat), and the denominator that the step divides m_hat by

A State that divides by a running size answers `estimates()`; who reads moments (probes,
preconditioners, tables) then needs no list of optimizers. Only what the State recorded
enters: its own b's, corrections and eps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._types import PyTree
from adamx.moments._codec import Encoded
from adamx.moments._ema import scale
from adamx.reading import unboxed


class Estimates(NamedTuple):
    """The moments of a State, and how they are read.

    Attributes:
      moments: stored moments, of one structure: trees of arrays or `Encoded`s, with the
        parameters' ranks. A dimension is the parameter's own or divides it.
      rule: `rule(g, *moments) -> (m_hat, root, denominator)` on arrays of one shape, at
        least float32: root is sqrt(v_hat), and the step is about m_hat / denominator.
        g is the last gradient, which is m_hat where none is kept.
    """

    moments: tuple[PyTree, ...]
    rule: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


@runtime_checkable
class Estimating(Protocol):
    """What a State implements to be seen by those who read moments."""

    def estimates(self) -> Estimates:
        """Its moments, and how they are read."""
        ...


def adam_estimates(
    state: Any,
    mu: PyTree,
    nu: PyTree,
    *,
    mu_correction: Any = None,
    nu_correction: Any = None,
    eps_root: Any = 0.0,
) -> Estimates:
    """Those of Adam: m_hat = mu / c1, v_hat = nu / c2, sqrt(v_hat + eps_root) + eps.

    Args:
      state: with eps and, unless they are given, both bias corrections.
      mu, nu: stored moments.
      mu_correction, nu_correction: c1, c2; None: as recorded.
      eps_root: inside the root.
    """
    c1 = state.bias_correction_mu if mu_correction is None else mu_correction
    c2 = state.bias_correction_nu if nu_correction is None else nu_correction
    c1, c2, eps, eps_root = (unboxed(x) for x in (c1, c2, state.eps, eps_root))

    def rule(
        g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del g
        v = nu / c2
        return scale(mu, 1.0 / c1), jnp.sqrt(v), jnp.sqrt(v + eps_root) + eps

    return Estimates((mu, nu), rule)


def blank_where(
    is_blank: Any, found: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Estimates, or NaN in a phase that does not divide by a size."""

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.where(unboxed(is_blank), jnp.full((), jnp.nan, x.dtype), x)

    m, root, denominator = found
    return leaf(m), leaf(root), leaf(denominator)


def estimating_states(state: PyTree) -> list[Any]:
    """All States with moments to read in a state, outer ones first."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Estimating))
    return [node for node in nodes if isinstance(node, Estimating)]


def moment_paths(moment: PyTree) -> dict[str, Any]:
    """By the parameter's path, the stored arrays of a moment: itself, or codes, scales.

    Args:
      moment: a tree or an `Encoded`.
    """
    if not isinstance(moment, Encoded):
        return {k: (v,) for k, v in _tree.leaves_by_path(moment).items()}
    scales = [jax.tree.leaves(tree) for tree in moment.scales]
    codes = _tree.leaves_by_path(moment.codes)
    return dict(zip(codes, zip(codes.values(), *scales, strict=True), strict=True))
