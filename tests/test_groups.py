"""`groups` and `freeze`: routing by path, equality with optimizers apart, the step."""

import dataclasses
import functools
import inspect
import re
from typing import Any

import flax.linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from tests.compiling import AS_USERS, as_users
from tests.helpers import TEMPORARIES, enable_x64
from tests.test_contract import random_like, signature
from tests.test_loss_scaling import assert_same_bits

RATE = optax.linear_schedule(1e-2, 1e-3, 10)


def make_params(dtype=jnp.float32):
    tree = {
        "embed": {"table": jnp.zeros((8, 4), dtype)},
        "layers": [
            {"kernel": jnp.zeros((4, 5), dtype), "bias": jnp.zeros(5, dtype)},
            {"kernel": jnp.zeros((5, 3), dtype), "bias": jnp.zeros(3, dtype)},
        ],
        "head": {"kernel": jnp.zeros((3, 2), dtype), "bias": jnp.zeros((), dtype)},
        "nothing": None,
        "empty": jnp.zeros((0, 3), dtype),
    }
    return random_like(tree, 0)


def rules():
    return [
        (r"embed", adamx.adamw(1e-3, weight_decay=0.0)),
        (r"(^|/)bias$", adamx.sgd(0.1, momentum=0.9)),
        (r"^layers/0/", adamx.freeze()),
        (r"^layers/", adamx.lion(RATE)),
    ]


def make_groups(**options):
    return adamx.groups(rules(), default=adamx.adam(5e-3), **options)


# By hand, from the rules.
MEMBERS = {
    "embed": ["embed/table"],
    "(^|/)bias$": ["layers/0/bias", "layers/1/bias", "head/bias"],
    "^layers/0/": ["layers/0/kernel"],
    "^layers/": ["layers/1/kernel"],
    "default": ["head/kernel", "empty"],
}


def flat(tree):
    names = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(getattr(e, "key", getattr(e, "idx", e))) for e in p): x
            for p, x in names}  # fmt: skip


def run(tx, params, seeds=range(4), step=None):
    step = jax.jit(step or update_and_apply(tx))
    state = tx.init(params)
    for seed in seeds:
        params, state = step(random_like(params, seed + 10), state, params)
    return params, state


def update_and_apply(tx):
    def step(g, state, params):
        updates, state = tx.update(g, state, params)
        return adamx.apply_updates(params, updates), state

    return step


# ---------------------------------------------------------------------------- routing


@pytest.mark.parametrize("is_fused", [False, True], ids=["update", "fused"])
def test_groups_are_separate_optimizers_on_separate_trees(is_fused):
    """Bit by bit, parameters and states, over several steps."""
    params, tx = make_params(), make_groups()
    step = adamx.fused(tx).step if is_fused else None
    trained, state = run(tx, params, step=step)
    whole = flat(trained)
    txs = {**dict(rules()), "default": adamx.adam(5e-3)}
    for name, members in MEMBERS.items():
        own = {k: v for k, v in flat(params).items() if k in members}
        alone, step = txs[name].init(own), jax.jit(update_and_apply(txs[name]))
        for seed in range(4):
            gradients = flat(random_like(params, seed + 10))
            own, alone = step({k: gradients[k] for k in members}, alone, own)
        assert_same_bits({k: whole[k] for k in members}, own)
        held = jax.tree.leaves(state.inner_states[name])
        # Dictionaries sort their keys; so do the leaves of the group's part.
        key = lambda x: (x.shape, np.asarray(x).tobytes())  # noqa: E731
        assert_same_bits(sorted(held, key=key), sorted(jax.tree.leaves(alone), key=key))


def test_the_first_rule_wins_and_matches_anywhere():
    params = {"encoder": {"bias": jnp.ones(1)}, "debias": jnp.ones(1)}
    tx = adamx.groups(
        [("bias", adamx.sgd(0.5)), ("encoder|debias", adamx.sgd(0.25))],
    )
    with pytest.raises(ValueError, match="earlier rules take: 'bias'"):
        tx.init(params)
    tx = adamx.groups([("^debias", adamx.sgd(0.25)), ("bias", adamx.sgd(0.5))])
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["encoder"]["bias"] == -0.5
    assert updates["debias"] == -0.25


