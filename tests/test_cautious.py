"""`cautious`: its mask and scale, the decay it leaves alone, whatever it wraps."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx.compose._cautious import cautious_leaf
from tests.helpers import enable_x64, run_updates, some
from tests.optimizers_table import LR, NAMES
from tests.reference_cautious import cautious_adamw
from tests.test_contract import assert_close, make_params, random_like, signature, steps

ADAM = {"b1": 0.83, "b2": 0.97, "eps": 1e-3}
CHOSEN = ("sgd", "momentum", "rmsprop", "adam_l2", "adamw", "lion", "sophia_h")
WRAPPED = [row for row in NAMES if row.name in CHOSEN]
by_name = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=() if row.name in ("adamw", "lion") else pytest.mark.slow,
            id=row.name,
        )
        for row in WRAPPED
    ],
)


def _gradients(number, size=515, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((number, size)) * 10.0 ** rng.uniform(-4, 2, size)
    out[:, ::64] = 0.0
    return out.astype(dtype)


# ------------------------------------------------------------- against the reference


@pytest.mark.parametrize(
    ("nested", "is_independent"),
    some(
        itertools.product(
            ["bare", "chain", "masked", "partition", "inject"], [False, True]
        ),
        *[("bare", False), ("bare", True), ("partition", True), ("inject", False)],
    ),
)
def test_cautious_adamw_against_float64(nested, is_independent):
    """Decay stays unmasked however the decay stage is nested."""
    kwargs = {**ADAM, "weight_decay": 0.3, "independent_decay": is_independent}
    tx = {
        "bare": lambda: adamx.adamw(LR, **kwargs),
        "chain": lambda: optax.chain(optax.identity(), adamx.adamw(LR, **kwargs)),
        "masked": lambda: optax.masked(adamx.adamw(LR, **kwargs), True),
        "partition": lambda: optax.partition({"a": adamx.adamw(LR, **kwargs)}, "a"),
        "inject": lambda: optax.inject_hyperparams(adamx.adamw)(LR, **kwargs),
    }[nested]()
    gradients = _gradients(100)
    params = np.random.default_rng(1).standard_normal(515).astype(np.float32)
    updates, trajectory = run_updates(adamx.cautious(tx), gradients, params)
    bar = 2e-5 if nested == "inject" else 1e-6  # float32(0.97)
    wants = cautious_adamw(gradients, params, LR, trajectory=trajectory, **kwargs)
    for t, want in enumerate(wants, start=1):
        error = np.abs(updates[t - 1] - want) / np.maximum(LR, np.abs(want))
        assert np.max(error) <= bar, f"t={t}"


def test_x64_is_exact():
    kwargs = {**ADAM, "weight_decay": 0.3}
    gradients = _gradients(200, dtype=np.float64)
    with enable_x64():
        tx = adamx.cautious(adamx.adamw(LR, **kwargs))
        updates, _ = run_updates(tx, gradients, np.ones(515))
    for got, want in zip(
        updates, cautious_adamw(gradients, np.ones(515), LR, **kwargs), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_the_scale_is_by_leaf():
    """Dropped elements of one leaf do not enlarge another."""
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4), "c": jnp.zeros(())}
    tx = adamx.cautious(adamx.sgd(1.0, momentum=0.5))
    first = {"a": jnp.ones(4), "b": jnp.ones(4), "c": jnp.ones(())}
    _, state = tx.update(first, tx.init(params), params)
    turned = {**first, "a": jnp.array([1.0, 1.0, -0.25, -0.25])}
    updates, state = tx.update(turned, state, params)
    np.testing.assert_allclose(updates["a"], np.array([-1.5, -1.5, 0, 0]) * 4 / 3)
    np.testing.assert_allclose(updates["b"], -1.5 * 4 / 5)
    np.testing.assert_allclose(updates["c"], -1.5 / 2)
    assert float(state.kept_fraction) == pytest.approx(7 / 9)


# ----------------------------------------------------------------- where the mask acts


def _turned(tx):
    """A step whose first two elements' momentum points against their gradient."""
    params = jnp.array([10.0, -10.0, 10.0, -10.0])
    tx = adamx.cautious(tx)
    _, state = tx.update(jnp.ones(4), tx.init(params), params)
    gradient = jnp.array([-0.01, -0.01, 1.0, 1.0])
    return tx.update(gradient, state, params)[0]


