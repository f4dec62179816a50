"""What a state_dict of PyTorch becomes: groups of paths, a transformation, its state.

Parameters of one group that have taken unlike numbers of steps (torch counts for each,
we for each group) are two groups here.
"""

import math
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx._types import GradientTransformationExtraArgs, PyTree, dtype_of
from adamx.compose import freeze, groups
from adamx.compose._groups import DEFAULT
from adamx.interop._names import Entry, entries
from adamx.interop._torch_layout import NameMap, Placed, Placement, raise_problems
from adamx.interop._torch_read import (
    SQUARES,
    Param,
    StateDict,
    needed,
    read_state_dict,
    shape_of,
)
from adamx.interop._torch_rows import rules_for
from adamx.interop._torch_rules import UNCOUNTED, Recipe, recipe_of

FROZEN = "adamx.freeze()"


class Group(NamedTuple):
    """Parameters with one recipe and one count.

    Attributes:
      recipe: our stages; None: frozen.
      step: steps taken; None where torch does not count them.
      paths: of its parameters here.
      params: the same, as they were read.
      label: of the group in the state; "" where there is only one.
    """

    recipe: Recipe | None
    step: int | None
    paths: tuple[str, ...]
    params: tuple[Param, ...]
    label: str = ""

    @property
    def code(self) -> str:
        """The transformation as code."""
        return FROZEN if self.recipe is None else str(self.recipe)


class Plan:
    """What a state_dict becomes: groups of paths, each with its transformation.

    Attributes:
      groups: in the order of the rules; the last is the default where there are two.
      placed: by torch's name.
      untouched: paths of what torch has not trained so far, though all else.
    """

    def __init__(
        self,
        state_dict: Any,
        params: PyTree,
        name_map: NameMap = None,
        *,
        names: Any = None,
        optimizer: str | None = None,
        learning_rate: Any = None,
        untrained: str = "error",
        step: int | None = None,
    ) -> None:
        _checks.check_choice("untrained", untrained, ("error", "freeze"))
        if step is not None:
            step = _checks.check_steps("step", step, minimum=0)
        found = read_state_dict(state_dict, names, optimizer)
        shapes: dict[str, tuple[int, ...] | None] = {
            p.name: next(map(shape_of, p.moments.values()), None) for p in found.params
        }
        place = Placement(shapes, params, name_map)
        paths = {name: placed.path for name, placed in place.placed.items()}
        frozen: list[str] = []
        if untrained == "freeze":
            place.problems.pop("missing", None)
            taken = set(paths.values())
            frozen = [p for p in _tree.leaves_by_path(params) if p not in taken]
        still = _untouched(found)
        self.untouched = [paths[p.name] for p in still if p.name in paths]
        if untrained == "freeze":
            frozen += self.untouched
        dropped = [p.name for p in found.params if p.name not in paths]
        if dropped:
            place.problems.setdefault("extra", []).append(
                f"{_tree.some(dropped)}, trained there: None is for other tensors"
            )
        frozen_hint = "; untrained='freeze' freezes what torch does not train"
        if "missing" in place.problems:
            place.problems["missing"][-1] += frozen_hint
        raise_problems("`state_dict`", place.problems)
        _check_dtypes(found, paths, _tree.leaves_by_path(params))
        self.placed: dict[str, Placed] = place.placed
        recipes = [
            recipe_of(kind, group, _rate(learning_rate, i, len(found.groups)))
            for i, (kind, group) in enumerate(
                zip(found.kinds, found.groups, strict=True)
            )
        ]
        trained = [p for p in found.params if paths[p.name] not in frozen]
        self.groups = _grouped(recipes, trained, paths, frozen, step)

    @property
    def step(self) -> int:
        """The most steps that a parameter has taken."""
        return max((group.step or 0 for group in self.groups), default=0)

    @property
    def code(self) -> str:
        """The transformation as code that makes it."""
        *rules, last = self.groups
        if not rules:
            return last.code
        lines = [f"        (r{group.label!r}, {group.code})," for group in rules]
        return "\n".join(
            [
                "adamx.groups(",
                "    [",
                *lines,
                "    ],",
                f"    default={last.code},",
                ")",
            ]
        )

    def check_schedules(self) -> None:
        """Raises where it is not known at which step a schedule goes on."""
        for group in self.groups:
            if group.recipe is None or group.step is not None:
                continue
            numbers = group.recipe.numbers
            is_fresh = numbers.get("momentum") and not any(
                param.moments for param in group.params
            )
            if callable(group.recipe.rate) and not is_fresh:
                raise ValueError(
                    f"`step` must be given: `learning_rate` is a schedule, and "
                    f"{group.recipe.kind} does not count its steps; pass the steps "
                    "taken, or step=0 to begin the schedule anew."
                )

    def tx(self) -> GradientTransformationExtraArgs:
        """The transformation."""
        made = [freeze() if g.recipe is None else g.recipe.make() for g in self.groups]
        if len(made) == 1:
            return made[0]
        pairs = zip(self.groups[:-1], made[:-1], strict=True)
        return groups([(group.label, tx) for group, tx in pairs], default=made[-1])


