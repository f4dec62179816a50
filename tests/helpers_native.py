"""What the tests of the compiled passes share."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.native import _build
from tests.row import LR

MARKS = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(_build.compiler() is None, reason="there is no C compiler here"),
]

SHAPES = {"matrix": (33, 17), "odd": (3, 5, 7), "one": (1,), "vector": (70_001,)}
CALL = re.compile(r'custom_call_target="adamx_')
# A loop of XLA's over a leaf; in a conditional too.
LOOP = re.compile(r"= \w+\[(33,17|3,5,7|70001)\]\S* fusion\(")
# Their updates hold more than single elements: means of rows, another gradient, and
# whether anything in a row has a gradient.
MIXED = ("adam_mini", "sophia_h", "sophia_g", "sparse_adam")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Programs of this file are compiled anew, and not left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tree(seed: int, scale: float = 1.0, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), dtype)
        for name, shape in SHAPES.items()
    }


def steps_of(tx: Any, **extra: Any) -> tuple[Any, Any]:
    """The jitted steps of the two kernels: (params, state, grads) -> both."""

    def step(kernel: str) -> Any:
        made = adamx.fused(tx, kernel=kernel).step
        return jax.jit(
            lambda params, state, grads: made(grads, state, params, **extra),
            donate_argnums=(0, 1),
        )

    return step("xla"), step("native")


def copies(carry: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), carry)


def text_of(step: Any, *args: Any) -> str:
    return step.lower(*args).compile().as_text()


def ulp(x: np.ndarray, dtype: Any) -> np.ndarray:
    info = jnp.finfo(dtype)
    return np.maximum(np.abs(x), float(info.tiny)) * float(info.eps)


def assert_alike(found: Any, wanted: Any, before: Any, bar: float) -> None:
    """Parameters after a step: |du| <= bar * lr * max(1, |u| / lr), and a rounding."""
    for name, p in before.items():
        dtype = p.dtype
        p, new, old = (np.asarray(x[name], np.float64) for x in (before, found, wanted))
        change = np.abs(old - p) / LR
        allowed = bar * LR * np.maximum(1.0, change) + ulp(old, dtype)
        np.testing.assert_array_less(np.abs(new - old), allowed * (1 + 1e-12))


def assert_states_alike(found: Any, wanted: Any, grads: Any) -> None:
    """Moments after a step: within 2 units in the last place of what was averaged."""
    largest = max(float(jnp.max(jnp.abs(g))) for g in grads.values()) ** 2 + 1.0
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True)
    for old, new in pairs:
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        if not jnp.issubdtype(old.dtype, jnp.floating):
            np.testing.assert_array_equal(old, new)
            continue
        old, new = np.asarray(old), np.asarray(new)
        size = np.maximum(np.abs(old.astype(np.float64)), largest * 0.1)
        allowed = 2 * ulp(size, old.dtype)
        assert np.all(np.abs(new.astype(np.float64) - old) <= allowed)


def adamw(**kwargs: Any) -> Any:
    return adamx.adamw(LR, weight_decay=0.1, **kwargs)


CLIP = adamx.clip_by_global_norm(1.0)

CODECS = {
    "int8": lambda: adamx.codecs.int8(min_size=0),
    "column": lambda: adamx.codecs.int8("column", rounding="nearest", min_size=0),
    "row": lambda: adamx.codecs.int8("row", min_size=0),
    "blocks of rows": lambda: adamx.codecs.int8("column", 20, min_size=0),
    "int4": lambda: adamx.codecs.int4(min_size=0),
    "int4, nearest": lambda: adamx.codecs.int4(
        "column", 7, rounding="nearest", min_size=0
    ),
    "e4m3": lambda: adamx.codecs.fp8(min_size=0),
    "e5m2, nearest": lambda: adamx.codecs.fp8(
        "column", format="float8_e5m2", rounding="nearest", min_size=0
    ),
    "bfloat16": adamx.codecs.bfloat16_stochastic,
}


def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of every program in C that is asked for from now on."""
    texts, compile_own = [], _build.target_of

    def target_of(text: str) -> Any:
        texts.append(text)
        return compile_own(text)

    monkeypatch.setattr(_build, "target_of", target_of)
    return texts
