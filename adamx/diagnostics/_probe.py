"""What a step does to each layer: sums over all elements, percentiles over a sample.

In two halves. Before the step: norms of gradient, parameters and updates, and samples
of the gradient; the old arrays are still there. Behind it: samples of the new moments,
read from the state in place. Nothing of the size of all parameters is kept.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _tree, moments
from adamx._types import PyTree, at_least_single, dtype_of, promote
from adamx.diagnostics._layers import Layer, Part
from adamx.diagnostics._percentiles import percentiles_of
from adamx.diagnostics._sampling import sample
from adamx.diagnostics._sources import sources
from adamx.diagnostics._sums import row_squares
from adamx.diagnostics._views import Before, Samples, View, views
from adamx.reading import unboxed

STILL = 0.01  # r below this moves next to nothing
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
        return tuple(
            f"{layer.name}/{i}" if layer.is_stacked else layer.name
            for layer in self.layers
            for i in range(layer.rows)
        )

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
            squares=row_squares(g, [part.rows for part in self.parts], self._is_stack),
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
                rows = sum(self.parts[i].rows for i in members)
                shape = rows, self.parts[members[0]].samples
                found.append(jnp.zeros(shape, dtypes[members[0]]))
            return found

        of_g, *of_params, of_updates = map(zeros, self._sampled_dtypes(grads, params))
        return Before(
            squares=jnp.zeros(sum(part.rows for part in self.parts), jnp.float32),
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
        columns = self._norms(before, found) | self._shares(found)
        rate = self._add(found, lambda v: _all_rows(v, v.rate), self._part_of_layer)
        ranges = self._percentiles(found)
        ranges["step"] = ranges["r"] * rate[:, None]
        columns["v_median"] = ranges["sqrt_v"][:, -1]
        columns["v_change"] = (columns["v_median"] / previous) ** 2 - 1.0
        for kind in RANGES:
            for i, q in enumerate(self.qs):
                columns[f"{kind}/p{q:g}"] = ranges[kind][:, i]
        return jnp.stack([columns[name] for name in self.numbers], axis=1)

    @functools.cached_property
    def _is_stack(self) -> list[bool]:
        return [layer.is_stacked for layer in self.layers for _ in layer.parts]

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
        """The parts of each table."""
        found: dict[Any, list[int]] = {}
        for i, dtype in enumerate(dtypes):
            found.setdefault((self.parts[i].samples, dtype), []).append(i)
        return list(map(tuple, found.values()))

    def _packed(
        self, arrays: Sequence[jax.Array], dtypes: Sequence[Any]
    ) -> list[jax.Array]:
        """Tables of the samples of arrays."""
        own = [
            sample(x, p.shape, p.rows, p.samples).astype(dtype)
            for x, p, dtype in zip(arrays, self.parts, dtypes, strict=True)
        ]
        return [
            jnp.concatenate([own[i] for i in members])
            for members in self._tables(dtypes)
        ]

    # ------------------------------------------------- from rows of parts to the table

    def _scattered(self, places: Sequence[np.ndarray], values: Any) -> jax.Array:
        total = jnp.zeros(self.rows, jnp.float32)
        if not places:
            return total
        flat = jnp.concatenate([v.astype(jnp.float32) for v in values])
        return total.at[np.concatenate(places)].add(flat)

    def _add(
        self,
        found: Sequence[View],
        function: Callable[[View], jax.Array],
        weights: Callable[[int], float],
    ) -> jax.Array:
        """The sum over the parts of each row of a number by row, with weights."""
        places, values = [], []
        for view in found:
            own = [np.full(self.parts[i].rows, weights(i)) for i in view.members]
            places += [self.places[i] for i in view.members]
            values.append(function(view) * np.concatenate(own).astype(np.float32))
        return self._scattered(places, values)

    def _density(self, i: int) -> float:
        """Elements of a part that one of its samples stands for."""
        return self.parts[i].size / self.parts[i].samples

    def _part_of_layer(self, i: int) -> float:
        """The share of a part in its layer's elements."""
        return self.parts[i].size / self._sizes[self.places[i][0]]

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        """Elements of each row; NaN for none, of which there are no shares."""
        sizes = np.zeros(self.rows)
        for part, place in zip(self.parts, self.places, strict=True):
            sizes[place] += part.size
        return np.where(sizes > 0, sizes, np.nan)

    def _norms(self, before: Before, found: Sequence[View]) -> dict[str, jax.Array]:
        def norm(name: str) -> jax.Array:
            def squares(view: View) -> jax.Array:
                x = getattr(view, name)
                if x is None:
                    return _all_rows(view, jnp.float32(jnp.nan))
                return jnp.sum(_tree.abs_squared(x), axis=1)

            return jnp.sqrt(self._add(found, squares, self._density))

        p, u = norm("params"), norm("updates")
        squares = self._scattered(self.places, [before.squares])
        return {
            "grad_norm": jnp.sqrt(squares),
            "param_norm": p,
            "update_norm": u,
            "update_ratio": jnp.where(p == 0, jnp.nan, u / p),
            "nonfinite": jnp.maximum(
                jnp.round(self._add(found, _count_bad, self._density)),
                (~jnp.isfinite(squares)).astype(jnp.float32),
            ),
        }

    def _shares(self, found: Sequence[View]) -> dict[str, jax.Array]:
        """Shares of the elements, and the cosine."""

        def share(is_so: Callable[[View], jax.Array]) -> jax.Array:
            def count(view: View) -> jax.Array:
                known = jnp.where(jnp.isnan(view.r), jnp.nan, is_so(view))
                return jnp.sum(known, axis=1)

            return self._add(found, count, self._density) / self._sizes

        largest = {name: self._most(found, name) for name in ("g", "mean")}

        def product(a: str, b: str) -> jax.Array:
            def total(view: View) -> jax.Array:
                # Squares of small gradients are 0 in float32.
                x, y = (
                    moments.scale(getattr(view, n), self._inverse(view, largest[n]))
                    for n in (a, b)
                )
                return jnp.sum(_tree.real_product(x, y), axis=1)

            return self._add(found, total, self._density)

        size = jnp.sqrt(product("g", "g")) * jnp.sqrt(product("mean", "mean"))
        return {
            "eps_share": share(lambda v: v.denominator > 2.0 * v.sqrt_v),
            "still_share": share(lambda v: v.r < STILL),
            "cosine": moments.divide_or_zero(product("g", "mean"), size),
        }

    def _most(self, found: Sequence[View], name: str) -> jax.Array:
        """The largest modulus in each row of the table."""
        most = jnp.zeros(self.rows, jnp.float32)
        for view in found:
            places = np.concatenate([self.places[i] for i in view.members])
            own = jnp.max(jnp.abs(getattr(view, name)), axis=1)
            most = most.at[places].max(own.astype(jnp.float32))
        return most

    def _inverse(self, view: View, most: jax.Array) -> jax.Array:
        places = np.concatenate([self.places[i] for i in view.members])
        own = most[places]
        return (1.0 / jnp.where(own == 0, 1.0, own))[:, None]

    def _percentiles(self, found: Sequence[View]) -> dict[str, jax.Array]:
        """By kind, the percentiles and the median: (rows, percentiles + 1)."""
        blocks = self._blocks(found)
        places = [place for place, _ in blocks for _ in _SAMPLED]
        kinds = [k for _ in blocks for k in range(len(_SAMPLED))]
        matrices = [_columns(slices, kind) for _, slices in blocks for kind in _SAMPLED]
        whole = jnp.full((len(_SAMPLED), self.rows, len(self.qs) + 1), jnp.nan)
        for k, place, table in zip(
            kinds, places, percentiles_of(matrices, (*self.qs, 50.0)), strict=True
        ):
            whole = whole.at[k, place].set(table)
        return dict(zip(_SAMPLED, whole, strict=True))

    def _blocks(
        self, found: Sequence[View]
    ) -> list[tuple[np.ndarray, list[tuple[View, int, int]]]]:
        """Rows of the table, and where their samples are: (view, first row, end).

        A view is one block where each of its parts is a whole layer.
        """
        at: dict[int, tuple[View, int, int]] = {}
        whole: list[tuple[np.ndarray, list[tuple[View, int, int]]]] = []
        alone = {layer.parts[0] for layer in self.layers if len(layer.parts) == 1}
        for view in found:
            begin = 0
            for i in view.members:
                end = begin + self.parts[i].rows
                at[i] = (view, begin, end)
                begin = end
            if all(self.parts[i] in alone for i in view.members):
                places = np.concatenate([self.places[i] for i in view.members])
                whole.append((places, [(view, 0, begin)]))
                for i in view.members:
                    del at[i]
        i = 0
        for layer in self.layers:
            own = [at[k] for k in range(i, i + len(layer.parts)) if k in at]
            if own:
                whole.append((self.places[i], own))
            i += len(layer.parts)
        return whole


def _columns(slices: Sequence[tuple[View, int, int]], kind: str) -> jax.Array:
    own = [getattr(view, kind)[begin:end] for view, begin, end in slices]
    return own[0] if len(own) == 1 else jnp.concatenate(own, axis=1)


def _all_rows(view: View, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, view.r.shape[:1])


def _count_bad(view: View) -> jax.Array:
    return jnp.sum(~jnp.isfinite(view.g), axis=1)


def like_of(grads: PyTree, params: PyTree) -> PyTree:
    """The parameters that have a gradient: a whole model has others, too."""
    structure: Any = jax.tree.structure(grads)
    return structure.unflatten(_tree.leaves_below(grads, params))
