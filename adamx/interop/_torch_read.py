"""What a state_dict of PyTorch says of each parameter, as NumPy arrays by name.

    {"state": {0: {"step": 120., "exp_avg": ..., "exp_avg_sq": ...}, 1: ...},
     "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), ..., "params": [0, 1]}, ...]}

Parameters have numbers, which count through the groups. Their names are in
`param_names` of the groups where the optimizer was made of named parameters, as newer
versions allow; else they must be given.

States of bitsandbytes are decoded: value = qmap[code] * absmax of the code's block, of
256 or 2048 elements in the order of the memory.

Source: `torch.optim.Optimizer.state_dict`; bitsandbytes, `optim/optimizer.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from adamx import _checks, _tree
from adamx.interop._torch_class import class_of, number

# By class, torch's names of what is kept for a parameter, and ours.
MOMENTS: dict[str, dict[str, str]] = {
    "Adam": {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    "SGD": {"momentum_buffer": "trace"},
    "RMSprop": {"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "trace"},
    "Adamax": {"exp_avg": "mu", "exp_inf": "nu"},
    "Lion": {"exp_avg": "mu"},
}
for _name in ("AdamW", "NAdam", "RAdam", "SparseAdam"):
    MOMENTS[_name] = MOMENTS["Adam"]
_OTHERS = ("step", "mu_product")
SQUARES = (
    "torch keeps squares of real and imaginary parts apart, here it is |g|^2; split "
    "the parameter (torch.view_as_real) before"
)
_BUFFERS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_BLOCKS = (256, 2048, 4096)


class Param(NamedTuple):
    """What is known of a parameter.

    Attributes:
      name: torch's.
      group: index of its group.
      step: steps taken; 0 where there is no state yet, None where none are counted.
      moments: by our names, arrays with torch's axes.
      mu_product: NAdam's product of the m_t; None elsewhere.
    """

    name: str
    group: int
    step: int | None
    moments: dict[str, np.ndarray]
    mu_product: float | None


class StateDict(NamedTuple):
    """A state_dict that was read.

    Attributes:
      groups: `param_groups`, as they are.
      kinds: for each the class in torch.optim.
      params: of all groups, in torch's order.
    """

    groups: list[Mapping[str, Any]]
    kinds: list[str]
    params: list[Param]


def as_numpy(name: str, x: Any) -> np.ndarray:
    """A NumPy array of a tensor or an array; bfloat16 stays that.

    Raises:
      ValueError: it holds no plain numbers; with its name.
    """
    if not hasattr(x, "detach"):
        return np.asarray(x)
    try:
        return _as_numpy(x.detach().cpu().resolve_conj().resolve_neg())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"'{name}' must be a dense tensor of plain numbers, got {x.dtype}, "
            f"{x.layout}, on {x.device}; change it before, e.g. by x.dequantize(), "
            "x.to_dense(), or full_tensor() of what is distributed."
        ) from error


def _as_numpy(x: Any) -> np.ndarray:
    if "bfloat16" in str(x.dtype) or "float8" in str(x.dtype):
        return (
            x.float()
            .numpy()
            .astype(jnp.bfloat16 if "bfloat16" in str(x.dtype) else np.float32)
        )
    return x.numpy()


def shape_of(x: Any) -> tuple[int, ...]:
    """Of a tensor or an array."""
    return tuple(map(int, x.shape))


def check_tensors(name: str, value: Any) -> None:
    """Raises TypeError unless it is a model's state_dict: tensors by name."""
    if not isinstance(value, Mapping) or not all(
        isinstance(k, str) and hasattr(x, "shape") for k, x in value.items()
    ):
        raise TypeError(
            f"`{name}` must be a model's state_dict(), tensors by name, got "
            f"{_checks.describe_value(value)}; of a checkpoint with several parts pass "
            "the part, e.g. checkpoint['model']."
        )


def read_state_dict(
    state_dict: Any, names: Any = None, optimizer: str | None = None
) -> StateDict:
    """Reads an optimizer's state_dict.

    Args:
      state_dict: see the module.
      names, optimizer: see `from_torch`.

    Raises:
      TypeError, ValueError: what it is not, or what is missing.
    """
    check_form(state_dict)
    groups, raw = list(state_dict["param_groups"]), state_dict["state"]
    known = {i for group in groups for i in group["params"]}
    unknown = [str(i) for i in raw if i not in known]
    if unknown:
        raise ValueError(
            "`state_dict` must have states of the parameters in its groups, got some "
            f"of others: {_tree.some(unknown)}. Pass optimizer.state_dict() whole."
        )
    if not known:
        raise ValueError(
            "`state_dict` must have parameters in its groups, got none; nothing is to "
            "be converted."
        )
    found = _names(groups, names)
    kinds, params, problems = [], [], []
    for g, group in enumerate(groups):
        states = [raw.get(i) or {} for i in group["params"]]
        kind = class_of(group, states, optimizer)
        kinds.append(kind)
        for name, state in zip(found[g], states, strict=True):
            param, wrong = _param(name, g, kind, group, state)
            params.append(param)
            problems += wrong
    if problems:
        raise ValueError(
            "`state_dict` must have what its class keeps for each parameter; nothing "
            "was converted.\n  "
            + "\n  ".join(problems)
            + "\nPass it as optimizer.state_dict() gave it."
        )
    return StateDict(groups, kinds, params)


