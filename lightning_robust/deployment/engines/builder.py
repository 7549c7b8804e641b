"""Engine builds and runs in a child process, with a time limit and a cache on disk.

This process never imports TensorRT, so that a crash of the library does not end the training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from lightning_robust.deployment.engines import abilities
from lightning_robust.deployment.engines.abilities import CHILD_SCRIPT, Ability, Backend, can_build
from lightning_robust.deployment.engines.cache import EngineCache, disk_errors, engine_key, is_report
from lightning_robust.deployment.engines.child import engine as child_script
from lightning_robust.deployment.engines.child.process import EngineError as EngineError
from lightning_robust.deployment.engines.child.process import run_child
from lightning_robust.deployment.engines.profile import Profile, complete_profile
from lightning_robust.deployment.engines.refit import folded_weights, structure, weight_digests
from lightning_robust.deployment.engines.timings import TimingFile

_CHILD = CHILD_SCRIPT  # tests put scripts here that crash, hang and lie
_FOREVER = 1e8  # seconds; three years


@dataclass(frozen=True)
class Engine:
    """A built engine: parser and builder accepted the model. Its numerical accuracy is not known yet.

    Args:
        path: The serialised engine.
        backend: Which library built it.
        size: Bytes.
        seconds: For parsing and building, without the start of the process; of the original build where `cached`.
        cached: Whether it comes from the cache.
        layers: Layer -> types of its outputs as parsed, before fusion, e.g. {"node_conv2d": "HALF"}.
        flags: The flags that were set on network and builder, e.g. "STRONGLY_TYPED TF32".
        log: What the build printed.
        library: The library and its version.
        stand_in: True where TensorRT-RTX stood in for full TensorRT: the code path is the real one, the engine is not.
        command: What starts Python where it was built and runs; empty for here.
        device: Which of the CUDA devices there.
        inspector: What the library's engine inspector says of the layers as they are executed, after fusion: JSON; ''
            where the engine cannot be loaded on the machine that built it.
        tensors: Of an engine from a file: input or output -> its ``"mode"`` ("INPUT", "OUTPUT"), ``"type"`` ("HALF"),
            ``"shape"`` (-1 where it is dynamic) and, of inputs, ``"profile"`` (smallest, usual and largest shape).
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
    command: tuple[str, ...] = ()
    device: int = 0
    inspector: str = ""
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)


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
    workspace: float | None = None,
    device: int = 0,
    stand_in: bool = False,
    command: Sequence[str] = (),
) -> Engine:
    """Build an engine from a serialised ONNX model, or take it from the cache.

    Strongly typed: the engine computes in the types of the model, so that an fp16 engine is built from an fp16 model
    (`numerics.convert.to_half`). The build runs in its own process group, which is killed at the time limit.
    Where no CUDA device answers, an RTX engine is built for compute capability 8.9. The cache holds the 32 most
    recently used engines, so that a training run which builds at every validation does not fill the disk.

    Args:
        model: The ONNX file's bytes.
        backend: Which library builds.
        profile: Smallest, usual and largest shape of every dynamic input; static inputs need none.
        directory: Folder of built engines. The default is `lightning_robust/engines` in `$XDG_CACHE_HOME`, else in the
            platform's cache folder (`~/.cache` on Linux).
        time_limit: Seconds until the build is killed.
        tf32: Let fp32 convolutions and products be computed in TF32 (10 bits of mantissa). The libraries' own default
            is on, ours is off.
        weakly_typed: "fp16" lets TensorRT 10 choose fp16 per layer; refused by TensorRT 11 and by RTX, which cannot.
        refit: Set the weights in an engine that was built with this setting for the same graph with other weights;
            where there is none, build one that can be refitted (it may be optimised less). Needs a CUDA device.
            Run on NVIDIA's own bindings over a stand-in of the library, not yet on a device.
        workspace: GiB that the builder may use for one layer; None leaves the library's own limit, the whole device.
        device: Which of the CUDA devices that this process sees, or of those behind a command.
        stand_in: Let TensorRT-RTX take the place of full TensorRT 11.4 (backend "tensorrt" only), to run this code path
            on a machine without a GPU. The `Engine` says so.
        command: What starts Python on another machine, such as `["ssh", "orin", "python3"]`, to build there; empty for
            here. Python 3.8, numpy, Polygraphy and the library must be there.

    Returns:
        The engine's path, and what the build reported.

    Raises:
        ValueError: If the model is not ONNX, or the profile does not fit its inputs.
        EngineError: For everything else that can go wrong; see `EngineError.kind`.
    """
    if stand_in and backend != "tensorrt":
        raise ValueError(f'Expected backend="tensorrt" with stand_in=True, but got {backend!r}')
    if weakly_typed not in (None, "fp16"):
        raise ValueError(f'Expected argument `weakly_typed` to be "fp16" or None, but got {weakly_typed!r}')
    if not 0 < time_limit < _FOREVER:
        raise ValueError(f"Expected argument `time_limit` to be a positive number of seconds, but got {time_limit}")
    shapes = complete_profile(model, profile)
    package: Backend = "tensorrt_rtx" if stand_in else backend
    check_ability(can_build(package, command, device))
    if weakly_typed and backend == "tensorrt_rtx":
        raise EngineError(
            "refused",
            "TensorRT-RTX builds strongly typed engines only, so weakly_typed='fp16' means nothing to it.",
            advice="Convert the model with lightning_robust.deployment.numerics.convert.to_half and build that.",
        )
    settings: dict[str, Any] = {
        "backend": backend,
        "library": f"{package} {abilities.library_version(package, command)}",
        "target": abilities.target_capability(package, command),
        "profile": shapes,
        "tf32": tf32,
        "weakly_typed": weakly_typed,
        "refit": refit,
        "workspace": workspace,
        "device": device,
        "stand_in": stand_in,
        "command": list(command),
    }
    return _Build(model, settings, EngineCache(directory), time_limit).engine()


