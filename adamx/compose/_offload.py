"""Host offload: the optimizer's state rests in pinned host memory between steps.

    state (host) --leaf by leaf--> device: inner step --leaf by leaf--> state (host)

Between steps, while activations fill the device, the state takes none of it. Every
array is moved by a transfer of its own (`jax.device_put` to a `jax.memory.Space`, which
keeps the sharding), and no two have an operation in common that is not the inner
transformation's own: a compiler may bring an array in, step and send it back before it
brings the next. Whether it does is its scheduler's choice, and costs time on the bus.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamx import _checks
from adamx._types import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PyTree,
)

_KIND = "pinned_host"


def _obstacle() -> str | None:
    """Why the state cannot be offloaded here; None where it can."""
    if not hasattr(jax, "memory"):  # older versions name no memory without a sharding
        return f"jax {jax.__version__}, which has no jax.memory: update jax"
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _KIND not in kinds:
        return f"'{device.platform}' devices with the memories {', '.join(kinds)}"
    return None


def offload(
    inner: GradientTransformation,
    *,
    min_size: int = 4096,
    fallback: str = "error",
) -> GradientTransformationExtraArgs:
    """Keeps the state in pinned host memory, and on the device for its own step only.

        update(g, state) = to_host(inner.update(g, to_device(state)))

    The state is that of the inner transformation, array by array with its dtype, shape
    and sharding; only its memory is another (`array.sharding.memory_kind`). Outermost,
    it offloads the whole; what is inside computes on the device. `read` and checkpoints
    work as before. To compute with an offloaded array, take it to the device
    (`jax.device_put(array, jax.memory.Space.Device)`) or to NumPy: JAX does not mix
    memories in one operation.

    Inside jit, donate parameters and state, and return both in the order in which they
    came: step(params, state, ...) -> (params, state). JAX (0.10) pairs donated arrays
    with results of the same shape, whatever their memories; a state that is paired with
    the updates or with the parameters ends the process.

    Tested on the CPU backend of jax 0.10, where both memories are the same RAM: that
    values, memory kinds and shardings are right under jit, donation, scan, vmap, cond
    and on eight devices. Not tested: the time and the peak memory on an accelerator.

    Args:
      inner: any transformation.
      min_size: >= 0, in elements: smaller arrays stay on the device, as do scalars and
        random keys. A transfer of its own costs more than such an array saves.
      fallback: where the backend has no pinned host memory, or jax is older than
        jax.memory: "error" raises at init; "device" leaves the state on the device.

    Returns:
      The optimizer. State: that of `inner`. Extra arguments are handed on.

    Raises:
      TypeError: `inner` is not a transformation, `min_size` no whole number.
      ValueError: `min_size` < 0, an unknown `fallback`.
      RuntimeError: at init, with fallback="error", where nothing can be offloaded.

    >>> import adamx, jax.numpy as jnp
    >>> tx = offload(adamx.adamw(1e-3), fallback="device")
    >>> params = jnp.ones((64, 64))
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> adamx.read(state).count
    1
    """
    _checks.check_transformation("inner", inner)
    _checks.check_choice("fallback", fallback, ("error", "device"))
    if isinstance(min_size, bool) or not isinstance(min_size, int):
        raise TypeError(
            "`min_size` must be a whole number of elements, got "
            f"{_checks.describe_value(min_size)}; pass an int, e.g. 4096."
        )
    if min_size < 0:
        raise ValueError(
            f"`min_size` must be a number of elements >= 0, got {min_size}; pass 0 to "
            "offload every array."
        )
    inner = optax.with_extra_args_support(inner)

    def is_available() -> bool:
        obstacle = _obstacle()
        if obstacle and fallback == "error":
            raise RuntimeError(
                f"offload needs devices that address the memory '{_KIND}', got "
                f'{obstacle}. Pass fallback="device" to leave the state on the device '
                "there."
            )
        return obstacle is None

    def moved(state: Any, space: str) -> Any:
        def leaf(x: Any) -> Any:
            is_plain = not jnp.issubdtype(x.dtype, jax.dtypes.extended)  # random keys
            if not (is_plain and x.ndim and x.size >= min_size):
                return x
            return jax.device_put(x, getattr(jax.memory.Space, space))

        return jax.tree.map(leaf, state)

    def init(params: PyTree) -> Any:
        state = inner.init(params)
        return moved(state, "Host") if is_available() else state

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        if not is_available():
            return inner.update(updates, state, params, **extra_args)
        here = moved(state, "Device")
        new, after = inner.update(updates, here, params, **extra_args)
        return new, moved(after, "Host")

    return GradientTransformationExtraArgs(init, update)
