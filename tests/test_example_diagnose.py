"""The example on a sick layer runs as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Compiling takes most of the quick run: without LLVM's optimisation, less.
FAST_COMPILE = "--xla_backend_optimization_level=0"


def test_quick_run(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}"
    settings = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "XLA_FLAGS": flags}
    run = subprocess.run(
        [sys.executable, ROOT / "examples/diagnose.py", "--quick", "--out", tmp_path],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "severe: head: eps dominates the denominator\n" in run.stdout
    sick, healed = (
        re.search(rf"{name}\W+([\d.]+)\W+(\d)", run.stdout).groups()
        for name in ("sick", "healed")
    )
    assert float(healed[0]) < float(sick[0]) - 0.1
    assert (sick[1], healed[1]) == ("1", "0")
    for name in ("sick", "healed"):
        page = (tmp_path / f"{name}.html").read_text()
        assert f"The {name} run" in page
