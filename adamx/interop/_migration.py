"""What became of each array of a state that was migrated: a table."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from adamx import _tree
from adamx._printed import Printed
from adamx._types import PyTree

KEPT, CONVERTED, INITIALISED, DROPPED = ACTIONS = (
    "kept",
    "converted",
    "initialised",
    "dropped",
)

_RULES = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


@dataclasses.dataclass(frozen=True)
class Fate:
    """What became of one array.

    Attributes:
      name: as `to_flat` has it; of a dropped array the saved name, else the new one.
      action: "kept" (its bits), "converted" (in another form, or derived from others),
        "initialised" (as init makes it) or "dropped".
      note: how, or why.
      is_record: whether it is only what the last step did, and the next writes it anew.
    """

    name: str
    action: str
    note: str = ""
    is_record: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Migration(Printed):
    """What `migrate` returns; `print` shows it as a table, `rich.print` in colour.

    Attributes:
      state: of the new transformation.
      fates: one `Fate` for each array of the new state, in its order; then of those
        that were dropped.
    """

    state: PyTree
    fates: tuple[Fate, ...]

    def _named(self, action: str) -> tuple[str, ...]:
        return tuple(fate.name for fate in self.fates if fate.action == action)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the arrays that have their bits."""
        return self._named(KEPT)

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of those in another form, or derived from others."""
        return self._named(CONVERTED)

    @property
    def initialised(self) -> tuple[str, ...]:
        """Names of those that are as init made them."""
        return self._named(INITIALISED)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Saved names that the new state has no place for."""
        return self._named(DROPPED)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        table = Table(
            box=_RULES, show_edge=False, pad_edge=False, collapse_padding=True
        )
        table.add_column("", no_wrap=True)
        table.add_column("what", overflow="fold")
        table.add_column("arrays", justify="right", no_wrap=True)
        table.add_column("note", overflow="fold")
        for action in ACTIONS:
            shown = action
            for (what, note), names in self._gathered(action).items():
                note = note or (_of(names) if action in (INITIALISED, DROPPED) else "")
                table.add_row(*map(Text, (shown, what, str(len(names)), note)))
                shown = ""
        yield table
        counts = ", ".join(f"{len(self._named(a))} {a}" for a in ACTIONS)
        yield Text(f"arrays: {counts}")

    def _gathered(self, action: str) -> dict[tuple[str, str], list[str]]:
        """Names by what they are, kind/field, and by note."""
        result: dict[tuple[str, str], list[str]] = {}
        for fate in self.fates:
            if fate.action == action:
                what = "/".join(fate.name.split("@")[0].split("/")[:2])
                result.setdefault((what, fate.note), []).append(fate.name)
        return result


def _of(names: list[str]) -> str:
    """The parameters' paths among names."""
    paths = [name.split("/", 2)[2] for name in names if name.count("/") > 1]
    return _tree.some(paths) if paths else ""
