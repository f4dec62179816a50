"""Names of a state's arrays, and the way back: the flat format.

    kind/field                          scale_by_adam/count
    kind/field/path                     scale_by_adam/mu/decoder/layer_0/kernel
    kind#2/field...                     clip_by_global_norm#2/grad_norm
    kind/field@group=a, @stage=0        scale_by_adam/count@group=default

Format 1. What identifies an array is what it is and whose it is, not where in a chain
it stands:

    kind    the State's type: ScaleByAdamState is scale_by_adam. What has no State type
            is `state`.
    #2      the second of a kind within one place, in the order of the tree, outermost
            first.
    field   its field; dots where that has parts: mu.codes, mu.scales.0, mu.key, mu.step
            of an encoded moment, statistics.zscore, hyperparams.learning_rate.
    path    the parameter's path, where the field is a tree like the parameters.
    @...    what multiplies states, outermost first: a label of `groups` or
            `optax.partition` (with %-escapes), a stage of `stages`. Groups share no
            parameters: what has a path has no group in its name.

Chains, masks, `guard`, `diagnose`, `accumulate`, `with_hyperparams`, ... add names of
their own, and change no other.
"""

import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._packed import packed_like, unpacked
from adamx._types import GradientTransformation, PyTree
from adamx.moments import Encoded
from adamx.reading import state_tree, unboxed

FORMAT = 1

# Fields with a number by argument: no parameter's path is below them.
_BY_ARGUMENT = ("hyperparams", "scheduled", "hyperparams_states")
_GRAMMAR = re.compile(
    r"(?P<kind>[^/@]+)/(?P<field>[^/@]+)(?:/(?P<path>.*?))?"
    r"(?P<place>(?:@(?:group|stage)=[^/@]*)*)"
)
# What a wrapper wraps, where that is no State (a bare array, a tree of them).
_INNER = re.compile(r"inner_.*states?")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Name(NamedTuple):
    """The name of an array of a state: see the module."""

    kind: str
    field: str
    path: str
    place: tuple[str, ...]

    def __str__(self) -> str:
        parts = (self.kind, self.field, *([self.path] if self.path else []))
        return "/".join(parts) + "".join(f"@{part}" for part in self.place)


class Entry(NamedTuple):
    """An array of a state, its name, and the place that its State stands in."""

    name: Name
    place: tuple[str, ...]
    array: Any


def parsed(text: str) -> Name | None:
    """The name that a text is, or None."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        return None
    place = tuple(part for part in match["place"].split("@") if part)
    return Name(match["kind"], match["field"], match["path"] or "", place)


def to_flat(state: PyTree) -> dict[str, jax.Array]:
    """The arrays of an optimizer state by stable names: what to save of it.

        scale_by_adam/mu/decoder/layer_0/kernel

    A name says what an array is and which parameter it belongs to, and not where in a
    chain it stands: a clip that is inserted, `guard`, `diagnose`, `groups` around it
    change no name. Twins are told apart by #2, @group=..., @stage=...; the rule in full
    is in `adamx.interop._names` (format 1).

    Args:
      state: of any transformation, ours or Optax's; an `nnx.Optimizer` or `TrainState`
        will do.

    Returns:
      By name, the arrays themselves, not copied, in the tree's order. The way back is
      `from_flat` for the same chain, `migrate` for another one. Static parts, such as
      the names of layers in `DiagnoseState`, are not in it: `tx.init` makes them.

    Raises:
      ValueError: two arrays with one name (parameters "a/b" and "a": {"b"}).

    >>> import adamx, jax.numpy as jnp
    >>> state = adamx.guard(adamx.adam(1e-3)).init({"kernel": jnp.zeros(3)})
    >>> list(to_flat(state))[:3]
    ['scale_by_adam/count', 'scale_by_adam/mu/kernel', 'scale_by_adam/nu/kernel']
    """
    flat: dict[str, jax.Array] = {}
    for entry in entries(state):
        name = str(entry.name)
        if name in flat:
            raise ValueError(
                f"two arrays of the state have the name '{name}': paths of parameters "
                "must differ when they are joined by '/'; rename one of the two."
            )
        flat[name] = entry.array
    return flat


def from_flat(
    flat: Mapping[str, Any], tx: GradientTransformation, params: PyTree
) -> PyTree:
    """The state of a transformation from its named arrays: the inverse of `to_flat`.

    Strict: every array that `tx.init(params)` has must be there, in its shape and
    dtype, and no other. Where something has changed, use `migrate`.

    Args:
      flat: arrays by name, as `to_flat` gives them; NumPy's will do.
      tx: the transformation that the state is of.
      params: its parameters, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      The state, with the bits that were saved. Arrays of JAX stay where they are and
      are not copied; others go to the default device.

    Raises:
      TypeError: `flat` is no mapping, `tx` no transformation.
      ValueError: lists names that are missing, unknown, of another shape or dtype.

    >>> import adamx, jax.numpy as jnp
    >>> tx, params = adamx.lion(1e-4), {"kernel": jnp.zeros(3)}
    >>> state = from_flat(to_flat(tx.init(params)), tx, params)
    >>> state[0].mu["kernel"].shape
    (3,)
    """
    _checks.check_transformation("tx", tx)
    check_flat("flat", flat)
    template = jax.eval_shape(tx.init, params)
    wanted = {str(e.name): e.array for e in entries(template)}
    missing = [name for name in wanted if name not in flat]
    extra = [name for name in flat if name not in wanted]
    unlike = [
        f"'{name}' must be {form(like)}, got {form(flat[name])}"
        for name, like in wanted.items()
        if name in flat and form(flat[name]) != form(like)
    ]
    parts = [f"missing: {_tree.some(missing)}"] if missing else []
    parts += [f"unknown: {_tree.some(extra)}"] if extra else []
    parts += [
        "; ".join(unlike[:3] + [f"and {len(unlike) - 3} more"] * (len(unlike) > 3))
    ]
    if any(parts):
        raise ValueError(
            "`flat` must hold the arrays of tx.init(params); "
            f"{'; '.join(filter(None, parts))}. Pass the transformation and the "
            "parameters that it was saved with, or use adamx.interop.migrate, which "
            "loads it into a changed chain."
        )
    arrays = [as_array(flat[name]) for name in wanted]
    return rebuilt(template, arrays)


def check_flat(name: str, flat: Any) -> None:
    """Raises TypeError unless it is a mapping from names to arrays."""
    if not isinstance(flat, Mapping) or not all(isinstance(k, str) for k in flat):
        raise TypeError(
            f"`{name}` must be a dict of arrays by name, got "
            f"{_checks.describe_value(flat)}; make it with "
            "adamx.interop.to_flat(state)."
        )


def form(x: Any) -> str:
    """float32[2,3], of an array or of its shape."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return f"{type(x).__name__} {x!r}"[:60]
    return f"{dtype}[{','.join(map(str, x.shape))}]"


