"""Checkpoints of PyTorch in files, and all of one at once."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from adamx import _checks, _tree
from adamx._printed import Printed
from adamx._types import GradientTransformation, PyTree
from adamx.interop._torch import params_from_torch
from adamx.interop._torch_layout import NameMap, Placement
from adamx.interop._torch_plan import Plan, state_of
from adamx.interop._torch_read import as_numpy, check_tensors, has_names, shape_of

_RULES = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)
_MODELS = ("model", "model_state_dict", "state_dict", "module")
_OPTIMIZERS = (
    "optimizer",
    "optimizer_state_dict",
    "optim",
    "optimizer_state",
    "optimizer_states",
    "optimizers",
)


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Reads a file of PyTorch on the CPU, without running code that it holds.

    Args:
      path: what `torch.save` wrote (it is read with weights_only=True), or a
        `.safetensors` file: tensors by name.

    Returns:
      What was saved, with tensors; of safetensors a dict of NumPy arrays, without
      PyTorch, or of tensors where some are bfloat16.

    Raises:
      ImportError: PyTorch, or safetensors, is not there.
      ValueError: the file holds something else than tensors, numbers, text, lists and
        dicts, and was not read.

    >>> load_torch("no_such_run.pt")
    Traceback (most recent call last):
    FileNotFoundError: `path` must be a file, got 'no_such_run.pt'.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file, got '{path}'.")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"'{path}' needs PyTorch to be read: pip install 'adamx[torch]'."
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # what damage leads to is of any kind
        raise ValueError(
            f"`path` must be a file of tensors, numbers, text, lists and dicts, got "
            f"'{path}', which is damaged or holds other objects; it was not run. Save "
            "{'model': model.state_dict(), 'optimizer': optimizer.state_dict()}."
        ) from error


def _safetensors(path: pathlib.Path) -> dict[str, Any]:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"'{path}' needs safetensors to be read: pip install safetensors."
        ) from error
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`path` must be a file of safetensors, got '{path}', which is damaged or "
            "something else; save it with safetensors.torch.save_file."
        ) from error
    except (TypeError, KeyError, AttributeError):  # bfloat16, which NumPy has not
        import safetensors.torch

        return safetensors.torch.load_file(path)


@dataclasses.dataclass(frozen=True, repr=False)
class TorchRun(Printed):
    """What `convert_torch` returns; `print` shows what went where.

    Attributes:
      params: the parameters; None where the checkpoint had no model.
      tx: the transformation; None where the checkpoint had no optimizer.
      state: of `tx`.
      step: the steps taken.
      code: makes `tx`; "" where there is none.
      rows: for each tensor its name, shape, path, shape there, group.
      groups: for each group its label and code.
      notes: what is to be looked at.
    """

    params: PyTree
    tx: GradientTransformation | None
    state: PyTree
    step: int
    code: str
    rows: tuple[tuple[str, str, str, str, str], ...]
    groups: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        table = Table(
            box=_RULES, show_edge=False, pad_edge=False, collapse_padding=True
        )
        for heading in ("PyTorch", "shape", "here", "shape", "group"):
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield table
        yield Text(f"{len(self.rows)} tensors, {self.step} steps")
        if self.code:
            # Not folded: it is to be copied.
            yield Text(f"tx = {self.code}", no_wrap=True, overflow="ignore")
        yield from map(Text, self.notes)


def convert_torch(
    checkpoint: Mapping[str, Any],
    params: PyTree = None,
    name_map: NameMap = None,
    *,
    names: Any = None,
    optimizer: str | None = None,
    learning_rate: Any = None,
    untrained: str = "error",
    step: int | None = None,
) -> TorchRun:
    """A whole checkpoint of PyTorch: parameters, transformation, state, and a table.

        run = convert_torch(load_torch("run.pt"), params)
        print(run)

    Args:
      checkpoint: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        also under the names model_state_dict, state_dict, optimizer_state_dict, optim,
        optimizer_states (of Lightning, a list of one); or one of the two alone.
      params: the parameters here, or their shapes; None: a tree is made of the names,
        in which a `weight` of two axes must be mapped to a kernel or an embedding.
      name_map, names, optimizer, learning_rate, untrained, step: see `from_torch`.
        Without `names`, those of the model's state_dict are taken where it has one and
        the optimizer one group.

    Returns:
      A `TorchRun`.

    Raises:
      TypeError, ValueError: as `from_torch`.

    >>> import numpy as np
    >>> model = {"dense.weight": np.ones((2, 3), np.float32)}
    >>> run = convert_torch({"model": model}, name_map={"weight": "kernel"})
    >>> run.params["dense"]["kernel"].shape
    (3, 2)
    """
    model, state_dict = _parts(checkpoint)
    if model is not None:
        check_tensors("checkpoint", model)
    if params is None:
        params = _tree_of(model, name_map)
    place = None
    made = None
    if model is not None:
        made = params_from_torch(model, params, name_map)
        shapes = {k: shape_of(x) for k, x in model.items()}
        place = Placement(shapes, params, name_map)
    if state_dict is None:
        return TorchRun(made, None, None, step or 0, "", _rows(place, model, None), ())
    if names is None and model is not None and not has_names(state_dict):
        names = model
    plan = Plan(
        state_dict,
        params,
        name_map,
        names=names,
        optimizer=optimizer,
        learning_rate=learning_rate,
        untrained=untrained,
        step=step,
    )
    return TorchRun(
        params=made,
        tx=plan.tx(),
        state=state_of(plan, params),
        step=plan.step,
        code=plan.code,
        rows=_rows(place, model, plan),
        groups=tuple((group.label, group.code) for group in plan.groups),
        notes=_notes(plan, untrained),
    )


def _notes(plan: Plan, untrained: str) -> tuple[str, ...]:
    if not plan.untouched or untrained == "freeze":
        return ()
    return (
        f"Not trained there so far, but from now on here: {_tree.some(plan.untouched)}."
        " Were they frozen? untrained='freeze' freezes them.",
    )


def _parts(checkpoint: Any) -> tuple[Any, Any]:
    """The model's and the optimizer's state_dict of a checkpoint."""
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            "`checkpoint` must be a dict with the state_dict of a model and of an "
            f"optimizer, got {_checks.describe_value(checkpoint)}; save "
            "state_dict()s, not objects."
        )
    if {"state", "param_groups"} <= set(checkpoint):
        return None, checkpoint
    if all(hasattr(x, "shape") for x in checkpoint.values()) and checkpoint:
        return checkpoint, None
    model, optimizer = (
        next((checkpoint[k] for k in keys if k in checkpoint), None)
        for keys in (_MODELS, _OPTIMIZERS)
    )
    if isinstance(optimizer, (list, tuple)) and len(optimizer) == 1:
        optimizer = optimizer[0]
    unread = [
        str(key)
        for key, part in checkpoint.items()
        if optimizer is None and isinstance(part, Mapping) and "param_groups" in part
    ]
    if unread or (model is None and optimizer is None):
        raise ValueError(
            "`checkpoint` must have a part 'model' or 'optimizer', got "
            f"{', '.join(map(str, checkpoint))}; pass them under these names: "
            "{'model': ..., 'optimizer': ...}."
        )
    return model, optimizer


def _tree_of(model: Mapping[str, Any] | None, name_map: NameMap) -> PyTree:
    """Nested dicts of a model's tensors by the paths that their names give."""
    if model is None:
        raise ValueError(
            "`params` must be given for a checkpoint without a model: paths and shapes "
            "of the parameters are not known."
        )
    shapes = {k: shape_of(x) for k, x in model.items()}
    place = Placement(shapes, None, name_map)
    place.check("`checkpoint`")
    tree: dict[str, Any] = {}
    for name, placed in place.placed.items():
        *heads, last = placed.path.split("/")
        node = tree
        for head in heads:
            node = node.setdefault(head, {})
        x = placed.forth(as_numpy(name, model[name]))
        node[last] = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    return tree


def _rows(
    place: Placement | None, model: Mapping[str, Any] | None, plan: Plan | None
) -> tuple[tuple[str, str, str, str, str], ...]:
    """One for each tensor of the model; without one, for each that is trained."""
    groups: dict[str, str] = {}
    for group in plan.groups if plan else ():
        groups |= dict.fromkeys(group.paths, group.label)
    placed = place.placed if place else plan.placed if plan else {}
    shapes = {k: shape_of(x) for k, x in (model or {}).items()}
    for group in plan.groups if plan else ():
        for param in group.params:
            for x in param.moments.values():
                shapes.setdefault(param.name, shape_of(x))
    rows = []
    for name, own in placed.items():
        shape = shapes.get(name)
        there = "" if shape is None else str(own.shape(shape))
        known = "" if shape is None else str(shape)
        rows.append((name, known, own.path, there, groups.get(own.path, "")))
    return tuple(rows)
