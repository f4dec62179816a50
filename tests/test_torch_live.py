"""Against the installed PyTorch: runs there and here, step by step, there and back.

CI has no PyTorch: there the stored runs of `test_from_torch_runs` are what is tested.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import __main__
from adamx.interop import (
    convert_torch,
    from_torch,
    load_torch,
    params_from_torch,
    params_to_torch,
    restore,
    to_torch,
    torch_optimizer,
)
from tests import torch_runs
from tests.helpers import run_quickly
from tests.test_from_torch_runs import LABELS, placed, run, unplaced
from tests.torch_runs import BEFORE, NAME_MAP, NAMES, RATES

torch = pytest.importorskip("torch", reason="pip install 'adamx[torch]'")


def needs_lion(label):
    """Skips the case of Lion, which torch has not, where its package is missing."""
    if torch_runs.CASES[label][0] == "Lion":
        pytest.importorskip("lion_pytorch", reason="pip install lion-pytorch")


def test_stored_runs_are_those_of_the_installed_torch():
    needs_lion("lion")
    stored = np.load(torch_runs.PATH)
    fresh = torch_runs.all_cases()
    assert set(stored.files) == {*fresh, "torch_version"}
    for name, x in fresh.items():
        if x.dtype.kind == "f":
            np.testing.assert_allclose(x, stored[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("label", LABELS)
def test_each_of_a_hundred_steps_there_and_back(label):
    """Here from torch's tensors; then a new optimizer there from ours."""
    needs_lion(label)
    there = torch_runs.Run(label, named=True)
    there.go(BEFORE)
    params = params_from_torch(there.values(), placed(there.values()), NAME_MAP)
    saved = there.optimizer.state_dict()
    tx = torch_optimizer(saved, params, NAME_MAP)
    state = from_torch(saved, params, NAME_MAP)
    grads = placed({k: g[BEFORE:] for k, g in there.gradients.items()}, lead=1)
    state, trajectory = run(tx, state, params, grads)
    before = there.values()
    ours_before = before
    for i in range(100):
        there.go(1)
        after = there.values()
        ours = unplaced(jax.tree.map(lambda x, i=i: x[i], trajectory))
        for rate, names in zip(RATES, NAMES, strict=True):
            for name in names:
                theirs = after[name].astype(float) - before[name]
                mine = ours[name].astype(float) - ours_before[name]
                # Besides, each side rounds its parameter once a step.
                ulp = np.spacing(np.max(np.abs(after[name])))
                assert np.max(np.abs(mine - theirs)) <= 2e-5 * rate + ulp, (name, i)
        before, ours_before = after, ours

    again = torch_runs.Run(label, named=True)
    like = again.optimizer.state_dict()
    last = jax.tree.map(lambda x: x[-1], trajectory)
    again.optimizer.load_state_dict(to_torch(state, last, NAME_MAP, like=like))
    for name, x in params_to_torch(last, list(torch_runs.SHAPES), NAME_MAP).items():
        again.params[name].data.copy_(x)
    # The same gradients once more, to both.
    there.taken = again.taken = BEFORE
    there.go(50)
    again.go(50)
    for rate, names in zip(RATES, NAMES, strict=True):
        for name in names:
            error = np.max(np.abs(again.values()[name] - there.values()[name]))
            assert error <= 2e-5 * rate * 150, name


def test_a_whole_checkpoint_from_a_file(tmp_path, capsys):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
    model(torch.ones(2, 4, dtype=torch.bfloat16)).float().square().sum().backward()
    optimizer.step()
    path = tmp_path / "run.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    checkpoint, rules = load_torch(path), {r"^0\.weight": "0/kernel"}
    found = convert_torch(checkpoint, name_map=rules)
    weight = model[0].weight.detach().float().numpy()
    np.testing.assert_array_equal(found.params["0"]["kernel"], weight.T)
    assert found.params["0"]["kernel"].dtype == jnp.bfloat16
    assert found.code.startswith("adamx.adamw(0.00999999977648")

    names = tmp_path / "map.json"
    names.write_text(json.dumps(rules))
    out = tmp_path / "out"
    assert __main__.main(["convert", str(path), str(out), "--map", str(names)]) == 0
    printed = capsys.readouterr().out
    assert "0/kernel" in printed
    assert found.code in printed
    flat = restore(out)
    state = adamx.interop.from_flat(
        {
            k.removeprefix("state/"): x
            for k, x in flat.items()
            if k.startswith("state/")
        },
        found.tx,
        found.params,
    )
    jax.tree.map(np.testing.assert_array_equal, state, found.state)


def test_a_file_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match=r"which is damaged or holds other objects"):
        load_torch(path)


def test_example(tmp_path):
    printed = run_quickly("from_torch.py", tmp_path)
    assert "adamx.groups(" in printed
    assert (tmp_path / "from_torch.png").stat().st_size > 20_000
    rows = {
        cells[1].strip(): [float(x) for x in cells[2:-1] if x.strip()]
        for line in printed.splitlines()
        if line.count("│") > 3
        for cells in [line.split("│")]
    }
    np.testing.assert_allclose(rows["Flax"][:4], rows["PyTorch"], atol=2e-5)
    assert rows["Flax"][4] < 0.05 < 5 < rows["fresh state"][4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors(dtype, tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    path = tmp_path / "weights.safetensors"
    x = torch.arange(6.0).reshape(2, 3).to(dtype)
    files.save_file({"dense.weight": x}, path)
    found = convert_torch(load_torch(path), name_map={"weight": "kernel"})
    assert str(found.params["dense"]["kernel"].dtype) == str(dtype).split(".")[1]
    assert found.params["dense"]["kernel"].tolist() == [[0, 3], [1, 4], [2, 5]]
