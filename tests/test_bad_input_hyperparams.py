"""Bad input to `with_hyperparams` and `set_hyperparams`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamx
from tests.test_bad_input import _check

NAN, INF = float("nan"), float("inf")
P = jnp.ones(2)


def own(*args, **kwargs):
    return adamx.with_hyperparams(*args, **kwargs)


def adamw(**options):
    return own(adamx.adamw, **{"learning_rate": 1e-3, **options})


class _Stateful:
    def init(self):
        return ()

    def update(self, state):
        return state

    def __call__(self, state):
        return 1e-3


# label: (call, exception, what the message must contain, in any order)
CONSTRUCTION = {
    # The factory's own messages, for the concrete numbers.
    "b2 above one": (lambda: adamw(b2=1.2), ValueError, "`b2` [0, 1) 1.2 0.999"),
    "rate negative": (lambda: adamw(learning_rate=-1.0), ValueError, "`learning_rate` -1.0"),
    "eps as string": (lambda: adamw(eps="1e-8"), TypeError, "`eps` '1e-8'"),
    "flag as rate": (lambda: adamw(learning_rate=True), TypeError, "`learning_rate` flag"),
    "rate as vector": (
        lambda: adamw(learning_rate=jnp.ones(3)), ValueError, "`learning_rate` shape (3,)"),
    "16-bit b2": (
        lambda: adamw(b2=jnp.bfloat16(0.9)), TypeError, "`b2` float32 bfloat16"),
    "16-bit schedule of b2": (
        lambda: adamw(b2=lambda step: jnp.bfloat16(0.9)), TypeError, "`b2` bfloat16"),
    "schedule out of range": (
        lambda: adamw(b1=lambda step: 1.5), ValueError, "`b1` [0, 1) 1.5"),
    "flag": (lambda: adamw(nesterov=1), TypeError, "`nesterov` True or False"),
    "b2 that float32 rounds to one": (
        lambda: adamw(b2=1 - 1e-9), ValueError, "`b2` [0, 1) 1.0 keeps float32 rounded"),
    "rate beyond float32": (
        lambda: adamw(learning_rate=1e300), ValueError, "`learning_rate` inf float32"),
    # How the factory is called.
    "no factory": (
        lambda: own(adamx.adamw(1e-3)), TypeError,
        "`factory` with_hyperparams(adamx.adamw, learning_rate=1e-3)"),
    "a number": (lambda: own(1e-3), TypeError, "`factory` function 0.001"),
    "no rate": (lambda: own(adamx.adamw), TypeError, "`factory` missing 'learning_rate'"),
    "unknown argument": (
        lambda: adamw(weigth_decay=0.1), TypeError,
        "`factory` 'weigth_decay' Did you mean `weight_decay`?"),
    "two of one": (
        lambda: own(adamx.adamw, 1e-3, learning_rate=1.0), TypeError,
        "`factory` adamw 'learning_rate'"),
    "no transformation": (
        lambda: own(lambda a: a, 1.0), TypeError, "`factory` transformation 1.0 adamx.adamw"),
    "no signature": (
        lambda: own(type("C", (), {"__call__": print})(), 1.0), TypeError, "`factory`"),
    "static unknown": (
        lambda: adamw(static="mask_"), ValueError, "`static` 'mask_' b1 mean `mask`?"),
    "static no name": (lambda: adamw(static=(1,)), ValueError, "`static` 1 learning_rate"),
    "stateful schedule": (
        lambda: adamw(learning_rate=_Stateful()), TypeError,
        "`learning_rate` stateful optax.inject_hyperparams"),
    "not traceable": (
        lambda: own(lambda learning_rate, n: adamx.sgd(learning_rate * range(n)[-1]), 1.0, 3),
        TypeError, "`n` must be static traced Pass static=('n',)"),
    "branch": (
        lambda: own(lambda a, b=1.0: adamx.sgd(a if b > 0 else 0.0), 1.0), TypeError,
        "`b` static=('b',)"),
}  # fmt: skip


@pytest.mark.parametrize("label", CONSTRUCTION)
def test_construction(label):
    _check(*CONSTRUCTION[label])


STATE = adamw().init(P)
BATCHED = jax.vmap(adamw().init)(jnp.ones((3, 2)))
SCHEDULED = adamw(b2=lambda step: 0.9).init(P)


def put(state=STATE, /, **values):
    return adamx.set_hyperparams(state, **values)


SETTING = {
    "unknown": (
        lambda: put(weigth_decay=0.1), ValueError,
        "`weigth_decay` b1, b2 learning_rate mean `weight_decay`?"),
    "static": (lambda: put(mask=0.1), ValueError, "`mask` b1, b2 static float"),
    "one of two": (lambda: put(b1=0.5, b4=0.1), ValueError, "`b4` b1"),
    "scheduled": (lambda: put(SCHEDULED, b2=0.5), ValueError, "`b2` schedule number"),
    "a schedule": (
        lambda: put(learning_rate=lambda step: 0.1), TypeError,
        "`learning_rate` number function at construction"),
    "string": (lambda: put(b2="0.9"), TypeError, "`b2` '0.9'"),
    "None": (lambda: put(eps=None), TypeError, "`eps` NoneType"),
    "flag": (lambda: put(eps=True), TypeError, "`eps` flag"),
    "b2 above one": (lambda: put(b2=1.2), ValueError, "`b2` [0, 1) 1.2"),
    "b1 one": (lambda: put(b1=np.float32(1)), ValueError, "`b1` [0, 1) 1.0"),
    "b2 that float32 rounds to one": (
        lambda: put(b2=1 - 1e-9), ValueError, "`b2` [0, 1) 1.0"),
    "b2 of 16 bits": (
        lambda: put(b2=jnp.bfloat16(0.9)), TypeError, "`b2` float32 bfloat16"),
    "rate negative": (
        lambda: put(learning_rate=-1.0), ValueError, "`learning_rate` >= 0 -1.0"),
    "rate NaN": (
        lambda: put(learning_rate=jnp.array(NAN)), ValueError, "`learning_rate` nan"),
    "rate beyond float32": (
        lambda: put(learning_rate=1e300), ValueError, "`learning_rate` inf"),
    "decay negative": (
        lambda: put(weight_decay=-0.1), ValueError, "`weight_decay` >= 0 -0.1"),
    "eps inf": (lambda: put(eps=INF), ValueError, "`eps` finite inf"),
    "other NaN": (
        lambda: put(own(adamx.sgd, 1.0, 0.9).init(P), momentum=NAN), ValueError,
        "`momentum` finite nan"),
    "other of 16 bits": (
        lambda: put(own(adamx.sgd, 1.0, 0.9).init(P), momentum=jnp.float16(0.9)),
        TypeError, "`momentum` float32 float16"),
    "vector": (
        lambda: put(learning_rate=jnp.ones(2)), ValueError, "`learning_rate` scalar (2,)"),
    "batch out of range": (
        lambda: put(BATCHED, b2=jnp.array([0.9, 0.9, 1.2])), ValueError, "`b2` [0, 1) 1.2"),
    "where unknown": (
        lambda: put(where="decoder", b2=0.9), ValueError, "`where` 'decoder' '(root)'"),
    "where no string": (lambda: put(where=0, b2=0.9), TypeError, "`where` int 0 string"),
    "no such state": (
        lambda: put(adamx.adamw(1e-3).init(P), b2=0.9), ValueError,
        "`state` with_hyperparams none adamx.with_hyperparams("),
    "a transformation": (
        lambda: put(optax.adam(1e-3), b2=0.9), ValueError, "`state` with_hyperparams none"),
}  # fmt: skip


@pytest.mark.parametrize("label", SETTING)
def test_setting(label):
    before = jax.tree.map(np.asarray, STATE)
    _check(*SETTING[label])
    jax.tree.map(np.testing.assert_array_equal, before, STATE)


def test_16_bits_and_ranges_inside_jit():
    setting = jax.jit(lambda state, b2: adamx.set_hyperparams(state, b2=b2))
    with pytest.raises(TypeError, match=r"`b2` must be at least float32"):
        setting(STATE, jnp.bfloat16(0.9))
    with pytest.raises(ValueError, match=r"`b2` must be in \[0, 1\), got 1.2"):
        jax.jit(lambda state: adamx.set_hyperparams(state, b2=1.2))(STATE)


def test_arguments_that_are_constants_together():
    def factory(learning_rate, b):
        if all(isinstance(x, jax.core.Tracer) for x in (learning_rate, b)):
            raise ValueError("one of the two, please")
        return adamx.sgd(learning_rate)

    with pytest.raises(TypeError, match=r"`learning_rate`, `b` .*static.*one of the"):
        adamx.with_hyperparams(factory, 0.1, 0.5)


def test_a_factory_that_warns_is_heard_once():
    def factory(learning_rate):
        warnings.warn("large", UserWarning, stacklevel=1)
        return adamx.sgd(learning_rate)

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        adamx.with_hyperparams(factory, 0.1)
    assert len(heard) == 1


def test_an_optimizer_that_is_no_tree():
    optimizer = nnx.Optimizer(
        nnx.Linear(2, 2, rngs=nnx.Rngs(0)), adamw(), wrt=nnx.Param
    )
    if jax.tree_util.all_leaves([optimizer]):  # before flax 0.11
        with pytest.raises(TypeError, match=r"`state`.*optimizer\.opt_state = "):
            adamx.set_hyperparams(optimizer, b2=0.9)
    else:
        new = adamx.set_hyperparams(optimizer, b2=0.5)
        assert adamx.read(new).more["b2"] == 0.5


def test_update():
    tx = adamw()
    with pytest.raises(TypeError, match=r"`state` must be the .*WithHyperparamsState"):
        tx.update(P, adamx.adamw(1e-3).init(P), P)
    with pytest.raises(
        ValueError, match=r"`state` must hold .*`hyperparams`.*tx\.init"
    ):
        adamw(static="eps").update(P, STATE, P)
    with pytest.raises(ValueError, match=r"`state` must hold \['b2'\] .*`scheduled`"):
        adamw(b2=lambda step: 0.9, static="b1").update(
            P, STATE._replace(hyperparams=adamw(b2=lambda step: 0.9, static="b1").init(
                P).hyperparams), P)  # fmt: skip
    with pytest.raises(ValueError, match="`params` must be the current parameters"):
        tx.update(P, STATE)
    # Not judged when it was set; the factory does at the next step outside jit.
    momentum = own(adamx.sgd, 1.0, 0.9)
    state = adamx.set_hyperparams(momentum.init(P), momentum=1.5)
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), got 1.5"):
        momentum.update(P, state, P)
