"""The way back: our state as an optimizer's state_dict for PyTorch.

Only what a State recorded enters: kind, count, b's, eps, rates, bias corrections. What
stands in no state is not known here: Nesterov's form, dampening, a sign, a mask of the
decay. `like`, a state_dict of the optimizer in PyTorch, supplies it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx import _checks, _tree
from adamx._types import PyTree
from adamx.interop._torch_layout import NameMap, Placed, Placement
from adamx.interop._torch_read import _listed, _nested
from adamx.interop._torch_seen import Found, by_path


def to_torch(
    state: PyTree,
    params: PyTree,
    name_map: NameMap = None,
    *,
    names: Any = None,
    like: Mapping[str, Any] | None = None,
    as_numpy: bool = False,
) -> dict[str, Any]:
    """The state of an optimizer as a state_dict of `torch.optim`.

        optimizer.load_state_dict(to_torch(state, params, name_map, names=names))

    The inverse of `from_torch`: of Adam, AdamW, AMSGrad (maximum_of="nu"), NAdam with
    momentum_decay, RAdam, Adamax, Sparse Adam, Lion (lion-pytorch's), RMSProp (eps
    outside the root), SGD and momentum, with one rate and one decay, in `groups` and in
    wrappers of one state. Hyperparameters are read from what the state recorded;
    float32's 0.9 is written 0.9.

    What no state records comes from `like`, else: no Nesterov form, no dampening,
    nothing maximised. A mask of the decay is not seen: use `groups`.

    Args:
      state: ours, of `tx.init` or `tx.update`.
      params: the parameters here, or their shapes.
      name_map: as for `from_torch`, from torch's names to paths here.
      names: torch's names in the optimizer's order: a list, or a list by group. Of one
        list and several groups here, each of these becomes one there. None: those in
        `like`; else the keys of a `name_map` that lists every tensor by its full name.
      like: `optimizer.state_dict()` of the optimizer that it is for: its groups, and
        what the state does not say.
      as_numpy: NumPy arrays in the place of tensors; needs no PyTorch.

    Returns:
      The state_dict, with `param_names` in its groups.

    Raises:
      ImportError: PyTorch is not there.
      TypeError, ValueError: a state that PyTorch has no optimizer for, and why; names
        that do not fit.

    >>> import adamx, jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.zeros((3, 2))}}
    >>> state = adamx.adamw(1e-3, weight_decay=0.1).init(params)
    >>> back = to_torch(state, params, names=["dense.weight"], as_numpy=True)
    >>> group = back["param_groups"][0]
    >>> group["lr"], group["betas"], group["weight_decay"], group["param_names"]
    (0.001, (0.9, 0.999), 0.1, ['dense.weight'])
    """
    _checks.check_flag("as_numpy", as_numpy)
    lists, is_flat = _names_by_group(names, name_map, like)
    flat = [name for own in lists for name in own]
    place = Placement(dict.fromkeys(flat), params, name_map)
    lost = [name for name in flat if name not in place.placed]
    if lost:
        place.problems["extra"] = [f"{_tree.some(lost)}: None is for other tensors"]
    place.check("`names`")
    paths = [place.placed[name].path for name in flat]
    found = by_path(state, paths, _likes(lists, place.placed, like))
    if is_flat:
        lists = _split(lists[0], place.placed, found)
    result = _assembled(lists, place.placed, found, like)
    return result if as_numpy else _as_tensors(result)


def params_to_torch(
    params: PyTree,
    names: Any,
    name_map: NameMap = None,
    *,
    as_numpy: bool = False,
) -> dict[str, Any]:
    """Parameters as a model's state_dict for PyTorch.

        model.load_state_dict(params_to_torch(params, model.state_dict(), name_map))

    Args:
      params: the parameters here.
      names: torch's names, or the model's state_dict().
      name_map: as for `from_torch`. Where it leaves tensors out (tied weights,
        buffers), load with strict=False.
      as_numpy: NumPy arrays in the place of tensors; needs no PyTorch.

    Returns:
      Tensors by torch's name, copies.

    Raises:
      ImportError: PyTorch is not there.
      TypeError, ValueError: lists all names without a parameter, and the other way
        round.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.zeros((3, 2))}}
    >>> params_to_torch(params, ["dense.weight"], as_numpy=True)["dense.weight"].shape
    (2, 3)
    """
    _checks.check_flag("as_numpy", as_numpy)
    is_model = isinstance(names, Mapping)
    flat = list(names) if is_model else [n for x in _nested(names) for n in _listed(x)]
    shapes = {n: tuple(names[n].shape) if is_model else None for n in flat}
    place = Placement(shapes, params, name_map)
    place.check("`names`")
    leaves = _tree.leaves_by_path(params)
    result = {
        name: np.ascontiguousarray(placed.back(np.asarray(leaves[placed.path])))
        for name, placed in place.placed.items()
    }
    return result if as_numpy else _as_tensors(result)


# ------------------------------------------------------------------------- names


def _names_by_group(
    names: Any, name_map: NameMap, like: Mapping[str, Any] | None
) -> tuple[list[list[str]], bool]:
    """Names by group; and whether nobody said what the groups are."""
    groups = [] if like is None else list(like["param_groups"])
    if names is None and groups and all("param_names" in g for g in groups):
        return [list(group["param_names"]) for group in groups], False
    if names is None and isinstance(name_map, Mapping):
        plain = [n for n in name_map if n.replace(".", "").replace("_", "").isalnum()]
        if len(plain) == len(name_map) and plain:
            names = plain
    if names is None:
        raise ValueError(
            "`names` must be given: the parameters' names in PyTorch, in the order of "
            "the optimizer there, e.g. [name for name, _ in model.named_parameters()]."
        )
    nested = _nested(names)
    lists = [_listed(each) for each in nested]
    is_nested = not isinstance(names, Mapping) and nested == names
    sizes = [len(group["params"]) for group in groups]
    if groups and len(lists) == 1 < len(sizes):
        left = iter(lists[0])
        lists = [[n for _, n in zip(range(k), left, strict=False)] for k in sizes]
        lists[-1] += list(left)
    if groups and [len(own) for own in lists] != sizes:
        raise ValueError(
            f"`names` must be as many as the parameters of `like`, {sizes} by group, "
            f"got {[len(own) for own in lists]}; list them in the optimizer's order."
        )
    return lists, not (is_nested or groups)


def _likes(
    lists: Sequence[Sequence[str]],
    placed: Mapping[str, Placed],
    like: Mapping[str, Any] | None,
) -> dict[str, Mapping[str, Any]]:
    """By path the group of `like`; nothing without it."""
    if like is None:
        return {}
    pairs = zip(lists, like["param_groups"], strict=True)
    return {placed[name].path: group for own, group in pairs for name in own}


def _split(
    names: Sequence[str], placed: Mapping[str, Placed], found: Mapping[str, Found]
) -> list[list[str]]:
    """Names by what our groups have set, in the order of their first."""
    sets: list[tuple[Any, list[str]]] = []
    for name in names:
        own = (found[placed[name].path].kind, found[placed[name].path].group)
        for other, members in sets:
            if other == own:
                members.append(name)
                break
        else:
            sets.append((own, [name]))
    return [members for _, members in sets]


def _assembled(
    lists: Sequence[Sequence[str]],
    placed: Mapping[str, Placed],
    found: Mapping[str, Found],
    like: Mapping[str, Any] | None,
) -> dict[str, Any]:
    number, groups, states = 0, [], {}
    for g, names in enumerate(lists):
        members = [found[placed[name].path] for name in names]
        for name, own in zip(names, members, strict=True):
            if (own.kind, own.group) != (members[0].kind, members[0].group):
                raise ValueError(
                    "`names` must be by group of one rate, decay and kind, got unlike "
                    f"ones in group {g}: {members[0].kind} {members[0].group} of "
                    f"'{names[0]}', {own.kind} {own.group} of '{name}'. Give a list "
                    "for each group."
                )
        numbers = list(range(number, number + len(names)))
        number += len(names)
        extra = dict(like["param_groups"][g]) if like is not None else {}
        own_group = extra | (members[0].group if members else {})
        groups.append(own_group | {"params": numbers, "param_names": list(names)})
        for i, name, own in zip(numbers, names, members, strict=True):
            if own.state:
                states[i] = {
                    key: placed[name].back(x) if np.ndim(x) else x
                    for key, x in own.state.items()
                }
    return {"state": states, "param_groups": groups}


def _as_tensors(tree: Any) -> Any:
    """Arrays as tensors: copies; counts and products too, as torch keeps them."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "tensors need PyTorch: pip install 'adamx[torch]', or pass as_numpy=True."
        ) from error

    def tensor(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        if str(x.dtype) == "bfloat16":
            return torch.from_numpy(x.astype(np.float32)).bfloat16()
        return torch.from_numpy(np.array(x, order="C"))

    if isinstance(tree, dict) and "param_groups" in tree:
        states = {
            i: {k: tensor(x) for k, x in s.items()} for i, s in tree["state"].items()
        }
        return {"state": states, "param_groups": tree["param_groups"]}
    return {key: tensor(x) for key, x in tree.items()}
