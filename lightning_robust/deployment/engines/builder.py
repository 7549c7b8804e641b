"""Engine builds and runs in a child process, with a time limit and a cache on disk.

`child/engine.py` drives TensorRT, `numerics/convert.py` makes a model half precision, and `base.py` names the
targets. Nothing here imports TensorRT: whatever it does, the training process lives on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx

from lightning_robust.deployment.engines.child import engine as _engine_child
from lightning_robust.deployment.engines.child.process import EngineError as EngineError
from lightning_robust.deployment.engines.child.process import run_child
from lightning_robust.deployment.engines.refit import folded_weights, structure, weight_digests

Backend = Literal["tensorrt", "tensorrt_rtx"]

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]
Profile = dict[str, Shapes]
"""For each input of the network its smallest, its usual and its largest shape."""

_SCRIPT = Path(_engine_child.__file__)
_CHILD = _SCRIPT  # what builds and runs; tests put scripts here that crash, hang and lie
_FOREVER = 1e8  # seconds; three years
_KEPT = 32  # engines in a cache directory
_FORMAT = 1  # raise it when the meaning of a cache entry changes
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}


class Ability(NamedTuple):
    """Whether something can be done on this machine; `reason` says why not and what to do, '' where it can.

    Example:
        >>> bool(Ability(False, "no CUDA device answers"))
        False
    """

    able: bool
    reason: str = ""

    def __bool__(self) -> bool:
        """True where it can be done."""
        return self.able


@dataclass(frozen=True)
class Engine:
    """A built engine. That it was built says that parser and builder took the model, nothing about its numbers.

    Args:
        path: The serialised engine.
        backend: Which library built it.
        size: Bytes.
        seconds: Parsing and building, start of the process not included; of the original build where `cached`.
        cached: Whether it was found in the cache.
        layers: Types of the outputs of each layer as parsed, before fusion, e.g. {"node_conv2d": "HALF"}.
        flags: What was really set on network and builder, e.g. "STRONGLY_TYPED TF32".
        log: What the build printed.
        library: The library and its version.
        stand_in: True where TensorRT-RTX stood in for full TensorRT: the code path is the real one, the engine is not.
    """

    path: Path
    backend: Backend
    size: int
    seconds: float
    cached: bool
    layers: dict[str, str]
    flags: str
    log: str
    library: str
    stand_in: bool = False


def can_build(backend: Backend) -> Ability:
    """Whether engines can be built here: RTX builds without a GPU, full TensorRT times its kernels on one."""
    missing = _missing_package(backend)
    if missing or backend == "tensorrt_rtx" or _device_name():
        return Ability(not missing, missing)
    return Ability(
        False,
        "TensorRT needs a CUDA device to build and none answers here. Build on the machine that will run the engine, "
        'or take backend="tensorrt_rtx", which builds without one.',
    )


def can_run(backend: Backend) -> Ability:
    """Whether engines can be run here: that takes the package and a CUDA device."""
    missing = _missing_package(backend)
    if missing or _device_name():
        return Ability(not missing, missing)
    return Ability(
        False,
        f"running a {backend} engine needs a CUDA device and none answers here (libcuda.so.1: cuInit, "
        "cuDeviceGetCount). An engine built here is built, not measured; use emulated-fp16 for numbers.",
    )


def build_engine(
    model: bytes,
    *,
    backend: Backend,
    profile: Profile,
    directory: Path | None = None,
    time_limit: float = 300.0,
    tf32: bool = False,
    weakly_typed: Literal["fp16"] | None = None,
    refit: bool = False,
    stand_in: bool = False,
) -> Engine:
    """Build an engine from a serialised ONNX model, or find it in the cache.

    Strongly typed: the engine computes in the types of the model, so that an fp16 engine is built from an fp16 model
    (`conversion.to_half`). The build runs in its own process group, which is killed at the time limit.
    Where no CUDA device answers, an RTX engine is built for compute capability 8.9. The cache keeps the 32 engines used
    last, so that a training run which builds at every validation does not fill the disk.

    Args:
        model: The ONNX file's bytes.
        backend: Which library builds.
        profile: Smallest, usual and largest shape of every dynamic input; static inputs need none.
        directory: Where engines are kept; default `$XDG_CACHE_HOME/lightning_robust/engines` (`~/.cache/...`).
        time_limit: Seconds until the build is killed.
        tf32: Let fp32 convolutions and products be computed in TF32 (10 bits of mantissa). The libraries' own default
            is on, ours is off.
        weakly_typed: "fp16" lets TensorRT 10 choose fp16 per layer; refused by TensorRT 11 and by RTX, which cannot.
        refit: Take the engine that was built with this for the same graph with other weights, and set the weights in
            it; where there is none, build one that can be refitted (it may be optimised less). Takes a CUDA device.
            Not yet proven on one: here the parts before the device were run, and the rest against a stub.
        stand_in: Let TensorRT-RTX answer to the name of full TensorRT 11.4 (backend "tensorrt" only), so that this very
            path runs on a machine without a GPU. The `Engine` says so.

    Returns:
        The engine's path and what is known of it.

    Raises:
        ValueError: The model is not ONNX, or the profile does not fit its inputs.
        EngineError: Everything else that can go wrong; see `EngineError.kind`.
    """
    if stand_in and backend != "tensorrt":
        raise ValueError(f'Expected backend="tensorrt" with stand_in=True, but got {backend!r}')
    if weakly_typed not in (None, "fp16"):
        raise ValueError(f'Expected argument `weakly_typed` to be "fp16" or None, but got {weakly_typed!r}')
    if not 0 < time_limit < _FOREVER:
        raise ValueError(f"Expected argument `time_limit` to be a positive number of seconds, but got {time_limit}")
    shapes = _complete_profile(model, profile)
    package: Backend = "tensorrt_rtx" if stand_in else backend
    _require(can_build(package))
    if weakly_typed and backend == "tensorrt_rtx":
        raise EngineError(
            "refused",
            "TensorRT-RTX builds strongly typed engines only, so weakly_typed='fp16' means nothing to it.",
            advice="Convert the model with lightning_robust.deployment.numerics.convert.to_half and build that.",
        )
    settings: dict[str, Any] = {
        "backend": backend,
        "library": f"{package} {_version(package)}",
        "target": _target(package),
        "profile": shapes,
        "tf32": tf32,
        "weakly_typed": weakly_typed,
        "refit": refit,
        "stand_in": stand_in,
    }
    folder = (directory or _default_directory()).expanduser().absolute()
    path = folder / f"{_key(model, settings)}.engine"
    entry = _read_entry(path)
    if entry is not None:
        return _engine(path, settings, entry, cached=True)
    with _disk_errors(folder):
        if refit:
            path, entry = _refit(model, settings, path, time_limit)
        else:
            entry = _build(model, settings, path, time_limit)
    _prune(folder)
    return _engine(path, settings, entry, cached=False)


def run_engine(engine: Engine, inputs: Mapping[str, np.ndarray], *, time_limit: float = 60.0) -> dict[str, np.ndarray]:
    """Run an engine once, in a child process.

    Args:
        engine: What `build_engine` returned.
        inputs: One array per input, of the network's own types and of shapes within the profile.
        time_limit: Seconds until the run is killed; loading the engine counts (RTX compiles its kernels then).

    Returns:
        One array per output.

    Raises:
        EngineError: "unavailable" where `can_run` says no or the engine is a stand-in, otherwise as for a build.
    """
    able = can_run(engine.backend)
    if engine.stand_in:
        able = Ability(False, "a stand-in engine is not TensorRT's and is not run: build it with stand_in=False.")
    _require(able)
    with _disk_errors(engine.path.parent), tempfile.TemporaryDirectory(prefix="lightning_robust-") as name:
        folder = Path(name)
        with (folder / "inputs.npz").open("wb") as file:
            np.savez(file, *inputs.values())  # numbered: a name may hold a slash, or be "file"
        spec = {
            "backend": engine.backend,
            "stand_in": False,
            "engine": str(engine.path),
            "names": list(inputs),
            "inputs": str(folder / "inputs.npz"),
            "outputs": str(folder / "outputs.npz"),
        }
        result, log = run_child(_CHILD, "run", spec, folder, time_limit)
        try:
            with np.load(folder / "outputs.npz", allow_pickle=False) as stored:
                return {output: stored[f"arr_{index}"] for index, output in enumerate(result["names"])}
        except Exception as error:
            raise EngineError("garbage", f"The engine ran and left no readable outputs ({error}).", log) from error


def _require(able: Ability) -> None:
    """Raise EngineError where something cannot be done here."""
    if not able:
        raise EngineError("unavailable", able.reason, advice="")


def _missing_package(backend: Backend) -> str:
    """'' where the package can be found, else the sentence that says how to install it."""
    if backend not in _EXTRAS:
        raise ValueError(f"Expected argument `backend` to be one of {sorted(_EXTRAS)}, but got {backend!r}")
    if importlib.util.find_spec(backend) is not None:
        return ""
    return f'the package {backend} is not installed. Run: pip install "lightning-robust[{_EXTRAS[backend]}]"'


@functools.cache
def _device_name() -> str:
    """The first CUDA device as the driver names it, '' for none; asked of a child, once per process."""
    try:
        with tempfile.TemporaryDirectory(prefix="lightning_robust-") as folder:
            result, _ = run_child(_SCRIPT, "device", {}, Path(folder), 30.0)
    except (EngineError, OSError):
        return ""
    return str(result.get("name", ""))


def _target(package: Backend) -> str:
    """The compute capability an RTX engine is built for, by its name in the library; '' leaves it to the library."""
    if package == "tensorrt":
        return ""
    return "CURRENT" if _device_name() else "SM89"


def _version(package: Backend) -> str:
    """The installed version; where no distribution says it, the age of the package's file, which changes with it."""
    for distribution in _DISTRIBUTIONS[package]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    spec = importlib.util.find_spec(package)
    origin = spec.origin if spec is not None else None
    return f"of {Path(origin).stat().st_mtime_ns}" if origin else "unknown"


