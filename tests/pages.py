"""Pages of Markdown as what they are to a reader: code that runs, tables, names.

Python blocks of a page share a namespace and run in order. A `text` block right behind
one is what it prints, up to white space, where numbers may be off by 2 % or by one in
the last digit: a compiler rounds as it likes. What follows a prompt (>>>) is a value,
with numbers equal to six digits.
"""

import ast
import contextlib
import doctest
import io
import re
import textwrap
from typing import NamedTuple

import pytest

from tests.helpers import ROOT

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"(?<!\\)\|")


class Block(NamedTuple):
    """A Python block; `printed`: the text block behind it, or None."""

    code: str
    line: int
    printed: str | None

    @property
    def is_prompt(self):
        return self.code.startswith(">>> ")


def all_pages():
    """README and the pages of the documentation, by path from the repository's root."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(page.relative_to(ROOT)) for page in pages]


def read(page):
    return (ROOT / page).read_text()


def blocks(text):
    """The Python blocks, those inside lists, notes and tabs too."""
    found, fences = [], list(_FENCE.finditer(text))
    for i, fence in enumerate(fences):
        if fence[2] != "python":
            continue
        after = fences[i + 1] if i + 1 < len(fences) else None
        is_shown = (
            after is not None
            and after[2] == "text"
            and not text[fence.end() : after.start()].strip()
        )
        line = text[: fence.start(3)].count("\n")
        printed = textwrap.dedent(after[3]) if is_shown else None
        found.append(Block(textwrap.dedent(fence[3]), line, printed))
    return found


def rows(text, first=None):
    """The cells of all rows of tables; with `first`, of tables headed so."""
    found, heading = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            heading = None
            continue
        cells = [cell.strip() for cell in _ROW.split(line.strip().strip("|"))]
        if heading is None:
            heading = cells[0]
        elif not set(line) <= set("|-: ") and first in (None, heading):
            found.append(cells)
    return found


def _words(text):
    """Text without its numbers and white space; and its numbers, with their steps."""
    numbers = []
    for found in _NUMBER.findall(text):
        digits, _, power = found.replace(",", "").lower().partition("e")
        decimals = len(digits.partition(".")[2])
        step = 10.0 ** (int(power or 0) - decimals)
        numbers.append((float(found.replace(",", "")), step))
    return " ".join(_NUMBER.sub("#", text).split()), numbers


def is_printed(want, got):
    """Whether `got` is the text `want`, with numbers nearly the same."""
    (text, numbers), (other, printed) = _words(want), _words(got)
    return text == other and all(
        abs(a - b) <= max(0.02 * abs(a), 1.01 * step)
        for (a, step), (b, _) in zip(numbers, printed, strict=True)
    )


class _Checker(doctest.OutputChecker):
    """Values of Python, with numbers equal to six digits."""

    def check_output(self, want, got, flags):
        if super().check_output(want, got, flags):
            return True
        try:
            return ast.literal_eval(got) == _near(ast.literal_eval(want))
        except (ValueError, SyntaxError, TypeError):
            return False


def _near(value):
    if isinstance(value, dict):
        return {name: pytest.approx(item) for name, item in value.items()}
    return pytest.approx(value)


def run(page, found, names):
    """Runs blocks in the namespace `names`, and checks what they say they print."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")  # of tables: what it is without a terminal
        _run(page, found, names)


def _run(page, found, names):
    for block in found:
        if block.is_prompt:
            _run_prompt(page, block, names)
            continue
        code = compile("\n" * block.line + block.code, str(ROOT / page), "exec")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        if block.printed is not None:
            assert is_printed(block.printed, out.getvalue()), (
                f"{page}:{block.line} says it prints\n{block.printed}\n"
                f"and prints\n{out.getvalue()}"
            )


def _run_prompt(page, block, names):
    parser = doctest.DocTestParser()
    test = parser.get_doctest(block.code, names, page, str(ROOT / page), block.line)
    test.globs = names
    out = io.StringIO()
    runner = doctest.DocTestRunner(checker=_Checker())
    runner.run(test, out=out.write, clear_globs=False)
    assert not runner.failures, out.getvalue()
