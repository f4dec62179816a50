"""Moments of few bits are written behind the parameters: nothing old is copied."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import adamx
from adamx import codecs
from tests.compiling import AS_USERS, as_users
from tests.helpers import IS_OLD_XLA, some

pytestmark = pytest.mark.filterwarnings("error")

# Two that are large enough to have an order, one that is not; one row more than is cut
# into slices.
SHAPES = {"a": (264, 320), "b": (64,), "c": (257, 256)}
# The first large in each of eight pieces, the second whole on every device.
PIECES = {"a": (2048, 264), "b": (257, 256)}
NARROW = ("s8", "u8", "s4", "u4", "bf16")


def both(codec):
    return {"mu_dtype": codec, "nu_dtype": codec}


def adamw(codec, **kwargs):
    return adamx.adamw(1e-2, **both(codec), **kwargs)


def two_groups():
    mine = adamx.lion(1e-3, mu_dtype=jnp.bfloat16)
    return adamx.groups([("a|b", adamw(codecs.int8()))], default=mine)


def clipped_behind():
    """Each parameter needs the new moments of all: no order among them."""
    moments = adamx.scale_by_adam(**both(codecs.int8()))
    return optax.chain(moments, optax.clip_by_global_norm(0.1), optax.scale(-1e-2))


CASES = {
    "int8": lambda: adamw(codecs.int8()),
    "column, nearest": lambda: adamw(codecs.int8("column", rounding="nearest")),
    "bfloat16 mean": lambda: adamx.adamw(1e-2, mu_dtype=jnp.bfloat16),
    "bfloat16": lambda: adamw(codecs.bfloat16_stochastic()),
    "int4": lambda: adamw(codecs.int4()),
    "fp8": lambda: adamw(codecs.fp8()),
    "lamb": lambda: adamx.lamb(1e-2, **both(codecs.int8())),
    "lion": lambda: adamx.lion(1e-3, mu_dtype=codecs.int8()),
    "groups": two_groups,
    "masked": lambda: optax.masked(
        adamw(codecs.int8()), {"a": True, "b": True, "c": False}
    ),
    "clipped behind": clipped_behind,
    "guard": lambda: adamx.guard(adamw(codecs.int8())),
    "accumulate": lambda: adamx.accumulate(adamw(codecs.int8()), 2),
    "a schedule": lambda: adamx.adamw(
        adamx.schedules.linear(1e-2, 0.0, 10), **both(codecs.int8())
    ),
    "hyperparams": lambda: adamx.with_hyperparams(adamw, codec=codecs.int8(), b1=0.8),
}
# Those whose parameters can be computed one by one, and nothing stands around.
ORDERED = ("int8", "column, nearest", "bfloat16 mean", "bfloat16", "lion", "groups")
QUICK = ("int8", "bfloat16 mean", "groups", "clipped behind")


def trees(steps, shapes=SHAPES):
    """Parameters, and a gradient for each step."""
    rng = np.random.default_rng(0)
    return [
        {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
        for _ in range(1 + steps)
    ]


def steps_of(tx):
    """The protocol and the fused step, not compiled."""

    def protocol(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    fused = adamx.fused(tx).step
    return protocol, lambda params, state, grads: fused(grads, state, params)


def assert_same_bits(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def run(step, params, state, grads):
    for g in grads:
        params, state = step(params, state, g)
    return params, state


@pytest.mark.parametrize("name", some(CASES, *QUICK))
@pytest.mark.parametrize("has_nan", some([False, True], False))
def test_the_results_are_those_of_the_protocol(name, has_nan):
    """Bit for bit; also where the number that says that p is there would be NaN."""
    tx = CASES[name]()
    params, *grads = trees(3)
    if has_nan:
        params["a"] = params["a"].at[0, 0].set(jnp.nan)
    protocol, fused = (
        run(jax.jit(f), params, tx.init(params), grads) for f in steps_of(tx)
    )
    assert_same_bits(fused, protocol)
    if name != "lamb":  # whose rate is one for a leaf
        assert np.isnan(np.asarray(fused[0]["a"])).sum() == has_nan


def compiled(step, tx, params):
    state = jax.eval_shape(tx.init, params)
    donated = jax.jit(step, donate_argnums=(0, 1))
    return donated.lower(params, state, params).compile(AS_USERS)


def copies(program):
    """Of arrays of few bits, of the size of a large leaf."""
    large = [",".join(map(str, s)) for s in SHAPES.values() if len(s) == 2]
    found = re.findall(r"= (\w+)\[([\d,]+)\]\S* copy\(", program.as_text())
    return [x for x in found if x[0] in NARROW and x[1] in large]


@pytest.mark.skipif(IS_OLD_XLA, reason="XLA of jax 0.6 copies in another way")
@pytest.mark.parametrize("name", some(ORDERED, "bfloat16 mean"))
def test_no_old_moment_is_copied(name):
    tx = CASES[name]()
    params = trees(0)[0]
    protocol, fused = steps_of(tx)
    assert copies(compiled(protocol, tx, params))  # there is something to be saved
    program = compiled(fused, tx, params)
    assert not copies(program)
    # What is left is of the scales: slices that are compared before they are reduced.
    size = sum(p.nbytes for p in params.values())
    held = 0.01 if name.startswith("bfloat16") else 0.2
    assert program.memory_analysis().temp_size_in_bytes <= held * size


@pytest.mark.skipif(IS_OLD_XLA, reason="XLA of jax 0.6 copies in another way")
def test_old_codes_of_4_bits_are_copied():
    """Written in place, where they are read, a step takes 2.5 times as long."""
    params = trees(0)[0]
    protocol, fused = (
        copies(compiled(step, CASES["int4"](), params))
        for step in steps_of(CASES["int4"]())
    )
    assert {dtype for dtype, _ in protocol} == {"s4", "u4"}
    assert sorted(fused) == sorted(protocol)


# ------------------------------------------------------------------- around and inside


def test_an_effect_happens_once():
    """A callback inside of a stage: in the order in which it was written."""
    seen = []

    def watch(updates, state, params=None):
        del params
        jax.debug.callback(lambda x: seen.append(float(x)), updates["b"][0])
        return updates, state

    watching = optax.GradientTransformation(lambda _: optax.EmptyState(), watch)
    tx = optax.chain(watching, CASES["bfloat16 mean"]())
    params, *grads = trees(2)
    want = [float(g["b"][0]) for g in grads]
    run(jax.jit(steps_of(tx)[1]), params, tx.init(params), grads)
    jax.effects_barrier()
    assert seen == want


def test_what_a_step_closes_over_may_be_traced():
    """A rate, and an extra argument: constants of the traced step."""

    def scaled(updates, state, params=None, *, factor, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u: u * factor, updates), state

    given = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), scaled)
    params, grads = trees(1)

    def both_ways(rate, factor):
        inner = adamx.adamw(rate, mu_dtype=jnp.bfloat16)
        tx = optax.chain(given, inner)
        state = tx.init(params)
        new = adamx.fused(tx).step(grads, state, params, factor=factor)
        updates, state = tx.update(grads, state, params, factor=factor)
        return new, (adamx.apply_updates(params, updates), state)

    got, want = jax.jit(both_ways)(jnp.float32(1e-2), jnp.float32(0.5))
    assert_same_bits(got, want)


def test_what_waits_for_all_is_computed_once():
    """Where only some can have an order, nothing is done again for the rest."""
    called = []

    def noted(name):
        def note(x):
            called.append(name)
            return x

        def update(updates, state, params=None):
            del params
            one = jax.ShapeDtypeStruct((), jnp.float32)
            one = jax.pure_callback(note, one, jnp.ones(()), vmap_method="sequential")
            return jax.tree.map(lambda u: u * one, updates), state

        return optax.GradientTransformation(lambda _: optax.EmptyState(), update)

    tx = optax.partition(
        {
            "alone": optax.chain(CASES["bfloat16 mean"](), noted("a")),
            "all": optax.chain(clipped_behind(), noted("b")),
        },
        {"a": "alone", "b": "alone", "c": "all"},
    )
    params, *grads = trees(1)
    step = jax.vmap(steps_of(tx)[1], axis_size=1, in_axes=(None, None, 0))
    step(params, tx.init(params), jax.tree.map(lambda g: g[None], grads[0]))
    assert called.count("a") == called.count("b") == 1


def test_shapes_may_be_symbols():
    """As in an export for batches of any size."""
    size = jax.export.symbolic_shape("n")[0]
    leaf = jax.ShapeDtypeStruct((size, 3), jnp.float32)
    for tx in (adamx.sgd(0.1), CASES["bfloat16 mean"]()):
        step = adamx.fused(tx).step
        whole = jax.jit(lambda p, g, tx=tx, step=step: step(g, tx.init(p), p)[0])
        assert jax.export.export(whole)(leaf, leaf).nr_devices == 1


def test_what_is_no_array_stays_what_it_is():
    """Numbers among parameters, names and numbers in a state that is closed over."""
    assert (
        adamx.fused(adamx.sgd(0.5)).step(1.0, adamx.sgd(0.5).init(1.0), 1.0)[0] == 0.5
    )
    params, grads = trees(1)
    inner = CASES["bfloat16 mean"]()

    def update(updates, state, params=None):
        assert (state["name"], state["count"]) == ("mine", 3)
        assert bool(state["is_on"])
        updates, held = inner.update(updates, state["inner"], params)
        return updates, state | {"inner": held, "count": state["count"] + 1}

    def init(params):
        kept = {"name": "mine", "count": 3, "is_on": np.True_}
        return kept | {"inner": inner.init(params)}

    tx = optax.GradientTransformation(init, update)
    state = tx.init(params)
    seen = []

    def one(way, params, grads):
        params, new = steps_of(tx)[way](params, state, grads)
        seen.append((new["name"], new["count"], type(new["count"])))
        return params, new["inner"]

    want, got = (jax.jit(functools.partial(one, way))(params, grads) for way in (0, 1))
    assert seen == [("mine", 4, int)] * 2
    assert_same_bits(got, want)


@pytest.mark.parametrize("name", some(["int8", "bfloat16 mean"]))
def test_in_scan_and_under_vmap(name):
    tx = CASES[name]()
    params, *grads = trees(3)
    step = steps_of(tx)[1]
    want = run(jax.jit(step), params, tx.init(params), grads)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    body = lambda held, g: (step(*held, g), None)  # noqa: E731
    scanned = jax.jit(lambda p, s: jax.lax.scan(body, (p, s), stacked)[0])
    assert_same_bits(scanned(params, tx.init(params)), want)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), (params, tx.init(params)))
    many = jax.jit(jax.vmap(lambda p, s: run(step, p, s, grads)))(*two)
    assert_same_bits(jax.tree.map(lambda x: x[1], many), want)


@pytest.mark.parametrize("name", some(["bfloat16 mean", "int8"], "bfloat16 mean"))
@pytest.mark.parametrize("is_explicit", some([False, True], False))
@as_users
def test_on_eight_devices(name, is_explicit):
    """Each has its pieces of the moments; also with ZeRO-1."""
    if is_explicit and not hasattr(jax, "set_mesh"):
        pytest.skip("no explicit axes before 0.7")
    kind = {"axis_types": (jax.sharding.AxisType.Explicit,)} if is_explicit else {}
    mesh = Mesh(np.array(jax.devices()), ("data",), **kind)
    tx = CASES[name]()
    params, *grads = trees(2)
    step = steps_of(tx)[1]
    want = run(jax.jit(step), params, tx.init(params), grads)
    state = tx.init(params)
    whole, pieces = specs_of((params, state), 1000), specs_of((params, state), 8)
    for specs in (whole, (whole[0], pieces[1]), pieces):
        placed = jax.tree.map(
            lambda x, s: jax.device_put(x, jax.sharding.NamedSharding(mesh, s)),
            (params, state),
            specs,
        )
        assert_same_bits(run(jax.jit(step), *placed, grads), want)


def specs_of(tree, count):
    """Along the first axis, where it can be divided by so many."""
    return jax.tree.map(
        lambda x: P("data") if x.ndim and x.shape[0] % count == 0 else P(), tree
    )


@pytest.mark.skipif(
    not hasattr(jax, "shard_map"), reason="experimental in this version"
)
def test_in_shard_map():
    """Large pieces, beside a leaf that every device has whole, and must be seen to."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = CASES["bfloat16 mean"]()
    params, grads = trees(1, PIECES)
    step = steps_of(tx)[1]
    state = tx.init(params)
    specs = specs_of((params, state), 8)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(*specs, specs[0]), out_specs=specs
    )
    got = jax.jit(mapped)(params, state, grads)
    assert_same_bits(got, jax.jit(step)(params, state, grads))


