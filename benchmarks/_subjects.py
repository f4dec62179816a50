"""What is timed: optimizers, and the ways to run one of them for one step."""

import functools
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _bounds import make_identity, make_stream
from _contestants import Contestant, Entry, make_donated

import adamx


def clipped(library: Any) -> Any:
    return optax.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3))


def coded_adamw(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    codec = make(*args, **kwargs)
    return adamx.adamw(1e-3, mu_dtype=codec, nu_dtype=codec)


class Subject(NamedTuple):
    """An optimizer.

    Attributes:
      title: its name.
      ours, theirs: how to make it with adamx and with Optax.
      accesses: to float32 numbers that a step cannot do without, for each element.
      note: what Optax's is, where it is not the same.
      peer: whether adamx's plain AdamW, in passes, is a reference too.
      torch: whether PyTorch has it; with clipping or not.
    """

    title: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    accesses: float = 7
    note: str = ""
    peer: bool = False
    torch: bool | None = None


SUBJECTS = {
    "adamw": Subject(
        "AdamW", lambda: adamx.adamw(1e-3), lambda: optax.adamw(1e-3), torch=False
    ),
    "adamw_clip": Subject(
        "AdamW, clipped at 1.0",
        lambda: clipped(adamx),
        lambda: clipped(optax),
        torch=True,
    ),
    # Bytes as of 4: p read and written, g, and two codes of a byte read and written.
    "int8": Subject(
        "8-bit AdamW",
        lambda: coded_adamw(adamx.codecs.int8),
        lambda: optax.adamw(1e-3),
        accesses=4,
        note=", float32",
        peer=True,
    ),
    "bfloat16_mean": Subject(
        "AdamW, mean in bfloat16",
        lambda: adamx.adamw(1e-3, mu_dtype=jnp.bfloat16),
        lambda: optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
        accesses=6,
    ),
    # As exact where rows are alike; what it gives up: see `adamx.codecs.int8`.
    "int8_nearest": Subject(
        "8-bit AdamW, columns, nearest",
        lambda: coded_adamw(adamx.codecs.int8, "column", rounding="nearest"),
        lambda: optax.adamw(1e-3),
        accesses=4,
        note=", float32",
        peer=True,
    ),
    "int4": Subject(
        "4-bit AdamW",
        lambda: coded_adamw(adamx.codecs.int4),
        lambda: optax.adamw(1e-3),
        accesses=3.5,
        note=", float32",
        peer=True,
    ),
    "fp8": Subject(
        "AdamW in 8-bit floats",
        lambda: coded_adamw(adamx.codecs.fp8),
        lambda: optax.adamw(1e-3),
        accesses=4,
        note=", float32",
        peer=True,
    ),
    "lion": Subject(
        "Lion", lambda: adamx.lion(1e-4), lambda: optax.lion(1e-4), accesses=5
    ),
    # The ratio must be known before p is written: m, v and p are read twice.
    "lamb": Subject(
        "LAMB", lambda: adamx.lamb(1e-3), lambda: optax.lamb(1e-3), accesses=10
    ),
    "diagnose": Subject(
        "diagnose(AdamW, every=100), between",
        lambda: adamx.diagnose(adamx.adamw(1e-3), every=100),
        lambda: optax.adamw(1e-3),
        note=", bare",
        peer=True,
    ),
}
# By name, whether all others are compared with it.
CONTESTANTS = {
    "stream": True,
    "identity": True,
    "optax": True,
    "torch_fused": True,
    "torch_foreach": False,
    "adamx": False,
    "fused": False,
    "native": False,
    "bucketed": False,
    "bucketed_native": False,
}


# --------------------------------------------------------------------------- the steps


def by_protocol(library: Any, tx: Any) -> Callable[..., Any]:
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return library.apply_updates(params, updates), state

    return step


def by_fused(kernel: str, tx: Any) -> Callable[..., Any]:
    made = adamx.fused(tx, kernel=kernel).step
    return lambda params, state, gradients: made(gradients, state, params)


def parameters(tx: Any, gradients: Any) -> list[Any]:
    """Parameters and the state of a transformation."""
    params = jax.tree.map(jnp.ones_like, gradients)
    # Eagerly: thousands of leaves take longer to compile than to make.
    return [params, tx.init(params)]


def make_jax(
    name: str, tx: Any, way: Callable[[Any], Callable[..., Any]], gradients: Any
) -> Contestant:
    """A jit-compiled, donated step of a transformation."""
    return make_donated(name, way(tx), parameters(tx, gradients), gradients)


def make_torch(kind: str, clip: bool, gradients: Any) -> Contestant:
    """torch.optim.AdamW, `fused` or `foreach`."""
    import torch

    params = [torch.nn.Parameter(torch.ones(g.shape)) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.from_numpy(np.array(g))
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, **{kind: True})

    def run() -> None:
        if clip:
            # Scales p.grad in place: later rounds find a norm below 1 and scale by 1.
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimizer.step()

    return Contestant(f"torch {kind}", run)


# --------------------------------------------------------------------- the contestants


def random_gradients(shapes: Iterable[tuple[int, ...]]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes]


def has_torch() -> bool:
    """PyTorch is timed on the CPU alone."""
    is_here = importlib.util.find_spec("torch") is not None
    return is_here and jax.default_backend() == "cpu"


def entries(
    subject: Subject, gradients: list[jax.Array], chosen: Iterable[str]
) -> list[Entry]:
    """The chosen contestants that there are for a subject and a tree."""
    ours, theirs, chosen = subject.ours(), subject.theirs(), list(chosen)
    plain = SUBJECTS["adamw"].ours()
    kept = f"adamx native{subject.note}"
    native = functools.partial(by_fused, "native")
    ways = {
        "adamx": ("adamx", functools.partial(by_protocol, adamx)),
        "fused": ("adamx fused", functools.partial(by_fused, "xla")),
        "native": ("adamx native", native),
        "bucketed": ("adamx bucketed", functools.partial(by_protocol, adamx)),
        "bucketed_native": ("adamx bucketed native", native),
    }

    def transformation(name: str) -> Any:
        return adamx.bucketed(ours) if name.startswith("bucketed") else ours

    def of(name: str) -> list[Callable[[], Contestant]]:
        if name == "stream":
            size = sum(g.size for g in gradients)
            return [lambda: make_stream(size, subject.accesses)]
        if name == "identity":
            return identities(ours, gradients)
        if name == "optax":
            way, label = functools.partial(by_protocol, optax), f"optax{subject.note}"
            return [lambda: make_jax(label, theirs, way, gradients)]
        if name in ways:
            label, way = ways[name]
            return [lambda: make_jax(label, transformation(name), way, gradients)]
        if subject.torch is None or not has_torch():
            return []
        kind, clip = name.removeprefix("torch_"), subject.torch
        return [lambda: make_torch(kind, clip, gradients)]

    made = [Entry(make, CONTESTANTS[name]) for name in chosen for make in of(name)]
    if subject.peer and "native" in chosen:
        made.append(Entry(lambda: make_jax(kept, plain, native, gradients), True))
    return made


def identities(tx: Any, gradients: list[jax.Array]) -> list[Callable[[], Contestant]]:
    """Of all that a step has in its hands, and of parameters and gradients only."""

    def whole() -> Contestant:
        trees = [*parameters(tx, gradients), gradients]
        return make_identity("identity of p, state, g", *trees)

    return [
        whole,
        lambda: make_identity("identity of p, g", gradients, gradients),
    ]
