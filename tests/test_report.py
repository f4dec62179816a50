"""report: what is on the page and in the terminal, and what is not."""

import base64
import html.parser
import io
import itertools
import re
import struct
import types
import zlib

import numpy as np
import pytest
from rich.console import Console

import adamx
from adamx import __main__ as command
from adamx.diagnostics import _chart, _facts, _heat, _record, _report_text
from adamx.reading import Diagnostics, Reading

NAN, INF = float("nan"), float("inf")
HOSTILE = "<img src=x onerror='alert(1)'>&\"quoted\"/k</script>"
NUMBERS = (
    *("r/p10", "r/p50", "r/p90", "grad_norm", "param_norm", "update_norm"),
    *("update_ratio", "eps_share", "still_share", "cosine", "nonfinite", "v_change"),
)


def finding(**fields):
    return types.SimpleNamespace(
        **{
            "layer": "block_2/kernel",
            "symptom": "median near zero",
            "evidence": {"median r": 0.000123456, "steps": 40},
            "likely_causes": ["eps is large"],
            "what_to_try": ["lower eps"],
            "severity": "high",
            **fields,
        }
    )


def run(layers=12, measurements=30, seed=0, names=None):
    """Packed rows straight into a History: `append` is tested elsewhere."""
    rng = np.random.default_rng(seed)
    names = tuple(names or (f"block_{i}/kernel" for i in range(layers)))
    history = adamx.History()
    for k in range(1, measurements + 1):
        values = 10 ** rng.normal(-2, 1, (len(names), len(NUMBERS)))
        values[:, :3] = np.sort(values[:, :3])
        values[rng.random(len(names)) < 0.02] = NAN
        skipped = k // 9
        fields = {"count": 100 * k - skipped, "learning_rate": 1e-3 / k}
        metrics = {"loss": 3.0 / k, **({"val_loss": 4.0 / k} if k % 3 == 0 else {})}
        more = {"skipped": skipped, "grad_norm": 2.0}
        row = _record.Measurement(100 * k, names, NUMBERS, values)
        history._add(_record.Row(fields | more, metrics, row))
    return history


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order; gathers text, links and attributes."""

    VOID = frozenset({"meta", "link", "img", "input", "wbr", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.ids = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), "an attribute twice"
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open[-1:]):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, kind=""):
        return [a for t, a in self.tags if t == tag and kind in a.get("class", "")]


def page_of(tmp_path, history, **options):
    path = adamx.report(history, tmp_path / "run.html", **options)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids), "an id twice"
    anchors = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert set(anchors) <= set(page.ids), "a link to nothing"
    # Nothing is loaded: all addresses are in the page, and no other place names one.
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    script, style = (re.search(f"<{t}>(.*?)</{t}>", text, re.S)[1] for t in TAGS)
    assert not re.search(r"https?:|url\(|@import|import\(|fetch", style + script)
    assert "default-src 'none'" in text
    return page, text


TAGS = ("script", "style")


def test_the_page_has_what_it_should(tmp_path):
    page, text = page_of(tmp_path, run(), findings=(finding(),), title="My run")
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert headings[0] == "Findings"
    assert headings[1:] == [
        "Loss and learning rate",
        "Layers over time",
        "Update/parameter ratios",
        "Effective steps, layer by layer",
        "Norms and skipped steps",
        "Layers that move with the validation loss",
        "Table of layers",
    ]
    assert page.text.startswith("My run My run steps 3,000 30 records")
    drawings = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawings)
    assert all(len(a["alt"]) > 20 for a in page.all("img"))
    assert len(page.all("article", "layer")) == 12
    assert "1e-3" in page.text
    marks = list(page.all("path", "mark"))
    assert len(marks) == 1 + 12, "the 1e-3 line in the chart and in each card"


def test_findings_come_by_severity_with_their_evidence(tmp_path):
    found = (
        finding(severity="info", symptom="third", layer=None, evidence="as text"),
        finding(severity="warning", symptom="second", likely_causes="one cause"),
        finding(severity="high", symptom="first"),
        finding(severity=None, symptom="without", evidence=[]),
    )
    page, _ = page_of(tmp_path, run(), findings=found)
    text = page.text
    places = [text.index(word) for word in ("first", "second", "without", "third")]
    assert places == sorted(places)
    assert "median r 1.23e−4" in text  # noqa: RUF001
    assert "the whole run" in text
    assert "as text" in text
    assert "one cause" in text
    assert "eps is large" in text
    assert "lower eps" in text
    assert {"href": "#layer-2"} in page.all("a"), "a link to the layer's card"


def test_findings_are_those_of_health_unless_they_are_given(tmp_path, capsys):
    history = adamx.History()
    for step in range(1000, 11000, 1000):
        layers = {"sick": {"r/p50": 1e-4}, "well": {"r/p50": 0.1}}
        history.append(Reading(count=step, diagnostics=Diagnostics(step, layers)))
    page, _ = page_of(tmp_path, history)
    assert "the median of r is near zero" in page.text
    adamx.print_report(history)
    assert "the median of r is near zero in sick" in capsys.readouterr().out
    page, _ = page_of(tmp_path, history, findings=())
    assert "no rule found anything" in page.text
    adamx.print_report(history, findings=())
    assert "Findings: none" in capsys.readouterr().out


def test_advice_is_given_once(tmp_path, capsys):
    found = [finding(), finding(layer="block_3/kernel"), finding(symptom="another")]
    text = adamx.report(run(), tmp_path / "run.html", findings=found).read_text()
    Page(text)
    assert text.count("<li>lower eps</li>") == 2
    assert text.count("Causes and what to try: as for") == 1
    adamx.print_report(run(), findings=found, width=100)
    printed = capsys.readouterr().out
    assert printed.count("lower eps") == 2
    assert "causes and what to try: as for block_2/kernel, above" in printed
    of_the_run = [finding(layer=None)] * 2
    text = adamx.report(run(), tmp_path / "run.html", findings=of_the_run).read_text()
    assert text.count("<li>lower eps</li>") == 2


def test_what_could_not_be_judged_is_said(tmp_path, capsys):
    history = adamx.History()
    for step in range(100, 500, 100):
        layers = {"a": {"r/p50": 0.1}}
        history.append(Reading(count=step, diagnostics=Diagnostics(step, layers)))
    page, _ = page_of(tmp_path, history)
    assert "Not judged: layers (4 measurements" in page.text
    assert "validation loss (not recorded)" in page.text
    adamx.print_report(history, width=200)
    assert "training loss (not recorded)" in capsys.readouterr().out
    page, _ = page_of(tmp_path, run(3, 30))
    assert "Not judged" not in page.text


def test_the_name_of_the_axis_stands_beside_its_numbers(tmp_path):
    """In the column of the other axis: no number comes there, at any width."""
    text = adamx.report(run(3, 12), tmp_path / "run.html").read_text("utf-8")
    (rule,) = re.findall(r"\.xs i\{([^}]*)\}", text)
    assert "position:absolute;right:100%" in rule
    assert ">step</i>" in text


def test_hostile_names_stay_text(tmp_path):
    history = run(names=[HOSTILE, "b/k", "javascript:alert(1)"])
    broken = finding(
        layer=HOSTILE,
        symptom=HOSTILE,
        evidence={HOSTILE: HOSTILE},
        likely_causes=[HOSTILE],
        what_to_try=HOSTILE,
        severity=HOSTILE,
    )
    history.append(Reading(count=9999, learning_rate={HOSTILE: 0.1, "b": 0.2}))
    page, text = page_of(tmp_path, history, findings=[broken], title=HOSTILE)
    assert text.count("<script>") == text.count("</script>") == 1
    assert not [a for _, a in page.tags if "onerror" in a or a.get("src") == "x"]
    assert HOSTILE in page.text
    assert HOSTILE in [a.get("data-layer") for a in page.all("article")]


def test_the_script_is_the_one_that_the_policy_allows(tmp_path):
    import hashlib

    _, text = page_of(tmp_path, run(2, 2))
    script = re.search("<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_200_layers_and_1000_readings_stay_below_5_mb(tmp_path):
    # Noise: it packs worse than any run.
    path = adamx.report(run(200, 1000), tmp_path / "big.html", findings=[finding()])
    assert path.stat().st_size < 5e6
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.all("article", "layer")) == 200
    assert "176 more layers" in page.text
    width, height = png_size(page.all("img")[0]["src"])
    assert (width, height) == (400, 200)


def png_size(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return struct.unpack(">II", data[16:24])


ODD = {
    "one record, no numbers": [Reading()],
    "no layers": [Reading(count=1, learning_rate=0.1), Reading(count=2)],
    "a layer without numbers": [
        Reading(count=1, diagnostics=Diagnostics(1, {"a": {}}))
    ],
    "no layer in the diagnostics": [Reading(count=1, diagnostics=Diagnostics(1, {}))],
    "one measurement": [
        Reading(count=1, diagnostics=Diagnostics(1, {"a": {"r/p50": 0.5}}))
    ],
    "all NaN": [
        Reading(
            count=k,
            learning_rate=NAN,
            grad_norm=INF,
            diagnostics=Diagnostics(k, {"a": dict.fromkeys(NUMBERS, NAN)}),
        )
        for k in (1, 2)
    ],
    "all zero": [
        Reading(
            count=k,
            learning_rate=0.0,
            grad_norm=0.0,
            diagnostics=Diagnostics(k, {"a": dict.fromkeys(NUMBERS, 0.0)}),
        )
        for k in (1, 2)
    ],
    "other percentiles, a huge number": [
        Reading(count=1, diagnostics=Diagnostics(1, {"a": {"r/p40": 1e30, "r/p99": 2}}))
    ],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("loss", [None, NAN, 0.0, -1e300], ids=str)
def test_odd_histories_are_drawn(tmp_path, name, loss, recwarn, capsys):
    history = adamx.History()
    for reading in ODD[name]:
        history.append(reading, loss=loss, val_loss=loss)
    page_of(tmp_path, history)
    adamx.print_report(history, width=60)
    assert not recwarn.list, [str(w.message) for w in recwarn.list]
    text = (tmp_path / "run.html").read_text()
    assert not re.search(r'd="[^"]*(nan|inf)', text)


LARGE, SMALL = 1.797e308, 5e-324
EXTREME = {
    "large": [1.0, 1e308],
    "small": [SMALL, 0.0],
    "all large": [LARGE] * 60,
    "all small": [SMALL] * 60,
    "both ends": [SMALL, LARGE] * 30,
    "both signs": [LARGE, -LARGE] * 30,
    "growing": np.geomspace(1e-300, 1e300, 60).tolist(),
    "not finite, and large": [INF, 1e308, NAN],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", EXTREME)
def test_numbers_at_the_ends_of_their_range_are_drawn(tmp_path, name, capsys):
    """What is finite has a place; sums and ratios of it need not be finite."""
    alone, history = adamx.History(), adamx.History()
    for k, value in enumerate(EXTREME[name], 1):
        layers = dict.fromkeys("ab", dict.fromkeys(NUMBERS, abs(value)))
        reading = Reading(
            count=100 * k,
            learning_rate=abs(value),
            grad_norm=abs(value),
            diagnostics=Diagnostics(100 * k, layers),
        )
        history.append(reading, loss=value, val_loss=value)
        alone.append(Reading(), loss=value, step=2**63 - 1)
    for one in (alone, history):
        _, text = page_of(tmp_path, one)
        assert re.search(r'class="one" d="M|<path class="[a-z]+" d="M', text)
        assert not re.search(r'(d|data-x|data-y)="[^"]*(nan|inf)', text)
        adamx.print_report(one, width=80)
        out = capsys.readouterr().out
        assert "▁" in out or "█" in out or "▄" in out or "▅" in out
    history.relate(min_pairs=5)


def test_broken_lines_are_named_on_the_page(tmp_path):
    path = tmp_path / "run.jsonl"
    adamx.History(path).append(Reading(count=1))
    path.write_text(path.read_text() + "{oops\n" + path.read_text())
    with pytest.warns(UserWarning, match="line 2"):
        history = adamx.History(path)
    page, _ = page_of(tmp_path, history)
    assert "1 broken lines of the file were left out: 2" in page.text


def test_an_older_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    from adamx.diagnostics import _report

    target = tmp_path / "run.html"
    target.write_text("old")

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(_report.os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            adamx.report(run(2, 2), target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    adamx.report(run(2, 2), target)
    assert target.read_text().startswith("<!doctype")


# --------------------------------------------------------------------------- drawing


def test_fewer_columns_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=(3, 103))
    values[values > 1.5] = NAN
    values[1, 20:60] = INF
    finite = np.where(np.isfinite(values), values, NAN)
    edges = np.linspace(0, 103, 11).astype(int)
    twins = {"median": np.nanmedian, "mean": np.nanmean}
    twins |= {"least": np.nanmin, "greatest": np.nanmax}
    for how, twin in twins.items():
        got = _chart.fewer(values, 10, how)
        for k, (a, b) in enumerate(itertools.pairwise(edges)):
            for row in range(3):
                block = finite[row, a:b]
                expected = NAN if np.isnan(block).all() else twin(block)
                np.testing.assert_allclose(got[row, k], expected, rtol=1e-15)
    np.testing.assert_array_equal(_chart.fewer(values, 103), finite)


def test_scales():
    scale = _chart.scale_of(np.array([1e-3, 1.0, NAN, INF]))
    assert scale.is_log
    places = scale.places(np.array([scale.low, scale.high, 1e9, 0.0, NAN]))
    np.testing.assert_allclose(places, [0, 1, 1, 0, NAN])
    assert scale.ticks() == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])
    linear = _chart.scale_of(np.array([2.0, 3.0]))
    assert not linear.is_log
    assert linear.places(np.array(2.5)) == pytest.approx(0.5)
    assert linear.ticks(6) == pytest.approx([2.0, 2.2, 2.4, 2.6, 2.8, 3.0])
    for values in ([], [NAN], [0.0], [5.0], [-1.0, 1.0], [1e-320, 1e300]):
        scale = _chart.scale_of(np.array(values))
        assert scale.high > scale.low
        assert len(scale.ticks()) < 20


def test_a_line_breaks_where_a_value_is_missing():
    x = np.linspace(0, 1, 6)
    y = np.array([0.0, 1.0, NAN, 0.5, NAN, 0.25])
    assert _chart.line(x, y) == "M0 1000L200 0M600 500h0M1000 750h0"
    assert _chart.band(x[:2], y[:2] / 2, y[:2]) == "M0 1000 200 0L200 500 0 1000Z"


def test_numbers_are_short():
    numbers = [0, 1.0, 12345, 0.12345, 1.5e-5, -2e7, NAN, INF]
    texts = ["0", "1", "12,345", "0.123", "1.5e−5", "−2e7", "–", "∞"]  # noqa: RUF001
    assert [_chart.short(x) for x in numbers] == texts


def decoded(data):
    """Rows of indices, and the palette, of an indexed PNG."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        (check,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert check == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8)
    lines = lines.reshape(height, width + 1)
    assert not lines[:, 0].any()
    assert chunks[b"tRNS"] == b"\x00"
    return lines[:, 1:], np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)