def test_names_of_groups():
    compiled = re.compile("EMBED", re.IGNORECASE)
    params = {"embed": jnp.ones(1), "w": jnp.ones(1), "b": jnp.ones(1)}
    tx = adamx.groups([(compiled, adamx.sgd(RATE)), ("^w", adamx.adam(0.25))],
                      default=adamx.adamw(0.5))  # fmt: skip
    chain = optax.chain(adamx.clip_by_global_norm(1.0), tx)
    state = chain.init(params)
    _, state = jax.jit(chain.update)(params, state, params)
    reading = adamx.read(state)
    assert reading.learning_rate == {"(?i)EMBED": 0.01, "^w": 0.25, "default": 0.5}
    assert reading.scalars()["learning_rate/^w"] == 0.25
    assert reading.count == 1
    assert reading.grad_norm == pytest.approx(3**0.5)
    flags = re.ASCII | re.DOTALL | re.MULTILINE | re.VERBOSE
    tx = adamx.groups([(re.compile("w", flags), adamx.sgd(0.1))], adamx.sgd(0.1))
    assert set(jax.eval_shape(tx.init, params).inner_states) == {"(?amsx)w", "default"}


def test_without_rules_the_default_has_all():
    params = make_params()
    alone, _ = run(adamx.adam(1e-3), params)
    assert_same_bits(run(adamx.groups([], adamx.adam(1e-3)), params)[0], alone)


@pytest.mark.parametrize("params", [jnp.ones(3), [jnp.ones(3)], (jnp.ones(()),)])
def test_bare_arrays_and_sequences(params):
    tx = adamx.groups([(".", adamx.adam(0.5))])
    for step in (None, adamx.fused(tx).step):
        got, _ = run(tx, params, step=step)
        assert_same_bits(got, run(adamx.adam(0.5), params)[0])


def test_empty_trees_and_masked_ones_say_nothing():
    tx = make_groups()
    for params in ({}, None, {"a": optax.MaskedNode()}):
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates == params


# --------------------------------------------------------- what stands around, and in


