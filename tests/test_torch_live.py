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
from tests.helpers import run_quickly, some
from tests.test_from_torch_runs import placed, run, unplaced
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


# Quickly: decoupled and not, a largest square, a sum, rows.
@pytest.mark.parametrize(
    "label",
    some(torch_runs.CASES, "adamw", "adam amsgrad", "sgd nesterov", "sparse adam"),
)
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


@pytest.mark.slow
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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
def test_damaged_files_are_refused(is_zip, tmp_path):
    """What damage leads to in the reader is of any kind: ours is one."""
    path, rng = tmp_path / "run.pt", np.random.default_rng(0)
    saved = {"model": torch.nn.Linear(2, 2).state_dict()}
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    messages = []
    for i in range(60):
        part = bytearray(whole[: rng.integers(len(whole))] if i % 2 else whole)
        for _ in range(5 * (i % 2 == 0)):
            part[rng.integers(min(len(part), 800))] = rng.integers(256)
        path.write_bytes(bytes(part))
        try:
            load_torch(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all(text.startswith("`path` must be a file") for text in messages)


def test_damaged_safetensors_are_refused(tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    path = tmp_path / "weights.safetensors"
    files.save_file({"a": torch.ones(3)}, path)
    whole = path.read_bytes()
    for size in (0, 5, 30, len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"must be a file of safetensors, got"):
            load_torch(path)


@pytest.mark.parametrize(
    "x",
    [
        torch.eye(2).to_sparse(),
        torch.ones(2, 2, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensors_without_plain_numbers_are_named(x):
    like = {"a": jnp.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"'a' must be a dense tensor of plain"):
        params_from_torch({"a": x}, like)


def test_views_are_read_as_what_they_show():
    x = (torch.arange(4.0).reshape(2, 2) + 1j).conj()
    like = {"a": jnp.zeros((2, 2), jnp.complex64)}
    np.testing.assert_array_equal(
        params_from_torch({"a": x}, like)["a"], x.resolve_conj().numpy()
    )
    for y in (x.imag, torch.arange(8.0).reshape(2, 4)[:, ::2], torch.eye(2).T):
        like = {"a": jnp.zeros((2, 2))}
        np.testing.assert_array_equal(
            params_from_torch({"a": y}, like)["a"], y.resolve_neg().numpy()
        )


@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_transposed_convolution(is_flipped):
    import flax.linen

    there = torch.nn.ConvTranspose1d(3, 3, 2, stride=2)
    here = flax.linen.ConvTranspose(
        3, (2,), (2,), padding="VALID", transpose_kernel=not is_flipped
    )
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    like = here.init(jax.random.key(0), x.transpose(0, 2, 1))["params"]
    model, rules = there.state_dict(), None
    if is_flipped:
        model["weight"] = model["weight"].flip(2)
        rules = {"weight": ("kernel", (2, 0, 1))}
    params = params_from_torch(model, like, rules)
    y = here.apply({"params": params}, x.transpose(0, 2, 1))
    expected = there(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y.transpose(0, 2, 1), expected, atol=1e-6)
