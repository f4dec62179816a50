"""STATE -> NUMBERS: what the optimizer did, read out of any nested state.

A State of this library answers `readings()` with the numbers that it recorded. `read`
finds such States wherever they sit (chain, named_chain, masked, partition,
inject_hyperparams, MultiSteps, a user's own dict) and gathers the answers. Only
recorded numbers are reported: what no State recorded reads as None.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx._measured import Diagnostics, joined, largest
from adamx._types import PyTree

# Containers that only hold other states: their field names carry no information.
_PLUMBING = (
    "inner_state",
    "inner_states",
    "inner_opt_state",
    "opt_state",
    "fast_state",  # optax.lookahead
    "base_optimizer_state",  # optax.contrib.schedule_free
)

Number = Any  # int or float; an array where the state is batched, a tracer inside jit
ByGroup = Any  # a Number, or dict[str, Number] by group


@runtime_checkable
class Readable(Protocol):
    """What a State implements to be seen by `read`."""

    def readings(self) -> dict[str, Any]:
        """Recorded numbers by kind: count, learning_rate, grad_norm, weight_decay.

        A dict by group in the place of a number is several numbers. A State with a
        true attribute `answers_for_inner` answers for the states that it holds too:
        nothing is looked for in it.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
    """What one optimizer state says about its last step.

    Attributes:
      count: steps taken (under `optax.MultiSteps`, updates, not micro-steps). Those
        that a guard around the stage skipped are not among them: see `unseen`. None
        where no stage counts.
      learning_rate: the rate last applied, in parameter units per step; before the
        first step, the rate that it will have. A float, or a dict by group where
        several learning-rate stages are found (as with optax.partition).
      grad_norm: global norm of the gradient as the norm-taking stage (clipping) saw it,
        before clipping; 0 before the first step. None where no stage computes it; a
        dict by group where several do, the outer one's of two that are nested.
      weight_decay: the decay rate last applied; a float, or a dict by group.
      skipped: steps skipped, as the outermost of nested stages counts them. None where
        no stage skips; a dict by group where several do.
      more: what else the stages recorded, by name: `update_rms`, `kept_fraction`,
        `trust_ratio_mean`, ... (see the State of each); a number, or a dict by group.
      switch_step: the last step (from 1) of the first phase of an optimizer that
        switches (`swats`), -1 while it is in it; None where nothing can switch. A dict
        by group where several can.
      diagnostics: what `adamx.diagnose` measured; None without it.
      unseen: steps that our guards skipped and `count` does not have: the step of
        training, by which a `History` goes, is `count + unseen`. Less than `skipped`
        where a guard is in one of several groups, since the others count on; more
        where two are nested. With a guard around accumulation, of micro-steps. None
        where nothing skips. No number of `scalars`.

    Values are Python numbers; arrays where the state is batched (vmap over seeds), and
    tracers where `read` is called inside jit.
    """

    count: Number | None = None
    learning_rate: ByGroup | None = None
    grad_norm: ByGroup | None = None
    weight_decay: ByGroup | None = None
    skipped: ByGroup | None = None
    more: Mapping[str, ByGroup] = dataclasses.field(default_factory=dict)
    switch_step: ByGroup | None = None
    diagnostics: Diagnostics | None = None
    unseen: Number | None = None

    def scalars(self, only: Sequence[str] | None = None) -> dict[str, float]:
        """A flat dict for any logger: 'count', 'learning_rate' or 'learning_rate/a'.

        Diagnostics are named by number and layer, 'r/p50/decoder/layer_0/kernel', and
        left out before they are measured.
        What was not recorded is left out; of a batched value, the mean is given. Inside
        jit the values are tracers, to be returned with the loss.

        Args:
          only: names without group or layer, ("learning_rate", "r/p50"): these and no
            others. None: all.

        Raises:
          TypeError, ValueError: `only` holds no names; where there are diagnostics, a
            name that neither they nor the rest of the reading have.
        """
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        measured = named.pop("diagnostics")
        del named["unseen"]
        named |= named.pop("more")
        if only is not None:
            self._check_only(only, named)
        flat: dict[str, float] = {}
        for name, value in named.items():
            if name == "more" or not (only is None or name in only):
                continue
            entries = value if isinstance(value, Mapping) else {"": value}
            for group, number in entries.items():
                if number is not None:
                    flat[f"{name}/{group}" if group else name] = _mean(number)
        if measured is not None and _is_measured(measured.count):
            for layer, numbers in measured.layers.items():
                for kind, number in numbers.items():
                    if only is None or kind in only:
                        flat[f"{kind}/{layer}"] = _mean(number)
        return flat

    def _check_only(self, only: Any, named: Mapping[str, Any]) -> None:
        is_several = isinstance(only, (tuple, list, set, frozenset))
        if not is_several or not all(isinstance(name, str) for name in only):
            raise TypeError(
                "`only` must be a list of names, got "
                f"{_checks.describe_value(only)}; e.g. ('learning_rate', 'r/p50')."
            )
        if self.diagnostics is None:  # not every reading has them, see `History`
            return
        known = [*named, *self.diagnostics._numbers()]
        unknown = [name for name in only if name not in known]
        if unknown:
            raise ValueError(
                f"`only` must name numbers of the reading, got {unknown[0]!r}; it has "
                f"{', '.join(known)}. Groups and layers are not part of a name."
            )


