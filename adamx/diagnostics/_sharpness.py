"""Flat or sharp: curvature where training is, beside what the learning rate bears.

    hessian          the largest eigenvalue of H, the second derivative of the loss
    preconditioned   the largest eigenvalue of P^(-1/2) H P^(-1/2), with P the diagonal
                     of what the optimizer divides by, sqrt(v_hat) + eps
    threshold        (2 + 2 b1) / ((1 - b1) learning_rate)

Where `preconditioned` is above the threshold, a step with this rate and this P
overshoots by more than it gains, along that eigenvector. With whole batches, training
brings it up to the threshold and keeps it there.

Source: Cohen, Ghorbani, Krishnan, Agarwal, Medapati, Badura, Suo, Cardoze, Nado, Dahl &
Gilmer, "Adaptive Gradient Methods at the Edge of Stability" (2022), section 3; that of
Nesterov's form: Cohen, Kaur, Li, Kolter & Talwalkar, "Gradient Descent on Neural
Networks Typically Occurs at the Edge of Stability" (2021), equation 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree, moments
from adamx._types import PyTree, at_least_single, dtype_of
from adamx.diagnostics._lanczos import Eigenvalue, largest_eigenvalue
from adamx.diagnostics._steps_model import Motion, at_work, motions
from adamx.reading import ByGroup, Number, state_tree, to_host

# Bounds of words for `edge`: what Cohen et al. see at the edge lies within a tenth.
_LOW, _HIGH = 0.9, 1.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharpness:
    """How sharp the loss is, for itself and for the optimizer; in words by `print`.

    Attributes:
      hessian: largest eigenvalue (not the largest in magnitude) of the Hessian in all
        parameters, in loss per parameter unit squared. Negative: no direction curves
        upwards.
      preconditioned: that of P^(-1/2) H P^(-1/2) in the parameters that move: 1 over
        the unit of a learning rate. NaN before the first step.
      threshold: of `preconditioned`, above which steps diverge; a dict by group where
        there are several rates; the lowest where momentum differs within a group. NaN
        where the step has a factor that is not recorded (LAMB).
      edge: preconditioned / threshold, 1 at the edge of stability. Where groups differ,
        the largest eigenvalue with every parameter measured by its own threshold.
      learning_rate: as recorded, in parameter units per step; or a dict by group.
      iterations: Hessian-vector products, of the eigenvalue that took most.
      residual: relative, of the eigenvalue that has the largest: an eigenvalue is so
        near to the one given, whose own error is mostly the square of it. Rounding is
        a part of it: of the spectrum's width, 5e-7 in float32.
      converged: whether all residuals are within the tolerance.
    """

    hessian: Number
    preconditioned: Number
    threshold: ByGroup
    edge: Number
    learning_rate: ByGroup
    iterations: Number
    residual: Number
    converged: Any

    def __str__(self) -> str:
        """Flat or sharp, and for which rate."""
        if any(np.ndim(x) for x in jax.tree.leaves(self)):
            return repr(self)
        limit = self.threshold
        if isinstance(limit, Mapping):
            limit = "{" + ", ".join(f"{k}: {v:.4g}" for k, v in limit.items()) + "}"
        else:
            limit = f"{limit:.4g}"
        lines = [
            f"hessian {self.hessian:.4g}, preconditioned {self.preconditioned:.4g} of "
            f"{limit} (edge {self.edge:.3g})",
            _verdict(self.hessian, self.edge),
        ]
        if not self.converged:
            lines.append(
                f"Not converged: residual {self.residual:.1e} after {self.iterations} "
                "products; raise `iterations`, or pass float64 parameters."
            )
        return "\n".join(lines)


def _verdict(hessian: Any, edge: Any) -> str:
    if not np.isfinite(hessian):
        return "Not known: the loss or its curvature is not finite here."
    if not np.isfinite(edge):
        return "Not known for the optimizer: no step was taken, or it has no threshold."
    if hessian <= 0 or edge <= 0:
        return "No upward curvature: not a minimum; the rate is not limited here."
    if edge < _LOW:
        return f"Flat for this learning rate: {1 / edge:.3g} times as much is stable."
    if edge <= _HIGH:
        return "As sharp as this learning rate allows: at the edge of stability."
    return (
        f"Sharp for this learning rate: {edge:.3g} times what is stable. Steps "
        "overshoot until it is flatter, or the rate lower."
    )


def sharpness(
    loss_fn: Callable[..., Any],
    params: PyTree,
    state: PyTree,
    batch: Any,
    *,
    has_aux: bool = False,
    iterations: int = 100,
    tolerance: Any = 1e-4,
    seed: Any = 0,
    nesterov: bool = False,
) -> Sharpness:
    """Says whether the minimum is flat or sharp, for itself and for this optimizer.

        H = second derivative of loss_fn(params, batch);   P = diag(sqrt(v_hat) + eps)
        hessian = largest eigenvalue of H
        preconditioned = largest eigenvalue of P^(-1/2) H P^(-1/2)
        threshold = (2 + 2 b1) / ((1 - b1) learning_rate)

    The largest algebraically: a steep ridge (a large negative eigenvalue) does not make
    steps unstable. Lanczos on products of the Hessian with vectors (forward over
    reverse), without the matrix: some 10 to 50 gradients' time, four copies of the
    parameters, and what the derivative of a gradient keeps. P, b1 and the rate are
    those that the state recorded; rates of a schedule are those of the last step.

    The threshold is that of alternating steps with P and the rates held fixed: 2 / rate
    without momentum (b1 = 0, `rmsprop`), 2 (1 + momentum) / rate for sgd's sum, 2 / ((1
    - b1) rate) for Schedule-Free. In the first 1 / (1 - b1) steps the bias correction
    of mu raises the rate by 1 / (1 - b1^t), which is left out: it falls before anything
    can grow. Decay, clipping and Sophia's bounds are left out too.

    P has what the optimizer really divides by: reduced moments (`adam_mini`) and codes
    of 8 or 4 bits spread to elements, the larger moment of `amsgrad`, AdaBound's
    bounds, 1 for SGD. Parameters that do not move (`freeze`, another's part of
    optax.masked, a denominator of 0) are left out of `preconditioned` and `edge`, as
    if constant, not out of `hessian`. In float32 the error is about 1e-6 of the
    spectrum's width.

    Args:
      loss_fn: loss_fn(params, batch) -> scalar, twice differentiable. Compiled once for
        each function object: pass the same one each time, not a new lambda.
      params: tree of real arrays; None leaves pass. 16-bit ones are given to `loss_fn`
        as float32, so that curvature is not rounded.
      state: the optimizer's state, however nested; an `nnx.Optimizer` or `TrainState`
        will do. `stages` count with the stage at work.
      batch: what `loss_fn` takes. A minibatch has its own curvature: mostly larger.
      has_aux: whether `loss_fn` returns (loss, anything).
      iterations: products at most, >= 1, for each eigenvalue. Under vmap all of them
        are computed.
      tolerance: relative, > 0, of residuals and of the last change; 1e-4 leaves errors
        far below 1e-3, but for spectra whose top is crowded within it.
      seed: int or traced, of the start vector.
      nesterov: whether the optimizer looks ahead (nadam, nadamw, nesterov=True), which
        no State records: thresholds are (1 + 2 b1) times smaller then. It is seen by
        itself where `momentum_decay` is on.

    Returns:
      A `Sharpness` of Python numbers; arrays where inputs are batched (vmap), tracers
      inside jit.

    Raises:
      TypeError: `loss_fn` is no function or cannot be hashed; complex parameters, or
        integers; an nnx model with more than parameters (running statistics, random
        streams); a batched stage of `stages`.
      ValueError: the loss is no real scalar; the state has no learning rate, or moments
        that cannot be read (Optax's own, `lion`); it is not that of these parameters;
        `iterations`, `tolerance` out of range.

    >>> import adamx, jax.numpy as jnp
    >>> loss = lambda p, scale: jnp.sum(scale * p**2)
    >>> params, scale = jnp.ones(3), jnp.array([1.0, 2.0, 5.0])
    >>> tx = adamx.adam(0.1)
    >>> _, state = tx.update(2 * scale * params, tx.init(params), params)
    >>> found = sharpness(loss, params, state, scale)
    >>> round(found.hessian, 4), round(found.preconditioned, 4)
    (10.0, 1.0)
    >>> round(found.threshold), round(found.edge, 4)
    (380, 0.0026)
    >>> print(found)
    hessian 10, preconditioned 1 of 380 (edge 0.00263)
    Flat for this learning rate: 380 times as much is stable.

    Source: Cohen et al. (2022), section 3.
    """
    _check(loss_fn, params, has_aux, nesterov)
    iterations = _checks.check_steps(
        "iterations", iterations, remedy="Use e.g. 100: products for each eigenvalue."
    )
    _checks.check_positive("tolerance", tolerance, "Use e.g. 1e-4.")
    held = state_tree(state)
    held = at_work(getattr(held, "opt_state", held))
    found = _compute(
        loss_fn, has_aux, iterations, nesterov, params, held, batch, tolerance, seed
    )
    return jax.tree.map(to_host, found)


def _check(loss_fn: Any, params: PyTree, has_aux: Any, nesterov: Any) -> None:
    if not callable(loss_fn):
        raise TypeError(
            "`loss_fn` must be a function loss_fn(params, batch) -> scalar, got "
            f"{_checks.describe_value(loss_fn)}. Are arguments swapped?"
        )
    try:
        hash(loss_fn)
    except TypeError:
        raise TypeError(
            "`loss_fn` must be hashable, for it is compiled once, got "
            f"{type(loss_fn).__name__}. Pass a function; arrays that it needs belong "
            "into `params` or `batch`."
        ) from None
    _checks.check_flag("has_aux", has_aux)
    _checks.check_flag("nesterov", nesterov)
    _tree.check_is_trained(params, "params")
    _tree.check_real(params, "parameter", "largest eigenvalues are taken of real ones")
    if not jax.tree.leaves(params):
        raise ValueError(
            "`params` must have at least one array, got none. Pass the parameters that "
            "`loss_fn` is differentiated by."
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _compute(
    loss_fn: Callable[..., Any],
    has_aux: bool,
    iterations: int,
    nesterov: bool,
    params: PyTree,
    state: PyTree,
    batch: Any,
    tolerance: Any,
    seed: Any,
) -> Sharpness:
    product, at = _hessian_product(loss_fn, has_aux, params, batch)
    moving = motions(state, params, nesterov)

    def largest(weights: PyTree) -> Eigenvalue:
        """Of W H W, in the space where W is not 0."""

        def weighted(v: PyTree) -> PyTree:
            return _times(weights, product(_times(weights, v)))

        start = _random_like(weights, seed)
        return largest_eigenvalue(weighted, start, iterations, tolerance)

    weights = [jax.tree.map(jnp.ones_like, at), _weights(at, moving, lambda _: 1.0)]
    is_uniform = len({motion.stages for motion in moving.values()}) == 1
    if not is_uniform:
        # Measured by their own thresholds, parameters of all groups share the edge 1.
        weights.append(_weights(at, moving, lambda m: m.rate * m.gain / 2))
    # One after another, compiled once.
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *weights)
    found = jax.lax.map(largest, stacked)
    plain, divided = found.value[0], found.value[1]
    learning_rate, threshold = _by_label(moving)
    edge = divided / threshold if is_uniform else found.value[2]
    return Sharpness(
        hessian=plain,
        preconditioned=divided,
        threshold=threshold,
        edge=edge,
        learning_rate=learning_rate,
        iterations=jnp.max(found.iterations),
        residual=jnp.max(found.residual),
        converged=jnp.all(found.converged),
    )


def _hessian_product(
    loss_fn: Callable[..., Any], has_aux: bool, params: PyTree, batch: Any
) -> tuple[Callable[[PyTree], PyTree], PyTree]:
    """v -> H v, and the parameters in at least float32."""

    def loss(p: PyTree) -> jax.Array:
        value = loss_fn(p, batch)
        if has_aux:
            value = value[0]
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", Any)
        if shape != () or not jnp.issubdtype(dtype, jnp.floating):
            got = f"an array of shape {shape}, dtype {dtype}"
            if shape is None:
                got = f"a {type(value).__name__}"
            raise ValueError(
                "`loss_fn` must return a real scalar, or (scalar, anything) with "
                f"has_aux=True, got {got}. Take the mean over the batch."
            )
        return value

    at = jax.tree.map(lambda p: jnp.asarray(p).astype(_wide_dtype(p)), params)
    # Linear in the parameters' change: what does not depend on it is computed once.
    _, product = jax.linearize(jax.grad(loss), at)
    return product, at


def _wide_dtype(p: Any) -> Any:
    return at_least_single(dtype_of(p))


def _weights(
    at: PyTree, moving: Mapping[str, Motion], factor: Callable[[Motion], Any]
) -> PyTree:
    """sqrt(factor / denominator); 0 for what does not move."""

    def leaf(path: Any, p: jax.Array) -> jax.Array:
        motion = moving.get(_tree.path_name(path))
        if motion is None:
            return jnp.zeros_like(p)
        root = jnp.sqrt(jnp.asarray(factor(motion), p.dtype))
        if motion.denominator is None:
            return jnp.broadcast_to(root, p.shape)
        d = motion.denominator.astype(p.dtype)
        safe = jnp.where(d == 0, jnp.ones_like(d), d)
        return jnp.where(d == 0, jnp.zeros_like(d), root / jnp.sqrt(safe))

    return jax.tree_util.tree_map_with_path(leaf, at)


def _by_label(moving: Mapping[str, Motion]) -> tuple[ByGroup, ByGroup]:
    """Rate and threshold, by group where there are several; of gains, the largest."""
    rates: dict[str, jax.Array] = {}
    limits: dict[str, jax.Array] = {}
    for motion in moving.values():
        limit = 2 / (motion.rate * motion.gain)
        known = limits.get(motion.label)
        limits[motion.label] = limit if known is None else jnp.minimum(known, limit)
        rates[motion.label] = motion.rate
    if len(rates) == 1:
        return next(iter(rates.values())), next(iter(limits.values()))
    return rates, limits


def _times(weights: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda w, x: w * x, weights, tree)


def _random_like(weights: PyTree, seed: Any) -> PyTree:
    """Random numbers in (-1, 1) and none 0, but where weights are."""
    key = jnp.zeros(2, jnp.uint32).at[1].set(jnp.asarray(seed).astype(jnp.uint32))

    def leaf(w: jax.Array, stream: int) -> jax.Array:
        u = moments.uniform(moments.random_bits(key, 0, stream, w.shape))
        x = 2 * u - (1 - 2.0**-24)  # odd multiples of 2^-24
        return jnp.where(w == 0, jnp.zeros_like(w), x.astype(w.dtype))

    leaves, structure = jax.tree.flatten(weights)
    drawn = [leaf(w, i) for i, w in enumerate(leaves)]
    return structure.unflatten(drawn)  # type: ignore[attr-defined]
