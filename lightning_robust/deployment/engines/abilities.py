"""What a machine can build and run, this one or the one behind a command: packages, their versions, CUDA devices."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_robust.deployment.engines.child import about as about_script
from lightning_robust.deployment.engines.child import engine as child_script
from lightning_robust.deployment.engines.child.about import installed_version
from lightning_robust.deployment.engines.child.process import EngineError, run_child
from lightning_robust.deployment.engines.child.supervisor import scratch

Backend = Literal["tensorrt", "tensorrt_rtx"]
CHILD_SCRIPT = Path(child_script.__file__)
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_TIME_LIMIT = 60.0
_RETRY = 60.0  # seconds before a machine that did not answer is asked again; or twenty times what the question took
_answers: dict[tuple[str, ...], tuple[float, Machine | EngineError | None]] = {}


class Ability(NamedTuple):
    """Whether something can be done on a machine; `reason` says why not and what to do, '' where it can.

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
class Machine:
    """What a machine says of itself.

    Args:
        python: Version of the interpreter.
        packages: Package -> version, '' for one that is not installed.
        devices: Name and compute capability of each CUDA device.
        cuda: The version of CUDA that the driver knows, '' without a driver.
        trouble: Why there is no device.
        required_cuda: Package -> major version of CUDA that it was built for, 0 if unknown.
        capabilities: Package -> compute capabilities that it knows; nothing of a package that does not tell.
    """

    python: str
    packages: dict[str, str]
    devices: list[dict[str, str]]
    cuda: str
    trouble: str
    required_cuda: dict[str, int]
    capabilities: dict[str, list[str]]


def ask_machine(command: Sequence[str] = ()) -> Machine:
    """What this machine, or the one behind a command, says of itself; asked once per process.

    Args:
        command: What starts Python there, such as `["ssh", "orin", "python3"]`; empty for here.

    Raises:
        EngineError: If it does not answer. It is asked again, a minute later or more.
    """
    key, start = tuple(command), time.monotonic()
    again, answer = _answers.get(key, (0.0, None))
    if answer is None or (isinstance(answer, EngineError) and start > again):
        try:
            answer = _start_about(key)
        except EngineError as error:
            answer = error
        except OSError as error:
            answer = EngineError("disk", f"the folder for temporary files cannot be written: {error}")
        now = time.monotonic()
        _answers[key] = now + max(_RETRY, 20 * (now - start)), answer
    if isinstance(answer, EngineError):
        raise answer
    return answer


def can_build(backend: Backend, command: Sequence[str] = (), device: int = 0) -> Ability:
    """Whether engines can be built: RTX builds without a GPU, full TensorRT times its kernels on one.

    Args:
        backend: The library.
        command: What starts Python on another machine; empty for here.
        device: Which of the CUDA devices there.
    """
    missing = missing_package(backend, command)
    if missing or device_name(command, device):
        return _ability(missing or _misfit(backend, command, device))
    if backend == "tensorrt_rtx":
        return Ability(True)
    return Ability(
        False,
        f"TensorRT needs a CUDA device to build and none answers {_behind(command)}: {_trouble(command)}. Build on the "
        'machine that will run the engine, or take backend="tensorrt_rtx", which builds without one.',
    )


def can_run(backend: Backend, command: Sequence[str] = (), device: int = 0) -> Ability:
    """Whether engines can be run, which needs the package and a CUDA device; arguments as of :func:`can_build`."""
    missing = missing_package(backend, command)
    if missing or device_name(command, device):
        return _ability(missing or _misfit(backend, command, device))
    return Ability(
        False,
        f"running a {backend} engine needs a CUDA device and none answers {_behind(command)}: {_trouble(command)}. "
        "An engine that is built without one is built, not measured; use emulated-fp16 for numbers.",
    )


def missing_package(backend: Backend, command: Sequence[str] = ()) -> str:
    """'' where the package can be found, else the sentence that says how to install it; arguments as above."""
    if backend not in _EXTRAS:
        raise ValueError(f"Expected argument `backend` to be one of {sorted(_EXTRAS)}, but got {backend!r}")
    if not command:
        found = installed_version(backend)
        how = f'pip install "lightning-robust[{_EXTRAS[backend]}]"'
        return "" if found else f"the package {backend} is not installed. Run: {how}"
    try:
        machine = ask_machine(command)
    except EngineError as error:
        return str(error).splitlines()[0]
    missing = [name for name in ("numpy", "polygraphy", backend) if not machine.packages.get(name)]
    if not missing:
        return ""
    return f"Python {machine.python} {_behind(command)} has no package {' and no '.join(missing)}. Install it there."


def device_name(command: Sequence[str] = (), index: int = 0) -> str:
    """A CUDA device as the driver names it, the first by default; '' for none."""
    with contextlib.suppress(EngineError, IndexError):
        return ask_machine(command).devices[index]["name"]
    return ""


def target_capability(package: Backend, command: Sequence[str] = ()) -> str:
    """The compute capability to build an RTX engine for, by its name in the library; '' leaves it to the library."""
    if package == "tensorrt":
        return ""
    return "CURRENT" if device_name(command) else "SM89"


def library_version(package: Backend, command: Sequence[str] = ()) -> str:
    """The installed version; the package's modification time where no distribution names a version."""
    return (ask_machine(command).packages[package] if command else installed_version(package)) or "unknown"


def _start_about(command: tuple[str, ...]) -> Machine:
    with scratch() as folder:
        result, log = run_child(Path(about_script.__file__), "inquiry", {}, folder, _TIME_LIMIT, command=command)
    try:
        return Machine(**{field.name: result[field.name] for field in fields(Machine)})
    except KeyError as error:
        raise EngineError("garbage", f"The machine did not say its {error}.", log) from error


def _misfit(backend: Backend, command: Sequence[str], device: int) -> str:
    """Why this version of the library, or the device, will not do; '' where nothing is against them."""
    try:
        machine = ask_machine(command)
    except EngineError:
        return ""
    library = f"{_NAMES[backend]} {library_version(backend, command)}"
    if backend == "tensorrt" and re.match(r"[1-9]\.", library_version(backend, command)):
        return f"{library} {_behind(command)} has no strongly typed builds. Install version 10 or newer."
    needed, known = machine.required_cuda.get(backend, 0), machine.cuda
    if known and needed > float(known):
        return (
            f"{library} was built for CUDA {needed}, and the driver {_behind(command)} knows CUDA {known}. "
            f"Update the driver, or install a {backend} for its CUDA."
        )
    name, capability = ({i: (d["name"], d["capability"]) for i, d in enumerate(machine.devices)}).get(device, ("", ""))
    capabilities = machine.capabilities.get(backend, ())
    if not capability or not capabilities or capability in capabilities:
        return ""
    return (
        f"compute capability {capability} ({name}) is not among {', '.join(capabilities)} "
        f"of {library}. Take backend tensorrt, or leave this target out."
    )


def _trouble(command: Sequence[str]) -> str:
    """Why there is no device."""
    try:
        return ask_machine(command).trouble or "no reason is known"
    except EngineError as error:
        return str(error).splitlines()[0].rstrip(".")


def _ability(reason: str) -> Ability:
    return Ability(not reason, reason)


def _behind(command: Sequence[str]) -> str:
    return f"behind `{' '.join(command)}`" if command else "here"