@pytest.mark.skipif(
    not hasattr(jax, "shard_map"), reason="experimental in this version"
)
@pytest.mark.parametrize("way", some([0, 1], 0))
def test_codes_of_a_whole_leaf_behind_one_in_pieces(way):
    """The order among leaves, too, leaves it the same on all devices."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = CASES["int8"]()
    params, grads = trees(1, PIECES)
    step = steps_of(tx)[way]

    def first(params, grads):
        params, state = step(params, tx.init(params), grads)
        return params, state[0].mu.codes

    specs = {"a": P("data"), "b": P()}
    mapped = jax.shard_map(
        first, mesh=mesh, in_specs=(specs, specs), out_specs=(specs, specs)
    )
    got = jax.jit(mapped)(params, grads)
    want = jax.jit(first)(params, grads)
    assert_same_bits(got[0]["b"], want[0]["b"])
    assert_same_bits(got[1]["b"], want[1]["b"])


def test_one_compilation_for_all_steps():
    tx = CASES["bfloat16 mean"]()
    params, *grads = trees(3)
    step = jax.jit(steps_of(tx)[1])
    run(step, params, tx.init(params), grads)
    assert step._cache_size() == 1


@pytest.mark.parametrize("rows", [1, 9, 16, 17, 65, 66])
def test_a_slice_of_one_row_is_seen(rows):
    """The largest of each column, wherever it is."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 24)).astype(np.float32)
    tx = adamx.scale_by_adam(b1=0.0, mu_dtype=codecs.int8("column", min_size=0))
    _, state = jax.jit(tx.update)(x, tx.init(x))
    np.testing.assert_array_equal(state.mu.scales[0], np.abs(x).max(0, keepdims=True))