def test_the_norm_before_the_groups_is_that_of_all_parameters():
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "c": jnp.array([12.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    by_group = [("a", adamx.sgd(1.0)), ("b", adamx.sgd(0.5)), ("c", adamx.freeze())]
    tx = optax.chain(adamx.clip_by_global_norm(1.3), adamx.groups(by_group))
    updates, state = tx.update(params, tx.init(zero), zero)
    np.testing.assert_allclose([updates[k][0] for k in "abc"], [-0.3, -0.2, 0.0], 1e-6)
    assert adamx.read(state).grad_norm == 13.0
    inside = [
        (name, optax.chain(adamx.clip_by_global_norm(1.0), tx)) for name, tx in by_group
    ]
    tx = adamx.groups(inside)
    updates, state = tx.update(params, tx.init(zero), zero)
    np.testing.assert_allclose([updates[k][0] for k in "abc"], [-1.0, -0.5, 0.0], 1e-6)
    assert adamx.read(state).grad_norm == {"a": 3.0, "b": 4.0, "c": 12.0}


def test_rate_decay_and_freezing_by_group():
    params = {"w": jnp.ones(1), "norm": jnp.ones(1), "old": jnp.array([-0.0])}
    tx = adamx.groups(
        [("old", adamx.freeze()), ("norm", adamx.adamw(0.1, weight_decay=0.0))],
        default=adamx.adamw(0.1, weight_decay=0.5),
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zero, tx.init(params), params)
    new = adamx.apply_updates(params, updates)
    assert new["norm"] == 1.0
    assert new["w"] == pytest.approx(0.95)
    assert_same_bits(new["old"], params["old"])
    weight_decay = adamx.read(state).weight_decay
    assert weight_decay == {"norm": 0.0, "default": 0.5}


def test_groups_nest_and_sit_in_optax_wrappers():
    params = make_params()
    inner = adamx.groups([("bias", adamx.sgd(0.5))], default=adamx.adam(1e-2))
    outer = adamx.groups([("^layers/", inner)], default=adamx.freeze())
    state = outer.init(params)
    assert adamx.read(state).learning_rate == {
        "^layers//bias": 0.5,
        "^layers//default": pytest.approx(1e-2),
    }
    plain, _ = run(outer, params)
    fused, _ = run(outer, params, step=adamx.fused(outer).step)
    assert_same_bits(plain, fused)
    assert_same_bits(plain["head"], params["head"])
    for wrapped in (
        optax.masked(inner, lambda p: jax.tree.map(lambda x: x.ndim > 0, p)),
        optax.MultiSteps(inner, 2).gradient_transformation(),
        optax.partition({"x": inner}, "x"),
        optax.apply_if_finite(inner, 2),
        optax.inject_hyperparams(
            lambda rate: adamx.groups([("bias", adamx.sgd(rate))], adamx.adam(rate))
        )(rate=RATE),
        adamx.loss_scaling(inner, initial_scale=1.0),
    ):
        state = jax.eval_shape(wrapped.init, params)
        _, after = jax.eval_shape(wrapped.update, params, state, params)
        assert signature(after)[0] == signature(state)[0]


def test_wrappers_inside_keep_their_fast_lane():
    """One conditional around parameters and state, none around updates."""
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones(4)}
    called = []

    def spied():
        tx = adamx.loss_scaling(adamx.adam(1e-2), initial_scale=2.0)
        own = adamx._steps.step_of(tx)

        def step(*args, **extra):
            called.append(args[0])
            return own(*args, **extra)

        return adamx._steps.with_step(tx.init, lambda *a, **k: tx.update(*a, **k), step)

    tx = adamx.groups([("a", spied())], default=adamx.sgd(0.5))
    init, step = adamx.fused(tx)
    new, state = jax.jit(step)(params, init(params), params)
    assert isinstance(called[0]["b"], optax.MaskedNode)
    updates, after = jax.jit(tx.update)(params, tx.init(params), params)
    assert_same_bits(new, adamx.apply_updates(params, updates))
    assert_same_bits(state, after)


def test_extra_arguments_go_to_all_and_trees_of_them_are_masked():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    tx = adamx.groups([("a", spy)], default=spy)
    loss = lambda p: 0.0  # noqa: E731
    extra = {"value": jnp.ones(()), "like": {"a": 1, "b": 2}, "loss_fn": loss}
    tx.update(params, tx.init(params), params, **extra)
    adamx.fused(tx).step(params, tx.init(params), params, **extra)
    for first, second in (seen[:2], seen[2:]):
        assert first["like"] == {"a": 1, "b": optax.MaskedNode()}
        assert second["like"] == {"a": optax.MaskedNode(), "b": 2}
        assert first["value"] is second["value"] is extra["value"]
        assert first["loss_fn"] is loss


# -------------------------------------------------------------- containers of models


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["embed", "layer", "function"],
    meta_fields=["name"],
)
@dataclasses.dataclass
class Module:
    embed: Any
    layer: Any
    function: Any = None
    name: str = "model"


def test_registered_dataclasses_with_none_leaves():
    """As `equinox.filter` leaves a module: None where no array is."""
    params = Module(jnp.ones((3, 2)), {"w": jnp.ones(2), "static": None})
    tx = adamx.groups([("^embed$", adamx.freeze())], default=adamx.adam(0.5))
    new, state = run(tx, params, range(2))
    assert_same_bits(new.embed, params.embed)
    assert np.all(np.asarray(new.layer["w"]) != 1.0)
    # A whole module for parameters: what has no gradient may be anything.
    whole = dataclasses.replace(params, function=jnp.ones(7))
    updates, _ = tx.update(params, state, whole)
    assert updates.function is None
    assert signature(updates) == signature(params)
    stepped, _ = adamx.fused(tx).step(params, state, whole)
    assert_same_bits(stepped.function, whole.function)


def test_equinox_modules():
    import equinox as eqx

    model = eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    tx = adamx.groups(
        [(r"layers/0/", adamx.freeze()), ("bias", adamx.sgd(0.5))],
        default=adamx.adamw(0.5, mask=adamx.decay_mask()),
    )
    state = tx.init(params)
    arrays = eqx.filter(model, eqx.is_array)
    updates, state = jax.jit(tx.update)(params, state, arrays)
    whole, _ = jax.eval_shape(lambda g, s: tx.update(g, s, model), params, state)
    assert jax.tree.structure(whole) == jax.tree.structure(updates)
    new = eqx.apply_updates(model, updates)
    assert_same_bits(new.layers[0].weight, model.layers[0].weight)
    assert not np.array_equal(new.layers[1].bias, model.layers[1].bias)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)


