"""Trains at many learning rates in one compiled program; nothing is judged here.

    state_r <- init at rate r;   for each batch: all (params, state)_r, one step at r

The loop over the steps is outside, the map over the rates inside: one program for any
rates. Where a bar is to move, a second program goes on from where the first ended.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adamx import _checks, _steps, _tree
from adamx._types import PyTree, at_least_single, dtype_of, promote, real_dtype
from adamx.compose._behaviour import follow
from adamx.diagnostics import _threads

LossFn = Callable[[Any, Any], jax.Array]
MakeTx = Callable[[Any], optax.GradientTransformation]

# So often a bar moves, at most.
_BLOCKS = 100
# Bytes of parameters, gradients and states that a core of a CPU trains at a time: about
# its second level cache (benchmarks/sweep.py).
_CACHE = 2 * 2**20
# So many parts for each core, where there are as many rates: they do not end together.
_PARTS = 2
_AXIS = "rates"
_EVERYWHERE, _BY_RATE = PartitionSpec(), PartitionSpec(_AXIS)


class Search(NamedTuple):
    """What is trained, checked: the arguments that both searches share.

    Attributes:
      loss_fn, params, batches, make_tx: the caller's; the trees hold arrays.
      steps: how many batches there are.
      dtype: of the rates: as wide as the parameters, and float32 at least.
    """

    loss_fn: LossFn
    params: PyTree
    batches: PyTree
    make_tx: MakeTx
    steps: int
    dtype: Any


class Programs(NamedTuple):
    """Both return `(carry, losses)`; the second is compiled if it is needed.

    Attributes:
      start: `(rates, params, batches)`, the first `first` steps.
      go_on: `(carry, losses, rates, batches, begin)`, `block` steps more; the first two
        arguments are donated.
      first, block: the steps of a call; first + any number of blocks is all of them.
    """

    start: Any
    go_on: Any
    first: int
    block: int


# ---------------------------------------------------------------------- arguments


def checked(loss_fn: Any, params: Any, batches: Any, make_tx: Any) -> Search:
    """The arguments that both searches share, or an error that names the wrong one."""
    for name, value, what in (
        ("loss_fn", loss_fn, "(params, batch) -> scalar"),
        ("make_tx", make_tx, "learning_rate -> transformation, e.g. adamx.adamw"),
    ):
        if not callable(value):
            raise TypeError(
                f"`{name}` must be a function {what}, got "
                f"{_checks.describe_value(value)}; pass the function itself."
            )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, batches))):
        raise TypeError(
            "`params` and `batches` must be arrays with values, got traced ones; call "
            "the search outside jit: it compiles its own program."
        )
    _tree.check_is_trained(params, "params")
    _tree.check_inexact(params, "`params`")
    if not jax.tree.leaves(params):
        raise ValueError(
            "`params` must hold an array, got a tree without any; pass what jax.grad "
            "of loss_fn is taken by."
        )
    steps = _steps_in(batches)
    batch = jax.tree.map(_without_axis, batches)
    loss = jax.eval_shape(loss_fn, params, batch)
    if not hasattr(loss, "shape") or loss.shape:
        got = f"shape {loss.shape}" if hasattr(loss, "shape") else type(loss).__name__
        raise ValueError(
            f"`loss_fn` must return one scalar, got {got} from a batch without the "
            "axis of steps; take the mean, and for a loss with auxiliary output pass "
            "lambda params, batch: loss_fn(params, batch)[0]."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"`loss_fn` must return a real float, got {loss.dtype}; it is descended."
        )
    dtypes = [dtype_of(p) for p in jax.tree.leaves(params)]
    dtype = real_dtype(at_least_single(promote(*dtypes)))
    return Search(loss_fn, params, batches, make_tx, steps, dtype)


def _without_axis(x: Any) -> Any:
    """The shape of one batch's leaf (typed random keys included)."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if isinstance(x, np.ndarray):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(np.shape(x)[1:], dtype)


def _steps_in(batches: Any) -> int:
    """The length of the leading axis that all leaves have."""
    sizes: dict[str, int] = {}
    for path, leaf in _tree.leaves_by_path(batches).items():
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"`batches` at '{path}' must have a leading axis of steps, got "
                f"{_checks.describe_value(leaf)}; stack one batch per step, e.g. "
                "images of shape (steps, batch, ...)."
            )
        sizes[path] = np.shape(leaf)[0]
    if not sizes:
        raise ValueError(
            "`batches` must hold an array with a leading axis of steps, got a tree "
            "without any; where the loss needs no data pass jnp.arange(steps)."
        )
    first, steps = next(iter(sizes.items()))
    for path, size in sizes.items():
        if size != steps:
            raise ValueError(
                f"`batches` must have one length of the leading axis, the steps, got "
                f"{steps} at '{first}' and {size} at '{path}'; stack one batch per "
                "step in every leaf."
            )
    if steps < 2:
        raise ValueError(
            f"`batches` must hold 2 steps or more, got {steps}: a curve is judged, "
            "not one loss. Stack some hundred batches along a new leading axis."
        )
    return steps


