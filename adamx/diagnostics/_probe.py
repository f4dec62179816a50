"""What a step does to each layer: sums over all elements, percentiles over a sample.

In two halves. Before the step: norms of gradient, parameters and updates, and samples
of the gradient; the old arrays are still there. Behind it: samples of the new moments,
read from the state in place. Nothing of the size of a parameter is written.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamx import _tree, moments
from adamx._types import PyTree, at_least_single
from adamx.diagnostics._layers import Layer, Part
from adamx.diagnostics._percentiles import percentiles
from adamx.diagnostics._sampling import sample, sample_moment
from adamx.diagnostics._sources import Source, advanced, sources
from adamx.diagnostics._sums import row_sums
from adamx.reading import unboxed

STILL = 0.01  # r below this moves next to nothing
KINDS = ("r", "m", "sqrt_v", "step")
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


class Before(NamedTuple):
    """What is measured before the step; zeros where it is not.

    Attributes:
      sums: by name, for each part (rows,): of |g|^2, |p|^2, |u|^2, and of non-finite
        elements of g.
      samples: for each part, of g, (rows, samples).
      known: int32, 1 once all of it is.
    """

    sums: dict[str, list[jax.Array]]
    samples: list[jax.Array]
    known: jax.Array


@dataclasses.dataclass(frozen=True)
class Probe:
    """What is measured, at every place the same.

    Attributes:
      layers: the layers.
      qs: percentiles, in [0, 100].
    """

    layers: tuple[Layer, ...]
    qs: tuple[float, ...]

    @property
    def parts(self) -> list[Part]:
        """The parts of all layers, in their order."""
        return [part for layer in self.layers for part in layer.parts]

    def before(self, grads: PyTree, params: PyTree | None, updates: PyTree) -> Before:
        """The first half; see `Before`."""
        by_path = _tree.leaves_by_path(grads)
        g = [jnp.asarray(unboxed(by_path[part.path])) for part in self.parts]
        stacked = [layer.is_stacked for layer in self.layers for _ in layer.parts]
        rows = [part.rows for part in self.parts]

        def squares(tree: PyTree) -> list[jax.Array]:
            leaves = _tree.leaves_by_path(tree)
            own = [jnp.asarray(unboxed(leaves[part.path])) for part in self.parts]
            return row_sums(_tree.abs_squared, own, rows, stacked)

        sums = {"g": row_sums(_tree.abs_squared, g, rows, stacked)}
        nothing = [jnp.full_like(s, jnp.nan) for s in sums["g"]]
        params = None if params is None else like_of(grads, params)
        sums["p"] = nothing if params is None else squares(params)
        sums["u"] = squares(updates)

        def count() -> list[jax.Array]:
            return [
                n.astype(s.dtype)
                for n, s in zip(
                    row_sums(_is_bad, g, rows, stacked), sums["g"], strict=True
                )
            ]

        # No pass over everything for what is nearly always 0.
        is_clean = jnp.all(jnp.isfinite(_concatenated(sums["g"])))
        zeros = [jnp.zeros_like(s) for s in sums["g"]]
        sums["bad"] = jax.lax.cond(is_clean, lambda: zeros, count)
        samples = [
            sample(x, part.shape, part.rows, part.samples).astype(
                at_least_single(x.dtype)
            )
            for x, part in zip(g, self.parts, strict=True)
        ]
        return Before(sums, samples, jnp.ones((), jnp.int32))

    def behind(
        self,
        before: Before,
        counts: Sequence[Any],
        state: PyTree,
        previous: jax.Array,
    ) -> jax.Array:
        """The second half.

        Args:
          before: the first.
          counts: of all `sources` of the state before the step.
          state: behind it.
          previous: the medians of sqrt(v_hat) as measured last, (layer rows,).

        Returns:
          float32 of shape (layer rows, numbers), as `numbers_of` names them.
        """
        found = sources(state)
        views = [
            _view(part, g, found, counts)
            for part, g in zip(self.parts, before.samples, strict=True)
        ]
        columns: dict[str, list[Any]] = {name: [] for name in self.numbers}
        begin = 0
        rows: list[tuple[str, jax.Array]] = []
        for layer in self.layers:
            end = begin + len(layer.parts)
            own = views[begin:end] or [_blank(jnp.full((layer.rows, 1), jnp.nan))]
            for kind in KINDS:
                rows.append((kind, _joined([getattr(v, kind) for v in own])))
            sums = {k: _total(v[begin:end]) for k, v in before.sums.items()}
            for name, value in _scalars_of(layer, own, sums).items():
                columns[name].append(jnp.broadcast_to(value, layer.rows))
            begin = end
        qs = (*self.qs, 50.0)
        tables = _percentiles_of([x for _, x in rows], qs)
        for (kind, _), table in zip(rows, tables, strict=True):
            for i, q in enumerate(self.qs):
                columns[f"{kind}/p{q:g}"].append(table[:, i])
            if kind == "sqrt_v":
                columns["v_median"].append(table[:, -1])
        done = {k: _concatenated(v) for k, v in columns.items() if v}
        done["v_change"] = (done["v_median"] / previous) ** 2 - 1.0
        return jnp.stack([done[name] for name in self.numbers], axis=1)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the columns; the last is not shown: median of sqrt(v_hat)."""
        ranges = [f"{kind}/p{q:g}" for kind in KINDS for q in self.qs]
        return (*ranges, *SINGLE, "v_median")


class _View(NamedTuple):
    """A part's sample: (rows, samples) each, and for each row what they add up to."""

    r: jax.Array
    m: jax.Array
    sqrt_v: jax.Array
    step: jax.Array
    gradient: jax.Array
    mean: jax.Array
    is_small: jax.Array
    weight: float


