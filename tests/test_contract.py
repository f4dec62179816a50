"""What every public optimizer promises, over the whole table."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from tests.compiling import AS_USERS, as_users
from tests.helpers import TEMPORARIES, enable_x64, some
from tests.optimizers_table import LR, NAMES, ROWS

pytestmark = pytest.mark.filterwarnings("error")


def by_name(function):
    return pytest.mark.parametrize("row", NAMES, ids=lambda row: row.id)(function)


def by_row(function):
    """All rows; those beside the one that stands for its name in the slow run only."""
    rows = [
        pytest.param(row, marks=[] if row in NAMES else pytest.mark.slow)
        for row in ROWS
    ]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.id)(function)


# For what does not depend on the leaf rule, and takes seconds by name.
FEW = ("sgd", "adamw", "lion", "lamb", "sparse_adam")
FEW_ROWS = [row for row in NAMES if row.name in FEW]


def by_few(function, rows=NAMES, quick=FEW):
    """These names; the others in the slow run only."""
    marked = [
        pytest.param(
            row, marks=[] if row in NAMES and row.name in quick else pytest.mark.slow
        )
        for row in rows
    ]
    return pytest.mark.parametrize("row", marked, ids=lambda row: row.id)(function)


def by_few_rows(function):
    """The same of all rows."""
    return by_few(function, ROWS)


def by_these(*quick, rows=NAMES):
    """What takes longest: quickly, one of each kind that the property may depend on."""
    return lambda function: by_few(function, rows, quick)


def inject(row, **options):
    """The factory under `optax.inject_hyperparams`."""
    return optax.inject_hyperparams(row.factory, **options)


def random_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    new = []
    for x in leaves:
        value = rng.standard_normal(x.shape)
        if jnp.iscomplexobj(x):
            value = value + 1j * rng.standard_normal(x.shape)
        new.append(jnp.asarray(value, x.dtype))
    return structure.unflatten(new)


def make_params(dtype=jnp.float32):
    return random_like(
        {
            "dense": {"kernel": jnp.zeros((5, 7), dtype), "bias": jnp.zeros(7, dtype)},
            "scalar": jnp.zeros((), dtype),
            "empty": jnp.zeros((0, 3), dtype),
            "nothing": None,
            "list": [()],
        },
        0,
    )


def signature(tree):
    """Structure, shapes, dtypes and weak types: what a second call must not change."""
    avals = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    return jax.tree.structure(tree), jax.tree.leaves(
        avals, is_leaf=lambda x: isinstance(x, tuple)
    )


def assert_close(got, want, rtol=1e-6, atol=1e-8):
    chex.assert_trees_all_equal_structs(got, want)
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=atol)


def steps(tx, params, seeds=range(5), jit=True):
    """Parameters and state after a few steps in a Python loop."""
    update = jax.jit(tx.update) if jit else tx.update
    state = tx.init(params)
    for seed in seeds:
        updates, state = update(random_like(params, seed + 10), state, params)
        params = adamx.apply_updates(params, updates)
    return params, state


# ------------------------------------------------------------ structure and dtypes


DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64)


@by_row
def test_dtypes_shapes_and_structure_are_stable(row):
    for dtype in DTYPES[: 4 if row.is_complex else 3]:  # others: test_rare_dtypes
        params = make_params(dtype)
        tx = row.make()
        state = tx.init(params)
        # A second step from what the first left, of one dtype: equal signatures are
        # equal programs.
        for seed in range(2 if dtype == jnp.float32 else 1):
            gradients = random_like(params, seed)
            updates, new = jax.eval_shape(tx.update, gradients, state, params)
            assert signature(updates) == signature(gradients)
            assert signature(new) == signature(state)
            state = new


@by_these("adamw", "lion", "sparse_adam")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_stay_finite(row, dtype):
    if row.is_complex or dtype != jnp.complex64:
        params, state = steps(row.make(), make_params(dtype), seeds=range(3))
        assert signature(state) == signature(row.make().init(params))
        assert all(np.all(np.isfinite(np.asarray(p))) for p in jax.tree.leaves(params))


@by_row
def test_float64_is_kept_in_x64_mode(row):
    with enable_x64():
        params = make_params(jnp.float64)
        params["single"] = jnp.ones(3, jnp.float32)
        tx = row.make()
        state = tx.init(params)
        before = signature(state)
        gradients = random_like(params, 1)
        updates, state = jax.eval_shape(tx.update, gradients, state, params)
        assert signature(updates) == signature(gradients)
        assert signature(state) == before


@by_name
@pytest.mark.parametrize(
    ("params_dtype", "gradient_dtype"),
    [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)],
    ids=["bf16-gradients", "bf16-params"],
)
def test_updates_have_the_wider_dtype(row, params_dtype, gradient_dtype):
    params = make_params(params_dtype)
    gradients = jax.tree.map(lambda p: p.astype(gradient_dtype), params)
    tx = row.make()
    state = tx.init(params)
    updates, new = jax.eval_shape(tx.update, gradients, state, params)
    assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))
    assert signature(new) == signature(state)
    if "weight_decay" not in row.arguments and not row.needs_params:
        updates, _ = jax.eval_shape(tx.update, gradients, state)
        assert all(u.dtype == gradient_dtype for u in jax.tree.leaves(updates))


@by_these("adamw", "lamb")  # of an element, of a leaf
@as_users
def test_eager_and_compiled_agree(row):
    params = make_params()
    eager, compiled = (steps(row.make(), params, jit=jit) for jit in (False, True))
    assert_close(eager, compiled, rtol=2e-6, atol=1e-6)


@by_these("adamw", "lamb", "sparse_adam")  # of elements, of leaves, of rows
def test_trees_of_any_shape(row):
    tx = row.make()
    one = jnp.ones
    for params in ({}, (), None, {"a": None}, one(()), [one(0)], [one((2, 1, 3))]):
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert adamx.read(state).learning_rate == pytest.approx(LR)


@pytest.mark.parametrize("count", some([60, 150], 60))
def test_many_leaves(count):
    params = {f"layer_{i}": jnp.full((3,), float(i)) for i in range(count)}
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(LR))
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert len(jax.tree.leaves(updates)) == count
    want = np.sqrt(3.0 * sum(i * i for i in range(count)))
    assert adamx.read(state).grad_norm == pytest.approx(want, rel=1e-6)


@by_name
def test_init_under_eval_shape(row):
    params = make_params()
    tx = row.make()
    shapes = jax.eval_shape(tx.init, params)
    state = tx.init(params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    if row.holds_params:
        chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(abstract), state)
    else:
        assert_close(tx.init(abstract), jax.tree.map(lambda x: x, state))


@by_few_rows
def test_strict_dtype_promotion(row):
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.complex64):
            if dtype == jnp.complex64 and not row.is_complex:
                continue
            params = make_params(dtype)
            tx = row.make()

            def step(params, state, tx=tx):
                updates, _ = tx.update(params, state, params)
                return adamx.apply_updates(params, updates)

            after = jax.eval_shape(step, params, tx.init(params))
            assert signature(after) == signature(params)


# --------------------------------------------------------------- jit, scan and vmap


@by_name
def test_one_compilation_for_all_learning_rates(row):
    params = make_params()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(learning_rate, gradients, state, params):
        tx = row.make(learning_rate)
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    state = row.make(LR).init(params)
    for seed in range(100):
        rate = jnp.float32(LR / (seed + 1))
        params, state = step(rate, random_like(params, seed), state, params)
    assert adamx.read(state).learning_rate == pytest.approx(LR / 100)


@by_few
def test_one_compilation_under_inject_hyperparams(row):
    params = make_params()
    chex.clear_trace_counter()
    tx = inject(row)(LR, **row.hyperparameters)
    state = jax.jit(tx.init)(params)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    plain, plain_state = row.make(), row.make().init(params)
    for seed in range(3):
        gradients = random_like(params, seed)
        updates, state = update(gradients, state, params)
        want, plain_state = jax.jit(plain.update)(gradients, plain_state, params)
        assert_close(updates, want, rtol=2e-4, atol=1e-5 * LR)
    state.hyperparams["learning_rate"] = jnp.float32(0.0)
    updates, state = update(gradients, state, params)
    assert adamx.read(state).learning_rate == 0.0
    if row.is_rate_last:
        assert all(not np.any(np.asarray(u)) for u in jax.tree.leaves(updates))


@by_row
def test_scan_equals_the_loop(row):
    params = make_params()
    gradients = [random_like(params, seed + 10) for seed in range(5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    tx = row.make()

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (adamx.apply_updates(params, updates), state), None

    scanned, _ = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
        (params, tx.init(params)), stacked
    )
    assert_close(scanned, steps(tx, params), rtol=2e-6, atol=1e-7)


@by_these("lamb", "sparse_adam")
def test_vmap_equals_one_by_one(row):
    stacked = [make_params() for _ in range(3)]
    stacked = [random_like(p, seed) for seed, p in enumerate(stacked)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *stacked)
    rates = jnp.array([1e-1, 1e-2, 1e-3])

    def run(params, rate):
        tx = row.make(rate)
        state = tx.init(params)
        for seed in range(3):
            gradients = jax.tree.map(lambda p, seed=seed: p * (seed + 0.5), params)
            updates, state = tx.update(gradients, state, params)
            params = adamx.apply_updates(params, updates)
        return params, state

    batched = jax.jit(jax.vmap(run))(batch, rates)
    for i, params in enumerate(stacked):
        alone = jax.jit(run)(params, rates[i])
        picked = jax.tree.map(lambda x, i=i: x[i], batched)
        assert_close(picked, alone, rtol=2e-6, atol=1e-7)
    reading = adamx.read(batched[1])
    np.testing.assert_allclose(reading.learning_rate, rates, rtol=1e-6)


def _first_step(variant, row):
    params = {"w": np.linspace(-2, 2, 13, dtype=np.float32)}
    gradients = {"w": np.linspace(3, -1, 13, dtype=np.float32)}
    tx = row.make()
    updates, state = variant(tx.update)(gradients, tx.init(params), params)
    want = next(iter(row.expected([gradients["w"]], params["w"])))
    atol = 2e-7 if row.holds_params else 1e-8  # a copy is rounded like the original
    np.testing.assert_allclose(updates["w"], want, rtol=3e-6, atol=atol)
    chex.assert_tree_all_finite(state)


class VariantsTest(chex.TestCase):
    """The same numbers with and without jit, with and without device placement."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=False)
    @parameterized.named_parameters((row.id, row) for row in FEW_ROWS)
    def test_first_step(self, row):
        _first_step(self.variant, row)


