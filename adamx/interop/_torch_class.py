"""Of which class in `torch.optim` the groups of a state_dict are.

A state_dict does not name its class: the arguments that only one class has tell it. An
optimizer from elsewhere may have the same form (moments called exp_avg and exp_avg_sq,
betas, eps) and other arithmetic: arguments that no class of `torch.optim` has make it
one, and such a state_dict is read only as what the caller says that it is.

Source: the code of `torch.optim`, versions 1.10 to 2.13, of its schedulers, which add
arguments of their own, of bitsandbytes, version 0.50, and of lion-pytorch, version
0.2.5.
"""

import math
from collections.abc import Mapping
from typing import Any

from adamx import _checks, _tree

CLASSES = (
    "Adam",
    "AdamW",
    "SGD",
    "RMSprop",
    "NAdam",
    "RAdam",
    "Adamax",
    "SparseAdam",
    "Lion",
)
# Of bitsandbytes: what they are in 32 bits. Its Adam decays as AdamW does.
EIGHT_BIT = {
    name: "AdamW"
    for bits in ("", "8bit", "32bit")
    for name in (f"Adam{bits}", f"AdamW{bits}", f"PagedAdam{bits}", f"PagedAdamW{bits}")
}
# Of all classes; of the schedulers; a user's.
_KNOWN = {"params", "param_names", "lr", "weight_decay", "maximize"}
_KNOWN |= {"foreach", "capturable", "differentiable", "fused"}
_KNOWN |= {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}
_KNOWN |= {"swa_lr", "name"}
_OF_SGD = {"momentum", "dampening", "nesterov"}
_OF_RMSPROP = {"momentum", "alpha", "eps", "centered"}
# Of timm's optimizers: what changes the arithmetic where it is on.
_VARIANTS = ("caution", "corrected_weight_decay")
_OF_LION = {"betas", *_VARIANTS}
_OF_ADAMS = {"betas", "eps", "amsgrad", "momentum_decay", "decoupled_weight_decay"}


def class_of(
    group: Mapping[str, Any], states: list[Mapping[str, Any]], optimizer: str | None
) -> str:
    """The class in `torch.optim` that a group of a state_dict is of.

    Args:
      group: of `param_groups`.
      states: of its parameters.
      optimizer: what the caller says; needed where the state_dict does not tell.
    """
    names = {key for state in states for key in state}
    changed = [key for key in _VARIANTS if group.get(key)]
    if changed:
        raise ValueError(
            f"`state_dict` must be of an optimizer without '{changed[0]}', got a group "
            "with it on, whose steps are others; set it to False in PyTorch before "
            "you save, or start from tx.init(params): adamx.cautious(tx) is cautious."
        )
    is_bits = optimizer in EIGHT_BIT and optimizer not in CLASSES
    if "state1" in names or (is_bits and not names):
        return _bitsandbytes(optimizer, names)
    foreign = _foreign(group)
    found = _found(group, names, bool(foreign))
    if optimizer is not None and optimizer not in CLASSES:
        raise ValueError(
            f"`optimizer` must be one of {', '.join(CLASSES)}, got {optimizer!r}; it "
            "is the name of the class in torch.optim or lion_pytorch."
        )
    if optimizer is not None and found and optimizer not in found:
        raise ValueError(
            f"`optimizer` must be what the state_dict is of, {' or '.join(found)}, got "
            f"{optimizer!r}; leave it out to have it read from the state_dict."
        )
    if not found:
        raise ValueError(
            f"`state_dict` must be of {', '.join(CLASSES)}, got a group with "
            f"{', '.join(map(str, group))}; other classes of torch.optim have no "
            "counterpart here: start from tx.init(params)."
        )
    if optimizer is not None:
        return optimizer
    if foreign:
        raise ValueError(
            f"`optimizer` must be given: the groups have {_tree.some(foreign)}, which "
            "no class of torch.optim has; an optimizer from elsewhere may keep the "
            "same moments and step otherwise. If its steps are those of "
            f"{' or '.join(found)}, pass e.g. optimizer={found[0]!r}; else start from "
            "tx.init(params)."
        )
    if len(found) > 1 and not _is_alike(group, found):
        raise ValueError(
            f"`optimizer` must be given: the state_dict may be of {' or '.join(found)},"
            f" which decay or divide differently. Pass e.g. optimizer={found[-1]!r}."
        )
    return found[0]


def classes_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a group may be of by its arguments; none: not known."""
    return _found(group, set(), bool(_foreign(group)))


def _bitsandbytes(optimizer: str | None, names: set[str]) -> str:
    if optimizer not in EIGHT_BIT or (names and "state2" not in names):
        raise ValueError(
            "`optimizer` must be given for a state_dict of bitsandbytes (it has "
            "'state1'), which does not say what it is of, and be one of "
            f"{', '.join(sorted(EIGHT_BIT))}, got {optimizer!r}. Others of its "
            "optimizers (Lion, LAMB, AdEMAMix, one moment) are not read: start from "
            "tx.init(params)."
        )
    return EIGHT_BIT[optimizer]


def _foreign(group: Mapping[str, Any]) -> list[str]:
    """Arguments that no class of this form has."""
    own = _OF_RMSPROP if "centered" in group else _OF_ADAMS
    own = _OF_SGD if "dampening" in group else own
    own = _OF_LION if "betas" in group and "eps" not in group else own
    return sorted(str(key) for key in group if key not in _KNOWN | own)


def _found(
    group: Mapping[str, Any], names: set[str], is_foreign: bool
) -> tuple[str, ...]:
    """The classes that it may be of, by the arguments that only they have."""
    if "lr" not in group:
        return ()
    if "dampening" in group:
        return ("SGD",)
    if "alpha" in group and "centered" in group:
        return ("RMSprop",)
    if "betas" not in group or len(group["betas"]) != 2:
        return ()
    if "eps" not in group:
        return ("Lion",) if names <= {"exp_avg", "step"} else ()
    if "momentum_decay" in group:
        return ("NAdam",)
    if "amsgrad" in group:
        if "decoupled_weight_decay" in group:
            return ("AdamW",) if group["decoupled_weight_decay"] else ("Adam",)
        return ("Adam", "AdamW")
    if "exp_inf" in names:
        return ("Adamax",)
    if "weight_decay" not in group:
        return ("Adam", "SparseAdam") if is_foreign else ("SparseAdam",)
    if "decoupled_weight_decay" in group:
        return ("RAdam",)
    # RAdam before it had that; or an Adam from elsewhere.
    others = () if "foreach" in group and not is_foreign else ("AdamW", "Adam")
    return (*others, "RAdam") if "exp_avg_sq" in names else (*others, "RAdam", "Adamax")


def _is_alike(group: Mapping[str, Any], found: tuple[str, ...]) -> bool:
    """Whether it does not matter which of them it is."""
    decay = number("weight_decay", group.get("weight_decay", 0.0))
    return found == ("Adam", "AdamW") and decay == 0


def number(name: str, value: Any) -> float:
    """A float of a number or of a tensor with one element."""
    if hasattr(value, "item") and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"`state_dict` must have a number for '{name}', got "
            f"{_checks.describe_value(value)}; is it the state_dict() of an optimizer "
            "of torch.optim?"
        )
    return float(value)
