"""Where the arrays of a state lie: by hand for each kind, and from real buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx import codecs
from adamx.sharding import describe_shardings, state_shardings
from adamx.sharding._specs import divided, projected
from tests.helpers import load_benchmark

SIZES = {"data": 4, "model": 2}
# Two of one shape that lie otherwise; a vector; one that 4 does not divide; a scalar.
SHAPES = {
    "a": {"down": (16, 24), "up": (16, 24)},
    "bias": (24,),
    "odd": (7, 3),
    "scale": (),
}
SPECS = {
    "a": {"down": P("model"), "up": P(None, "model")},
    "bias": P(),
    "odd": P(),
    "scale": P(),
}
# With ZeRO-1 over "data".
DIVIDED = {
    "a/down": P("model", "data"),
    "a/up": P("data", "model"),
    "bias": P("data"),
    "odd": P(),
    "scale": P(),
}
PLAIN = {"a/down": P("model"), "a/up": P(None, "model"), "bias": P(), "odd": P()}
PLAIN |= {"scale": P()}


def grid():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


def shapes(dtype=jnp.float32):
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, dtype), SHAPES, is_leaf=is_shape
    )


def by_path(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {adamx._tree.path_name(path): leaf.spec for path, leaf in flat}


def of_moments(tx, zero1="data", params=None):
    return by_path(state_shardings(tx, params or shapes(), SPECS, zero1, mesh=grid()))


def adam():
    return adamx.scale_by_adam()


def by_arrays_only():
    """A transformation of somebody whose init wants arrays."""

    def init(params):
        flat = jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves(params)])
        return {"flat": flat, "m": params, "count": jnp.zeros((), jnp.int32)}

    return optax.GradientTransformation(init, lambda g, s, p=None: (g, s))


# (label, transformation, the trees like the parameters in its state)
CASES = [
    ("adam", adam, ["mu", "nu"]),
    ("optax", lambda: optax.chain(optax.clip(1.0), optax.adamw(1e-3)), ["1/0/mu"]),
    ("guard", lambda: adamx.guard(adam()), ["inner_state/mu"]),
    ("accumulate", lambda: adamx.accumulate(adam(), 2), ["accumulated"]),
    ("multisteps", lambda: optax.MultiSteps(optax.adam(1e-3), 2), ["acc_grads"]),
    ("diagnose", lambda: adamx.diagnose(adamx.adamw(1e-3)), ["inner_state/0/nu"]),
    ("master", lambda: adamx.master_weights(adam()), ["inner_state/mu"]),
    ("compensated", lambda: adamx.compensated(adam()), ["inner_state/mu"]),
    ("fused", lambda: adamx.fused(adamx.loss_scaling(adam())), ["inner_state/mu"]),
    (
        "stages",
        lambda: adamx.stages([(adam(), 2), (adamx.scale_by_momentum(0.9), None)]),
        [],
    ),
    (
        "inject",
        lambda: optax.inject_hyperparams(optax.adam)(1e-3),
        ["inner_state/0/mu", "inner_state/0/nu"],
    ),
    ("arrays only", by_arrays_only, ["m"]),
]


@pytest.mark.parametrize(("label", "make", "trees"), CASES, ids=[c[0] for c in CASES])
def test_every_tree_like_the_parameters_lies_as_they_do(label, make, trees):
    tx = make()
    found = of_moments(tx)
    state = jax.eval_shape(tx.init, shapes())
    assert found.keys() == adamx._tree.leaves_by_path(state).keys()
    for tree in trees:
        assert {name: found[f"{tree}/{name}"] for name in DIVIDED} == DIVIDED
    if label != "arrays only":  # nothing of their shapes lies otherwise
        for name, x in adamx._tree.leaves_by_path(state).items():
            if x.shape in ((16, 24), (24,)):
                assert found[name] == next(
                    spec for end, spec in DIVIDED.items() if name.endswith(end)
                )
            else:
                assert found[name] == P()
    plain = of_moments(tx, zero1=None)
    for tree in trees:
        assert {name: plain[f"{tree}/{name}"] for name in PLAIN} == PLAIN


def test_what_is_like_a_parameter_in_form_only_is_not_taken_for_one():
    """The two words of a random key beside a single vector; not by its structure."""
    codec = codecs.int8(min_size=1, block=8)
    tx = adamx.scale_by_lion(mu_dtype=codec)
    one = jax.ShapeDtypeStruct((16,), jnp.float32)
    found = by_path(state_shardings(tx, one, P("model"), mesh=grid()))
    assert found["mu/codes"] == found["mu/scales/0"] == P("model")
    assert found["mu/key"] == P()


def test_other_groups_and_masks():
    rules = [("a/down|odd", adam())]
    tx = adamx.groups(rules, default=adamx.scale_by_momentum(0.9))
    found = of_moments(tx)
    assert sum(spec != P() for spec in found.values()) == 2 + 2
    for name, spec in found.items():
        own = [end for end in DIVIDED if name.endswith(end) and "count" not in name]
        assert spec == (DIVIDED[own[0]] if own else P()), name
    # A mask that is True or False for a whole subtree.
    mask = {"a": False, "bias": True, "odd": False, "scale": False}
    found = of_moments(optax.masked(optax.trace(0.9), mask))
    assert found == {"inner_state/trace/bias": P("data")}


def test_codes_and_scales():
    codec = codecs.int8("block", block=4, min_size=8)
    column = codecs.int8("column", block=2, min_size=8)
    found = of_moments(adamx.scale_by_adam(mu_dtype=codec, nu_dtype=column))
    for moment in ("mu", "nu"):
        assert {k: found[f"{moment}/codes/{k}"] for k in DIVIDED} == DIVIDED
        assert found[f"{moment}/key"] == P()
    # 24 columns in 6 blocks: 4 devices have no whole number of them, 2 have.
    assert found["mu/scales/0/a/down"] == P("model")
    assert found["mu/scales/0/a/up"] == P("data", "model")
    assert found["mu/scales/0/bias"] == P()
    # 16 rows in 8 blocks.
    assert found["nu/scales/0/a/down"] == P("model", "data")
    assert found["nu/scales/0/a/up"] == P("data", "model")
    assert found["nu/scales/0/odd"] == P()


def test_reduced_moments_and_histories():
    found = of_moments(adamx.scale_by_adam_mini())
    assert found["mu/a/up"] == P("data", "model")
    state = jax.eval_shape(adamx.scale_by_adam_mini().init, shapes())
    shared = [n == 1 for n in state.nu["a"]["up"].shape]
    assert any(shared)
    entries = (*found["nu/a/up"], None, None)
    assert all(entries[i] is None for i, is_one in enumerate(shared) if is_one)
    found = of_moments(optax.scale_by_lbfgs(3))
    assert found["diff_params_memory/a/up"] == P(None, "data", "model")
    assert found["weights_memory"] == P()


@pytest.mark.parametrize(
    ("shape", "dims", "axes", "want"),
    [
        ((64, 64), ((), ()), ("data",), (("data",), ())),
        ((4, 64), ((), ()), ("data",), ((), ("data",))),  # longer pieces
        ((4, 8), ((), ()), ("data",), ((), ("data",))),
        ((7, 8), ((), ("model",)), ("data",), ((), ("model", "data"))),  # further
        ((8, 64), ((), ("model",)), ("data",), (("data",), ("model",))),  # a whole one
        ((7, 4), ((), ("model",)), ("data",), ((), ("model",))),
        ((64, 64), (("data",), ()), ("data",), (("data",), ())),  # already
        ((8, 3), ((), ()), ("data", "model"), (("data", "model"), ())),  # one gather
        ((4, 2), ((), ()), ("data", "model"), (("data",), ("model",))),
        ((4, 3), ((), ()), ("model", "data"), (("data",), ())),  # the larger one
        ((0, 8), ((), ()), ("data",), ((), ("data",))),
        ((0,), ((),), ("data",), ((),)),
        ((), (), ("data",), ()),
    ],
)
def test_the_dimension_that_is_divided(shape, dims, axes, want):
    assert divided(shape, dims, axes, SIZES) == want


def test_explicit_axes_divide_whole_dimensions_only():
    dims = (("model",), ())
    assert divided((8, 3), dims, ("data",), SIZES) != dims
    assert divided((8, 3), dims, ("data",), SIZES, only_whole=True) == dims
    whole = divided((8, 4), dims, ("data",), SIZES, only_whole=True)
    assert whole == (("model",), ("data",))


@pytest.mark.parametrize(
    ("shape", "like", "dims", "want"),
    [
        ((8, 1), (8, 12), (("model",), ("data",)), (("model",), ())),
        ((8, 4), (8, 12), ((), ("data",)), ((), ("data",))),
        ((8, 6), (8, 12), ((), ("data",)), ((), ())),
        ((8, 6), (8, 12), ((), ("model", "data")), ((), ("model",))),
        ((8, 4), (8, 13), ((), ("data",)), ((), ())),  # a shorter last block
        ((8,), (8, 12), (("data",), ()), ((),)),
        ((5, 8), (8,), (("data",),), ((), ("data",))),
        ((8, 5), (8,), (("data",),), ((), ())),
        ((0, 0), (8, 12), (("data",), ()), ((), ())),
    ],
)
def test_what_lies_beside_a_parameter(shape, like, dims, want):
    assert projected(shape, like, dims, SIZES) == want


def test_the_forms_of_param_shardings():
    mesh, tx = grid(), adam()
    want = state_shardings(tx, shapes(), SPECS, "data", mesh=mesh)
    named = jax.tree.map(lambda s: NamedSharding(mesh, s), SPECS)
    assert state_shardings(tx, shapes(), named, "data") == want
    one = state_shardings(tx, shapes(), NamedSharding(mesh, P()))
    assert {s.spec for s in jax.tree.leaves(one)} == {P()}
    below = state_shardings(tx, shapes(), SPECS | {"a": P("model")}, mesh=mesh)
    assert below.mu["a"]["up"].spec == below.mu["a"]["down"].spec == P("model")
    arrays = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes())
    assert state_shardings(tx, arrays, SPECS, "data", mesh=mesh) == want
    assert jax.tree.leaves(state_shardings(tx, {}, {}, mesh=mesh))


def test_a_model_of_flax():
    model = nnx.eval_shape(lambda: nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    specs = jax.tree.map(lambda x: P("model") if x.ndim == 1 else P(), params)
    shardings = state_shardings(adam(), params, specs, "data", mesh=grid())
    found = {k: v.spec for k, v in adamx._tree.leaves_by_path(shardings).items()}
    assert found["mu/kernel"] == P(None, "data") or found["mu/kernel"] == P("data")
    assert found["nu/bias"] == P(("model", "data"))


def test_an_offloaded_state_stays_in_host_memory():
    if not hasattr(jax, "memory"):
        pytest.skip("this jax names no memory without a sharding")
    tx = adamx.offload(adam(), min_size=8)
    shardings = state_shardings(tx, shapes(), SPECS, "data", mesh=grid())
    kinds = {name: s.memory_kind for name, s in shardings.mu.items() if name != "a"}
    assert kinds["bias"] == "pinned_host"
    assert kinds["scale"] != "pinned_host"


def test_memory_of_the_parameters_is_that_of_their_moments():
    kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
    if "pinned_host" not in kinds:
        pytest.skip("this jax has one memory on CPUs")
    place = NamedSharding(grid(), P(), memory_kind="pinned_host")
    mu = state_shardings(adam(), shapes(), place, "data").mu
    assert mu["bias"].spec == P("data")
    assert mu["odd"].memory_kind == mu["bias"].memory_kind == "pinned_host"


def test_an_init_that_makes_its_trees_of_nothing_it_is_given():
    """No placeholder comes to stand in its state: found by structure and rank."""
    made = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes())
    turned = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), shapes())
    tx = optax.GradientTransformation(
        lambda params: {"m": made, "other": turned}, lambda g, s, p=None: (g, s)
    )
    found = of_moments(tx)
    assert {name: found[f"m/{name}"] for name in DIVIDED} == DIVIDED
    assert {found[f"other/{name}"] for name in DIVIDED} == {P()}
    shared = describe_shardings(tx, shapes(), SPECS, mesh=grid()).rows[-1]
    assert shared.state_bytes == sum(x.nbytes for x in jax.tree.leaves(turned))


def test_a_parameter_without_state_is_not_one_that_nothing_divides():
    tx = adamx.groups([("^odd", adamx.freeze())], default=adamx.adamw(1e-3))
    table = describe_shardings(tx, shapes(), SPECS, "data", mesh=grid())
    assert table.undivided == ("scale",)
    assert {row.path: row.divided for row in table.rows}["odd"] is None


def test_the_table_and_its_bytes():
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes())
    arguments = (adamx.adamw(1e-3), params, SPECS, "data")
    table = describe_shardings(*arguments, mesh=grid())
    rows = {row.path: row for row in table.rows}
    assert list(rows) == [*DIVIDED, "(shared)"]
    up = rows["a/up"]
    assert (up.param_spec, up.state_spec) == (P(None, "model"), P("data", "model"))
    assert (up.state_bytes, up.bytes_per_device) == (2 * 16 * 24 * 4, 2 * 16 * 24 / 2)
    assert [row.divided for row in table.rows] == [True, True, True, False, False, None]
    assert table.undivided == ("odd", "scale")
    text = table.text(110)
    assert "zero1 cannot divide: odd, scale" in text
    for part in ("data, model", "7x3", "(not divided)"):
        assert part in text
    shardings = state_shardings(*arguments, mesh=grid())
    state = jax.jit(arguments[0].init, out_shardings=shardings)(params)
    held = describe_shardings(*arguments, mesh=grid(), state=state)
    assert held.bytes_per_device == table.bytes_per_device < table.state_bytes
    assert held.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    # Where it is not what was meant, the bytes say so.
    elsewhere = jax.device_put(state, NamedSharding(grid(), P()))
    held = describe_shardings(*arguments, mesh=grid(), state=elsewhere)
    assert held.bytes_per_device == held.state_bytes
    plain = describe_shardings(*arguments[:3], mesh=grid())
    assert plain.undivided == ()
    assert {row.divided for row in plain.rows} == {None}


def test_zero1_of_gpt2_keeps_an_eighth():
    """Real buffers at 1/16 of the width; of the true shapes, what it would be."""
    trees = load_benchmark("_trees")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx, whole = adamx.adamw(1e-3), NamedSharding(mesh, P())
    small = trees.gpt2_shapes(48, 2, 1024, 64)
    params = jax.device_put([jnp.ones(s) for s in small], whole)
    shardings = state_shardings(tx, params, whole, "data")
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    held = describe_shardings(tx, params, whole, "data", state=state)
    assert held.fraction <= 0.13
    true = [jax.ShapeDtypeStruct(s, jnp.float32) for s in trees.gpt2_shapes()]
    assert describe_shardings(tx, true, whole, "data").fraction <= 0.13
