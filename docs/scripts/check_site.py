"""Reads the built site as a browser does, and fails where it would go to the network.

    mkdocs build --strict && python docs/scripts/check_site.py site

What is loaded (scripts, styles, fonts, pictures, frames) must be a file of the site,
and be there. Links that a reader may follow are no business of this script; `mkdocs
build --strict` looks after those inside.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes by which a tag loads something.
LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "track": ("src",),
    "input": ("src",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
# What a <link> says that a browser does not fetch.
ONLY_SAID = {"canonical", "prev", "next", "author", "license", "alternate"}
_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Loads(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        names = LOADS.get(tag, ())
        if tag == "link" and set(given.get("rel", "").split()) - ONLY_SAID:
            names = ("href",)
        for name in names:
            if name == "srcset":
                parts = given.get(name, "").split(",")
                self.found += [part.split()[0] for part in parts if part.strip()]
            elif name in given:
                self.found.append(given[name])
        self.found += in_css(given.get("style", ""))
        if "mermaid" in given.get("class", "").split():
            self.found.append("https: the theme loads mermaid from a network")
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += in_css(data)


def in_css(text: str) -> list[str]:
    return [first or second for first, second in _URL.findall(text)]


def problems(site: Path) -> list[str]:
    """One line for each thing that is loaded from elsewhere, or is not there."""
    found = []
    for page in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        text = page.read_text()
        if page.suffix == ".css":
            loaded = in_css(text)
        else:
            reader = Loads()
            reader.feed(text)
            loaded = reader.found
        for address in dict.fromkeys(loaded):
            parts = urlsplit(address)
            if parts.scheme == "data" or not (parts.path or parts.netloc):
                continue
            where = page.relative_to(site)
            base = site if parts.path.startswith("/") else page.parent
            if parts.scheme or parts.netloc:
                found.append(f"{where} loads {address}")
            elif not (base / unquote(parts.path).lstrip("/")).exists():
                found.append(f"{where} loads {address}, which is not there")
    return found


def main(arguments: list[str]) -> int:
    site = Path(arguments[0] if arguments else "site")
    pages = len(list(site.rglob("*.html")))
    if not pages:
        print(f"'{site}' has no pages; build it first: mkdocs build --strict")
        return 1
    found = problems(site)
    print("\n".join(found) or f"{pages} pages, and all that they load is in '{site}'")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