def read(state: PyTree) -> Reading:
    """What the optimizer did in its last step, from any state that holds ours.

    Args:
      state: an optimizer state, however nested; a Flax `nnx.Optimizer` or `TrainState`
        will do. Foreign states are passed over.

    Returns:
      A `Reading`; all its fields are None where nothing in `state` is readable.

    >>> import adamx, jax.numpy as jnp, optax
    >>> tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
    >>> params = {"w": jnp.ones(4)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"w": jnp.full(4, 3.0)}, state, params)
    >>> reading = adamx.read(state)
    >>> reading.count, round(reading.learning_rate, 6), reading.grad_norm
    (1, 0.001, 6.0)
    """
    found: dict[str, dict[str, Any]] = {}
    measured: dict[Any, Diagnostics] = {}
    for path, node in readable_nodes(state_tree(state)):
        for kind, value in node.readings().items():
            if isinstance(value, Diagnostics):
                unseen = _sum(_around(path, found.get("skipped")))
                measured[path] = _on_host(value, unseen)
                continue
            groups = value if isinstance(value, Mapping) else {None: value}
            for group, number in groups.items():
                if number is not None:
                    key = () if group is None else (jax.tree_util.DictKey(group),)
                    found.setdefault(kind, {})[path + key] = to_host(number)
    known = {field.name for field in dataclasses.fields(Reading)}
    count = largest(found.get("count"))
    return Reading(
        more={k: _by_group(v) for k, v in found.items() if k not in known},
        count=count,
        learning_rate=_by_group(found.get("learning_rate")),
        grad_norm=_by_group(_outermost(found.get("grad_norm"))),
        weight_decay=_by_group(found.get("weight_decay")),
        skipped=_by_group(_outermost(found.get("skipped"))),
        switch_step=_by_group(found.get("switch_step")),
        diagnostics=joined(list(measured.values()), group_labels(list(measured))),
        unseen=_unseen(found, count),
    )


def recorded_kinds(state: PyTree) -> set[str]:
    """The kinds of numbers that the States in `state` answer with."""
    nodes = readable_nodes(state)
    return {k for _, node in nodes for k, v in node.readings().items() if v is not None}


def state_tree(state: PyTree) -> PyTree:
    """What holds a state as a tree of it: flax's nnx.Optimizer is none before 0.11."""
    if jax.tree_util.all_leaves([state]):
        return getattr(state, "opt_state", state)
    return state


def readable_nodes(
    node: PyTree, path: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, Any]]:
    """All readable States from `node` down, with their paths; outer ones first."""
    if isinstance(node, Readable):
        yield path, node
        if getattr(node, "answers_for_inner", False):
            return
    children = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node and isinstance(x, Readable)
    )[0]
    for below, child in children:
        if child is not node and isinstance(child, Readable):
            yield from readable_nodes(child, path + below)


