"""Every optimizer with a codec for every moment that takes one: the shared contract."""

import functools
import pickle

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx
from adamx import codecs
from tests.compiling import as_users
from tests.helpers import enable_x64, some
from tests.helpers_codecs import CODECS, make
from tests.optimizers_table import LR, NAMES

MOMENTS = ("mu_dtype", "nu_dtype", "accumulator_dtype", "mu_slow_dtype")
ROWS = {row.name: row for row in NAMES}
LABELS = [*CODECS, "bfloat16"]


def moments_of(row):
    """The arguments that take a codec; Adam-mini's nu is one number for many."""
    names = [name for name in MOMENTS if name in row.arguments]
    return [n for n in names if (row.name, n) != ("adam_mini", "nu_dtype")]


def transformation(row, label="int8", learning_rate=LR, **more):
    codec = make(label, **more)
    return row.make(learning_rate, **dict.fromkeys(moments_of(row), codec))


def by_case(everywhere, *elsewhere):
    """`everywhere`: AdamW with all codecs; these rows with int8; the rest is slow."""

    def decorate(function):
        cases = []
        for row in NAMES:
            for label in LABELS:
                is_quick = row.name in elsewhere and label == "int8"
                is_quick |= row.name == "adamw" and label in everywhere
                marks = [] if is_quick else pytest.mark.slow
                case = pytest.param(row, label, marks=marks, id=f"{row.name}-{label}")
                cases.append(case)
        return pytest.mark.parametrize(("row", "label"), cases)(function)

    return decorate


EVERY = tuple(ROWS)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree
    )


def make_params(dtype=jnp.float32):
    shapes = {"dense": {"kernel": (6, 8), "bias": (7,)}, "scalar": (), "empty": (0, 3)}
    tree = jax.tree.map(
        lambda s: jnp.zeros(s, dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return random_like({**tree, "nothing": None, "list": [tree["scalar"]]}, 0)


def one_matrix():
    return random_like({"w": jnp.zeros((6, 8)), "b": jnp.zeros(5)}, 0)


def form(tree):
    leaves = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), leaves


def assert_same(got, want):
    """Bitwise, codes of 4 and 8 bits included."""
    chex.assert_trees_all_equal_structs(got, want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
        assert np.asarray(g).tobytes() == np.asarray(w).tobytes()


def steps(tx, params, state=None, seeds=range(3)):
    update = jax.jit(tx.update)
    state = tx.init(params) if state is None else state
    for seed in seeds:
        updates, state = update(random_like(params, seed + 10), state, params)
        params = adamx.apply_updates(params, updates)
    return params, state


def numbers(tree):
    """A tree with its codes read, for a comparison with some room."""

    def read(x):
        return codecs.decode(x) if isinstance(x, codecs.Encoded) else x

    return jax.tree.map(read, tree, is_leaf=lambda x: isinstance(x, codecs.Encoded))


def assert_codes_close(got, want, share=0.02):
    """Equal but for few codes: another program may round a tie otherwise."""
    chex.assert_trees_all_equal_structs(got, want)
    pairs = zip(*map(jax.tree.leaves, (numbers(got), numbers(want))), strict=True)
    unlike = total = 0
    for g, w in pairs:
        g, w = (np.asarray(x, np.float64) for x in (g, w))
        unlike += np.sum(~np.isclose(g, w, rtol=1e-4, atol=1e-6))
        total += g.size
    assert unlike <= max(share * total, 2)


# ---------------------------------------------------------------------- structure


# Scales and a key, scales alone, neither; of the others the form is tried below.
@by_case(("int8-stochastic", "e4m3", "bfloat16"), "schedule_free_adamw")
def test_every_moment_is_encoded_and_the_state_keeps_its_form(row, label):
    params, tx = make_params(), transformation(row, label)
    state = tx.init(params)
    is_encoded = lambda x: isinstance(x, codecs.Encoded)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_encoded) if is_encoded(x)]
    assert len(found) >= len(moments_of(row))
    for encoded in found:
        chex.assert_trees_all_equal_shapes(encoded.codes, params)
        assert all(c.dtype.itemsize < 4 for c in jax.tree.leaves(encoded.codes))
        for scales in encoded.scales:
            ranks = jax.tree.map(lambda s, p: s.ndim == p.ndim, scales, params)
            assert all(jax.tree.leaves(ranks))
    before, update = form(state), jax.jit(tx.update)
    for seed in range(3):
        gradients = random_like(params, seed)
        updates, state = update(gradients, state, params)
        assert form(state) == before
        assert form(updates) == form(gradients)
        params = adamx.apply_updates(params, updates)
        assert all(np.all(np.isfinite(np.asarray(p))) for p in jax.tree.leaves(params))


