"""Optax's own wrappers as clients: around an optimizer from here, and around Optax's.

A table of wrappers times a table of optimizers. All train the network of
`tests/clients.py`; the state must keep its form, and one program must serve all steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import codecs
from tests.clients import LR, apply, data, error, initial_weights
from tests.helpers import some

STEPS = 40
INT8 = codecs.int8(min_size=1)  # of the smallest leaves too


def loss_of(params):
    x, y = data()
    return error(apply(params, x), y)


# --------------------------------------------------------------------------- wrappers


def _nothing(params, value, loss):
    del params, value, loss
    return {}


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """One of Optax's wrappers, and what its users do beside calling `update`.

    Attributes:
      wrap: around an optimizer.
      least: what the last loss may be of the first.
      count: the optimizer's steps in a run of STEPS.
      b1: of the wrapped AdamW.
      into, out: parameters to what is trained, and back to what the loss is taken at.
      extra: the extra arguments of `update`: of parameters, loss, and its function.
      hands_on: whether the wrapped optimizer is given the extra arguments.
    """

    wrap: Callable[[Any], Any]
    least: float = 0.25
    count: int = STEPS
    b1: float = 0.9
    into: Callable[[Any], Any] = lambda params: params
    out: Callable[[Any], Any] = lambda params: params
    extra: Callable[..., Any] = _nothing
    hands_on: bool = True


def _sharpened(tx, **options):
    towards = optax.chain(optax.contrib.normalize(), adamx.sgd(0.05))
    return optax.contrib.sam(tx, towards, **options)


def _reduced(tx):
    return optax.chain(tx, optax.contrib.reduce_on_plateau(0.5, 2, rtol=0.2))


def _as_complex(params):
    """Kernels as their real parts; the imaginary ones are learned as well."""
    return {k: {**v, "kernel": v["kernel"] + 0j} for k, v in params.items()}


def _as_real(params):
    def real(layer):
        z = layer["kernel"]
        return {**layer, "kernel": z.real + z.imag}

    return {k: real(v) for k, v in params.items()}


def _slow(tx, **options):
    return optax.lookahead(tx, sync_period=5, slow_step_size=0.5, **options)


_IN_PAIRS = {"into": optax.LookaheadParams.init_synced, "hands_on": False}

WRAPPERS = {
    "MultiSteps": Wrapper(
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(), 0.5, STEPS // 2
    ),
    "apply_if_finite": Wrapper(lambda tx: optax.apply_if_finite(tx, 3)),
    "lookahead": Wrapper(_slow, 0.5, **_IN_PAIRS),
    "lookahead, reset": Wrapper(
        functools.partial(_slow, reset_state=True), 0.5, 0, **_IN_PAIRS
    ),
    "sam": Wrapper(_sharpened, 0.5, STEPS // 2, hands_on=False),
    "sam, opaque": Wrapper(
        functools.partial(_sharpened, opaque_mode=True),
        extra=lambda params, value, loss: {"grad_fn": lambda p, i: jax.grad(loss)(p)},
        hands_on=False,
    ),
    "schedule_free": Wrapper(
        lambda tx: optax.contrib.schedule_free(tx, LR, b1=0.9), 0.5, b1=0.0
    ),
    "reduce_on_plateau": Wrapper(
        _reduced, 0.5, extra=lambda params, value, loss: {"value": value}
    ),
    "split_real_and_imaginary": Wrapper(
        optax.contrib.split_real_and_imaginary,
        into=_as_complex,
        out=_as_real,
        hands_on=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Losses, parameters and state of a run; how many programs it took."""

    losses: np.ndarray
    params: Any
    state: Any
    programs: int


def train(wrapper, tx, dtype=jnp.float32, needs_loss=False, retyped=0):
    """Trains; the state keeps its form, but for its first `retyped` steps."""
    params = wrapper.into(initial_weights(dtype))
    tx = wrapper.wrap(tx)

    def loss(params):
        return loss_of(wrapper.out(params))

    @jax.jit
    def step(params, state):
        at = getattr(params, "fast", params)
        value, gradients = jax.value_and_grad(loss)(at)
        # JAX's gradient of a real loss is the conjugate of the way up.
        gradients = jax.tree.map(jnp.conj, gradients)
        more = wrapper.extra(params, value, loss)
        more |= {"loss_fn": loss} if needs_loss else {}
        updates, state = tx.update(gradients, state, params, **more)
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    losses = []
    for i in range(STEPS):
        params, after, value = step(params, state)
        if i >= retyped:
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        state = after
        losses.append(float(value))
    params = wrapper.out(getattr(params, "slow", params))
    return Run(np.array(losses), params, state, step._cache_size())


@functools.cache
def ours(name):
    wrapper = WRAPPERS[name]
    return train(wrapper, adamx.adamw(LR, wrapper.b1))


# Quickly: who skips, who sums, who evaluates twice, who averages, who hands values on.
READ = ("apply_if_finite", "MultiSteps", "sam", "lookahead", "schedule_free")
READ += ("reduce_on_plateau",)


@pytest.mark.parametrize("name", some(WRAPPERS, "MultiSteps", "sam", "lookahead"))
def test_adamw_trains_as_optax_does(name):
    """Optax's arithmetic is the less exact."""
    wrapper, run = WRAPPERS[name], ours(name)
    other = train(wrapper, optax.adamw(LR, wrapper.b1))
    assert run.losses[-1] <= wrapper.least * run.losses[0]
    # One; two where Optax's own state is weakly typed at first (0.2.5).
    assert run.programs == other.programs <= 2
    np.testing.assert_allclose(run.losses, other.losses, rtol=2e-4)
    chex.assert_trees_all_close(run.params, other.params, rtol=2e-4, atol=1e-4 * LR)


