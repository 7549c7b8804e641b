"""The script that builds, refits and runs one TensorRT engine, or asks its parser, in a process of its own.

    python -P engine.py build|refit|run|support|device spec.json

It needs numpy and Polygraphy alone, and imports neither torch nor lightning_robust, so that it starts quickly.
`spec.json` names every file that it reads or writes. The last file it writes is the result, a JSON object whose
`status` is "done", "refused", "disk", "unavailable" or "crashed".
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

STAND_IN_VERSION = "11.4.0.106"
"""The version of full TensorRT that TensorRT-RTX claims when it stands in for it."""

_GRACE = 10
"""Seconds after the parent's time limit when the child ends by itself, in case the parent is gone."""


def cuda_device_name() -> str:
    """The name of the first CUDA device as the driver gives it, or '' where there is no driver or no device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    count, device, name = ctypes.c_int(0), ctypes.c_int(0), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return ""
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return "unnamed CUDA device"
    return name.value.decode(errors="replace")


def load_tensorrt(spec: dict[str, Any]) -> Any:
    """Import the TensorRT of the spec and point Polygraphy at it, before Polygraphy's backend is imported.

    Polygraphy reads its switch once per process, hence one process per engine.
    """
    polygraphy_config: Any = importlib.import_module("polygraphy.config")
    polygraphy_config.USE_TENSORRT_RTX = spec["backend"] == "tensorrt_rtx"
    importlib.import_module("polygraphy.logger").G_LOGGER.colors = False
    if not spec["stand_in"]:
        return importlib.import_module(spec["backend"])
    tensorrt: Any = importlib.import_module("tensorrt_rtx")
    tensorrt.__version__ = STAND_IN_VERSION
    sys.modules["tensorrt"] = tensorrt
    return tensorrt


def make_config(spec: dict[str, Any], tensorrt: Any) -> Any:
    """Polygraphy's builder configuration, and beside it what Polygraphy does not set for both libraries alike."""
    backend = importlib.import_module("polygraphy.backend.trt")
    profile = backend.Profile()
    for name, (least, best, most) in spec["profile"].items():
        profile.add(name, min=tuple(least), opt=tuple(best), max=tuple(most))
    options: dict[str, Any] = {"profiles": [profile], "refittable": spec["refit"]}
    if spec["backend"] == "tensorrt_rtx":
        config = importlib.import_module("polygraphy.backend.tensorrt_rtx").CreateConfigRTX(**options)
    else:
        config = backend.CreateConfig(**options, tf32=spec["tf32"], fp16=bool(spec["weakly_typed"]))

    def settle(builder: Any, network: Any, built: Any) -> None:
        # CreateConfigRTX has no tf32 and leaves the library's default, which is on
        (built.set_flag if spec["tf32"] else built.clear_flag)(tensorrt.BuilderFlag.TF32)
        if spec["target"]:  # not compute_capabilities=..., which Polygraphy refuses to a stand-in
            built.num_compute_capabilities = 1
            built.set_compute_capability(getattr(tensorrt.ComputeCapability, spec["target"]), 0)

    return backend.PostprocessConfig(config, settle)


def describe_layers(network: Any) -> dict[str, str]:
    """Layer of the parsed network -> types of its outputs, comma separated, e.g. {"node_conv2d": "HALF"}."""
    layers: dict[str, str] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        name = layer.name if layer.name not in layers else f"{layer.name}#{index}"
        layers[name] = ",".join(tensor.dtype.name for tensor in outputs if tensor is not None)
    return layers


def describe_flags(network: Any, config: Any, tensorrt: Any) -> str:
    """The flags that are set on the network and the configuration, space separated, e.g. "STRONGLY_TYPED TF32"."""
    kinds = [(network, tensorrt.NetworkDefinitionCreationFlag), (config, tensorrt.BuilderFlag)]
    names = [name for owner, kind in kinds for name, flag in kind.__members__.items() if owner.get_flag(flag)]
    return " ".join(names)


def build(spec: dict[str, Any]) -> dict[str, Any]:
    """Parse the ONNX file, build the engine and write it. Returns a report on the engine."""
    tensorrt = load_tensorrt(spec)
    if spec["weakly_typed"] and int(tensorrt.__version__.split(".")[0]) >= 11:
        return {
            "status": "refused",
            "message": f"TensorRT {tensorrt.__version__} has no weakly typed builds, they were removed in 11.0.",
            "advice": "Convert the model with lightning_robust.deployment.numerics.convert.to_half and build that "
            "strongly typed, or use TensorRT 10.",
        }
    if spec["refit"] and tensorrt.__version__.startswith("11.3."):
        return {
            "status": "refused",
            "message": f"refittable engines of TensorRT {tensorrt.__version__} may drop a bias (its release notes)",
            "advice": "Build without refit, or use another version of TensorRT.",
        }
    backend = importlib.import_module("polygraphy.backend.trt")
    started = time.perf_counter()
    model = Path(spec["model"]).read_bytes()
    builder, network, parser = backend.NetworkFromOnnxBytes(model, strongly_typed=not spec["weakly_typed"])()
    config = make_config(spec, tensorrt)(builder, network)
    # the layers as parsed: the builder fuses them
    layers, flags = describe_layers(network), describe_flags(network, config, tensorrt)
    engine = bytes(backend.EngineBytesFromNetwork((builder, network, parser), config=lambda *_: config)())
    Path(spec["engine"]).write_bytes(engine)
    seconds = time.perf_counter() - started
    return {"status": "done", "size": len(engine), "seconds": seconds, "layers": layers, "flags": flags}


