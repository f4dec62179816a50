"""READINGS -> HISTORY: a run on the host, kept in a file as it goes."""

import bisect
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from adamx.diagnostics import _lines, _record
from adamx.diagnostics._clock import Clock
from adamx.diagnostics._lines import BrokenLine
from adamx.diagnostics._record import Measurement, Record, Row
from adamx.diagnostics._relate import Relations, relate


class History(Sequence[Record]):
    """Readings of a run and the metrics passed with them, one `Record` each.

        history = adamx.History("run.jsonl")
        for step in range(steps):
            params, state, loss = train_step(params, state, batch)
            history.append(adamx.read(state), loss=loss)
        adamx.report(history, "run.html")

    A sequence of records: `len`, iteration, indices and slices (which give lists).

    File: JSON Lines, one line for each append, written at once: a run that is killed
    loses at most the line it was writing (the operating system may still lose lines
    that it has not brought to the disk, if it stops itself). NaN and infinities are
    the strings "NaN", "Infinity", "-Infinity", all else is plain JSON. Diagnostics are
    written when they were measured anew, not with every reading; some 10 bytes a
    number. An existing file is continued. Where several processes train one model, let
    one write: `History(path if jax.process_index() == 0 else None)`.

    Steps go up. A reading of an earlier step than the last (the run was restored from
    an older checkpoint) takes the place of the records from that step on: they leave
    the history, with a warning, and stay in the file. A reading of the same step as the
    last stands beside it (micro-steps). Two optimizers that count for themselves want a
    history each.

    Args:
      path: the file; None: in memory only. Its folder must exist.

    Attributes:
      path: as given, a `pathlib.Path` or None.
      broken: lines of the file that could not be read, as `BrokenLine`s; the rest is
        loaded, and a warning names them.

    Raises:
      FileNotFoundError, IsADirectoryError: there can be no such file.
      ValueError: the file is something else than a history.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.adamw(1e-3)
    >>> params = {"w": jnp.ones(4)}
    >>> state, history = tx.init(params), History()
    >>> for loss in (3.0, 2.0):
    ...     _, state = tx.update(params, state, params)
    ...     history.append(adamx.read(state), loss=loss)
    >>> history.steps, history.column("loss")
    (array([1, 2]), array([3., 2.]))
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.path: pathlib.Path | None = None
        self.broken: tuple[BrokenLine, ...] = ()
        self._rows: list[Row] = []
        self._steps: list[int] = []
        self._is_counted = False
        self._last: Measurement | None = None  # the one stored last
        self._clock: Clock | None = None  # of the last record that has one
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        if path is not None:
            self.path = _lines.checked_path(path)
            if self.path.exists():
                self._read(self.path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "History":
        """The history in a file; what is appended to it later stays in memory.

        Args:
          path: a file that a `History` wrote. Lines that cannot be read are left out,
            named in a warning and in `broken`.

        Returns:
          A `History` without a path.

        Raises:
          FileNotFoundError, IsADirectoryError: there is no such file.
          ValueError: the file is something else than a history.
        """
        checked = _lines.checked_path(path)
        if not checked.exists():
            raise FileNotFoundError(
                f"`path` must be a file that a History wrote, got '{checked}', which "
                f"does not exist (in {pathlib.Path.cwd()}); History(path) starts one."
            )
        history = cls()
        history._read(checked)
        return history

    def append(
        self,
        reading: Any,
        *,
        loss: Any = None,
        val_loss: Any = None,
        step: Any = None,
        **metrics: Any,
    ) -> None:
        """Adds a record, and writes its line where the history has a file.

        One record an append: a second one of a step stands beside the first, for what
        is known later (a validation loss). Diagnostics that are there are not kept
        again. A step below the last one replaces what was recorded from it on.

        Waits for the numbers (they are on the device): append every k-th step where
        steps are short.

        Args:
          reading: of one run, `adamx.read(state)`. A batched one (vmap) is refused.
          loss: of training, a scalar; None: not known at this step.
          val_loss: of validation, likewise.
          step: the training step; None: the optimizer's count and what it skipped.
          **metrics: more scalars by name; one named as a number of the reading
            (`grad_norm`) is what `column` gives by that name.

        Raises:
          TypeError, ValueError: no Reading, a metric that is no scalar, or a number
            that a file cannot say, by name; nothing is added.
        """
        passed = {"loss": loss, "val_loss": val_loss, **metrics}
        row = self._without_repeat(_record.row(reading, passed, step))
        if self.path is not None:
            _lines.append(self.path, _lines.to_line(row))
        self._add(row)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            pairs = zip(self._rows[index], self._steps[index], strict=True)
            return [row.record(step) for row, step in pairs]
        return self._rows[index].record(self._steps[index])

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        where = "" if self.path is None else f" in '{self.path}'"
        span = f", steps {self._steps[0]} to {self._steps[-1]}" if self._rows else ""
        return f"<History of {len(self)} records{span}{where}>"

    @property
    def steps(self) -> np.ndarray:
        """The step of each record, (len,) int64."""
        return np.array(self._steps, np.int64)

    @property
    def columns(self) -> tuple[str, ...]:
        """What `column` knows: metrics, then the numbers of the readings."""
        names: dict[str, None] = {}
        for kind in ("metrics", "fields"):
            for row in self._rows:
                names.update(dict.fromkeys(_record.flat(getattr(row, kind))))
        return tuple(names)

    def column(self, name: str) -> np.ndarray:
        """A metric, or a number of the readings as `Reading.scalars()` names it.

        Args:
          name: "loss", "learning_rate", "learning_rate/embedding", ...

        Returns:
          One float64 for each record, beside `steps`; NaN where it was not recorded.

        Raises:
          ValueError: no record has it.
        """
        values = [_record.number(row, name) for row in self._rows]
        if all(value is None for value in values):
            raise ValueError(
                f"`name` must be one of {_record.known(self.columns)}, got {name!r}; "
                "numbers of a layer are series(layer, number)."
            )
        return np.array([np.nan if v is None else v for v in values], np.float64)

    def is_recorded(self, name: str) -> np.ndarray:
        """Which records have `name`, (len,) bool: tells a loss of NaN from none."""
        return np.array(
            [_record.number(row, name) is not None for row in self._rows], bool
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The measured layers, in the order in which they appeared."""
        return self._names("layers")

    @property
    def measured_steps(self) -> np.ndarray:
        """The steps at which the layers were measured, (n,) int64.

        Of training, as `steps` are, whatever `adamx.diagnose` itself counts: around
        `accumulate` that is micro-steps, and it knows nothing of what a guard around it
        skips. Where the two differ, and records are rarer than steps, a measurement
        stands evenly between the records that it was made between, at most at the one
        that first has it. Several of one step (micro-steps) stand side by side.
        """
        return np.array([one.at for one in self._measured()], np.int64)

    @property
    def numbers(self) -> tuple[str, ...]:
        """What is measured of a layer: "r/p50", "grad_norm", ..."""
        return self._names("numbers")

    def series(self, layer: str, number: str) -> tuple[np.ndarray, np.ndarray]:
        """One number of one layer over time.

        Args:
          layer: one of `layers`.
          number: one of `numbers`.

        Returns:
          The steps at which it was measured, (n,) int64, and its values, (n,) float64.

        Raises:
          ValueError: no such layer or number.
        """
        if layer not in self.layers:
            raise ValueError(
                f"`layer` must be one of {_record.known(self.layers)}, got {layer!r}; "
                "layers are there once a reading has diagnostics (adamx.diagnose)."
            )
        steps, values = self.matrix(number, layers=(layer,))
        has = [layer in measured.layers for measured in self._measured()]
        return steps[has], values[0, has]

    def matrix(
        self, number: str, *, layers: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One number of several layers over time, as a heat map has it.

        Args:
          number: one of `numbers`.
          layers: their rows; None: all of `layers`.

        Returns:
          The steps of all measurements, (n,) int64, and the values, (layers, n)
          float64; NaN where a layer was not measured.

        Raises:
          ValueError: no such number.
        """
        if number not in self.numbers:
            raise ValueError(
                f"`number` must be one of {_record.known(self.numbers)}, got "
                f"{number!r}; they are there once a reading has diagnostics "
                "(adamx.diagnose)."
            )
        names = self.layers if layers is None else tuple(layers)
        measured = self._measured()
        values = np.full((len(names), len(measured)), np.nan)
        for k, one in enumerate(measured):
            if number in one.numbers:
                column = one.values[:, one.numbers.index(number)]
                if one.layers == names:
                    values[:, k] = column
                else:
                    found = dict(zip(one.layers, column, strict=True))
                    values[:, k] = [found.get(name, np.nan) for name in names]
        return self.measured_steps, values

    def relate(
        self,
        metric: str = "val_loss",
        *,
        numbers: Sequence[str] | None = None,
        ahead: int = 1,
        min_pairs: int = 10,
    ) -> Relations:
        """Which layers move with the later change of a metric; see `Relations`.

        Args:
          metric: a column, recorded now and then.
          numbers: of each layer; None: the percentiles of r.
          ahead: how many records of the metric later its change is taken, from 1.
          min_pairs: below so many pairs nothing is said, from 5.

        Returns:
          `Relations`, the strongest first; `print` shows the table.

        Raises:
          ValueError: an argument out of its range; no layer was measured.
        """
        return relate(self, metric, numbers=numbers, ahead=ahead, min_pairs=min_pairs)

    # --------------------------------------------------------------------- inside

    def _measured(self) -> list[Measurement]:
        return [row.measured for row in self._rows if row.measured is not None]

    def _names(self, kind: str) -> tuple[str, ...]:
        # Nearly always one tuple, shared by all measurements: compared by identity.
        kinds = {id(getattr(m, kind)): getattr(m, kind) for m in self._measured()}
        return tuple(dict.fromkeys(name for names in kinds.values() for name in names))

    def _without_repeat(self, row: Row) -> Row:
        """Without a measurement that is there already, and will be still."""
        last, keep = self._last, self._kept(row.step)
        if keep < len(self):
            kept = (one.measured for one in reversed(self._rows[:keep]))
            last = next((one for one in kept if one is not None), None)
        if row.measured is None or not row.measured.repeats(last):
            return row
        return dataclasses.replace(row, measured=None)

    def _kept(self, step: int | None) -> int:
        """How many records stay where one of that step is added."""
        if step is None or not self._steps or step >= self._steps[-1]:
            return len(self)
        return bisect.bisect_left(self._steps, step)

    def _add(self, row: Row, stacklevel: int = 3) -> None:
        row = self._without_repeat(row)
        self._is_counted = self._is_counted or row.step is not None
        uncounted = self._steps[-1] if self._is_counted and self._steps else len(self)
        step = uncounted if row.step is None else row.step
        keep = self._kept(row.step)
        if keep < len(self):
            last, gone = self._steps[-1], len(self) - keep
            del self._rows[keep:], self._steps[keep:]
            measured = self._measured()
            self._last = measured[-1] if measured else None
            clocks = zip((r.counted for r in self._rows), self._steps, strict=True)
            known = [Clock(seen, at) for seen, at in clocks if seen is not None]
            self._clock = known[-1] if known else None
            warnings.warn(
                f"the run went back from step {last} to {step}: {gone} "
                "records left the history. Behind a restored checkpoint that is right; "
                "a new run, or a second optimizer, wants a History of its own.",
                stacklevel=stacklevel,
            )
        if row.measured is not None:
            before, is_counted = max(self._steps[-1:], default=0), self._is_counted
            shared = {
                kind: self._shared.setdefault(names, names)
                for kind in ("layers", "numbers")
                for names in [getattr(row.measured, kind)]
            }
            one = Measurement(
                row.measured.count,
                shared["layers"],
                shared["numbers"],
                row.measured.values,
                row.measured.unseen,
                row.measured_step(step, self._clock, before) if is_counted else None,
            )
            row = dataclasses.replace(row, measured=one)
            self._last = one
        if row.counted is not None:
            self._clock = Clock(row.counted, step)
        self._rows.append(row)
        self._steps.append(step)

    def _read(self, path: pathlib.Path) -> None:
        broken = []
        text = b""
        for number, text, row in _lines.read(path):
            if isinstance(row, str):
                start = text[:60].decode(errors="replace")
                broken.append(BrokenLine(number, row, start))
            else:
                self._add(row, stacklevel=4)
        self.broken = tuple(broken)
        # One line cut short is a run that was killed at its first append.
        is_cut_short = len(broken) == 1 and text.startswith(b"{")
        if broken and not self._rows and not is_cut_short:
            raise ValueError(
                f"`path` must be a file that a History wrote, got '{path}': line "
                f"{broken[0].number} is no record ({broken[0].reason}), nor is any "
                "other. Pass another path."
            )
        if broken:
            named = "; ".join(f"line {b.number}: {b.reason}" for b in broken[:5])
            rest = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
            warnings.warn(
                f"'{path}' has {len(broken)} broken line(s), left out ({named}{rest}); "
                f"{len(self._rows)} records were loaded.",
                stacklevel=3,
            )
