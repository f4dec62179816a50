"""States under other names: Optax's, and our own types that hold the same.

Names are brought to one form before they are compared; what a foreign state does not
record is derived from what it does: bias corrections from the count,

    1 - b^count      of a b that never changed, which is all that a count can tell

and positions of schedules from the count of another stage.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.interop._names import Entry, Name

# kind -> our kind, and fields that have another name there.
_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "scale_by_scheduled_learning_rate": ("scale_by_learning_rate", {"count": "step"}),
    "scale_by_schedule": ("scale_by_learning_rate", {"count": "step"}),
    "inject_hyperparams": ("with_hyperparams", {"count": "step"}),
    "inject_stateful_hyperparams": ("with_hyperparams", {"count": "step"}),
    "multi_steps": (
        "accumulate",
        {
            "mini_step": "micro_step",
            "gradient_step": "inner_steps",
            "acc_grads": "accumulated",
        },
    ),
    "apply_if_finite": (
        "guard",
        {"total_notfinite": "skipped", "notfinite_count": "skipped_in_a_row"},
    ),
    "trace": ("scale_by_momentum", {}),
    "scale_by_rms_with_count": ("scale_by_rms", {}),
    "scale_by_r_std_dev": ("scale_by_rms", {}),
    "scale_by_r_std_dev_with_count": ("scale_by_rms", {}),
    "scale_by_ademamix": ("scale_by_ademamix", {"m1": "mu", "m2": "mu_slow"}),
}
# Kinds whose count, mu and nu Optax keeps in a ScaleByAdamState, or that mean the same.
STAND_INS = {
    "scale_by_radam": "scale_by_adam",
    "scale_by_adamax": "scale_by_adam",
    "adam_to_sgd": "scale_by_adam",
}
# Of these, ours of the other kind must not be taken: its nu is another thing.
_ONLY_FOREIGN = ("scale_by_adamax",)
# States that only record what they did: nothing is lost where they begin anew.
RECORDS_ONLY = (
    "scale_by_learning_rate",
    "add_decoupled_weight_decay",
    "clip_by_global_norm",
    "clip_by_update_rms",
    "scale_by_lamb_trust_ratio",
    "cautious",
)
# Fields that are nothing but a schedule's position.
_POSITIONS = {
    ("scale_by_learning_rate", "step"),
    ("add_decoupled_weight_decay", "step"),
    ("scale_by_momentum", "step"),
    ("with_hyperparams", "step"),
}
# The argument that a mean is taken with, by kind or else by moment.
_RATES = {"scale_by_rms": "decay", "mu": "b1", "nu": "b2"}


def common(name: Name) -> Name:
    """The name in the form that ours and Optax's share."""
    kind, *number = name.kind.split("#")
    ours, fields = _KINDS.get(kind, (kind, {}))
    field = fields.get(name.field, name.field)
    return name._replace(kind="#".join([ours, *number]), field=field)


def base_kind(name: Name) -> str:
    """The kind without its number."""
    return name.kind.split("#")[0]


def rewritten(found: Mapping[Name, Any]) -> dict[Name, Any]:
    """The arrays of a saved state by common names, in our units.

    `optax.MultiSteps` keeps the mean of the gradients, `accumulate` their sum.
    """
    result: dict[Name, Any] = {}
    for name, array in found.items():
        if name.kind.split("#")[0] == "multi_steps" and name.field == "acc_grads":
            wide = jnp.asarray(array)
            steps = jnp.asarray(_steps_in_window(name, found))
            array = wide * steps.astype(wide.dtype)
        result.setdefault(common(name), array)
    return result


def _steps_in_window(name: Name, found: Mapping[Name, Any]) -> Any:
    """How many gradients the mean of this name is of; the name tells no group."""
    places = {
        other.place: array
        for other, array in found.items()
        if (other.kind, other.field) == (name.kind, "mini_step")
    }
    steps = places.get(name.place, next(iter(places.values()), 1))
    if name.place not in places and any(x != steps for x in places.values()):
        raise ValueError(
            f"`saved` has '{name}' and windows of {len(places)} groups, which have "
            "come to unlike steps: of which one it is the mean is not saved. Save "
            "where all windows have ended (mini_step 0)."
        )
    return steps


