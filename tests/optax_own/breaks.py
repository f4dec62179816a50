"""Ours, broken in the ways that Optax's tests must notice."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Factory = Callable[..., Any]


def _with_update(change: Callable[..., Any]) -> Callable[[Factory], Factory]:
    """A break of the update: change(update) is what the transformation gets."""

    def how(factory: Factory) -> Factory:
        @functools.wraps(factory)
        def broken(*args: Any, **kwargs: Any) -> Any:
            tx = factory(*args, **kwargs)
            return tx._replace(update=change(tx.update))

        return broken

    return how


@_with_update
def negated(update):
    def changed(*args, **kwargs):
        updates, state = update(*args, **kwargs)
        return jax.tree.map(lambda u: -u, updates), state

    return changed


@_with_update
def promoted(update):
    def changed(*args, **kwargs):
        updates, state = update(*args, **kwargs)
        return jax.tree.map(lambda u: u.astype("float32"), updates), state

    return changed


@_with_update
def without_extra_args(update):
    return lambda updates, state, params=None: update(updates, state, params)


@_with_update
def unstable_state(update):
    def changed(*args, **kwargs):
        updates, state = update(*args, **kwargs)
        narrow = jax.tree.map(lambda x: x if x.ndim else x.astype("float16"), state)
        return updates, narrow

    return changed


@_with_update
def idle(update):
    def changed(updates, *args, **kwargs):
        return updates, update(updates, *args, **kwargs)[1]

    return changed


def ignored_b2(factory: Factory) -> Factory:
    @functools.wraps(factory)
    def broken(*args, b2=0.999, **kwargs):
        return factory(*args, b2=0.99, **kwargs)

    return broken


class Break(NamedTuple):
    """One of ours broken, and the cases (a regular expression) that must notice."""

    name: str
    how: Callable[[Factory], Factory]
    pattern: str


BREAKS = (
    Break("sgd", negated, r"MaskedTest::test_masked_sgd(__with_jit)?"),
    Break("scale_by_adam", ignored_b2, r"TransformTest::test_rms_match_adam"),
    Break(
        "adam",
        promoted,
        r"AliasTest::test_preserve_dtype.*'adam', .*'bfloat16'\)(__with_jit)?",
    ),
    Break(
        "amsgrad",
        without_extra_args,
        r"AliasTest::test_optimizers_accept_extra_args.*'amsgrad'.*",
    ),
    Break(
        "adamax",
        unstable_state,
        r"AliasTest::test_state_shape_dtype_shard_stability.*'adamax'.*float32.*",
    ),
    Break(
        "clip_by_global_norm",
        idle,
        r"InjectHyperparamsTest::test_overriding_hyperparam(__with_jit)?",
    ),
    Break(
        "add_decayed_weights",
        idle,
        r"AddingTest::test_add_decayed_weights(__with_jit)?",
    ),
)
