"""The example on sharpness runs as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_quick_run(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "examples/sharpness.py", "--quick", "--out", tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"0\.004\W+9,500", run.stdout)
    assert "for this learning rate" in run.stdout
    assert (tmp_path / "sharpness.png").stat().st_size > 20_000
