"""Ways to make a step, timed in turns, and in groups that fit into memory together."""

import dataclasses
import gc
import itertools
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from _machine import Seconds

CALLS = re.compile(r"@adamx_[0-9a-f]{24}\b|custom_call_target=\"adamx_")


class Build(NamedTuple):
    """What it took to make a compiled step.

    Attributes:
      trace, lower, compile: seconds; those of the C compiler are part of `trace`.
      temporary: bytes of temporaries over bytes of the gradients.
      calls: of adamx's compiled C in the program.
    """

    trace: Seconds
    lower: Seconds
    compile: Seconds
    temporary: float
    calls: int

    @property
    def wall(self) -> float:
        """Seconds by the clock, the C compiler's left out."""
        return sum(part.wall - part.children for part in self[:3])

    @property
    def children(self) -> float:
        """Processor seconds of the C compiler."""
        return sum(part.children for part in self[:3])


@dataclasses.dataclass
class Contestant:
    """One way to make a step: `step` begins it, `wait` waits for the result.

    Without `wait`, `step` does both.
    """

    name: str
    step: Callable[[], Any]
    wait: Callable[[], Any] | None = None
    build: Build | None = None
    times: list[float] = dataclasses.field(default_factory=list)
    dispatches: list[float] = dataclasses.field(default_factory=list)

    @property
    def temporary(self) -> float:
        """Bytes of temporaries / bytes of the gradients; NaN where nobody knows."""
        return float("nan") if self.build is None else self.build.temporary

    @property
    def build_s(self) -> float:
        """Seconds of tracing, lowering and compiling."""
        return float("nan") if self.build is None else self.build.wall


def make_donated(
    name: str, step: Callable[..., Any], carry: list[Any], *rest: Any
) -> Contestant:
    """`step(*carry, *rest) -> carry`, compiled, with all of `carry` donated."""
    donated = tuple(range(len(carry)))
    times = [Seconds.now()]
    traced = jax.jit(step, donate_argnums=donated).trace(*carry, *rest)
    times.append(Seconds.now())
    lowered = traced.lower()
    times.append(Seconds.now())
    compiled = lowered.compile()
    times.append(Seconds.now())

    def run() -> None:
        carry[:] = compiled(*carry, *rest)

    def wait() -> None:
        jax.block_until_ready(carry)

    size = sum(p.nbytes for p in jax.tree.leaves(rest)) or float("nan")
    analysis = compiled.memory_analysis()
    temporary = getattr(analysis, "temp_size_in_bytes", float("nan")) / size
    calls = len(CALLS.findall(lowered.as_text()))
    parts = [end.since(begin) for begin, end in itertools.pairwise(times)]
    return Contestant(name, run, wait, Build(*parts, temporary, calls))


def measure(contestants: list[Contestant], rounds: int, warm_up: int = 3) -> None:
    """Times all contestants in turn, round by round; the first rounds do not count.

    Each round has an order of its own: nobody always runs behind the same neighbour.
    """
    order, shuffle = list(contestants), random.Random(0).shuffle
    for turn in range(warm_up + rounds):
        shuffle(order)
        for contestant in order:
            start = time.perf_counter()
            contestant.step()
            begun = time.perf_counter()
            if contestant.wait is not None:
                contestant.wait()
            if turn >= warm_up:
                contestant.times.append(time.perf_counter() - start)
                contestant.dispatches.append(begun - start)


class Result(NamedTuple):
    """What was measured of a contestant.

    Attributes:
      times: quartiles of a step, seconds.
      dispatch: median until the call returns, seconds; None where it waits itself.
      ratios: by a reference's name, the median of the rounds' ratios to it.
      build: what it took to compile it.
    """

    name: str
    times: tuple[float, ...]
    dispatch: float | None
    ratios: dict[str, float]
    build: Build | None


def result(contestant: Contestant, references: list[Contestant]) -> Result:
    ratios = {
        other.name: statistics.median(
            a / b for a, b in zip(contestant.times, other.times, strict=True)
        )
        for other in references
    }
    dispatch = None
    if contestant.wait is not None:
        dispatch = statistics.median(contestant.dispatches)
    times = tuple(statistics.quantiles(contestant.times, n=4, method="inclusive"))
    return Result(contestant.name, times, dispatch, ratios, contestant.build)


class Entry(NamedTuple):
    """A contestant to be made; a reference takes part in every group."""

    make: Callable[[], Contestant]
    is_reference: bool = False


def compare(entries: Sequence[Entry], rounds: int, together: int) -> list[Result]:
    """All measured in turns, at most so many of them in memory beside the references.

    Where they do not fit all at once, each group has all references in it; theirs are
    the results of the first group.
    """
    references = [entry.make() for entry in entries if entry.is_reference]
    others = [entry for entry in entries if not entry.is_reference]
    results: list[Result] = []
    for first in range(0, max(len(others), 1), together):
        made = [entry.make() for entry in others[first : first + together]]
        for reference in references:
            reference.times.clear()
            reference.dispatches.clear()
        measure(references + made, rounds)
        for contestant in made if first else references + made:
            results.append(result(contestant, references))
        del made
        gc.collect()  # before the next are made
    return results
