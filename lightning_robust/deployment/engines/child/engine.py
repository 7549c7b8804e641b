"""The script that builds, refits and runs one TensorRT engine, or asks its parser, in a process of its own.

    python -P engine.py build|refit|run|inspect|support spec.json

It needs numpy and Polygraphy alone, and imports neither torch nor lightning_robust, so that it starts quickly. Its
parts, `running.py` and `about.py`, are files beside it, wherever it runs.
`spec.json` names every file that it reads or writes. The last file it writes is the result, a JSON object whose
`status` is "done", "refused", "disk", "unavailable" or "crashed".
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

STAND_IN_VERSION = "11.4.0.106"
"""The version of full TensorRT that TensorRT-RTX claims when it stands in for it."""

_NO_DEVICE = {35: "the driver is too old for the CUDA runtime", 46: "all devices are in use", 100: "there is no device"}
"""What CUDA's error numbers say of a machine that cannot run an engine."""

_GRACE = 10
"""Seconds after the parent's time limit when the child ends by itself, in case the parent is gone."""


def load_part(name: str) -> Any:
    """A file beside this one; by its path, for the script's folder is not on sys.path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    part: Any = importlib.util.module_from_spec(spec) if spec else None
    part.__spec__.loader.exec_module(part)
    return part


def find_cuda_runtime() -> None:
    """Let Polygraphy find the CUDA runtime of a wheel: it knows the folder of CUDA 12's, not `nvidia/cu13/lib`."""
    libraries = [found for place in sys.path if place for found in Path(place).glob("nvidia/*/lib/libcudart.so*")]
    newest = sorted(libraries, key=lambda found: found.name, reverse=True)
    folders = [str(library.parent) for library in newest] + [os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))


def load_tensorrt(spec: dict[str, Any]) -> Any:
    """Import the TensorRT of the spec and point Polygraphy at it, before Polygraphy's backend is imported.

    Polygraphy reads its switch once per process, hence one process per engine. It would import torch, which takes
    seconds, to ask whether arrays are tensors: torch counts as missing.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    find_cuda_runtime()
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
    options["profiling_verbosity"] = tensorrt.ProfilingVerbosity.DETAILED  # or the inspector knows names alone
    if spec.get("workspace"):
        options["memory_pool_limits"] = {tensorrt.MemoryPoolType.WORKSPACE: int(spec["workspace"] * 2**30)}
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
        if spec.get("timings"):
            load_timings(built, Path(spec["timings"]))

    return backend.PostprocessConfig(config, settle)


def load_timings(config: Any, path: Path) -> None:
    """Give the configuration the timings of earlier builds; without them it starts from none."""
    with contextlib.suppress(Exception):  # none there yet, or the library does not take them: timed anew
        cache = config.create_timing_cache(path.read_bytes())
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)


def save_timings(config: Any, path: Path) -> None:
    """Write the timings of this build and of those before."""
    cache = config.get_timing_cache()
    if cache is not None:
        path.write_bytes(bytes(cache.serialize()))


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


class RefusedError(Exception):
    """What the library does not take, in a sentence, and what to do."""

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.result = {"status": "refused", "message": message, **({"advice": advice} if advice else {})}


def build(spec: dict[str, Any]) -> dict[str, Any]:
    """Parse the ONNX file, build the engine and write it. Returns a report on the engine."""
    tensorrt = load_tensorrt(spec)
    if spec["weakly_typed"] and int(tensorrt.__version__.split(".")[0]) >= 11:
        raise RefusedError(
            f"TensorRT {tensorrt.__version__} has no weakly typed builds, they were removed in 11.0.",
            "Convert the model with lightning_robust.deployment.numerics.convert.to_half and build that strongly "
            "typed, or use TensorRT 10.",
        )
    if spec["refit"] and tensorrt.__version__.startswith("11.3."):
        raise RefusedError(
            f"refittable engines of TensorRT {tensorrt.__version__} may drop a bias (its release notes)",
            "Build without refit, or use another version of TensorRT.",
        )
    backend = importlib.import_module("polygraphy.backend.trt")
    started = time.perf_counter()
    model = Path(spec["model"]).read_bytes()
    builder, network, parser = backend.NetworkFromOnnxBytes(model, strongly_typed=not spec["weakly_typed"])()
    config = make_config(spec, tensorrt)(builder, network)
    # the layers as parsed: the builder fuses them
    layers, flags = describe_layers(network), describe_flags(network, config, tensorrt)
    engine = bytes(backend.EngineBytesFromNetwork((builder, network, parser), config=lambda *_: config)())
    Path(spec["engine"]).write_bytes(engine)
    if spec.get("timings"):
        save_timings(config, Path(spec["timings"]))
    report = {"size": len(engine), "seconds": time.perf_counter() - started, "layers": layers, "flags": flags}
    with contextlib.suppress(Exception):  # where the engine is for another device, as RTX builds it without one
        running = load_part("running")
        report["inspector"] = running.describe_execution(backend.EngineFromBytes(engine)(), tensorrt)
    return {"status": "done", **report}


def load_engine(path: str, spec: dict[str, Any], tensorrt: Any) -> Any:
    """The engine of a file. The library must be of the version that built it, and the device of the kind."""
    serialised = Path(path).read_bytes()
    try:
        return importlib.import_module("polygraphy.backend.trt").EngineFromBytes(serialised)()
    except Exception as error:
        if classify(error) != "refused":
            raise
        devices = load_part("about").ask_driver()["devices"]
        device = devices[0]["name"] if devices else "a machine without a CUDA device"
        where = f"{spec['backend']} {tensorrt.__version__} on {device}"
        what = f"{where} does not load the engine, which another version built, or for another device"
        raise RefusedError(f"{what} ({error})", "Build it again with this version on this device.") from error


def refit(spec: dict[str, Any]) -> dict[str, Any]:
    """Set the weights of an ONNX file in an engine that was built for the same graph, and write that engine.

    Refused where a weight that changed is fixed in the engine, which would silently keep its old value.
    """
    tensorrt = load_tensorrt(spec)
    logger = importlib.import_module("polygraphy.backend.trt").get_trt_logger()
    started = time.perf_counter()
    engine = load_engine(spec["origin"], spec, tensorrt)
    refitter = tensorrt.Refitter(engine, logger)
    fixed = sorted(set(spec["changed"]) - set(refitter.get_all_weights()))
    if fixed:
        raise RefusedError(f"these weights are fixed in the engine: {', '.join(fixed)}")
    model = Path(spec["model"]).read_bytes()  # the refitter points into these bytes until it is done
    reader = tensorrt.OnnxParserRefitter(refitter, logger)
    if not reader.refit_from_bytes(model):
        errors = [reader.get_error(index).desc() for index in range(reader.num_errors)]
        raise RefusedError("; ".join(["the weights do not fit the engine", *errors]))
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights())
        raise RefusedError(f"the engine took no weights, missing: {missing or 'none'}")
    blob = bytes(engine.serialize())
    Path(spec["engine"]).write_bytes(blob)
    return {"status": "done", "size": len(blob), "seconds": time.perf_counter() - started}


def inspect(spec: dict[str, Any]) -> dict[str, Any]:
    """Name the inputs, outputs and layers of an engine's file, and the library's version."""
    tensorrt, running = load_tensorrt(spec), load_part("running")
    engine = load_engine(spec["engine"], spec, tensorrt)
    layers, tensors = running.describe_execution(engine, tensorrt), running.describe_tensors(engine, tensorrt)
    return {"status": "done", "tensors": tensors, "inspector": layers, "version": tensorrt.__version__}


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the engine on the batches of an .npz, and write its outputs to another."""
    tensorrt = load_tensorrt(spec)
    engine = load_engine(spec["engine"], spec, tensorrt)
    return {"status": "done", **load_part("running").execute_batches(engine, spec, tensorrt)}


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