def test_nnx():
    model = Net(nnx.Rngs(0))
    tx = adamx.groups(
        [(r"^embed/embedding$", adamx.freeze()), (r"^head/bias$", adamx.sgd(0.5))],
        default=adamx.adam(0.5),
    )
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        loss = lambda model: model.head(model.embed(jnp.arange(5))).sum()  # noqa: E731
        takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters
        optimizer.update(*[model] * takes_model, nnx.grad(loss)(model))

    train(model, optimizer)
    after = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    assert jax.tree.leaves(moved) == [False, True, True]
    assert adamx.read(optimizer).learning_rate == {"^head/bias$": 0.5, "default": 0.5}


def test_linen_and_stacked_layers():
    params = flax.linen.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    params = {"params": {"head": params["params"],
                         "layers": {"kernel": jnp.ones((2, 3, 3)),
                                    "scale": jnp.ones((2, 3))}}}  # fmt: skip
    mask = adamx.decay_mask(stacked="^params/layers/")
    tx = adamx.groups(
        [(r"layers/", adamx.adamw(0.5, weight_decay=0.5, mask=mask))],
        default=adamx.freeze(),
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
    moved = {name: bool(np.any(u)) for name, u in flat(updates).items()}
    assert moved == {
        "params/head/bias": False, "params/head/kernel": False,
        "params/layers/kernel": True, "params/layers/scale": False}  # fmt: skip


# ----------------------------------------------------------------- what all must keep


@pytest.mark.parametrize("is_fused", [False, True], ids=["update", "fused"])
def test_jit_scan_donation_and_stable_state(is_fused):
    params, tx = make_params(), make_groups()
    step = adamx.fused(tx).step if is_fused else update_and_apply(tx)
    init = tx.init
    state = init(params)
    before, traces = signature(state), []

    def counted(g, state, params):
        traces.append(1)
        return step(g, state, params)

    jitted = jax.jit(counted, donate_argnums=(1, 2))
    g = random_like(params, 1)
    now = jax.tree.map(jnp.copy, params)
    for _ in range(3):
        now, state = jitted(g, state, now)
    assert signature(state) == before
    assert len(traces) == 1

    def body(carry, _):
        return step(g, carry[1], carry[0]), None

    (scanned, _), _ = jax.lax.scan(body, (params, init(params)), None, 3)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(now), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    out, _ = jax.jit(jax.vmap(lambda p: step(g, init(p), p)))(many)
    assert out["head"]["kernel"].shape == (2, 3, 2)


def test_map_params_and_eval_shape():
    params, tx = make_params(), make_groups()
    state = tx.init(params)
    assert_same_bits(optax.tree.map_params(tx, lambda x: x, state), state)
    is_masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    named = optax.tree.map_params(
        tx, lambda x, name: name, state, jax.tree.map(lambda p: "param", params),
        transform_non_params=lambda _: "other", is_leaf=is_masked)  # fmt: skip
    assert named.inner_states["embed"].inner_state[0].mu["embed"]["table"] == "param"
    abstract = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)


def test_checkpoints_of_flax():
    params, tx = make_params(), make_groups()
    params, state = run(tx, params, range(2))
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(tx.init(params), data)
    assert_same_bits(restored, state)
    g = random_like(params, 7)
    update = jax.jit(tx.update)
    assert_same_bits(update(g, restored, params), update(g, state, params))


@as_users
def test_eight_devices():
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    params, tx = make_params(), make_groups()
    params["embed"]["table"] = jnp.ones((16, 4))
    g = random_like(params, 3)
    spread = lambda x: jax.device_put(  # noqa: E731
        x, NamedSharding(mesh, PartitionSpec("x" if x.shape[:1] == (16,) else None))
        if x.ndim else NamedSharding(mesh, PartitionSpec()))  # fmt: skip
    step = jax.jit(adamx.fused(tx).step)
    one = step(g, tx.init(params), params)
    many_params = jax.tree.map(spread, params)
    many = step(jax.tree.map(spread, g), tx.init(many_params), many_params)
    assert_same_bits(many[0], one[0])


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.bfloat16], ids=str
)
def test_half_precision(dtype):
    params = make_params(dtype)
    tx = make_groups()
    update = jax.jit(tx.update)
    updates, _ = update(random_like(params, 1), tx.init(params), params)
    assert signature(updates) == signature(params)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    updates, _ = update(wide, tx.init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}


