"""What a State estimates of the gradient: its mean and its size, element by element.

    m_hat, sqrt(v_hat), and the denominator that the step divides m_hat by

A State that divides by a running size answers `estimates()`; who reads moments (probes,
preconditioners, tables) then needs no list of optimizers. Only what the State recorded
enters: its own b's, corrections and eps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from adamx import _tree
from adamx._packed import unpacked
from adamx._types import PyTree
from adamx.moments._codec import Encoded
from adamx.moments._codes import decode, is_scaled
from adamx.moments._ema import scale
from adamx.moments._layout import spread
from adamx.reading import unboxed


class Estimates(NamedTuple):
    """The moments of a State, and how they are read.

    Attributes:
      moments: stored moments, of one structure: trees of arrays or `Encoded`s, with the
        parameters' ranks. A dimension is the parameter's own, or of blocks along it.
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


def adam_then_nothing(state: Any, is_adam: Any, eps_root: Any = 0.0) -> Estimates:
    """Those of Adam in its phase, then NaN.

    Args:
      state: with mu, nu, and what `adam_estimates` reads.
      is_adam: whether it is in that phase.
      eps_root: inside the root.
    """
    adam = adam_estimates(state, state.mu, state.nu, eps_root=eps_root)

    def rule(
        g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _blank_where(~jnp.asarray(is_adam), adam.rule(g, mu, nu))

    return adam._replace(rule=rule)


def _blank_where(
    is_blank: Any, found: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Estimates, or NaN in a phase that does not divide by a size."""

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.where(unboxed(is_blank), jnp.full((), jnp.nan, x.dtype), x)

    m, root, denominator = found
    return leaf(m), leaf(root), leaf(denominator)


def moment_paths(moment: PyTree) -> dict[str, Any]:
    """By the parameter's path, the stored arrays of a moment: itself, or codes, scales.

    Args:
      moment: a tree or an `Encoded`.
    """
    moment = unpacked(moment)
    if not isinstance(moment, Encoded):
        return {k: (v,) for k, v in _tree.leaves_by_path(moment).items()}
    scales = [jax.tree.leaves(tree) for tree in moment.scales]
    codes = _tree.leaves_by_path(moment.codes)
    return dict(zip(codes, zip(codes.values(), *scales, strict=True), strict=True))


def read_stored(stored: Sequence[jax.Array]) -> jax.Array:
    """A stored moment, an array or codes and scales, as at least float32."""
    codes, *scales = stored
    if not is_scaled(codes.dtype):
        return _tree.wide(codes)
    return decode(codes, tuple(scales), jnp.float32)


def estimates_by_path(
    found: Estimates, params: PyTree, gradients: PyTree | None = None
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """By the parameter's path (m_hat, root, denominator), in the parameter's shape.

    What is not read costs nothing inside jit.

    Args:
      found: what a State answers.
      params: the parameters, or others with their paths and shapes. Those without
        moments (masked, of other groups) are left out.
      gradients: like the parameters; None: zeros, which change m_hat only.

    Raises:
      ValueError: a moment of another shape than its parameter.
    """
    shapes = {k: jnp.shape(p) for k, p in _tree.leaves_by_path(params).items()}
    grads = {} if gradients is None else _tree.leaves_by_path(gradients)
    by_path = [moment_paths(moment) for moment in found.moments]
    result = {}
    for name in by_path[0]:
        if name not in shapes:
            continue
        held = [_at_shape(name, own[name], shapes[name]) for own in by_path]
        g = _tree.wide(grads[name]) if name in grads else jnp.zeros_like(held[0])
        result[name] = found.rule(g, *held)
    return result


def _at_shape(name: str, stored: tuple[Any, ...], shape: tuple[int, ...]) -> jax.Array:
    """A stored moment as an array of the parameter's shape, at least float32."""
    x = read_stored([unboxed(own) for own in stored])
    pairs = zip(x.shape, shape, strict=False)
    if x.ndim != len(shape) or any(d > max(n, 1) for d, n in pairs):
        raise ValueError(
            f"the moment at '{name}' must fit its parameter of shape {shape}, got "
            f"shape {x.shape}. Pass the state that belongs to these parameters; of a "
            "batch of both, one: jax.vmap, or jax.tree.map(lambda x: x[0], ...)."
        )
    return jnp.broadcast_to(spread(x, shape), shape)
