"""Bad input to `adamx.sharding.plan` and its command; the style of test_bad_input.py."""

import pathlib

import jax
import optax
import optax.contrib
import pytest

import adamx
from adamx import __main__ as command
from adamx import catalogue
from adamx.sharding import model_shapes, plan, plans
from tests.test_bad_input import _check

TX = adamx.adamw(1e-3)
SHAPES = {"w": (8, 4)}
MESH = {"data": 4, "model": 2}

# what is said -> (arguments, keywords, exception, the message)
BAD = {
    "no tx": ((1e-3, SHAPES, MESH), {}, TypeError, "`tx` gradient transformation"),
    "no model": ((TX, "llama-8b", MESH), {}, ValueError, "`model` 'llama-7b' 'llama-8b'"),
    "no file": ((TX, pathlib.Path("none.json"), MESH), {}, OSError, "none.json"),
    "product": ((TX, {"w": "8*4"}, MESH), {}, TypeError, "shape at 'w' [8, 4] '8*4' products write"),
    "negative": ((TX, {"w": (8, -4)}, MESH), {}, ValueError, "shape at 'w' -4 >= 0"),
    "no parameters": ((TX, {}, MESH), {}, ValueError, "`param_shapes` gpt2-small"),
    "mesh text": ((TX, SHAPES, "data=4"), {}, TypeError, "`mesh_shape` dict 'data=4' pass"),
    "mesh empty": ((TX, SHAPES, {}), {}, TypeError, "`mesh_shape` pass"),
    "mesh zero": ((TX, SHAPES, {"data": 0}), {}, ValueError, "`mesh_shape` >= 1 0 'data'"),
    "mesh half": ((TX, SHAPES, {"data": 1.5}), {}, ValueError, "`mesh_shape` 1.5 'data'"),
    "mesh name": ((TX, SHAPES, {4: 2}), {}, ValueError, "`mesh_shape` name 4 pass"),
    "mesh large": ((TX, SHAPES, {"data": 10**6}), {}, ValueError, "`mesh_shape` 65536 1000000 fewer"),
    "zero1": ((TX, SHAPES, MESH), {"zero1": "fsdp"}, ValueError, "`zero1` 'fsdp' 'data' (4)"),
    "specs": ((TX, SHAPES, MESH), {"param_specs": jax.sharding.PartitionSpec("x")}, ValueError, "`param_shardings` 'w' 'x'"),
    "batch": ((TX, SHAPES, MESH), {"batch_axes": "x"}, ValueError, "`batch_axes` 'x' data, model"),
    "dtype": ((TX, SHAPES, MESH), {"dtype": "int8"}, ValueError, "`dtype` floating int8"),
    "grad dtype": ((TX, SHAPES, MESH), {"grad_dtype": "x"}, TypeError, "`dtype` 'x'"),
    "devices": ((TX, SHAPES, MESH), {"devices": jax.devices()[:3]}, ValueError, "`devices` 8 3 leave"),
    "extra": ((adamx.sophia_h(1e-3), SHAPES, MESH), {}, ValueError, "`loss_fn` None `extra_args` hessian_fn"),
    "needs a loss": ((optax.contrib.reduce_on_plateau(), SHAPES, MESH), {}, TypeError, "'value' plan: `extra_args`"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_plan(label):
    arguments, keywords, exception, expected = BAD[label]
    _check(lambda: plan(*arguments, **keywords), exception, expected)


def test_the_optimizer_of_a_table_is_named():
    txs = {"adamw": TX, "plain": adamx.sgd(1e-3)}
    with pytest.raises(ValueError, match=r"^plain: `zero1` must divide"):
        plans(txs, SHAPES, MESH, zero1="data")
    with pytest.raises(TypeError, match="`txs` must be a dict"):
        plans([TX], SHAPES, MESH)


def test_other_names():
    with pytest.raises(ValueError, match="`model` must be one of"):
        model_shapes("gpt3")
    with pytest.raises(ValueError, match="did you mean adamw"):
        catalogue.transformation("adamww")


def test_what_cannot_leave_the_process():
    """A callback is a function here."""

    def update(updates, state, params=None):
        jax.debug.callback(print, 1)
        return updates, state

    tx = adamx.sharding._plan.GradientTransformation(lambda params: (), update)
    expected = (
        "`tx` array operations XLA_FLAGS=--xla_force_host_platform_device_count=64"
    )
    _check(lambda: plan(tx, SHAPES, {"data": 64}), ValueError, expected)


def test_a_process_that_fails(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_there_is_no_such_flag")
    with pytest.raises(RuntimeError, match=r"64 simulated devices.*no_such_flag"):
        plan(TX, SHAPES, {"data": 64})


# arguments of the command -> the message
COMMANDS = {
    "--model llama-8b --mesh data=4": "'llama-8b'",
    "--model llama-7b --mesh data4": "'data4'",
    "--model llama-7b --mesh data=4,": "'data=4,'",
    "--model llama-7b --mesh data=-4": "'data=-4'",
    "--model llama-7b --mesh data=2*2": "'data=2*2'",
    "--model llama-7b --mesh data=4,data=2": "'data' twice",
    "--model llama-7b --mesh data=0": "got 0 for 'data'",
    "--model llama-7b --mesh data=4 --optimizer adamww": "did you mean adamw",
    "--model llama-7b --mesh data=4 --optimizer adamw-int9": "'adamw-int9'",
    "--model llama-7b --mesh data=4 --optimizer sgd-int8": "'sgd-int8'",
    "--model llama-7b --mesh model=4 --zero1": "`zero1`",
    "--model llama-7b --mesh data=4 --zero1 data,": "`zero1`",
    "--model llama-7b --mesh data=4 --dtype flot": "`dtype`",
    "--shapes none.json --mesh data=4": "none.json",
    "--shapes {broken} --mesh data=4": "must be a JSON file of shapes",
    "--shapes {listed} --mesh data=4": "must hold a JSON object",
    "--shapes {product} --mesh data=4": "products are not computed",
    "--shapes {empty} --mesh data=4": "`param_shapes`",
}


@pytest.mark.parametrize("arguments", COMMANDS)
def test_command(arguments, tmp_path, capsys):
    texts = {"broken": '{"w": [8', "listed": "[8, 4]", "product": '{"w": "8*4"}'}
    for name, text in {**texts, "empty": "{}"}.items():
        (tmp_path / name).write_text(text)
    names = {name: str(tmp_path / name) for name in (*texts, "empty")}
    assert command.main(["plan", *arguments.format(**names).split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert COMMANDS[arguments] in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", ["--mesh data=4", "--model llama-7b"])
def test_command_lacks_an_argument(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["plan", *arguments.split()])
    assert caught.value.code == 2
    assert "required" in capsys.readouterr().err