def test_optax_decay_is_masked_too_ours_is_not():
    ours = _turned(adamx.adamw(0.1, weight_decay=0.5))
    np.testing.assert_allclose(ours[:2], [-0.5, 0.5], rtol=1e-6)
    theirs = _turned(optax.adamw(0.1, weight_decay=0.5))
    assert float(theirs[0]) == 0.0  # decay and momentum against the gradient
    assert float(theirs[1]) == pytest.approx(4 / 4 * 0.5, abs=0.2)  # decay won: along


def test_l2_decay_is_no_direction():
    """It joins the gradient before the moments; what is masked is the step."""
    updates = _turned(adamx.adam_l2(0.1, weight_decay=0.0))
    assert updates[:2].tolist() == [0.0, 0.0]
    own = optax.chain(
        adamx.add_decoupled_weight_decay(0.0),
        adamx.scale_by_adam(),
        adamx.scale_by_learning_rate(0.1),
    )
    np.testing.assert_array_equal(_turned(own), updates)


def test_l2_decay_is_no_direction_in_16_bits():
    """There the stage sees the gradient widened: no longer the same array."""
    tx = adamx.cautious(adamx.adam_l2(0.1))
    params = jnp.ones(4, jnp.bfloat16)
    _, state = tx.update(params, tx.init(params), params)
    gradient = jnp.array([-0.01, -0.01, 1.0, 1.0], jnp.bfloat16)
    updates, _ = tx.update(gradient, state, params)
    assert updates[:2].tolist() == [0.0, 0.0]


def test_two_decay_stages_mask_once():
    one = _turned(adamx.adamw(0.1, weight_decay=0.0))
    twice = optax.chain(
        adamx.adamw(0.1, weight_decay=0.0), adamx.add_decoupled_weight_decay(0.0)
    )
    np.testing.assert_array_equal(_turned(twice), one)


def test_what_is_not_stepped_on_is_handed_through():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = adamx.cautious(optax.masked(adamx.sgd(0.1), {"a": True, "b": False}))
    gradient = {"a": jnp.ones(2), "b": jnp.full(2, 3.0)}
    updates, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    np.testing.assert_array_equal(updates["b"], gradient["b"])
    np.testing.assert_allclose(updates["a"], -0.1 * 2 / 3, rtol=1e-6)
    assert float(state.kept_fraction) == 1.0


def test_groups_have_their_own_decay():
    params = {"a": jnp.full(4, 10.0), "b": jnp.full(4, 10.0)}
    tx = adamx.cautious(
        optax.partition(
            {"a": adamx.adamw(0.1, weight_decay=0.5), "b": adamx.lion(0.1)},
            {"a": "a", "b": "b"},
        )
    )
    state = tx.init(params)
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    gradient = jax.tree.map(lambda p: jnp.array([-1e-3, 1.0, 1.0, 1.0]), params)
    updates, state = jax.jit(tx.update)(gradient, state, params)
    assert float(updates["a"][0]) == pytest.approx(-0.5)
    assert float(updates["b"][0]) == pytest.approx(-0.1 * 1e-3 * 10)
    assert float(state.kept_fraction) == 0.75


