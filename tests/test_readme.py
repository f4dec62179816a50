"""README's code runs as it stands, and prints what it says."""

import re

import flax
import jax
import jax.numpy as jnp
import pytest

import adamx
from tests import pages

README = pages.read("README.md")
WHOLE_RUN = re.search(r"## A whole run.*?(```python\n.*?```\n)", README, re.S)[1]
BLOCKS = [b for b in pages.blocks(README) if b.code not in WHOLE_RUN]
IS_OLD_FLAX = tuple(map(int, flax.__version__.split(".")[:2])) < (0, 11)


def test_quick_start_has_two_commands():
    block = re.search(r"## Quick start.*?```sh\n(.*?)```", README, re.S)
    assert block is not None
    assert len(block.group(1).strip().splitlines()) == 2


def test_a_whole_run_learns_in_25_lines(tmp_path, monkeypatch):
    lines = WHOLE_RUN.strip().splitlines()[1:-1]
    assert len([line for line in lines if line]) <= 25
    monkeypatch.chdir(tmp_path)
    text = WHOLE_RUN
    if IS_OLD_FLAX:  # its update takes no model
        text = text.replace("optimizer.update(model, grads)", "optimizer.update(grads)")
    pages.run("README.md", pages.blocks(text), {})
    losses = adamx.History.load("run.jsonl").column("loss")
    assert losses[-1] < losses[0] / 2
    assert "<html" in (tmp_path / "report.html").read_text()


def test_code_blocks_run_and_print_what_they_say():
    loss_fn = lambda params, batch: jnp.sum(params["w"] * batch)  # noqa: E731
    names = {"loss_fn": loss_fn}
    model = {n: {"w": jnp.ones((4, 4))} for n in ("embed", "pretrained", "head")}
    names["params"] = model
    prompts = [block for block in BLOCKS if block.is_prompt]
    pages.run("README.md", [b for b in BLOCKS if not b.is_prompt], names)
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
    assert prompts
    pages.run("README.md", prompts, names)


def test_every_public_name_is_listed():
    names = {name for name, value in vars(adamx).items() if callable(value)}
    names = {name for name in names if name[0].islower()}
    missing = [name for name in sorted(names) if f"`{name}" not in README]
    assert not missing