@pytest.mark.parametrize("name", some(WRAPPERS, *READ))
def test_a_state_inside_is_read(name):
    reading = adamx.read(ours(name).state)
    rate = reading.learning_rate
    if name.startswith("sam"):  # of both optimizers, by where they are
        assert sorted(rate.values()) == [LR, 0.05]
    else:
        assert rate == LR
    assert reading.count == WRAPPERS[name].count


# ------------------------------------------------------------------------- optimizers


@dataclasses.dataclass(frozen=True)
class Special:
    """An optimizer that asks more of who calls it than a bare one.

    Attributes:
      make: makes it.
      dtype: of the parameters.
      every: gradients per step.
      needs_loss: whether `update` needs the loss as a function.
      refused: by wrapper, what the error says that it does not work there.
      pointless: the wrappers in which it has no sense.
      retyped: the wrappers in which the state keeps its form from the second step on.
        Some add up states, cond * new + (1 - cond) * old, and a bool becomes an int32
        (as in Optax's own `apply_if_finite`); MultiSteps of 0.2.5 sums gradients in the
        dtype of updates.
    """

    make: Callable[[], Any]
    dtype: Any = jnp.float32
    every: int = 1
    needs_loss: bool = False
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    pointless: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()


def all_at_once():
    """Wrappers in wrappers, around moments of 8 bits."""
    small = adamx.adamw(LR, mu_dtype=INT8, nu_dtype=INT8, mask=adamx.decay_mask())
    grouped = adamx.groups([("bias", adamx.adam(LR))], default=small)
    return adamx.diagnose(grouped, every=2)


# Their update is the way to a target, to be added as it is: they stand outermost.
OUTERMOST = ("lookahead", "lookahead, reset", "sam", "schedule_free")
NO_BRANCH = {"apply_if_finite": "cond branches must have equal output types"}
SPECIALS = {
    "all at once": Special(all_at_once),
    "schedule_free_adamw": Special(lambda: adamx.schedule_free_adamw(LR)),
    "sophia_h": Special(
        lambda: adamx.sophia_h(LR),
        needs_loss=True,
        refused={
            name: "loss_fn"
            for name, wrapper in WRAPPERS.items()
            if not wrapper.hands_on
        },
    ),
    "guard": Special(
        lambda: adamx.guard(adamx.adamw(LR), spike_zscore=50.0),
        retyped=("sam", "lookahead, reset"),
    ),
    "int8": Special(lambda: adamx.adamw(LR, mu_dtype=INT8, nu_dtype=INT8)),
    "accumulate": Special(lambda: adamx.accumulate(adamx.adamw(LR), 2), every=2),
    "stages": Special(
        lambda: adamx.stages([(adamx.adamw(LR), 5), (adamx.sgd(LR), None)])
    ),
    "with_hyperparams": Special(lambda: adamx.with_hyperparams(adamx.adamw, LR)),
    "master_weights": Special(
        lambda: adamx.master_weights(adamx.adamw(LR)),
        jnp.bfloat16,
        refused=NO_BRANCH,
        pointless=OUTERMOST,
        retyped=("MultiSteps",),
    ),
    "compensated": Special(
        lambda: adamx.compensated(adamx.adamw(LR)),
        jnp.bfloat16,
        refused=NO_BRANCH,
        pointless=OUTERMOST,
        retyped=("MultiSteps",),
    ),
}


# What is refused is so at the first step.
QUICK = {
    "all at once": ("lookahead",),
    "guard": ("lookahead, reset",),
    "sophia_h": ("reduce_on_plateau", *SPECIALS["sophia_h"].refused),
    "master_weights": ("apply_if_finite", "MultiSteps"),
}


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        pytest.param(
            name,
            inner,
            marks=[] if name in QUICK.get(inner, ()) else pytest.mark.slow,
        )
        for inner, special in SPECIALS.items()
        for name in WRAPPERS
        if name not in special.pointless
    ],
)
def test_an_optimizer_in_a_wrapper(name, inner):
    wrapper, special = WRAPPERS[name], SPECIALS[inner]
    retyped = int(name in special.retyped)
    options = (special.dtype, special.needs_loss and wrapper.hands_on, retyped)
    if name in special.refused:
        with pytest.raises((TypeError, ValueError), match=special.refused[name]):
            train(wrapper, special.make(), *options)
        return
    run = train(wrapper, special.make(), *options)
    assert run.programs <= ours(name).programs + retyped
    assert np.all(np.isfinite(run.losses))
    assert run.losses[-1] < 0.8 * run.losses[0]
    reading = adamx.read(run.state)
    assert reading.count == wrapper.count // special.every
    if inner == "all at once":
        assert {"bias", "default"} <= set(reading.learning_rate)
    if inner == "all at once" and reading.count:
        seen = reading.diagnostics
        assert seen.count == wrapper.count
        assert all(np.isfinite(x["r/p50"]) for x in seen.layers.values())


def test_who_evaluates_schedule_free_of_optax():
    """Its averaged parameters come from its own function, whatever is inside."""
    run = ours("schedule_free")
    averaged = optax.contrib.schedule_free_eval_params(run.state, run.params)
    assert float(loss_of(averaged)) < 0.5 * run.losses[0]
