"""Histories of runs in a folder, to be judged again without training."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import adamx


class Shelf(NamedTuple):
    """Where histories of runs are: in memory alone, written to a folder, or read there.

    Attributes:
      folder: with a JSON Lines file for each history; None: in memory alone.
      is_read: nothing is trained; the files are there.
    """

    folder: Path | None = None
    is_read: bool = False

    def path(self, *names: Any) -> Path | None:
        """The file of a history: "layer_fast-300-recurrent-ill.jsonl"."""
        if self.folder is None:
            return None
        plain = [f"{n:g}" if isinstance(n, float) else str(n) for n in names]
        name = "-".join(plain).replace(", ", "_").replace(" ", "_")
        return self.folder / f"{name}.jsonl"

    def new(self, *names: Any, after: adamx.History | None = None) -> adamx.History:
        """An empty history, or one that goes on with what is in another."""
        path = self.path(*names)
        if path is None:
            return after or adamx.History()
        path.unlink(missing_ok=True)
        if after is not None:
            assert after.path is not None
            shutil.copy(after.path, path)
        return adamx.History(path)

    def load(self, *names: Any) -> adamx.History:
        """What `new` of these names wrote."""
        path = self.path(*names)
        assert path is not None
        return adamx.History.load(path)
