"""A run of PyTorch, continued here: its optimizer's state, and the transformation.

    checkpoint = load_torch("run.pt")  # {"model": ..., "optimizer": ...}
    run = convert_torch(checkpoint, params)
    run.params, run.tx, run.state

What each hyperparameter becomes is in `_torch_rules`, where each tensor goes in
`_torch_layout`, what is read in `_torch_read`, and all together in `_torch_plan`.
"""

from collections.abc import Mapping
from typing import Any

import jax

from adamx import _tree
from adamx._types import GradientTransformationExtraArgs, PyTree
from adamx.interop._torch_layout import NameMap, Placement
from adamx.interop._torch_plan import Plan, put, state_of
from adamx.interop._torch_read import as_numpy, check_tensors, shape_of


def from_torch(
    state_dict: Mapping[str, Any],
    params: PyTree,
    name_map: NameMap = None,
    *,
    names: Any = None,
    optimizer: str | None = None,
    learning_rate: Any = None,
    untrained: str = "error",
    step: int | None = None,
) -> PyTree:
    r"""The state of an optimizer of PyTorch as the state of `torch_optimizer`.

        tx = torch_optimizer(state_dict, params, name_map)
        state = from_torch(state_dict, params, name_map)

    Of Adam, AdamW (with amsgrad too), SGD, RMSprop, NAdam, RAdam, Adamax, SparseAdam,
    of lion-pytorch's Lion, and of Adam and AdamW of bitsandbytes, whose 8-bit codes are
    decoded. Moments go where their parameters go, with the same axes; counts and bias
    corrections are those of the steps taken, so that the next step is PyTorch's next
    step.

    Where a tensor goes: its name, through `name_map`, with '/' for '.'; a `weight` that
    the tree does not have is its `kernel`, `scale` or `embedding`. With which axes: a
    kernel is transposed (Linear), or OIHW -> HWIO (Conv2d) and likewise for 1 and 3
    dimensions; what has the same name on both sides, embeddings, scales and biases are
    taken as they are. A shape never decides. A ConvTranspose goes as a Conv, as Flax's
    with transpose_kernel=True has it; without, Flax has it unflipped: flip the tensor
    and its moments before, and give its permutation, (2, 3, 0, 1).

    Args:
      state_dict: `optimizer.state_dict()`, of tensors or of NumPy arrays.
      params: the parameters here, or their shapes (`jax.ShapeDtypeStruct`).
      name_map: dict from regular expressions to replacements as `re.sub` takes them,
        applied one after another, r"^layers\.(\d+)\.": r"layers_\1."; or a function
        from torch's name to the path, as it is. A replacement may be a pair (path,
        permutation of torch's axes); None leaves a tensor out. None: names alone.
      names: the parameters' names in the optimizer's order: a list (or
        `model.named_parameters()`), a list of lists by group, or the model's
        state_dict() for one group. None: those in the state_dict, where it has them.
      optimizer: the class, "AdamW", where the state_dict does not tell: Adam or AdamW
        with a decay of older versions; RAdam or Adamax before a step; bitsandbytes; an
        optimizer from elsewhere with the steps of that class.
      learning_rate: a number or schedule in the place of torch's present one, or a list
        by group; a schedule goes on at the step that is reached.
      untrained: "error" where a parameter here has no counterpart; or "freeze", which
        freezes it, and what has no state there where others have one.
      step: the steps taken, for SGD and Lion, which do not count them: needed
        where `learning_rate` is a schedule. None: the state's.

    Returns:
      The state.

    Raises:
      TypeError, ValueError: an argument is something else; lists all tensors that are
        missing, extra, mis-shaped or ambiguous.

    >>> import jax.numpy as jnp, numpy as np
    >>> state_dict = {
    ...     "state": {0: {"momentum_buffer": np.ones((2, 3), np.float32)}},
    ...     "param_groups": [
    ...         {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0,
    ...          "nesterov": False, "maximize": False, "params": [0]}
    ...     ],
    ... }
    >>> params = {"dense": {"kernel": jnp.zeros((3, 2))}}
    >>> state = from_torch(state_dict, params, names=["dense.weight"])
    >>> state[0].trace["dense"]["kernel"].shape
    (3, 2)
    """
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
    return state_of(plan, params)


def torch_optimizer(
    state_dict: Mapping[str, Any],
    params: PyTree,
    name_map: NameMap = None,
    *,
    names: Any = None,
    optimizer: str | None = None,
    learning_rate: Any = None,
    untrained: str = "error",
) -> GradientTransformationExtraArgs:
    """The transformation with the arithmetic of an optimizer of PyTorch.

    One of ours by its arguments, or `groups` of them where torch has several groups
    (or one whose parameters have taken unlike numbers of steps). `convert_torch` has it
    as code, too.

    Args:
      state_dict, params, name_map, names, optimizer, learning_rate, untrained: see
        `from_torch`.

    Returns:
      The transformation that `from_torch` gives the state of.

    >>> import jax.numpy as jnp, numpy as np
    >>> group = {"lr": 0.1, "momentum": 0.0, "dampening": 0, "weight_decay": 0}
    >>> state_dict = {"state": {}, "param_groups": [group | {"params": [0]}]}
    >>> params = {"dense": {"kernel": jnp.zeros((3, 2))}}
    >>> tx = torch_optimizer(state_dict, params, names=["dense.weight"])
    >>> updates, _ = tx.update(params, tx.init(params), params)
    """
    return Plan(
        state_dict,
        params,
        name_map,
        names=names,
        optimizer=optimizer,
        learning_rate=learning_rate,
        untrained=untrained,
    ).tx()


def params_from_torch(
    model: Mapping[str, Any], params: PyTree, name_map: NameMap = None
) -> PyTree:
    """The weights of a model of PyTorch as parameters here.

    Args:
      model: `model.state_dict()`, of tensors or of NumPy arrays. BatchNorm's
        num_batches_tracked is left out; running means belong to `params` too, or are
        mapped to None. Of tied weights map one to None.
      params: the parameters here, or their shapes: where it goes, and the dtypes.
      name_map: see `from_torch`.

    Returns:
      A tree like `params`, on the devices of its arrays.

    Raises:
      TypeError, ValueError: as `from_torch`.

    >>> import jax.numpy as jnp, numpy as np
    >>> model = {"dense.weight": np.ones((2, 3)), "dense.bias": np.ones(2)}
    >>> params = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    >>> params_from_torch(model, params)["dense"]["kernel"].shape
    (3, 2)
    """
    check_tensors("model", model)
    place = Placement({k: shape_of(x) for k, x in model.items()}, params, name_map)
    place.check("`model`")
    arrays = {p.path: p.forth(as_numpy(k, model[k])) for k, p in place.placed.items()}
    leaves = _tree.leaves_by_path(params)
    placed = [put(path, arrays[path], like, like) for path, like in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), placed)
