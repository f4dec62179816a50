"""Sparse Adam: rows without a gradient stay as they are, moments included.

    touched = any(g != 0) within the row
    mu <- b1 mu + (1 - b1) g,  nu <- b2 nu + (1 - b2) |g|^2     where touched
    update = mu / (1 - b1^t) / (sqrt(nu) + eps) sqrt(1 - b2^t)  where touched, else 0

Adam moves every row of an embedding at every step, on the momentum of batches that the
row was in long ago, and its second moment fades meanwhile: the next gradient of a rare
token is then divided by too little. Here a row lives only in the steps that it is in.

Source: PyTorch, `torch.optim.SparseAdam`, whose eps is beside sqrt(nu) without bias
correction: eps / sqrt(1 - b2^t) in Adam's units. The count of each row's own steps is
an addition. The rule itself: Kingma & Ba (2015), section 2, last paragraph.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamx import _checks, _scalars, _tree, moments
from adamx._types import (
    GradientTransformationExtraArgs,
    Mask,
    PyTree,
    ScalarOrSchedule,
)
from adamx.reading import unboxed
from adamx.transforms import expand_mask, scale_by_learning_rate, wide_chain


class ScaleBySparseAdamState(NamedTuple):
    """State of `scale_by_sparse_adam`.

    Per parameter the bytes of Adam: 8 for float32, 6 for 16-bit dtypes; with
    `per_row_count` 16 more for each row.

    Attributes:
      count: int32 scalar, steps taken.
      mu, nu: trees like the parameters, as in `ScaleByAdamState`.
      row_correction_mu, row_correction_nu: trees with the parameters' ranks, (rows, 1,
        ...) in a lazy leaf, else (1, ...): 1 - (product of the b's of the steps that
        touched the row). None without `per_row_count`.
      row_rest_mu, row_rest_nu: trees like these, what rounding kept out of them.
      b1, b2, eps: float32 scalars, as used in the last step.
      bias_correction_mu, bias_correction_nu, correction_rest_mu, correction_rest_nu:
        float32 scalars, as in `ScaleByAdamState`: those of a row that every step
        touched.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    row_correction_mu: PyTree
    row_correction_nu: PyTree
    row_rest_mu: PyTree
    row_rest_nu: PyTree
    b1: Any
    b2: Any
    eps: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    correction_rest_mu: Any
    correction_rest_nu: Any

    def readings(self) -> dict[str, Any]:
        """The steps taken."""
        return {"count": self.count}

    def estimates(self) -> moments.Estimates:
        """The moments by the corrections of each row: see `moments.Estimates`."""
        c1, c2, eps = map(
            unboxed, (self.bias_correction_mu, self.bias_correction_nu, self.eps)
        )

        def rule(
            g: jax.Array, mu: jax.Array, nu: jax.Array, *rows: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            del g
            first, second = rows or (c1, c2)
            root = jnp.sqrt(nu / second)
            return mu / first, root, root + eps / jnp.sqrt(second)

        held: tuple[PyTree, ...] = (self.mu, self.nu)
        if self.row_correction_mu is not None:
            held += (self.row_correction_mu, self.row_correction_nu)
        return moments.Estimates(held, rule)


_ROW_FIELDS = ("row_correction_mu", "row_correction_nu", "row_rest_mu", "row_rest_nu")


def sparse_adam_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    *rows: jax.Array,
    weight1: moments.Weight,
    weight2: moments.Weight,
    correction1: jax.Array,
    correction2: jax.Array,
    eps: jax.Array,
    axes: tuple[int, ...],
    is_lazy: bool,
) -> tuple[jax.Array, ...]:
    """One leaf of Sparse Adam.

    Args:
      g, mu, nu: gradient and moments, same shape; nu is real.
      *rows: nothing, or for each row both corrections and both rests.
      weight1, weight2: of what is new in mu and nu, 1 - b1 and 1 - b2.
      correction1, correction2: bias corrections; not used where rows have their own.
      eps: beside the uncorrected root.
      axes: over which a row extends.
      is_lazy: whether rows without a gradient stay; False: this is Adam.

    Returns:
      update, mu, nu, *rows.
    """
    new = [
        moments.update_average(mu, g, weight1),
        moments.update_square(nu, _tree.abs_squared(g), weight2),
    ]
    if rows:
        c1, c2, rest1, rest2 = rows
        correction1, rest1 = moments.carry_correction(c1, rest1, weight1)
        correction2, rest2 = moments.carry_correction(c2, rest2, weight2)
        new += [correction1, correction2, rest1, rest2]
    if is_lazy:
        touched = jnp.any(g != 0, axis=axes, keepdims=True)
        old = (mu, nu, *rows)
        new = [jnp.where(touched, x, y) for x, y in zip(new, old, strict=True)]
    # From the moments as they are stored: XLA then reads them instead of copying both.
    mu, nu = new[:2]
    factor = jnp.sqrt(correction2) / correction1
    update = moments.divide_or_zero(moments.scale(mu, factor), jnp.sqrt(nu) + eps)
    if is_lazy:
        update = jnp.where(touched, update, jnp.zeros((), update.dtype))
    return update, *new