@pytest.mark.slow
class MoreVariantsTest(chex.TestCase):
    """The same of the other names."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=False)
    @parameterized.named_parameters(
        (row.id, row) for row in NAMES if row not in FEW_ROWS
    )
    def test_first_step(self, row):
        _first_step(self.variant, row)


def test_chexify_finds_a_value_inside_a_compiled_step():
    """How a user traps a bad value while debugging: the recorded norm is checkable."""
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adam(LR))

    @jax.jit
    def step(gradients, state):
        updates, state = tx.update(gradients, state)
        chex.assert_tree_all_finite(state[0].grad_norm)
        return updates, state

    checked = chex.chexify(step, async_check=False)
    state = tx.init(jnp.ones(3))
    checked(jnp.ones(3), state)
    with pytest.raises(AssertionError, match="finite"):
        checked(jnp.array([1.0, np.nan, 1.0]), state)


# -------------------------------------------------------------- the Optax protocol


@by_name
def test_map_params(row):
    params = make_params()
    tx = row.make()
    state = tx.init(params)
    doubled = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    named = optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        state,
        jax.tree.map(lambda p: f"spec{p.ndim}", params),
        transform_non_params=lambda _: "scalar",
    )
    labels = jax.tree.leaves(named)
    expected = [f"spec{leaf.ndim}" for leaf in jax.tree.leaves(params)]
    per_param = [label for label in labels if label != "scalar"]
    assert len(per_param) >= len(expected)
    moments_held = len(per_param) // len(expected)
    assert sorted(per_param) == sorted(expected * moments_held)


@by_few
def test_extra_arguments_are_accepted(row):
    params = make_params()
    tx = row.make()
    want, _ = tx.update(params, tx.init(params), params)
    got, _ = tx.update(params, tx.init(params), params, value=1.0, unexpected="x")
    chex.assert_trees_all_equal(got, want)
    chained = optax.chain(optax.identity(), tx)
    got, _ = chained.update(params, chained.init(params), params, value=1.0)
    chex.assert_trees_all_equal(got, want)


# With extra arguments, `sophia_g`, quickly: tests/test_clients_optax.py.
@by_these("adamw")
def test_inside_optax_wrappers(row):
    """Masked, partition, named_chain and MultiSteps equal the bare optimizer."""
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    gradients = random_like(params, 3)
    bare, _ = row.make().update(gradients, row.make().init(params), params)

    def first_update(tx, repeat=1):
        state = tx.init(params)
        for _ in range(repeat):
            updates, state = jax.jit(tx.update)(gradients, state, params)
        return updates, adamx.read(state)

    for tx, repeat in [
        (optax.named_chain(("clip", optax.identity()), ("opt", row.make())), 1),
        (optax.masked(row.make(), {"a": True, "b": True}), 1),
        (optax.partition({"all": row.make()}, "all"), 1),
        (optax.MultiSteps(row.make(), 2).gradient_transformation(), 2),
        (optax.apply_if_finite(row.make(), 3), 1),
    ]:
        updates, reading = first_update(tx, repeat)
        assert_close(updates, bare, rtol=1e-5, atol=1e-7)
        assert reading.learning_rate == pytest.approx(LR)
    half = optax.masked(row.make(), {"a": True, "b": False})
    updates, _ = first_update(half)
    assert_close(updates["b"], gradients["b"])
    assert_close(updates["a"], bare["a"], rtol=1e-5)


@by_few
def test_a_whole_model_as_parameters(row):
    """Equinox's pattern: gradients are None where the model holds no arrays."""
    model = {"w": jnp.ones(3), "activation": jax.nn.relu, "size": 3}
    params = {"w": jnp.ones(3), "activation": None, "size": None}
    gradients = {"w": jnp.full(3, 0.5), "activation": None, "size": None}
    tx = row.make()
    state = tx.init(params)
    got, _ = tx.update(gradients, state, model)
    want, _ = tx.update(gradients, state, params)
    chex.assert_trees_all_equal(got, want)


