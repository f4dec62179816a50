"""The documentation: its code runs, its names exist, its tables are what is printed."""

import importlib
import re
import sys

import flax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import adamx
from adamx import __main__
from adamx.diagnostics._advice import WORDS
from tests import pages
from tests.helpers import IS_OLD_XLA, ROOT

DOCS = ROOT / "docs"
SCRIPTS = DOCS / "scripts"
PAGES = [page for page in pages.all_pages() if page.startswith("docs/")]
WITH_CODE = [page for page in PAGES if pages.blocks(pages.read(page))]
IS_OLD_FLAX = tuple(map(int, flax.__version__.split(".")[:2])) < (0, 11)
# What is written, or printed, otherwise with older versions: flax's call; arrays with
# copies on several devices, which Orbax 0.12 cannot save with jax 0.6 (the pages say
# both); and what XLA of jax 0.6 takes for an update, which the page calls an estimate.
OLDER = {
    '"state": interop.to_flat(state)}': (
        IS_OLD_XLA,
        '"state": jax.device_get(interop.to_flat(state))}',
    ),
    '{"params": params, "state"': (
        IS_OLD_XLA,
        '{"params": jax.device_get(params), "state"',
    ),
    "optimizer.update(model, grads)": (IS_OLD_FLAX, "optimizer.update(grads)"),
    "temporaries       2.0 MiB": (IS_OLD_XLA, "temporaries       8.0 MiB"),
    "together         22.0 MiB": (IS_OLD_XLA, "together         28.0 MiB"),
    "1 all-reduce of 8": (IS_OLD_XLA, "1 all-reduce of 2"),
}


