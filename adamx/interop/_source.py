"""A saved state, to be searched: by kind, field and path, then by place.

The place is what may have changed: groups that came or went, stages around it. What
was there once serves all groups; of several that differ, only the one in the same place
does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adamx import _checks
from adamx._types import PyTree
from adamx.interop._convert import split_field
from adamx.interop._foreign import common, rewritten
from adamx.interop._names import Name, entries, parsed, to_flat

Parts = dict[str, Any]
Place = tuple[str, ...]


class Source:
    """The arrays of a saved state, by common names.

    Attributes:
      names: the name that each was saved under.
      kinds: by kind, with its number, what it has: fields, as a dict.
      counts: the numbers of steps that its States have counted.
      used: those that the new state has.
      labels: of all groups.
      stood: of what has a path, by its common name, the place that its State stood in;
        a flat dict does not say.
    """

    def __init__(self, saved: Any) -> None:
        found, stood = _named(saved)
        self.names = dict(zip(map(str, found), found, strict=True))
        self.stood = {common(name): place for name, place in stood.items()}
        arrays = rewritten(found)
        self.units: dict[tuple[str, str, str], dict[Place, Parts]] = {}
        self.kinds: dict[str, dict[str, Any]] = {}
        self.counts: list[int] = []
        self.used: set[tuple[str, str, str, Place]] = set()
        self.labels = {part for name in arrays for part in _groups(name.place)}
        for name, array in arrays.items():
            base, part = split_field(name.field)
            places = self.units.setdefault((name.kind, base, name.path), {})
            places.setdefault(name.place, {})[part] = array
            self.kinds.setdefault(name.kind, {})[name.field] = array
            if _is_count(name) and not np.ndim(array):
                self.counts.append(int(np.asarray(array)))
        stage = self.units.get(("stages", "stage", ""), {}).get((), {}).get("")
        self.stage = None if stage is None or np.ndim(stage) else int(stage)

    def find(self, kind: str, base: str, path: str, place: Place) -> Parts | None:
        """The parts of an array, or None; they are used from now on.

        Raises:
          ValueError: it was saved in several places, none of them this one.
        """
        places = self.units.get((kind, base, path), {})
        at = self._place(places, place, f"{kind}/{base}" + f"/{path}" * bool(path))
        if at is None:
            return None
        self.used.add((kind, base, path, at))
        return places[at]

    def beside(self, kind: str, base: str, path: str, place: Place, field: str) -> Any:
        """A scalar of the State in which an array of a parameter stood.

        None, where that is not known or was not saved.
        """
        at = self._place(self.units.get((kind, base, path), {}), place, kind)
        names = [Name(kind, name, path, at) for name in (base, f"{base}.codes")]
        places = [self.stood[name] for name in names if name in self.stood]
        scalars = self.units.get((kind, field, ""), {})
        return scalars.get(places[0], {}).get("") if places else None

    def _place(self, places: Mapping[Place, Parts], place: Place, what: str) -> Any:
        if place in places:
            return place
        left = [p for p in places if self._same_stage(p, place)]
        if set(_groups(place)) & self.labels:  # what other groups have is not its own
            left = [p for p in left if set(_groups(p)) <= set(_groups(place))]
        same = [p for p in left if _groups(p) == _groups(place)]
        left = same or left
        if len(left) <= 1 or _all_equal([places[p] for p in left]):
            return left[0] if left else None
        raise ValueError(
            f"`saved` has '{what}' in {len(left)} places, with unlike values: "
            f"{', '.join('@'.join(p) for p in left[:4])}; the new state has it in "
            f"{'@'.join(place) or 'one place'}. Keep these labels in the new "
            "transformation, or take one of them: leave the others out of the dict "
            "that to_flat(state) gives."
        )

    def around(self, places: Mapping[Place, Parts], place: Place) -> list[Any]:
        """The value that holds in a place: of the nearest place around it.

        Where its labels were not saved, what all saved ones have in common, else None;
        an empty list where nothing is around it.
        """
        near = [p for p in places if place[: len(p)] == p]
        if near:
            return [places[max(near, key=len)][""]]
        if set(_groups(place)) & self.labels:
            return []
        have = {p for at in places for p in _groups(at)}
        values = [parts[""] for parts in places.values()]
        is_one = all(np.array_equal(x, values[0]) for x in values)
        return [values[0] if is_one and have >= self.labels else None]

    def _same_stage(self, saved: Place, wanted: Place) -> bool:
        """What was alone begins the first stage; of stages, the one at work goes on."""
        then, now = _stages(saved), _stages(wanted)
        if then == now:
            return True
        if not then:
            return set(now) == {"stage=0"}
        return not now and then == (f"stage={self.stage}",)

    def dropped(self) -> list[str]:
        """The saved names that nothing has used."""
        left = []
        for text, name in self.names.items():
            (common,) = rewritten({name: np.zeros(())})
            base, _ = split_field(common.field)
            if (common.kind, base, common.path, common.place) not in self.used:
                left.append(text)
        return left


# Where `save(folder, step, {"params": ..., "state": to_flat(state)})` has it.
_STATE = "state/"
# The name of an array that stands in no State.
_BARE = "state/value"


def _named(saved: Any) -> tuple[dict[Name, Any], dict[Name, Place]]:
    """By name, the arrays of a state or of a flat dict; the places of a state's."""
    if isinstance(saved, Mapping):
        keys = [key for key in saved if isinstance(key, str)]
        is_part = any(key.startswith(_STATE) for key in keys)
        if is_part and not any(key.startswith(_BARE) for key in keys):
            below = {k: saved[k] for k in keys if k.startswith(_STATE)}
            saved = {key.removeprefix(_STATE): x for key, x in below.items()}
        names = [parsed(key) if isinstance(key, str) else None for key in saved]
        if saved and all(names) and all(map(_is_array, saved.values())):
            pairs = zip(names, saved.values(), strict=True)
            return {name: x for name, x in pairs if name is not None}, {}
        flat_keys = [k for k in saved if isinstance(k, str) and "/" in k]
        if flat_keys and all(map(_is_array, saved.values())):
            bad = next(k for k, n in zip(saved, names, strict=True) if n is None)
            raise ValueError(
                f"`saved` must have the names that adamx.interop.to_flat gives "
                f"('kind/field/path'), got {bad!r}; leave out what is no part of the "
                "optimizer's state."
            )
    if not _has_arrays(saved):
        raise TypeError(
            "`saved` must be an optimizer state, or a flat dict of one (to_flat), got "
            f"{_checks.describe_value(saved)}; pass what tx.init or tx.update "
            "returned, as it was restored."
        )
    to_flat(saved)  # refuses two of one name
    found = entries(saved)
    stood = {entry.name: entry.place for entry in found if entry.name.path}
    return {entry.name: entry.array for entry in found}, stood


def _has_arrays(saved: PyTree) -> bool:
    if hasattr(saved, "init") and hasattr(saved, "update"):
        return False
    leaves = jax.tree.leaves(getattr(saved, "opt_state", saved))
    return all(_is_array(x) or hasattr(x, "value") for x in leaves)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_count(name: Name) -> bool:
    """Whether it counts steps of an optimizer: not of a wrapper that may see more."""
    if name.kind.startswith("with_hyperparams"):
        return name.field == "step"
    return name.kind.startswith(("scale_by_", "schedule_free", "adam_to_")) and (
        name.field in ("count", "step")
    )


def _groups(place: Place) -> Place:
    return tuple(p for p in place if p.startswith("group="))


def _stages(place: Place) -> Place:
    return tuple(p for p in place if p.startswith("stage="))


def _all_equal(found: list[Parts]) -> bool:
    first, *others = found
    return all(
        other.keys() == first.keys()
        and all(np.array_equal(other[k], first[k]) for k in first)
        for other in others
    )
