"""Steps with a divided state: what is gathered, and values as on one device.

What is gathered is read in the compiled program.
"""

import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx import codecs
from adamx.sharding import state_shardings
from adamx.sharding._collectives import collectives_of
from tests.compiling import as_users
from tests.helpers import some

RATE = 1e-2
SHAPES = {"a": {"w": (64, 24), "v": (16, 64)}, "b": (32,), "odd": (7, 3)}
DIVIDED = {"a/w", "a/v", "b"}  # by 8


def line():
    return Mesh(np.array(jax.devices()), ("data",))


def tree(seed):
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    flat, structure = jax.tree.flatten(SHAPES, is_leaf=is_shape)
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal(s).astype(np.float32) for s in flat]
    return jax.tree.map(jnp.asarray, structure.unflatten(drawn))


def updating(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return adamx.apply_updates(params, updates), state

    return step


def fused(tx):
    step = adamx.fused(tx).step
    return lambda params, state, grads: step(grads, state, params)


def clipped():
    return optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(RATE))


def encoded():
    codec = codecs.int8(min_size=64)
    return adamx.adamw(RATE, mu_dtype=codec, nu_dtype=codec)


# (label, transformation, how a step is made, whether it goes element by element)
CASES = [
    ("adamw", lambda: adamx.adamw(RATE), updating, True),
    ("lion", lambda: adamx.lion(RATE), fused, True),
    ("optax", lambda: optax.adamw(RATE), updating, True),
    ("guard", lambda: adamx.guard(adamx.adamw(RATE)), fused, True),
    ("clip", clipped, updating, False),
    ("lamb", lambda: adamx.lamb(RATE), updating, False),
    ("adam_mini", lambda: adamx.adam_mini(RATE), updating, False),
    ("int8", encoded, updating, False),
]
# Quickly: elements by themselves behind a choice, a norm of a leaf, codes.
QUICK = ("guard", "lamb", "int8")
by_case = pytest.mark.parametrize(
    ("make", "way", "is_elementwise"),
    [
        pytest.param(*c, id=label, marks=[] if label in QUICK else pytest.mark.slow)
        for label, *c in CASES
    ],
)


def compiled(tx, way, place, shardings):
    """The step on eight devices: a jitted function of parameters, state, gradients."""
    return jax.jit(
        way(tx),
        in_shardings=(place, shardings, place),
        out_shardings=(place, shardings),
        keep_unused=True,
    )


# ------------------------------------------------------------- the compiled program

GATHERS = ("all-gather", "all-gather-start")
MOVES = {"copy", "bitcast", "reshape", "transpose", "convert", "tuple"}
MOVES |= {"all-gather-done", "optimization-barrier", "copy-start", "copy-done"}


def instructions(text):
    """The entry computation: name -> (operation, operands, line)."""
    entry = text[text.index("\nENTRY ") :]
    found = {}
    for row in entry.splitlines()[1:]:
        match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(([^)]*)\)", row)
        if match:
            name, operation, operands = match.groups()
            found[name] = (operation, re.findall(r"%([\w.-]+)", operands), row)
        if row.startswith("}"):
            break
    return found


def check_gathers(text, params, state):
    """Exactly one gather for each divided parameter, and no moment is gathered.

    Results and arguments are numbered as in (params, state, gradients).
    """
    program = instructions(text)
    n_params, n_state = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
    names = list(adamx._tree.leaves_by_path(params))
    root = next(v for v in program.values() if v[2].strip().startswith("ROOT"))
    assert root[0] == "tuple", root
    outputs = root[1]
    assert len(outputs) == n_params + n_state
    gathers = {
        k for k, v in program.items() if v[0] in ("all-gather", "all-gather-start")
    }
    rows = [
        row for row in text.splitlines() if re.search(r" all-gather(-start)?\(", row)
    ]
    assert len(rows) == len(gathers), "some are not in the entry computation"
    arguments = {
        name: int(re.search(r"parameter\((\d+)\)", row)[1])
        for name, (operation, _, row) in program.items()
        if operation == "parameter"
    }

    def behind(name, stop=()):
        """Everything that a value is computed from, up to what is in `stop`."""
        seen, todo = set(), [name]
        while todo:
            at = todo.pop()
            if at not in seen and at in program:
                seen.add(at)
                todo += [] if at in stop else program[at][1]
        return seen

    def moved(name):
        """The same numbers, wherever they were."""
        seen, todo = set(), [name]
        while todo:
            at = todo.pop()
            operation, operands, row = program[at]
            if operation == "get-tuple-element":  # of a fusion or a conditional
                at = f"{operands[0]} {re.search(r'index=[0-9]+', row)[0]}"
            seen.add(at)
            todo += operands if operation in MOVES else []
        return seen

    # No moment is gathered, neither an old one nor a new one.
    new_moments = set().union(*(moved(name) for name in outputs[n_params:]))
    for gather in gathers:
        for operand in program[gather][1]:
            numbers = {arguments[x] for x in moved(operand) if x in arguments}
            assert not any(n_params <= i < n_params + n_state for i in numbers), operand
            assert not (moved(operand) - set(arguments)) & new_moments, operand
    # One for each divided parameter, behind no other result.
    used = {
        name: behind(output, stop=gathers) & gathers
        for name, output in zip(names, outputs, strict=False)
    }
    for name, own in used.items():
        assert len(own) == (name in DIVIDED), (name, own)
    assert sum(len(program[g][1]) for g in gathers) == len(DIVIDED)
    for output in outputs[n_params:]:
        assert not behind(output) & gathers
    # What is gathered is the new parameter or its update: made of the old moments.
    for name, own in used.items():
        for gather in own:
            numbers = {arguments[x] for x in behind(gather) if x in arguments}
            assert any(n_params <= i < n_params + n_state for i in numbers), name