def has_names(state_dict: Any) -> bool:
    """Whether an optimizer's state_dict knows its parameters by name."""
    check_form(state_dict)
    groups = state_dict["param_groups"]
    return all("param_names" in group for group in groups) or all(
        isinstance(i, str) for group in groups for i in group["params"]
    )


def check_form(state_dict: Any) -> None:
    """Raises TypeError unless it is an optimizer's state_dict."""
    is_one = isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(
        state_dict
    )
    if not is_one or not state_dict["param_groups"]:
        keys = (
            ", ".join(map(str, state_dict)) if isinstance(state_dict, Mapping) else ""
        )
        raise TypeError(
            "`state_dict` must be optimizer.state_dict() of torch.optim, with 'state' "
            f"and 'param_groups', got {_checks.describe_value(state_dict)}"
            + (f" with {keys[:200]}" if keys else "")
            + "; of a checkpoint with several parts pass the optimizer's, e.g. "
            "checkpoint['optimizer']."
        )


# ------------------------------------------------------------------------- names


def _names(groups: Sequence[Mapping[str, Any]], names: Any) -> list[list[str]]:
    """For each group, its parameters' names."""
    sizes = [len(group["params"]) for group in groups]
    if names is None:
        if all("param_names" in group for group in groups):
            names = [list(group["param_names"]) for group in groups]
        elif all(isinstance(i, str) for group in groups for i in group["params"]):
            # As torch.distributed.checkpoint has them.
            names = [list(group["params"]) for group in groups]
    if names is None:
        raise ValueError(
            "`names` must be given: this state_dict knows its parameters by number "
            "only. In PyTorch: names=[name for name, _ in model.named_parameters()] "
            "for one group, a list for each of several, in the order in which the "
            "optimizer got them; or the model's state_dict() for one group. (Newer "
            "PyTorch keeps them of AdamW(model.named_parameters()).)"
        )
    if isinstance(names, Mapping):
        names = _of_model(names, sizes)
    given = [_listed(each) for each in _nested(names)]
    if len(given) == 1 and len(sizes) > 1:
        flat = iter(given[0])
        given = [[n for _, n in zip(range(size), flat, strict=False)] for size in sizes]
        given[-1] += list(flat)
    if [len(each) for each in given] != sizes:
        raise ValueError(
            f"`names` must have a name for each parameter of the optimizer, {sizes} by "
            f"group, got {[len(each) for each in given]}. List them in the order in "
            "which the optimizer got them: tied parameters once, no buffers, none that "
            "it does not train."
        )
    twice = {n for each in given for n in each if sum(e.count(n) for e in given) > 1}
    if twice:
        raise ValueError(
            f"`names` must differ, got {_tree.some(sorted(twice))} twice; tied "
            "parameters are one to the optimizer: name it once."
        )
    return given


