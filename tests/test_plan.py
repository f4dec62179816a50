"""Plans for meshes: against real runs, against programs whose bytes are known."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx import __main__ as command
from adamx import catalogue
from adamx._types import byte_count
from adamx.sharding import (
    _collectives,
    _models,
    _plan,
    _planner,
    _rules,
    model_shapes,
    plan,
    plans,
    state_shardings,
)
from adamx.sharding._collectives import Collective
from tests.compiling import AS_USERS

RATE = 1e-3
GRID = {"data": 4, "model": 2}
SHAPES = {
    "embed": (515, 64),
    "layers": {"norm": (4, 64), "w_up": (4, 64, 256), "w_down": (4, 256, 64)},
    "odd": (7, 3),
}


def clipped():
    return adamx.guard(optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(RATE)))


# ----------------------------------------------------------------- against real runs


def held(tree):
    """Bytes on each device, from the buffers."""
    found = {}
    for x in jax.tree.leaves(tree):
        for piece in x.addressable_shards:
            found[piece.device] = found.get(piece.device, 0) + byte_count(piece.data)
    assert len(found) == 8
    return max(found.values())


def run(tx, dtype, zero1):
    """A real step on eight devices: bytes on the fullest one, and of temporaries."""
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, dtype),
        SHAPES,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    specs = {
        "embed": P(None, "model"),  # 515 rows are odd
        "layers": {"norm": P(), "w_up": P(None, None, "model")}
        | {"w_down": P(None, "model")},
        "odd": P(),
    }
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    lie = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_spec)
    shardings = state_shardings(tx, shapes, lie, zero1)
    ones = lambda: jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)  # noqa: E731
    params, grads = (jax.jit(ones, out_shardings=lie)() for _ in range(2))
    state = jax.jit(tx.init, out_shardings=shardings)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(lie, shardings))
    def step(params, state, grads):
        return adamx.fused(tx).step(grads, state, params)

    compiled = step.lower(params, state, grads).compile(AS_USERS)
    params, state = compiled(params, state, grads)
    sizes = compiled.memory_analysis()
    copies = max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
    return {
        "parameters": held(params),
        "gradients": held(grads),
        "state": held(state),
        "temporaries": sizes.temp_size_in_bytes + copies,
        "arguments": sizes.argument_size_in_bytes,
    }


# (label, transformation, dtype, zero1)
RUNS = [
    ("adamw", lambda: adamx.adamw(RATE), jnp.float32, "data"),
    ("replicated", lambda: adamx.adamw(RATE), jnp.bfloat16, None),
    ("guarded", clipped, jnp.float32, "data"),
    ("int8", lambda: catalogue.transformation("lion-int8"), jnp.float32, "data"),
    ("masters", lambda: adamx.master_weights(adamx.lion(RATE)), jnp.bfloat16, "data"),
]


@pytest.mark.parametrize(
    ("make", "dtype", "zero1"),
    [
        pytest.param(
            *row,
            id=label,
            marks=pytest.mark.slow if label not in ("int8", "masters") else [],
        )
        for label, *row in RUNS
    ],
)
def test_a_plan_is_what_a_run_takes(make, dtype, zero1):
    tx = make()
    real = run(tx, dtype, zero1)
    found = plan(tx, SHAPES, GRID, zero1=zero1, dtype=dtype)
    for name in ("parameters", "gradients", "state"):
        assert getattr(found, name) == real[name], name
    assert found.temporaries == pytest.approx(real["temporaries"], rel=0.05, abs=256)
    arguments = found.parameters + found.gradients + found.state
    assert arguments == pytest.approx(real["arguments"], rel=0.001)


def test_another_process_finds_the_same():
    """Closures, codes and float64 go over too."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else _x64():
        scale = jnp.float32(RATE)
        txs = {
            "closure": adamx.adamw(lambda count: scale / (1 + count)),
            "codec": catalogue.transformation("lion-bf16"),
        }
        shapes = {"w": (64, 128), "b": jax.ShapeDtypeStruct((16,), jnp.float64)}
        here = plans(txs, shapes, GRID, zero1="data")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_plan, "_here", lambda count: None)
            there = plans(txs, shapes, GRID, zero1="data")
    for a, b in zip(here.plans, there.plans, strict=True):
        # Buffers are aligned in another order.
        assert a.temporaries == pytest.approx(b.temporaries, abs=256)
        assert dataclasses.replace(a, temporaries=0) == dataclasses.replace(
            b, temporaries=0
        )
        assert a.update_bytes > 0


def _x64():
    from jax.experimental import enable_x64

    return enable_x64()


