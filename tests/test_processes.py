"""Real processes, which talk over gloo: two of two devices against one of four."""

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import adamx
from tests.conftest import cache

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "sharded_lm.py"
STEPS = 20  # of --quick
COUNT = re.compile(r"--xla_force_host_platform_device_count=\d+")


@pytest.fixture(scope="module")
def example():
    """The example as a module; its folder is importable only meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("sharded_lm")
    sys.modules.pop("sharded_lm")
    sys.modules.pop("_style")


def start(out, *arguments):
    """The example as a user starts it; with the flags of these tests."""
    flags = COUNT.sub("", os.environ.get("XLA_FLAGS", ""))
    settings = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "XLA_FLAGS": flags}
    settings |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    return subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--out", out, *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def held(out, process):
    with np.load(out / f"process_{process}.npz") as kept:
        return {name: kept[name] for name in kept.files}


def pair(out):
    """Two processes, and what each of them has at the end."""
    run = start(out, "--processes", "2")
    assert run.returncode == 0, run.stderr
    return run.stdout, held(out, 0), held(out, 1)


def flat(run):
    named = [x for name, x in run.items() if name.startswith("params:")]
    return np.concatenate([np.float64(x).ravel() for x in named])


def distance(run, other):
    return np.linalg.norm(flat(run) - flat(other)) / np.linalg.norm(flat(other))


def check_same(run, other):
    assert run.keys() == other.keys()
    for name, x in run.items():
        assert x.tobytes() == other[name].tobytes(), name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return out, *pair(out)


@pytest.fixture(scope="module")
def one(example, tmp_path_factory):
    """The same run in this process: the same mesh, all devices here."""
    out = tmp_path_factory.mktemp("one")
    args = argparse.Namespace(steps=STEPS, width=16, blocks=1, out=out)
    mesh = example.make_mesh(jax.devices()[:4])
    run = example.train(args, mesh, Console(quiet=True))
    example.keep(args, mesh, run)
    return run, held(out, 0)


def test_two_processes_equal_one_and_each_other(one, two):
    _, here = one
    _, _, first, second = two
    check_same(first, second)
    assert first.keys() == here.keys()
    assert distance(first, here) <= 1e-6
    np.testing.assert_allclose(first["losses"], here["losses"], rtol=1e-6)
    assert len(first["losses"]) == STEPS
    assert first["losses"][-5:].mean() < first["losses"][:5].mean() - 0.1


def test_readings_of_a_state_that_no_process_has_whole(one, two):
    """Both processes read the same; the history that process 0 alone wrote is whole."""
    _, here = one
    out, _, first, _ = two
    names = [name for name in first if name.startswith("reading:")]
    assert {"reading:count", "reading:skipped", "reading:grad_norm"} <= set(names)
    for name in names:
        np.testing.assert_allclose(first[name], here[name], rtol=1e-4, atol=1e-6)
    history = adamx.History.load(out / "sharded_lm.jsonl")
    assert history.steps.tolist() == [10, 20]
    assert not history.broken
    losses = first["losses"][[9, 19]]
    np.testing.assert_array_equal(np.float32(history.column("loss")), losses)
    assert history.measured_steps.tolist() == [10, 20]
    assert set(history.layers) == {"block_0/qkv", "embedding", "head"}
    assert np.isfinite(history.series("embedding", "update_ratio")).all()


def test_what_is_printed_is_printed_once(two):
    text = two[1]
    assert text.count("2 processes, 4 devices (cpu)") == 1
    assert text.count("mesh data=2, model=2; state") == 1
    assert text.count("Some layers, at the end") == 1
    assert "\r" not in text


def test_state_is_divided_and_known_to_one_process(one):
    (params, state, _, history), _ = one
    assert len(history) == STEPS // 10
    by_name = dict(adamx._tree.leaves_by_path(state))
    moments = {n: x for n, x in by_name.items() if n.endswith(("mu/head", "nu/head"))}
    assert len(moments) == 2
    for x in moments.values():  # over both axes
        assert x.addressable_shards[0].data.size == x.size // 4
    assert params["head"].addressable_shards[0].data.size == params["head"].size // 2


@pytest.mark.slow  # half a minute of compilation
def test_no_collective_is_larger_than_what_was_checked(example):
    """In the step as it is without --quick: gloo was wrong in large ones."""
    mesh = example.make_mesh(jax.devices()[:4])
    _, size = example.load_text()
    step, params, state, _ = example.prepare(mesh, STEPS, 32, 2, size)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rows = jax.ShapeDtypeStruct((16, 33), np.int32, sharding=place)
    text = step.lower(params, state, rows).compile().as_text()
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    largest = []
    for result in re.findall(rf"= (.*?) (?:{kinds})\(", text):
        arrays = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", result)
        counts = [np.prod([int(n) for n in d.split(",") if n]) for _, d in arrays]
        largest += [
            int(bits) // 8 * n for (bits, _), n in zip(arrays, counts, strict=True)
        ]
    assert 0 < max(largest) <= 4 * example.CHUNK


def test_wrong_collectives_are_refused(example, monkeypatch):
    mesh = example.make_mesh(jax.devices()[:4])
    example.check_collectives(mesh, chunk=64)
    right = jax.lax.psum_scatter
    for name, wrong in {
        "reduce-scatter": (
            "psum_scatter",
            lambda *a, **k: right(*a, **k).at[-3:].add(1),
        ),
        "all-reduce": ("psum", lambda x, _: x),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, *wrong)
            with pytest.raises(SystemExit, match=rf"(?s)wrong on.*[1-9]\d* {name}"):
                example.check_collectives(mesh, chunk=64)


def test_one_process_that_fails_ends_the_others(example, tmp_path):
    """Not waiting for a process that is not there any more, for minutes."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys, time\n"
        "if sys.argv[-1] == '1':\n    raise SystemExit(3)\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "__file__", str(script))
        assert example.launch(2, []) == 3
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_twenty_runs_of_twenty(one, tmp_path):
    _, here = one
    first = None
    for i in range(20):
        _, own, other = pair(tmp_path / str(i))
        check_same(own, other)
        assert distance(own, here) <= 1e-6
        first = first or own
        check_same(own, first)