def classify(error: Exception) -> str:
    """The status that an exception stands for."""
    if isinstance(error, ImportError) or explain_device(error):
        return "unavailable"
    if isinstance(error, OSError):
        # the loader's "cannot open shared object file" carries no errno
        return "disk" if error.errno else "unavailable"
    # by name, since the class cannot be imported where Polygraphy is missing: a refusal by parser or builder
    return "refused" if type(error).__name__ == "PolygraphyException" else "crashed"


def explain_device(error: Exception) -> str:
    """What an exception says of a device that cannot be used; '' where it is about something else."""
    number = re.match(r"CUDA Error: (\d+)", str(error))
    if number and int(number[1]) in _NO_DEVICE:
        return _NO_DEVICE[int(number[1])]
    # a binding whose library gave it no object, as Builder and Runtime do without a device or with an old driver
    null = isinstance(error, TypeError) and "factory function returned nullptr" in str(error)
    return "the library does not start" if null else ""


def attempt(verb: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run one verb and turn an exception into a result."""
    verbs = {"build": build, "refit": refit, "run": run, "inspect": inspect, "support": support}
    try:
        return verbs[verb](spec)
    except RefusedError as error:
        return error.result
    except Exception as error:
        result = {"status": classify(error), "message": f"{type(error).__name__}: {error}"}
        if result["status"] != "refused":
            traceback.print_exc()  # the library itself prints the reason of a refusal
        elif verb == "run":
            result["advice"] = "Pass the inputs by name, in the types and shapes that the engine was built for."
        if reason := explain_device(error):
            driver = load_part("about").ask_driver()
            known = driver["trouble"] or f"the driver knows CUDA {driver['cuda']}"
            result["message"] = f"no CUDA device can be used: {reason} ({known})"
            result["advice"] = "Install a driver for the CUDA of this TensorRT, or the TensorRT for this driver's CUDA."
        return result


def main(verb: str, spec_path: str) -> None:
    """Read the spec, run the verb, write the result."""
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    if spec.get("device"):  # before any library asks for the devices
        os.environ["CUDA_VISIBLE_DEVICES"] = spec["device"]
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