def as_array(x: Any) -> jax.Array:
    """A JAX array: itself, or a copy of another kind of array."""
    return x if isinstance(x, jax.Array) else jnp.array(x)


# ------------------------------------------------------------------------- the walk


def entries(state: PyTree) -> list[Entry]:
    """All arrays of a state with their names, in the order of its leaves.

    Those that `bucketed` has put together are told apart.
    """
    state = state_tree(state)
    state = unpacked(getattr(state, "opt_state", state))
    return list(_Walk().states(state, ()))


def rebuilt(like: PyTree, arrays: Sequence[Any]) -> PyTree:
    """A state of the form of another, of arrays in the order of `entries`."""
    structure = jax.tree.structure(unpacked(like))
    return packed_like(jax.tree.unflatten(structure, arrays), like)


class _Walk:
    """One walk over a state; it counts the States of a kind within a place."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}

    def _numbered(self, kind: str, place: tuple[str, ...]) -> str:
        number = self.counts[kind, place] = self.counts.get((kind, place), 0) + 1
        return kind if number == 1 else f"{kind}#{number}"

    def states(self, node: Any, place: tuple[str, ...]) -> Iterator[Entry]:
        """A node where States are looked for: a chain, what a wrapper holds."""
        if _is_state(node):
            kind = self._numbered(_kind(node), place)
            for field, value in _children(node):
                yield from self.field(value, kind, field, place, node)
        elif _has_state(node):
            for _, value in _children(node):
                yield from self.states(value, place)
        elif jax.tree.leaves(node):
            yield from _below(node, self._numbered("state", place), "value", place)

    def field(
        self, value: Any, kind: str, field: str, place: tuple[str, ...], owner: Any
    ) -> Iterator[Entry]:
        """What stands in a field of a State."""
        if isinstance(value, Encoded):
            for part, tree in zip(value._fields, value, strict=True):
                for dotted, own in _parts(part, tree):
                    yield from _below(own, kind, f"{field}.{dotted}", place)
        elif field in _BY_ARGUMENT or _is_record(value):
            for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
                dotted = _tree.path_name(path).replace("/", ".")
                yield Entry(Name(kind, f"{field}.{dotted}", "", place), place, leaf)
        elif field == "inner_states" and isinstance(value, Mapping):
            for label, inner in _children(value):
                quoted = urllib.parse.quote(label, safe="")
                yield from self.states(inner, (*place, f"group={quoted}"))
        elif field == "inner_states" and _kind(owner) == "stages":
            for i, inner in enumerate(value):
                yield from self.states(inner, (*place, f"stage={i}"))
        elif _INNER.fullmatch(field) or _has_state(value):
            yield from self.states(value, place)
        else:
            yield from _below(value, kind, field, place)


def _below(tree: Any, kind: str, field: str, place: tuple[str, ...]) -> Iterator[Entry]:
    """The leaves of a tree like the parameters, or a single array."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    for path, leaf in flat:
        name = "" if _tree.is_box(path) else _tree.path_name(path)
        shown = tuple(p for p in place if not p.startswith("group=")) if name else place
        yield Entry(Name(kind, field, name, shown), place, unboxed(leaf))


def _parts(part: str, tree: Any) -> Sequence[tuple[str, Any]]:
    if part == "scales":
        return [(f"scales.{i}", own) for i, own in enumerate(tree)]
    return [(part, tree)]


def _children(node: Any) -> list[tuple[str, Any]]:
    """The children of a node of a tree, and the names of their keys."""
    flat = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return [(_tree.path_name(path), child) for path, child in flat[0]]


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _is_state(node: Any) -> bool:
    return _is_named_tuple(node) and type(node).__name__.endswith("State")


def _is_record(node: Any) -> bool:
    """A part of a State that is a tuple of numbers with names: `NormStatistics`."""
    library = type(node).__module__.split(".")[0]
    return _is_named_tuple(node) and not _is_state(node) and library in _LIBRARIES


_LIBRARIES = ("adamx", "optax")


def _has_state(node: Any) -> bool:
    return any(map(_is_state, jax.tree.leaves(node, is_leaf=_is_state)))


def _kind(node: Any) -> str:
    """scale_by_adam, of a ScaleByAdamState."""
    words = _WORDS.sub("_", type(node).__name__.removesuffix("State")).lower()
    return words.strip("_") or "state"