# ----------------------------------------------------------------------- one step


def transformation(search: Search, rate: Any) -> Any:
    """`make_tx(rate)`, checked; what fails for a traced rate says so."""
    try:
        tx = search.make_tx(rate)
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            "`make_tx` must accept a traced learning rate (all rates run in one "
            "compiled program), got an error on handing one over. Every optimizer of "
            "this library takes it; a factory that compares its rate, or calls float, "
            "does not: wrap it, e.g. lambda rate: optax.chain(optax.scale_by_adam(), "
            f"optax.scale_by_learning_rate(rate)). The error was: {error}"
        ) from error
    _checks.check_transformation("make_tx(learning_rate)", tx)
    return tx


def initial(search: Search, rate: Any, params: PyTree) -> tuple[PyTree, Any]:
    return params, transformation(search, rate).init(params)


def step(
    search: Search, carry: tuple[PyTree, Any], rate: Any, batch: PyTree
) -> tuple[tuple[PyTree, Any], jax.Array]:
    """A training step at a rate, and the loss before it."""
    params, state = carry

    def loss_of(p: PyTree) -> jax.Array:
        return search.loss_fn(p, batch)

    loss, grads = jax.value_and_grad(loss_of)(params)
    take = _steps.step_of(transformation(search, rate))
    # The names under which Optax and this library hand a loss on.
    extra = {"value": loss, "grad": grads, "value_fn": loss_of, "loss_fn": loss_of}
    params, state = take(grads, state, params, **extra)
    return (params, state), loss.astype(search.dtype)


def check_rate_matters(search: Search, *, at_init: bool) -> None:
    """Raises unless a step depends on its rate, if need be through `init`."""

    def after(rate: Any, params: PyTree, batch: PyTree, state: Any) -> PyTree:
        if at_init:
            _, state = initial(search, rate, params)
        return step(search, (params, state), rate, batch)[0][0]

    rate = jax.ShapeDtypeStruct((), search.dtype)
    batch = jax.tree.map(_without_axis, search.batches)
    state = jax.eval_shape(lambda r, p: initial(search, r, p)[1], rate, search.params)
    given = (rate, search.params, batch, state)
    closed = jax.make_jaxpr(after)(*given)
    others = len(jax.tree.leaves(given)) - 1
    if not any(bits & 1 for bits in follow(closed.jaxpr, [1] + [0] * others)):
        raise ValueError(
            "`make_tx` must make a transformation that steps by the rate it is given, "
            "got one whose step does not depend on it"
            + (
                ". Use the argument: lambda rate: adamx.adamw(rate)."
                if at_init
                else " once its state is made (optax.inject_hyperparams and "
                "with_hyperparams keep the rate in their state). Pass the bare "
                "factory, or use lr_sweep."
            )
        )


# ----------------------------------------------------------------------- programs


def programs(
    search: Search,
    init: Callable[[Any, PyTree], Any],
    advance: Callable[[Any, Any, Any, PyTree], tuple[Any, jax.Array]],
    width: tuple[int, ...],
    mesh: Mesh | None = None,
    is_watched: bool = False,
) -> Programs:
    """Compiles nothing yet.

    Args:
      search: what is trained.
      init: `(rates, params) -> carry`.
      advance: `(carry, rates, number, batch) -> (carry, losses)`, one step.
      width: shape of the losses of a step, on one device.
      mesh: of one axis, over which the rates are spread; None: one device.
      is_watched: whether to stop in between; else all steps are the first.
    """
    block = -(-search.steps // _BLOCKS) if is_watched else search.steps
    first = (search.steps - 1) % block + 1

    # The number of turns is a constant: with an argument for it, programs that jaxlib
    # 0.6.0 took out of its compilation cache (CPU) were seen to run no turn at all.
    def loop(
        count: int, carry: Any, losses: Any, rates: Any, batches: Any, begin: Any
    ) -> Any:
        def body(turn: Any, held: Any) -> Any:
            (carry, losses), number = held, begin + turn
            batch = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False),
                batches,
            )
            carry, now = advance(carry, rates, number, batch)
            return carry, jax.lax.dynamic_update_index_in_dim(losses, now, number, 0)

        return jax.lax.fori_loop(0, count, body, (carry, losses))

    def start(rates: Any, params: PyTree, batches: Any) -> Any:
        losses = jnp.full((search.steps, *width), jnp.nan, search.dtype)
        return loop(first, init(rates, params), losses, rates, batches, np.int32(0))

    go_on: Any = functools.partial(loop, block)
    if mesh is not None:
        held = (_BY_RATE, PartitionSpec(None, _AXIS))  # carry, losses
        rest = (_BY_RATE, _EVERYWHERE, _EVERYWHERE)
        start = _by_device(start, mesh, rest, held)
        go_on = _by_device(go_on, mesh, (*held, *rest), held)
    return Programs(jax.jit(start), jax.jit(go_on, donate_argnums=(0, 1)), first, block)


