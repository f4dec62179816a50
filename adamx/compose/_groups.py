"""Parameter groups by path: another optimizer for the head than for the embedding.

    a leaf belongs to the first rule whose regular expression is found in its path

The work of routing is `optax.partition`'s: it gives each transformation the whole tree
with `MaskedNode` in the place of the others' leaves. Added here: rules instead of
labels, checks that no rule and no leaf is left over, parameters with more leaves than
the gradient has, errors that name the group, and a step.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from adamx import _checks, _tree
from adamx._steps import step_of, with_step
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    MaskedNode,
    PyTree,
)

DEFAULT = "default"


class GroupsState(NamedTuple):
    """State of `groups`.

    Attributes:
      inner_states: dict by group, the rule's regular expression or "default", of
        `optax.MaskedState`: the state of each transformation, made for a tree in which
        `MaskedNode` stands for the leaves of other groups.
    """

    inner_states: Any


class _Rules:
    """Which group a path belongs to: the first whose pattern is found in it."""

    def __init__(self, patterns: dict[str, re.Pattern[str]], has_default: bool) -> None:
        self.patterns = patterns
        self.has_default = has_default

    def group_of(self, name: str) -> str | None:
        for group, pattern in self.patterns.items():
            if pattern.search(name):
                return group
        return DEFAULT if self.has_default else None

    def labels(self, params: PyTree) -> PyTree:
        """The group of each leaf; raises where there is none."""
        flat, structure = jax.tree_util.tree_flatten_with_path(params)
        named = [_tree.path_name(path) for path, _ in flat]
        found = [self.group_of(name) for name in named]
        left_over = [n for n, group in zip(named, found, strict=True) if group is None]
        if left_over:
            rules = ", ".join(map(repr, self.patterns))
            raise ValueError(
                f"`rules` must match every parameter where there is no `default`, got "
                f"none for {_tree.some(left_over)}; the rules are {rules}. Add a rule, "
                "or a default: groups(rules, default=adamx.adamw(1e-3))."
            )
        return structure.unflatten(found)  # type: ignore[attr-defined]

    def check_used(self, params: PyTree) -> None:
        """Raises for the first rule that no leaf belongs to, as behind a misprint."""
        names = list(_tree.leaves_by_path(params))
        if not names:  # the placeholder of map_params; all of it masked
            return
        groups = {name: self.group_of(name) for name in names}
        for group, pattern in self.patterns.items():
            if group in groups.values():
                continue
            matched = [name for name in names if pattern.search(name)]
            if not matched:
                raise ValueError(
                    f"`rules` must each match a parameter, got {group!r}, which is "
                    "found in no path. The nearest paths are "
                    f"{_tree.nearest_paths(pattern.pattern, names)}; parts are joined "
                    "by '/'."
                )
            takers = dict.fromkeys(repr(groups[name]) for name in matched)
            raise ValueError(
                f"`rules` must each have a parameter of their own, got {group!r}, "
                f"whose {_tree.some(matched)} earlier rules take: "
                f"{', '.join(takers)}. The first match wins: put the narrower rule "
                "first."
            )


def _checked_rules(rules: Any, default: Any) -> tuple[_Rules, dict[str, Any]]:
    """Patterns and transformations by the name of their group."""
    if isinstance(rules, (str, bytes)) or not isinstance(rules, Sequence):
        raise TypeError(
            "`rules` must be a list of (regular expression, transformation), got "
            f"{_checks.describe_value(rules)}; e.g. [('embed', adamx.adamw(1e-4))]."
        )
    if not rules and default is None:
        raise ValueError(
            "`rules` must not be empty where there is no `default`, got []; add a "
            "rule, e.g. ('embed', adamx.adamw(1e-4)), or a default."
        )
    patterns: dict[str, re.Pattern[str]] = {}
    transformations: dict[str, Any] = {}
    for i, rule in enumerate(rules):
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or rule[0] is None:
            raise TypeError(
                f"`rules[{i}]` must be a pair (regular expression, transformation), "
                f"got {_checks.describe_value(rule)}; e.g. ('embed', adamx.freeze())."
            )
        pattern = _checks.check_pattern(f"rules[{i}][0]", rule[0])
        assert pattern is not None
        _checks.check_transformation(f"rules[{i}][1]", rule[1])
        name = _name(pattern)
        if name in patterns or (name == DEFAULT and default is not None):
            raise ValueError(
                f"`rules[{i}]` must have a text of its own, for it names the group, "
                f"got {name!r}, which is that of "
                + ("an earlier rule." if name in patterns else "the default group.")
                + " Join the two rules, or write the same in another way."
            )
        patterns[name], transformations[name] = pattern, rule[1]
    if default is not None:
        _checks.check_transformation("default", default)
        transformations[DEFAULT] = default
    return _Rules(patterns, default is not None), transformations


def _name(pattern: re.Pattern[str]) -> str:
    """The text of the rule, with flags that were given beside it: '(?i)embed'."""
    if re.compile(pattern.pattern).flags == pattern.flags:
        return pattern.pattern
    flags = "".join(x for x in "aimsx" if pattern.flags & getattr(re, x.upper()))
    return f"(?{flags}){pattern.pattern}"


def _noted(function: Any, group: str) -> Any:
    """The function, whose errors say which group they come from."""

    def call(*args: Any, **extra_args: Any) -> Any:
        try:
            return function(*args, **extra_args)
        except Exception as error:
            error.add_note(
                f"This was in the group {group!r} of adamx.groups. A state must be "
                "that of the same rules, in the same order, and of the same group."
            )
            raise

    return call


def groups(
    rules: Sequence[tuple[Any, GradientTransformation]],
    default: GradientTransformation | None = None,
) -> GradientTransformationExtraArgs:
    r"""Trains each parameter with the transformation of the first rule for its path.

        group(leaf) = the first rule with re.search(rule, "encoder/layers/0/kernel")

    A path has dict keys, list indices and field names, joined by '/'; the `.value` of
    Flax's boxes is no part of it. The expression may match anywhere in it, as with
    grep: 'bias' also takes 'debias/kernel'; write '(^|/)bias$' for what is meant, and
    '^...$' for a whole path. Per group may differ what a transformation decides: its
    rate, decay, algorithm, storage, or that nothing is trained (`freeze`).

    What needs all parameters at once stands before the groups. Here the norm is that of
    the whole gradient; inside a rule it would be the norm of its group:

        optax.chain(
            adamx.clip_by_global_norm(1.0),
            adamx.groups(
                [
                    (r"embed", adamx.adamw(1e-4, weight_decay=0.0)),
                    (r"^backbone/", adamx.freeze()),
                ],
                default=adamx.adamw(1e-3, mask=adamx.decay_mask()),
            ),
        )

    A frozen group's gradient is part of that norm; where it shall not be, stop it in
    the loss (`jax.lax.stop_gradient`), which also saves computing it.

    Args:
      rules: list of pairs (regular expression or compiled pattern, transformation). The
        first that is found in the path of a leaf has it.
      default: the transformation of leaves that no rule matches; None: there must be
        none.

    Returns:
      The transformation. State: `GroupsState`, the bytes of all groups together.
      `read(state).learning_rate` is a dict by group, whose names are the rules' texts
      and "default". Extra arguments go to all groups; those with the structure of the
      gradient are masked like it.

    Raises:
      TypeError: `rules` are no such list.
      ValueError: a text that is no regular expression; two rules with one text; no
        rules at all. At init: a rule that no leaf is left for, a leaf that nothing
        matches. At update: the state of other rules.

    >>> import adamx, jax.numpy as jnp
    >>> params = {"embed": jnp.ones(1), "head": {"kernel": jnp.ones(1)}}
    >>> tx = groups([("embed", adamx.freeze())], default=adamx.sgd(0.5))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates["embed"].tolist(), updates["head"]["kernel"].tolist()
    ([-0.0], [-0.5])
    """
    chosen, transformations = _checked_rules(rules, default)
    inner = optax.partition(
        {
            name: GradientTransformationExtraArgs(
                _noted(tx.init, name),
                _noted(optax.with_extra_args_support(tx).update, name),
            )
            for name, tx in transformations.items()
        },
        chosen.labels,
        mask_compatible_extra_args=True,
    )
    steps = {name: _noted(step_of(tx), name) for name, tx in transformations.items()}

    def init(params: PyTree) -> GroupsState:
        chosen.check_used(params)
        return GroupsState(inner.init(params).inner_states)

    def check(updates: PyTree, state: Any, params: PyTree | None) -> None:
        _checks.check_state(state, GroupsState, "groups")
        if set(state.inner_states) != set(transformations):
            raise ValueError(
                "`state` must have a part for each group, "
                f"{', '.join(map(repr, transformations))}, got "
                f"{', '.join(map(repr, state.inner_states)) or 'none'}. Have the rules "
                "changed? Make a new state (tx.init)."
            )
        if params is not None:
            _tree.check_like_params(updates, params)

    def update(
        updates: PyTree,
        state: GroupsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, GroupsState]:
        check(updates, state, params)
        params = None if params is None else _like(updates, params)
        held = optax.transforms.PartitionState(state.inner_states)
        new, after = inner.update(updates, held, params, **extra_args)
        return new, GroupsState(after.inner_states)

    def step(
        grads: PyTree, state: GroupsState, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, GroupsState]:
        check(grads, state, params)
        structure: Any = jax.tree.structure(grads)
        labels = chosen.labels(grads)
        whole, after = params, {}
        for name, run in steps.items():
            own = lambda tree, name=name: _masked(tree, labels, name)  # noqa: E731
            extra = {
                key: own(value) if jax.tree.structure(value) == structure else value
                for key, value in extra_args.items()
            }
            held = state.inner_states[name]
            below = own(_like(grads, params))
            new, inner_state = run(own(grads), held.inner_state, below, **extra)
            whole = _merged(whole, new, labels, name)
            after[name] = held._replace(inner_state=inner_state)
        return whole, GroupsState(after)

    return with_step(init, update, step)


def _like(updates: PyTree, params: PyTree) -> PyTree:
    """The parameters that have a gradient: a whole model has others, too."""
    structure: Any = jax.tree.structure(updates)
    return structure.unflatten(_tree.leaves_below(updates, params))


def _masked(tree: PyTree, labels: PyTree, group: str) -> PyTree:
    """MaskedNode in the place of the leaves of other groups."""
    return jax.tree.map(lambda g, x: x if g == group else MaskedNode(), labels, tree)


def _merged(whole: PyTree, part: PyTree, labels: PyTree, group: str) -> PyTree:
    """The whole tree with the leaves of one group from its part."""
    new = iter(jax.tree.leaves(part))
    flat, structure = jax.tree.flatten(labels, is_leaf=lambda x: x is None)
    below = structure.flatten_up_to(whole)  # type: ignore[attr-defined]
    rows = zip(flat, below, strict=True)
    return structure.unflatten(  # type: ignore[attr-defined]
        [next(new) if g == group else old for g, old in rows]
    )