def test_a_mesh_that_is_not_here():
    found = plan(adamx.lion(RATE), SHAPES, {"data": 8, "model": 2}, zero1="data")
    assert found.elements == 515 * 64 + 4 * 64 + 7 * 3 + 2 * 4 * 64 * 256
    assert found.undivided == ("odd",)
    assert found.platform == "cpu"
    gathers = [c for c in found.update_collectives if c.kind == "all-gather"]
    assert [(c.devices, c.count) for c in gathers] == [(8, 4)]


def test_what_a_step_needs_beside_the_gradient():
    """Sophia's step without its backward pass; a loss that is watched."""
    extra = {"hessian_fn": lambda params, key: params, "value": 0.0}
    watched = optax.chain(adamx.lion(RATE), optax.contrib.reduce_on_plateau())
    txs = {"sophia": adamx.sophia_h(RATE), "watched": watched}
    shapes = {"w": (64, 32)}
    for found in plans(txs, shapes, {"data": 1}, extra_args=extra).plans:
        assert 0 < found.state - found.parameters * (1 + (found.name == "sophia")) < 200


def test_axes_over_which_gradients_are_summed_where_nobody_says():
    mesh = {"fsdp": 1, "model": 1, "dp": 1, "pod": 1}
    tx, shapes = adamx.sgd(RATE), {"w": (8, 4)}
    assert plan(tx, shapes, mesh).batch_axes == ("fsdp", "dp")
    assert plan(tx, shapes, mesh, batch_axes="pod").batch_axes == ("pod",)


def test_results_that_are_written_beside_their_arguments_take_room(monkeypatch):
    found = _planner.Found(0, 100, 60, 7, (), "cpu")
    monkeypatch.setattr(_planner, "compiled", lambda job, devices: found)
    assert plan(adamx.sgd(RATE), {"w": (8, 4)}, {"data": 1}).temporaries == 47


def test_gradients_of_a_dtype_of_their_own():
    found = plan(
        adamx.sgd(RATE), SHAPES, {"data": 1}, dtype=jnp.bfloat16, grad_dtype=jnp.float32
    )
    assert found.gradients == 2 * found.parameters == 4 * found.elements


def test_what_lies_in_host_memory_is_apart():
    if not hasattr(jax, "memory"):
        pytest.skip("this jax names no memory without a sharding")
    txs = {"here": adamx.adamw(RATE), "away": adamx.offload(adamx.adamw(RATE))}
    table = plans(txs, {"w": (512, 64)}, {"data": 8}, zero1="data")
    here, away = table.plans
    assert here.state_on_host == 0
    assert away.state_on_host == 2 * here.parameters / 8
    assert away.state + away.state_on_host == here.state
    assert "on host" in table.text(100)


def test_nothing_is_allocated():
    before = len(jax.live_arrays())
    found = plan(adamx.sgd(RATE), {"w": (2**22, 2**20)}, {"data": 8})
    assert found.parameters == 2**44
    assert len(jax.live_arrays()) <= before + 4


# ----------------------------------------------------------------------- collectives

PROGRAM = """HloModule step, entry_computation_layout={()->f32[]}

%body (p: (f32[8])) -> (f32[8]) {
  %p = (f32[8]{0}) parameter(0)
  ROOT %a = f32[100]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
}

%taken.1 (p: f32[8]) -> f32[8] {
  %r = f32[64]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%left (p: f32[8]) -> f32[8] {
  %r = f32[2]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

ENTRY %main.2 (a: f32[8], b: s4[16]) -> f32[] {
  %w = (f32[8]{0}) while(%t), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %c.1 = f32[8]{0} conditional(%i, %a, %a), branch_computations={%left, %taken.1}
  %s = bf16[10,4]{1,0} reduce-scatter(%a), replica_groups=mesh['x'=4,'y'=2] {'y'}
  %q = (s4[16]{0}, pred[4]{0}) all-to-all(%b, %d), replica_groups={{0,1},{2,3}}
  %g = (f32[5], f32[10]) all-gather-start(%a), replica_groups=mesh['x'=4] {'x':(2)2}
  %gd = f32[10]{0} all-gather-done(%g)
  %m = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%a)
}
"""


def test_collectives_are_read():
    found = _collectives.collectives_of(PROGRAM, 8)
    assert {(c.kind, c.devices): (c.count, c.bytes) for c in found} == {
        ("all-gather", 4): (3, 3 * 400 * 3 / 4),
        ("all-reduce", 8): (1, 2 * 256 * 7 / 8),
        ("reduce-scatter", 2): (1, 80.0),
        ("all-to-all", 2): (2, (8 + 4) / 2),
        ("all-gather", 2): (1, 40 / 2),
        ("collective-permute", 8): (1, 12.0),
    }
    assert found[0].kind == "all-gather"


