"""READING -> RECORD: one reading with its metrics, as Python numbers."""

import dataclasses
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks
from adamx.diagnostics._clock import Clock, beginning, step_of
from adamx.reading import Diagnostics, Reading, to_host

# The numbers of a Reading, which a record keeps as they are; diagnostics, and what the
# count has not seen, are kept beside them.
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Reading)
    if field.name not in ("diagnostics", "unseen")
)
# Steps are int64.
MOST_STEPS = 2**63 - 1
# How deep objects stand in a field; by group in the others.
_DEPTHS = {"count": 0, "more": 2}


@dataclasses.dataclass(frozen=True)
class Record:
    """One entry of a `History`.

    Attributes:
      step: what was passed; else `reading.count`, and its `unseen` steps where a guard
        hides some; without a count, that of the record before; where nothing counts,
        the record's place, from 0.
      reading: Python numbers only. Its diagnostics are None unless they were measured
        since the record before; a number that a layer lacks reads NaN.
      metrics: what was passed beside the reading, by name: `loss`, `val_loss`, ...
    """

    step: int
    reading: Reading
    metrics: Mapping[str, float]

    def scalars(self) -> dict[str, float]:
        """`reading.scalars()` and the metrics, which win where the names agree."""
        return {**self.reading.scalars(), **self.metrics}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Diagnostics as one array: `values[i, j]` is `numbers[j]` of `layers[i]`.

    `step`: of training, once the measurement is in a history whose records have steps.
    """

    count: int
    layers: tuple[str, ...]
    numbers: tuple[str, ...]
    values: np.ndarray
    unseen: int = 0
    step: int | None = None

    @property
    def at(self) -> int:
        """The step; where nothing else counts, what `diagnose` knows of it."""
        return self.count + self.unseen if self.step is None else self.step

    def repeats(self, last: "Measurement | None") -> bool:
        """Whether it is `last`, read again: an optimizer made anew counts alike."""
        if last is None or self.count != last.count:
            return False
        if (self.layers, self.numbers) == (last.layers, last.numbers):
            return np.array_equal(self.values, last.values, equal_nan=True)
        if {*self.layers} != {*last.layers} or {*self.numbers} != {*last.numbers}:
            return False
        rows = [last.layers.index(layer) for layer in self.layers]
        columns = [last.numbers.index(name) for name in self.numbers]
        values = last.values[np.ix_(rows, columns)]
        return np.array_equal(self.values, values, equal_nan=True)

    def unpacked(self, seen: int | None) -> Diagnostics:
        """As a `Reading` has it."""
        pairs = zip(self.layers, self.values.tolist(), strict=True)
        layers = {
            layer: dict(zip(self.numbers, row, strict=True)) for layer, row in pairs
        }
        return Diagnostics(self.count, layers, self.unseen or None, seen)


@dataclasses.dataclass(frozen=True)
class Row:
    """A record as a History holds it: 8 bytes a diagnostic number."""

    fields: Mapping[str, Any]
    metrics: Mapping[str, float]
    measured: Measurement | None = None
    passed_step: int | None = None
    unseen: int | None = None
    seen: int | None = None

    @property
    def counted(self) -> int | None:
        """What `diagnose` had counted; None: not known, and nothing new to place.

        Lines of earlier versions do not say it: there it is the count of the reading.
        """
        if self.seen is not None or self.measured is None:
            return self.seen
        return max(self.measured.count, self.fields.get("count", 0))

    @property
    def step(self) -> int | None:
        """See `Record`; None: neither passed nor counted."""
        return self.taken if self.passed_step is None else self.passed_step

    @property
    def taken(self) -> int | None:
        """The steps of training that the optimizer counted or skipped."""
        if "count" not in self.fields:
            return None
        if self.unseen is not None:
            return self.fields["count"] + self.unseen
        # A line of an earlier version: of what was skipped, it had seen nothing.
        skipped = self.fields.get("skipped", 0)
        among = skipped.values() if isinstance(skipped, Mapping) else [skipped]
        whole = [k for k in among if isinstance(k, int)]
        return self.fields["count"] + max(whole, default=0)

    def measured_step(self, step: int, last: Clock | None, before: int) -> int:
        """When it was measured: at this record of that step, or since the last.

        `before`: the step of the record before, which may have no clock.
        """
        assert self.measured is not None
        assert self.counted is not None
        now = Clock(self.counted, step)
        if last is None:
            count = self.fields.get("count", 0)
            own = now.seen + self.measured.unseen
            taken = own if self.taken is None or own == step else self.taken
            is_sure = self.seen is not None or self.measured.count > before
            known = 0 if step == taken and is_sure else before
            last = beginning(now, count, taken, known)
        # In lines of earlier versions only a measurement has a clock.
        known = 0 if self.seen is None else before
        return step_of(self.measured.count, now, last, known)

    def record(self, step: int) -> Record:
        """As a user sees it."""
        found = self.measured
        measured = None if found is None else found.unpacked(self.seen)
        reading = Reading(**self.fields, diagnostics=measured, unseen=self.unseen)
        return Record(step, reading, dict(self.metrics))


def row(reading: Any, metrics: Mapping[str, Any], step: Any) -> Row:
    """The checked row of a reading."""
    if not isinstance(reading, Reading):
        raise TypeError(
            f"`reading` must be an adamx.Reading, got {_checks.describe_value(reading)}"
            "; pass adamx.read(state), with the optimizer's state of that step."
        )
    fields: dict[str, Any] = {"more": {}}
    for name in FIELDS:
        value = _by_group(name, getattr(reading, name))
        if value is not None:
            fields[name] = _whole(value) if name == "count" else value
    checked = {name: _metric(name, value) for name, value in metrics.items()}
    present = {name: value for name, value in checked.items() if value is not None}
    diagnostics = reading.diagnostics
    seen = None if diagnostics is None else diagnostics.seen
    seen = _whole(_by_group("diagnostics.seen", seen))
    unseen = _whole(_by_group("unseen", reading.unseen))
    try:
        measured = _measurement(diagnostics)
        return check(Row(fields, present, measured, _step(step), unseen, seen))
    except _UnwritableError as error:
        raise ValueError(
            f"`reading` must hold what a file of a History can say: {error}. A state's "
            "readings() answers with numbers, or dicts of them by group."
        ) from None


class _UnwritableError(ValueError):
    """What no line of a file can say."""


def check(row: Row) -> Row:
    """The row, if a line of a file can say it; ValueError names what it cannot."""
    for name, values in (*row.fields.items(), ("metrics", row.metrics)):
        check_number(name, values, _DEPTHS.get(name, 1))
    for name, values in (("metrics", row.metrics), ("more", row.fields.get("more"))):
        if values is not None and not isinstance(values, Mapping):
            raise _UnwritableError(f"'{name}' must be an object, got {values!r}")
    skipped = row.fields.get("skipped", 0)
    for value in skipped.values() if isinstance(skipped, Mapping) else [skipped]:
        if value < 0:
            raise _UnwritableError(f"'skipped' must be 0 or more, got {_shown(value)}")
    one = row.measured
    for name, value in (
        ("count", row.fields.get("count")),
        ("step", row.passed_step),
        ("unseen", row.unseen),
        ("seen", row.seen),
        ("diagnostics/count", one and one.count),
        ("diagnostics/unseen", one and one.unseen),
    ):
        if value is not None:
            check_steps(name, value)
    for value in (row.step, one and one.at):
        if value is not None:
            check_steps("count with what was skipped", value)
    return row


def check_number(name: str, value: Any, depth: int = 0) -> None:
    """A number; at `depth` 1 an object of numbers too, at 2 one of such objects."""
    if isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            check_number(f"{name}/{key}", inner, depth - 1)
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _UnwritableError(f"'{name}' must be a number, got {value!r}")
    try:
        float(value)
    except OverflowError:
        raise _UnwritableError(
            f"'{name}' must be within the range of a float"
        ) from None


def check_steps(name: str, value: Any) -> None:
    """A number of steps, as an int64 holds it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _UnwritableError(f"'{name}' must be a whole number, got {value!r}")
    if not 0 <= value <= MOST_STEPS:
        raise _UnwritableError(
            f"'{name}' must be from 0 to {MOST_STEPS}, got {_shown(value)}"
        )