def test_the_picture_is_what_was_given():
    places = np.array([[0.0, 0.5, 1.0], [NAN, 2.0, -1.0]])
    cells = _heat.quantized(places)
    assert cells.tolist() == [[1, 128, 255], [0, 255, 1]]
    pixels, palette = decoded(_heat.png(cells, _heat.SEQUENTIAL))
    np.testing.assert_array_equal(pixels, cells)
    assert palette.shape == (256, 3)
    np.testing.assert_array_equal(palette[255], _heat.SEQUENTIAL[-1])
    np.testing.assert_array_equal(palette[1], _heat.SEQUENTIAL[0])


@pytest.mark.parametrize("lab", [_heat.sequential_lab(), _heat.diverging_lab()])
def test_colours_are_even_and_exist(lab):
    rgb = _heat.to_srgb(lab)
    assert rgb.min() > -0.01
    assert rgb.max() < 1.01
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    steps = np.delete(steps, len(steps) // 2)  # the two halves meet
    assert steps.max() < 1.25 * steps.min()


def test_lightness_alone_tells_values_apart():
    lightness = _heat.sequential_lab()[:, 0]
    assert (np.diff(lightness) > 0).all()
    assert lightness[-1] - lightness[0] > 0.6
    lightness = _heat.diverging_lab()[:, 0]
    assert (np.diff(lightness)[:126] > 0).all()
    assert (np.diff(lightness)[127:] < 0).all()


def test_names():
    names = ["a/l_10/k", "a/l_2/k", "a/b"]
    assert [names[i] for i in _facts.natural_order(names)] == names[::-1]
    assert _facts.common_start(names) == "a/"
    assert _facts.common_start(["a/b"]) == ""
    assert _facts.common_start(["a/b", "a/b/c"]) == "a/"
    assert _facts.block("a/l_10/b_2/k") == "a/l_10"
    assert _facts.elided("abcdefghij", 5) == "ab…ij"


# -------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_terminal_report(capsys, width):
    adamx.print_report(run(40, 20), findings=[finding()], width=width)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    for words in ("steps", "training loss", "median near zero", "lower eps"):
        assert words in text
    # 20 with the smallest r, 10 with the largest, and the one that is named.
    hidden = int(re.search(r"\((\d+) more\)", text)[1])
    assert hidden in (9, 10)
    assert "block_2/kernel" in text


# What rich would read as an end, as a style, as an escape and as a picture.
MARKUP = [r"[/.]bias$", "[a-z]+/kernel", "[red]w\\", ":x:"]


@pytest.mark.parametrize("name", MARKUP)
def test_names_that_look_like_markup_stay_text(capsys, name):
    """A group is named by its regular expression."""
    history = adamx.History()
    for k in range(1, 30):
        numbers = {"r/p50": 1e-3 * (k % 5 + 1), name: 1.0}
        layers = {f"{name}/{i}": numbers for i in range(2)}
        diagnostics = Diagnostics(100 * k, layers)
        rates = {name: 0.1, "b": 0.2}
        reading = Reading(100 * k, learning_rate=rates, diagnostics=diagnostics)
        history.append(reading, loss=1.0, val_loss=float(k % 3), **{name: float(k % 3)})
    named = finding(layer=name, symptom=name, evidence={name: name}, severity=name)
    adamx.print_report(history, findings=[named], width=120)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"learning_rate/{name} ") for line in lines)
    assert f"Layers, last values; in {name}/" in map(str.strip, lines)
    assert f"{name} {name}" in map(str.strip, lines)
    relation = history.relate(name, numbers=[name, "r/p50"])
    terminal = Console(width=120, color_system=None, file=io.StringIO())
    terminal.print(relation)  # a user's own
    for shown in (str(relation), terminal.file.getvalue()):
        assert f"change of {name}" in shown
        assert f" {name}/" in shown.split("\n", 1)[1]  # broken behind it, if long


