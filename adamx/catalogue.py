"""The optimizers in one table: when to pick which, what its state costs, its source.

Printed by `python -m adamx optimizers`; the README holds the same table. The recipes in
another, printed by `python -m adamx recipes`.
"""

import difflib
import inspect
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adamx import codecs, optimizers
from adamx._types import GradientTransformation

_SHAPE = (4096, 256)


class Entry(NamedTuple):
    """One optimizer.

    Attributes:
      name: the public name.
      when: when to pick it, in one line.
      source: authors and year; titles are in the docstrings.
    """

    name: str
    when: str
    source: str


OPTIMIZERS = (
    Entry(
        "adamw",
        "the default: transformers, fine-tuning, most networks",
        "Loshchilov & Hutter 2019",
    ),
    Entry(
        "adam",
        "no weight decay wanted: small fits, GANs, variational inference",
        "Kingma & Ba 2015",
    ),
    Entry(
        "sgd",
        "a baseline; convex problems; no memory for a state",
        "Robbins & Monro 1951",
    ),
    Entry(
        "momentum",
        "convolutional networks with a tuned schedule",
        "Sutskever et al. 2013",
    ),
    Entry(
        "rmsprop",
        "recipes that were tuned with it, as in reinforcement learning",
        "Tieleman & Hinton 2012",
    ),
    Entry(
        "adam_l2",
        "to reproduce Adam with coupled weight decay",
        "Kingma & Ba 2015",
    ),
    Entry(
        "nadam",
        "Adam that looks one step ahead",
        "Dozat 2016",
    ),
    Entry(
        "nadamw",
        "the same with decoupled decay",
        "Dozat 2016",
    ),
    Entry(
        "adamax",
        "gradients with rare outliers, embeddings",
        "Kingma & Ba 2015",
    ),
    Entry(
        "amsgrad",
        "Adam that must converge: steps only get shorter",
        "Reddi et al. 2018",
    ),
    Entry(
        "radam",
        "no warmup wanted",
        "Liu et al. 2020",
    ),
    Entry(
        "adabound",
        "from Adam to SGD without a switch",
        "Luo et al. 2019",
    ),
    Entry(
        "amsbound",
        "the same, with AMSGrad's maximum",
        "Luo et al. 2019",
    ),
    Entry(
        "swats",
        "from Adam to SGD at a step that it finds itself, if `relative_tolerance` "
        "lets it",
        "Keskar & Socher 2017",
    ),
    Entry(
        "lion",
        "half of Adam's state; large batches; a rate a third to a tenth of AdamW's",
        "Chen et al. 2023",
    ),
    Entry(
        "sophia_h",
        "language models, where a Hessian estimate every 10 steps pays",
        "Liu et al. 2023",
    ),
    Entry(
        "sophia_g",
        "the same, for softmax outputs",
        "Liu et al. 2023",
    ),
    Entry(
        "lamb",
        "very large batches (8K and more)",
        "You et al. 2020",
    ),
    Entry(
        "ademamix",
        "long runs that profit from old gradients",
        "Pagliardini et al. 2024",
    ),
    Entry(
        "adopt",
        "any b2 converges; noisy gradients",
        "Taniguchi et al. 2024",
    ),
    Entry(
        "adam_mini",
        "half of Adam's state at Adam's rates",
        "Zhang et al. 2024",
    ),
    Entry(
        "stable_adamw",
        "loss spikes; instead of gradient clipping",
        "Wortsman et al. 2023",
    ),
    Entry(
        "schedule_free_adamw",
        "no schedule, no known end of training",
        "Defazio et al. 2024",
    ),
    Entry(
        "sparse_adam",
        "embeddings whose rows are rarely seen (`rows=` says which leaves)",
        "PyTorch's SparseAdam",
    ),
)


class Recipe(NamedTuple):
    """One recipe, as it is without arguments.

    Attributes:
      name: the public name in `adamx.recipes`, with the argument that selects it.
      when: when to pick it, in one line.
      numbers: its chain in words; b1 is 0.9 everywhere.
      source: authors and year; titles, and which number is whose, are in the docstring.
    """

    name: str
    when: str
    numbers: str
    source: str