def stand_in(kind: str, saved_fields: Mapping[str, Any]) -> str | None:
    """The kind whose state may be taken for that of `kind`, with its number."""
    own, *number = kind.split("#")
    other = STAND_INS.get(own)
    if other is None:
        return None
    other = "#".join([other, *number])
    if other not in saved_fields:
        return None
    if own in _ONLY_FOREIGN and "b1" in saved_fields[other]:
        return None
    return other


class Derived:
    """What is derived from the scalars that were found of one State.

    Args:
      initial: the State's scalars as init made them, by field.
      found: those that were saved, by field.
      hyperparams: those that were saved beside it, by argument.
      counts: all counts of steps that were saved.
    """

    def __init__(
        self,
        initial: Mapping[str, Any],
        found: Mapping[str, Any],
        hyperparams: Mapping[str, Any],
        counts: list[int],
    ) -> None:
        self.initial, self.found = initial, found
        self.hyperparams, self.counts = hyperparams, counts

    def value(self, entry: Entry) -> tuple[jax.Array, str] | None:
        """A scalar that was not saved, and what it is made of; None: cannot be."""
        kind, field = base_kind(common(entry.name)), common(entry.name).field
        if (kind, field) in _POSITIONS and self.counts:
            return self._as(entry, max(self.counts)), "from the steps of another stage"
        if field.startswith(("bias_correction_", "correction_rest_")):
            return self._correction(entry, kind, field)
        if kind == "scale_by_radam" and field in ("rho", "rho_rest"):
            b, count = self._rate("b2"), self._count()
            if count is None:
                return None
            return self._split(entry, _rho(b, count), field == "rho_rest", "b2", b)
        return None

    def _correction(
        self, entry: Entry, kind: str, field: str
    ) -> tuple[jax.Array, str] | None:
        moment = field.rsplit("_", 1)[1]
        argument = _RATES.get(kind, _RATES.get(moment, ""))
        count = self._count()
        is_off = kind == "scale_by_rms" and "count" not in self.initial
        if is_off or count is None or argument not in self.initial:
            return None
        if self.initial.get("momentum_decay") is not None and moment == "mu":
            raise ValueError(
                f"'{entry.name}' cannot be derived from the count: b1 warms up "
                "(momentum_decay). Migrate to nadam without momentum_decay, or start "
                "from tx.init(params)."
            )
        b = self._rate(argument)
        exact = -math.expm1(count * math.log(b)) if b > 0 else 1.0 if count else 0.0
        return self._split(entry, exact, "rest" in field, argument, b)

    def _split(
        self, entry: Entry, exact: float, is_rest: bool, argument: str, b: float
    ) -> tuple[jax.Array, str]:
        """The nearest number of the array's dtype, or what is left over."""
        nearest = float(np.asarray(exact, entry.array.dtype))
        note = f"from the count, {argument} = {b:.6g} throughout"
        return self._as(entry, exact - nearest if is_rest else exact), note

    def _as(self, entry: Entry, value: Any) -> jax.Array:
        return jnp.asarray(np.asarray(value, entry.array.dtype))

    def _count(self) -> int | None:
        count = self.found.get("count")
        return None if count is None else int(np.asarray(count))

    def _rate(self, argument: str) -> float:
        """b as it was used: saved beside the state, or that of the new chain."""
        for source in (self.found, self.hyperparams, self.initial):
            if argument in source:
                if source[argument] is None:
                    raise ValueError(
                        f"`saved` has unlike `{argument}` by group, none of them under "
                        "a label of the new transformation: with which of them its "
                        "moments were taken is not known. Keep the labels."
                    )
                return float(np.asarray(source[argument]))
        raise KeyError(argument)


def _rho(b: float, count: int) -> float:
    """rho_t of RAdam: 2 / (1 - b) - 1 - 2 t b^t / (1 - b^t); 0 at t = 0."""
    if count == 0:
        return 0.0
    power = b**count
    return (1 + b) / (1 - b) - 2 * count * power / (1 - power)
