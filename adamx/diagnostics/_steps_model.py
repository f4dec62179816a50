"""What an optimizer does to a small change of the gradient, read out of its state.

Near a point, with rates, denominators and decays as they are now, a step is a linear
filter of the gradient. A change of it that alternates in sign, which is where too large
a step shows first, passes a filter as a factor, its gain:

    m <- b m + (1 - b) g               1 / (1 - b) times smaller: (1 - b) / (1 + b)
    u = b m + (1 - b) g (Nesterov)     (1 - b) (1 + 2 b) / (1 + b)
    trace <- g + b trace               1 / (1 + b)

On the loss h p^2 / 2 the step p <- p - rate u / d is stable while

    rate * gain * h / d < 2

For the mean that is h / d < (2 + 2 b) / ((1 - b) rate), and 2 / rate for b = 0.

Which parameter belongs to which part of a state is read from the state alone: a part
(`MaskedState`) has the parameters whose moments it holds.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamx import _tree, moments
from adamx._types import PyTree
from adamx.compose import FreezeState, GroupsState, StagesState
from adamx.compose._belongings import nodes
from adamx.compose._groups import DEFAULT
from adamx.optimizers import ScaleByLambTrustRatioState, ScaleByMomentumState
from adamx.reading import Readable, group_labels, unboxed

Path = tuple[Any, ...]

# Fields in which a State keeps moments; who has them and cannot be read is refused.
_MOMENTS = ("mu", "nu", "trace")


class Motion(NamedTuple):
    """How one parameter moves.

    Attributes:
      label: of the rates that it has; "" where all parameters have one.
      rate: their product, a scalar.
      gain: of its filters, a scalar.
      denominator: array of the parameter's shape; None: it is divided by nothing.
      stages: the places in the state of what makes its rate and its gain: parameters
        with the same move alike.
    """

    label: str
    rate: jax.Array
    gain: jax.Array
    denominator: jax.Array | None
    stages: tuple[Path, ...]


def at_work(state: PyTree) -> PyTree:
    """The state with each `stages` replaced by the state of its last step's stage."""

    def leaf(node: Any) -> Any:
        if not isinstance(node, StagesState):
            return node
        stage = unboxed(node.stage)
        if isinstance(stage, jax.core.Tracer) or jnp.ndim(stage):
            raise TypeError(
                "`state` must say which of its stages is at work, got a traced or "
                "batched `stage`; call sharpness outside jit and vmap, or pass the "
                "state of one stage, state.inner_states[i]."
            )
        return at_work(node.inner_states[int(stage)])

    return jax.tree.map(leaf, state, is_leaf=lambda x: isinstance(x, StagesState))


def motions(state: PyTree, params: PyTree, nesterov: bool) -> dict[str, Motion]:
    """By path, how each parameter moves; one that does not is left out.

    Raises:
      ValueError: nothing of the state can be read, or parts of it cannot.
    """
    names = list(_tree.leaves_by_path(params))
    parts = _Parts(state, names)
    if parts.moment_names and parts.moment_names.isdisjoint(names):
        raise ValueError(
            "`state` must be that of `params`, got moments of other parameters: the "
            f"state has '{min(parts.moment_names)}', the parameters '{names[0]}'. Pass "
            "the state that belongs to these parameters."
        )
    rates: dict[str, list[tuple[Path, Any]]] = {name: [] for name in names}
    gains: dict[str, list[tuple[Path, Any]]] = {name: [] for name in names}
    divisors: dict[str, jax.Array] = {}
    for path, node in parts.nodes:
        own = parts.members(path)
        rate = _rate(node)
        if rate is not None:
            for name in own:
                rates[name].append((path, rate))
        if isinstance(node, moments.Estimating):
            found = moments.estimates_by_path(node.estimates(), params)
            for name, (_, _, denominator) in found.items():
                divisors[name] = _divisor(node, denominator)
                gains[name].append((path, _gain(node, nesterov)))
        elif isinstance(node, ScaleByMomentumState):
            for name in moments.moment_paths(node.trace):
                if name in gains:
                    gain = _sum_gain(node.trace_decay, nesterov)
                    gains[name].append((path, gain))
        elif isinstance(node, ScaleByLambTrustRatioState):
            for name in own:  # a factor that no State records
                gains[name].append((path, jnp.full((), jnp.nan)))
    moving = [name for name in names if rates[name]]
    if not moving:
        raise ValueError(
            "`state` must record a learning rate, as those of adamx's optimizers do, "
            f"got {type(state).__name__}, in which none is found. Use e.g. adamx.adamw "
            "in the place of optax.adamw, and pass the state of the whole chain."
        )
    labels = _labels({name: [path for path, _ in rates[name]] for name in moving})
    return {
        name: Motion(
            labels[name],
            _product([rate for _, rate in rates[name]]),
            _product([gain for _, gain in gains[name]]),
            divisors.get(name),
            tuple(path for path, _ in (*rates[name], *gains[name])),
        )
        for name in moving
    }