def test_collectives_of_a_program():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    whole, own = (NamedSharding(mesh, s) for s in (P(), P("data")))
    f = jax.jit(lambda x: (x + 1, jnp.sum(x)), in_shardings=own, out_shardings=whole)
    text = f.lower(jax.ShapeDtypeStruct((32, 5), jnp.float32)).compile().as_text()
    found = _collectives.collectives_of(text, 8)
    assert set(found) == {
        Collective("all-gather", 4, 1, 32 * 5 * 4 * 3 / 4),
        Collective("all-reduce", 4, 1, 2 * 4 * 3 / 4),
    }


# (dims of the parameter, of its state, batch axes) -> (kind, devices, bytes)
SIZES = {"data": 4, "fsdp": 2, "model": 2}
REDUCTIONS = [
    ("none", ((), ()), ((), ()), (), []),
    ("all", ((), ()), ((), ()), ("data",), [("all-reduce", 4, 2 * 3 / 4 * 512)]),
    ("zero1", ((), ()), (("data",), ()), ("data",), [("reduce-scatter", 4, 384)]),
    (
        "beside model",
        ((), ("model",)),
        (("data",), ("model",)),
        ("data",),
        [("reduce-scatter", 4, 192)],
    ),
    (
        "fsdp",
        (("fsdp",), ()),
        (("fsdp",), ()),
        ("data", "fsdp"),
        [("reduce-scatter", 2, 256), ("all-reduce", 4, 2 * 3 / 4 * 256)],
    ),
]


@pytest.mark.parametrize(
    "row", [row[1:] for row in REDUCTIONS], ids=[row[0] for row in REDUCTIONS]
)
def test_a_gradients_sum_is_computed(row):
    before, after, batch, expected = row
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    found = _plan._reduction(x, before, after, batch, SIZES)
    assert [(c.kind, c.devices, c.bytes) for c in found] == expected


# ---------------------------------------------------------------------- shapes, rules

COUNTS = {
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-70b": 68_976_648_192,
    "llama-405b": 405_853_388_800,
}


@pytest.mark.parametrize("name", _models.MODELS)
def test_models_have_their_size(name):
    assert name in (model_shapes.__doc__ or "")
    shapes = model_shapes(name, jnp.bfloat16)
    leaves = jax.tree.leaves(shapes)
    assert sum(math.prod(x.shape) for x in leaves) == COUNTS[name]
    assert {str(x.dtype) for x in leaves} == {"bfloat16"}


def test_the_rule_by_name_and_shape():
    shapes = model_shapes("llama-7b")
    found = _rules.spread(shapes, {"data": 2, "model": 4}, ("data",))
    assert found["embed"] == P("model")
    assert found["head"] == P(None, "model")
    layers = found["layers"]
    assert layers["wq"] == layers["w_up"] == P(None, None, "model")
    assert layers["wo"] == layers["w_down"] == P(None, "model")
    assert layers["mlp_norm"] == found["norm"] == P()
    both = _rules.spread(shapes, {"fsdp": 2, "model": 4}, ("fsdp",))
    assert both["norm"] == P("fsdp")
    assert both["layers"]["wq"] == P("fsdp", None, "model")
    small = _rules.spread(model_shapes("gpt2-small"), {"model": 4}, ())
    assert small["wte"] == P(None, "model"), "50257 rows are odd"
    assert small["layers"]["ln_1"]["scale"] == small["layers"]["mlp_up"]["bias"] == P()


# --------------------------------------------------------------------------- printing


def test_a_plan_prints_itself():
    made = {"": adamx.adamw(RATE), "[lion]": adamx.lion(RATE)}  # no style of rich's
    table = plans(made, SHAPES, GRID, zero1="data", batch_axes="data")
    one = str(table.plans[0])
    assert "exact" in one
    assert "estimate, XLA for CPU" in one
    assert "computed: sum over data" in one
    assert "zero1 cannot divide the state of: odd" in one
    assert "data=4, model=2" in one
    lines = table.text(80).splitlines()
    row = next(line for line in lines if line.startswith("[lion]"))
    assert row.count(" KiB") == 5, "nothing is cut off"


def test_the_command_plans(tmp_path, capsys):
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps({"dense": {"kernel": [64, 32], "bias": [32]}}))
    shapes = ["--shapes", str(file), "--mesh", "data=4,model=2"]
    assert command.main(["plan", *shapes, "--optimizer", "lion", "--zero1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("lion\n")
    assert "2,080 parameters on the mesh data=4, model=2" in out
    names = ["--optimizer", "sgd", "momentum", "--master-weights"]
    assert command.main(["plan", *shapes, *names, "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "momentum, masters" in " ".join(out.split())