def _default_directory() -> Path:
    """Where engines are kept unless the caller says where."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_robust" / "engines"


def _complete_profile(model: bytes, profile: Profile) -> Profile:
    """The profile checked against the model's inputs, with the static inputs filled in."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except Exception as error:
        raise ValueError(
            f"Expected argument `model` to be a serialised ONNX model, but got other bytes: {error}"
        ) from error
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.input if value.name not in constants}
    if unknown := sorted(profile.keys() - inputs.keys()):
        raise ValueError(f"Expected a profile for the inputs {sorted(inputs)}, but got one for {unknown}")
    complete: Profile = {}
    for name, dims in inputs.items():
        known = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
        static = tuple(size for size in known if size is not None)
        if name in profile:
            complete[name] = _check_shapes(name, known, profile[name])
        elif len(static) == len(known):
            complete[name] = (static, static, static)
        else:
            shape = [dim.dim_param or dim.dim_value for dim in dims]
            raise ValueError(f"Expected a profile for every dynamic input, but none came for {name!r} of shape {shape}")
    return complete


def _check_shapes(name: str, known: tuple[int | None, ...], shapes: Shapes) -> Shapes:
    """The three shapes of one input, if they have its rank and its static sizes and grow from the smallest on."""
    least, best, most = (tuple(int(size) for size in shape) for shape in shapes)
    if not len(least) == len(best) == len(most) == len(known):
        raise ValueError(f"Expected shapes of {len(known)} dimensions in the profile of {name!r}, but got {shapes}")
    for size, *triple in zip(known, least, best, most, strict=True):
        if triple != sorted(triple) or triple[0] < 0 or (size is not None and set(triple) != {size}):
            raise ValueError(
                f"Expected smallest <= usual <= largest in the profile of {name!r}, and the static sizes of {known}, "
                f"but got {shapes}"
            )
    return least, best, most


