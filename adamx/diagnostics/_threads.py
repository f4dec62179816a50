"""Work on all cores of a CPU."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any


def cores() -> int:
    """How many of the machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The results for each item, found by as many threads as there are cores.

    What one thread calls, JAX runs on a CPU one after another, on however many cores
    each operation fills; what several call, side by side.
    """
    if len(items) < 2:
        return [function(item) for item in items]
    pool = concurrent.futures.ThreadPoolExecutor(min(len(items), cores()))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)
