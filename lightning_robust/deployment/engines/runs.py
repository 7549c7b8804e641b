"""Runs of a built engine in a child process: many batches at a time, since a child takes seconds to start."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_robust.deployment.engines import builder
from lightning_robust.deployment.engines.abilities import Ability, Backend, can_run
from lightning_robust.deployment.engines.builder import Engine, check_ability, visible_device
from lightning_robust.deployment.engines.cache import disk_errors
from lightning_robust.deployment.engines.child.process import EngineError, run_child
from lightning_robust.deployment.engines.child.supervisor import scratch
from lightning_robust.deployment.graph.batches import Arrays

_JOB = 1 << 30
"""Bytes of inputs that one child is given, at most, so that neither memory nor disk holds all of a recording."""


@dataclass(frozen=True)
class EngineRun:
    """What came of the batches.

    Args:
        outputs: For each batch, output -> array.
        latencies: Seconds of the executions that were timed, from the call on the host until the stream was done;
            inputs and outputs were on the device.
    """

    outputs: list[dict[str, NDArray[np.generic]]]
    latencies: tuple[float, ...] = ()


def run_engine(engine: Engine, inputs: Arrays, *, time_limit: float = 60.0) -> dict[str, NDArray[np.generic]]:
    """Run an engine once, in a child process: :func:`run_batches` for one batch, of which it returns the outputs."""
    return run_batches(engine, [inputs], time_limit=time_limit).outputs[0]


def run_batches(
    engine: Engine, batches: Iterable[Arrays], *, time_limit: float = 60.0, timed_runs: int = 0
) -> EngineRun:
    """Run an engine on one batch after the other, in one child process (one for each GiB of inputs).

    Args:
        engine: What `build_engine` or `load_engine_file` returned.
        batches: For each one array per input, of shapes within the profile and of the network's own types; floating
            ones are cast to the engine's.
        time_limit: Seconds until a child is killed; loading the engine counts (RTX compiles its kernels then).
        timed_runs: How often the first child executes its last batch again to time it.

    Returns:
        The outputs and the latencies.

    Raises:
        EngineError: "unavailable" where `can_run` says no or the engine is a stand-in, "refused" where the library
            does not load the engine, otherwise as for a build.
    """
    able = can_run(engine.backend, engine.command, engine.device)
    if engine.stand_in:
        able = Ability(False, "a stand-in engine is not TensorRT's and is not run: build it with stand_in=False.")
    check_ability(able)
    runs: list[EngineRun] = []
    with disk_errors(engine.path.parent):
        for job in _jobs(batches):
            runs.append(_run_job(engine, job, time_limit, 0 if runs else timed_runs))
    return EngineRun([outputs for run in runs for outputs in run.outputs], runs[0].latencies if runs else ())


def load_engine_file(
    path: Path, backend: Backend, *, time_limit: float = 60.0, command: Sequence[str] = (), device: int = 0
) -> Engine:
    """An engine that was built elsewhere, from its file; it is loaded once, in a child process.

    Args:
        path: The serialised engine, as ``trtexec --saveEngine`` writes it.
        backend: Which library built it.
        time_limit: Seconds until the child is killed.
        command: As for `build_engine`; the file is on this machine and travels.
        device: As for `build_engine`.

    Returns:
        The engine; its `tensors` say what it takes and gives. What was reported when it was built is not known.

    Raises:
        EngineError: "disk" where there is no such file, "refused" where this version of the library does not load it
            on this device.
    """
    check_ability(can_run(backend, command, device))
    if not path.is_file():
        raise EngineError("disk", f"There is no engine {path}.", advice="Name the file of a serialised engine.")
    spec = {"backend": backend, "stand_in": False, "device": visible_device(device, command)}
    files = {"engine": path}
    with disk_errors(path.parent), scratch() as folder:
        result, log = run_child(builder._CHILD, "inspect", spec, folder, time_limit, reads=files, command=command)
    known: dict[str, Any] = {"tensors": result["tensors"], "inspector": result["inspector"]}
    known |= {"command": tuple(command), "device": device}
    library = f"{backend} {result['version']}"
    return Engine(path, backend, path.stat().st_size, 0.0, True, {}, "", log, library, **known)


def _jobs(batches: Iterable[Arrays]) -> Iterator[list[Arrays]]:
    """The batches, as many at a time as fit into a job."""
    job: list[Arrays] = []
    room = _JOB
    for batch in batches:
        size = sum(array.nbytes for array in batch.values())
        if job and size > room:
            yield job
            job, room = [], _JOB
        job.append(batch)
        room -= size
    if job:
        yield job


def _run_job(engine: Engine, job: list[Arrays], time_limit: float, timed_runs: int) -> EngineRun:
    with scratch() as folder:
        reads, writes = {"engine": engine.path, "inputs": folder / "inputs.npz"}, {"outputs": folder / "outputs.npz"}
        names = list(job[0])
        _write_arrays(reads["inputs"], (batch[name] for batch in job for name in names))
        spec: dict[str, Any] = {"backend": engine.backend, "stand_in": False}
        spec |= {"device": visible_device(engine.device, engine.command)}
        spec |= {"names": names, "batches": len(job), "timed_runs": timed_runs}
        files: dict[str, Any] = {"reads": reads, "writes": writes, "command": engine.command}
        result, log = run_child(builder._CHILD, "run", spec, folder, time_limit, **files)
        try:
            outputs = _read_arrays(writes["outputs"], result["names"], len(job))
            return EngineRun(outputs, tuple(result.get("latencies", ())))
        except Exception as error:
            raise EngineError("garbage", f"The engine ran and left no readable outputs ({error}).", log) from error


def _write_arrays(path: Path, arrays: Iterable[NDArray[np.generic]]) -> None:
    """An .npz like numpy's own of numbered arrays (a name may hold a slash, or be "file"), one after the other."""
    with zipfile.ZipFile(path, "w") as archive:
        for index, array in enumerate(arrays):
            with archive.open(f"arr_{index}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array))


def _read_arrays(path: Path, names: list[str], batches: int) -> list[dict[str, NDArray[np.generic]]]:
    with np.load(path, allow_pickle=False) as stored:
        return [
            {name: stored[f"arr_{batch * len(names) + index}"] for index, name in enumerate(names)}
            for batch in range(batches)
        ]
