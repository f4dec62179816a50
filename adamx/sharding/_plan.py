"""SHAPES, MESH -> BYTES: what training would take on devices that are not here.

Exact are the bytes of parameters, gradients and state: those of their pieces. Those of
temporaries and the collectives are what the compiler makes of the step, for the
platform for which it was compiled: on simulated devices they are an estimate of other
platforms. (XLA for CPUs copies more around collectives, does 16-bit arithmetic in
float32, and has no reduce-scatter of its own.)
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from adamx import _checks
from adamx._types import GradientTransformation, PyTree, byte_count
from adamx.fused import Fused, fused
from adamx.sharding import _models, _planner, _rules, _specs
from adamx.sharding._collectives import Collective, gathered, received
from adamx.sharding._plan_table import Plan, PlanTable
from adamx.sharding._planner import Job
from adamx.sharding._specs import Dims
from adamx.sharding._state import Placement, place

_MOST = 2**16


def plan(
    tx: GradientTransformation | Fused,
    param_shapes: Any,
    mesh_shape: Mapping[str, int],
    *,
    param_specs: PyTree | None = None,
    zero1: str | tuple[str, ...] | None = None,
    dtype: Any = None,
    grad_dtype: Any = None,
    batch_axes: str | tuple[str, ...] | None = None,
    devices: Sequence[Any] | None = None,
    name: str = "",
    extra_args: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """Bytes per device, and bytes moved, of a training step that does not fit here.

        print(adamx.sharding.plan(tx, "llama-70b", {"data": 64, "model": 4}))

    The update step, `fused(tx)`'s with parameters and state donated, is compiled ahead
    of time for as many devices; nothing is allocated. Where this process runs on a CPU
    and has enough (simulated) devices, it is compiled here; else for simulated devices
    in a process of its own, which takes some seconds to start. Any transformation will
    do: what goes over is its program.

    Not in it: the forward and the backward pass, their activations and collectives. The
    gradient is an argument of the step, reduced already and lying as its parameter
    does; its reduction is a line of its own, computed: a reduce-scatter to the pieces
    that a device updates, an all-reduce where it updates all of it. (XLA for GPUs and
    TPUs makes that of ZeRO-1; on CPUs it is an all-reduce, twice the bytes.)

    Exact: parameters, gradients, state. An estimate, from XLA for CPUs: temporaries and
    collectives of the update; with `devices`, those of their platform.

    Args:
      tx: any transformation, or `fused` of it.
      param_shapes: a tree of arrays or of `jax.ShapeDtypeStruct`, nested dicts of
        shapes, the name of a model (`model_shapes`), or a `pathlib.Path` of a JSON file
        of shapes: {"dense": {"kernel": [8, 4]}}.
      mesh_shape: sizes of the mesh's axes by name.
      param_specs: `PartitionSpec`s, a tree like the parameters or one for a subtree.
        None: an axis named "fsdp" divides all parameters along a dimension each; other
        axes but the batch's divide matrices, embeddings and what leads out of a block
        (wo, out, down) by rows, the others by columns, and leave norms and biases
        whole.
      zero1: see `state_shardings`.
      dtype: of all parameters; None: as given, float32 where shapes alone are given.
      grad_dtype: of the gradients; None: the parameters'.
      batch_axes: along which the batch is divided, so that gradients are summed over
        them. None: those of `zero1`, and those named data, batch, dp, replica, fsdp.
      devices: to compile for these, here, as many as the mesh has; None: see above.
      name: to be printed.
      extra_args: what the step takes beside gradients, state and parameters, such as
        {"value": 0.0} (a loss that is watched). Sophia's curvature is a backward pass
        and not planned: {"hessian_fn": lambda params, key: params} stands for it.

    Returns:
      A `Plan`, which prints itself as a table.

    Raises:
      TypeError, ValueError: an argument out of its range, or as in `state_shardings`;
        a step that cannot be traced, or be compiled elsewhere.
      RuntimeError: the other process failed.

    >>> import adamx
    >>> found = plan(adamx.lion(1e-3), {"w": (8, 4)}, {"data": 1})
    >>> found.parameters, found.gradients, found.state
    (128, 128, 152)
    """
    table = plans(
        {name: tx},
        param_shapes,
        mesh_shape,
        param_specs=param_specs,
        zero1=zero1,
        dtype=dtype,
        grad_dtype=grad_dtype,
        batch_axes=batch_axes,
        devices=devices,
        extra_args=extra_args,
    )
    return table.plans[0]


def plans(
    txs: Mapping[str, GradientTransformation | Fused],
    param_shapes: Any,
    mesh_shape: Mapping[str, int],
    *,
    param_specs: PyTree | None = None,
    zero1: str | tuple[str, ...] | None = None,
    dtype: Any = None,
    grad_dtype: Any = None,
    batch_axes: str | tuple[str, ...] | None = None,
    devices: Sequence[Any] | None = None,
    extra_args: Mapping[str, Any] = MappingProxyType({}),
) -> PlanTable:
    """Several optimizers on the same mesh, in one table.

    Args:
      txs: transformations by the name to be printed.
      param_shapes, mesh_shape, param_specs, zero1, dtype, grad_dtype, batch_axes,
        devices, extra_args: see `plan`.

    Returns:
      A `PlanTable`: a `Plan` for each, in the same order.

    Raises:
      TypeError, ValueError, RuntimeError: see `plan`.

    >>> import adamx
    >>> txs = {"adamw": adamx.adamw(1e-3), "lion": adamx.lion(1e-3)}
    >>> table = plans(txs, {"w": (8, 4)}, {"data": 1})
    >>> [(p.name, p.state) for p in table.plans]
    [('adamw', 304), ('lion', 152)]
    """
    _check_names(txs)
    axes = _check_mesh(mesh_shape)
    batch = _batch_axes(batch_axes, zero1, axes)
    shapes = _models.as_shapes(param_shapes, dtype)
    grads = _models.with_dtype(shapes, grad_dtype)
    mesh: Any = AbstractMesh(tuple(axes.values()), tuple(axes))
    specs = _rules.spread(shapes, axes, batch) if param_specs is None else param_specs
    places, jobs = [], []
    for name, tx in txs.items():
        try:
            places.append(place(tx, shapes, specs, zero1, mesh))
            jobs.append(_job(tx, shapes, grads, places[-1], extra_args))
        except (ValueError, TypeError) as error:
            if len(txs) == 1:
                raise
            raise type(error)(f"{name}: {error}") from error
    found = _compiled(jobs, devices)
    rows = zip(txs, places, jobs, found, strict=True)
    return PlanTable(tuple(_plan(*row, grads, batch) for row in rows))


# ------------------------------------------------------------------------ arguments


def _check_names(txs: Any) -> None:
    if not isinstance(txs, Mapping) or not txs:
        raise TypeError(
            "`txs` must be a dict of transformations by name, at least one, got "
            f"{_checks.describe_value(txs)}; pass e.g. {{'adamw': adamx.adamw(1e-3)}}."
        )


def _check_mesh(mesh_shape: Any) -> dict[str, int]:
    example = "pass e.g. {'data': 64, 'model': 4}"
    if not isinstance(mesh_shape, Mapping) or not mesh_shape:
        raise TypeError(
            "`mesh_shape` must be a dict of the axes' sizes by name, at least one, got "
            f"{_checks.describe_value(mesh_shape)}; {example}."
        )
    for axis, size in mesh_shape.items():
        if not (isinstance(axis, str) and axis.isidentifier()):
            raise ValueError(
                f"`mesh_shape` must name its axes in letters, got {axis!r}; {example}."
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"`mesh_shape` must have whole sizes >= 1, got {size!r} for '{axis}'; "
                f"{example}."
            )
    count = math.prod(mesh_shape.values())
    if count > _MOST:
        raise ValueError(
            f"`mesh_shape` must have at most {_MOST} devices, got {count}; plan for "
            "fewer of a batch axis: bytes per device hardly change."
        )
    return dict(mesh_shape)


def _batch_axes(given: Any, zero1: Any, axes: Mapping[str, int]) -> tuple[str, ...]:
    if given is None:
        named = (zero1,) if isinstance(zero1, str) else zero1 or ()
        known = (*_rules.BATCH, _rules.FSDP)
        return tuple(a for a in axes if a in known or a in named)
    names = (given,) if isinstance(given, str) else tuple(given)
    for axis in names:
        if axis not in axes:
            raise ValueError(
                f"`batch_axes` must name axes of the mesh, got {axis!r}; it has "
                f"{', '.join(axes)}."
            )
    return names


# ----------------------------------------------------------------------------- step


def _job(
    tx: Any, shapes: PyTree, grads: PyTree, at: Placement, extra: Mapping[str, Any]
) -> Job:
    """The step on flat lists: parameters and state, gradients."""
    step = (tx if isinstance(tx, Fused) else fused(tx)).step
    params, structure = jax.tree.flatten(shapes)
    state, state_structure = jax.tree.flatten(at.mirrors.state)
    n, m = len(params), len(params) + len(state)

    def flat(*arrays: Any) -> list[Any]:
        new = step(
            structure.unflatten(arrays[m:]),  # type: ignore[attr-defined]
            state_structure.unflatten(arrays[n:m]),  # type: ignore[attr-defined]
            structure.unflatten(arrays[:n]),  # type: ignore[attr-defined]
            **extra,
        )
        return jax.tree.leaves(new)

    arguments = [*params, *state, *jax.tree.leaves(grads)]
    step_of_lists = jax.jit(flat)
    try:
        step_of_lists.eval_shape(*arguments)
    except (ValueError, TypeError) as error:
        if extra:
            raise
        raise type(error)(
            f"{error} For a plan: what the step takes beside gradients, state and "
            "parameters goes into `extra_args`, e.g. {'value': 0.0}, or "
            "{'hessian_fn': lambda params, key: params} for Sophia."
        ) from error
    own = [_specs.as_spec(dims) for dims in at.given.dims]
    rest = [_specs.as_spec(dims) for dims in at.dims]
    specs: list[PartitionSpec] = [*own, *rest]
    return Job(step_of_lists, arguments, [*specs, *own], specs, m, at.given.sizes)


def _compiled(jobs: Sequence[Job], devices: Sequence[Any] | None) -> list[Any]:
    count = jobs[0].devices
    if devices is None:
        devices = _here(count)
    elif len(devices) < count:
        raise ValueError(
            f"`devices` must be as many as the mesh has, {count}, got {len(devices)}; "
            "leave it out to plan for simulated ones."
        )
    if devices is None:
        return _planner.simulated(jobs)
    return [_planner.compiled(job, devices[:count]) for job in jobs]


def _here(count: int) -> Sequence[Any] | None:
    """Devices of this process, where they are (simulated) CPUs and enough."""
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return None
    return jax.devices() if len(jax.devices()) >= count else None


# ---------------------------------------------------------------------------- result


def _plan(
    name: str, at: Placement, job: Job, found: Any, grads: PyTree, batch: Sequence[str]
) -> Plan:
    sizes, given = at.given.sizes, at.given
    n = len(given.names)

    def held(arrays: Sequence[Any], dims: Sequence[Dims]) -> list[float]:
        pairs = zip(arrays, dims, strict=True)
        return [_bytes(x, x_dims, sizes) for x, x_dims in pairs]

    params = job.arguments[:n]
    state = held(at.leaves, at.dims)
    on_host = sum(b for b, away in zip(state, at.mirrors.on_host, strict=True) if away)
    reductions = [
        c
        for x, before, after in zip(
            jax.tree.leaves(grads), given.dims, at.own, strict=True
        )
        for c in _reduction(x, before, after, batch, sizes)
    ]
    return Plan(
        name=name,
        axes=dict(sizes),
        elements=sum(math.prod(x.shape) for x in params),
        parameters=round(sum(held(params, given.dims))),
        gradients=round(sum(held(jax.tree.leaves(grads), given.dims))),
        state=round(sum(state) - on_host),
        state_on_host=round(on_host),
        temporaries=found.temporaries + max(0, found.results - found.aliased),
        update_collectives=found.collectives,
        gradient_collectives=gathered(reductions),
        batch_axes=tuple(batch),
        undivided=tuple(given.names[i] for i in at.undivided()) if at.axes else (),
        platform=found.platform,
    )


def _bytes(x: Any, dims: Dims, sizes: Mapping[str, int]) -> float:
    return byte_count(x) / max(x.size, 1) * _specs.share(x.shape, dims, sizes)


def _reduction(
    x: Any, before: Dims, after: Dims, batch: Sequence[str], sizes: Mapping[str, int]
) -> list[Collective]:
    """How a gradient is summed over the batch's axes, to the piece that is updated."""
    count = _specs.pieces(batch, sizes)
    own = {axis for axes in after for axis in axes} & set(batch)
    pieces = _specs.pieces(tuple(own), sizes)
    whole = tuple(tuple(a for a in axes if a not in batch) for axes in before)
    size = _bytes(x, whole, sizes) / pieces
    found = []
    if pieces > 1:
        moved = received("reduce-scatter", pieces, size)
        found.append(Collective("reduce-scatter", pieces, 1, moved))
    if (rest := count // pieces) > 1:
        moved = received("all-reduce", rest, size)
        found.append(Collective("all-reduce", rest, 1, moved))
    return found
