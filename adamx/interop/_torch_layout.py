"""Where a tensor of PyTorch goes in a tree of parameters, and with which axes.

    mlp.0.weight (64, 32)      Linear      mlp/0/kernel     (32, 64)      (1, 0)
    conv.weight (8, 3, 5, 5)   Conv2d      conv/kernel      (5, 5, 3, 8)  (2, 3, 1, 0)
    embed.weight (100, 16)     Embedding   embed/embedding  (100, 16)     as it is
    norm.weight (16,)          LayerNorm   norm/scale       (16,)         as it is

Axes follow from the name that a tensor has in the tree and from its rank, never from
its shape alone: a square Linear fits both ways, and one of them is wrong. A kernel of
what is no `weight` there is asked for where both fit.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adamx import _checks, _tree
from adamx._types import PyTree

# What Flax and Haiku call the weights that are stored (..., in, out).
_INPUT_FIRST = ("kernel", "w")
_AS_THEY_ARE = ("embedding", "embeddings", "scale", "bias")
_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}
_WEIGHTS = ("kernel", "scale", "embedding")
# Of torch's BatchNorm; nothing in JAX counts it.
_IGNORED = re.compile(r"(^|\.)num_batches_tracked$")

# What wrappers put before names.
_WRAPPED = re.compile(r"^((module|_orig_mod|_fsdp_wrapped_module)\.)+")

NameMap = Mapping[str, Any] | Callable[[str], Any] | None


class Placed(NamedTuple):
    """Where a tensor goes.

    Attributes:
      path: of the parameter.
      permutation: of torch's axes, as `numpy.transpose` takes it; None: as they are.
    """

    path: str
    permutation: tuple[int, ...] | None

    def forth(self, x: Any) -> Any:
        """A tensor of torch with our axes."""
        return x if self.permutation is None else np.transpose(x, self.permutation)

    def back(self, x: Any) -> Any:
        """One of ours with torch's axes."""
        if self.permutation is None:
            return x
        return np.transpose(x, tuple(np.argsort(self.permutation)))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Torch's shape with our axes."""
        return tuple(shape[i] for i in self.permutation or range(len(shape)))


def check_name_map(name_map: Any) -> None:
    """Raises TypeError or ValueError unless it says where names go."""
    if name_map is None or callable(name_map):
        return
    if not isinstance(name_map, Mapping):
        raise TypeError(
            "`name_map` must be a dict from regular expressions to replacements, a "
            f"function of a name, or None, got {_checks.describe_value(name_map)}; "
            r"e.g. {r'^layers\.(\d+)\.': r'layers_\1/', r'weight$': 'kernel'}."
        )
    for pattern, value in name_map.items():
        _checks.check_pattern("name_map", pattern)
        _split(pattern, value)


def _split(name: Any, value: Any) -> tuple[str, tuple[int, ...] | None] | None:
    """Path and permutation of what a map has for a name; None: left out."""
    if value is None:
        return None
    if isinstance(value, str):
        return value, None
    if isinstance(value, (tuple, list)) and len(value) == 2:
        path, axes = value
        if isinstance(path, str) and sorted(axes) == list(range(len(axes))):
            return path, tuple(axes)
    raise TypeError(
        f"`name_map` at {name!r} must give a path, (path, permutation of torch's axes)"
        f" or None to leave the tensor out, got {value!r}; e.g. ('a/kernel', (1, 0))."
    )


