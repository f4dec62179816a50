import importlib
import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.helpers import EXAMPLES, ROOT, run_quickly

NAMES = ("SGD", "Momentum", "RMSProp", "Adam", "AdamW cosine clip")
NUMBER = r"([\d.,e+-]+|nan|inf)"


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """Output text and picture folder of `digits.py --quick`, run as a user would."""
    out = tmp_path_factory.mktemp("digits")
    return run_quickly("digits.py", out), out


@pytest.fixture(scope="module")
def digits():
    """The example as a module; its folder is importable only meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("digits")
    sys.modules.pop("digits")
    sys.modules.pop("_style")


def table_row(text, name, heading):
    """The numbers in the row of `name`, in the table that has the column `heading`."""
    table = text[text.index(heading) :]
    row = re.search(rf"^\W*{re.escape(name)}\s*[│|](.*)$", table, re.MULTILINE)
    assert row, f"no row {name!r} in:\n{text}"
    return [float(x.replace(",", "")) for x in re.findall(NUMBER, row[1])]


@pytest.mark.parametrize("name", NAMES)
def test_quick_run_reports_every_optimizer(quick_run, name):
    text, _ = quick_run
    rate, loss, accuracy, spread, speed = table_row(text, name, "Train loss")
    assert 0 < rate < 1
    assert 0 < loss < 2.6  # log(10) = 2.30 is the loss of a guess; NaN fails too
    assert 0 < accuracy <= 100
    assert 0 <= spread < 50
    assert speed > 0
    valley = table_row(text, name, "Distance to minimum")
    assert np.isfinite(valley).all()


def test_quick_run_reads_the_state(quick_run):
    text, _ = quick_run
    assert re.search(r"count +21\n", text)
    assert float(re.search(rf"learning rate +{NUMBER}", text)[1]) > 0
    norms = re.search(rf"gradient norm +{NUMBER} to {NUMBER} over", text).groups()
    assert 0 < float(norms[0]) < float(norms[1]) < 100


def count_colors(image):
    """How many colours a picture has; each as one number: rows are slow to sort."""
    red, green, blue = np.moveaxis(np.round(image[..., :3] * 255).astype(int), -1, 0)
    return len(np.unique(red * 256**2 + green * 256 + blue))


@pytest.mark.parametrize("picture", ["digits_loss.png", "valley_race.png"])
def test_quick_run_draws_pictures(quick_run, picture):
    _, out = quick_run
    image = plt.imread(out / picture)
    height, width = image.shape[:2]
    assert 1200 <= width <= 2000
    assert 500 <= height <= 1200
    # Five colours and their anti-aliased edges; a blank one has one.
    assert count_colors(image) > 50


def test_no_progress_bar_in_a_pipe(quick_run):
    text, _ = quick_run
    assert "\r" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["Momentum", "Adam", "AdamW cosine clip"])
def test_race_reaches_the_minimum(digits, name):
    make_tx = digits.make_optimizers(digits.VALLEY_STEPS, weight_decay=0.0)[name]
    path = np.asarray(digits.race(make_tx, digits.RATES[name][1]))
    assert path.shape == (digits.VALLEY_STEPS + 1, 2)
    np.testing.assert_allclose(path[0], digits.VALLEY_START, rtol=1e-6)
    first, last = digits.distance(path)[[0, -1]]
    assert last < 0.1 * first


def test_valley_has_its_minimum_where_it_is_marked(digits):
    assert digits.valley(digits.VALLEY_MINIMUM) == 0
    around = np.array(digits.VALLEY_MINIMUM) + 0.1 * np.array([[1, 0], [0, 1], [-1, 1]])
    assert (digits.valley(around.T) > 0).all()


def test_search_skips_rates_that_diverge(digits):
    scores = np.full(len(digits.GRID), np.nan)
    scores[[3, 5]] = 2.0, 1.0
    assert digits.lowest(scores) == pytest.approx(digits.GRID[5])


def test_all_optimizers_have_searched_rates(digits):
    assert tuple(digits.RATES) == NAMES
    for rates in digits.RATES.values():
        for rate in rates:
            assert np.isclose(digits.GRID, rate).any()


def test_missing_extra_is_named(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ImportError('hidden by the test')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code = f"import sys; sys.path.insert(1, {str(EXAMPLES)!r}); import digits"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode != 0
    assert "pip install 'adamx[examples]'" in run.stderr