def width_in_cache(search: Search, most: int) -> int:
    """How many of so many rates a core trains at a time: as many as stay in its cache.

    A step reads and writes parameters, gradients and state of all of them; where they
    leave the cache between two steps, it takes longer than one rate after another does.
    Each core has parts of its own. Of the widths down to half, the one that pads least.
    """
    rate = jax.ShapeDtypeStruct((), search.dtype)
    held = jax.eval_shape(lambda r, p: initial(search, r, p), rate, search.params)
    leaves = jax.tree.leaves((held, held[0]))  # the gradients are as large
    size = sum(x.size * getattr(x.dtype, "itemsize", 0) for x in leaves)
    fit = min(max(1, _CACHE // max(1, size)), -(-most // (_PARTS * _threads.cores())))
    return min(range(fit, fit // 2, -1), key=lambda width: -(-most // width) * width)


def platform_of(search: Search, mesh: Mesh | None) -> str:
    """Where a search runs."""
    if mesh is not None:
        return str(mesh.devices.item(0).platform)
    arrays = jax.tree.leaves((search.params, search.batches))
    on = [next(iter(x.devices())).platform for x in arrays if isinstance(x, jax.Array)]
    return on[0] if on else jax.default_backend()


def _by_device(function: Any, mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    """Each device runs its own rates: no partitioner decides, nothing is exchanged."""
    specs = {"mesh": mesh, "in_specs": in_specs, "out_specs": out_specs}
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, **specs, check_vma=False)
    from jax.experimental.shard_map import shard_map  # jax 0.6.0

    return shard_map(function, **specs, check_rep=False)


def mesh_of(search: Search, devices: Sequence[Any] | None, at_once: int) -> Mesh | None:
    """The devices over which rates are spread; None: the arrays stay where they are."""
    if devices is None:
        arrays = jax.tree.leaves((search.params, search.batches))
        used = [x.sharding.device_set for x in arrays if isinstance(x, jax.Array)]
        if any(len(found) > 1 for found in used):
            return None  # the model itself is spread
        device: Any = next(iter(used[0])) if used else None
        platform = device.platform if used else None
        devices = jax.local_devices(backend=platform)
        if at_once < 2 or len(devices) < 2:
            return None
    if not all(hasattr(device, "platform") for device in devices):
        raise TypeError(
            "`devices` must be a sequence of devices as jax.devices() has them, got "
            f"{_checks.describe_value(devices)}; pass e.g. jax.devices()[:2], or None."
        )
    if not len(devices):
        raise ValueError(
            "`devices` must name one device or more, got none; pass e.g. "
            "jax.devices()[:2], or None for all."
        )
    return Mesh(np.array(devices[:at_once]), (_AXIS,))


def at_mesh(tree: PyTree, mesh: Mesh | None, *, by_rate: bool = False) -> PyTree:
    """On the devices once, not anew in each call."""
    if mesh is None:
        return jax.device_put(tree)
    spec = _BY_RATE if by_rate else _EVERYWHERE
    return jax.device_put(tree, NamedSharding(mesh, spec))


# ------------------------------------------------------------------------ running


def run(
    both: Programs,
    search: Search,
    rates: Any,
    on_steps: Callable[[int], None] | None,
) -> np.ndarray:
    """The losses of all steps; `on_steps` hears how many were just done."""
    batches = search.batches
    with memory_advice():
        carry, losses = both.start(rates, search.params, batches)
        for done in range(both.first, search.steps + 1, both.block):
            jax.block_until_ready(losses)
            if on_steps is not None:
                on_steps(both.first if done == both.first else both.block)
            if done < search.steps:
                now = np.int32(done)
                carry, losses = both.go_on(carry, losses, rates, batches, now)
        return np.asarray(losses)


@contextlib.contextmanager
def memory_advice() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            "the device's memory must hold parameters and state once for each rate at "
            "a time, got out of memory; pass a smaller `chunk`, e.g. chunk=4. The "
            f"error was: {error}"
        ) from error


@contextlib.contextmanager
def bar(is_shown: bool, total: int) -> Iterator[Callable[[int], None] | None]:
    """Yields a function that moves a bar of `total` steps; None where none is shown."""
    if not is_shown:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("steps", total=total)
        yield lambda steps: progress.advance(task, steps)