def _rate(learning_rate: Any, index: int, count: int) -> Any:
    if not isinstance(learning_rate, (list, tuple)):
        return learning_rate
    if len(learning_rate) != count:
        raise ValueError(
            f"`learning_rate` must be one for all, or a list of {count}, one for each "
            f"group of the state_dict, got {len(learning_rate)}; use None in it for a "
            "group's own."
        )
    return learning_rate[index]


def _grouped(
    recipes: Sequence[Recipe],
    params: Sequence[Param],
    paths: Mapping[str, str],
    frozen: Sequence[str],
    step: int | None,
) -> list[Group]:
    """By group and, where steps are counted, by steps; then labelled."""
    sets: dict[Any, list[Param]] = {}
    for param in params:
        recipe = recipes[param.group]
        counted = recipe.kind not in UNCOUNTED
        # NAdam's product follows from the steps only while its b1 does not change.
        key = (param.group, param.step if counted else None, param.mu_product)
        sets.setdefault(key, []).append(param)
        if counted and step not in (None, param.step):
            raise ValueError(
                f"`step` must be left out for {recipe.kind}, whose state_dict counts "
                f"the steps, got {step} where '{param.name}' has taken {param.step}; "
                "it is for SGD and Lion, which do not count."
            )
        damped = recipe.numbers.get("dampening") and recipe.numbers["momentum"]
        if damped and "trace" not in param.moments:
            raise ValueError(
                f"`state_dict` must have a momentum_buffer of '{param.name}': with "
                "dampening torch's first step is another than its others. Take a step "
                "in PyTorch, or set dampening=0."
            )
    found: list[Group] = []
    for (index, *_), own in sets.items():
        steps = [p.step for p in own if p.step is not None]
        taken = step if step is not None else max(steps, default=None)
        group = Group(
            recipes[index], taken, tuple(paths[p.name] for p in own), tuple(own)
        )
        found.append(group)
    if frozen:
        found.append(Group(None, None, tuple(frozen), ()))
    if len(found) < 2:
        return found
    labels = rules_for([group.paths for group in found])
    labels[-1] = DEFAULT
    return [g._replace(label=x) for g, x in zip(found, labels, strict=True)]


def _untouched(found: StateDict) -> list[Param]:
    """What has no moments where its class keeps some, and others have them."""
    if not any(p.moments for p in found.params):
        return []
    keeps = [
        bool(needed(kind, group))
        for kind, group in zip(found.kinds, found.groups, strict=True)
    ]
    return [p for p in found.params if keeps[p.group] and not p.moments]


def _check_dtypes(
    found: StateDict, paths: Mapping[str, str], leaves: Mapping[str, Any]
) -> None:
    """Raises where a parameter is complex and its moments are not, or else."""
    problems = []
    for param in found.params:
        path = paths[param.name]
        dtype = dtype_of(leaves[path])
        is_complex = jnp.issubdtype(dtype, np.complexfloating)
        if is_complex and found.kinds[param.group] != "SGD":
            problems.append(f"complex: '{path}': {SQUARES}")
        elif any(np.iscomplexobj(x) != is_complex for x in param.moments.values()):
            problems.append(
                f"mis-typed: '{path}' is {dtype}, the moments of "
                f"'{param.name}' are {next(iter(param.moments.values())).dtype}"
            )
    if problems:
        raise ValueError(
            "`params` must be of the numbers that torch trained; nothing was "
            "converted.\n  " + "\n  ".join(problems)
        )


# ------------------------------------------------------------------------- the state