def test_float64():
    with enable_x64():
        params = make_params(jnp.float64)
        new, state = run(make_groups(), params, range(2))
        assert signature(new) == signature(params)
        assert adamx.read(state).learning_rate["default"] == 5e-3


# ------------------------------------------------------------------------ what it costs

SHAPES = [(16, 8), (8,), (8, 24), (24,), (8,), (8, 8)] * 3


def compiled(tx):
    """The donated step on many leaves, one fourth of them in each group."""
    params = {f"{'abcd'[i % 4]}{i}": jnp.ones(s) for i, s in enumerate(SHAPES)}

    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return adamx.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(params, tx.init(params), params).compile(AS_USERS)


def count(program, operation):
    """How many of them work on arrays, not on scalars."""
    return len(re.findall(rf"= f32\[\d\S+ {operation}\(", program.as_text()))


def test_four_groups_compile_to_as_many_loops_as_one_optimizer():
    """The arrays are touched by the same fusions; per group a few scalars are new."""
    one = compiled(adamx.adamw(1e-3))
    rates = {"^a": 1e-3, "^b": 2e-3, "^c": 3e-3, "^d": 4e-3}
    four = compiled(adamx.groups([(k, adamx.adamw(r)) for k, r in rates.items()]))
    size = sum(4 * int(np.prod(s)) for s in SHAPES)
    temporaries = [p.memory_analysis().temp_size_in_bytes / size for p in (one, four)]
    assert temporaries[1] <= temporaries[0] + max(TEMPORARIES, 0.1)

    def big(program):
        return len(re.findall(r"fusion\.?\d* = \(?f32\[\d", program.as_text()))

    assert big(one) >= len(SHAPES)
    assert big(four) == big(one)
    for operation in ("copy", "while", "conditional"):
        assert count(four, operation) == count(one, operation)


# ----------------------------------------------------------------------------- freeze


@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64], ids=str
)
def test_frozen_parameters_stay_to_the_last_bit(dtype):
    params = {"a": jnp.array([-0.0, 0.0, 1.5, jnp.inf, jnp.nan], dtype), "e": None}
    if dtype == jnp.complex64:
        params["a"] = jax.lax.complex(
            jnp.array([-0.0, 0.0, -0.0]), jnp.array([0.0, -0.0, -0.0])
        )
    g = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    tx = adamx.freeze()
    state = tx.init(params)
    assert jax.tree.leaves(state) == []
    for update in (tx.update, jax.jit(tx.update)):
        updates, after = update(g, state, params)
        assert after == state == adamx.FreezeState()
        assert updates["a"].dtype == dtype
        assert_same_bits(adamx.apply_updates(params, updates), params)
    assert adamx.fused(tx).step(g, state, params)[0] is params


def test_frozen_updates_have_the_wider_dtype():
    tx = adamx.freeze()
    half, single = jnp.ones(2, jnp.bfloat16), jnp.ones(2)
    assert tx.update(half, tx.init(single), single)[0].dtype == jnp.float32
    assert tx.update(single, tx.init(half), half)[0].dtype == jnp.float32
    assert tx.update(half, tx.init(half))[0].dtype == jnp.bfloat16


def test_frozen_integers():
    params = {"n": jnp.arange(3), "w": jnp.ones(2)}
    loss = lambda p: p["w"].sum()  # noqa: E731
    g = jax.grad(loss, allow_int=True)(params)
    tx = adamx.groups([("n", adamx.freeze())], default=adamx.sgd(0.5))
    updates, _ = tx.update(g, tx.init(params), params)
    new = adamx.apply_updates(params, updates)
    assert_same_bits(new["n"], params["n"])
    assert new["w"].tolist() == [0.5, 0.5]


def test_freeze_has_no_numbers_to_read():
    assert adamx.read(adamx.freeze().init(jnp.ones(2))) == adamx.Reading()