def _key(model: bytes, settings: Mapping[str, Any]) -> str:
    """The name of a cache entry: everything the engine depends on, hashed."""
    everything = {**settings, "format": _FORMAT, "device": _device_name() or "no device"}
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode())
    digest.update(hashlib.sha256(model).digest())
    return digest.hexdigest()


def _read_entry(path: Path) -> dict[str, Any] | None:
    """The sidecar of a cached engine, None where there is none or the engine's bytes are not those it describes."""
    try:
        entry = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"] and _is_report(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # in use: the last to be pruned
    return entry


def _prune(folder: Path) -> None:
    """Delete the engines unused for longest: training writes one at every validation, since the weights differ."""
    with contextlib.suppress(OSError):
        engines = sorted(folder.glob(f"{'[0-9a-f]' * 64}.engine"), key=lambda path: path.stat().st_mtime_ns)
        for path in engines[:-_KEPT]:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def _is_report(result: Mapping[str, Any]) -> bool:
    """Whether the child's account of a build has every field an `Engine` needs, of the right type."""
    kinds = {"size": int, "seconds": float, "layers": dict, "flags": str}
    return all(isinstance(result.get(name), kind) for name, kind in kinds.items()) and result["size"] > 0


def _engine(path: Path, settings: Mapping[str, Any], entry: Mapping[str, Any], *, cached: bool) -> Engine:
    """What is told of an engine, from how it was asked for and from its cache entry."""
    claim = f", standing in for TensorRT {_engine_child.STAND_IN_VERSION}" if settings["stand_in"] else ""
    return Engine(
        path=path,
        backend=settings["backend"],
        size=entry["size"],
        seconds=entry["seconds"],
        cached=cached,
        layers=entry["layers"],
        flags=entry["flags"],
        log=entry.get("log", ""),
        library=settings["library"] + claim,
        stand_in=settings["stand_in"],
    )


