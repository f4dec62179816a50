"""Runs of PyTorch, stored half-way, so that going on is tested without PyTorch.

    pip install lion-pytorch          beside the extra `torch`
    python -m tests.torch_runs        writes tests/data/torch_runs.npz

A model with an embedding, two Linear layers (one of them square), a convolution and a
layer norm, in two groups with unlike rates. The gradients are fixed numbers, the same
for both sides: `gradients`. Stored are the state_dict and the parameters after `BEFORE`
steps, the parameters after some steps more, and the last state_dict.
"""

import json
import pathlib
from typing import Any

import numpy as np

PATH = pathlib.Path(__file__).parent / "data" / "torch_runs.npz"
BEFORE = 20
AFTER = (1, 10, 100)
RATES = (1e-2, 2e-2)
# The first group, then the second: the order in which torch numbers them.
SHAPES = {
    "embed.weight": (5, 3),
    "layers.0.weight": (4, 3),
    "layers.1.weight": (4, 4),
    "conv.weight": (2, 4, 3, 1),
    "layers.0.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
}
NAMES = [
    [name for name, shape in SHAPES.items() if (len(shape) > 1) == is_first]
    for is_first in (True, False)
]
NAME_MAP = {r"^layers\.(\d)": r"dense_\1"}
LATE = "layers.1.weight"  # has no gradient in the first steps of "late"

OFF: dict[str, Any] = {"betas": (0.83, 0.97), "eps": 1e-3}
# label: torch's class (Lion: lion-pytorch's), arguments of the first group, of the
# second.
# `SLOW` repeat in another mixture what others have.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "adam": ("Adam", {}, {"betas": (0.8, 0.95)}),
    "adam l2": ("Adam", {**OFF, "weight_decay": 0.3}, OFF),
    "adam amsgrad": ("Adam", {**OFF, "amsgrad": True, "weight_decay": 0.2}, OFF),
    "adam late": ("Adam", OFF, {}),
    "adamw": ("AdamW", {"weight_decay": 0.3}, {"weight_decay": 0.0}),
    "adamw amsgrad": ("AdamW", {**OFF, "amsgrad": True}, {"weight_decay": 0.0}),
    "adamw maximize": ("AdamW", {**OFF, "maximize": True}, {"maximize": True}),
    "sgd": ("SGD", {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}),
    "sgd nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}, {"momentum": 0.9}),
    "sgd dampening": ("SGD", {"momentum": 0.9, "dampening": 0.7}, {}),
    "rmsprop": ("RMSprop", {"eps": 1e-3}, {"alpha": 0.9}),
    "rmsprop centered": (
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-2, "centered": True, "momentum": 0.5},
        {"alpha": 0.9, "weight_decay": 0.1},
    ),
    "nadam": ("NAdam", {**OFF, "weight_decay": 0.2}, {"momentum_decay": 3e-2}),
    "nadamw": (
        "NAdam",
        {**OFF, "decoupled_weight_decay": True, "weight_decay": 0.2},
        {},
    ),
    "radam": ("RAdam", {**OFF, "weight_decay": 0.2}, {"eps": 1e-2}),
    "radamw": (
        "RAdam",
        {"decoupled_weight_decay": True, "weight_decay": 0.2, "eps": 1e-2},
        {"betas": (0.9, 0.99)},
    ),
    "adamax": ("Adamax", {**OFF, "weight_decay": 0.2}, {}),
    "sparse adam": ("SparseAdam", OFF, {}),
    "lion": ("Lion", {"weight_decay": 0.3}, {"betas": (0.95, 0.98)}),
}

SLOW = ("adam", "adamw amsgrad", "adamw maximize", "sgd", "rmsprop", "nadamw", "radam")