def _view(
    part: Part, g: jax.Array, found: Sequence[Source], counts: Sequence[Any]
) -> _View:
    """What the moments of a part say; NaN where there are none."""
    real = jnp.zeros((), g.real.dtype)
    blank = jnp.full(g.shape, jnp.nan, real.dtype)
    mean, root, denominator = jnp.full_like(g, jnp.nan), blank, blank
    rate = jnp.full((), jnp.nan, real.dtype)
    is_first = True
    for source, count in reversed(list(zip(found, counts, strict=True))):
        if not source.holds(part.path):
            continue
        held = [
            sample_moment(stored[part.path], part.shape, part.rows, part.samples)
            for stored in source.stored
        ]
        new = (*source.estimates.rule(g, *held), jnp.asarray(source.rate))
        # Of several (stages), the one that took this step.
        is_at_work = None if is_first else advanced(source, count)
        if is_at_work is not None:
            old = (mean, root, denominator, rate)
            new = tuple(
                jnp.where(is_at_work, x, y) for x, y in zip(new, old, strict=True)
            )
        mean, root, denominator, rate = new
        is_first = False
    size = jnp.abs(mean)
    r = moments.divide_or_zero(size, denominator)
    return _View(
        r=r,
        m=size,
        sqrt_v=root,
        step=r * rate.astype(r.dtype),
        gradient=g,
        mean=mean,
        is_small=jnp.where(jnp.isnan(root), jnp.nan, denominator > 2.0 * root),
        weight=part.size / part.samples,
    )


def _scalars_of(
    layer: Layer, views: Sequence[_View], sums: dict[str, Any]
) -> dict[str, jax.Array]:
    """The numbers of one layer, or of a stack of them, that are no percentiles."""
    total = float(sum(part.size for part in layer.parts)) or 1.0

    def share(values: Sequence[jax.Array]) -> jax.Array:
        pairs = zip(values, views, strict=True)
        added = [v.weight * jnp.sum(x, axis=1) for x, v in pairs]
        return sum(added[1:], added[0]) / total

    is_still = [jnp.where(jnp.isnan(v.r), jnp.nan, v.r < STILL) for v in views]
    norms = {name: jnp.sqrt(sums[name]) for name in ("g", "p", "u")}
    return {
        "grad_norm": norms["g"],
        "param_norm": norms["p"],
        "update_norm": norms["u"],
        "update_ratio": jnp.where(norms["p"] > 0, norms["u"] / norms["p"], jnp.nan),
        "eps_share": share([v.is_small for v in views]),
        "still_share": share(is_still),
        "cosine": _cosine(views),
        "nonfinite": sums["bad"],
    }


def _cosine(views: Sequence[_View]) -> jax.Array:
    """Of gradient and m_hat, over the samples; 0 where either is 0."""

    def unit(arrays: Sequence[jax.Array]) -> list[jax.Array]:
        # Squares of small gradients are 0 in float32.
        largest = [jnp.max(jnp.abs(x), axis=1, keepdims=True) for x in arrays]
        most = largest[0]
        for other in largest[1:]:
            most = jnp.maximum(most, other)
        safe = jnp.where(most == 0, jnp.ones_like(most), most)
        return [moments.scale(x, 1.0 / safe) for x in arrays]

    g, m = unit([v.gradient for v in views]), unit([v.mean for v in views])

    def total(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> jax.Array:
        return sum(  # type: ignore[return-value]
            v.weight * jnp.sum(_tree.real_product(a, b), axis=1)
            for v, a, b in zip(views, x, y, strict=True)
        )

    size = jnp.sqrt(total(g, g)) * jnp.sqrt(total(m, m))
    return moments.divide_or_zero(total(g, m), size)


def _percentiles_of(
    rows: Sequence[jax.Array], qs: tuple[float, ...]
) -> list[jax.Array]:
    """Those of each matrix's rows; matrices of about one width in one go."""
    found: list[Any] = [None] * len(rows)
    widths: dict[int, list[int]] = {}
    for i, x in enumerate(rows):
        widths.setdefault(1 << (x.shape[1] - 1).bit_length(), []).append(i)
    for members in widths.values():
        width = max(rows[i].shape[1] for i in members)
        counts = [rows[i].shape[1] for i in members for _ in range(rows[i].shape[0])]
        padded = [
            jnp.pad(
                rows[i].astype(jnp.float32), ((0, 0), (0, width - rows[i].shape[1]))
            )
            for i in members
        ]
        table = percentiles(jnp.concatenate(padded), counts, qs)
        ends = np.cumsum([rows[i].shape[0] for i in members])
        for i, own in zip(members, jnp.split(table, ends[:-1]), strict=True):
            found[i] = own
    return found


def _blank(g: jax.Array) -> _View:
    """The sample of a layer without elements."""
    return _View(r=g, m=g, sqrt_v=g, step=g, gradient=g, mean=g, is_small=g, weight=1.0)


def _total(sums: Sequence[jax.Array]) -> jax.Array:
    """Of the parts of a layer; 0 where there are none."""
    return sum(sums[1:], sums[0]) if sums else jnp.zeros(())


def _is_bad(x: jax.Array) -> jax.Array:
    return (~jnp.isfinite(x)).astype(x.real.dtype)


def _joined(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=1)


def _concatenated(vectors: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([v.astype(jnp.float32) for v in vectors])


def like_of(grads: PyTree, params: PyTree) -> PyTree:
    """The parameters that have a gradient: a whole model has others, too."""
    structure: Any = jax.tree.structure(grads)
    return structure.unflatten(_tree.leaves_below(grads, params))
