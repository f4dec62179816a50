"""Which arguments of ours are the arithmetic of an optimizer of PyTorch.

What differs from the same name here, by class:

    Adam with weight_decay   adam_l2, the decay joins the gradient
    Adam(amsgrad)            maximum_of="nu": the maximum first, then the correction
    NAdam                    momentum_decay: b1 of the look-ahead warms up
    RAdam                    rho_t > 5, and eps beside the uncorrected root
    RMSprop                  eps outside the root; the rate behind the momentum
    SGD(dampening)           the gradient times 1 - dampening, except the first
    Lion                     no difference; torch.optim has none, lion-pytorch's is read

Source: the code of `torch.optim`, version 2.13, of bitsandbytes, version 0.50, and of
lion-pytorch, version 0.2.5. The Lion of bitsandbytes is not read: its decay joins the
gradient in 32 bits, so that it is another optimizer.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx import _checks, optimizers, transforms
from adamx._types import GradientTransformation, scalar_dtype
from adamx.interop._torch_class import number

# Which keep no count, or none that their arithmetic reads.
UNCOUNTED = ("SGD", "RMSprop", "Lion")


@dataclasses.dataclass(frozen=True)
class UncorrectedEps:
    """See `uncorrected_eps`; a schedule."""

    eps: float
    b2: float

    def __call__(self, step: Any) -> jax.Array:
        """The eps of the step that follows `step` others."""
        dtype = scalar_dtype()
        if self.b2 == 0.0:
            return jnp.asarray(self.eps, dtype)
        count = jnp.asarray(step).astype(dtype) + jnp.ones((), dtype)
        correction = -jnp.expm1(count * jnp.asarray(math.log(self.b2), dtype))
        return jnp.asarray(self.eps, dtype) / jnp.sqrt(correction)

    def __repr__(self) -> str:
        return f"adamx.interop.uncorrected_eps({self.eps!r}, {self.b2!r})"


def uncorrected_eps(eps: float, b2: float = 0.999) -> UncorrectedEps:
    """An eps that stands beside the root before the bias correction.

        sqrt(nu_hat) + eps_t = (sqrt(nu) + eps) / sqrt(1 - b2^t),
        eps_t = eps / sqrt(1 - b2^t)

    The eps-hat of Adam's paper (section 2, last paragraph), of Keras's Adam and AdamW,
    and of PyTorch's RAdam: to be passed as `eps`. It is 32 times eps in the first step
    (b2 = 0.999) and eps in the end.

    Args:
      eps: >= 0, in units of the gradient.
      b2: the b2 of the optimizer that it is for; a constant.

    Returns:
      A schedule, step -> eps.

    Raises:
      ValueError, TypeError: a value out of range, or one that is traced.

    >>> import adamx
    >>> tx = adamx.radam(1e-3, b2=0.99, eps=uncorrected_eps(1e-8, b2=0.99))
    >>> round(float(uncorrected_eps(1.0, b2=0.99)(0)), 5)
    10.0
    """
    _checks.check_epsilon("eps", eps)
    _checks.check_decay_rate("b2", b2)
    for name, value in (("eps", eps), ("b2", b2)):
        if not _checks.is_constant(value):
            raise TypeError(
                f"`{name}` must be a number that is known on the host, got "
                f"{_checks.describe_value(value)}; write the schedule yourself: "
                "lambda step: eps / jnp.sqrt(1 - b2 ** (step + 1))."
            )
    return UncorrectedEps(float(eps), float(b2))


@dataclasses.dataclass(frozen=True)
class Call:
    """A factory of ours and its arguments; `str` is the code for it."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        library = "optax" if self.name == "scale" else "adamx"
        first, *others = self.arguments
        parts = [repr(first[1]), *(f"{k}={v!r}" for k, v in others)]
        return f"{library}.{self.name}({', '.join(parts)})"

    def make(self) -> GradientTransformation:
        """The transformation."""
        for room in (optimizers, transforms, optax):
            if hasattr(room, self.name):
                return getattr(room, self.name)(**dict(self.arguments))
        raise AttributeError(self.name)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The stages that make an optimizer of PyTorch; one of them, or a chain.

    Attributes:
      kind: the class in `torch.optim`.
      calls: our factories, in the order of the chain.
      numbers: the hyperparameters as floats, by torch's names.
      rate: the learning rate: a number, or a schedule.
    """

    kind: str
    calls: tuple[Call, ...]
    numbers: Mapping[str, Any] = dataclasses.field(compare=False)
    rate: Any = dataclasses.field(compare=False)

    def __str__(self) -> str:
        if len(self.calls) == 1:
            return str(self.calls[0])
        return f"optax.chain({', '.join(map(str, self.calls))})"

    def make(self) -> GradientTransformation:
        """The transformation."""
        made = [call.make() for call in self.calls]
        return made[0] if len(made) == 1 else optax.chain(*made)


def _call(name: str, **arguments: Any) -> Call:
    return Call(name, tuple(arguments.items()))


_ARGUMENTS = {"betas": 2, "lr": 1, "eps": 1, "weight_decay": 1, "momentum": 1} | {
    "dampening": 1,
    "alpha": 1,
    "momentum_decay": 1,
}


def recipe_of(kind: str, group: Mapping[str, Any], learning_rate: Any = None) -> Recipe:
    """Our stages with the arithmetic of a group of a state_dict.

    Args:
      kind: see `_torch_class.class_of`.
      group: of `param_groups`.
      learning_rate: in the place of the group's; None: the group's.
    """
    numbers: dict[str, Any] = {"weight_decay": 0.0}
    for name, size in _ARGUMENTS.items():
        if name in group and group[name] is not None:
            value = group[name]
            numbers[name] = (
                number(name, value) if size == 1 else [number(name, x) for x in value]
            )
    for name in ("amsgrad", "centered", "nesterov", "maximize"):
        numbers[name] = bool(group.get(name, False))
    is_decoupled = kind in ("AdamW", "Lion") or bool(
        group.get("decoupled_weight_decay", False)
    )
    numbers["decoupled_weight_decay"] = is_decoupled
    rate = numbers["lr"] if learning_rate is None else learning_rate
    decay = numbers["weight_decay"]
    calls = [_call("scale", step_size=-1.0)] if numbers["maximize"] else []
    if decay and not is_decoupled:
        adam = kind == "Adam" and not numbers["amsgrad"]
        if not (adam and not calls):
            calls.append(_call("add_decoupled_weight_decay", weight_decay=decay))
            decay = 0.0
    own = _optimizer(kind, numbers, rate, decay, is_decoupled)
    return Recipe(kind, (*calls, *own), numbers, rate)


def _optimizer(
    kind: str, numbers: Mapping[str, Any], rate: Any, decay: float, is_decoupled: bool
) -> tuple[Call, ...]:
    """Our calls behind a coupled decay."""
    first = {"learning_rate": rate}
    if kind == "SGD":
        return _sgd(numbers, first)
    if kind == "RMSprop":
        return _rmsprop(numbers, first)
    b1, b2 = numbers["betas"]
    if kind == "Lion":
        return (_call("lion", **first, b1=b1, b2=b2, weight_decay=decay),)
    betas: dict[str, Any] = {"b1": b1, "b2": b2, "eps": numbers["eps"]}
    decays = {"weight_decay": decay}
    if kind == "NAdam":
        betas["momentum_decay"] = numbers["momentum_decay"]
        if is_decoupled:
            return (_call("nadamw", **first, **betas, **decays),)
        return (_call("nadam", **first, **betas),)
    if kind == "RAdam":
        betas["eps"] = uncorrected_eps(numbers["eps"], b2)
        betas["strict_threshold"] = True
        if not is_decoupled and numbers["weight_decay"]:
            return (
                _call("scale_by_radam", **betas),
                _call("scale_by_learning_rate", **first),
            )
        return (_call("radam", **first, **betas, **decays),)
    if kind == "Adamax":
        return (_call("adamax", **first, **betas),)
    if kind == "SparseAdam":
        return (_call("sparse_adam", **first, **betas),)
    if numbers["amsgrad"]:
        betas["maximum_of"] = "nu"
        if not is_decoupled:
            return (_call("amsgrad", **first, **betas),)
        head = betas.pop("b1")
        return (
            _call("scale_by_amsgrad", b1=head, **betas),
            _call("add_decoupled_weight_decay", **decays),
            _call("scale_by_learning_rate", **first),
        )
    if is_decoupled:
        return (_call("adamw", **first, **betas, **decays),)
    if decay:
        return (_call("adam_l2", **first, **betas, **decays),)
    return (_call("adam", **first, **betas),)


def _sgd(numbers: Mapping[str, Any], first: dict[str, Any]) -> tuple[Call, ...]:
    momentum = numbers["momentum"]
    if not momentum:
        return (_call("sgd", **first),)
    rest = {"momentum": momentum, "nesterov": numbers["nesterov"]}
    own = _call("sgd", **first, **rest)
    damping = numbers.get("dampening", 0.0)
    return (_call("scale", step_size=1.0 - damping), own) if damping else (own,)


def _rmsprop(numbers: Mapping[str, Any], first: dict[str, Any]) -> tuple[Call, ...]:
    rest = {"eps": numbers["eps"], "eps_in_sqrt": False}
    rest["centered"] = numbers["centered"]
    if not numbers["momentum"]:
        return (_call("rmsprop", **first, decay=numbers["alpha"], **rest),)
    return (
        _call("scale_by_rms", decay=numbers["alpha"], **rest),
        _call("scale_by_momentum", decay=numbers["momentum"]),
        _call("scale_by_learning_rate", **first),
    )
