"""README's code runs as it stands, and prints what it says."""

import ast
import pathlib
import re

import flax
import jax
import jax.numpy as jnp
import pytest

import adamx

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)

IS_OLD_FLAX = tuple(map(int, flax.__version__.split(".")[:2])) < (0, 11)


def test_a_whole_run_is_25_lines():
    block = re.search(r"## A whole run.*?```python\n(.*?)```", README, re.S)
    assert block is not None
    assert len([line for line in block.group(1).splitlines() if line.strip()]) <= 25


def test_quick_start_has_two_commands():
    block = re.search(r"## Quick start.*?```sh\n(.*?)```", README, re.S)
    assert block is not None
    assert len(block.group(1).strip().splitlines()) == 2


def test_code_blocks_run_and_print_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one writes a report
    loss_fn = lambda params, batch: jnp.sum(params["w"] * batch)  # noqa: E731
    names = {"loss_fn": loss_fn}
    model = {n: {"w": jnp.ones((4, 4))} for n in ("embed", "pretrained", "head")}
    names["params"] = model
    shown = []
    for block in BLOCKS:
        if block.startswith(">>> "):
            command, expected = block.removeprefix(">>> ").strip().split("\n")
            shown.append((command, ast.literal_eval(expected)))
        elif IS_OLD_FLAX and "nnx.Optimizer(" in block:
            continue  # its update takes no model
        else:
            exec(compile(block, "README.md", "exec"), names)
    if not IS_OLD_FLAX:
        losses = adamx.History.load(tmp_path / "run.jsonl").column("loss")
        assert losses[-1] < losses[0] / 2
        assert "<html" in (tmp_path / "report.html").read_text()
    names["loss_fn"] = lambda p, batch: sum(jnp.sum(x) for x in jax.tree.leaves(p))
    _, state = names["fused_step"](model, names["init"](model), None)
    assert adamx.read(state).more["micro_step"] == 1  # the first gradient of four
    names["loss_fn"] = loss_fn
    params, batch = {"w": jnp.ones((2, 2))}, jnp.full((2, 2), 2.5)
    opt_state = names["tx"].init(params)
    _, names["opt_state"], _ = names["train_step"](params, opt_state, batch)
    params = {"w": jnp.ones((2, 2))}  # the first were donated
    _, _, loss = names["sophia_step"](params, names["sophia"].init(params), batch)
    held = names["schedule_free"].init(params)
    assert names["validate"](params, held, batch) == pytest.approx(float(loss))
    names["half_step"](params, names["scaled"].init(params), batch)
    for name in ("two_bytes", "one_byte", "lion"):
        names[name].init(params)
    assert shown
    for command, expected in shown:
        assert eval(command, names) == {
            k: pytest.approx(v) for k, v in expected.items()
        }


def test_every_public_name_is_listed():
    names = {name for name, value in vars(adamx).items() if callable(value)}
    names = {name for name in names if name[0].islower()}
    missing = [name for name in sorted(names) if f"`{name}" not in README]
    assert not missing
