"""A saved state in a chain that has changed since: array by array, by name."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx._types import GradientTransformation, PyTree
from adamx.interop._convert import converted, is_same, split_field
from adamx.interop._foreign import RECORDS_ONLY, Derived, base_kind, common, stand_in
from adamx.interop._migration import (
    CONVERTED,
    DROPPED,
    INITIALISED,
    KEPT,
    Fate,
    Migration,
)
from adamx.interop._names import Entry, as_array, entries, rebuilt
from adamx.interop._source import Parts, Source
from adamx.reading import unboxed


def migrate(
    saved: Any, new_tx: GradientTransformation, params: PyTree, missing: str = "init"
) -> Migration:
    """Loads a saved state into a transformation that has changed since, and says how.

        migration = migrate(saved, adamx.guard(new_tx), params)
        print(migration)
        state = migration.state

    By name (see `to_flat`), each array of the new state is

        kept          the saved bits
        converted     a moment in another dtype or codec: decoded and stored anew, exact
                      or to the nearest; a bias correction or a schedule's position that
                      was not saved, from the count
        initialised   as new_tx.init makes it: of a new wrapper, of a new parameter
        (dropped)     what was saved and has no place: of a wrapper or parameter that is
                      gone

    Optax's states serve as well: adam(w), adamax, radam, amsgrad, lion, momentum,
    rmsprop, in chain, masked, partition, MultiSteps, inject_hyperparams,
    apply_if_finite. Of their count it is assumed that b1 and b2 never changed.

    Where a constant b1 or b2 is another one now, or a parameter has come from a group
    with others, the moment is multiplied so that its corrected value stays what it was.
    (A flat dict does not say in which group a parameter was: of groups with unlike b's
    save the state itself, or leave each parameter in its own.) What `with_hyperparams`
    holds is kept: the new chain's first rate is the old one's (then:
    `set_hyperparams`).

    Args:
      saved: a state, ours or Optax's, or its flat dict. One state, not a batch of them.
      new_tx: the transformation to go on with.
      params: the parameters to go on with. Masters that were not saved begin as these.
      missing: what to do where something that steps depend on is not in `saved`: "init"
        or "error". Records of the last step (rates, norms) may be missing.

    Returns:
      A `Migration`: `state`, and `kept`, `converted`, `initialised`, `dropped`. Kept
      arrays are the saved ones, where they were; the others are where init puts them.
      A parameter that is new in a chain of many steps begins with moments of 0 and no
      bias correction: its first steps are (1 - b1) / sqrt(1 - b2) = 3.2 times as long.

    Raises:
      TypeError, ValueError: an argument is something else; nothing of `saved` fits; a
        State's count that is neither saved nor to be derived; a batch of states; with
        "error", lists what is missing.

    >>> import adamx, jax.numpy as jnp, optax
    >>> params = {"kernel": jnp.ones(3)}
    >>> saved = adamx.adam(1e-3).init(params)
    >>> new_tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adam(1e-3))
    >>> migration = migrate(saved, new_tx, params)
    >>> migration.initialised
    ('clip_by_global_norm/grad_norm',)
    """
    _checks.check_transformation("new_tx", new_tx)
    _checks.check_choice("missing", missing, ("init", "error"))
    source = Source(saved)
    state = new_tx.init(params)
    wanted = entries(state)
    by_owner: dict[Any, list[int]] = {}
    for i, entry in enumerate(wanted):
        by_owner.setdefault((common(entry.name).kind, entry.place), []).append(i)
    arrays = [entry.array for entry in wanted]
    fates: list[Fate] = [Fate("", "")] * len(wanted)
    leaves = _tree.leaves_by_path(params)
    for (kind, _), indices in by_owner.items():
        owner = _Owner(kind, [wanted[i] for i in indices], source, leaves)
        for i, (array, fate) in zip(indices, owner.result(), strict=True):
            arrays[i], fates[i] = array, fate
    _check(fates, source, missing)
    fates += [Fate(name, DROPPED) for name in source.dropped()]
    return Migration(rebuilt(state, arrays), tuple(fates))


def _check(fates: list[Fate], source: Source, missing: str) -> None:
    lost = [f.name for f in fates if f.action == INITIALISED and not f.is_record]
    is_empty = all(fate.action == INITIALISED for fate in fates)
    if is_empty and lost and source.names:
        raise ValueError(
            "`saved` must have something that the new state has, got "
            f"{_tree.some(list(source.names))} where it has {_tree.some(lost)}. Is it "
            "the state of another optimizer, or of other parameters? Start from "
            "new_tx.init(params)."
        )
    if missing == "error" and lost:
        raise ValueError(
            f"`saved` must have all that the new state has, it lacks {len(lost)}: "
            f"{_tree.some(lost)}. Pass missing='init' to begin these as "
            "new_tx.init(params) does."
        )


class _Owner:
    """One State of the new chain: its arrays by field and path, and what was saved."""

    def __init__(
        self,
        kind: str,
        own: list[Entry],
        source: Source,
        params: Mapping[str, Any],
    ) -> None:
        self.kind, self.own, self.source, self.params = kind, own, source, params
        self.units: dict[tuple[str, str], dict[str, Entry]] = {}
        for entry in own:
            base, part = split_field(common(entry.name).field)
            self.units.setdefault((base, entry.name.path), {})[part] = entry
        is_there = kind in source.kinds
        self.saved_kind = kind if is_there else stand_in(kind, source.kinds)
        self.found = self._find()
        self.scalars = {f: p[""] for (f, path), p in self.found.items() if not path}
        self.initial = {
            base: parts[""].array
            for (base, path), parts in self.units.items()
            if not path and "" in parts
        }

    def _find(self) -> dict[tuple[str, str], Parts]:
        """What was saved of each; nothing where no parameter of it has anything."""
        if self.saved_kind is None:
            return {}
        found: dict[tuple[str, str], Parts] = {}
        # Parameters first: the scalars of another group's State are not this one's.
        order = sorted(self.units, key=lambda unit: not unit[1])
        has_paths = bool(order and order[0][1])
        for unit in order:
            if not unit[1] and has_paths and not found:
                return {}
            base, path = unit
            place = next(iter(self.units[unit].values())).name.place
            parts = self.source.find(self.saved_kind, base, path, place)
            if parts is not None:
                found[unit] = parts
        return found

    def result(self) -> list[tuple[Any, Fate]]:
        """For each entry its array, and its fate."""
        made: dict[str, tuple[Any, Fate]] = {}
        for (base, path), parts in self.units.items():
            made |= self._unit(base, path, parts)
        self._check_count(made)
        return [made[str(entry.name)] for entry in self.own]

    def _unit(
        self, base: str, path: str, parts: dict[str, Entry]
    ) -> dict[str, tuple[Any, Fate]]:
        wanted = {part: entry.array for part, entry in parts.items()}
        saved = self.found.get((base, path))
        if saved is None:
            return self._missing(base, path, parts)
        self._check_rank(parts, saved, wanted)
        factor, why = self._factor(base) if path or base in ("mu", "nu") else (1.0, "")
        if path:
            moved, was_moved = self._from_another_group(base, path, parts)
            factor, why = factor * moved, "; ".join(filter(None, (was_moved, why)))
        if base.startswith(("bias_correction_", "correction_rest_")):
            change = self._factor(base.rsplit("_", 1)[1])
            if change[1]:
                found = {"count": self.scalars["count"]}  # and the b's of the new chain
                derived = Derived(self.initial, found, {}, []).value(parts[""])
                if derived is not None:
                    return _all(parts, {"": derived[0]}, CONVERTED, change[1])
        moment = {"b1": "mu", "b2": "nu"}.get(base)
        if moment and self._factor(moment)[1]:
            return _all(parts, wanted, CONVERTED, self._factor(moment)[1])
        if factor == 1.0 and is_same(saved, wanted):
            return _all(parts, {k: as_array(v) for k, v in saved.items()}, KEPT, "")
        param = unboxed(self.params.get(path))
        kind = self.kind.split("#")[0]
        # Sophia's is a curvature, of either sign.
        is_square = base in ("nu", "nu_max") and kind != "scale_by_sophia"
        got = converted(kind, saved, wanted, param, factor, is_square=is_square)
        if isinstance(got, str):
            return _all(parts, wanted, INITIALISED, got)
        return _all(parts, got[0], CONVERTED, why or got[1])

    def _missing(
        self, base: str, path: str, parts: dict[str, Entry]
    ) -> dict[str, tuple[Any, Fate]]:
        wanted = {part: entry.array for part, entry in parts.items()}
        entry = next(iter(parts.values()))
        kind = base_kind(common(entry.name))
        stages = [p for p in entry.place if p.startswith("stage=")]
        has_begun = all(p in ("stage=0", f"stage={self.source.stage}") for p in stages)
        if not path and (self.found or (kind in RECORDS_ONLY and has_begun)):
            derived = self._derived().value(entry)
            if derived is not None:
                return _all(parts, {"": derived[0]}, CONVERTED, derived[1])
        is_record = not path and (bool(self.found) or kind in RECORDS_ONLY)
        note = "written by the next step" if is_record else ""
        if is_record and "." in base:
            note = "of the codec"
        if path and self.found and "count" in self.scalars:
            note = f"new at count {int(np.max(np.asarray(self.scalars['count'])))}"
        return _all(parts, wanted, INITIALISED, note, is_record)

    def _derived(self) -> Derived:
        return Derived(
            self.initial, self.scalars, self._hyperparams(), self.source.counts
        )

    def _hyperparams(self) -> dict[str, Any]:
        """What a wrapper around this State held by argument when it was saved.

        None, where that was one thing in one group and another in another, and of which
        this State is cannot be told.
        """
        result: dict[str, Any] = {}
        for (kind, base, _), places in self.source.units.items():
            argument = base.partition(".")[2]
            if kind == "with_hyperparams" and argument:
                found = self.source.around(places, self.own[0].place)
                if found:
                    result.setdefault(argument, found[0])
        return result

    def _factor(self, moment: str) -> tuple[float, str]:
        """What keeps a mean's corrected value where its constant b is another one."""
        b_name = {"mu": "b1", "nu": "b2"}.get(moment, "")
        correction = self.scalars.get(f"bias_correction_{moment}")
        before, now = self.scalars.get(b_name), self.initial.get(b_name)
        count = self.scalars.get("count")
        scalars = (correction, before, now, count)
        if any(x is None or np.ndim(x) for x in scalars):
            return 1.0, ""
        recorded, old, new, steps = (float(np.asarray(x)) for x in scalars)
        if b_name in self._hyperparams() or not steps:
            return 1.0, ""
        closed = [_closed(b, steps) for b in (old, new)]
        was_constant = abs(closed[0] - recorded) <= 1e-4 * closed[0]
        factor = closed[1] / closed[0]
        if abs(old - new) < 1e-7 or not was_constant or abs(factor - 1) < 1e-6:
            return 1.0, ""
        return factor, f"{b_name} was {old:.6g}, is {new:.6g}: times {factor:.4g}"

    def _from_another_group(
        self, moment: str, path: str, parts: Mapping[str, Entry]
    ) -> tuple[float, str]:
        """What keeps the corrected value of a mean that another State has taken."""
        field, kind = f"bias_correction_{moment}", self.saved_kind or ""
        place = next(iter(parts.values())).name.place
        there = self.source.beside(kind, moment, path, place, field)
        here = self.scalars.get(field)
        if any(x is None or np.ndim(x) for x in (there, here)):
            return 1.0, ""
        before, now = (float(np.asarray(x)) for x in (there, here))
        if before == now or not before:
            return 1.0, ""
        factor = now / before
        return factor, f"of another group: times {factor:.4g}"

    def _check_rank(
        self, parts: Mapping[str, Entry], saved: Parts, wanted: Any
    ) -> None:
        for part, array in saved.items():
            like = wanted.get(part)
            if like is not None and like.ndim == 0 and np.ndim(array):
                raise ValueError(
                    f"`saved` must be one state, got '{parts[part].name}' of shape "
                    f"{tuple(np.shape(array))} where a number is expected. Of a batch "
                    "of states take one: jax.tree.map(lambda x: x[0], saved)."
                )

    def _check_count(self, made: Mapping[str, tuple[Any, Fate]]) -> None:
        """Raises where moments went on with a count of 0: a wrong bias correction."""
        count = self.units.get(("count", ""))
        is_corrected = any(base.startswith("bias_correction") for base in self.initial)
        if count is None or not self.found or not is_corrected:
            return
        name = count[""].name
        if made[str(name)][1].action == INITIALISED:
            raise ValueError(
                f"`saved` has moments of {self.saved_kind} and no '{name}': with a "
                "count of 0 their bias corrections would be wrong. Add the count, the "
                "number of steps that they have seen, to the flat dict: "
                f"{{**to_flat(saved), '{name}': jnp.int32(steps)}}."
            )


def _closed(b: float, count: float) -> float:
    return -math.expm1(count * math.log(b)) if b > 0 else 1.0


def _all(
    parts: Mapping[str, Entry],
    arrays: Mapping[str, Any],
    action: str,
    note: str,
    is_record: bool = False,
) -> dict[str, tuple[jax.Array, Fate]]:
    result = {}
    for part, entry in parts.items():
        fate = Fate(str(entry.name), action, note, is_record)
        result[str(entry.name)] = (jnp.asarray(arrays[part]), fate)
    return result