def test_the_same_array_as_gradient_of_two_leaves():
    g = jnp.ones(3)
    tx = adamx.cautious(adamx.adamw(0.1))
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    updates, state = tx.update({"a": g, "b": g}, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"], updates["b"])
    assert float(state.kept_fraction) == 1.0


def test_inside_a_cond_the_fraction_is_not_known_but_the_step_is():
    params, gradient = jnp.ones(4), jnp.array([1.0, -1.0, 1.0, 1.0])
    tx = adamx.cautious(optax.apply_if_finite(adamx.adamw(0.1), 3))
    updates, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    want, _ = adamx.cautious(adamx.adamw(0.1)).update(
        gradient, adamx.cautious(adamx.adamw(0.1)).init(params), params
    )
    np.testing.assert_allclose(updates, want, rtol=1e-6)
    assert np.isnan(state.kept_fraction)


def test_tiny_values_and_complex_ones():
    tx = adamx.cautious(adamx.sgd(1.0))
    gradient = jnp.array([1e-30, -1e-30])
    updates, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(updates, -gradient * 2 / 3, rtol=1e-6)
    z = jnp.array([1 + 1j, 0.0], jnp.complex64)
    updates, state = tx.update(z, tx.init(z))
    np.testing.assert_allclose(updates, -z / 2, rtol=1e-6)  # 1 / (1 + 1)
    assert float(state.kept_fraction) == 0.5


def test_infinite_values_beside_a_zero_are_no_disagreement_and_no_nan():
    """inf * 0 is NaN, which is not dropped: signs are compared, of both."""
    u, g = jnp.array([jnp.inf, 0.0, 1.0]), jnp.array([0.0, jnp.inf, 1.0])
    masked, kept = cautious_leaf(u, g)
    np.testing.assert_array_equal(masked, [0.0, 0.0, 0.5])
    assert float(kept) == 1.0


def test_rows_with_a_gradient_are_not_scaled_up_by_those_without():
    """The paper's d, the size of the table, would make this step 8.9."""
    table = jnp.ones((10_000, 8))
    gradient = jnp.zeros_like(table).at[17].set(0.5)
    for inner in (adamx.adam(1e-3), adamx.sparse_adam(1e-3)):
        tx = adamx.cautious(inner)
        updates, _ = tx.update(gradient, tx.init(table), table)
        np.testing.assert_allclose(updates[17], -1e-3 * 8 / 9, rtol=1e-5)
        assert np.count_nonzero(updates) == 8


@pytest.mark.parametrize("name", ["stable_adamw", "swats"])
@pytest.mark.parametrize("independent", [False, True])
def test_decay_that_is_no_stage_of_its_own_is_not_masked_either(name, independent):
    options = {"weight_decay": 0.5, "independent_decay": independent}
    if name == "swats":
        options["tolerance"] = 0.0  # stays with Adam
    tx = adamx.cautious(getattr(adamx, name)(1e-2, **options))
    params = jnp.array([2.0, 2.0])
    state = tx.init(params)
    for g in ([1.0, 1.0], [1.0, 1.0], [1.0, -0.1]):  # the second turns
        updates, state = tx.update(jnp.array(g), state, params)
    decay = 0.5 * 2.0 * (1.0 if independent else 1e-2)
    assert float(updates[1]) == pytest.approx(-decay, rel=1e-5)
    assert float(updates[0]) < -decay
    assert adamx.read(state).scalars()["kept_fraction"] == 0.5


def test_an_average_of_steps_is_no_step():
    tx = adamx.cautious(optax.chain(adamx.schedule_free_adamw(1e-2)))
    with pytest.raises(TypeError, match=r"`inner` must be .* schedule_free_adamw"):
        tx.init(jnp.ones(2))


# ---------------------------------------------------- the contract, of a few optimizers


@by_name
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
def test_state_is_stable_and_compiled_once(row, dtype):
    params = make_params(dtype)
    tx = adamx.cautious(row.make())
    state = tx.init(params)
    before = signature(state)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for seed in range(3):
        gradients = random_like(params, seed)
        updates, state = update(gradients, state, params)
        assert signature(updates) == signature(gradients)
        assert signature(state) == before
        assert 0.0 < float(state.kept_fraction) <= 1.0
        params = adamx.apply_updates(params, updates)
    assert adamx.read(state).learning_rate == pytest.approx(LR)
    assert adamx.read(state).count == 3


@by_name
def test_eager_scan_and_vmap_agree(row):
    params = make_params()
    tx = adamx.cautious(row.make())
    want = steps(tx, params)
    assert_close(steps(tx, params, jit=False), want, rtol=1e-5, atol=1e-6)
    gradients = [random_like(params, seed + 10) for seed in range(5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (adamx.apply_updates(params, updates), state), None

    def run(params, stacked):
        return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]

    assert_close(jax.jit(run)(params, stacked), want, rtol=1e-5, atol=1e-6)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), (params, stacked))
    batched = jax.jit(jax.vmap(run))(*two)
    second = jax.tree.map(lambda x: x[1], batched)
    assert_close(second, want, rtol=1e-5, atol=1e-6)


@by_name
def test_zero_gradient_is_a_no_op_and_nan_is_seen(row):
    params = make_params()
    more = {"weight_decay": 0.0} if "weight_decay" in row.arguments else {}
    tx = adamx.cautious(row.make(**more))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(tx.update)(zero, tx.init(params), params)
    chex.assert_trees_all_equal(adamx.apply_updates(params, updates), params)
    assert float(state.kept_fraction) == 0.0
    params = {"a": jnp.ones(4), "b": jnp.ones(2)}
    bad = {"a": jnp.array([1.0, jnp.nan, 1.0, 1.0]), "b": jnp.ones(2)}
    updates, _ = jax.jit(tx.update)(bad, tx.init(params), params)
    assert np.isnan(updates["a"]).tolist() == [False, True, False, False]
    assert np.all(np.isfinite(updates["b"]))