def _labels(paths: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """By parameter, the names of its rates, as `read` names them."""
    stages = list(dict.fromkeys(path for own in paths.values() for path in own))
    if len(stages) == 1:
        return dict.fromkeys(paths, "")
    known = dict(zip(stages, group_labels(stages), strict=True))
    return {name: " * ".join(known[p] for p in own) for name, own in paths.items()}


def _product(scalars: Sequence[Any]) -> jax.Array:
    total = jnp.ones((), jnp.float32)
    for scalar in scalars:
        scalar = jnp.asarray(unboxed(scalar))
        dtype = jnp.promote_types(total.dtype, scalar.dtype)
        total = total.astype(dtype) * scalar.astype(dtype)
    return total


def _rate(node: Any) -> Any:
    rate = node.readings().get("learning_rate") if isinstance(node, Readable) else None
    return None if isinstance(rate, Mapping) else rate


# ----------------------------------------------------------------- one optimizer


def _gain(state: Any, nesterov: bool) -> jax.Array:
    """Of the mean that is divided: how much of an alternating gradient is in it."""
    b1 = getattr(state, "b1", None)
    if b1 is None:  # RMSProp: the gradient itself
        return jnp.ones((), jnp.float32)
    b1 = unboxed(b1)
    if hasattr(state, "extrapolation"):  # Schedule-Free: y moves by (1 - b1) of z
        return 1 - b1
    gain = (1 - b1) / (1 + b1)
    if nesterov or getattr(state, "momentum_decay", None) is not None:
        gain = gain * (1 + 2 * b1)
    if hasattr(state, "alpha"):  # AdEMAMix: a second mean
        b3 = unboxed(state.b3)
        gain = gain + unboxed(state.alpha) * (1 - b3) / (1 + b3)
    if hasattr(state, "switch_step") and hasattr(state, "momentum"):
        behind = unboxed(state.switch_step) >= 0
        gain = jnp.where(behind, _sum_gain(state.momentum, False), gain)
    return gain


def _sum_gain(decay: Any, nesterov: bool) -> jax.Array:
    decay = unboxed(decay)
    return (1 + 2 * decay * nesterov) / (1 + decay)


def _divisor(state: Any, denominator: jax.Array) -> jax.Array:
    """What the step divides by, where that is not the estimate's denominator alone."""
    one = jnp.ones((), denominator.dtype)
    if hasattr(state, "switch_step"):  # SGD's phase of swats and adam_to_sgd
        return jnp.where(unboxed(state.switch_step) >= 0, one, denominator)
    if hasattr(state, "upper_bound"):  # AdaBound: 1 / d within bounds
        low, high = unboxed(state.lower_bound), unboxed(state.upper_bound)
        return 1 / jnp.clip(1 / denominator, low, high)
    if hasattr(state, "rectification"):  # RAdam: a factor, or nothing is divided
        factor = unboxed(state.rectification)
        return jnp.where(factor > 0, denominator / jnp.where(factor > 0, factor, 1), 1)
    return denominator


# ------------------------------------------------------------- parts of the state


class _Parts:
    """The nodes of a state that matter here, and the parameters that each is for."""

    def __init__(self, state: PyTree, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.nodes = list(nodes(state, _is_wanted))
        for path, node in self.nodes:
            _check_readable(path, node)
        self.moment_names = self._owned(())
        self._branches = [p for p, x in self.nodes if isinstance(x, optax.MaskedState)]
        self._groups = [p for p, x in self.nodes if isinstance(x, GroupsState)]

    def members(self, path: Path) -> list[str]:
        """The parameters that what stands at a path is for."""
        around = [b for b in self._branches if b == path[: len(b)]]
        return [n for n in self.names if all(self._has(b, n) for b in around)]

    def _has(self, branch: Path, name: str) -> bool:
        owned = self._owned(branch)
        if owned:
            return name in owned
        # It holds no moments (SGD, freeze): it has what no sibling holds any of.
        siblings = [b for b in self._branches if b[:-1] == branch[:-1]]
        if any(name in self._owned(b) for b in siblings):
            return False
        empty = [b for b in siblings if not self._owned(b)]
        if branch[:-2] in self._groups:
            empty = _by_rule(empty, name)
        if len(empty) > 1 and any(map(self._has_rate, empty)):
            raise ValueError(
                f"`state` must tell which part the parameter '{name}' belongs to, got "
                f"{len(empty)} parts without moments. Use adamx.groups, whose state "
                "has the rules in it, in the place of optax.partition or optax.masked."
            )
        return branch in empty

    def _owned(self, branch: Path) -> set[str]:
        owned: set[str] = set()
        for path, node in self.nodes:
            if path[: len(branch)] != branch:
                continue
            if isinstance(node, moments.Estimating):
                owned |= set(moments.moment_paths(node.estimates().moments[0]))
            elif isinstance(node, ScaleByMomentumState):
                owned |= set(moments.moment_paths(node.trace))
        return owned

    def _has_rate(self, branch: Path) -> bool:
        below = (x for path, x in self.nodes if path[: len(branch)] == branch)
        return any(_rate(node) is not None for node in below)


def _by_rule(branches: Sequence[Path], name: str) -> list[Path]:
    """Those whose rule in `groups` has the parameter: its text is the branch's key."""
    rules = {branch: str(branch[-1].key) for branch in branches}
    found = [
        b for b, rule in rules.items() if rule != DEFAULT and re.search(rule, name)
    ]
    return found or [b for b, rule in rules.items() if rule == DEFAULT]


def _is_wanted(node: Any) -> bool:
    kinds = (
        optax.MaskedState,
        GroupsState,
        FreezeState,
        ScaleByLambTrustRatioState,
        ScaleByMomentumState,
        moments.Estimating,
    )
    return isinstance(node, kinds) or _rate(node) is not None or _has_moments(node)


def _has_moments(node: Any) -> bool:
    fields = getattr(node, "_fields", ())
    return any(f in fields and getattr(node, f) is not None for f in _MOMENTS)


def _check_readable(path: Path, node: Any) -> None:
    if isinstance(node, (moments.Estimating, ScaleByMomentumState)):
        return
    if _has_moments(node):
        name = f"{type(node).__module__}.{type(node).__qualname__}"
        where = f" at '{_tree.path_name(path)}'" if path else ""
        raise ValueError(
            f"`state` must hold moments that say how they are read, got a {name}"
            f"{where}. Supported: adamx's optimizers that divide by a running size "
            "(adam, adamw, amsgrad, rmsprop, ...), sgd and momentum. Use adamx.adamw "
            "in the place of optax.adamw; a step by signs (lion) has no threshold."
        )
