"""Shapes of known models, and of any JSON file.

The layers of a model are stacked along a leading axis, as in large models, which scan
over them: the parameters are a dozen arrays, whatever the depth, and a step compiles in
seconds. Biases are left out where the model has none.

Source: GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners"
(2019), table 2. 7B and 70B: Touvron et al., "Llama 2: Open Foundation and Fine-Tuned
Chat Models" (2023). 405B: Grattafiori et al., "The Llama 3 Herd of Models" (2024),
table 3.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adamx import _checks, _tree
from adamx._types import PyTree

Shapes = dict[str, Any]


def _gpt2(width: int, layers: int) -> Shapes:
    """GPT-2: the output matrix is the embedding; every matrix has a bias."""
    wide, norm = 4 * width, {"scale": (layers, width), "bias": (layers, width)}
    return {
        "wte": (50257, width),
        "wpe": (1024, width),
        "layers": {
            "ln_1": norm,
            "attn_qkv": {
                "kernel": (layers, width, 3 * width),
                "bias": (layers, 3 * width),
            },
            "attn_out": {"kernel": (layers, width, width), "bias": (layers, width)},
            "ln_2": dict(norm),
            "mlp_up": {"kernel": (layers, width, wide), "bias": (layers, wide)},
            "mlp_down": {"kernel": (layers, wide, width), "bias": (layers, width)},
        },
        "ln_f": {"scale": (width,), "bias": (width,)},
    }


def _llama(width: int, layers: int, inner: int, keys: int, tokens: int) -> Shapes:
    """Llama: `keys` is the width of keys and values (grouped queries)."""
    return {
        "embed": (tokens, width),
        "layers": {
            "attn_norm": (layers, width),
            "wq": (layers, width, width),
            "wk": (layers, width, keys),
            "wv": (layers, width, keys),
            "wo": (layers, width, width),
            "mlp_norm": (layers, width),
            "w_gate": (layers, width, inner),
            "w_up": (layers, width, inner),
            "w_down": (layers, inner, width),
        },
        "norm": (width,),
        "head": (width, tokens),
    }


MODELS: dict[str, Callable[[], Shapes]] = {
    "gpt2-small": lambda: _gpt2(768, 12),
    "gpt2-medium": lambda: _gpt2(1024, 24),
    "gpt2-large": lambda: _gpt2(1280, 36),
    "gpt2-xl": lambda: _gpt2(1600, 48),
    "llama-7b": lambda: _llama(4096, 32, 11008, 4096, 32000),
    "llama-70b": lambda: _llama(8192, 80, 28672, 1024, 32000),
    "llama-405b": lambda: _llama(16384, 126, 53248, 1024, 128256),
}


def model_shapes(name: str, dtype: Any = jnp.float32) -> PyTree:
    """The parameters of a known model, as shapes; nothing is allocated.

    Args:
      name: gpt2-small, gpt2-medium, gpt2-large, gpt2-xl, llama-7b, llama-70b (Llama 2)
        or llama-405b (Llama 3.1). Layers are stacked along a leading axis.
      dtype: of all parameters.

    Returns:
      Nested dicts of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: no such model; a dtype that is not floating.

    >>> model_shapes("llama-7b")["layers"]["w_up"].shape
    (32, 4096, 11008)

    Source: see the module `adamx.sharding._models`.
    """
    _checks.check_choice("model", name, tuple(MODELS))
    return with_dtype(MODELS[name](), dtype)


def read_shapes(path: pathlib.Path) -> Shapes:
    """Shapes from JSON: {"dense": {"kernel": [8, 4], "bias": [4]}}.

    Raises:
      OSError, ValueError: it cannot be read, is no JSON, or not of shapes.
    """
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise type(error)(
            f"'{path}' must be a JSON file of shapes that can be read, got "
            f"{error.strerror}; a known model is given by its name, e.g. 'llama-7b'."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"'{path}' must be a JSON file of shapes, got {error}; write e.g. "
            '{"dense": {"kernel": [8, 4], "bias": [4]}}.'
        ) from None
    if not isinstance(shapes, dict):
        raise ValueError(
            f"'{path}' must hold a JSON object of shapes by name, got "
            f'{type(shapes).__name__}; write e.g. {{"kernel": [8, 4]}}.'
        )
    return shapes


def _is_shape(x: Any) -> bool:
    return isinstance(x, (tuple, list)) and all(
        isinstance(n, int) and not isinstance(n, bool) for n in x
    )


def with_dtype(shapes: PyTree, dtype: Any) -> PyTree:
    """A tree of ShapeDtypeStructs, from one of these, of arrays or of shapes.

    Args:
      shapes: of arrays; or nested dicts of lists or tuples of sizes.
      dtype: of all floating leaves; None: as they are, float32 where they have none.

    Raises:
      TypeError: a leaf that is neither.
      ValueError: a negative size; no parameters.
    """
    dtype = _checks.check_dtype("dtype", dtype)

    def abstract(path: Any, x: Any) -> Any:
        name = _tree.path_name(path)
        if _is_shape(x):
            if min(x, default=0) < 0:
                raise ValueError(
                    f"shape at '{name}' must have sizes >= 0, got {x!r}; give the "
                    "shape of the whole parameter, not of a piece."
                )
            return jax.ShapeDtypeStruct(tuple(x), dtype or jnp.float32)
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise TypeError(
                f"shape at '{name}' must be a list of whole numbers such as [8, 4], or "
                f"an array or jax.ShapeDtypeStruct, got {_checks.describe_value(x)}; "
                "products are not computed: write the sizes out."
            )
        is_cast = dtype is not None and jnp.issubdtype(x.dtype, jnp.inexact)
        return jax.ShapeDtypeStruct(x.shape, dtype if is_cast else x.dtype)

    found = jax.tree_util.tree_map_with_path(abstract, shapes, is_leaf=_is_shape)
    if not jax.tree.leaves(found):
        raise ValueError(
            "`param_shapes` must hold at least one parameter, got none; pass a model's "
            f"name ({', '.join(MODELS)}) or a tree of shapes."
        )
    return found


def as_shapes(param_shapes: Mapping[str, Any] | str | pathlib.Path, dtype: Any) -> Any:
    """What `plan` was given: a name, a file or a tree."""
    if isinstance(param_shapes, str):
        return model_shapes(param_shapes, dtype)
    if isinstance(param_shapes, pathlib.Path):
        return with_dtype(read_shapes(param_shapes), dtype)
    return with_dtype(param_shapes, dtype)