def test_sparkline():
    values = np.array([0.0, 0.5, NAN, 1.0])
    assert _report_text.sparkline(values, _chart.Scale(0.0, 1.0), 8) == "▁▅ █"


# ---------------------------------------------------------------------- the command


@pytest.fixture
def saved(tmp_path):
    history = adamx.History(tmp_path / "run.jsonl")
    history.append(Reading(count=1), loss=2.0)
    return history.path


def test_the_command_writes_the_page_beside_the_history(saved, capsys):
    assert command.main(["report", str(saved)]) == 0
    assert str(saved.with_suffix(".html")) in capsys.readouterr().out
    assert "<title>run.jsonl</title>" in saved.with_suffix(".html").read_text()


def test_the_command_takes_a_path_and_a_title(saved, capsys):
    out = saved.parent / "x.html"
    arguments = ["report", str(saved), "--out", str(out), "--title", "A <run>"]
    assert command.main(arguments) == 0
    assert "A &lt;run&gt;" in out.read_text()
    assert not saved.with_suffix(".html").exists()


def test_the_command_prints(saved, capsys):
    assert command.main(["report", str(saved), "--terminal"]) == 0
    assert "training loss" in capsys.readouterr().out
    assert list(saved.parent.iterdir()) == [saved], "nothing is written"
