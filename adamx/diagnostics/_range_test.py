"""Which learning rate, from a single run: the rate rises at every step.

    r_t = low (high / low)^(t / (T - 1))     t = 0 ... T - 1, one batch each

Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section
3.3, the range test. There the rate rises linearly and bounds are read off the
accuracy's plot; here it rises exponentially, as is usual since, and the rule reads the
loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adamx import _checks
from adamx._types import GradientTransformation, PyTree
from adamx.diagnostics import _curves, _sweep_plot, _sweep_run
from adamx.diagnostics._sweep import weight_of


@dataclasses.dataclass(frozen=True, repr=False)
class LrRangeTest:
    """What `lr_range_test` returns; everything is on the host. `print` shows the table.

    Attributes:
      learning_rates: (steps,), ascending.
      losses: (steps,), of each batch before its step.
      smoothed: (steps,), float64; NaN from the first loss that is not finite on.
      diverged: (steps,) bool, True from where the run diverged on.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged: np.ndarray

    @property
    def suggestion(self) -> float:
        """The rate to train with; the rule is stated in `lr_range_test`."""
        slope = np.gradient(self._before, np.log(self._rates_before))
        first = self._first
        return float(self._rates_before[first + int(np.argmin(slope[first:]))])

    @property
    def band(self) -> tuple[float, float]:
        """From where a tenth of the fall is done up to the lowest loss."""
        rates = self._rates_before
        return float(rates[self._first]), float(rates[-1])

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before the suggestion is taken."""
        if self._lowest is None:
            return ("the loss did not fall: raise high, lower low, or add steps",)
        if not self.diverged.any():
            return ("the run did not diverge: with a higher end it would see more",)
        return ()

    @property
    def _lowest(self) -> int | None:
        """The step of the lowest smoothed loss; None where it is the first."""
        if not np.isfinite(self.smoothed[:2]).all():
            return None
        return int(np.nanargmin(self.smoothed)) or None

    @property
    def _before(self) -> np.ndarray:
        if self._lowest is None:
            raise ValueError(
                "the loss must fall at some rate between `low` and `high`, got "
                f"{self.losses[0]:.4g} at the start as the lowest of all, with rates "
                f"from {self.learning_rates[0]:.3g} to {self.learning_rates[-1]:.3g}. "
                "Lower both where it diverged at once, raise `high` where nothing "
                "moved, or add steps."
            )
        return self.smoothed[: self._lowest + 1]

    @property
    def _first(self) -> int:
        """From here on a tenth of the fall is done for good: before it, noise falls."""
        smoothed = self._before
        is_high = smoothed > smoothed[0] - 0.1 * (smoothed[0] - smoothed[-1])
        return int(np.flatnonzero(is_high)[-1]) + 1

    @property
    def _rates_before(self) -> np.ndarray:
        return self.learning_rates[: len(self._before)]

    def table(self) -> str:
        """The losses at some twenty of the rates, as text."""
        return _sweep_plot.range_table(self)

    def plot(self, *, ax: Any = None) -> Any:
        """Draws the loss against the rate, smoothed and not, and the suggestion.

        Args:
          ax: the matplotlib axes to draw on; None: new axes in a new figure.

        Returns:
          The axes.

        Raises:
          ImportError: matplotlib is missing; the extra `adamx[plots]` brings it.
        """
        return _sweep_plot.plot_range(self, ax)

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__


def lr_range_test(
    loss_fn: Callable[[PyTree, Any], jax.Array],
    params: PyTree,
    batches: PyTree,
    make_tx: Callable[[Any], GradientTransformation],
    low: float = 1e-6,
    high: float = 1e-1,
    *,
    smoothing: float | None = None,
    progress: bool = False,
) -> LrRangeTest:
    """One run with the rate rising from `low` to `high`: says where it learns.

        found = adamx.lr_range_test(loss_fn, params, batches, adamx.adamw)
        tx = adamx.adamw(found.suggestion);  found.plot()

    A run of some hundred steps, in one compiled program. It costs a thirtieth of an
    `lr_sweep` of 30 rates and says less: each rate is seen for one step, behind the
    steps of all that are lower. Take it where the model fits once only.

    Smoothed: the mean of the losses up to t, weighted by b^(t - i). Suggestion: the
    rate at which the smoothed loss falls steepest against the logarithm of the rate,
    inside the band: from where a tenth of the fall is done, for good, to the lowest
    point. (Of the rules compared on three models with four
    optimizers it came nearest to the best rate; a tenth of the rate of the lowest loss
    is often too low for SGD.) Diverged: from the first loss that is not finite, or the
    first step behind the lowest point that is half the fall above it.

    Args:
      loss_fn: `(params, batch) -> scalar`; see `lr_sweep`.
      params: where the run starts; left as they are.
      batches: tree whose leaves have a leading axis of steps; 100 to 500 of them.
      make_tx: `learning_rate -> transformation`, called with a traced scalar; see
        `lr_sweep`. It is made anew at every step, with the state of the one before, so
        the rate must not live in the state: pass the bare factory in the place of
        `optax.inject_hyperparams` or `with_hyperparams`.
      low: > 0, the rate of the first step.
      high: > low, that of the last.
      smoothing: b in [0, 1). None: a memory of a twentieth of the steps.
      progress: whether to draw a bar; see `lr_sweep`.

    Returns:
      An `LrRangeTest`: `.learning_rates`, `.losses`, `.smoothed`, `.diverged` (all of
      shape (steps,)), `.suggestion`, `.band`, `.plot()`, `.table()`.

    Raises:
      TypeError: an argument is of the wrong kind; `make_tx` takes no traced rate.
      ValueError: an argument out of range; batches of unequal numbers of steps; a
        transformation that keeps its rate. Where the loss never fell, `.suggestion`
        raises.

    >>> import adamx, jax.numpy as jnp
    >>> loss = lambda params, batch: jnp.sum((params - batch) ** 2)
    >>> found = lr_range_test(loss, jnp.zeros(3), jnp.ones((90, 3)), adamx.sgd)
    >>> found.losses.shape, bool(1e-2 < found.suggestion < 1)
    ((90,), True)

    Source: Smith (2017), section 3.3; see the module's docstring.
    """
    search = _sweep_run.checked(loss_fn, params, batches, make_tx)
    ends = [_rate(name, value) for name, value in (("low", low), ("high", high))]
    if not ends[0] < ends[1]:
        raise ValueError(
            f"`high` must be greater than `low`, got {high!r} and {low!r}; pass e.g. "
            "low=1e-6, high=1e-1."
        )
    weight = weight_of(smoothing, search.steps)
    _checks.check_flag("progress", progress)
    _sweep_run.check_rate_matters(search, at_init=False)
    rates = np.geomspace(ends[0], ends[1], search.steps).astype(search.dtype)
    search = search._replace(
        params=jax.device_put(search.params), batches=jax.device_put(search.batches)
    )
    both = _sweep_run.programs(
        search,
        lambda rates, params: _sweep_run.initial(search, rates[0], params),
        lambda carry, rates, number, batch: _sweep_run.step(
            search, carry, rates[number], batch
        ),
        (),
        is_watched=progress,
    )
    with _sweep_run.bar(progress, search.steps) as on_steps:
        losses = _sweep_run.run(both, search, rates, on_steps)
    smoothed = _curves.smooth(losses, weight)
    return LrRangeTest(rates, losses, smoothed, _curves.from_divergence(smoothed))


def _rate(name: str, value: Any) -> float:
    expected = "a positive, finite number"
    number = None if callable(value) else _checks.host_value(name, value, expected)
    if number is None or not (np.isfinite(number) and number > 0):
        raise ValueError(
            f"`{name}` must be {expected} known on the host, got "
            f"{_checks.describe_value(value)}; pass e.g. low=1e-6, high=1e-1."
        )
    return number