@pytest.fixture(scope="module")
def scripts():
    """The scripts of docs/ as modules; their folder is importable only meanwhile."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setattr(sys, "path", list(sys.path))
        yield lambda name: importlib.import_module(name)
    for name in set(sys.modules) - before:
        place = getattr(sys.modules[name], "__file__", None) or ""
        if str(ROOT / "docs") in place or str(ROOT / "benchmarks") in place:
            del sys.modules[name]


def test_the_pages_with_code_are_those_of_the_guide():
    names = {page.removeprefix("docs/").removesuffix(".md") for page in WITH_CODE}
    guide = "index optimizers numerics memory control reading findings search scale"
    assert names >= {*guide.split(), "from_optax", "from_torch", "built"}


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = pages.read(page)
    for new, (is_older, old) in OLDER.items():
        text = text.replace(new, old) if is_older else text
    pages.run(page, pages.blocks(text), {"__name__": page})


def test_what_differs_by_version_is_on_a_page():
    texts = [pages.read(page) for page in WITH_CODE]
    assert all(any(new in text for text in texts) for new in OLDER)


def test_a_page_that_is_wrong_fails():
    text = "```python\nprint(0.5)\n```\n\n```text\n{}\n```\n"
    pages.run("README.md", pages.blocks(text.format("0.50")), {})
    for wrong in ("0.48", "half", "0.5 0.5"):
        with pytest.raises(AssertionError, match="says it prints"):
            pages.run("README.md", pages.blocks(text.format(wrong)), {})
    prompt = pages.blocks("```python\n>>> {'a': 1.5}\n{'a': 1.6}\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        pages.run("README.md", prompt, {})


def _codes(page):
    """What stands in backticks in the text of a page, outside of its blocks."""
    text = re.sub(r"^( *)```.*?^\1```", "", pages.read(page), flags=re.S | re.M)
    return re.findall(r"`([^`\n]+)`", text)


def _resolve(name):
    # From the modules: `from_torch` alone is of `adamx.interop`.
    value = {"adamx": adamx, "optax": optax}[name.split(".")[0]]
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_names_exist(page):
    found = {
        name
        for code in _codes(page)
        for name in re.findall(
            r"(?<![\w/.])adamx(?:\.[A-Za-z]\w*)+(?![\w/]|\.py)", code
        )
    }
    for name in found:
        _resolve(name)
    files = {code for code in _codes(page) if re.fullmatch(r"[\w/.]+\.(?:py|md)", code)}
    for file in files:
        places = (ROOT / file, ROOT / "adamx" / file, ROOT / "adamx/optimizers" / file)
        assert any(place.exists() for place in places), file


def test_from_optax_has_every_name_that_both_have():
    rows = pages.rows(pages.read("docs/from_optax.md"), first="Optax")
    theirs = {n for row in rows for n in re.findall(r"`([\w.]+)`", row[0])}
    ours = {n for row in rows for n in re.findall(r"`([\w.]+)`", row[1])}
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 4
    for name in theirs:
        if not name.startswith("contrib."):  # some are newer than the oldest version
            _resolve(f"optax.{name}")
    for name in ours:
        _resolve(f"adamx.{name}")
    # One row stands for all scale_by_..., `freeze` for optax.set_to_zero.
    both = {n for n in vars(adamx) if hasattr(optax, n) or hasattr(optax.contrib, n)}
    both = {n for n in both if callable(getattr(adamx, n)) and n[0].islower()}
    assert {n for n in both if not n.startswith("scale_by_")} <= ours


def test_from_torch_has_code_that_runs():
    rows = pages.rows(pages.read("docs/from_torch.md"), first="PyTorch")
    known = {"adamx": adamx, "lr": 0.1, "w": 0.01}
    ran = 0
    for _, here in rows:
        code = re.match(r"`([^`]+)`", here)[1]
        if "..." in code or "tx" in code or "(" not in code:
            continue
        tx = eval(code, known)
        tx.init({"embed": jnp.ones((4, 2))})
        ran += 1
    assert ran >= 9


def test_the_table_of_optimizers_is_the_printed_one(capsys):
    assert __main__.main(["optimizers", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in pages.read("docs/optimizers.md")


def test_the_page_of_findings_is_the_written_one(scripts):
    assert pages.read("docs/findings.md") == scripts("findings").page()


def test_every_finding_has_its_picture():
    pictures = {file.stem for file in (DOCS / "pictures/findings").glob("*.png")}
    assert pictures == set(WORDS)


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_pictures_are_there(page):
    folder = (ROOT / page).parent
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", pages.read(page)):
        assert (folder / picture).exists(), picture


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORDS)
def test_every_picture_is_of_a_run_that_has_the_finding(kind, scripts, tmp_path):
    pictures = scripts("finding_pictures")
    pictures.main(["--only", kind, "--out", str(tmp_path)])
    assert (tmp_path / f"{kind}.png").exists()


def test_the_flow_of_data_is_drawn(scripts, tmp_path):
    scripts("pictures").main(["--only", "data_flow", "--out", str(tmp_path)])
    assert (tmp_path / "data_flow.png").stat().st_size > 10_000


LOADED = [
    '<script src="https://elsewhere.org/x.js"></script>',
    '<link rel="stylesheet" href="//elsewhere.org/x.css">',
    '<link rel="preconnect" href="https://elsewhere.org">',
    '<img src="http://elsewhere.org/x.png">',
    '<img srcset="https://elsewhere.org/x.png 2x">',
    '<p style="background: url(https://elsewhere.org/x.png)">',
    "<style>@import 'https://elsewhere.org/x.css';</style>",
    '<img src="not_there.png">',
    '<pre class="mermaid">',
]
FINE = """<a href="https://elsewhere.org">x</a><img src="here.png"><script>1</script>
<link rel="canonical" href="https://elsewhere.org"><img src="data:image/png;base64,A">
<style>a { color: red; background: url('here.png') }</style>"""


@pytest.mark.parametrize("text", LOADED)
def test_what_is_loaded_from_elsewhere_is_noticed(text, scripts, tmp_path, capsys):
    check = scripts("check_site")
    (tmp_path / "here.png").touch()
    (tmp_path / "index.html").write_text(FINE)
    assert check.main([str(tmp_path)]) == 0
    (tmp_path / "index.html").write_text(FINE + text)
    assert check.main([str(tmp_path)]) == 1
    assert "index.html loads" in capsys.readouterr().out


def test_a_site_that_is_not_there_is_noticed(scripts, tmp_path, capsys):
    assert scripts("check_site").main([str(tmp_path)]) == 1
    assert "mkdocs build" in capsys.readouterr().out


def test_docstrings_become_markdown(scripts):
    text = scripts("docstring_text").to_markdown(
        """One line with m_hat * g < 1.

    m_hat = mu / (1 - b1^t)

Args:
  b1, b2: >= 0; see `scale_by_adam`. And
    on the next line, `a_b`:

        x = y
  *rest: the others.

Returns:
  Something.

>>> 1 + 1
2

Source: Kingma & Ba (2015).""",
        {"scale_by_adam": "adamx.scale_by_adam"},
    )
    assert (
        text
        == r"""One line with m\_hat \* g &lt; 1.

    m_hat = mu / (1 - b1^t)

**Arguments**

`b1`, `b2`
:   &gt;= 0; see [`scale_by_adam`][adamx.scale_by_adam]. And
    on the next line, `a_b`:

        x = y

`*rest`
:   the others.

**Returns**

Something.

```pycon
>>> 1 + 1
2
```

**Source**: Kingma & Ba (2015)."""
    )
