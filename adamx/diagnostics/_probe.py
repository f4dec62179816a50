"""What a step does to each layer: sums over all elements, percentiles over a sample.

In two halves. Before the step: norms of gradient, parameters and updates, and samples
of the gradient; the old arrays are still there. Behind it: samples of the new moments,
read from the state in place. Nothing of the size of all parameters is kept.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _tree
from adamx._types import PyTree, at_least_single, dtype_of, promote
from adamx.diagnostics._layers import Layer, Part, row_names
from adamx.diagnostics._percentiles import percentiles_of
from adamx.diagnostics._sampling import sample
from adamx.diagnostics._sources import sources
from adamx.diagnostics._sums import (
    LARGEST,
    SUMS,
    numbers_of,
    of_one_unit,
    row_squares,
    sums_of,
)
from adamx.diagnostics._views import Before, Samples, View, joined, views, widths
from adamx.reading import unboxed

RANGES = ("r", "m", "sqrt_v", "step")
SINGLE = (
    "grad_norm",
    "param_norm",
    "update_norm",
    "update_ratio",
    "eps_share",
    "still_share",
    "cosine",
    "nonfinite",
    "v_change",
)
_SAMPLED = RANGES[:3]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What is measured, at every place the same.

    A table has one row for each layer, as many for a stack; its rows are in the order
    of the layers.

    Attributes:
      layers: the layers.
      qs: percentiles, in [0, 100].
    """

    layers: tuple[Layer, ...]
    qs: tuple[float, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of a table; the last is not shown: median of sqrt(v_hat)."""
        ranges = [f"{kind}/p{q:g}" for kind in RANGES for q in self.qs]
        return (*ranges, *SINGLE, "v_median")

    @property
    def names(self) -> tuple[str, ...]:
        """The rows of a table: 'a/b', and for stacks 'a/b/0', 'a/b/1', ..."""
        return row_names(self.layers)

    @property
    def rows(self) -> int:
        """The length of a table."""
        return sum(layer.rows for layer in self.layers)

    @functools.cached_property
    def parts(self) -> list[Part]:
        """The parts of all layers, in their order."""
        return [part for layer in self.layers for part in layer.parts]

    @functools.cached_property
    def places(self) -> list[np.ndarray]:
        """For each part, the rows of the table that it belongs to."""
        ends = np.cumsum([layer.rows for layer in self.layers])
        return [
            np.arange(end - layer.rows, end)
            for layer, end in zip(self.layers, ends, strict=True)
            for _ in layer.parts
        ]

    def before(self, grads: PyTree, params: PyTree | None, updates: PyTree) -> Before:
        """The first half; see `Before`.

        XLA computes updates at the places of the samples alone; for sums over all
        elements it would write them to memory, a tree of temporaries.
        """
        g = self._leaves(grads)
        trees = [g, self._leaves(updates)]
        if params is not None:
            trees.insert(1, self._leaves(like_of(grads, params)))
        of_g, *of_params, of_updates = (
            self._packed(tree, dtypes)
            for tree, dtypes in zip(
                trees, self._sampled_dtypes(grads, params), strict=True
            )
        )
        return Before(
            squares=self._squares(g),
            gradients=of_g,
            params=of_params[0] if of_params else [],
            updates=of_updates,
            known=jnp.ones((), jnp.int32),
        )

    def nothing(self, grads: PyTree, params: PyTree | None) -> Before:
        """Zeros in the place of the first half."""

        def zeros(dtypes: Sequence[Any]) -> list[jax.Array]:
            found = []
            for members in self._tables(dtypes):
                size = sum(self.parts[i].rows * self.parts[i].samples for i in members)
                found.append(jnp.zeros(size, dtypes[members[0]]))
            return found

        of_g, *of_params, of_updates = map(zeros, self._sampled_dtypes(grads, params))
        return Before(
            squares=jnp.zeros(
                sum(self.parts[i].rows for i in self._large), jnp.float32
            ),
            gradients=of_g,
            params=of_params[0] if of_params else [],
            updates=of_updates,
            known=jnp.zeros((), jnp.int32),
        )

    def behind(
        self,
        before: Before,
        like: tuple[PyTree, PyTree | None],
        counts: Sequence[Any],
        state: PyTree,
        previous: jax.Array,
    ) -> jax.Array:
        """The second half.

        Args:
          before: the first.
          like: gradients and parameters, for their dtypes.
          counts: of all `sources` of the state before the step.
          state: behind it.
          previous: the medians of sqrt(v_hat) as measured last, (rows,).

        Returns:
          The table, float32 (rows, numbers).
        """
        dtypes = self._sampled_dtypes(*like)
        arrays = [before.gradients, before.params, before.updates]
        if len(dtypes) == 2:
            del arrays[1]
        samples = [
            Samples(self._tables(own), of_tables, self.parts)
            for own, of_tables in zip(dtypes, arrays, strict=True)
        ]
        found = views(self.parts, samples, sources(state), counts)
        return self._table(found, before.squares, previous)

    @functools.cached_property
    def _large(self) -> list[int]:
        """The parts of which not all elements are samples."""
        return [i for i, part in enumerate(self.parts) if part.samples < part.size]

    def _squares(self, g: Sequence[jax.Array]) -> jax.Array:
        """|g|^2 of the large parts; that of the others is one of the samples' sums."""
        stacks = [layer.is_stacked for layer in self.layers for _ in layer.parts]
        return row_squares(
            [g[i] for i in self._large],
            [self.parts[i].rows for i in self._large],
            [stacks[i] for i in self._large],
        )

    def _leaves(self, tree: PyTree) -> list[jax.Array]:
        by_path = _tree.leaves_by_path(tree)
        return [jnp.asarray(unboxed(by_path[part.path])) for part in self.parts]

    def _dtypes(self, tree: PyTree) -> list[Any]:
        by_path = _tree.leaves_by_path(tree)
        found = [dtype_of(unboxed(by_path[part.path])) for part in self.parts]
        return [at_least_single(dtype) for dtype in found]

    def _sampled_dtypes(self, grads: PyTree, params: PyTree | None) -> list[list[Any]]:
        """Of gradients, parameters where they are known, and updates; by part."""
        found = [self._dtypes(grads)]
        if params is not None:
            found.append(self._dtypes(like_of(grads, params)))
        # As wide as both, whatever is emitted: it is but measured.
        return [*found, list(map(promote, found[0], found[-1]))]

    def _tables(self, dtypes: Sequence[Any]) -> list[tuple[int, ...]]:
        """The parts whose samples make one array."""
        found: dict[Any, list[int]] = {}
        of_parts = widths([part.samples for part in self.parts])
        for i, dtype in enumerate(dtypes):
            found.setdefault((of_parts[i], dtype), []).append(i)
        return list(map(tuple, found.values()))

    def _packed(
        self, arrays: Sequence[jax.Array], dtypes: Sequence[Any]
    ) -> list[jax.Array]:
        """The samples of arrays, one behind the other."""
        own = [
            sample(x, p.shape, p.rows, p.samples, str(dtype))
            for x, p, dtype in zip(arrays, self.parts, dtypes, strict=True)
        ]
        return [joined([own[i] for i in members]) for members in self._tables(dtypes)]

    # ------------------------------------------------- from rows of parts to the table

    def _table(
        self, found: Sequence[View], squares: jax.Array, previous: jax.Array
    ) -> jax.Array:
        """All numbers, each column computed for all rows at once."""
        sums = self._sums(found)
        if self._large:
            at = np.concatenate([self.places[i] for i in self._large])
            sums["gradient"] = sums["gradient"].at[at].add(squares)
        columns = numbers_of(sums, self._sizes)
        ranges = self._percentiles(found)
        step = ranges[:1] * columns.pop("rate")[:, None]
        median = ranges[_SAMPLED.index("sqrt_v"), :, -1]
        columns["v_change"] = (median / previous) ** 2 - 1.0
        single = [*(columns[name] for name in SINGLE), median]
        shown = jnp.concatenate([ranges, step])[..., :-1].transpose(0, 2, 1)
        return joined([shown.reshape(-1), *single]).reshape(len(self.numbers), -1).T

    def _sums(self, found: Sequence[View]) -> dict[str, jax.Array]:
        """The sums over the samples of each row, with the weights of its parts."""
        members = [i for view in found for i in view.members]
        if not members:
            return dict.fromkeys(SUMS, jnp.zeros(self.rows, jnp.float32))
        at = np.concatenate([self.places[i] for i in members])
        counts = [self.parts[i].rows for i in members]
        by_view = list(map(sums_of, found))
        names = (*SUMS, *LARGEST)
        flat = [sums[k].astype(jnp.float32) for k in names for sums in by_view]
        own = joined(flat).reshape(len(names), -1)
        sums, largest = own[: len(SUMS)], own[len(SUMS) :]
        most = jnp.zeros((len(LARGEST), self.rows), jnp.float32).at[:, at].max(largest)
        density = [self.parts[i].size / self.parts[i].samples for i in members]
        share = [self.parts[i].size / self._sizes[self.places[i][0]] for i in members]
        whole = [float(i not in self._large) for i in members]
        own_weights = {"rate": share, "gradient": whole}
        weights = np.stack([own_weights.get(name, density) for name in SUMS])
        weights = np.repeat(weights, counts, axis=1).astype(np.float32)
        # Not 0 times what may be infinite.
        sums = jnp.where(weights == 0.0, 0.0, sums * weights)
        sums *= of_one_unit(largest, most[:, at])
        total = jnp.zeros((len(SUMS), self.rows), jnp.float32).at[:, at].add(sums)
        return dict(zip(SUMS, total, strict=True))

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        """Elements of each row; NaN for none, of which there are no shares."""
        sizes = np.zeros(self.rows)
        for part, place in zip(self.parts, self.places, strict=True):
            sizes[place] += part.size
        return np.where(sizes > 0, sizes, np.nan).astype(np.float32)

    def _percentiles(self, found: Sequence[View]) -> jax.Array:
        """By kind, the percentiles and the median: (kinds, rows, percentiles + 1)."""
        index = np.full((len(_SAMPLED), self.rows), -1)
        matrices, counts, end = [], [], 0
        for places, sizes, matrix in self._blocks(found):
            rows = np.arange(len(_SAMPLED) * len(places)).reshape(len(_SAMPLED), -1)
            index[:, places] = end + rows
            end += rows.size
            matrices.append(matrix)
            counts.append(np.tile(sizes, len(_SAMPLED)))
        qs = (*self.qs, 50.0)
        blank = jnp.full((1, len(qs)), jnp.nan, jnp.float32)  # of what has no samples
        tables = [percentiles_of(matrices, counts, qs)] if matrices else []
        return joined([*tables, blank])[np.where(index < 0, end, index)]

    def _blocks(
        self, found: Sequence[View]
    ) -> list[tuple[np.ndarray, np.ndarray, jax.Array]]:
        """Rows of the table, how many samples each has, and these, kind below kind.

        A view is one block where each of its parts is a whole layer.
        """
        at: dict[int, tuple[View, int, int]] = {}
        whole: list[tuple[np.ndarray, np.ndarray, jax.Array]] = []
        alone = {layer.parts[0] for layer in self.layers if len(layer.parts) == 1}
        for view in found:
            begin = 0
            for i in view.members:
                end = begin + self.parts[i].rows
                at[i] = (view, begin, end)
                begin = end
            if all(self.parts[i] in alone for i in view.members):
                places = np.concatenate([self.places[i] for i in view.members])
                whole.append((places, view.counts, _kinds([(view, 0, begin)], None)))
                for i in view.members:
                    del at[i]
        i = 0
        for layer in self.layers:
            among = [k for k in range(i, i + len(layer.parts)) if k in at]
            if among:
                counts = [self.parts[k].ranked for k in among]
                sizes = np.full(layer.rows, sum(counts))
                matrix = _kinds([at[k] for k in among], counts)
                whole.append((self.places[i], sizes, matrix))
            i += len(layer.parts)
        return whole


def _kinds(
    slices: Sequence[tuple[View, int, int]], counts: Sequence[int] | None
) -> jax.Array:
    """Samples of r, m and sqrt_v: (view, first row, end), of so many columns or all."""
    found = []
    for kind in _SAMPLED:
        own = [getattr(view, kind)[begin:end] for view, begin, end in slices]
        if counts is not None:
            own = [x[:, :n] for x, n in zip(own, counts, strict=True)]
        found.append(own[0] if len(own) == 1 else jnp.concatenate(own, axis=1))
    return joined([x.astype(jnp.float32) for x in found])


def like_of(grads: PyTree, params: PyTree) -> PyTree:
    """The parameters that have a gradient: a whole model has others, too."""
    structure: Any = jax.tree.structure(grads)
    return structure.unflatten(_tree.leaves_below(grads, params))
