"""Encoded moments of large leaves on meshes: automatic axes, explicit axes, no mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx import codecs
from adamx.moments import _layout
from adamx.moments._layout import LAYOUTS
from adamx.moments._order import LARGE, one_of
from adamx.sharding import state_shardings
from adamx.sharding._collectives import collectives_of
from tests.compiling import as_users

needs_explicit = pytest.mark.skipif(
    not hasattr(jax, "set_mesh"), reason="no explicit axes before 0.7"
)
SHAPE = (512, 256)
MEANS = {layout: adamx.adamw(1e-3, mu_dtype=codecs.int8(layout)) for layout in LAYOUTS}
CODECS = {layout: codecs.int8(layout) for layout in LAYOUTS}
CODECS |= {"blocks": codecs.int8("rank1", block=64), "int4": codecs.int4()}
CODECS |= {"fp8": codecs.fp8(), "bf16": codecs.bfloat16_stochastic()}
BOTH = {k: adamx.adamw(1e-3, mu_dtype=c, nu_dtype=c) for k, c in CODECS.items()}


def draw(seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)


def mesh_of(kind):
    axes = (getattr(jax.sharding.AxisType, kind),) * 2
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=axes)


def run(txs, mesh=None, spec=None, zero1=None):
    """Three steps with each, in one program: updates and states."""
    params, gradients = draw(0), [draw(seed) for seed in (1, 2, 3)]
    init = lambda p: {k: tx.init(p) for k, tx in txs.items()}  # noqa: E731
    outs = {}
    if mesh is not None:
        place = NamedSharding(mesh, spec)
        held = {k: state_shardings(tx, params, place, zero1) for k, tx in txs.items()}
        params, *gradients = jax.device_put((params, *gradients), place)
        outs = {"out_shardings": [dict.fromkeys(txs, place), held]}

    def step(gradient, states, params):
        both = {k: tx.update(gradient, states[k], params) for k, tx in txs.items()}
        return [{k: pair[i] for k, pair in both.items()} for i in (0, 1)]

    states = jax.jit(init, out_shardings=outs["out_shardings"][1] if outs else None)(
        params
    )
    step = jax.jit(step, **outs)
    for gradient in gradients:
        updates, states = step(gradient, states, params)
    return jax.device_get((updates, states))


ROWS = [
    ("means", {k: MEANS[k] for k in ("rank1", "block")}, P("data", "model"), None),
    pytest.param("means", MEANS, P("data", "model"), None, marks=pytest.mark.slow),
    pytest.param("both", BOTH, P(("data", "model")), None, marks=pytest.mark.slow),
    pytest.param("both", BOTH, P(None, "model"), "data", marks=pytest.mark.slow),
]


@needs_explicit
@pytest.mark.parametrize(("label", "txs", "spec", "zero1"), ROWS)
@as_users
def test_large_leaves_on_explicit_axes(label, txs, spec, zero1):
    assert np.prod(SHAPE) >= LARGE
    mesh = mesh_of("Explicit")
    with jax.set_mesh(mesh):
        explicit = run(txs, mesh, spec, zero1)
    chex.assert_trees_all_equal(explicit, run(txs, mesh_of("Auto"), spec, zero1))
    chex.assert_trees_all_equal(explicit, run(txs))


# (shape, spec, layout) where a slice of an axis, or a block, is in no whole pieces.
ODD = [
    pytest.param((24, 16), P("data", "model"), "rank1", marks=pytest.mark.slow),
    pytest.param((28, 36), P("model", "data"), "tensor", marks=pytest.mark.slow),
    ((8, 600), P(None, "model"), "block"),  # 3 blocks on 2 devices
]


@needs_explicit
@pytest.mark.parametrize(("shape", "spec", "layout"), ODD)
def test_explicit_axes_that_divide_no_slices(shape, spec, layout):
    mesh, codec = mesh_of("Explicit"), codecs.int8(layout, min_size=1)
    tx = adamx.scale_by_adam(mu_dtype=codec, nu_dtype=codec)
    g = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = jax.jit(tx.update)(g, tx.init(g))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, spec)
        held = state_shardings(tx, g, place)
        state = jax.jit(tx.init, out_shardings=held)(g)
        apart = jax.jit(tx.update)(jax.device_put(g, place), state)
    chex.assert_trees_all_equal(jax.device_get(apart), jax.device_get(whole))


@pytest.mark.parametrize("spec", [P(None, "model"), P("model"), P(("data", "model"))])
def test_the_largest_of_a_sharded_axis_is_found_without_moving_it(spec):
    """Numbers for each row and column are exchanged, and nothing of the array."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    place = NamedSharding(mesh, spec)
    shape = jax.ShapeDtypeStruct(SHAPE, jnp.float32, sharding=place)
    scales = _layout.scale_shapes(SHAPE, "rank1", None)

    def find(x):
        return [_layout.largest(jnp.abs(jnp.sin(x)), scale) for scale in scales]

    text = jax.jit(find).lower(shape).compile().as_text()
    found = collectives_of(text, 8)
    assert {c.kind for c in found} == {"all-reduce"}
    assert sum(c.bytes for c in found) <= 2 * 4 * sum(map(np.prod, scales))


@needs_explicit
def test_the_number_of_an_array_is_found_without_moving_it():
    """The order of large leaves asks for one number: of each piece, where it lies."""
    mesh = mesh_of("Explicit")
    with jax.set_mesh(mesh):
        x = jax.device_put(-1 - jnp.arange(32.0).reshape(8, 4), P("data", "model"))
        found = jax.jit(one_of)
        assert float(found(x)) == 1 + 26  # the first one of the last piece
        text = found.lower(x).compile().as_text()
    assert "all-reduce" in text
    for moved in ("all-gather", "collective-permute", "all-to-all"):
        assert moved not in text
    assert float(one_of(jnp.array([[-3.0, 5.0]]))) == 3.0
    grid = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    whole = jax.device_put(jnp.full((8, 4), -2.0), NamedSharding(grid, P("data")))
    assert float(one_of(whole)) == 2.0