@by_name
def test_eight_devices_equal_one(row):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    tx = adamx.cautious(row.make())
    gradients = random_like(params, 1)
    one = jax.jit(tx.update)(gradients, tx.init(params), params)
    spread, there = jax.device_put(params, place), jax.device_put(gradients, place)
    eight = jax.jit(tx.update)(there, tx.init(spread), spread)
    assert_close(one, jax.device_get(eight), rtol=1e-6, atol=1e-7)


@by_name
def test_optax_protocol(row):
    params = make_params()
    make = functools.partial(adamx.cautious, row.make())
    tx = make()
    state = tx.init(params)
    doubled = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    want, _ = tx.update(params, state, params)
    for outer in (
        optax.chain(optax.identity(), make()),
        optax.masked(make(), True),
        optax.MultiSteps(make(), 1).gradient_transformation(),
    ):
        got, _ = jax.jit(outer.update)(params, outer.init(params), params, value=1.0)
        assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_more_elements_than_an_int32_counts():
    """Shapes alone: a leaf, and a model of smaller leaves, above 2^31."""
    tx = adamx.cautious(adamx.adamw(LR))

    def step(p):
        return tx.update(p, tx.init(p), p)[0]

    for shapes in ([(50_000, 50_000)], [(30_000, 40_000)] * 2):
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        updates = jax.eval_shape(step, params)
        assert [u.shape for u in updates] == shapes


def test_bad_input():
    for bad in (1e-3, adamx.adamw, None):
        with pytest.raises(TypeError, match=r"`inner` must be a gradient transf.*pass"):
            adamx.cautious(bad)
    tx = adamx.cautious(adamx.adamw(1e-3))
    with pytest.raises(TypeError, match=r"gradient at 'a'.*int32"):
        tx.update({"a": jnp.arange(2)}, tx.init({"a": jnp.ones(2)}), {"a": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"`state` must be the .*CautiousState"):
        tx.update(jnp.ones(2), adamx.adamw(1e-3).init(jnp.ones(2)), jnp.ones(2))


# ------------------------------------------------------- wrappers that trace it twice


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", ["guard", "accumulate", "groups"])
def test_a_wrapper_inside_changes_nothing(name, dtype):
    bare = adamx.adamw(0.1, weight_decay=0.1)
    wrapped = {
        "guard": lambda: adamx.guard(bare),
        "accumulate": lambda: adamx.accumulate(bare, 1),
        "groups": lambda: adamx.groups([("", adamx.guard(bare))]),
    }[name]()
    params = {"a": jnp.ones(4, dtype)}
    gradients = [jnp.ones(4, dtype), jnp.array([1.0, -0.2, 1.0, -0.2], dtype)]
    ends = []
    for tx in (adamx.cautious(bare), adamx.cautious(wrapped)):
        state, ups = tx.init(params), []
        for g in gradients:
            updates, state = jax.jit(tx.update)({"a": g}, state, params)
            ups.append(np.asarray(updates["a"], np.float32))
        ends.append(ups)
    assert abs(ends[0][1][1]) < 0.2 * abs(ends[0][1][0])  # masked, but for its decay
    np.testing.assert_allclose(
        ends[1], ends[0], rtol=1e-2 if dtype != jnp.float32 else 1e-6
    )


def test_stages_inside_are_refused():
    tx = adamx.cautious(adamx.stages([(adamx.adamw(0.1), 2), (adamx.adam(0.1), None)]))
    with pytest.raises(TypeError, match=r"`inner`.*stages.*inside"):
        tx.init(jnp.ones(3))


@pytest.mark.parametrize("wrap", [adamx.master_weights, adamx.compensated])
def test_what_stands_outermost_is_refused(wrap):
    params = jnp.ones(3, jnp.bfloat16)
    with pytest.raises(ValueError, match=rf"{wrap.__name__}\(cautious\(tx\)\)"):
        adamx.cautious(adamx.guard(wrap(adamx.adamw(0.1)))).init(params)
    wrap(adamx.cautious(adamx.adamw(0.1))).init(params)


def test_what_is_dropped_leaves_a_negative_zero():
    params = jnp.array([-0.0, 1.0])
    tx = adamx.cautious(optax.sgd(0.1, momentum=0.9))
    state = tx.init(params)
    for sign in (1.0, -0.1):
        updates, state = tx.update(jnp.full(2, sign), state, params)
    assert np.signbit(adamx.apply_updates(params, updates)).tolist() == [True, False]