def refit(spec: dict[str, Any]) -> dict[str, Any]:
    """Set the weights of an ONNX file in an engine that was built for the same graph, and write that engine.

    Refused where a weight that changed is fixed in the engine, which would silently keep its old value.
    """
    tensorrt = load_tensorrt(spec)
    backend = importlib.import_module("polygraphy.backend.trt")
    logger = backend.get_trt_logger()
    started = time.perf_counter()
    engine = backend.EngineFromBytes(Path(spec["origin"]).read_bytes())()
    refitter = tensorrt.Refitter(engine, logger)
    fixed = sorted(set(spec["changed"]) - set(refitter.get_all_weights()))
    if fixed:
        return {"status": "refused", "message": f"these weights are fixed in the engine: {', '.join(fixed)}"}
    model = Path(spec["model"]).read_bytes()  # the refitter points into these bytes until it is done
    reader = tensorrt.OnnxParserRefitter(refitter, logger)
    if not reader.refit_from_bytes(model):
        errors = [reader.get_error(index).desc() for index in range(reader.num_errors)]
        return {"status": "refused", "message": "; ".join(["the weights do not fit the engine", *errors])}
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights())
        return {"status": "refused", "message": f"the engine took no weights, missing: {missing or 'none'}"}
    blob = bytes(engine.serialize())
    Path(spec["engine"]).write_bytes(blob)
    return {"status": "done", "size": len(blob), "seconds": time.perf_counter() - started}


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the engine once on the inputs of an .npz with numbered arrays; the spec has their names.

    Outputs are written the same way. Polygraphy refuses types that numpy lacks (bfloat16) with a message.
    """
    import numpy as np

    load_tensorrt(spec)
    backend = importlib.import_module("polygraphy.backend.trt")
    with np.load(spec["inputs"], allow_pickle=False) as stored:
        # in C order, and a scalar stays one (ascontiguousarray would make it a vector)
        feed = {name: np.array(stored[f"arr_{index}"], order="C") for index, name in enumerate(spec["names"])}
    engine = Path(spec["engine"]).read_bytes()
    with backend.TrtRunner(backend.EngineFromBytes(engine)) as runner:
        # copied, because the runner frees its buffers when it closes
        outputs = {name: np.array(value) for name, value in runner.infer(feed).items()}
    with Path(spec["outputs"]).open("wb") as file:
        np.savez(file, *outputs.values())
    return {"status": "done", "names": list(outputs)}


def support(spec: dict[str, Any]) -> dict[str, Any]:
    """Ask the parser which nodes it takes: a list of (index of the node or -1, operator, reason), empty for all."""
    tensorrt = load_tensorrt(spec)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    builder = tensorrt.Builder(logger)  # held by a name, as the network is: the parser points into both
    network = builder.create_network(strongly_typed)
    parser = tensorrt.OnnxParser(network, logger)
    accepted = parser.supports_model_v2(Path(spec["model"]).read_bytes())
    errors = [] if accepted else map(parser.get_error, range(parser.num_errors))
    refused = [(error.node(), error.node_operator(), error.desc()) for error in errors]
    return {"status": "done", "refused": refused}


def device(spec: dict[str, Any]) -> dict[str, Any]:
    """Name the CUDA device. In a child, because a process that called cuInit cannot fork workers that use CUDA."""
    return {"status": "done", "name": cuda_device_name()}


def classify(error: Exception) -> str:
    """The status that an exception stands for."""
    if isinstance(error, ImportError):
        return "unavailable"
    if isinstance(error, OSError):
        # the loader's "cannot open shared object file" carries no errno
        return "disk" if error.errno else "unavailable"
    # by name, since the class cannot be imported where Polygraphy is missing: a refusal by parser or builder
    return "refused" if type(error).__name__ == "PolygraphyException" else "crashed"


def attempt(verb: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run one verb and turn an exception into a result."""
    try:
        return {"build": build, "refit": refit, "run": run, "support": support, "device": device}[verb](spec)
    except Exception as error:
        result = {"status": classify(error), "message": f"{type(error).__name__}: {error}"}
        if result["status"] != "refused":
            traceback.print_exc()  # the library itself prints the reason of a refusal
        elif verb == "run":
            result["advice"] = (
                "If it loaded: pass the inputs by name, in the types and shapes that the engine was built for. "
                "If it did not: driver, device and library must fit the engine."
            )
        return result


def main(verb: str, spec_path: str) -> None:
    """Read the spec, run the verb, write the result."""
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    if hasattr(signal, "alarm"):
        signal.alarm(int(spec["time_limit"]) + _GRACE)
    result = attempt(verb, spec)
    Path(spec["result"]).write_text(json.dumps(result), encoding="utf-8")
    with contextlib.suppress(OSError):  # a log on a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    # no teardown: native libraries are known to crash in theirs, after the work is done
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