class Placement:
    """All tensors' places, and what is wrong with them.

    Attributes:
      placed: by torch's name; only what is right.
      problems: by kind ("missing", "extra", "mis-shaped", "ambiguous"), lines of text.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...] | None],
        params: PyTree | None,
        name_map: NameMap,
        *,
        must_be_all: bool = True,
    ) -> None:
        """Finds the places.

        Args:
          shapes: torch's, by torch's name; None where it is not known.
          params: the tree, or None: the names alone decide.
          name_map: see `from_torch`.
          must_be_all: whether a parameter without a tensor is missing.
        """
        check_name_map(name_map)
        self.name_map = name_map
        self.targets: dict[str, tuple[int, ...]] | None = None
        if params is not None:
            leaves = _tree.leaves_by_path(params)
            self.targets = {k: tuple(np.shape(x)) for k, x in leaves.items()}
        self.placed: dict[str, Placed] = {}
        self.problems: dict[str, list[str]] = {}
        owners: dict[str, str] = {}
        for name, shape in shapes.items():
            found = self._place(name, shape)
            if found is None:
                continue
            if found.path in owners:
                self._add(
                    "ambiguous",
                    f"'{name}' and '{owners[found.path]}' -> '{found.path}'",
                )
            owners[found.path] = name
            self.placed[name] = found
        if must_be_all:
            for path in self.targets or ():
                if path not in owners:
                    self._add("missing", f"'{path}'")
        if "extra" in self.problems and all(map(_WRAPPED.match, shapes)):
            self._add(
                "extra",
                "all begin as DistributedDataParallel or torch.compile names them: "
                f"name_map={{{_WRAPPED.pattern!r}: ''}}",
            )

    def _add(self, kind: str, text: str) -> None:
        self.problems.setdefault(kind, []).append(text)

    def _place(self, name: str, shape: tuple[int, ...] | None) -> Placed | None:
        found = self._mapped(name)
        if found is None:
            return None
        path, axes = found
        if not callable(self.name_map):
            path = self._named(name, path, shape)
        if self.targets is not None and path not in self.targets:
            near = _tree.nearest_paths(path, list(self.targets))
            self._add("extra", f"'{name}' -> '{path}', no such parameter ({near}?)")
            return Placed(path, None)
        rank = len(self.targets[path]) if self.targets else len(shape or ())
        if axes is None and rank > 1:
            axes = self._axes(name, path, rank)
        if axes is not None and shape is not None and len(axes) != len(shape):
            self._add(
                "mis-shaped",
                f"'{name}' {shape} has not the {len(axes)} axes {axes} of '{path}'; "
                "split or reshape it before, and its moments",
            )
            return Placed(path, None)
        placed = Placed(path, axes)
        if self.targets and shape is not None:
            self._check_shape(name, shape, placed)
        return placed

    def _mapped(self, name: str) -> tuple[str, tuple[int, ...] | None] | None:
        if callable(self.name_map):
            return _split(name, self.name_map(name))
        if _IGNORED.search(name):
            return None
        text, axes = name, None
        for pattern, value in (self.name_map or {}).items():
            if not re.search(pattern, text):
                continue
            found = _split(pattern, value)
            if found is None:
                return None
            text = re.sub(pattern, found[0], text)
            axes = found[1] or axes
        return text, axes

    def _named(self, name: str, path: str, shape: tuple[int, ...] | None) -> str:
        """The path as the tree has it: slashes, and what a weight is called there."""
        path = path.replace(".", "/")
        known = self.targets
        head, slash, last = path.rpartition("/")
        if last != "weight" or (known is not None and path in known):
            return path
        names = [f"{head}{slash}{word}" for word in _WEIGHTS]
        if known is not None:
            there = [n for n in names if n in known]
            if len(there) > 1:
                self._add("ambiguous", f"'{name}' -> {_tree.some(there)}")
            return there[0] if there else path
        rank = len(shape or ())
        if rank == 2:
            self._add(
                "ambiguous",
                f"'{name}' {shape} -> '{names[0]}' of a Linear or '{names[2]}' of an "
                "Embedding",
            )
        return names[1] if rank == 1 else names[0]

    def _axes(self, name: str, path: str, rank: int) -> tuple[int, ...] | None:
        theirs, ours = name.rpartition(".")[2], path.rpartition("/")[2]
        if ours == theirs or ours in _AS_THEY_ARE:
            return None
        if ours in _INPUT_FIRST and rank in _AXES:
            axes = _AXES[rank]
            if "weight" not in name and self._fits_both_ways(path, axes):
                self._add(
                    "ambiguous",
                    f"'{name}' -> '{path}' fits with its own axes and as a Linear's "
                    f"weight: give ('{path}', {tuple(range(rank))}) or "
                    f"('{path}', {axes})",
                )
            return axes
        self._add(
            "ambiguous",
            f"'{name}' -> '{path}': no rule for the {rank} axes of '{ours}'; give "
            f"('{path}', permutation)",
        )
        return None

    def _fits_both_ways(self, path: str, axes: tuple[int, ...]) -> bool:
        want = (self.targets or {}).get(path)
        return want is not None and Placed(path, axes).shape(want) == want

    def _check_shape(self, name: str, shape: tuple[int, ...], placed: Placed) -> None:
        assert self.targets is not None
        want, got = self.targets[placed.path], placed.shape(shape)
        if got == want:
            return
        how = "as it is" if placed.permutation is None else f"by {placed.permutation}"
        hint = ""
        if sorted(shape) == sorted(want):
            hint = "; other axes fit: give (path, permutation)"
        elif np.prod(shape) == np.prod(want):
            hint = "; reshape it before, and its moments"
        self._add(
            "mis-shaped",
            f"'{name}' {shape}, {how} {got} -> '{placed.path}' {want}{hint}",
        )

    def check(self, what: str) -> None:
        """Raises one ValueError that lists all problems."""
        raise_problems(what, self.problems)


def raise_problems(what: str, problems: Mapping[str, list[str]]) -> None:
    """Raises ValueError with the problems by kind; nothing where there are none."""
    if not problems:
        return
    order = ("missing", "extra", "mis-shaped", "ambiguous")
    parts = [
        f"\n  {kind}: " + "\n    ".join(problems[kind])
        for kind in order
        if kind in problems
    ]
    raise ValueError(
        f"{what} must fit `params`, tensor by tensor; nothing was converted."
        + "".join(parts)
        + "\nSay in `name_map` where they go, {regular expression: replacement}, with "
        "None for what shall be left out."
    )
