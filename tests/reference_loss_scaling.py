"""The policy of dynamic loss scaling, as a loop over a list of good and bad steps."""

from collections.abc import Iterable, Iterator


def scales(
    is_good: Iterable[bool],
    *,
    initial_scale: float,
    growth_interval: int,
    growth_factor: float,
    backoff_factor: float,
    min_scale: float,
    max_scale: float,
) -> Iterator[tuple[float, int, int]]:
    """Scale for the next loss, good steps in a row and skipped steps, after each."""
    scale, streak, skipped = initial_scale, 0, 0
    for good in is_good:
        if not good:
            skipped += 1
            streak = 0
            scale *= backoff_factor
            if scale < min_scale:
                scale = min_scale
        else:
            streak += 1
            if streak == growth_interval:
                streak = 0
                scale *= growth_factor
                if scale > max_scale:
                    scale = max_scale
        yield scale, streak, skipped