def tensors(seed: int = 3) -> dict[str, np.ndarray]:
    """The parameters to begin with, by torch's names."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def gradients(label: str) -> dict[str, np.ndarray]:
    """Of all steps, by torch's names: (steps, *shape). Rows of the embedding are 0."""
    rng = np.random.default_rng(11)
    steps = BEFORE + max(AFTER)
    found = {}
    for name, shape in SHAPES.items():
        scale = 10 ** rng.uniform(-2, 0.5, shape)
        g = rng.standard_normal((steps, *shape)) * scale + 0.3 * scale
        found[name] = g.astype(np.float32)
    rows = rng.uniform(size=(steps, SHAPES["embed.weight"][0])) < 0.4
    found["embed.weight"][rows] = 0.0
    if label == "adam late":
        found[LATE][: BEFORE // 4] = 0.0
    return found


class Run:
    """A run in PyTorch, step by step.

    Args:
      label: of the case.
      named: whether the optimizer is told the names.
    """

    def __init__(self, label: str, named: bool = False) -> None:
        import torch

        self.torch, self.label = torch, label
        kind, *groups = CASES[label]
        self.is_sparse = kind == "SparseAdam"
        self.params = {
            k: torch.nn.Parameter(torch.from_numpy(x)) for k, x in tensors().items()
        }
        self.gradients = gradients(label)
        library = torch.optim
        if kind == "Lion":
            import lion_pytorch as library
        self.optimizer = getattr(library, kind)(
            [
                {
                    "params": [
                        (n, self.params[n]) if named else self.params[n] for n in names
                    ],
                    "lr": rate,
                    **arguments,
                }
                for names, rate, arguments in zip(NAMES, RATES, groups, strict=True)
            ]
        )
        self.taken = 0

    def go(self, steps: int) -> None:
        """Takes more steps."""
        for t in range(self.taken, self.taken + steps):
            for name, p in self.params.items():
                is_late = self.label == "adam late" and name == LATE
                g = self.torch.from_numpy(self.gradients[name][t].copy())
                p.grad = g.to_sparse(sparse_dim=1) if self.is_sparse else g
                if is_late and t < BEFORE // 4:
                    p.grad = None
            self.optimizer.step()
        self.taken += steps

    def values(self) -> dict[str, np.ndarray]:
        """The parameters, copied."""
        return {k: p.detach().numpy().copy() for k, p in self.params.items()}


def as_arrays(prefix: str, state_dict: dict[str, Any]) -> dict[str, np.ndarray]:
    """A state_dict as two arrays: what there is, as JSON, and all numbers (float32)."""
    index, numbers = [], []
    for i, state in state_dict["state"].items():
        for key, x in state.items():
            value = x.numpy() if hasattr(x, "numpy") else np.float32(x)
            index.append([i, key, np.shape(value), hasattr(x, "numpy")])
            numbers.append(value.ravel())
    text = json.dumps({"index": index, "param_groups": state_dict["param_groups"]})
    vector = np.concatenate(numbers).astype(np.float32)
    return {f"{prefix}/index": np.array(text), f"{prefix}/numbers": vector}


def from_arrays(prefix: str, arrays: Any) -> dict[str, Any]:
    """The state_dict of `as_arrays`, of NumPy arrays."""
    found = json.loads(str(arrays[f"{prefix}/index"]))
    left, states = arrays[f"{prefix}/numbers"], {}
    for i, key, shape, is_tensor in found.pop("index"):
        size = int(np.prod(shape))
        value, left = left[:size].reshape(shape), left[size:]
        states.setdefault(i, {})[key] = value if is_tensor else int(value)
    return {"state": states, **found}


def together(values: dict[str, np.ndarray]) -> np.ndarray:
    """All parameters as one vector."""
    return np.concatenate([values[name].ravel() for name in SHAPES])


def all_cases() -> dict[str, np.ndarray]:
    """What is stored, from the installed PyTorch."""
    found: dict[str, np.ndarray] = {}
    for label in CASES:
        run = Run(label)
        run.go(BEFORE)
        found |= as_arrays(f"{label}/before", run.optimizer.state_dict())
        points = [together(run.values())]
        for steps in AFTER:
            run.go(BEFORE + steps - run.taken)
            points.append(together(run.values()))
        found[f"{label}/points"] = np.stack(points)
        found |= as_arrays(f"{label}/after", run.optimizer.state_dict())
    return found


if __name__ == "__main__":
    import torch

    np.savez_compressed(PATH, torch_version=torch.__version__, **all_cases())
    print(f"torch {torch.__version__}: {len(CASES)} runs -> {PATH}")
