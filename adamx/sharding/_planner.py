"""The compilation of a step for many devices; also in a process of its own.

Simulated devices cannot be added to a backend that has started. Where there are too
few, the step is traced and lowered here, for any transformation, closures included, and
its StableHLO is compiled there: nothing but a program and shapes goes over, and nothing
but numbers comes back. (`jax.export` has a serialization, which needs a package that is
no dependency of JAX; the fields of what it exports are pickled instead.)

    python -m adamx.sharding._planner JOBS.pickle FOUND.json
"""

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adamx._types import scalar_dtype
from adamx.sharding._collectives import Collective, collectives_of

_FLAG = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Job:
    """A step on flat lists, to be compiled.

    Attributes:
      step: jitted function of the arguments, returning the results; its exported fields
        where it goes to another process.
      arguments: their shapes and dtypes.
      specs, result_specs: where they lie.
      donated: how many arguments, from the first on, are written over.
      axes: names and sizes of the mesh's axes.
    """

    step: Any
    arguments: Sequence[Any]
    specs: Sequence[PartitionSpec]
    result_specs: Sequence[PartitionSpec]
    donated: int
    axes: Mapping[str, int]

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return int(np.prod(list(self.axes.values()), dtype=int))


@dataclasses.dataclass(frozen=True)
class Found:
    """What the compiler says of a step, in bytes on one device.

    Attributes:
      arguments, results: of those that the program has.
      aliased: of the results that are written over arguments.
      temporaries: of its buffers beside both.
      collectives: what moves between devices.
      platform: for which it was compiled.
    """

    arguments: int
    results: int
    aliased: int
    temporaries: int
    collectives: tuple[Collective, ...]
    platform: str


def compiled(job: Job, devices: Sequence[Any]) -> Found:
    """Compiles a step for these devices; nothing is allocated."""
    grid = np.array(devices).reshape(tuple(job.axes.values()))
    mesh = Mesh(grid, tuple(job.axes))
    place = lambda specs: [NamedSharding(mesh, spec) for spec in specs]  # noqa: E731
    n = job.donated

    def step(donated: Any, kept: Any) -> Any:
        return job.step(*donated, *kept)

    own, rest = place(job.specs[:n]), place(job.specs[n:])
    program = jax.jit(
        step,
        in_shardings=(own, rest),
        out_shardings=place(job.result_specs),
        donate_argnums=0,
    )
    done = program.lower(list(job.arguments[:n]), list(job.arguments[n:])).compile()
    sizes: Any = done.memory_analysis()
    return Found(
        arguments=sizes.argument_size_in_bytes,
        results=sizes.output_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        collectives=collectives_of(done.as_text() or "", job.devices),
        platform=grid.flat[0].platform,
    )


def exported(job: Job) -> Job:
    """A job that another process can take: StableHLO in the place of a function.

    Raises:
      ValueError: a step that cannot leave its process.
    """
    try:
        program = export.export(job.step, platforms=["cpu"])(*job.arguments)
        fields = {f.name: getattr(program, f.name) for f in dataclasses.fields(program)}
        # What makes its derivative is a closure, and not wanted.
        fields = {k: None if callable(v) else v for k, v in fields.items()}
        pickle.dumps(fields)
    except (ValueError, TypeError, NotImplementedError, pickle.PicklingError) as error:
        raise ValueError(
            "`tx` must be of plain array operations to be planned for devices that are "
            f"not here, got: {str(error).splitlines()[0]}. {_remedy(job.devices)}."
        ) from error
    return dataclasses.replace(job, step=fields)


def _remedy(devices: int) -> str:
    return (
        "To plan in this process, start Python with that many devices: "
        f"JAX_PLATFORMS=cpu XLA_FLAGS={_FLAG}={devices}"
    )


def _imported(job: Job) -> Job:
    program = export.Exported(**job.step)
    return dataclasses.replace(job, step=program.call)


def simulated(jobs: Sequence[Job]) -> list[Found]:
    """Compiles steps for simulated devices, in a process of their own.

    Raises:
      ValueError: a step that cannot leave this process.
      RuntimeError: the other process failed.
    """
    here = [exported(job) for job in jobs]
    count = max(job.devices for job in jobs)
    with tempfile.TemporaryDirectory() as folder:
        todo, found = (pathlib.Path(folder) / n for n in ("jobs.pickle", "found.json"))
        todo.write_bytes(pickle.dumps(here))
        command = [sys.executable, "-m", __name__, str(todo), str(found)]
        run = subprocess.run(
            command, env=_environment(count), capture_output=True, text=True
        )
        if run.returncode or not found.exists():
            said = (run.stderr.strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(
                f"the process that plans for {count} simulated devices ended with "
                f"status {run.returncode} and said: {said[-400:]}. {_remedy(count)}; "
                "status -9 is a lack of memory."
            )
        rows = json.loads(found.read_text())
    return [_found(row) for row in rows]


def _found(row: dict[str, Any]) -> Found:
    collectives = tuple(Collective(**c) for c in row.pop("collectives"))
    return Found(collectives=collectives, **row)


def _environment(devices: int) -> dict[str, str]:
    """That of this process, for a JAX with so many simulated devices."""
    flags = [x for x in os.environ.get("XLA_FLAGS", "").split() if _FLAG not in x]
    # Machine code is not wanted: it is never run.
    flags += [f"{_FLAG}={devices}", "--xla_backend_optimization_level=0"]
    is_x64 = scalar_dtype() == np.float64
    package = pathlib.Path(__file__).parents[2]
    return {
        **os.environ,
        "XLA_FLAGS": " ".join(flags),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(is_x64)),
        "PYTHONPATH": os.pathsep.join([str(package), *filter(None, sys.path)]),
    }


def main(arguments: Sequence[str]) -> None:
    """Reads jobs, compiles them, writes what was found."""
    todo, found = map(pathlib.Path, arguments)
    jobs: list[Job] = pickle.loads(todo.read_bytes())
    rows = [compiled(_imported(job), jax.devices()[: job.devices]) for job in jobs]
    found.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


if __name__ == "__main__":
    # Pickled by the name that the module has elsewhere.
    from adamx.sharding import _planner

    _planner.main(sys.argv[1:])
