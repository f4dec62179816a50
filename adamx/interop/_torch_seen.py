"""What the records of a state are in PyTorch's terms, parameter by parameter."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adamx import _tree, moments
from adamx._types import PyTree
from adamx.interop._convert import PARTS, split_field
from adamx.interop._names import Entry, as_array, entries
from adamx.interop._torch_class import classes_of
from adamx.interop._torch_read import MOMENTS
from adamx.interop._torch_rules import recipe_of

_DIRECTIONS = {
    "scale_by_adam": "Adam",
    "scale_by_amsgrad": "Adam",
    "scale_by_radam": "RAdam",
    "scale_by_adamax": "Adamax",
    "scale_by_sparse_adam": "SparseAdam",
    "scale_by_lion": "Lion",
    "scale_by_rms": "RMSprop",
    "scale_by_momentum": "SGD",
}
_RATES = ("scale_by_learning_rate", "scale_by_scheduled_learning_rate")
# Of states that change directions.
_STAGES = ("scale_by_", "schedule_free", "adam_to_", "cautious", "clip_by_update")
_DECAY = "add_decoupled_weight_decay"
_FLAGS: dict[str, Any] = {"maximize": False, "foreach": None, "differentiable": False}
_MORE: dict[str, dict[str, Any]] = {
    "Adam": {"capturable": False, "fused": None},
    "SGD": {"fused": None, "dampening": 0.0, "nesterov": False},
}

Scalars = dict[str, dict[str, Any]]


class Found(NamedTuple):
    """What the state has for one parameter, in torch's terms.

    Attributes:
      kind: the class in torch.optim.
      group: torch's hyperparameters.
      state: torch's tensors and numbers, with our axes; empty before the first step.
    """

    kind: str
    group: dict[str, Any]
    state: dict[str, Any]


def by_path(
    state: PyTree, paths: Sequence[str], likes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Found]:
    """By path, what torch would have for each parameter.

    Args:
      state: ours.
      paths: of the parameters.
      likes: by path, torch's group where there is one.
    """
    walked = entries(state)
    order = {
        (e.name.kind.split("#")[0], e.place): i
        for i, e in reversed([*enumerate(walked)])
    }
    owned: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    places: dict[str, tuple[str, ...]] = {}
    for entry in walked:
        kind = entry.name.kind.split("#")[0]
        if not entry.name.path or kind not in _DIRECTIONS:
            continue
        base, part = split_field(entry.name.field)
        path = entry.name.path
        is_second = entry.name.kind != kind
        if is_second or places.setdefault(path, entry.place) != entry.place:
            raise ValueError(
                f"`state` must have one optimizer for '{path}', got several; pass the "
                "state of one of them, e.g. of the stage at work."
            )
        parts = owned.setdefault(path, {}).setdefault(kind, {}).setdefault(base, {})
        parts[part] = entry.array
    _check_known(walked)
    left = [path for path in paths if path not in owned]
    if left:
        place = _of_plain_sgd(walked, set(places.values()), left)
        owned |= {path: {} for path in left}
        places |= dict.fromkeys(left, place)
    found = {}
    for path in paths:
        kinds = owned[path]
        arrays = {k: {b: _decoded(p) for b, p in m.items()} for k, m in kinds.items()}
        seen = _Seen(path, walked, places[path], order, likes.get(path, {}))
        found[path] = seen.found(arrays)
    return found


def _check_known(walked: list[Entry]) -> None:
    """Raises where a stage changes directions as no optimizer of PyTorch does."""
    for entry in walked:
        kind = entry.name.kind.split("#")[0]
        is_known = kind in _DIRECTIONS or kind in _RATES
        is_rows = entry.name.field.startswith("row_")
        if is_rows or (kind.startswith(_STAGES) and not is_known):
            what = "a count for each row" if is_rows else kind
            raise ValueError(
                f"`state` must be of an optimizer that PyTorch has, got {what}; it has "
                f"{', '.join(_DIRECTIONS)}. Start anew there."
            )


def _of_plain_sgd(
    walked: list[Entry], taken: set[tuple[str, ...]], left: list[str]
) -> tuple[str, ...]:
    """The one place that has a rate and no moments: SGD without momentum."""
    places = {e.place for e in walked if e.name.kind in _RATES} - taken
    if len(places) != 1:
        raise ValueError(
            "`state` must have moments of every parameter of an optimizer that PyTorch "
            f"has ({', '.join(_DIRECTIONS)}), got none of {_tree.some(left)}. Leave "
            "what is frozen out of `names`; other optimizers start anew there."
        )
    return places.pop()


def _decoded(parts: Mapping[str, Any]) -> np.ndarray:
    if "" in parts and len(parts) == 1:
        x = np.asarray(parts[""])
        return x
    order = [part for part in PARTS if part in parts]
    return np.asarray(moments.read_stored([as_array(parts[part]) for part in order]))


class _Seen:
    """The scalars that one parameter's stages have recorded."""

    def __init__(
        self,
        path: str,
        walked: list[Entry],
        place: tuple[str, ...],
        order: Mapping[Any, int],
        like: Mapping[str, Any],
    ) -> None:
        self.path, self.like = path, like
        self.scalars: Scalars = {}
        self.order: dict[str, int] = {}
        for e in walked:
            if e.name.path or e.place != place[: len(e.place)]:
                continue
            self.scalars.setdefault(e.name.kind, {})[e.name.field] = e.array
            kind = e.name.kind.split("#")[0]
            self.order[kind] = order[kind, e.place]
        for kind in [*_RATES, _DECAY]:
            if f"{kind}#2" in self.scalars:
                raise self._unlike(f"several stages of {kind}")

    def _unlike(self, what: str) -> ValueError:
        return ValueError(
            f"`state` must be of an optimizer that PyTorch has, got {what} for "
            f"'{self.path}'; start anew there, or change to one that it has before."
        )

    def _number(
        self, kind: str, field: str, key: str, index: int | None = None
    ) -> float:
        """A recorded number, in the decimals that make it; or that of `like`."""
        known = self.like.get(key)
        if known is not None and index is not None:
            known = known[index]
        known = None if known is None else float(known)
        x = self.scalars.get(kind, {}).get(field)
        if x is None and known is None:
            raise ValueError(
                f"`state` must record '{field}' of {kind} for '{self.path}', as ours "
                "do; for a state of Optax pass `like`, which has the hyperparameters."
            )
        return decimal(x, known)

    def found(self, arrays: dict[str, dict[str, np.ndarray]]) -> Found:
        """What torch would have."""
        others = [kind for kind in arrays if kind != "scale_by_momentum"]
        if len(others) > 1 or (len(arrays) > 1 and others != ["scale_by_rms"]):
            raise self._unlike(" and ".join(arrays))
        own = others[0] if others else "scale_by_momentum"
        kind = _DIRECTIONS[own]
        group: dict[str, Any] = {"lr": self._learning_rate()}
        state = self._moments(kind, arrays, group["lr"])
        getattr(self, f"_{kind.lower()}")(own, group, state)
        kind = "NAdam" if "momentum_decay" in group else kind
        kind = self._decay(kind, own, group)
        group |= {k: v for k, v in self._defaults(kind).items() if k not in self.like}
        for key in ("dampening", "nesterov", "maximize"):
            if key in self.like:
                group[key] = self.like[key]
        self._check_like(kind)
        recipe_of(kind, group)  # it must be one that comes back
        # A momentum without a count: of a run that came from PyTorch, which has none.
        has_begun = self._steps(own) or any(np.any(x) for x in state.values())
        return Found(kind, group, state if has_begun else {})

    def _check_like(self, kind: str) -> None:
        """Raises where `like` is of another class, which would begin anew."""
        there = classes_of(self.like)
        if there and kind not in there and {kind, *there} != {"Adam", "AdamW"}:
            raise ValueError(
                f"`like` must be of {kind}, as the state of '{self.path}' is, got a "
                f"group of {' or '.join(there)}; make that optimizer in PyTorch."
            )

    def _rate_kind(self) -> str:
        kinds = [kind for kind in _RATES if kind in self.scalars]
        return kinds[0] if kinds else _RATES[0]

    def _learning_rate(self) -> float:
        return self._number(self._rate_kind(), "applied_learning_rate", "lr")

    def _steps(self, own: str) -> int:
        count = self.scalars.get(own, {}).get("count")
        if count is None:
            stage = self.scalars.get(self._rate_kind(), {})
            count = stage.get("step", stage.get("count"))
        return 1 if count is None else int(np.asarray(count))

    def _moments(
        self, kind: str, arrays: dict[str, dict[str, np.ndarray]], rate: float
    ) -> dict[str, Any]:
        theirs = {ours: key for key, ours in MOMENTS[kind].items()}
        found = {
            theirs[base]: x
            for own in arrays.values()
            for base, x in own.items()
            if base in theirs
        }
        behind = self.order.get("scale_by_momentum", -1)
        if "momentum_buffer" in found and behind > self.order.get(
            self._rate_kind(), behind
        ):
            # A sum of what the rate has scaled already, as Optax's and Keras's.
            found["momentum_buffer"] = found["momentum_buffer"] / np.float32(-rate)
        return found

    def _decay(self, kind: str, own: str, group: dict[str, Any]) -> str:
        """Sets the decay; the class with it."""
        if kind == "SparseAdam":
            if _DECAY in self.scalars:
                raise self._unlike("a decay with Sparse Adam")
            return kind
        group["weight_decay"] = 0.0
        if _DECAY not in self.scalars:
            if kind in ("Adam", "NAdam", "RAdam"):
                decoupled = self.like.get("decoupled_weight_decay", False)
                group["decoupled_weight_decay"] = bool(decoupled)
            return kind
        group["weight_decay"] = self._number(
            _DECAY, "applied_weight_decay", "weight_decay"
        )
        at, rate = (
            self.order[_DECAY],
            self.order.get(self._rate_kind(), len(self.order)),
        )
        is_coupled = at < self.order.get(own, at + 1)
        if at > rate and group["weight_decay"]:
            raise self._unlike("a decay behind the learning rate (independent_decay)")
        if kind not in ("Adam", "NAdam", "RAdam"):
            if group["weight_decay"] and is_coupled == (kind == "Lion"):
                form = "coupled" if is_coupled else "decoupled"
                raise self._unlike(f"a {form} decay with {kind}")
            return kind
        group["decoupled_weight_decay"] = not is_coupled
        if not group["weight_decay"]:  # what nothing depends on
            known = self.like.get("decoupled_weight_decay", not is_coupled)
            is_coupled = not known
            group["decoupled_weight_decay"] = bool(known)
        return "AdamW" if kind == "Adam" and not is_coupled else kind

    def _defaults(self, kind: str) -> dict[str, Any]:
        base = "Adam" if kind == "AdamW" else kind
        if kind in ("SparseAdam", "Lion"):
            return {"maximize": False} if kind == "SparseAdam" else {}
        more: dict[str, Any] = _MORE.get(base, {"capturable": False})
        return _FLAGS | more

    # ----------------------------------------------------------------- by class

    def _betas(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        betas = [self._number(own, b, "betas", i) for i, b in enumerate(("b1", "b2"))]
        group |= {"betas": tuple(betas), "eps": self._number(own, "eps", "eps")}
        state["step"] = np.asarray(self._steps(own), np.float32)
        mine = self.scalars.get(own, {})
        if _value(mine.get("eps_root")):
            raise self._unlike("`eps_root`, an eps inside the root,")
        self._check_corrections(own, group["betas"], "momentum_decay" in mine)

    def _check_corrections(
        self, own: str, betas: tuple[float, float], is_nadam: bool
    ) -> None:
        """Raises unless the bias corrections are 1 - b^t, all that torch knows."""
        mine, count = self.scalars.get(own, {}), self._steps(own)
        for name, b in zip(("mu", "nu"), betas, strict=True):
            recorded = mine.get(f"bias_correction_{name}")
            if recorded is None or (is_nadam and name == "mu"):
                continue
            expected = -math.expm1(count * math.log(b)) if b else float(count > 0)
            if abs(_value(recorded) - expected) > 1e-3 * expected:
                raise self._unlike(
                    f"a bias correction of {name} of {_value(recorded):.4g} after "
                    f"{count} steps, there 1 - {b:.6g}^{count} = {expected:.4g} (b "
                    "has changed, or it is off)"
                )

    def _adam(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        self._betas(own, group, state)
        mine = self.scalars.get(own, {})
        if "momentum_decay" in mine:
            group["momentum_decay"] = self._number(
                own, "momentum_decay", "momentum_decay"
            )
            rest = _value(mine.get("correction_rest_mu"))
            product = 1.0 - (_value(mine["bias_correction_mu"]) + rest)
            state["mu_product"] = np.asarray(product, np.float32)
            return
        group["amsgrad"] = own == "scale_by_amsgrad"
        if group["amsgrad"]:
            maximum, nu = (
                _value(mine.get(k)) for k in ("max_correction", "bias_correction_nu")
            )
            if maximum == 1 and nu != 1:
                raise self._unlike("the maximum of nu_hat (use maximum_of='nu')")

    def _radam(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        self._betas(own, group, state)
        mine = self.scalars.get(own, {})
        if _value(mine.get("threshold", 5.0)) != 5.0:
            raise self._unlike("a threshold other than 5")
        # There it stands beside the root before its correction.
        correction = _value(mine.get("bias_correction_nu")) or 1 - group["betas"][1]
        eps = _value(mine.get("eps")) * correction**0.5
        known = self.like.get("eps")
        is_known = known is not None and abs(eps - known) <= 1e-5 * known
        group["eps"] = known if is_known else float(f"{eps:.6g}")

    def _adamax(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        self._betas(own, group, state)

    def _lion(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        betas = [self._number(own, b, "betas", i) for i, b in enumerate(("b1", "b2"))]
        group["betas"] = tuple(betas)

    def _sparseadam(
        self, own: str, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self._betas(own, group, state)
        state["step"] = self._steps(own)

    def _rmsprop(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        mine = self.scalars.get(own, {})
        group["alpha"] = self._number(own, "decay", "alpha")
        group["eps"] = self._number(own, "eps", "eps")
        group["centered"] = "grad_avg" in state
        group["momentum"] = 0.0
        if "momentum_buffer" in state:
            group["momentum"] = self._number(
                "scale_by_momentum", "trace_decay", "momentum"
            )
        if _value(mine.get("eps_root")):
            raise self._unlike("eps inside the root (use eps_in_sqrt=False)")
        if _value(mine.get("bias_correction_nu", 1.0)) != 1.0:
            raise self._unlike("RMSProp with bias correction")
        state["step"] = np.asarray(self._steps(own), np.float32)

    def _sgd(self, own: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        group["momentum"] = 0.0
        if "momentum_buffer" in state:
            group["momentum"] = self._number(own, "trace_decay", "momentum")


def _value(x: Any) -> float:
    return 0.0 if x is None else float(np.asarray(jax.device_get(x)))


def decimal(x: Any, known: float | None = None) -> float:
    """The shortest decimal of a float32: 0.9, not 0.8999999761581421; or `known`."""
    if x is None:
        assert known is not None
        return known
    x = np.asarray(jax.device_get(x))
    if known is not None and x.dtype.type(known) == x:
        return known
    return float(str(x[()]))