def check_ability(able: Ability) -> None:
    """Raise EngineError where something cannot be done here."""
    if not able:
        raise EngineError("unavailable", able.reason, advice="")


def visible_device(index: int, command: Sequence[str] = ()) -> str:
    """How ``CUDA_VISIBLE_DEVICES`` names a device of this process, for a child that is to see that one alone.

    Args:
        index: As torch counts the devices.
        command: What starts the child on another machine, whose devices are not those of this process.

    Returns:
        '' for the first device, which a child takes anyway.

    Example:
        >>> visible_device(0)
        ''
    """
    visible = "" if command else os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",")]
    return "" if index == 0 else names[index] if index < len(names) else str(index)


class _Build:
    """One request for an engine: from the cache, by a build, or by a refit of an earlier build.

    Args:
        model: The ONNX file's bytes.
        settings: Everything else that the engine depends on.
        cache: The folder of engines.
        time_limit: Seconds until the child is killed.
    """

    def __init__(self, model: bytes, settings: Mapping[str, Any], cache: EngineCache, time_limit: float) -> None:
        self._model, self._settings = model, settings
        self._cache, self._time_limit = cache, time_limit

    def engine(self) -> Engine:
        """The engine of the request."""
        key = self._key(self._model)
        entry = self._cache.read(key)
        if entry is not None:
            return self._describe(key, entry, cached=True)
        with disk_errors(self._cache.folder):
            key, entry = self._refit(key) if self._settings["refit"] else (key, self._run("build", key))
        self._cache.prune()
        return self._describe(key, entry, cached=False)

    def _key(self, model: bytes) -> str:
        return engine_key(model, self._settings, self._device_name())

    def _visible_device(self) -> str:
        return visible_device(self._settings["device"], self._settings["command"])

    def _device_name(self) -> str:
        return abilities.device_name(self._settings["command"], self._settings["device"])

    def _refit(self, key: str) -> tuple[str, dict[str, Any]]:
        """The engine built for this graph, which has these weights or is copied with them; and its key."""
        weights = weight_digests(self._model)
        origin = self._key(structure(self._model))
        entry = self._cache.read(origin)
        if entry is None:
            return origin, self._run("build", origin, report={"weights": weights})
        before = entry.get("weights", {})
        changed = {name for name, digest in weights.items() if before.get(name) != digest}
        if not changed:
            return origin, entry
        spec = {"changed": sorted(changed - folded_weights(self._model))}
        report = {name: entry[name] for name in ("layers", "flags", "inspector") if name in entry}
        return key, self._run("refit", key, spec, {"origin": self._cache.path(origin)}, report | {"weights": weights})

    def _run(
        self,
        verb: str,
        key: str,
        spec: Mapping[str, Any] = MappingProxyType({}),
        reads: Mapping[str, Path] = MappingProxyType({}),
        report: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Let the child make the engine, check the result, and store it with the child's report and this one."""
        with self._cache.workspace() as folder:
            model, engine = folder / "model.onnx", folder / "engine"
            model.write_bytes(self._model)
            job = {**self._settings, **spec, "device": self._visible_device()}
            copies = {"timings": folder / "timings"} if verb == "build" and job["backend"] == "tensorrt" else {}
            timings = TimingFile(self._cache.folder, job["library"], self._device_name())
            for copy in copies.values():
                timings.take(copy)
            reads, writes = {"model": model, **reads, **copies}, {"engine": engine, **copies}
            files: dict[str, Any] = {"reads": reads, "writes": writes, "command": self._settings["command"]}
            result, log = run_child(_CHILD, verb, job, folder, self._time_limit, **files)
            result |= report
            size = engine.stat().st_size if engine.is_file() else 0
            if not is_report(result) or size != result["size"]:
                raise EngineError("garbage", f"The {verb} ended well but left {size} bytes and {result}.", log)
            for copy in copies.values():
                timings.keep(copy)
            return self._cache.store(key, engine, {**result, "log": log[-20_000:]})

    def _describe(self, key: str, entry: Mapping[str, Any], *, cached: bool) -> Engine:
        stand_in = self._settings["stand_in"]
        claim = f", standing in for TensorRT {child_script.STAND_IN_VERSION}" if stand_in else ""
        return Engine(
            path=self._cache.path(key),
            backend=self._settings["backend"],
            size=entry["size"],
            seconds=entry["seconds"],
            cached=cached,
            layers=entry["layers"],
            flags=entry["flags"],
            log=entry.get("log", ""),
            library=self._settings["library"] + claim,
            stand_in=stand_in,
            command=tuple(self._settings["command"]),
            device=self._settings["device"],
            inspector=entry.get("inspector", ""),
        )