def _nested(names: Any) -> list[Any]:
    """A list of lists of names."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(
            "`names` must be a list of names, one for each group, or a model's "
            f"state_dict(), got {_checks.describe_value(names)}; e.g. "
            "['dense.weight', 'dense.bias']."
        )
    items = list(names)
    return items if items and isinstance(items[0], list) else [items]


def _listed(items: Iterable[Any]) -> list[str]:
    """Names of names or of (name, tensor)."""
    found = [item[0] if isinstance(item, tuple) else item for item in items]
    bad = [item for item in found if not isinstance(item, str)]
    if bad:
        raise TypeError(
            "`names` must be of text, or pairs as model.named_parameters() gives "
            f"them, got {_checks.describe_value(bad[0])}; write names, e.g. "
            "['dense.weight', 'dense.bias']."
        )
    return found


def _of_model(model: Mapping[str, Any], sizes: list[int]) -> list[str]:
    """Names of a model's state_dict that are parameters, in the model's order."""
    check_tensors("names", model)
    if len(sizes) > 1:
        raise ValueError(
            f"`names` must be a list of names for each of {len(sizes)} groups, got a "
            "model's state_dict, whose order is not that of the groups; e.g. "
            "[[n for n, p in model.named_parameters() if p.ndim > 1], [... if not]]."
        )
    if len(model) == sizes[0]:
        return list(model)
    names, seen = [], set()
    for name, x in model.items():
        if _BUFFERS.search(name) or "int" in str(x.dtype) or "bool" in str(x.dtype):
            continue
        where = (x.data_ptr(), shape_of(x)) if hasattr(x, "data_ptr") else id(x)
        if where not in seen or 0 in x.shape:  # tied weights are one parameter
            names.append(name)
        seen.add(where)
    return names


# ------------------------------------------------------------------------- tensors


def _param(
    name: str, g: int, kind: str, group: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[Param, list[str]]:
    """What is known of one parameter, and what is wrong with it."""
    table, problems = MOMENTS[kind], []
    if "state1" in state:
        state = _decoded(name, state)
    kept = set(needed(kind, group)) if state else set()
    missing = [key for key in kept if state.get(key) is None]
    if kind == "SGD":
        missing = []  # a buffer that has not begun
    keys = {key for key, x in state.items() if x is not None}
    extra = sorted(keys - set(table) - set(_OTHERS))
    problems += [f"missing: '{key}' of '{name}'" for key in sorted(missing)]
    problems += [f"unknown: '{key}' of '{name}'" for key in extra]
    moments = {
        ours: as_numpy(f"{key} of {name}", state[key])
        for key, ours in table.items()
        if key in kept and state.get(key) is not None
    }
    for key, ours in table.items():
        if ours not in moments:
            continue
        if np.iscomplexobj(moments[ours]) and kind != "SGD":
            problems.append(f"complex: '{key}' of '{name}': {SQUARES}")
        elif not jnp.issubdtype(moments[ours].dtype, np.inexact):
            dtype = moments[ours].dtype
            problems.append(f"mis-typed: '{key}' of '{name}' is {dtype}, not a float")
    shapes = {shape_of(x) for x in moments.values()}
    if len(shapes) > 1:
        problems.append(f"mis-shaped: '{name}' has moments of shapes {sorted(shapes)}")
    counted = state.get("step", None if kind in ("SGD", "Lion") else 0)
    step = None if counted is None else _steps(counted)
    if step is None and counted is not None:
        problems.append(
            f"mis-typed: 'step' of '{name}' is {counted!r}, not a number of steps"
        )
    product = state.get("mu_product")
    product = None if product is None else number("mu_product", product)
    return Param(name, g, step, moments, product), problems


def _steps(x: Any) -> int | None:
    """A whole number of steps that an int32 holds; None where it is something else."""
    try:
        value = number("step", x)
    except TypeError:
        return None
    return int(value) if 0 <= value < 2**31 and value == int(value) else None


def needed(kind: str, group: Mapping[str, Any]) -> list[str]:
    """What the class keeps with these arguments."""
    if kind == "SGD":
        return ["momentum_buffer"] if number("momentum", group["momentum"]) else []
    if kind == "RMSprop":
        keys = ["square_avg"] + ["grad_avg"] * bool(group["centered"])
        return keys + ["momentum_buffer"] * (number("momentum", group["momentum"]) > 0)
    if kind == "Lion":
        return ["exp_avg"]
    if kind == "Adamax":
        return ["step", "exp_avg", "exp_inf"]
    keys = ["step", "exp_avg", "exp_avg_sq"]
    keys += ["max_exp_avg_sq"] * bool(group.get("amsgrad", False))
    return keys + ["mu_product"] * (kind == "NAdam")


def _decoded(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of bitsandbytes as one of torch.optim.Adam, in float32."""
    found: dict[str, Any] = {"step": state.get("step", 0)}
    for i, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
        codes = as_numpy(f"state{i} of {name}", state[f"state{i}"])
        if codes.dtype != np.uint8:
            found[key] = codes
            continue
        parts = [state.get(f"{part}{i}") for part in ("qmap", "absmax", "max")]
        qmap, absmax, largest = (
            None if x is None else as_numpy(name, x) for x in parts
        )
        if qmap is None or (absmax is None and largest is None):
            raise ValueError(
                f"`state_dict` must have 'qmap{i}' and 'absmax{i}' beside 'state{i}' "
                f"of '{name}', got {', '.join(state)}; pass it as it was saved."
            )
        values = qmap.astype(np.float32)[codes.reshape(-1)]
        scales = absmax if absmax is not None else np.asarray(largest)
        found[key] = (values * _spread(name, scales.reshape(-1), values.size)).reshape(
            codes.shape
        )
    return found


def _spread(name: str, scales: np.ndarray, size: int) -> np.ndarray:
    """For each element the scale of its block."""
    if scales.size == 1:
        return np.broadcast_to(scales, (size,)).astype(np.float32)
    for block in _BLOCKS:
        if -(-size // block) == scales.size:
            return np.repeat(scales, block)[:size].astype(np.float32)
    raise ValueError(
        f"`state_dict` must have a scale for each block of {_BLOCKS} elements of "
        f" '{name}', got {scales.size} for {size} elements; pass it as "
        "bitsandbytes saved it, and whole where it was sharded."
    )
