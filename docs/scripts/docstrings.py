"""Docstrings in the design's form -> Markdown, for mkdocstrings.

The form is Google's with sections of its own (State, Source), equations set in by four
spaces, doctests anywhere, and several names in one line of arguments ("b1, b2: see
`scale_by_adam`"). A general parser of Google's style loses some of that, so the text is
turned into Markdown here and shown as it is (`docstring_style: null`):

    sections        bold headings; their entries a list of definitions
    doctests        fenced code
    `public_name`   a link to its place in the reference
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import griffe

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
_CODE = re.compile(r"`([^`\n]+)`")
_NAME = re.compile(r"^(?:adamx\.)?((?:\w+\.)*\w+)(?:\(.*\))?$")


def to_markdown(text: str, links: Mapping[str, str]) -> str:
    """A docstring, without the indentation of its source, as Markdown.

    Args:
      text: the docstring.
      links: identifier by public name, "scale_by_adam" or "schedules.linear".

    Returns:
      Markdown for Python-Markdown with `def_list`, fences and autorefs.
    """
    parts = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        section = _SECTION.match(lines[at])
        stop = at + 1
        if section:
            while stop < len(lines) and (
                lines[stop].startswith(" ") or not lines[stop]
            ):
                stop += 1
            body = _dedented(lines[at + 1 : stop])
            parts.append(_section(section[1], body, links))
        elif lines[at].startswith(">>> "):
            while stop < len(lines) and lines[stop].strip():
                stop += 1
            parts.append("\n".join(["```pycon", *lines[at:stop], "```"]))
        elif lines[at].startswith("    "):  # an equation
            while stop < len(lines) and lines[stop].startswith("    "):
                stop += 1
            parts.append("\n".join(lines[at:stop]))
        elif lines[at].strip():
            while stop < len(lines) and lines[stop].strip():
                if lines[stop].startswith((">>> ", "    ")) or _SECTION.match(
                    lines[stop]
                ):
                    break
                stop += 1
            parts.append(_text("\n".join(lines[at:stop]), links))
        at = stop
    return "\n\n".join(parts)


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
    last = [identifier.rpartition(".")[2] for identifier in identifiers]
    found = dict(zip(last, identifiers, strict=True))
    found = {name: at for name, at in found.items() if last.count(name) == 1}
    return found | {at.removeprefix("adamx."): at for at in identifiers}


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package when it is loaded."""

    def __init__(self) -> None:
        self.links = documented(Path(__file__).parents[1] / "reference")

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Text to Markdown; States show their fields, not their methods."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self.links)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """`adamx.adamw` is the function, not the module of that name it comes from."""
        del kwargs
        for name, member in list(pkg.members.items()):
            if member.is_alias and member.is_module and name in member.members:
                target = f"{member.final_target.path}.{name}"
                pkg.set_member(name, griffe.Alias(name, target, parent=pkg))

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """The methods of a State are for the library."""
        del kwargs
        if cls.name.endswith("State"):
            for name in [n for n, m in cls.members.items() if m.is_function]:
                del cls.members[name]