def _shown(value: int | float) -> str:
    is_long = isinstance(value, int) and abs(value) >= 10**30
    return "a number of more than 30 digits" if is_long else repr(value)


def _step(given: Any) -> int | None:
    value = _metric("step", given)
    if value is None:
        return None
    if not (isinstance(value, int) and 0 <= value <= MOST_STEPS):
        raise ValueError(
            f"`step` must be a whole number from 0 to 2**63 - 1, got {given!r}; pass "
            "the number of the training step, or leave it out for the optimizer's own "
            "count."
        )
    return value


def _by_group(name: str, value: Any) -> Any:
    """A number or a dict of them, without what is None."""
    if isinstance(value, Mapping):
        found = {key: _by_group(f"{name}/{key}", x) for key, x in value.items()}
        return {key: inner for key, inner in found.items() if inner is not None}
    return value if value is None else _recorded(name, value)


def _whole(value: Any) -> Any:
    """2 for 2.0: a count that was selected among floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _measurement(diagnostics: Any) -> Measurement | None:
    if diagnostics is None:
        return None
    count = _whole(_recorded("diagnostics.count", diagnostics.count))
    if count == 0:
        return None
    names: dict[str, None] = {}
    for found in diagnostics.layers.values():
        names.update(dict.fromkeys(found))
    values = np.full((len(diagnostics.layers), len(names)), np.nan)
    for i, (layer, found) in enumerate(diagnostics.layers.items()):
        for j, name in enumerate(names):
            if name in found:
                value = found[name]
                if type(value) is not float:
                    value = _recorded(f"{name}/{layer}", value)
                    check_number(f"{name}/{layer}", value)
                values[i, j] = value
    unseen = _whole(_by_group("diagnostics.unseen", diagnostics.unseen)) or 0
    return Measurement(count, tuple(diagnostics.layers), tuple(names), values, unseen)


def _recorded(name: str, value: Any) -> int | float:
    """A number of a Reading, on the host."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`reading` must hold numbers, got a traced `{name}`: it was read inside "
            "jit. Return the state (or the reading) from the compiled function and "
            "append outside."
        )
    value = to_host(value)
    if isinstance(value, np.ndarray):
        raise ValueError(
            f"`reading` must be of one run, got `{name}` of shape {value.shape}: the "
            "state is batched (vmap). Keep one History for each run: append "
            "jax.tree.map(lambda x: x[i], reading) to the history of run i."
        )
    if not isinstance(value, numbers.Real):
        raise TypeError(
            f"`reading` must hold numbers, got `{name}` {_checks.describe_value(value)}"
            "; a state's readings() answers with numbers, or dicts of them by group."
        )
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _metric(name: str, given: Any) -> int | float | None:
    """A metric on the host; None: left out."""
    value: Any = given
    remedy = "pass a Python number or a 0-d array, e.g. float(loss)"
    if value is None:
        return None
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`{name}` must be a scalar on the host, got a traced value: return it "
            "from the compiled function and append outside."
        )
    is_array = isinstance(value, (jax.Array, np.ndarray, np.generic))
    if is_array and np.ndim(value):
        raise ValueError(
            f"`{name}` must be a scalar, got an array of shape {np.shape(value)}; "
            "pass its mean, or one metric for each of its numbers."
        )
    if is_array:
        is_real = jnp.issubdtype(value.dtype, jnp.floating)
        is_real = is_real or jnp.issubdtype(value.dtype, jnp.integer)
        if not (is_real or value.dtype == np.bool_):
            raise TypeError(
                f"`{name}` must be a real scalar, got dtype {value.dtype}; {remedy}."
            )
        value = to_host(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a scalar, got {_checks.describe_value(value)}; {remedy}."
        )
    is_whole = isinstance(value, numbers.Integral)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"`{name}` must be a scalar within the range of a float, got an integer of "
            f"{int(given).bit_length()} bits; {remedy}."
        ) from None
    return int(given) if is_whole else number


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names as `Reading.scalars()` has them; `more` is not a name."""
    found: dict[str, Any] = {}
    for name, value in {**values, **values.get("more", {})}.items():
        if name == "more" and isinstance(value, Mapping):
            continue
        if isinstance(value, Mapping):
            found |= {
                f"{name}/{group}" if group else name: v for group, v in value.items()
            }
        else:
            found[name] = value
    return found


def number(row: Row, name: str) -> Any:
    """A metric or a number of the reading; None where it is not there."""
    if name in row.metrics:
        return row.metrics[name]
    return flat(row.fields).get(name)


def known(names: Iterable[str]) -> str:
    """The first of them, for an error."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > 12 else ""
    return ", ".join(map(repr, names[:12])) + more if names else "(none yet)"
