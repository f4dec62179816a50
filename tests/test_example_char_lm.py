"""The example that trains a transformer on characters: as a user runs it, and killed.

A run that is killed and goes on must end with the bits of the run that never was:
parameters, moments, counters, random key, every record of its history.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import adamx
from adamx.interop import restore, steps
from tests.compiling import flags
from tests.helpers import EXAMPLES, ROOT

# Two steps to be skipped: one before the kill, one in the run that goes on.
COMMAND = [sys.executable, EXAMPLES / "char_lm.py", "--quick", "--resume"]
COMMAND += ["--bad", "7", "33"]
RUN, STEPS, EVERY = "char_lm_1x16_40", 40, 10


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the example; what it compiles is kept for the next start."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": flags(quickly=True),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(out):
        return subprocess.Popen(
            [*COMMAND, "--out", out],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    return start


def finished(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What the run that is never killed prints, and where its files are."""
    out = tmp_path_factory.mktemp("whole")
    return finished(start(out)), out


def end_of(out):
    """All arrays of the last checkpoint, by name, and the history."""
    folder = out / RUN
    assert steps(folder / "checkpoints")[-1] == STEPS
    return restore(folder / "checkpoints"), folder / "history.jsonl"


def assert_same_bits(out, whole):
    (got, log), (want, whole_log) = end_of(out), end_of(whole)
    assert got.keys() == want.keys()
    same = lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes()  # noqa: E731
    assert [name for name, x in want.items() if not same(got[name], x)] == []
    assert log.read_bytes() == whole_log.read_bytes()


@pytest.mark.slow  # quickly: a language model, by two processes, in test_processes.py
def test_quick_run(whole):
    text, out = whole
    nobody, model = (
        float(re.search(rf"{name}\W+([\d.]+)", text)[1])
        for name in ("characters alike", "the transformer")
    )
    assert 0 < model < nobody - 1
    assert "At step 0 " in text
    assert "At step 40 " in text
    assert "2 steps skipped" in text
    assert (out / "char_lm.png").stat().st_size > 10_000
    assert "A character-level transformer" in (out / "char_lm.html").read_text()


@pytest.mark.slow
def test_the_run_is_what_is_compared(whole):
    """The records and arrays that a killed run must reach are there, and differ."""
    flat, log = end_of(whole[1])
    assert any("kernel" in name and np.ptp(x) > 0 for name, x in flat.items())
    assert flat["step"] == STEPS
    history = adamx.History.load(log)
    assert history.steps.tolist() == list(range(EVERY, STEPS + 1, EVERY))
    assert history.measured_steps[-1] > history.measured_steps[0]
    assert history[-1].reading.skipped == 2
    assert len(log.read_bytes()) == flat["length"]


def wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def damage(checkpoint):
    files = [p for p in (checkpoint / "arrays").rglob("*") if p.is_file()]
    max(files, key=lambda p: p.stat().st_size).write_bytes(b"")


@pytest.mark.slow  # quickly: test_a_run_that_is_cut_off_... in tests/test_benchmarks.py
def test_killed_in_a_save_and_resumed(start, whole, tmp_path):
    """From the one before the last, too, where the last was damaged since."""
    saves, log = tmp_path / RUN / "checkpoints", tmp_path / RUN / "history.jsonl"
    process = start(tmp_path)
    # The folder of a save is there before its files are.
    wait_for(saves / "30", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    last = steps(saves)[-1]
    damage(saves / str(last))
    # Records that no checkpoint knows, and a line that is cut, as a later kill leaves.
    lines = (whole[1] / RUN / "history.jsonl").read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    text = finished(start(tmp_path))
    assert f"Goes on from step {last - EVERY}, {last // EVERY - 1} records" in text
    assert_same_bits(tmp_path, whole[1])
    picture = "char_lm.png"
    assert (tmp_path / picture).read_bytes() == (whole[1] / picture).read_bytes()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(start, whole, tmp_path):
    """While it starts, while it trains, while it saves; five in each run."""
    rng = random.Random(0)
    kills = runs = in_a_save = 0
    while kills < 20:
        runs += 1
        out, here = tmp_path / f"run{runs}", 0
        saves = out / RUN / "checkpoints"
        out.mkdir()
        process = start(out)
        while here < 5 and kills < 20:
            following = saves / str(max(steps(saves), default=0) + EVERY)
            moment = rng.choice(["start", "training", "save"])
            if moment == "start":
                time.sleep(rng.uniform(0.0, 5.0))
            else:
                place = {"training": "manifest.json", "save": ""}[moment]
                while process.poll() is None and not (following / place).exists():
                    time.sleep(0.001)
                time.sleep(rng.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                break  # it came to its end before
            kills, here = kills + 1, here + 1
            is_cut = following.exists() and not (following / "manifest.json").exists()
            in_a_save += is_cut
            process = start(out)
        finished(process)
        assert_same_bits(out, whole[1])
    print(f"{kills} kills, {in_a_save} of them in a save, over {runs} runs")
    assert in_a_save