def state_of(plan: Plan, params: PyTree) -> PyTree:
    """The state of `plan.tx()` after what torch has done."""
    plan.check_schedules()
    tx = plan.tx()
    template = jax.eval_shape(tx.init, params)
    # Scalars as init makes them, without the moments' memory.
    small = jax.tree.map(lambda p: jnp.zeros((0,) * np.ndim(p), p.dtype), params)
    initial = [entry.array for entry in entries(tx.init(small))]
    moments = {
        (ours, plan.placed[param.name].path): plan.placed[param.name].forth(array)
        for group in plan.groups
        for param in group.params
        for ours, array in param.moments.items()
    }
    scalars = {group.label: _scalars_of(group) for group in plan.groups}
    leaves = _tree.leaves_by_path(params)
    arrays = []
    for entry, start in zip(entries(template), initial, strict=True):
        path = entry.name.path
        if path:
            x = moments.get((entry.name.field, path))
            what = f"{entry.name.field} of {path}"
            arrays.append(put(what, x, entry.array, leaves.get(path)))
        else:
            x = scalars[_label(entry)].get(entry.name.field)
            arrays.append(start if x is None else jnp.asarray(x, start.dtype))
    return jax.tree.unflatten(jax.tree.structure(template), arrays)


def _label(entry: Entry) -> str:
    for part in entry.place:
        if part.startswith("group="):
            return urllib.parse.unquote(part.removeprefix("group="))
    return ""


def put(name: str, x: Any, like: Any, param: Any) -> jax.Array:
    """An array in the form of another, where its parameter is; None: zeros.

    Raises:
      ValueError: the other form cannot hold its numbers.
    """
    sharding = getattr(param, "sharding", None)
    if x is not None:
        _check_holds(name, x, np.dtype(like.dtype))
    # A copy: JAX may keep NumPy's memory, which is that of PyTorch, which writes to it.
    x = jnp.zeros(like.shape, like.dtype) if x is None else np.array(x)
    x = jnp.asarray(x, like.dtype)
    return x if sharding is None else jax.device_put(x, sharding)


def _check_holds(name: str, x: np.ndarray, dtype: np.dtype) -> None:
    """Raises where numbers would be cut to whole or real ones, or be infinite."""
    kinds = (jnp.bool_, np.integer, np.floating, np.complexfloating)
    old, new = (
        next(i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind))
        for d in (x.dtype, dtype)
    )
    is_lost = old > new
    if not is_lost and old == new > 1 and dtype.itemsize < x.dtype.itemsize:
        sizes = np.abs(x[np.isfinite(x)]).astype(np.float64)
        is_lost = bool(sizes.size and sizes.max() > float(jnp.finfo(dtype).max))
    if is_lost:
        raise ValueError(
            f"'{name}' must hold the tensor's numbers, which are {x.dtype} and do not "
            f"fit {dtype}; make the parameter {x.dtype} (float64 needs jax_enable_x64)."
        )


def _correction(b: float, count: int) -> float:
    return -math.expm1(count * math.log(b)) if b > 0 else 1.0 if count else 0.0


def _scalars_of(group: Group) -> dict[str, Any]:
    """By field, what a State records after `step` steps; nothing before the first."""
    if group.recipe is None or not group.step:
        return {}
    numbers, t = group.recipe.numbers, group.step
    found: dict[str, Any] = {"count": t, "step": t}
    found["applied_learning_rate"] = numbers["lr"]
    if "betas" not in numbers:
        return found
    b1, b2 = numbers["betas"]
    first, second = _correction(b1, t), _correction(b2, t)
    product = group.params[0].mu_product
    if product is not None:
        first = 1.0 - product
        found["correction_rest_mu"] = first - float(np.float32(first))
    found |= {"bias_correction_mu": first, "bias_correction_nu": second}
    found["max_correction"] = second
    if group.recipe.kind == "RAdam":
        found["eps"] = numbers["eps"] / math.sqrt(second) if second else numbers["eps"]
        found |= _radam(b2, t)
    return found


def _radam(b2: float, t: int) -> dict[str, float]:
    limit = (1 + b2) / (1 - b2)
    power = b2**t
    rho = limit - 2 * t * power / (1 - power)
    r = 0.0
    if rho > 5:
        r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    return {"rho": rho, "rectification": r}