@by_case(LABELS, *EVERY)
def test_eval_shape_and_map_params(row, label):
    params, tx = make_params(), transformation(row, label)
    state = tx.init(params)
    shapes = jax.eval_shape(tx.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)
    assert_same(optax.tree.map_params(tx, lambda x: x, state), state)
    named = optax.tree.map_params(
        tx,
        lambda leaf, spec: f"{spec}{leaf.ndim}",
        state,
        jax.tree.map(lambda p: f"spec{p.ndim}", params),
        transform_non_params=lambda _: "scalar",
    )
    labels = [x for x in jax.tree.leaves(named) if x != "scalar"]
    ranks = [f"spec{p.ndim}{p.ndim}" for p in jax.tree.leaves(params)]
    assert len(labels) % len(ranks) == 0
    assert sorted(labels) == sorted(ranks * (len(labels) // len(ranks)))
    assert len(labels) >= len(ranks) * len(moments_of(row))


@by_case(("int8", "bfloat16"))
def test_bfloat16_parameters(row, label):
    params, tx = make_params(jnp.bfloat16), transformation(row, label)
    before = form(tx.init(params))
    after, state = steps(tx, params)
    assert form(state) == before
    assert form(after) == form(params)


@by_case(("int4-stochastic",))
def test_float64_parameters(row, label):
    with enable_x64():
        params, tx = make_params(jnp.float64), transformation(row, label)
        before = form(tx.init(params))
        after, state = steps(tx, params)
        assert form(state) == before
        assert form(after) == form(params)
        kept = row.make(**dict.fromkeys(moments_of(row), codecs.int8()))
        held = codecs.decode(kept.init(params))  # leaves are too small to be encoded
        assert form(held) == form(row.make().init(params))


# ------------------------------------------------------------------------- programs


@by_case(("int8-stochastic",))
def test_scan_and_donation_equal_the_loop(row, label):
    params, tx = one_matrix(), transformation(row, label)
    gradients = [random_like(params, seed + 10) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry, gradients):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (adamx.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, gradients)[0]

    given = jax.tree.map(jnp.copy, params), tx.init(params)
    got = run(given, stacked)
    assert given[0]["w"].is_deleted()
    assert all(x.is_deleted() for x in jax.tree.leaves(given[1]) if x.nbytes > 64)
    assert_codes_close(got, steps(tx, params))


@by_case(("int8-stochastic",))
def test_vmap_equals_one_by_one(row, label):
    several = [random_like(one_matrix(), seed) for seed in range(3)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *several)

    def run(params):
        tx = transformation(row, label)
        state = tx.init(params)
        for seed in range(2):
            gradients = jax.tree.map(lambda p, seed=seed: p * (seed + 0.5), params)
            updates, state = tx.update(gradients, state, params)
            params = adamx.apply_updates(params, updates)
        return params, state

    batched = jax.jit(jax.vmap(run))(batch)
    alone = jax.jit(run)
    for i, params in enumerate(several):
        assert_codes_close(jax.tree.map(lambda x, i=i: x[i], batched), alone(params))


@pytest.mark.slow  # quickly: tests/test_clients_optax.py, of a state without codes
@by_case(("int8",))
def test_wrappers_of_optax(row, label):
    params = one_matrix()
    tx = transformation(row, label)
    want, _ = steps(tx, params)
    wrapped = [
        optax.masked(tx, {"w": True, "b": True}),
        optax.partition({"all": tx}, "all"),
        optax.chain(optax.identity(), tx),
        optax.inject_hyperparams(
            lambda learning_rate: transformation(row, label, learning_rate)
        )(LR),
    ]
    for other in wrapped:
        got, _ = steps(other, params)
        assert_codes_close(got, want)
    half = optax.masked(tx, {"w": True, "b": False})
    gradients = random_like(params, 10)
    state = half.init(params)
    updates, after = jax.jit(half.update)(gradients, state, params)
    assert form(after) == form(state)
    np.testing.assert_array_equal(updates["b"], gradients["b"])


# ----------------------------------------------------------------------- checkpoints


@by_case(("int4", "bfloat16"))
@as_users
def test_a_restored_checkpoint_continues_bitwise(row, label):
    params, tx = one_matrix(), transformation(row, label)
    params, state = steps(tx, params)
    want = steps(tx, params, state, range(3, 5))
    data = flax.serialization.to_bytes(state)
    by_flax = flax.serialization.from_bytes(tx.init(params), data)
    leaves, structure = jax.tree.flatten(state)
    arrays = pickle.loads(pickle.dumps([np.asarray(x) for x in leaves]))
    for restored in (by_flax, structure.unflatten(arrays)):
        assert_same(restored, state)
        assert_same(steps(tx, params, restored, range(3, 5)), want)


# -------------------------------------------------------------------------- devices


# Parts of 8 rows each: rank1 and columns cross them, the blocks of 8 and 4 do not.
PLACES = [
    ("rank1", None),
    pytest.param("column", 8, marks=pytest.mark.slow),
    pytest.param("column", None, marks=pytest.mark.slow),
    pytest.param("block", 4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("layout", "block"), PLACES)
@by_case(("int8-stochastic",))
@as_users
def test_eight_devices_equal_one(row, label, layout, block):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    params = random_like({"w": jnp.zeros((64, 24)), "b": jnp.zeros(24)}, 0)
    place = {
        "w": NamedSharding(mesh, PartitionSpec("data")),
        "b": NamedSharding(mesh, PartitionSpec()),
    }
    more = {"layout": layout, "block": block}
    if label == "bfloat16":  # has no scales
        if layout != "rank1":
            pytest.skip("once is enough")
        more = {}
    tx = transformation(row, label, **more)
    one = steps(tx, params)
    spread = jax.device_put(params, place)
    # Not compiled ahead of time: JAX would refuse int4 arrays that were made eagerly.
    state, update = tx.init(spread), jax.jit(tx.update)
    for seed in range(3):
        gradients = jax.device_put(random_like(params, seed + 10), place)
        updates, state = update(gradients, state, spread)
        spread = adamx.apply_updates(spread, updates)
    if row.reduces == "nothing":
        assert_same(jax.device_get((spread, state)), jax.device_get(one))
    else:  # sums over shards are ordered otherwise, and a tie is rounded otherwise
        assert_codes_close((spread, state), one)
    codes = [x for x in jax.tree.leaves(state) if x.shape == (64, 24)]
    assert codes
    assert all(x.sharding.is_equivalent_to(place["w"], 2) for x in codes)
    text = update.lower(gradients, state, spread).compile().as_text()
    if row.reduces == "nothing":
        has_scales = label != "bfloat16"
        assert ("all-reduce" in text) == (block is None and has_scales)


# -------------------------------------------------------------------- beside float32


SIGNS = {"lion"}
# Mean |p - p32| over mean |p32 - p0|, at most; and of signs, how many may differ.
DISTANCES = {
    "int8": 0.015, "int8-stochastic": 0.03, "bfloat16": 0.015, "e4m3": 0.05,
    "e4m3-stochastic": 0.1, "e5m2": 0.1, "e5m2-stochastic": 0.2, "int4": 0.2,
    "int4-stochastic": 0.3,
}  # fmt: skip


def test_every_codec_has_a_distance():
    assert set(DISTANCES) == set(LABELS)


@by_case(("int8", "e4m3"), "lion")
def test_follows_float32(row, label):
    """For 20 steps the parameters move as with float32 moments, nearly."""
    params = random_like({"w": jnp.zeros((32, 48))}, 0)
    column = 10.0 ** np.linspace(-2, 0, 48, dtype=np.float32)
    gradients = random_like({"w": jnp.zeros((20, 32, 48))}, 1)["w"] * column

    def run(tx):
        def step(carry, g):
            p, state = carry
            updates, state = tx.update({"w": g}, state, p)
            return (adamx.apply_updates(p, updates), state), updates["w"]

        return jax.lax.scan(step, (params, tx.init(params)), gradients)

    ours, plain = transformation(row, label), row.make()
    ((p, _), u), ((q, _), v) = jax.jit(lambda: (run(ours), run(plain)))()
    u, v = (np.asarray(x, np.float64) for x in (u, v))
    assert not np.array_equal(u, v)
    if row.name in SIGNS:
        assert np.mean(np.sign(u) != np.sign(v)) < DISTANCES[label]
        return
    moved = np.abs(np.asarray(q["w"]) - np.asarray(params["w"]))
    error = np.abs(np.asarray(p["w"]) - np.asarray(q["w"]))
    assert error.mean() <= DISTANCES[label] * moved.mean()


@pytest.mark.slow  # tests/test_checkpoint.py saves and restores codecs, too
def test_a_checkpoint_of_orbax_continues_bitwise(tmp_path):
    import orbax.checkpoint

    codec = codecs.int8(min_size=32)
    tx = adamx.master_weights(adamx.adamw(1e-2, mu_dtype=codec, nu_dtype=codec))
    params = {"kernel": jnp.ones((8, 16), jnp.bfloat16), "bias": jnp.ones(16)}
    gradients = jax.tree.map(lambda p: 0.1 * p, params)
    state = tx.update(gradients, tx.init(params), params)[1]
    with orbax.checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    want = tx.update(gradients, state, params)
    chex.assert_trees_all_equal(tx.update(gradients, restored, params), want)


# ---------------------------------------------------------- explicitly sharded axes


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="no explicit axes before 0.7")
@pytest.mark.parametrize("layout", some(["rank1", "column", "block"], "rank1", "block"))
def test_the_state_keeps_its_types_under_explicit_axes(layout):
    codec = codecs.int8(layout)
    tx = adamx.loss_scaling(adamx.adamw(1e-2, mu_dtype=codec, nu_dtype=codec))
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=explicit)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("x", "y"))
        params = {"a": jnp.ones((256, 64), out_sharding=place), "b": jnp.ones((8, 4))}
        state = jax.jit(tx.init)(params)
        _, new = jax.jit(tx.update)(params, state, params)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
