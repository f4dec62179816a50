"""Every public optimizer: how to make it, its reference, its twin in Optax.

The contract tests run over this table; a new optimizer is one more row.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import optax

import adamx
from tests import reference

LR = 1e-2


@dataclasses.dataclass(frozen=True)
class Row:
    """One optimizer with one set of hyperparameters.

    Attributes:
      name: the public name in adamx.
      label: tells rows of one name apart.
      kwargs: what both adamx and the twin are given, besides the learning rate.
      reference: function of `tests.reference`.
      reference_kwargs: what the reference is given instead, where names differ.
      twin: the name in Optax; None: no twin.
      ours: arguments that Optax does not have.
      parity: how far the twin may be from us, in units of the learning rate.
      bar: |u - u64| <= bar * lr * max(1, |u64| / lr).
      is_sum: whether the update is a sum of gradients, in their units: it may cancel,
        so that its error is measured against the same sum of |g|.
    """

    name: str
    label: str = "defaults"
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    reference: Callable[..., Any] = reference.adam
    reference_kwargs: dict[str, Any] | None = None
    twin: str | None = None
    ours: dict[str, Any] = dataclasses.field(default_factory=dict)
    parity: float = 2e-5
    bar: float = 5e-7
    is_sum: bool = False

    @property
    def id(self) -> str:
        """Name and label, for pytest."""
        return f"{self.name}-{self.label}"

    @property
    def arguments(self) -> Any:
        """The parameters of our factory's signature, by name."""
        return inspect.signature(getattr(adamx, self.name)).parameters

    def make(self, learning_rate: Any = LR, **more: Any) -> Any:
        """Our transformation."""
        factory = getattr(adamx, self.name)
        return factory(learning_rate, **{**self.kwargs, **self.ours, **more})

    def make_twin(self, learning_rate: Any = LR) -> Any:
        """Optax's transformation."""
        assert self.twin is not None
        return getattr(optax, self.twin)(learning_rate, **self.kwargs)

    def expected(self, gradients: Any, params: Any, learning_rate: float = LR) -> Any:
        """The reference's updates, step by step."""
        kwargs = {**self.kwargs, **self.ours}
        if self.reference_kwargs is not None:
            kwargs = self.reference_kwargs
        return self.reference(gradients, params, learning_rate, **kwargs)


OFF = {"b1": 0.83, "b2": 0.97, "eps": 1e-3}

ROWS = [
    Row("sgd", reference=reference.sgd, twin="sgd"),
    Row(
        "sgd",
        "nesterov",
        {"momentum": 0.8, "nesterov": True},
        reference=reference.momentum,
        twin="sgd",
        is_sum=True,
    ),
    Row("momentum", reference=reference.momentum, is_sum=True),
    Row(
        "momentum",
        "nesterov",
        {"momentum": 0.99, "nesterov": True},
        reference=reference.momentum,
        twin="sgd",
        is_sum=True,
    ),
    Row("rmsprop", reference=reference.rmsprop, twin="rmsprop"),
    Row(
        "rmsprop",
        "outside",
        {"decay": 0.99, "eps": 1e-3, "eps_in_sqrt": False, "bias_correction": True},
        reference=reference.rmsprop,
        twin="rmsprop",
    ),
    Row(
        "rmsprop",
        "centered",
        {"decay": 0.8, "eps": 1e-2, "initial_scale": 0.5, "centered": True}
        | {"momentum": 0.7, "nesterov": True},
        reference=reference.rmsprop,
        twin="rmsprop",
        bar=2e-6,  # the variance cancels: nu - mu^2
    ),
    Row("adam", twin="adam"),
    Row("adam", "off", {**OFF, "eps_root": 1e-4}, twin="adam"),
    Row("adam", "no-memory", {"b1": 0.0, "b2": 0.5}, twin="adam"),
    Row(
        "adam_l2",
        "off",
        {**OFF, "weight_decay": 0.3},
        reference_kwargs={**OFF, "weight_decay": 0.3, "coupled": True},
        bar=1e-5,  # g + weight_decay p is rounded, then divided by its own size
    ),
    Row("adam_l2"),
    Row("adamw", reference_kwargs={"weight_decay": 1e-4}, twin="adamw"),
    Row("adamw", "off", {**OFF, "weight_decay": 0.3}, twin="adamw"),
    Row("nadam", reference_kwargs={"nesterov": True}, twin="nadam"),
    Row("nadam", "off", OFF, reference_kwargs={**OFF, "nesterov": True}, twin="nadam"),
    Row(
        "nadamw",
        "off",
        {**OFF, "weight_decay": 0.3},
        reference_kwargs={**OFF, "weight_decay": 0.3, "nesterov": True},
        twin="nadamw",
    ),
    Row("amsgrad", reference=reference.amsgrad, twin="amsgrad"),
    Row(
        "amsgrad",
        "paper",
        {**OFF, "bias_correction_mu": False, "bias_correction_nu": False},
        reference=reference.amsgrad,
    ),
    Row(
        "amsgrad",
        "pytorch",
        OFF,
        reference=reference.amsgrad,
        ours={"maximum_of": "nu"},
    ),
    Row("adamax", reference=reference.adamax, twin="adamax"),
    Row("adamax", "off", OFF, reference=reference.adamax, twin="adamax"),
]

# One row for each name, the last: what does not depend on hyperparameters is tested on
# these. (So `sgd` is tested with momentum; without, in the tests over all rows.)
NAMES = list({row.name: row for row in ROWS}.values())
