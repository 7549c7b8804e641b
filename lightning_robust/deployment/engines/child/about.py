"""The script that says what a machine has: packages for engines, CUDA devices, their driver and what is wrong with it.

    python -P about.py inquiry spec.json

A script, because a process that called cuInit cannot fork workers that use CUDA, and because it also runs on another
machine. It needs the standard library of Python 3.8 alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "polygraphy", "tensorrt", "tensorrt_rtx")
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}


def installed_version(package: str) -> str:
    """The version of an installed package, or when it was changed where no distribution names one; '' without it.

    Example:
        >>> installed_version("numpy") > "1", installed_version("no_such_package")
        (True, '')
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ""
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return f"of {Path(spec.origin).stat().st_mtime_ns}" if spec.origin else "unknown"


def required_cuda(package: str) -> int:
    """The major version of CUDA that an installed package was built for, by its distribution's name; 0 if unknown."""
    for distribution in _DISTRIBUTIONS.get(package, ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(distribution)
            named = re.search(r"-cu(\d+)$", distribution)
            return int(named[1]) if named else 0
    return 0


def supported_capabilities(package: str) -> list[str]:
    """The compute capabilities that a library names, such as "8.9"; none where it has no list of them."""
    names = getattr(importlib.import_module(package), "ComputeCapability", None)
    found = re.findall(r"\bSM(\d+)(\d)\b", " ".join(getattr(names, "__members__", ())))
    return [f"{major}.{minor}" for major, minor in found]


def ask_driver() -> dict[str, Any]:
    """The devices with their names and compute capabilities, the driver's CUDA, and why there is no device if so."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return {"devices": [], "cuda": "", "trouble": "there is no CUDA driver (libcuda.so.1)"}
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    for function, arguments in (("cuInit", (0,)), ("cuDeviceGetCount", (ctypes.byref(count),))):
        code = getattr(driver, function)(*arguments)
        if code:
            return {"devices": [], "cuda": cuda, "trouble": f"{function} gives {_name_error(driver, code)}"}
    devices = [_describe_device(driver, index) for index in range(count.value)]
    return {"devices": devices, "cuda": cuda, "trouble": "" if devices else "the CUDA driver finds no device"}


def _name_error(driver: Any, code: int) -> str:
    """An error of the driver, such as "CUDA_ERROR_NO_DEVICE (100)"."""
    name = ctypes.c_char_p()
    if driver.cuGetErrorName(code, ctypes.byref(name)) or name.value is None:
        return f"error {code}"
    return f"{name.value.decode()} ({code})"


def _describe_device(driver: Any, index: int) -> dict[str, str]:
    """A device's name and its compute capability, such as "8.9"."""
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    parts = [ctypes.c_int(0), ctypes.c_int(0)]
    if driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceGetName(name, 256, device):
        return {"name": "unnamed CUDA device", "capability": ""}
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    failed = [driver.cuDeviceGetAttribute(ctypes.byref(part), 75 + i, device) for i, part in enumerate(parts)]
    capability = "" if any(failed) else ".".join(str(part.value) for part in parts)
    return {"name": name.value.decode(errors="replace"), "capability": capability}


def about() -> dict[str, Any]:
    """All of it."""
    versions = {package: installed_version(package) for package in PACKAGES}
    answer = {"status": "done", "python": platform.python_version(), "packages": versions, **ask_driver()}
    answer["required_cuda"] = {package: required_cuda(package) for package in _DISTRIBUTIONS}
    answer["capabilities"] = {}
    if versions["tensorrt_rtx"] and answer["devices"]:  # an import takes its time
        try:
            answer["capabilities"]["tensorrt_rtx"] = supported_capabilities("tensorrt_rtx")
        except Exception as error:  # the library is broken, and will say so when it is used
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
    return answer


if __name__ == "__main__":
    result = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))["result"]
    Path(result).write_text(json.dumps(about()), encoding="utf-8")