@pytest.fixture(scope="module")
def programs():
    """Compiled once for all tests of a case."""
    return {}


def case(programs, make, way):
    key = (make, way)
    if key not in programs:
        tx, params, place = make(), tree(0), NamedSharding(line(), P())
        shardings = state_shardings(tx, params, place, "data")
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        step = compiled(tx, way, place, shardings)
        params = jax.device_put(params, place)
        step = step.lower(params, state, params).compile()
        programs[key] = (tx, place, state, step)
    return programs[key]


@by_case
@as_users
def test_one_gather_for_each_parameter_and_none_of_a_moment(
    make, way, is_elementwise, programs
):
    _, _, state, step = case(programs, make, way)
    check_gathers(step.as_text(), tree(0), state)


@by_case
@as_users
def test_values_are_those_of_one_device(make, way, is_elementwise, programs):
    tx, place, state, step = case(programs, make, way)
    one_step = jax.jit(way(tx))
    one = (tree(0), tx.init(tree(0)))
    eight = (jax.device_put(tree(0), place), state)
    for seed in range(1, 4):
        grads = tree(seed)
        one = one_step(*one, grads)
        eight = step(*eight, jax.device_put(grads, place))
    if is_elementwise:
        chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(eight))
    else:
        chex.assert_trees_all_close(
            jax.device_get(one[0]), jax.device_get(eight[0]), rtol=1e-6, atol=1e-7
        )
    held = [x for x in jax.tree.leaves(eight[1]) if x.shape == (64, 24)]
    assert held
    assert all(x.addressable_shards[0].data.shape == (8, 24) for x in held)


def test_the_check_of_gathers_can_fail():
    """Without the state's sharding nothing is gathered; on the way out a moment is."""
    tx, params, place = adamx.adamw(RATE), tree(0), NamedSharding(line(), P())
    everywhere = jax.tree.map(lambda _: place, tx.init(params))
    shardings = state_shardings(tx, params, place, "data")
    step = updating(tx)
    state = jax.eval_shape(tx.init, params)
    for before, after in ((everywhere, everywhere), (shardings, everywhere)):
        text = (
            jax.jit(
                step,
                in_shardings=(place, before, place),
                out_shardings=(place, after),
                keep_unused=True,
            )
            .lower(params, state, params)
            .compile()
            .as_text()
        )
        with pytest.raises(AssertionError):
            check_gathers(text, params, state)


# ----------------------------------------------------------------- a whole train step


def model_loss(params, batch, out=None):
    x, y = batch
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    said = {} if out is None else {"out_sharding": out}  # explicit axes ask for it
    z = jnp.dot(hidden, params["out"]["kernel"], **said) + params["out"]["bias"]
    return jnp.mean((z - y) ** 2)


MODEL = {
    "in": {"kernel": P(None, "model"), "bias": P("model")},
    "out": {"kernel": P("model", None), "bias": P()},
}


def model_params():
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32) / 4  # noqa: E731
    return {
        "in": {"kernel": draw(16, 32), "bias": draw(32)},
        "out": {"kernel": draw(32, 8), "bias": draw(8)},
    }


def run_model(way, mesh=None, zero1=None, out=None):
    tx, params = clipped(), model_params()

    def step(params, state, batch):
        grads = jax.grad(model_loss)(params, batch, out)
        return way(tx)(params, state, grads)

    kwargs, put = {}, lambda x: x
    state = tx.init(params)
    if mesh is not None:
        place = jax.tree.map(lambda s: NamedSharding(mesh, s), MODEL)
        shardings = state_shardings(tx, params, place, zero1)
        put = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))  # noqa: E731
        params, state = jax.device_put((params, state), (place, shardings))
        kwargs = {"out_shardings": (place, shardings)}
    step = jax.jit(step, donate_argnums=(0, 1), **kwargs)
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = rng.standard_normal((32, 16)).astype(np.float32)
        params, state = step(params, state, put((x, np.sin(x[:, :8]))))
    return params, state


