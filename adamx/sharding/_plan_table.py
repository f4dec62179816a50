"""Plans, as tables: one of them line by line, or several side by side."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from adamx._printed import Printed, size_text
from adamx.sharding._collectives import Collective

_RULES = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Printed):
    """What `plan` returns; `print` shows it as a table. Bytes are those of one device.

    Attributes:
      name: as given.
      axes: the sizes of the mesh's axes.
      elements: how many numbers the parameters are, on all devices together.
      parameters, gradients, state: bytes; the state without what is in host memory.
      state_on_host: bytes of state in host memory (`adamx.offload`), for each device.
      temporaries: bytes of buffers of the update beside these, results that are not
        written over their arguments included.
      update_collectives: of the compiled update, by kind and size of groups.
      gradient_collectives: of the gradients' sum over the batch's axes, computed.
      batch_axes: over which the gradients are summed.
      undivided: paths of parameters whose state `zero1` could not divide.
      platform: for which the step was compiled.
    """

    name: str
    axes: dict[str, int]
    elements: int
    parameters: int
    gradients: int
    state: int
    state_on_host: int
    temporaries: int
    update_collectives: tuple[Collective, ...]
    gradient_collectives: tuple[Collective, ...]
    batch_axes: tuple[str, ...]
    undivided: tuple[str, ...]
    platform: str

    @property
    def total(self) -> int:
        """Bytes on one device: parameters, gradients, state and temporaries."""
        return self.parameters + self.gradients + self.state + self.temporaries

    @property
    def update_bytes(self) -> float:
        """That one device receives in a step's update."""
        return sum(c.bytes for c in self.update_collectives)

    @property
    def gradient_bytes(self) -> float:
        """That one device receives while the gradients are summed."""
        return sum(c.bytes for c in self.gradient_collectives)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        table = _empty(("per device", "bytes", ""))
        memory = (
            ("parameters", self.parameters, "exact"),
            ("gradients", self.gradients, "exact; lying as the parameters"),
            ("state", self.state, "exact"),
            ("temporaries", self.temporaries, f"of the update; {self._source}"),
        )
        for what, size, note in memory:
            table.add_row(what, size_text(size), Text(note))
        table.add_row("together", size_text(self.total), "")
        if self.state_on_host:
            table.add_row("state in host memory", size_text(self.state_on_host), "")
        over = "+".join(self.batch_axes) or "no axis"
        moved = (
            ("gradients moved", self.gradient_bytes, self.gradient_collectives),
            ("update moved", self.update_bytes, self.update_collectives),
        )
        notes = (f"computed: sum over {over}", self._source)
        for (what, count, collectives), note in zip(moved, notes, strict=True):
            kinds = _kinds(collectives)
            table.add_row(what, size_text(round(count)), Text(f"{note}{kinds}"))
        if self.name:
            yield Text(self.name)
        yield table
        yield from _footer((self,))

    @property
    def _source(self) -> str:
        is_estimate = self.platform == "cpu"
        return "estimate, XLA for CPU" if is_estimate else f"XLA for {self.platform}"


@dataclasses.dataclass(frozen=True, repr=False)
class PlanTable(Printed):
    """What `plans` returns; `print` shows it as a table.

    Attributes:
      plans: one `Plan` for each optimizer.
    """

    plans: tuple[Plan, ...]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        heads = ("per device", "state", "temporaries", "together")
        has_host = any(p.state_on_host for p in self.plans)
        extra = ("on host",) if has_host else ()
        table = _empty((*heads, *extra, "grad\nmoved", "update\nmoved"))
        for p in self.plans:
            sizes = [p.state, p.temporaries, p.total]
            sizes += [p.state_on_host] if has_host else []
            sizes += [round(p.gradient_bytes), round(p.update_bytes)]
            table.add_row(Text(p.name), *map(size_text, sizes))
        yield table
        first = self.plans[0]  # alike in all of them
        own, grads = map(size_text, (first.parameters, first.gradients))
        yield Text(f"together with parameters {own} and gradients {grads}")
        yield from _footer(self.plans)


def _empty(heads: Sequence[str]) -> Table:
    shown = Table(box=_RULES, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, head in enumerate(heads):
        is_number = i > 0 and bool(head)
        justify: Any = "right" if is_number else "left"
        shown.add_column(
            head,
            justify=justify,
            no_wrap=is_number,
            overflow="fold",
            min_width=None if i else 10,
        )
    return shown


def _kinds(collectives: Sequence[Collective]) -> str:
    if not collectives:
        return ": nothing"
    parts = [f"{c.count} {c.kind} of {c.devices}" for c in collectives[:4]]
    return ": " + ", ".join(parts) + (", ..." if len(collectives) > 4 else "")


def _footer(plans: Sequence[Plan]) -> Iterator[Text]:
    first = plans[0]
    axes = ", ".join(f"{name}={size}" for name, size in first.axes.items())
    yield Text(f"{first.elements:,} parameters on the mesh {axes}")
    undivided = {p.undivided for p in plans if p.undivided}
    for names in sorted(undivided):
        yield Text(f"zero1 cannot divide the state of: {', '.join(names)}")
    yield Text(
        "moved: bytes that one device receives in a step, on a ring; without forward "
        "and backward pass"
    )
