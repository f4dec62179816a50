"""Embedding tables whose rows are rarely seen."""

from typing import Any

from adamx import _checks, _tree
from adamx._types import GradientTransformationExtraArgs, Mask, PyTree, ScalarOrSchedule
from adamx.compose import groups
from adamx.optimizers.adamw import adamw
from adamx.optimizers.sparse_adam import sparse_adam
from adamx.recipes._arguments import decayed


def sparse_embeddings(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    tables: str = "embed",
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> GradientTransformationExtraArgs:
    """Sparse Adam for embedding tables, AdamW for the network on top of them.

        groups([("embed", sparse_adam(1e-3))],
               default=adamw(1e-3, weight_decay=0.01, mask=decay_mask()))

    Recommenders, large vocabularies: a row that no example of the batch has stays bit
    for bit. So there is no decay on tables; and no clipping (our choice), whose factor
    would couple a rare row's step to the rest of the batch.

    Args:
      learning_rate: of both, see `scale_by_learning_rate`; schedules are welcome. 1e-3:
        PyTorch's SparseAdam; Kingma & Ba, Algorithm 1.
      tables: regular expression on paths, as in `groups`: what is a table. "embed", our
        choice, finds flax's `Embed_0/embedding`. Vectors that it finds follow Adam.
      weight_decay: of the network. 0.01: PyTorch's AdamW.
      mask: which parameters of the network decay; None: `decay_mask()`, our choice.
      mu_dtype, nu_dtype: how moments are stored, see `scale_by_adam`; for tables of
        gigabytes `adamx.codecs.int8()`.

    Returns:
      The transformation. State: that of `groups`.

    Raises:
      ValueError, TypeError: `tables` is no regular expression; at init, it is found in
        no path.

    >>> import adamx, jax.numpy as jnp
    >>> tx = adamx.recipes.sparse_embeddings(0.1, weight_decay=0.0)
    >>> params = {"embed": jnp.ones((2, 1)), "head": jnp.ones((1, 1))}
    >>> grads = {"embed": jnp.array([[0.0], [3.0]]), "head": jnp.ones((1, 1))}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(p), 4) for p in (params["embed"] + updates["embed"])[:, 0]]
    [1.0, 0.9]

    Source: PyTorch, `torch.optim.SparseAdam` and `torch.optim.AdamW`, for b1 0.9, b2
    0.999 and eps 1e-8 too; Kingma & Ba, "Adam" (2015), Algorithm 1.
    """
    pattern = _checks.check_pattern("tables", tables)
    if pattern is None:
        raise TypeError(
            "`tables` must be a regular expression on paths, got None; without tables, "
            "use recipes.prototype."
        )
    stored = {"mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    rest = {"weight_decay": weight_decay, "mask": decayed(mask), **stored}
    grouped = groups(
        [(pattern, sparse_adam(learning_rate, **stored))],
        default=adamw(learning_rate, **rest),
    )

    def init(params: PyTree) -> Any:
        names = list(_tree.leaves_by_path(params))
        if names and not any(map(pattern.search, names)):
            raise ValueError(
                f"`tables` must match a parameter, got {pattern.pattern!r}, which is "
                "found in no path. The nearest paths are "
                f"{_tree.nearest_paths(pattern.pattern, names)}; parts are joined by "
                "'/'."
            )
        return grouped.init(params)

    return GradientTransformationExtraArgs(init, grouped.update)