def scale_by_sparse_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    rows: Mask = None,
    per_row_count: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam's direction for rows that have a gradient; the others stay bit for bit.

        update = mu_hat / (sqrt(nu_hat) + eps / sqrt(1 - b2^t))  in touched rows, else 0

    A row is all that shares an index of the leading axis; it is touched where any
    element of its gradient is not exactly 0. Whatever comes before must keep the zeros:
    no coupled decay, no noise. Memory and time are those of Adam, since the gradient
    that `jax.grad` gives is dense.

    Args:
      b1, b2, mu_dtype, nu_dtype: see `scale_by_adam`.
      eps: >= 0, in units of the gradient; compared with sqrt(nu) before the bias
        correction, as in PyTorch.
      rows: which leaves have lazy rows; the others follow Adam, with this eps. A tree
        of bools, a prefix of it, or a function, as `mask` of
        `add_decoupled_weight_decay`. None: all leaves with two axes or more.
      per_row_count: whether a row's bias correction counts the steps that touched it,
        not all steps. With it, the first step of a row that is first seen at step 1,000
        has size 1; without it, as in PyTorch, (1 - b1) / sqrt(1 - b2) = 3.2.

    Returns:
      The transformation; dtypes as in `scale_by_adam`. NaN counts as a gradient.

    Raises:
      ValueError, TypeError: as `scale_by_adam`; a mask of another structure.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_sparse_adam()
    >>> state = tx.init(jnp.zeros((2, 2)))
    >>> _, state = tx.update(jnp.array([[1.0, 1.0], [1.0, 1.0]]), state)
    >>> updates, state = tx.update(jnp.array([[0.0, 0.0], [0.0, 1.0]]), state)
    >>> [[round(float(u), 2) for u in row] for row in updates]
    [[0.0, 0.0], [0.67, 1.0]]

    Source: PyTorch, `torch.optim.SparseAdam`; see the module.
    """
    _checks.check_decay_rate("b1", b1)
    _checks.check_decay_rate("b2", b2)
    _checks.check_epsilon("eps", eps)
    _checks.check_flag("per_row_count", per_row_count)
    mu_dtype = moments.check_moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = moments.check_second_moment_dtype("nu_dtype", nu_dtype, b2)
    betas = {"mu": ("b1", b1), "nu": ("b2", b2)}
    lazy: Mask = _matrices if rows is None else rows

    def init(params: PyTree) -> ScaleBySparseAdamState:
        if jax.tree.leaves(params):  # not for the placeholder of map_params
            _tree.check_inexact(params, "parameter")
            expand_mask("rows", lazy, params)
        counted = dict.fromkeys(_ROW_FIELDS)
        if per_row_count:
            axes, _ = _rows(lazy, params, params)
            for field in _ROW_FIELDS:
                counted[field] = moments.zeros_reduced(params, axes)
        return ScaleBySparseAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=moments.zeros(params, mu_dtype),
            nu=moments.zeros_squared(params, nu_dtype),
            **counted,
            **moments.initial_averages(betas),
            **_scalars.initial_records(eps=eps),
        )

    def update(
        updates: PyTree,
        state: ScaleBySparseAdamState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleBySparseAdamState]:
        del extra_args
        _checks.check_state(state, ScaleBySparseAdamState, "scale_by_sparse_adam")
        moments.check_gradient(updates, state.mu)
        count = _tree.increment(state.count)
        average, recorded = moments.averages(state, count, betas)
        used = _scalars.resolve_all(state.count, eps=eps)
        # On the state, not on `params`: they may be missing, or a whole model.
        axes, is_lazy = _rows(lazy, updates, moments.codes_of(state.mu))
        held = {field: getattr(state, field) for field in _ROW_FIELDS}
        updates, new = moments.apply_rule(
            sparse_adam_leaf,
            updates,
            params,
            {"mu": state.mu},
            {"nu": state.nu},
            reduced=held if per_row_count else {},
            each={"axes": axes, "is_lazy": is_lazy},
            weight1=average["mu"].weight,
            weight2=average["nu"].weight,
            correction1=average["mu"].correction,
            correction2=average["nu"].correction,
            **used,
        )
        recorded = _scalars.records(recorded | used, state.b1.dtype)
        new = held | new
        return updates, ScaleBySparseAdamState(count=count, **new, **recorded)

    return GradientTransformationExtraArgs(init, update)


def _rows(
    mask: Mask, updates: PyTree, like: PyTree
) -> tuple[list[tuple[int, ...]], list[bool]]:
    """For each leaf, the axes of a row, all of them in a dense leaf; and if it is lazy.

    Args:
      mask: which leaves are lazy.
      updates: whose leaves these are.
      like: what the mask is expanded to, the parameters or a moment.
    """
    lazy = _tree.leaves_below(updates, expand_mask("rows", mask, like))
    ranks = [jnp.ndim(leaf) for leaf in jax.tree.leaves(updates)]
    axes = [tuple(range(int(one), rank)) for one, rank in zip(lazy, ranks, strict=True)]
    return axes, lazy


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def sparse_adam(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    rows: Mask = None,
    per_row_count: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Adam for embeddings: a row moves only in the steps that it has a gradient in.

    There is no weight decay: it would touch the rows that this leaves alone.

    Args:
      learning_rate: see `scale_by_learning_rate`.
      b1, b2, eps, rows, per_row_count, mu_dtype, nu_dtype: see `scale_by_sparse_adam`.

    Returns:
      The optimizer. State: `ScaleBySparseAdamState`, `ScaleByLearningRateState`.

    >>> import jax.numpy as jnp
    >>> tx = sparse_adam(0.1)
    >>> table = jnp.ones((3, 1))
    >>> g = jnp.array([[0.0], [2.0], [0.0]])
    >>> updates, _ = tx.update(g, tx.init(table), table)
    >>> [round(float(p), 4) for p in (table + updates)[:, 0]]
    [1.0, 0.9, 1.0]

    Source: PyTorch, `torch.optim.SparseAdam`; see `scale_by_sparse_adam`.
    """
    return wide_chain(
        scale_by_sparse_adam(
            b1,
            b2,
            eps,
            rows=rows,
            per_row_count=per_row_count,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        scale_by_learning_rate(learning_rate),
    )
