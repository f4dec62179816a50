"""Which part of a state belongs to which parameter, and what is recorded for it.

The arrays of a parameter are found as `optax.tree.map_params` finds them: init is given
a placeholder for the parameters, and wherever that stands in the state, a tree like the
parameters will. No shape or structure is guessed at, so that a count is never taken for
the moment of a scalar parameter; `MaskedNode` stands for what belongs to other groups.

Membership follows: a branch (`MaskedState`, in `groups`, `optax.partition` and
`optax.masked`) that holds such trees has the parameters with an array in them. One that
holds none (SGD, `freeze`) has what is left, where only one such branch can have it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import optax

from adamx import _tree
from adamx._packed import unpacked
from adamx._types import GradientTransformation, MaskedNode, PyTree
from adamx.compose._groups import DEFAULT, GroupsState
from adamx.reading import Readable, to_host

Path = tuple[Any, ...]


class Belonging(NamedTuple):
    """One array of a state.

    Attributes:
      owner: name of the parameter that it belongs to; None: shared.
      field: name of the moment, "mu"; "" where it is shared.
      is_scale: whether it is a scale of an encoded moment, not its codes.
    """

    owner: str | None
    field: str
    is_scale: bool


_SHARED = Belonging(None, "", False)


class Branch(NamedTuple):
    """One `MaskedState`, with its place in the state.

    Attributes:
      path: of the node.
      name: of the group; None for `optax.masked`, whose branch has none.
      members: names of the parameters that own arrays below it.
      is_complete: whether `members` are all that it has: it holds trees like the
        parameters, not only inside branches of its own.
    """

    path: Path
    name: str | None
    members: frozenset[str]
    is_complete: bool


def nodes(
    tree: PyTree, is_wanted: Callable[[Any], bool], path: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """All nodes of a kind from `tree` down, with their paths; outer ones first."""
    if is_wanted(tree):
        yield path, tree
    children = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree and is_wanted(x)
    )[0]
    for below, child in children:
        if child is not tree and is_wanted(child):
            yield from nodes(child, is_wanted, path + below)


def placeholder() -> Any:
    """What `optax.tree.map_params` gives to init in the place of the parameters."""
    seen = []

    def init(params: Any) -> Any:
        seen.append(params)
        return params

    optax.tree.map_params(init, lambda x: x, None)
    return seen[0]


class Belongings:
    """The arrays of a state by parameter; the parameters by branch.

    Attributes:
      state: the state, abstract: as `jax.eval_shape(tx.init, params)` gives it, but
        with arrays that `bucketed` puts together told apart.
      arrays: a `Belonging` for each leaf of it.
      is_known: whether arrays could be told apart; if not, all count as shared.
    """

    def __init__(self, tx: GradientTransformation, params: PyTree) -> None:
        self.names = list(_tree.leaves_by_path(params))
        self.state = unpacked(jax.eval_shape(tx.init, params))
        paths = jax.tree_util.tree_flatten_with_path(self.state)[0]
        self._paths = [path for path, _ in paths]
        self.arrays = [_SHARED] * len(paths)
        self.is_known = True
        self._trees: list[Path] = []  # of everything that is like the parameters
        try:
            self._find(tx, params)
        # Whatever an init of another library raises that expects arrays.
        except Exception:
            self.is_known = False
        self.branches = self._find_branches()

    def _find(self, tx: GradientTransformation, params: PyTree) -> None:
        marker = placeholder()
        is_marker = lambda x: isinstance(x, type(marker))  # noqa: E731
        marked = tx.init(marker)
        flat, structure = jax.tree_util.tree_flatten_with_path(marked, is_marker)
        below = structure.flatten_up_to(self.state)  # type: ignore[attr-defined]
        labels = jax.tree_util.tree_map_with_path(
            lambda path, _: _tree.path_name(path), params
        )
        found: list[Belonging] = []
        for (path, mark), part in zip(flat, below, strict=True):
            if is_marker(mark):
                self._trees.append(path)
                found += _owned(path, part, labels)
            else:
                found += [_SHARED] * len(jax.tree.leaves(part))
        if len(found) == len(self.arrays):
            self.arrays = found

    def _find_branches(self) -> list[Branch]:
        is_branch = lambda x: isinstance(x, optax.MaskedState)  # noqa: E731
        paths = [path for path, _ in nodes(self.state, is_branch)]
        return [
            Branch(path, _group_name(path), *self._members(path, paths))
            for path in paths
        ]

    def _members(self, path: Path, branches: list[Path]) -> tuple[frozenset[str], bool]:
        owners = {
            array.owner
            for at, array in zip(self._paths, self.arrays, strict=True)
            if _is_below(at, path) and array.owner is not None
        }
        inner = [b for b in branches if b != path and _is_below(b, path)]
        is_complete = any(
            _is_below(tree, path) and not any(_is_below(tree, b) for b in inner)
            for tree in self._trees
        )
        return frozenset(owners), is_complete

    # -------------------------------------------------------------------- membership

    def has(self, branch: Branch, name: str) -> bool | None:
        """Whether a parameter is in a branch; None where that cannot be known."""
        if not self.is_known:
            return None
        if name in branch.members:
            return True
        outer = self._enclosing(branch.path)
        if outer is not None and not (is_in := self.has(outer, name)):
            return is_in
        if branch.is_complete:
            return False
        if branch.name is None:
            return None
        siblings = [b for b in self.branches if b.path[:-1] == branch.path[:-1]]
        if any(name in b.members for b in siblings):
            return False
        candidates = self._by_rule([b for b in siblings if not b.is_complete], name)
        if branch not in candidates:
            return False
        return True if len(candidates) == 1 else None

    def _by_rule(self, candidates: list[Branch], name: str) -> list[Branch]:
        """Those whose rule has the parameter, where they are those of `groups`.

        Which rule came first is no longer known: a state's dict is sorted.
        """
        parents = {path for path, _ in nodes(self.state, _is_groups)}
        if not candidates or candidates[0].path[:-2] not in parents:
            return candidates
        matching = [b for b in candidates if re.search(str(b.name), name)]
        return matching or [b for b in candidates if b.name == DEFAULT]

    def _enclosing(self, path: Path) -> Branch | None:
        """The innermost branch around what stands at a path."""
        around = [
            b for b in self.branches if b.path != path and _is_below(path, b.path)
        ]
        return max(around, key=lambda b: len(b.path), default=None)

    def group(self, name: str) -> str | None:
        """The name of a parameter's group, "" where there is none; None: not known.

        Groups within groups, and behind one another, are joined by ', '.
        """
        found = []
        for branch in self.branches:
            is_in = self.has(branch, name) if branch.name is not None else False
            if is_in is None:
                return None
            if is_in:
                found.append(str(branch.name))
        return ", ".join(found)

    def rates(self, state: PyTree, name: str) -> tuple[Any, ...] | None:
        """What the stages in a parameter's branches recorded; None: not known."""
        found = []
        is_readable = lambda x: isinstance(x, Readable)  # noqa: E731
        ours, given = (nodes(s, is_readable) for s in (self.state, state))
        for (path, _), (_, node) in zip(ours, given, strict=True):
            rate = node.readings().get("learning_rate")
            if rate is None:
                continue
            branch = self._enclosing(path)
            is_in = True if branch is None else self.has(branch, name)
            if is_in is None:
                return None
            if is_in:
                found.append(to_host(rate))
        return tuple(found)


def _is_groups(node: Any) -> bool:
    return isinstance(node, GroupsState)


def _is_below(path: Path, root: Path) -> bool:
    return path[: len(root)] == root


def _group_name(path: Path) -> str | None:
    if len(path) < 2 or getattr(path[-2], "name", None) != "inner_states":
        return None
    return str(getattr(path[-1], "key", path[-1]))


def _owned(path: Path, part: PyTree, labels: PyTree) -> list[Belonging]:
    """A belonging for each leaf of a tree like the parameters."""
    is_masked = lambda x: isinstance(x, MaskedNode)  # noqa: E731
    leaves, structure = jax.tree.flatten(part, is_leaf=is_masked)
    below: Sequence[Any] = structure.flatten_up_to(labels)  # type: ignore[attr-defined]
    fields = [str(e.name) for e in path if hasattr(e, "name")]
    is_scale = "scales" in fields[-1:]
    if fields[-1:] in (["codes"], ["scales"]):
        fields.pop()
    field = fields[-1] if fields else ""
    return [
        Belonging(label if isinstance(label, str) else None, field, is_scale)
        for leaf, label in zip(leaves, below, strict=True)
        if not is_masked(leaf)
    ]
