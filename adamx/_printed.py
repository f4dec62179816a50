"""Tables of rich as text: what `print` and a notebook show of them."""

import io
import math
import shutil
from typing import Any

from rich.console import Console


def as_text(renderable: Any, width: int | None = None) -> str:
    """What rich shows, without colours; `width` None: as wide as the terminal."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    # What a user named is text: [x] is no style, and :x: no picture.
    plain: Any = {"color_system": None, "markup": False, "emoji": False}
    console = Console(file=io.StringIO(), width=width, **plain)
    with console.capture() as captured:
        console.print(renderable, crop=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


class Printed:
    """Something that rich can show, and that prints itself as text."""

    def text(self, width: int | None = None) -> str:
        """The table, `width` columns wide; None: as wide as the terminal, or 100."""
        return as_text(self, width)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def size_text(count: float) -> str:
    """12 B, 3.5 KiB, 474.7 MiB."""
    if count < 1024:
        return f"{count:g} B"
    power = min(int(math.log(count, 1024)), 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"
