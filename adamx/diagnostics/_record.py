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
    fields: dict[str, Any] = {}
    for name in FIELDS:
        value = getattr(reading, name)
        if isinstance(value, Mapping):
            value = {
                key: _by_group(f"{name}/{key}", inner) for key, inner in value.items()
            }
        elif value is not None:
            value = _recorded(name, value)
        if value is not None:
            fields[name] = value
    checked = {name: _metric(name, value) for name, value in metrics.items()}
    present = {name: value for name, value in checked.items() if value is not None}
    measured = _measurement(reading.diagnostics)
    unseen = reading.unseen
    unseen = None if unseen is None else int(_recorded("unseen", unseen))
    seen = None if reading.diagnostics is None else reading.diagnostics.seen
    seen = None if seen is None else int(_recorded("diagnostics.seen", seen))
    return Row(fields, present, measured, _step(step), unseen, seen)


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
    """What stands in a dict by group, or in `more`: a number or a dict of them."""
    if isinstance(value, Mapping):
        return {key: _by_group(f"{name}/{key}", inner) for key, inner in value.items()}
    return value if value is None else _recorded(name, value)


def _measurement(diagnostics: Any) -> Measurement | None:
    if diagnostics is None:
        return None
    count = _recorded("diagnostics.count", diagnostics.count)
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
                is_plain = type(value) in (int, float)
                values[i, j] = (
                    value if is_plain else _recorded(f"{name}/{layer}", value)
                )
    unseen = diagnostics.unseen
    unseen = 0 if unseen is None else int(_recorded("diagnostics.unseen", unseen))
    layers = tuple(diagnostics.layers)
    return Measurement(int(count), layers, tuple(names), values, unseen)


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
