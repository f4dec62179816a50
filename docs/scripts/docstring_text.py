"""Docstrings in the design's form -> Markdown, for `docstrings.py`.

The form is Google's with sections of its own (State, Source), equations set in by four
spaces, doctests anywhere, and several names in one line of arguments ("b1, b2: see
`scale_by_adam`"). A general parser of Google's style loses some of that, so the text is
turned into Markdown here and shown as it is (`docstring_style: null`):

    sections        bold headings; their entries a list of definitions
    doctests        fenced code
    `public_name`   a link to its place in the reference
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

TITLES = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Raises": "Raises",
    "Returns": "Returns",
    "Yields": "Yields",
    "State": "State",
}
# The entries of these are "names: description"; the others are text.
OF_ENTRIES = ("Args", "Attributes", "Raises")
_SECTION = re.compile(rf"^({'|'.join(TITLES)}):\s*$")
_ENTRY = re.compile(r"^((?:\*{0,2}[\w.\[\]]+)(?:,\s+\*{0,2}[\w.\[\]]+)*):(?:\s|$)")
_CODE = re.compile(r"`([^`]+)`")
_NAME = re.compile(r"^(?:adamx\.)?((?:\w+\.)*\w+)(?:\(.*\))?$")


def to_markdown(text: str, links: Mapping[str, str]) -> str:
    """A docstring, without the indentation of its source, as Markdown.

    Args:
      text: the docstring.
      links: identifier by public name, "scale_by_adam" or "schedules.linear".

    Returns:
      Markdown for Python-Markdown with `def_list`, fences and autorefs.
    """
    parts, lines, at = [], text.splitlines(), 0
    while at < len(lines):
        stop = _end(lines, at)
        piece = lines[at:stop]
        section = _SECTION.match(lines[at])
        if section:
            parts.append(_section(section[1], _dedented(piece[1:]), links))
        elif lines[at].startswith(">>> "):
            parts.append("\n".join(["```pycon", *piece, "```"]))
        elif lines[at].startswith("    "):
            parts.append("\n".join(piece))
        elif lines[at].strip():
            parts.append(_text("\n".join(piece), links))
        at = stop
    return "\n\n".join(parts)


def _end(lines: Sequence[str], at: int) -> int:
    """Where the piece that begins at a line ends: section, doctest, equation, text."""
    first, stop = lines[at], at + 1

    def goes_on(line: str) -> bool:
        if _SECTION.match(first):
            return not line.strip() or line.startswith(" ")
        if first.startswith(">>> "):
            return bool(line.strip())
        if first.startswith("    "):
            return line.startswith("    ")
        is_other = line.startswith((">>> ", "    ")) or _SECTION.match(line)
        return bool(first.strip() and line.strip() and not is_other)

    while stop < len(lines) and goes_on(lines[stop]):
        stop += 1
    return stop


def _text(text: str, links: Mapping[str, str]) -> str:
    # Outside of code: a * or _ is a product or a name here, never emphasis.
    pieces = _CODE.split(text)
    for i in range(0, len(pieces), 2):
        pieces[i] = (
            re.sub(r"[*_]", r"\\\g<0>", pieces[i])
            .replace("<", "&lt;")
            .replace(">", "&gt;")
        )
    for i in range(1, len(pieces), 2):
        pieces[i] = _linked(pieces[i], links)
    shown = "".join(pieces)
    return re.sub(r"^Source:", "**Source**:", shown)


def _linked(code: str, links: Mapping[str, str]) -> str:
    name = _NAME.match(code)
    place = links.get(name[1]) if name else None
    return f"[`{code}`][{place}]" if place else f"`{code}`"


def _dedented(lines: list[str]) -> list[str]:
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    return [line[min(indents, default=0) :] for line in lines]


def _section(title: str, lines: list[str], links: Mapping[str, str]) -> str:
    heading = f"**{TITLES[title]}**"
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        entry = _ENTRY.match(line) if title in OF_ENTRIES else None
        if entry:
            entries.append((entry[1], [line[entry.end() :]]))
        elif entries:
            entries[-1][1].append(line)
    if not entries:
        return f"{heading}\n\n{to_markdown(chr(10).join(lines), links)}"
    shown = []
    for names, body in entries:
        first, *rest = body
        text = "\n".join([first, *_dedented(rest)]).strip()
        inner = to_markdown(text, links).splitlines()
        inner = [f"    {line}" if line else "" for line in inner]
        inner[0] = f":   {inner[0].strip()}"
        term = ", ".join(f"`{name}`" for name in re.split(r",\s+", names))
        shown.append("\n".join([term, *inner]))
    return f"{heading}\n\n" + "\n\n".join(shown)


def documented(folder: Path) -> dict[str, str]:
    """Identifiers on the pages of a folder, by each name that a docstring may use.

    `::: adamx.diagnostics.Finding` is "diagnostics.Finding" and, where no other public
    name ends so, "Finding".
    """
    text = "\n".join(page.read_text() for page in sorted(folder.rglob("*.md")))
    identifiers = re.findall(r"^::: (adamx\.\S+)$", text, re.MULTILINE)
    rooms = {
        at for at in identifiers if any(o.startswith(f"{at}.") for o in identifiers)
    }
    identifiers = [at for at in identifiers if at not in rooms]  # without a heading
    last = [identifier.rpartition(".")[2] for identifier in identifiers]
    found = dict(zip(last, identifiers, strict=True))
    found = {name: at for name, at in found.items() if last.count(name) == 1}
    return found | {at.removeprefix("adamx."): at for at in identifiers}
