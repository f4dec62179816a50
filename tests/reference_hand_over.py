"""Float64 NumPy transliterations of the hand-over, of carried moments, of a plateau."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.reference import Gradients, _square, _wide


def _at(value: Any, step: int) -> float:
    """A number, or that of a step from 0."""
    return value if np.ndim(value) == 0 else value[step]


def adam_to_sgd(
    gradients: Gradients,
    p: np.ndarray,
    lr: Any,
    switch_step: int,
    sgd_lr: Any = None,
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    independent_decay: bool = False,
    record: dict | None = None,
    trajectory: Gradients | None = None,
) -> Iterator[np.ndarray]:
    """AdamW for `switch_step` steps, then SGD with momentum from a zero trace.

    `lr` is a number or one for each step; `sgd_lr` likewise, from the switch on; None:
    (1 - momentum) lr |u| / |m_hat| of Adam's last step, and from there in proportion
    to `lr`.
    """
    p = _wide(p)
    m, v, trace = np.zeros_like(p), np.zeros(p.shape), np.zeros_like(p)
    record = {} if record is None else record
    record.update(rates=[], matched=0.0)
    direction, last_lr = np.zeros_like(p), 0.0
    for t, g in enumerate(map(_wide, gradients), start=1):
        p = p if trajectory is None else _wide(trajectory[t - 1])
        base = _at(lr, t - 1)
        if t <= switch_step:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * _square(g)
            m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
            direction = m_hat / (np.sqrt(v_hat + eps_root) + eps)
            step, rate, last_lr = direction, base, base
        else:
            trace = momentum * trace + g
            if sgd_lr is not None:
                rate = _at(sgd_lr, t - 1 - switch_step)
            else:
                length = np.sqrt(np.sum(_square(direction)))
                mean = np.sqrt(np.sum(_square(m / (1 - b1**switch_step))))
                record["matched"] = (1 - momentum) * last_lr * length / mean
                rate = record["matched"] * base / last_lr
            step = trace
        record["rates"].append(rate)
        update = -rate * step - (1.0 if independent_decay else base) * weight_decay * p
        p = p + update
        yield update


def carried_adam(
    gradients: Gradients, plan: Sequence[tuple[int, float, float, float]]
) -> Iterator[np.ndarray]:
    """Adam in stages of (steps, lr, b1, b2) whose means go on: eps is 1e-8, no decay.

    A stage begins with m and v such that their bias-corrected values, under its own
    b's and all steps so far, are those of the stage before.
    """
    g0 = _wide(gradients[0])
    m, v, t = np.zeros_like(g0), np.zeros(g0.shape), 0
    for stage, (steps, lr, b1, b2) in enumerate(plan):
        if stage:
            _, _, old1, old2 = plan[stage - 1]
            m = m / (1 - old1**t) * (1 - b1**t)
            v = v / (1 - old2**t) * (1 - b2**t)
        for _ in range(steps):
            g = _wide(gradients[t])
            t += 1
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * _square(g)
            yield -lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)


def plateaus(
    values: Sequence[float],
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
) -> Iterator[bool]:
    """Whether each value completes a plateau."""
    best, waited, resting, window = np.inf, 0, 0, []
    for value in values:
        window.append(value)
        if len(window) < accumulation_size:
            yield False
            continue
        mean, window = float(np.mean(window)), []
        margin = 0.0 if np.isinf(best) else rtol * abs(best) + atol
        is_better = mean < best - margin
        best = mean if is_better else best
        if resting:
            resting, waited = resting - 1, 0
            yield False
            continue
        waited = 0 if is_better else waited + 1
        if waited == patience:
            waited, resting = 0, cooldown
            yield True
        else:
            yield False
