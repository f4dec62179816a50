"""ADOPT: each gradient is divided by the moment of those before it, then averaged.

    x = clip(g / max(sqrt(nu), eps), -c, c)       c = t^(1/4)
    mu <- b1 mu + (1 - b1) x                      update = mu
    nu <- b2 nu + (1 - b2) |g|^2

The first gradient only fills nu (nu = |g|^2) and moves nothing; t counts from the
second. So g and its divisor are independent, which is why it converges for any b2, and
nothing needs a bias correction: nu is an average from its first entry on.

Source: Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa &
Matsuo, "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate" (2024),
Algorithm 2. The Nesterov form is Optax's. A complex x is clipped by its modulus.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    PyTree,
    ScalarOrSchedule,
    scalar_dtype,
)
from adamx.reading import unboxed
from adamx.transforms import descent, wide_chain


class ScaleByAdoptState(NamedTuple):
    """State of `scale_by_adopt`: per parameter what `ScaleByAdamState` takes.

    Attributes:
      count: int32 scalar, gradients seen; the first of them moves nothing.
      mu: tree like the parameters, running mean of the normalised gradient.
      nu: tree like the parameters, real, running mean of |g|^2, the last one included.
      b1, b2, eps: float32 scalars, as used in the last step.
      clip_value: float32 scalar, c of the last step; None without clipping.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    clip_value: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments; mu, a mean of quotients, in the gradient's unit: see there."""
        eps = unboxed(self.eps)

        def rule(
            g: jax.Array, mu: jax.Array, nu: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            del g
            root = jnp.sqrt(nu)
            denominator = jnp.maximum(root, eps)
            return moments.scale(mu, denominator), root, denominator

        return moments.Estimates((self.mu, self.nu), rule)


def adopt_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *,
    weight1: moments.Weight,
    weight2: moments.Weight,
    is_first: jax.Array,
    eps: jax.Array,
    clip_value: jax.Array | None,
    nesterov: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One leaf of ADOPT.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      weight1, weight2: of what is new in mu and nu, 1 - b1 and 1 - b2.
      is_first: whether there is no nu yet.
      eps: least value of the root.
      clip_value: largest modulus of the normalised gradient; None: any.
      nesterov: whether the update is the mean moved by this gradient once more.

    Returns:
      update, mu, nu.
    """
    # 0 times g: the first gradient moves nothing, but a NaN in it is seen at once.
    past = moments.scale(g, jnp.where(is_first, 0.0, 1.0).astype(nu.dtype))
    x = moments.divide_or_zero(past, jnp.maximum(jnp.sqrt(nu), eps))
    x = jnp.where(jnp.isnan(past), past, x)  # over a 0, too
    if clip_value is not None:
        x = _clip_modulus(x, clip_value)
    mu = moments.update_average(mu, x, weight1)
    update = moments.update_average(mu, x, weight1) if nesterov else mu
    square = _tree.abs_squared(g)
    nu = jnp.where(is_first, square, moments.update_square(nu, square, weight2))
    # A NaN in mu is for ever. That nu waits for it lets XLA write both in place: with
    # no such order it copies the nu that mu reads.
    nu = jnp.where(jnp.isnan(update), jnp.full((), jnp.nan, nu.dtype), nu)
    return update, mu, nu


def _clip_modulus(x: jax.Array, limit: jax.Array) -> jax.Array:
    if not jnp.iscomplexobj(x):
        return jnp.clip(x, -limit, limit)
    # A quotient over a tiny root may be inf; its modulus is cut all the same, as above,
    # by a factor that is no subnormal number, which is 0 on many devices.
    most = float(jnp.finfo(x.dtype).max) * 2.0**-30
    re, im = (jnp.clip(part, -most, most) for part in (jnp.real(x), jnp.imag(x)))
    x = jax.lax.complex(re, im)
    size = jnp.abs(x)
    inside = size <= limit  # not so for a NaN, which the quotient keeps
    factor = jnp.where(inside, jnp.ones_like(size), limit / size)
    return moments.scale(x, factor)


def fourth_root(count: jax.Array) -> jax.Array:
    """count^(1/4), the paper's clipping value; two square roots are exact to an ulp."""
    return jnp.sqrt(jnp.sqrt(jnp.asarray(count).astype(scalar_dtype())))


def scale_by_adopt(
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Averages gradients that were divided by the root mean square before them.

        mu <- b1 mu + (1 - b1) clip(g / max(sqrt(nu), eps), -c, c),   update = mu
        nu <- b2 nu + (1 - b2) |g|^2

    The first update is 0: it only fills nu.

    Args:
      b1, mu_dtype, nu_dtype: see `scale_by_adam`.
      b2: in [0, 1), memory of the mean square: about 1/(1 - b2) steps. Any value will
        do, and 0 compares with the last gradient alone.
      eps: >= 0, in units of the gradient, the least divisor. With eps = 0, an element
        without a gradient so far gets the update 0.
      nesterov: whether the update is mu moved by this gradient once more, as in Optax.
      use_clipping: whether the quotient is clipped. Without, an element whose first
        gradient was tiny takes a step of up to |g| / eps learning rates.
      clip_value_fn: c, a function of t = 0, 1, 2, ... (0: the step that fills nu); the
        default is t^(1/4), the paper's. A number or an array is a constant c.

    Returns:
      The transformation; dtypes as in `scale_by_adam`. NaN in, NaN out, in that
      element, from the first step on.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; a negative or NaN c.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_adopt(b1=0.5)
    >>> state = tx.init(jnp.zeros(1))
    >>> seen = []
    >>> for g in (2.0, 1.0, 100.0):
    ...     updates, state = tx.update(jnp.array([g]), state)
    ...     seen.append(round(float(updates[0]), 4))
    >>> seen  # nothing; 0.5 * 1/2; then 100/2 is clipped to 2^(1/4)
    [0.0, 0.25, 0.7196]
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_flag("nesterov", nesterov)
    _checks.check_flag("use_clipping", use_clipping)
    _checks.check_non_negative(
        "clip_value_fn",
        clip_value_fn,
        "It is the largest size of a normalised gradient, as a function of the step or "
        "a number; use_clipping=False switches it off.",
    )
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    others = {"b1": b1, "b2": b2, "eps": eps}
    clipping = {"clip_value": clip_value_fn} if use_clipping else {}

    def init(params: PyTree) -> ScaleByAdoptState:
        records = _scalars.initial_records(**others, **clipping)
        return ScaleByAdoptState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **{"clip_value": None} | records,
        )

    def update(
        updates: PyTree,
        state: ScaleByAdoptState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdoptState]:
        del extra_args
        _checks.check_state(state, ScaleByAdoptState, "scale_by_adopt")
        used = _scalars.resolve_all(state.count, **others, **clipping)
        limit = used.get("clip_value")
        updates, new = moments.apply_rule(
            adopt_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            weight1=moments.weight_of(used["b1"]),
            weight2=moments.weight_of(used["b2"]),
            is_first=state.count == 0,
            eps=used["eps"],
            clip_value=limit,
            nesterov=nesterov,
        )
        recorded = _scalars.records(used, state.b1.dtype)
        return updates, ScaleByAdoptState(
            count=_tree.increment(state.count),
            **new,
            **{"clip_value": None} | recorded,
        )

    return GradientTransformationExtraArgs(init, update)


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    nu_dtype: Any = None,
    independent_decay: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam with normalisation before the mean: it converges whatever b2 is.

        p <- p - learning_rate * (mu + weight_decay * p)

    Args:
      learning_rate: see `scale_by_learning_rate`; asked also for the first step, which
        only fills nu.
      b1, mu_dtype, nu_dtype: see `scale_by_adam`.
      b2, eps, nesterov, use_clipping, clip_value_fn: see `scale_by_adopt`.
      weight_decay, mask: see `add_decoupled_weight_decay`; it acts in the first step
        too.
      independent_decay: see `adamw`.

    Returns:
      The optimizer; with a decay its update needs `params`. State: `ScaleByAdoptState`,
      `AddDecoupledWeightDecayState`, `ScaleByLearningRateState`; the last two change
      places with `independent_decay`.

    >>> import jax.numpy as jnp
    >>> tx = adopt(0.1)
    >>> _, state = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
    >>> updates, _ = tx.update(jnp.array([0.5]), state)
    >>> round(float(updates[0]), 6)
    -0.01

    Source: Taniguchi et al. (2024), Algorithm 2.
    """
    return wide_chain(
        scale_by_adopt(
            b1,
            b2,
            eps,
            mu_dtype,
            nesterov=nesterov,
            use_clipping=use_clipping,
            clip_value_fn=clip_value_fn,
            nu_dtype=nu_dtype,
        ),
        *descent(learning_rate, weight_decay, mask, independent_decay),
    )