def distance(params, others):
    trees = (jax.tree.leaves(params), jax.tree.leaves(others))
    a, b = (np.concatenate([np.float64(x).ravel() for x in tree]) for tree in trees)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check_pieces(text, shapes):
    """Gradients are reduced, and each device takes its piece; parameters are gathered.

    A reduce-scatter is both in one; XLA for CPUs has an all-reduce and a dynamic-slice.
    """
    found = {c.kind: c for c in collectives_of(text, 8)}
    gathers = [c for c in collectives_of(text, 8) if c.kind == "all-gather"]
    total = sum(4 * np.prod(shape) for shape in shapes)
    assert sum(c.count for c in gathers) == len(shapes)
    assert sum(c.bytes for c in gathers) == total * 7 / 8
    assert found.keys() & {"all-reduce", "reduce-scatter"}
    rows = re.findall(r" f32\[([\d,]+)\]\S* (?:dynamic-slice|reduce-scatter)\(", text)
    taken = {np.prod(list(map(int, row.split(",")))) for row in rows}
    assert taken >= {np.prod(shape) / 8 for shape in shapes}


@pytest.mark.parametrize(
    "label", ["clip", pytest.param("int8", marks=pytest.mark.slow)]
)
def test_a_whole_step_reduces_takes_its_pieces_and_gathers_once(label):
    tx = {row[0]: row[1] for row in CASES}[label]()
    params, mesh = model_params(), line()
    place, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    shardings = state_shardings(tx, params, place, "data")
    state = jax.eval_shape(tx.init, params)
    batch = [jax.ShapeDtypeStruct((32, n), jnp.float32) for n in (16, 8)]

    def step(params, state, batch):
        return updating(tx)(params, state, jax.grad(model_loss)(params, batch))

    def text(held):
        ways = {"in_shardings": (place, held, rows), "out_shardings": (place, held)}
        return jax.jit(step, **ways).lower(params, state, batch).compile().as_text()

    shapes = [p.shape for p in jax.tree.leaves(params)]
    check_pieces(text(shardings), shapes)
    with pytest.raises(AssertionError):
        check_pieces(text(jax.tree.map(lambda _: place, state)), shapes)


MESHES = ["automatic"]
if hasattr(jax, "set_mesh"):
    MESHES.append("explicit")


@pytest.mark.parametrize(
    ("kind", "zero1"),
    some(
        itertools.product(MESHES, (None, "data")),
        ("automatic", "data"),
        *[("explicit", None)] * (len(MESHES) > 1),
    ),
)
def test_a_whole_step_on_four_by_two(kind, zero1):
    """Forward, backward, clip and update; twenty of them."""
    kinds = jax.sharding.AxisType
    axes = kinds.Auto if kind == "automatic" else kinds.Explicit
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axes, axes))
    want, _ = run_model(updating)
    if kind == "explicit":
        with jax.set_mesh(mesh):
            got, state = run_model(updating, mesh, zero1, P("data", None))
    else:
        got, state = run_model(updating, mesh, zero1)
    assert distance(jax.device_get(got), want) <= 1e-6
    assert distance(want, model_params()) > 1e-2
    mu = state[1][0].mu["in"]["kernel"]
    pieces = (16 // 4, 16) if zero1 else (16, 16)
    assert mu.addressable_shards[0].data.shape == pieces
    assert got["in"]["kernel"].addressable_shards[0].data.shape == (16, 16)


# (transformation, how a step is made, dtype) in which something chooses between the
# gradient's numbers and the state's, or new and old.
CHOOSING = {
    "guard": (lambda: adamx.guard(adamx.adamw(RATE)), updating, jnp.float32),
    "nested": (
        lambda: adamx.guard(adamx.accumulate(adamx.master_weights(adamx.lion(0.1)), 1)),
        fused,
        jnp.bfloat16,
    ),
    "stages": (
        lambda: adamx.stages([(adamx.lion(0.1), 1), (adamx.sgd(0.1), None)]),
        updating,
        jnp.float32,
    ),
    "adopt": (lambda: adamx.adopt(RATE), updating, jnp.float32),
}


@pytest.mark.skipif(len(MESHES) < 2, reason="no explicit axes before 0.7")
@pytest.mark.parametrize("label", CHOOSING)
def test_explicit_axes_where_gradients_are_whole_and_states_in_pieces(label):
    make, way, dtype = CHOOSING[label]
    tx, g = make(), {"w": tree(0)["a"]["w"].astype(dtype)}
    step = way(tx)
    one = (g, tx.init(g))
    for _ in range(2):
        one = jax.jit(step)(*one, g)
    explicit = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(explicit,) * 2)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, P(None, "model"))
        held = state_shardings(tx, g, place, "data")
        put = jax.device_put(jax.device_get(g), place)
        eight = (put, jax.jit(tx.init, out_shardings=held)(put))
        for _ in range(2):
            eight = jax.jit(step, out_shardings=(place, held))(*eight, put)
    chex.assert_trees_all_equal(jax.device_get(eight[0]), jax.device_get(one[0]))
