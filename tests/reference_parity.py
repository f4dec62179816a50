"""The conventions of docs/parity.md in NumPy, float64, as their owners write them.

Each formula is a function of one step: `rule(t, g, p, lr, s)`, the step's number from
1, gradient, parameter, rate, and a dict that it keeps; it returns the new parameter.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

B1, B2, EPS, WD = 0.8, 0.95, 0.1, 0.3
Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Registers a formula under the id of its row."""

    def add(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return add


def _mean(s: dict[str, Any], name: str, b: float, x: Any, start: float = 0.0) -> Any:
    s[name] = b * s.get(name, start) + (1 - b) * x
    return s[name]


def _adam(t: int, g: Any, s: dict[str, Any]) -> tuple[Any, Any, Any]:
    """m_hat, v, 1 - b2^t."""
    m, v = _mean(s, "m", B1, g), _mean(s, "v", B2, g**2)
    return m / (1 - B1**t), v, 1 - B2**t


@rule("eps-beside-corrected")
def _(t, g, p, lr, s):
    m, v, c = _adam(t, g, s)
    return p - lr * m / (np.sqrt(v / c) + EPS)


@rule("eps-hat")
def _(t, g, p, lr, s):
    m, v, c = _adam(t, g, s)
    return p - lr * np.sqrt(c) * m / (np.sqrt(v) + EPS)


@rule("eps-root")
def _(t, g, p, lr, s):
    m, v, c = _adam(t, g, s)
    return p - lr * m / np.sqrt(v / c + EPS)


@rule("decay-times-rate")
def _(t, g, p, lr, s):
    p = p * (1 - lr * WD)
    return RULES["eps-beside-corrected"](t, g, p, lr, s)


@rule("decay-apart")
def _(t, g, p, lr, s):
    return RULES["eps-beside-corrected"](t, g, p, lr, s) - WD * p


@rule("decay-in-gradient")
def _(t, g, p, lr, s):
    return RULES["eps-beside-corrected"](t, g + WD * p, p, lr, s)


@rule("decay-in-gradient-sgd")
def _(t, g, p, lr, s):
    return RULES["heavy-ball"](t, g + WD * p, p, lr, s)


@rule("max-paper")
def _(t, g, p, lr, s):
    m, v = _mean(s, "m", B1, g), _mean(s, "v", B2, g**2)
    s["max"] = np.maximum(s.get("max", 0.0), v)
    return p - lr * m / np.sqrt(s["max"])


@rule("max-of-corrected")
def _(t, g, p, lr, s):
    m, v, c = _adam(t, g, s)
    s["max"] = np.maximum(s.get("max", 0.0), v / c)
    return p - lr * m / (np.sqrt(s["max"]) + EPS)


@rule("max-then-corrected")
def _(t, g, p, lr, s):
    m, v, c = _adam(t, g, s)
    s["max"] = np.maximum(s.get("max", 0.0), v)
    return p - lr * m / (np.sqrt(s["max"]) / np.sqrt(c) + EPS)


@rule("max-keras")
def _(t, g, p, lr, s):
    m, v, c = _adam(t, g, s)
    s["max"] = np.maximum(s.get("max", 0.0), v)
    return p - lr * np.sqrt(c) * m / (np.sqrt(s["max"]) + EPS)


@rule("nadam-constant")
def _(t, g, p, lr, s):
    m, v = _mean(s, "m", B1, g), _mean(s, "v", B2, g**2)
    top = B1 * m / (1 - B1 ** (t + 1)) + (1 - B1) * g / (1 - B1**t)
    return p - lr * top / (np.sqrt(v / (1 - B2**t)) + EPS)


def _warming(t, g, p, lr, s, psi, averages_with_mu=False):
    now, after = (B1 * (1 - 0.5 * 0.96 ** (k * psi)) for k in (t, t + 1))
    s["product"] = s.get("product", 1.0) * now
    m = _mean(s, "m", now if averages_with_mu else B1, g)
    v = _mean(s, "v", B2, g**2) / (1 - B2**t)
    top = after * m / (1 - s["product"] * after) + (1 - now) * g / (1 - s["product"])
    return p - lr * top / (np.sqrt(v) + EPS)


@rule("nadam-torch")
def _(t, g, p, lr, s):
    return _warming(t, g, p, lr, s, 4e-3)


@rule("nadam-keras")
def _(t, g, p, lr, s):
    return _warming(t, g, p, lr, s, 1.0)


@rule("nadam-paper")
def _(t, g, p, lr, s):
    return _warming(t, g, p, lr, s, 4e-3, averages_with_mu=True)


def _radam(t, g, p, lr, s, adapts, divide):
    m, v, c = _adam(t, g, s)
    limit = 2 / (1 - B2) - 1
    rho = limit - 2 * t * B2**t / c
    if not adapts(rho):
        return p - lr * m
    r = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    return p - lr * np.sqrt(r) * divide(m, v, c)


@rule("radam-paper")
def _(t, g, p, lr, s):
    return _radam(t, g, p, lr, s, lambda x: x > 4, lambda m, v, c: m / np.sqrt(v / c))


@rule("radam-optax")
def _(t, g, p, lr, s):
    divide = lambda m, v, c: m / (np.sqrt(v / c) + EPS)  # noqa: E731
    return _radam(t, g, p, lr, s, lambda x: x >= 5, divide)


@rule("radam-torch")
def _(t, g, p, lr, s):
    divide = lambda m, v, c: np.sqrt(c) * m / (np.sqrt(v) + EPS)  # noqa: E731
    return _radam(t, g, p, lr, s, lambda x: x > 5, divide)


@rule("rms-outside")
def _(t, g, p, lr, s):
    return p - lr * g / (np.sqrt(_mean(s, "v", B2, g**2)) + EPS)


@rule("rms-inside")
def _(t, g, p, lr, s):
    return p - lr * g / np.sqrt(_mean(s, "v", B2, g**2) + EPS)


@rule("rms-from-one")
def _(t, g, p, lr, s):
    return p - lr * g / np.sqrt(_mean(s, "v", B2, g**2, start=1.0) + EPS)


@rule("rms-corrected")
def _(t, g, p, lr, s):
    v = _mean(s, "v", B2, g**2) / (1 - B2**t)
    return p - lr * g / (np.sqrt(v) + EPS)


@rule("rms-centred-outside")
def _(t, g, p, lr, s):
    variance = _mean(s, "v", B2, g**2) - _mean(s, "m", B2, g) ** 2
    return p - lr * g / (np.sqrt(variance) + EPS)


@rule("rms-centred-inside")
def _(t, g, p, lr, s):
    variance = _mean(s, "v", B2, g**2) - _mean(s, "m", B2, g) ** 2
    return p - lr * g / np.sqrt(variance + EPS)


@rule("rms-momentum-of-steps")
def _(t, g, p, lr, s):
    step = lr * g / np.sqrt(_mean(s, "v", B2, g**2) + EPS)
    s["sum"] = 0.9 * s.get("sum", 0.0) + step
    return p - s["sum"]


@rule("rms-momentum-then-rate")
def _(t, g, p, lr, s):
    u = g / (np.sqrt(_mean(s, "v", B2, g**2)) + EPS)
    s["sum"] = 0.9 * s.get("sum", 0.0) + u
    return p - lr * s["sum"]


@rule("heavy-ball")
def _(t, g, p, lr, s):
    s["sum"] = 0.9 * s.get("sum", 0.0) + g
    return p - lr * s["sum"]


@rule("heavy-ball-of-steps")
def _(t, g, p, lr, s):
    s["sum"] = 0.9 * s.get("sum", 0.0) - lr * g
    return p + s["sum"]


@rule("nesterov")
def _(t, g, p, lr, s):
    s["sum"] = 0.9 * s.get("sum", 0.0) + g
    return p - lr * (g + 0.9 * s["sum"])


@rule("nesterov-of-steps")
def _(t, g, p, lr, s):
    s["sum"] = 0.9 * s.get("sum", 0.0) - lr * g
    return p + 0.9 * s["sum"] - lr * g


@rule("dampening")
def _(t, g, p, lr, s):
    s["sum"] = g if t == 1 else 0.9 * s["sum"] + 0.5 * g
    return p - lr * s["sum"]


@rule("adamax-paper")
def _(t, g, p, lr, s):
    s["u"] = np.maximum(B2 * s.get("u", 0.0), np.abs(g))
    return p - lr * _mean(s, "m", B1, g) / (1 - B1**t) / s["u"]


@rule("adamax-in-maximum")
def _(t, g, p, lr, s):
    s["u"] = np.maximum(B2 * s.get("u", 0.0), np.abs(g) + EPS)
    return p - lr * _mean(s, "m", B1, g) / (1 - B1**t) / s["u"]


@rule("adamax-outside")
def _(t, g, p, lr, s):
    s["u"] = np.maximum(B2 * s.get("u", 0.0), np.abs(g))
    return p - lr * _mean(s, "m", B1, g) / ((1 - B1**t) * (s["u"] + EPS))
