"""Diagnostics inside the compiled step: what Adam does to each layer.

    r = |m_hat| / (sqrt(v_hat) + eps),     effective step = learning rate x r

r is the size of a step in units of the learning rate: near 1 where gradients agree from
step to step, near 0 where they cancel, or where one outlier filled v_hat.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, _tree, _varying, moments
from adamx._steps import step_of, with_step
from adamx._traced import traced_once
from adamx._types import GradientTransformation, GradientTransformationExtraArgs, PyTree
from adamx.diagnostics._layers import (
    By,
    Names,
    check_by,
    check_some,
    group_names,
    layers_of,
    naming,
)
from adamx.diagnostics._probe import Before, Probe
from adamx.diagnostics._sources import sources
from adamx.reading import Diagnostics, to_host, unboxed


class DiagnoseState(NamedTuple):
    """State of `diagnose`: that of the transformation, and about 90 bytes a layer.

    Attributes:
      count: int32 scalar, steps seen; stays at 2^31 - 1 once there.
      measured_at: int32 scalar, the step last measured; 0: none yet.
      values: float32 (layers, numbers), as last measured; at first 0, since who selects
        states by arithmetic (`optax.contrib.sam`) would keep a NaN for ever.
      names: of both; no array.
      inner_state: that of the transformation.
    """

    count: Any
    measured_at: Any
    values: Any
    names: Names
    inner_state: Any

    def readings(self) -> dict[str, Any]:
        """The numbers by layer."""
        values = to_host(self._known())  # at once: a slice on the device takes 0.1 ms
        shown = list(enumerate(self.names.numbers))[:-1]
        layers = {
            layer: {name: values[..., i, k] for k, name in shown}
            for i, layer in enumerate(self.names.layers)
        }
        at, seen = unboxed(self.measured_at), unboxed(self.count)
        return {"diagnostics": Diagnostics(at, layers, seen=seen)}

    def _known(self) -> jax.Array:
        """The values, NaN before they are measured."""
        is_known = jnp.asarray(unboxed(self.measured_at))[..., None, None] > 0
        return jnp.where(is_known, unboxed(self.values), jnp.nan)


def diagnose(
    tx: GradientTransformation,
    *,
    every: int = 100,
    percentiles: Sequence[float] = (10, 50, 90),
    by: By = "leaf",
    stacked: Any = None,
    samples: int = 2048,
) -> GradientTransformationExtraArgs:
    r"""Measures, every so many steps and layer by layer, what an optimizer does.

        tx = adamx.diagnose(adamx.adamw(1e-3), every=100)
        ...
        adamx.read(state).diagnostics.layers["decoder/0/kernel"]["r/p50"]

    Updates and inner state are those of `tx`, bit for bit (compiled, XLA may round a
    last bit otherwise, since it fuses another program). The numbers of a layer, of
    the last step that is a multiple of `every`:

        r/p50         percentile of r = |m_hat| / (sqrt(v_hat) + eps); for each p
        m/p50         of |m_hat|, in units of the gradient
        sqrt_v/p50    of sqrt(v_hat), likewise
        step/p50      of learning rate x r, in units of the parameters: the step; NaN
                      where the parameters of one State have different rates
        grad_norm     of the gradient that `tx` was given
        param_norm    of the parameters before the step; NaN where it was given none
        update_norm   of the updates as `tx` emits them, with decay and rate
        update_ratio  update_norm / param_norm; about 1e-3 in healthy training
        eps_share     of elements whose denominator is more than twice sqrt(v_hat)
        still_share   of elements with r < 0.01
        cosine        of gradient and m_hat: how far the gradients agree
        nonfinite     number of elements of the gradient that are NaN or infinite
        v_change      relative change of (median of sqrt(v_hat))^2 since the last
                      measurement

    m_hat and v_hat are what the State recorded itself to use: with its b1, b2, eps and
    bias corrections. Where an optimizer has another numerator or denominator (AMSGrad,
    AdaMax, AdEMAMix, Sophia, ...), it is that; without a mean (RMSProp), m_hat is the
    gradient. Behind a switch to SGD, and for parameters without moments, these numbers
    are NaN. Not in r, and so not in step, are Nesterov's look-ahead (NAdam), Sophia's
    bound, and factors of the whole step (RAdam's rectification, LAMB's trust ratio, the
    RMS of StableAdamW); Schedule-Free's step is 1 - b1 of the one shown, at first.

    Encoded moments (`adamx.codecs`) are read as they are stored: rounded, where the
    step was made before. With 8 bits that is the same (on noise r/p50 within 0.5% and
    still_share within 0.003 of the step's, where the sizes of elements spread by
    factors of e^2). With `int4`, what is small beside its neighbours is stored as 0,
    though it moves: on noise still_share is 0.39 where of the step it is 0.06, for a
    spread by factors of e, and 0.58 beside 0.24 for e^1.5, where r/p50 is 0 beside
    0.055. `update_norm` and `update_ratio` are of the step, whatever is stored.

    All are exact for layers of up to 65,536 elements. Beyond, grad_norm is, and the
    others are from a fixed sample: the share of elements below a percentile is off by
    at most 4 sqrt(q (1 - q) / samples), for 2,048 samples and the median 4.4 points;
    norms by a few percent, more where few elements decide them; `nonfinite` is at least
    1 where grad_norm is not finite (beyond 1.8e19 its square overflows).

    Between the measured steps this costs next to nothing, and memory for the samples
    alone; compiling takes some 35 ms more for each leaf. Inside `shard_map` and `pmap`
    each device measures its pieces, see `adamx.sharding`. Under `jax.vmap` each member
    has a count of its own, so that all is computed at each step; pass the extra
    argument `measure`, one bool for all: `update(..., measure=flag)` measures where it
    is true, whatever the count.

    Stands around the whole chain, or around any part that has moments. Around
    `accumulate`, `every` counts micro-steps.

    Args:
      tx: a transformation with Adam-like moments somewhere in it: any of this library
        that divides by a running size, at any depth of chain, groups, stages, masked.
      every: steps between two measurements, >= 1.
      percentiles: in [0, 100].
      by: what a layer is. "leaf": each array of the parameters. "group": all that share
        a State (of `adamx.groups`, `optax.partition`), "all" without groups. A list of
        (regular expression, name): the first found in a path names the layer, with \1
        for its groups; others are leaves. A function of the path that returns the name,
        or None to leave it out.
      stacked: regular expression of the paths of scanned layers, whose leading axis is
        that of the layers: 'blocks/kernel/0', 'blocks/kernel/1', ...
      samples: elements looked at in layers of more than 65,536; >= 1.

    Returns:
      The transformation; `read(state).diagnostics` has the numbers. State:
      `DiagnoseState`.

    Raises:
      ValueError: `every` or `samples` < 1; percentiles outside of [0, 100]; bad rules.
        At init: no State in it has moments that can be read; `by` gives None for all
        parameters; two have one path ({"a/b": ..., "a": {"b": ...}}), two layers one
        name.
      TypeError: not a transformation, not such rules.

    >>> import adamx, jax.numpy as jnp
    >>> tx = diagnose(adamx.adamw(1e-3), every=2)
    >>> params = {"w": jnp.ones(3)}
    >>> state = tx.init(params)
    >>> for scale in (1.0, 3.0):
    ...     gradient = {"w": scale * jnp.array([1.0, 1.0, -1.0])}
    ...     updates, state = tx.update(gradient, state, params)
    >>> found = adamx.read(state).diagnostics
    >>> found.count, round(found.layers["w"]["r/p50"], 3)
    (2, 0.918)

    Source: r and its percentiles: this library's; for update_ratio about 1e-3: Karpathy
    (2015), CS231n notes, "Ratio of weights:updates".
    """
    _checks.check_transformation("tx", tx)
    every = _checks.check_steps("every", every, remedy="Use 1 to measure each step.")
    samples = _checks.check_steps("samples", samples, remedy="Use e.g. 2048.")
    qs = _check_percentiles(percentiles)
    check_by(by)
    pattern = _checks.check_pattern("stacked", stacked)
    inner_update = optax.with_extra_args_support(tx).update
    inner_step = step_of(tx)

    def probe_of(params: PyTree, state: PyTree) -> Probe:
        held = [(s.path, s.estimates.moments[0]) for s in sources(state)]
        groups = group_names(held) if by == "group" else {}
        layers = layers_of(params, naming(by, groups.get), pattern, samples)
        if callable(by):
            check_some(layers, params)
        return Probe(layers, qs)

    def init(params: PyTree) -> DiagnoseState:
        inner_state = tx.init(params)
        _check_has_moments(inner_state)
        probe = probe_of(params, inner_state)
        return DiagnoseState(
            count=jnp.zeros((), jnp.int32),
            measured_at=jnp.zeros((), jnp.int32),
            values=jnp.zeros((probe.rows, len(probe.numbers)), jnp.float32),
            names=Names(probe.names, probe.numbers),
            inner_state=inner_state,
        )

    def run(
        take: Any,
        grads: PyTree,
        state: DiagnoseState,
        params: PyTree | None,
        measure: Any,
        extra_args: dict[str, Any],
    ) -> tuple[PyTree, DiagnoseState]:
        _checks.check_state(state, DiagnoseState, "diagnose")
        probe = probe_of(grads, state.inner_state)
        count = _tree.increment(state.count)
        is_now = count % every == 0 if measure is None else jnp.asarray(measure)

        def look() -> Before:
            updates, _ = inner_update(grads, state.inner_state, params, **extra_args)
            return probe.before(grads, params, updates)

        before = _varying.cond(is_now, look, lambda: probe.nothing(grads, params))
        held = _behind(before.known, state.inner_state)
        seen = jax.tree.map(lambda g: _seen(before.known, jnp.asarray(g)), grads)
        result, inner_state = take(seen, held, params, **extra_args)
        counts = [source.count for source in sources(state.inner_state)]

        def read() -> jax.Array:
            like, last = (grads, params), state._known()[:, -1]
            return probe.behind(before, like, counts, inner_state, last)

        values = _varying.cond(is_now, read, lambda: state.values)
        new = state._replace(
            count=count,
            measured_at=jnp.where(is_now, count, state.measured_at),
            values=values,
            inner_state=inner_state,
        )
        return result, new

    def update(
        updates: PyTree,
        state: DiagnoseState,
        params: PyTree | None = None,
        *,
        measure: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, DiagnoseState]:
        return run(inner_update, updates, state, params, measure, extra_args)

    def step(
        grads: PyTree,
        state: DiagnoseState,
        params: PyTree,
        *,
        measure: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, DiagnoseState]:
        return run(inner_step, grads, state, params, measure, extra_args)

    return with_step(init, update, step)


def _check_percentiles(values: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(q) for q in values)
    except (TypeError, ValueError):
        raise TypeError(
            "`percentiles` must be numbers in [0, 100], got "
            f"{_checks.describe_value(values)}; e.g. (10, 50, 90)."
        ) from None
    if not found or not all(0.0 <= q <= 100.0 for q in found):
        raise ValueError(
            f"`percentiles` must be at least one number in [0, 100], got {values!r}; "
            "e.g. (10, 50, 90) for the median and the deciles."
        )
    if len({f"{q:g}" for q in found}) < len(found):
        raise ValueError(f"`percentiles` must differ, got {values!r}; name each once.")
    return found


def _check_has_moments(state: PyTree) -> None:
    if not sources(state):
        raise ValueError(
            "`tx` must hold Adam-like moments, a running size that it divides by, got "
            "a state without. Supported are adam, adamw and their family (adam_l2, "
            "nadam, nadamw, radam, amsgrad, adamax, adabound, amsbound, ademamix, "
            "adopt, adam_mini, stable_adamw, sparse_adam, lamb, sophia_h, sophia_g, "
            "schedule_free_adamw, rmsprop, swats, adam_to_sgd) of this library; sgd, "
            "lion and Optax's own have none that can be read."
        )


_seen = traced_once(moments.behind)


def _behind(known: jax.Array, state: PyTree) -> PyTree:
    """The state, whose numbers are known only once `known` is, a number >= 0.

    What is computed from them, all that a step writes, then waits for the norms of what
    it overwrites; XLA would copy parameters and moments at each step otherwise.
    """

    def leaf(x: Any) -> Any:
        is_number = jnp.issubdtype(x.dtype, jnp.number) and x.ndim == 0
        return moments.behind(known, x) if is_number else x

    return jax.tree.map(leaf, state)
