"""Bad input: each case raises, and the message names what, expected, got and remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.optimizers_table import NAMES

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
NAN, INF = float("nan"), float("inf")


def _gradients(**changes):
    tree = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    return {"dense": {**tree, **changes}}


def _update(tx, gradients, params=PARAMS, state=None):
    return tx.update(gradients, tx.init(PARAMS) if state is None else state, params)


class _Opaque:
    pass


# label: (call, exception, what the message must contain, in any order)
CONSTRUCTION = {
    "b1 above one": (lambda: adamx.adam(1e-3, b1=1.5), ValueError, "`b1` [0, 1) 1.5"),
    "b1 one": (lambda: adamx.adam(1e-3, b1=1.0), ValueError, "`b1` [0, 1) 1.0"),
    "b1 negative": (lambda: adamx.nadam(1e-3, b1=-0.1), ValueError, "`b1` -0.1"),
    "b2 negative": (lambda: adamx.adamw(1e-3, b2=-1), ValueError, "`b2` [0, 1) -1.0"),
    "b2 above one": (lambda: adamx.scale_by_adam(b2=1.2), ValueError, "`b2` 1.2 0.999"),
    "b2 NaN": (lambda: adamx.amsgrad(1e-3, b2=NAN), ValueError, "`b2` nan"),
    "b2 inf": (lambda: adamx.adamax(1e-3, b2=INF), ValueError, "`b2` inf"),
    "decay of rmsprop": (lambda: adamx.rmsprop(0.1, 1.0), ValueError, "`decay` 1.0"),
    "momentum one": (lambda: adamx.sgd(0.1, 1.0), ValueError, "`decay` [0, 1) 1.0"),
    "momentum two": (lambda: adamx.momentum(0.1, 2), ValueError, "`decay` 2.0"),
    "b1 as NumPy": (
        lambda: adamx.adam(1e-3, b1=np.float32(1.5)), ValueError, "`b1` 1.5"),
    "b2 as 0-d array": (
        lambda: adamx.adam(1e-3, b2=jnp.array(1.5)), ValueError, "`b2` 1.5"),
    "eps negative": (lambda: adamx.adam(1e-3, eps=-1e-8), ValueError, "`eps` >= 0 1e-8"),
    "eps NaN": (lambda: adamx.adamw(1e-3, eps=NAN), ValueError, "`eps` finite nan"),
    "eps inf": (lambda: adamx.adamax(1e-3, eps=INF), ValueError, "`eps` finite inf"),
    "eps_root negative": (
        lambda: adamx.nadamw(1e-3, eps_root=-1), ValueError, "`eps_root` -1.0"),
    "eps of rmsprop": (lambda: adamx.rmsprop(0.1, eps=-1), ValueError, "`eps` -1.0"),
    "initial_scale": (
        lambda: adamx.rmsprop(0.1, initial_scale=-1), ValueError, "`initial_scale`"),
    "rate negative": (lambda: adamx.adam(-1e-3), ValueError, "`learning_rate` -0.001"),
    "rate NaN": (lambda: adamx.sgd(NAN), ValueError, "`learning_rate` nan"),
    "rate inf": (lambda: adamx.rmsprop(INF), ValueError, "`learning_rate` inf"),
    "rate as NumPy": (
        lambda: adamx.adam(np.array(-1.0)), ValueError, "`learning_rate` -1.0"),
    "rate as 0-d array": (
        lambda: adamx.adam(jnp.array(-1.0)), ValueError, "`learning_rate` -1.0"),
    "rate as vector": (
        lambda: adamx.adam(jnp.ones(3)), ValueError, "`learning_rate` shape (3,)"),
    "rate as string": (
        lambda: adamx.adam("1e-3"), TypeError, "`learning_rate` '1e-3' number"),
    "rate None": (lambda: adamx.scale_by_adam(None), TypeError, "`b1` NoneType"),
    "rate as flag": (lambda: adamx.adam(True), TypeError, "`learning_rate` flag"),
    "rate as tree": (lambda: adamx.adam({"a": 1.0}), TypeError, "`learning_rate` dict"),
    "rate complex": (
        lambda: adamx.adam(np.complex64(1j)), TypeError, "`learning_rate` 1j"),
    "rate of complex dtype": (
        lambda: adamx.adam(jnp.array(1j)), TypeError, "`learning_rate` 1j real"),
    "params for a rate": (lambda: adamx.adamw(PARAMS), TypeError, "`learning_rate`"),
    "b1 as string": (lambda: adamx.adam(1e-3, "0.9"), TypeError, "`b1` '0.9'"),
    "decay negative": (
        lambda: adamx.adamw(1e-3, weight_decay=-0.1), ValueError, "`weight_decay` -0.1"),
    "decay as NumPy": (
        lambda: adamx.adamw(1e-3, weight_decay=np.float64(-1)), ValueError,
        "`weight_decay` -1.0"),
    "decay as 0-d array": (
        lambda: adamx.adam_l2(1e-3, weight_decay=jnp.array(-1.0)), ValueError,
        "`weight_decay` -1.0"),
    "decay NaN": (
        lambda: adamx.add_decoupled_weight_decay(NAN), ValueError, "`weight_decay` nan"),
    "decay as string": (
        lambda: adamx.add_decayed_weights("no"), TypeError, "`weight_decay` 'no'"),
    "mask for a decay": (
        lambda: adamx.add_decayed_weights({"a": True}), TypeError, "`weight_decay`"),
    "decay of nadamw": (
        lambda: adamx.nadamw(1e-3, weight_decay=-1.0), ValueError,
        "`weight_decay` >= 0 -1.0"),
    "max_norm negative": (
        lambda: adamx.clip_by_global_norm(-1.0), ValueError, "`max_norm` -1.0"),
    "max_norm NaN": (
        lambda: adamx.clip_by_global_norm(NAN), ValueError, "`max_norm` nan"),
    "max_norm a transformation": (
        lambda: adamx.clip_by_global_norm(adamx.adam(1e-3)), TypeError, "`max_norm`"),
    "max_norm a schedule": (
        lambda: adamx.clip_by_global_norm(lambda step: 1.0), TypeError,
        "`max_norm` schedule"),
    "nesterov as number": (
        lambda: adamx.adam(1e-3, nesterov=1), TypeError, "`nesterov` True or False"),
    "nesterov as string": (
        lambda: adamx.sgd(0.1, 0.9, "yes"), TypeError, "`nesterov` 'yes'"),
    "centered None": (
        lambda: adamx.rmsprop(0.1, centered=None), TypeError, "`centered` NoneType"),
    "correction as number": (
        lambda: adamx.amsgrad(0.1, bias_correction_nu=0), TypeError,
        "`bias_correction_nu`"),
    "maximum_of": (
        lambda: adamx.amsgrad(0.1, maximum_of="v"), ValueError,
        "`maximum_of` 'nu_hat' 'nu' 'v'"),
    "mu_dtype integer": (
        lambda: adamx.adam(1e-3, mu_dtype=jnp.int8), ValueError, "`mu_dtype` int8"),
    "mu_dtype unknown": (
        lambda: adamx.adam(1e-3, mu_dtype="float33"), TypeError, "`mu_dtype` 'float33'"),
    "mu_dtype a NumPy number": (
        lambda: adamx.adopt(1e-3, 0.9, 0.999, 1e-8, np.float32(0)), TypeError,
        "`mu_dtype` 0.0 jnp.float32"),
    "nu_dtype an array": (
        lambda: adamx.adam(1e-3, nu_dtype=jnp.ones(2)), TypeError, "`nu_dtype` (2,)"),
    "nu_dtype complex": (
        lambda: adamx.adam(1e-3, nu_dtype=jnp.complex64), ValueError,
        "`nu_dtype` complex64 float32"),
    "accumulator_dtype integer": (
        lambda: adamx.sgd(0.1, 0.9, accumulator_dtype=int), ValueError,
        "`accumulator_dtype` int"),
    "traced bfloat16 b2": (
        lambda: jax.jit(lambda b: adamx.adam(1e-3, b2=b).init(PARAMS))(
            jnp.bfloat16(0.999)
        ), TypeError, "`b2` bfloat16 float32 hyperparam_dtype"),
    "traced float16 b1": (
        lambda: jax.jit(lambda b: adamx.adamw(1e-3, b1=b).init(PARAMS))(
            jnp.float16(0.9)
        ), TypeError, "`b1` float16"),
    "float16 eps": (
        lambda: adamx.adam(1e-3, eps=jnp.float16(1e-8)), TypeError, "`eps` float16"),
    "injected with bfloat16 parameters": (
        lambda: optax.inject_hyperparams(adamx.adam)(1e-3).init(
            jnp.ones(3, jnp.bfloat16)
        ), TypeError, "`b1` bfloat16 hyperparam_dtype=jnp.float32"),
    "traced rate of rank one": (
        lambda: jax.jit(lambda r: adamx.adam(r).init(PARAMS))(jnp.ones(2)), ValueError,
        "`learning_rate` shape (2,)"),
    "schedule that returns a vector": (
        lambda: adamx.adam(lambda step: jnp.ones(2)).init(PARAMS), ValueError,
        "`learning_rate` scalar (2,)"),
    "integer parameters": (
        lambda: adamx.adam(1e-3).init({"table": {"ids": jnp.arange(3)}}), TypeError,
        "'table/ids' int32 optax.masked"),
    "integer parameters for decay": (
        lambda: adamx.add_decayed_weights(0.1).init([jnp.arange(3)]), TypeError,
        "'0' int32"),
    "boolean parameters": (
        lambda: adamx.sgd(0.1, 0.9).init({"m": jnp.ones(2, bool)}), TypeError, "'m' bool"),
    "functions among the parameters": (
        lambda: adamx.adam(1e-3).init({"act": jax.nn.relu}), TypeError, "'act' filter"),
    "objects among the parameters": (
        lambda: adamx.adam(1e-3).init({"x": _Opaque()}), TypeError, "'x' _Opaque"),
    "mask with an unknown name": (
        lambda: adamx.adamw(1e-3, mask={"dens": True}).init(PARAMS), ValueError,
        "`mask` 'dens' prefix"),
    "mask without a name": (
        lambda: adamx.adamw(1e-3, mask={"dense": {"kernel": True}}).init(PARAMS),
        ValueError, "`mask` 'dense/bias'"),
    "mask deeper than the parameters": (
        lambda: adamx.adamw(1e-3, mask={"dense": {"kernel": [True], "bias": True}}).init(
            PARAMS
        ), ValueError, "`mask` 'dense/kernel/0'"),
    "mask of other containers": (
        lambda: adamx.adamw(1e-3, mask=[True]).init(PARAMS), ValueError, "`mask`"),
    "mask of strings": (
        lambda: adamx.adamw(1e-3, mask={"dense": "yes"}).init(PARAMS), TypeError,
        "`mask` 'dense' 'yes'"),
    "mask function of one leaf": (
        lambda: adamx.adamw(1e-3, mask=lambda x: x.ndim > 1).init(PARAMS), TypeError,
        "`mask` whole tree AttributeError jax.tree.map"),
    "mask of vectors": (
        lambda: adamx.adamw(
            1e-3, mask={"dense": {"kernel": jnp.ones((3, 2), bool), "bias": True}}
        ).init(PARAMS), TypeError, "`mask` 'dense/kernel' (3, 2)"),
    "mask function of another tree": (
        lambda: adamx.adamw(1e-3, mask=lambda p: {"other": True}).init(PARAMS),
        ValueError, "`mask` 'other'"),
    "rounding": (
        lambda: adamx.apply_updates(PARAMS, PARAMS, rounding="up"), ValueError,
        "`rounding` 'nearest' 'up'"),
}  # fmt: skip

UPDATE = {
    "missing parameters": (
        lambda tx: _update(tx, _gradients(), params=None), ValueError,
        "`params` None tx.update(gradients, state, params)"),
    "gradient without a leaf": (
        lambda tx: _update(tx, {"dense": {"kernel": jnp.ones((3, 2))}}), ValueError,
        "gradient structure 'dense/bias'"),
    "gradient with another leaf": (
        lambda tx: _update(tx, _gradients(scale=jnp.ones(2))), ValueError,
        "gradient unexpected 'dense/scale'"),
    "gradient None": (
        lambda tx: _update(tx, _gradients(bias=None)), ValueError, "'dense/bias'"),
    "gradient in other containers": (
        lambda tx: _update(tx, [jnp.ones((3, 2)), jnp.ones(2)]), ValueError, "gradient"),
    "gradient of another shape": (
        lambda tx: _update(tx, _gradients(kernel=jnp.ones((2, 3)))), ValueError,
        "'dense/kernel' (3, 2) (2, 3)"),
    "gradient that would broadcast": (
        lambda tx: _update(tx, _gradients(bias=jnp.ones(1))), ValueError,
        "'dense/bias' (2,) (1,) broadcast"),
    "scalar gradient": (
        lambda tx: _update(tx, _gradients(bias=jnp.ones(()))), ValueError, "'dense/bias'"),
    "gradient that is larger": (
        lambda tx: _update(tx, _gradients(bias=jnp.ones((4, 2)))), ValueError,
        "'dense/bias' (4, 2)"),
    "integer gradient": (
        lambda tx: _update(tx, _gradients(bias=jnp.arange(2))), TypeError,
        "gradient 'dense/bias' int32"),
    "another optimizer's state": (
        lambda tx: _update(tx, _gradients(), state=optax.adamw(1e-3).init(PARAMS)),
        TypeError, "`state` ScaleByAdamState another optimizer"),
    "state and parameters swapped": (
        lambda tx: tx.update(_gradients(), (PARAMS,) * 3, tx.init(PARAMS)), TypeError,
        "`state` swapped"),
    "state and parameters swapped outright": (
        lambda tx: tx.update(_gradients(), PARAMS, tx.init(PARAMS)), TypeError,
        "`state` tuple of 3 states swapped builtins.dict"),
    "parameters of another structure": (
        lambda tx: _update(tx, _gradients(), params={"dense": jnp.ones(2)}), ValueError,
        "parameters 'dense"),
    "parameters of another shape": (
        lambda tx: _update(tx, _gradients(), params=_gradients(bias=jnp.ones(3))),
        ValueError, "'dense/bias' (3,) (2,)"),
}  # fmt: skip


def _check(call, exception, expected):
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    missing = [part for part in _parts(expected) if part not in message]
    assert not missing, f"{missing} not in: {message}"
    assert len(message) > 60, f"no remedy: {message}"
    assert caught.traceback[-1].path.parent.name != "jax"


def _parts(expected):
    """Words, except that a quoted or parenthesised text stays whole."""
    for shape in ("(3, 2)", "(2, 3)", "(4, 2)", "[0, 1)", "tx.update(gradients, "):
        expected = expected.replace(shape, shape.replace(" ", "\0"))
    return [part.replace("\0", " ") for part in expected.split()]


@pytest.mark.parametrize("label", CONSTRUCTION)
def test_construction(label):
    _check(*CONSTRUCTION[label])


@pytest.mark.parametrize("label", UPDATE)
@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
def test_update(label, is_jitted):
    call, exception, expected = UPDATE[label]
    tx = adamx.adamw(1e-3)
    if is_jitted:
        update = jax.jit(tx.update)
        tx = optax.GradientTransformation(tx.init, update)
    _check(lambda: call(tx), exception, expected)


def test_sgd_takes_no_state_with_a_momentum():
    tx, params = adamx.sgd(0.1), {"a": jnp.ones(2)}
    for other in (adamx.sgd(0.1, 0.9), adamx.adam(0.1), optax.adam(0.1)):
        with pytest.raises(TypeError, match=r"`state` must be.*EmptyState.*momentum"):
            tx.update(params, other.init(params), params)


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row.id)
def test_every_optimizer_refuses_a_foreign_state_and_a_broadcast(row):
    tx = row.make()
    params = {"w": jnp.ones(3)}
    foreign = jax.tree.map(lambda x: x, optax.adafactor(1e-3).init(params))
    with pytest.raises((TypeError, ValueError)):
        tx.update(params, foreign, params)
    with pytest.raises(ValueError, match=r"'w' must have shape \(3,\)"):
        tx.update({"w": jnp.ones(1)}, tx.init(params), params)


def test_apply_updates_checks_shapes_and_structure():
    for updates in (_gradients(bias=jnp.ones(1)), {"dense": {}}, [jnp.ones(2)]):
        with pytest.raises(ValueError, match="updates"):
            adamx.apply_updates(PARAMS, updates)


def test_nothing_changes_after_an_error():
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
    state = tx.init(PARAMS)
    _, state = tx.update(_gradients(), state, PARAMS)
    before = jax.tree.map(np.array, state)
    step = jax.jit(tx.update, donate_argnums=1)
    with pytest.raises(ValueError, match="dense/bias"):
        step(_gradients(bias=jnp.ones(1)), state, PARAMS)
    after = jax.tree.map(np.array, state)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    step(_gradients(), state, PARAMS)  # and the state is still good


def test_traced_hyperparameters_pass_unchecked():
    @jax.jit
    def first(rate, b1, b2, eps, decay):
        tx = adamx.adamw(rate, b1, b2, eps, weight_decay=decay)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]

    first(-1.0, 0.9, 0.99, 1e-8, -1.0)  # no error: the values are not known


def test_a_second_moment_that_would_stall_is_announced():
    with pytest.warns(UserWarning, match="`nu_dtype`=bfloat16 cannot follow"):
        adamx.adam(1e-3, nu_dtype=jnp.bfloat16)
    with pytest.warns(UserWarning, match="with decay=0.9999"):
        adamx.rmsprop(1e-3, 0.9999, nu_dtype=jnp.bfloat16)
    with pytest.warns(UserWarning, match="`nu_dtype`=float16 overflows for .* 256"):
        adamx.adam(1e-3, b2=0.9, nu_dtype=jnp.float16)


def test_a_real_moment_refuses_a_complex_gradient():
    tx = adamx.adam(1e-3, mu_dtype=jnp.float32)
    params = {"z": jnp.ones(2, jnp.complex64)}
    with pytest.raises(ValueError, match=r"`mu_dtype` must be complex.*'z'"):
        tx.update(params, tx.init(params), params)


def test_there_are_enough_cases():
    assert len(CONSTRUCTION) + len(UPDATE) >= 60
