"""What this machine can build and run: packages, their versions, the CUDA device."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_robust.deployment.engines.child import engine as child_script
from lightning_robust.deployment.engines.child.process import EngineError, run_child

Backend = Literal["tensorrt", "tensorrt_rtx"]
CHILD_SCRIPT = Path(child_script.__file__)
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


def can_build(backend: Backend) -> Ability:
    """Whether engines can be built here: RTX builds without a GPU, full TensorRT times its kernels on one."""
    missing = missing_package(backend)
    if missing or backend == "tensorrt_rtx" or device_name():
        return Ability(not missing, missing)
    return Ability(
        False,
        "TensorRT needs a CUDA device to build and none answers here. Build on the machine that will run the engine, "
        'or take backend="tensorrt_rtx", which builds without one.',
    )


def can_run(backend: Backend) -> Ability:
    """Whether engines can be run here, which needs the package and a CUDA device."""
    missing = missing_package(backend)
    if missing or device_name():
        return Ability(not missing, missing)
    return Ability(
        False,
        f"running a {backend} engine needs a CUDA device and none answers here (libcuda.so.1: cuInit, "
        "cuDeviceGetCount). An engine built here is built, not measured; use emulated-fp16 for numbers.",
    )


def missing_package(backend: Backend) -> str:
    """'' where the package can be found, else the sentence that says how to install it."""
    if backend not in _EXTRAS:
        raise ValueError(f"Expected argument `backend` to be one of {sorted(_EXTRAS)}, but got {backend!r}")
    if importlib.util.find_spec(backend) is not None:
        return ""
    return f'the package {backend} is not installed. Run: pip install "lightning-robust[{_EXTRAS[backend]}]"'


@functools.cache
def device_name() -> str:
    """The first CUDA device as the driver names it, '' for none; asked of a child, once per process."""
    try:
        with tempfile.TemporaryDirectory(prefix="lightning_robust-") as folder:
            result, _ = run_child(CHILD_SCRIPT, "device", {}, Path(folder), 30.0)
    except (EngineError, OSError):
        return ""
    return str(result.get("name", ""))


def target_capability(package: Backend) -> str:
    """The compute capability to build an RTX engine for, by its name in the library; '' leaves it to the library."""
    if package == "tensorrt":
        return ""
    return "CURRENT" if device_name() else "SM89"


def library_version(package: Backend) -> str:
    """The installed version; the package's modification time where no distribution names a version."""
    for distribution in _DISTRIBUTIONS[package]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    spec = importlib.util.find_spec(package)
    origin = spec.origin if spec is not None else None
    return f"of {Path(origin).stat().st_mtime_ns}" if origin else "unknown"