RECIPES = (
    Recipe(
        "prototype",
        "the first run of anything; no known length",
        "Adam, rate 3e-4, b2 0.999, eps 1e-8, clip 1",
        "Karpathy 2019; Kingma & Ba 2015",
    ),
    Recipe(
        "finetune_transformer",
        "a pretrained transformer, a small data set",
        "AdamW, rate 2e-5, warmup 10%, linear to 0, b2 0.999, eps 1e-6, decay 0.01, "
        "clip 1",
        "Devlin et al. 2019; Mosbach et al. 2021",
    ),
    Recipe(
        "pretrain_llm",
        "a language model from scratch",
        "AdamW, rate 3e-4, warmup 1%, cosine to 10%, b2 0.95, eps 1e-8, decay 0.1, "
        "clip 1",
        "Brown et al. 2020; Touvron et al. 2023",
    ),
    Recipe(
        "vision",
        "a vision transformer from scratch",
        "AdamW, rate 1e-3, warmup 5/300, cosine to 0, b2 0.999, eps 1e-8, decay 0.05, "
        "clip 1",
        "Touvron et al. 2021; Beyer et al. 2022",
    ),
    Recipe(
        'vision(model="resnet")',
        "a convolutional network from scratch",
        "Nesterov momentum 0.9, rate 0.1, warmup 5/120, cosine to 0, decay 1e-4 in the "
        "gradient",
        "Goyal et al. 2017; He et al. 2019",
    ),
    Recipe(
        "rl",
        "policies and values: PPO, A2C",
        "Adam, rate 3e-4, with `total_steps` linear to 0, b2 0.999, eps 1e-5, clip 0.5",
        "Huang et al. 2022; Schulman et al. 2017",
    ),
    Recipe(
        "sparse_embeddings",
        "tables whose rows are rarely seen, and a network on them",
        "Sparse Adam on `tables`, AdamW with decay 0.01 on the rest, rate 1e-3, b2 "
        "0.999, eps 1e-8",
        "PyTorch's SparseAdam and AdamW",
    ),
)


# Storage of both moments, as `transformation` names it.
CODECS = {
    "bf16": codecs.bfloat16_stochastic,
    "int8": codecs.int8,
    "int4": codecs.int4,
    "fp8": codecs.fp8,
}


def transformation(name: str) -> GradientTransformation:
    """An optimizer by its name in the table, or with its moments in a codec.

    Raises:
      ValueError: no such optimizer or codec; an optimizer without moments to encode.

    >>> state = transformation("lion-int8").init(jnp.zeros((64, 128)))
    >>> sorted({str(x.dtype) for x in jax.tree.leaves(state) if x.ndim > 1})
    ['float32', 'int8']
    """
    base, _, codec = name.partition("-")
    known = [entry.name for entry in OPTIMIZERS]
    if base not in known:
        near = difflib.get_close_matches(base, known, 3) or ["adamw"]
        raise ValueError(
            f"`optimizer` must be a name that `python -m adamx optimizers` lists, got "
            f"{name!r}; did you mean {' or '.join(near)}?"
        )
    make = getattr(optimizers, base)
    if not codec:
        return make(1e-3)
    if codec not in CODECS:
        raise ValueError(
            f"`optimizer` must end with a codec ({', '.join(CODECS)}) behind its '-', "
            f"got {name!r}; use e.g. {base}-int8."
        )
    takes = inspect.signature(make).parameters
    storage = {k: CODECS[codec]() for k in ("mu_dtype", "nu_dtype") if k in takes}
    if not storage:
        raise ValueError(
            f"`optimizer` must have mu_dtype or nu_dtype to be stored as {codec}, got "
            f"{name!r}; use {base}, or e.g. adamw-{codec}."
        )
    return make(1e-3, **storage)


def state_bytes(name: str) -> float:
    """Bytes of state per float32 parameter of a matrix, with default arguments."""
    tx = getattr(optimizers, name)(1e-3)
    params = {"kernel": jax.ShapeDtypeStruct(_SHAPE, jnp.float32)}
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    return total / math.prod(_SHAPE)


def weight_decay(name: str) -> str:
    """The weight decay that an optimizer has unless told otherwise; "" for none."""
    argument = inspect.signature(getattr(optimizers, name)).parameters.get(
        "weight_decay"
    )
    return "" if argument is None else f"{argument.default:g}"


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Name, bytes of state per parameter, default decay, when to pick it, source."""
    for entry in OPTIMIZERS:
        size = f"{round(state_bytes(entry.name), 2):g}"
        yield entry.name, size, weight_decay(entry.name), entry.when, entry.source


def markdown() -> str:
    """The table as README shows it."""
    lines = ["| optimizer | state | decay | when to pick it | source |"]
    lines += ["| --- | ---: | ---: | --- | --- |"]
    lines += ["| " + " | ".join([f"`{name}`", *rest]) + " |" for name, *rest in rows()]
    return "\n".join(lines)


def recipes_markdown() -> str:
    """The table of recipes as README shows it."""
    lines = ["| `adamx.recipes` | when to pick it | numbers | source |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join([f"`{name}`", *rest]) + " |" for name, *rest in RECIPES]
    return "\n".join(lines)