@by_few
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.float8_e5m2], ids=str)
def test_rare_dtypes(row, dtype):
    params = {"z": jnp.full(4, 0.5, dtype)}
    injected = inject(row, hyperparam_dtype=jnp.float32)(LR, **row.hyperparameters)
    txs = [row.make(), injected]
    if dtype == jnp.complex64:  # hyperparameters become complex, with no imaginary part
        if not row.is_complex:
            with pytest.raises(TypeError, match=r"'z'.*complex"):
                row.make().init(params)
            return
        txs.append(inject(row)(LR, **row.kwargs))
    for tx in txs:
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
        assert updates["z"].dtype == dtype
        assert np.all(np.isfinite(np.asarray(updates["z"], np.complex64)))


@by_few
def test_schedules_move_the_learning_rate(row):
    params = {"w": jnp.ones(3)}
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    tx = row.make(schedule)
    state = tx.init(params)
    rates = []
    for _ in range(5):
        _, state = jax.jit(tx.update)(params, state, params)
        rates.append(adamx.read(state).learning_rate)
    np.testing.assert_allclose(rates, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert adamx.read(state).count == 5


# ------------------------------------------------------------- values that always hold


@by_few_rows
def test_zero_gradient_on_a_fresh_state_is_a_no_op(row):
    for dtype in (jnp.bfloat16, jnp.float32):
        params = make_params(dtype)
        zero = jax.tree.map(jnp.zeros_like, params)
        tx = row.make(
            **({"weight_decay": 0.0} if "weight_decay" in row.arguments else {})
        )
        state = tx.init(params)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(zero, state, params)
            after = adamx.apply_updates(params, updates)
            chex.assert_trees_all_equal(after, params)


@by_these("sgd", "adamw", "adamax", "adopt", "lamb", "sparse_adam", "sophia_g")
def test_eps_zero_never_divides_zero_by_zero(row):
    zeros = {name: 0.0 for name in ("eps", "weight_decay") if name in row.arguments}
    tx, params = row.make(**zeros), jnp.ones(3)
    gradient = jnp.array([0.0, 1.0, 1e-30])
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    assert float(updates[0]) == 0.0
    assert np.all(np.isfinite(np.asarray(updates)))


@by_few
def test_count_saturates(row):
    params = {"w": jnp.ones(3)}
    limit = np.iinfo(np.int32).max
    tx = row.make()

    def far(x):
        return jnp.full_like(x, limit - 1) if x.dtype == jnp.int32 else x

    state = jax.tree.map(far, tx.init(params))
    for _ in range(3):
        updates, state = jax.jit(tx.update)(params, state, params)
        assert np.all(np.isfinite(np.asarray(updates["w"])))
    assert adamx.read(state).count == limit


@by_these("sgd", "adamw", "lion", "lamb", "adam_mini")  # of an element, of a leaf
def test_nan_stays_in_its_element(row):
    params = {"a": jnp.ones(4), "b": jnp.ones(2)}
    gradients = {"a": jnp.array([1.0, jnp.nan, 1.0, 1.0]), "b": jnp.ones(2)}
    tx = row.make()
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    bad = np.isnan(np.asarray(updates["a"]))
    if row.reduces == "nothing":
        assert bad.tolist() == [False, True, False, False]
    assert bad[1] or row.reduces == "tree"
    if row.reduces != "tree":
        assert np.all(np.isfinite(np.asarray(updates["b"])))


@pytest.mark.parametrize("size", [1e-20, 1e-10, 1.0, 1e10, 1e18])
def test_adam_is_scale_free_between_the_limits_of_float32(size):
    tx = adamx.adam(1.0, eps=0.0)
    gradient = jnp.array([1.0, -3.0]) * size
    updates, _ = jax.jit(tx.update)(gradient, tx.init(gradient))
    if size >= 1e-10:
        np.testing.assert_allclose(updates, [-1.0, 1.0], rtol=1e-5)
    else:  # the square is below float32's range: no step rather than a wild one
        assert np.all(np.isfinite(np.asarray(updates)))


# Optimizers that divide by no mean of squares, or not by it alone.
NO_SQUARE = {"sgd", "momentum", "adamax", "lion", "sophia_h", "sophia_g"}
NO_SQUARE |= {"adabound", "amsbound"}  # their step has a lower bound


SQUARE_ROWS = [row for row in NAMES if row.name not in NO_SQUARE]
# Quickly: of plain averages, a largest one, centred, looked up by rows, divided before.
SQUARES = ("adamw", "amsgrad", "rmsprop", "sparse_adam", "adopt", "lamb")


@by_these(*SQUARES, rows=SQUARE_ROWS)
def test_a_square_that_overflows_stops_its_element_for_good(row):
    zeros = {name: 0.0 for name in ("weight_decay",) if name in row.arguments}
    # Momentum would go on, and a centred square is not what divides.
    plain = {"momentum": None, "centered": False} if row.name == "rmsprop" else {}
    if row.name == "swats":  # stay with Adam
        plain = {"tolerance": 0.0, "relative_tolerance": 0.0}
    tx = row.make(1.0, **zeros, **plain)
    params = {"big": jnp.zeros(1), "small": jnp.zeros(1)}
    state = tx.init(params)
    for size in (1e20, 1.0, 3e38, *[1.0] * 12):
        gradients = {"big": jnp.array([size]), "small": jnp.ones(1)}
        updates, state = jax.jit(tx.update)(gradients, state, params)
        assert np.isfinite(float(updates["small"][0]))
    assert float(updates["big"][0]) == 0.0
    assert float(updates["small"][0]) < 0.0
    held = optax.tree.get_all_with_path(state, "nu")
    assert any(np.isinf(x["big"][0]) for _, x in held if x is not None)


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_a_centred_square_that_overflows_stops_its_element_too(size):
    """Square and centre are both inf; their difference is no NaN."""
    tx = adamx.rmsprop(1.0, centered=True)
    state = tx.init(jnp.zeros(2))
    for g in (size, size, 1.0):
        updates, state = jax.jit(tx.update)(jnp.array([g, 1.0]), state)
        assert float(updates[0]) == 0.0
        assert float(updates[1]) < 0.0


@pytest.mark.parametrize("b2", [0.0, 0.3, 0.9, lambda t: 1.0 - (t + 1.0) ** -0.8])
@pytest.mark.parametrize("is_traced", [False, True])
def test_a_square_that_overflows_is_inf_whatever_its_weight(b2, is_traced):
    """Below b2 = 1/2 the average starts from the new square: no inf - inf there."""
    if is_traced:
        tx = adamx.with_hyperparams(adamx.adam, learning_rate=1.0, b2=b2)
    else:
        tx = adamx.adam(1.0, b2=b2)
    state = tx.init(jnp.zeros(2))
    for g in (1e20, 1.0, -1e30, 1.0):
        updates, state = jax.jit(tx.update)(jnp.array([g, 1.0]), state)
        assert float(updates[0]) == 0.0
        assert float(updates[1]) < 0.0


def test_a_complex_quotient_that_overflows_is_clipped_as_a_real_one():
    """ADOPT, where the first gradient was 0: g / eps is inf, its update the limit."""
    tx = adamx.adopt(1.0, b1=0.0)
    state, real = tx.init(jnp.zeros(1, jnp.complex64)), tx.init(jnp.zeros(1))
    for g in (0.0, -1e35, 1.0):
        u, state = jax.jit(tx.update)(jnp.array([g], jnp.complex64), state)
        expected, real = jax.jit(tx.update)(jnp.array([g]), real)
        np.testing.assert_allclose(jnp.real(u), expected, rtol=1e-6)
        np.testing.assert_array_equal(jnp.imag(u), 0.0)
    both = jnp.array([1e35 - 1e35j], jnp.complex64)
    _, state = tx.update(0 * both, tx.init(0 * both))
    u, _ = tx.update(both, state)
    np.testing.assert_allclose(u, [(-1 + 1j) * 0.5**0.5], rtol=1e-6)


def test_a_nan_in_one_part_of_a_complex_number_leaves_the_other():
    """Products are rounded part by part: each is that of a real leaf."""
    tx = adamx.momentum(1.0, 0.5, nesterov=True)
    first, then = np.array([2.0, np.nan]), np.array([3.0, 5.0])
    state, real = tx.init(jnp.zeros(1, jnp.complex64)), tx.init(jnp.zeros(2))
    for g in (first, then):
        z = jax.lax.complex(jnp.float32(g[:1]), jnp.float32(g[1:]))
        moved, state = jax.jit(tx.update)(z, state)
        parts, real = jax.jit(tx.update)(jnp.float32(g), real)
    np.testing.assert_array_equal(jnp.real(moved), parts[:1])
    np.testing.assert_array_equal(jnp.imag(moved), parts[1:])


# ------------------------------------------------------------ donation and sharding


# Moments, a leaf's norm, rows, held parameters, what needs most memory.
@by_these("adamw", "lamb", "sparse_adam", "schedule_free_adamw", "sophia_g")
def test_donated_buffers_are_reused_without_temporaries(row):
    params = {"a": jnp.ones((256, 256)), "b": jnp.ones((256,))}
    tx = optax.chain(adamx.clip_by_global_norm(1.0), row.make())
    state = tx.init(params)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return adamx.apply_updates(params, updates), state

    gradients = random_like(params, 1)
    want = jax.jit(step)(params, state, gradients)
    donated = jax.jit(step, donate_argnums=(0, 1))
    donated = donated.lower(params, state, gradients).compile(AS_USERS)
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    allowed = TEMPORARIES + row.temporaries
    assert donated.memory_analysis().temp_size_in_bytes <= allowed * size
    got = donated(params, state, gradients)
    assert params["a"].is_deleted()
    assert_close(got, want)


@by_few
def test_no_two_leaves_of_a_state_share_a_buffer(row):
    """One buffer cannot be donated twice, and a user's array must not be donated."""
    params = {"w": jnp.ones((16, 4))}
    rate = jnp.array(LR)
    for tx in (row.make(rate), inject(row)(LR, **row.hyperparameters)):
        state = tx.init(params)
        _, after = tx.update(params, state, params)
        for tree in (state, after):
            leaves = [*jax.tree.leaves(tree), rate]
            pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
            assert len(set(pointers)) == len(pointers)

    def many(state):
        def step(state, _):
            return tx.update(params, state, params)[1], None

        return jax.lax.scan(step, state, None, length=2)[0]

    state = row.make(rate).init(params)
    tx = row.make(rate)
    jax.jit(many, donate_argnums=0)(state)
    assert not rate.is_deleted()


# Of a leaf's norm: tests/test_sharding_steps.py.
@by_these("adamw", "sparse_adam", rows=ROWS)
@as_users
def test_eight_devices_equal_one(row):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    specs = {"w": PartitionSpec("data"), "b": PartitionSpec()}
    place = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    spread = jax.device_put(params, place)
    tx = row.make()
    one, eight = steps(tx, params), _steps_on(tx, spread, place)
    if row.reduces == "nothing":
        chex.assert_trees_all_equal(one, eight)
    else:  # sums over shards are ordered otherwise
        assert_close(one, jax.device_get(eight), rtol=1e-6, atol=1e-7)
    for leaf in jax.tree.leaves(eight[1]):
        if leaf.shape == (64, 24):
            assert leaf.sharding.is_equivalent_to(place["w"], 2)


def _steps_on(tx, params, place):
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(5):
        gradients = jax.device_put(random_like(params, seed + 10), place)
        updates, state = update(gradients, state, params)
        params = adamx.apply_updates(params, updates)
    return params, state


@pytest.mark.slow  # quickly: tests/test_sharding_norms.py, tests/test_sharding_steps.py
@as_users
def test_eight_devices_equal_one_with_clipping():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec(None, "data")),
        "b": NamedSharding(mesh, PartitionSpec("data")),
    }
    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(LR))
    one = steps(tx, params)
    eight = _steps_on(tx, jax.device_put(params, place), place)
    assert_close(one, jax.device_get(eight), rtol=1e-6, atol=1e-7)
