"""What a loaded engine does: its inputs and outputs, its answers, its times; a part of the engine's script."""

from __future__ import annotations

import contextlib
import importlib
import time
import zipfile
from typing import Any

_LONG_ENOUGH = 5.0
"""Seconds of timed executions after which there is no further one."""


def describe_tensors(engine: Any, tensorrt: Any) -> dict[str, dict[str, Any]]:
    """Input or output -> its "mode" (INPUT, OUTPUT), "type" (HALF), "shape" (-1 where dynamic); inputs: "profile"."""
    tensors: dict[str, dict[str, Any]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode = engine.get_tensor_mode(name)
        tensors[name] = {"mode": mode.name, "type": engine.get_tensor_dtype(name).name}
        tensors[name]["shape"] = list(engine.get_tensor_shape(name))
        if mode == tensorrt.TensorIOMode.INPUT and not engine.is_shape_inference_io(name):
            tensors[name]["profile"] = [list(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
    return tensors


def execute_batches(engine: Any, spec: dict[str, Any], tensorrt: Any) -> dict[str, Any]:
    """Run the engine on one batch after the other; the names of its outputs, and the times of its last batch.

    The arrays of the .npz are numbered, first those of the first batch in the order of the spec's names. Outputs are
    written the same way, each batch before the next is read. Floating inputs are cast to the type of the engine's.
    Polygraphy refuses types that numpy lacks (bfloat16) with a message.
    """
    import numpy as np

    tensors = describe_tensors(engine, tensorrt)
    floats = {"FLOAT": np.float32, "HALF": np.float16}
    outputs: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stored = stack.enter_context(np.load(spec["inputs"], allow_pickle=False))
        archive = stack.enter_context(zipfile.ZipFile(spec["outputs"], "w"))
        runner = stack.enter_context(importlib.import_module("polygraphy.backend.trt").TrtRunner(engine))
        for batch in range(spec.get("batches", 1)):
            feed = {}
            for index, name in enumerate(spec["names"], start=batch * len(spec["names"])):
                array = stored[f"arr_{index}"]
                wanted = floats.get(tensors.get(name, {}).get("type", ""), array.dtype)
                # in C order, and a scalar stays one (ascontiguousarray would make it a vector)
                feed[name] = np.array(array, wanted if array.dtype.kind == "f" else None, order="C")
            outputs = runner.infer(feed)
            for index, value in enumerate(outputs.values(), start=batch * len(outputs)):
                with archive.open(f"arr_{index}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(value))
        return {"names": list(outputs), "latencies": time_executions(runner, spec.get("timed_runs", 0))}


def time_executions(runner: Any, runs: int) -> list[float]:
    """Seconds that an execution on the runner's last batch takes, again and again until there are enough.

    They pass on the host from the call until the stream is done. Inputs are on the device before and outputs stay
    there: no copy is in them; the start of the kernels is, and a call of Python for each output that asks for memory.
    """
    seconds: list[float] = []
    while len(seconds) < runs and sum(seconds) < _LONG_ENOUGH:
        started = time.perf_counter()
        if not runner.context.execute_async_v3(runner.stream.ptr):
            raise RuntimeError("the engine ran once and not again")
        runner.stream.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def describe_execution(engine: Any, tensorrt: Any) -> str:
    """What the engine's inspector says of its layers as they are executed, in JSON."""
    return str(engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.JSON))
