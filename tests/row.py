"""What a test must know of an optimizer: how to make it, its reference, its twin."""

import dataclasses
import functools
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
      conditioning: where the update jumps (a sign) or may be amplified without bound:
        function of the gradients, the parameters `p`, their `trajectory` (or None) and
        the reference's arguments that yields, for each step, by how much a rounding of
        the gradients is amplified in the update over the learning rate. Where that
        exceeds the precision, the update is undecided and not compared; there may be 1
        in 1,000 of them.
      extra: extra arguments that `update` needs, by name.
      needs_params: whether `update` needs `params`; always where there is a decay.
      is_rate_last: whether a learning rate of 0 makes the very next update 0.
      reduces: what one update depends on beyond its own element: "nothing", "leaf" (a
        NaN spreads over its leaf) or "tree".
      temporaries: trees of temporary memory that a donated step needs, and why.
      holds_params: whether the state starts as a copy of the parameters' values.
      is_complex: whether complex parameters are accepted, or refused with an error.
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
    conditioning: Callable[..., Any] | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs_params: bool = False
    is_rate_last: bool = True
    reduces: str = "nothing"
    temporaries: float = 0.0
    holds_params: bool = False
    is_complex: bool = True

    @property
    def id(self) -> str:
        """Name and label, for pytest."""
        return f"{self.name}-{self.label}"

    @property
    def arguments(self) -> Any:
        """The parameters of our factory's signature, by name."""
        return inspect.signature(getattr(adamx, self.name)).parameters

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What our factory is given besides the learning rate."""
        return {**self.kwargs, **self.ours}

    @property
    def reference_arguments(self) -> dict[str, Any]:
        """What the reference is given besides the learning rate."""
        if self.reference_kwargs is not None:
            return self.reference_kwargs
        return self.hyperparameters

    @property
    def factory(self) -> Callable[..., Any]:
        """Our factory; its transformations are given `extra` at every update."""
        made = getattr(adamx, self.name)
        if not self.extra:
            return made

        @functools.wraps(made)
        def factory(*args: Any, **kwargs: Any) -> Any:
            return with_extra(made(*args, **kwargs), self.extra)

        return factory

    def make(self, learning_rate: Any = LR, **more: Any) -> Any:
        """Our transformation."""
        return self.factory(learning_rate, **{**self.hyperparameters, **more})

    def make_twin(self, learning_rate: Any = LR) -> Any:
        """Optax's transformation, of `optax` or `optax.contrib`."""
        assert self.twin is not None
        home = optax if hasattr(optax, self.twin) else optax.contrib
        return getattr(home, self.twin)(learning_rate, **self.kwargs)

    def expected(
        self, gradients: Any, params: Any, trajectory: Any = None, rate: float = LR
    ) -> Any:
        """The reference's updates, step by step.

        A reference with an argument `trajectory` reads the parameters of each step from
        there, where it is given: the float32 run's own, so that what is compared is the
        arithmetic of one step and not the rounding of all parameters before it.
        """
        kwargs = self.reference_arguments
        if "trajectory" in inspect.signature(self.reference).parameters:
            kwargs = {**kwargs, "trajectory": trajectory}
        return self.reference(gradients, params, rate, **kwargs)


def with_extra(tx: Any, extra: dict[str, Any]) -> Any:
    """The transformation whose update is always given these extra arguments."""

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> Any:
        return tx.update(updates, state, params, **{**extra, **more})

    return optax.GradientTransformationExtraArgs(tx.init, update)


OFF = {"b1": 0.83, "b2": 0.97, "eps": 1e-3}