def unboxed(value: Any) -> Any:
    """The array in a box of one (nnx.Variable), or the value itself."""
    leaves = jax.tree.leaves(value)
    value = leaves[0] if len(leaves) == 1 else value
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return value
    return getattr(value, "value", value)  # flax 0.10: a Variable is a leaf


def to_host(value: Any) -> Any:
    """A recorded number as Python has it; arrays and tracers stay what they are."""
    value = unboxed(value)
    if isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        return value
    array = np.asarray(value)
    if array.ndim:
        return array
    # 0.1, not 0.10000000149011612: the shortest number that is the same float32.
    return float(str(array)) if array.dtype == np.float32 else array.item()


def _is_measured(count: Any) -> bool:
    return isinstance(count, jax.core.Tracer) or bool(np.max(np.asarray(count)) > 0)


def _mean(number: Any) -> Any:
    if isinstance(number, jax.core.Tracer):
        return jnp.mean(number)
    return float(np.mean(np.asarray(number)))


def _unseen(found: Mapping[str, Mapping[Any, Any]], count: Any) -> Any:
    """By how much the furthest of the steps that a stage has been through, is above.

    A stage has been through the steps that it counts, and those that the guards around
    it skipped, each of which does not see what the ones around itself skip.
    """
    skipped, own = found.get("skipped", {}), found.get("unseen", {})
    counts = found.get("count", {})
    if not counts or not (skipped or own):
        return None
    if isinstance(count, jax.ShapeDtypeStruct):
        return count
    been = {}
    for path, value in counts.items():
        hidden = [own.get(path), *_around(path, skipped)]
        been[path] = _sum([value, *(x for x in hidden if x is not None)])
    if any(value is None for value in been.values()):
        return None
    return largest(been) - count


def _sum(values: Sequence[Any]) -> Any:
    """Of numbers of nested States: a batch within a batch has its axes behind.

    None of none, and of batches that are not of one another.
    """
    if not values:
        return None
    shape = max((np.shape(x) for x in values), key=len)
    total: Any = 0
    for x in values:
        missing = len(shape) - np.ndim(x) if np.ndim(x) else 0
        if np.shape(x) != shape[: np.ndim(x)]:
            return None
        total = total + (x.reshape(np.shape(x) + (1,) * missing) if missing else x)
    return total


def _around(path: Any, values: Mapping[Any, Any] | None) -> list[Any]:
    """Of the States that hold the one at `path`, outer ones first."""
    return [v for k, v in (values or {}).items() if path[: len(k)] == k != path]


def _on_host(measured: Diagnostics, unseen: Any) -> Diagnostics:
    layers = {
        layer: {name: to_host(number) for name, number in numbers.items()}
        for layer, numbers in measured.layers.items()
    }
    seen = None if measured.seen is None else to_host(measured.seen)
    return Diagnostics(to_host(measured.count), layers, unseen, seen)


def _outermost(values: Mapping[Any, Any] | None) -> Mapping[Any, Any] | None:
    """Without what a State says that is inside another which says the same."""
    return values and {
        path: value
        for path, value in values.items()
        if not any(path[:i] in values for i in range(len(path)))
    }


def _by_group(values: Mapping[Any, Any] | None) -> Any:
    if not values:
        return None
    if len(values) == 1:
        return next(iter(values.values()))
    return dict(zip(group_labels(list(values)), values.values(), strict=True))


def group_labels(paths: Sequence[Any]) -> list[str]:
    """What groups at these key paths are called in a Reading."""
    # Names tell groups apart (as labels of optax.partition do), else positions.
    named = [group_parts(path) for path in paths]
    labels = ["/".join(p for p in parts if not p.isdigit()) for parts in named]
    if len(set(labels)) < len(labels) or "" in labels:
        labels = ["/".join(parts) for parts in named]
    return labels


def group_parts(path: Any) -> list[str]:
    """The parts of a key path that tell groups apart: what labels are made of."""
    names = [_tree.path_name((entry,)) for entry in path]
    return [name for name in names if name not in _PLUMBING]