def _refit(model: bytes, settings: Mapping[str, Any], path: Path, time_limit: float) -> tuple[Path, dict[str, Any]]:
    """The engine built for this graph with these or other weights; with others, a copy of it that holds these."""
    weights = weight_digests(model)
    origin = path.with_stem(_key(structure(model), settings))
    entry = _read_entry(origin)
    if entry is None:
        return origin, _build(model, settings, origin, time_limit, {"weights": weights})
    before = entry.get("weights", {})
    changed = {name for name, digest in weights.items() if before.get(name) != digest}
    if not changed:
        return origin, entry
    known = {"layers": entry["layers"], "flags": entry["flags"], "weights": weights}
    spec = {**settings, "origin": str(origin), "changed": sorted(changed - folded_weights(model))}
    return path, _build(model, spec, path, time_limit, known, verb="refit")


def _build(
    model: bytes,
    settings: Mapping[str, Any],
    path: Path,
    time_limit: float,
    known: Mapping[str, Any] | None = None,
    verb: str = "build",
) -> dict[str, Any]:
    """Build in a folder beside the cache entry, check what came back, and move it into place in one step.

    What is `known` of the engine beforehand joins the child's account of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        engine, sidecar = folder / "engine", folder / "entry.json"
        (folder / "model.onnx").write_bytes(model)
        spec = {**settings, "model": str(folder / "model.onnx"), "engine": str(engine)}
        result, log = run_child(_CHILD, verb, spec, folder, time_limit)
        result |= known or {}
        blob = engine.read_bytes() if engine.is_file() else b""
        if not _is_report(result) or len(blob) != result["size"]:
            raise EngineError("garbage", f"The {verb} ended well but left {len(blob)} bytes and {result}.", log)
        entry = {**result, "sha256": hashlib.sha256(blob).hexdigest(), "log": log[-20_000:]}
        sidecar.write_text(json.dumps(entry), encoding="utf-8")
        engine.replace(path)
        sidecar.replace(path.with_suffix(".json"))
    return entry


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of this process (full, read-only, not a directory) into an EngineError that names the place."""
    try:
        yield
    except OSError as error:
        raise EngineError("disk", f"{folder} cannot be written: {error}") from error
