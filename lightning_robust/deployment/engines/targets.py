"""The targets by name: one engine at one precision each."""

from __future__ import annotations

from typing import Any, Literal

import torch

from lightning_robust.checks import check_known, check_texts
from lightning_robust.deployment.engines.base import Runtime
from lightning_robust.deployment.engines.deployed import DeployedRuntime, deployed_files
from lightning_robust.deployment.engines.emulated import EmulatedInt8, EmulatedRuntime
from lightning_robust.deployment.engines.graph_file import GraphFileRuntime
from lightning_robust.deployment.engines.names import TARGET_NAMES, target_names
from lightning_robust.deployment.engines.onnxruntime import OnnxRuntime, OnnxRuntimeInt8
from lightning_robust.deployment.engines.openvino import OpenVINORuntime
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.tensorrt import EngineFileRuntime, TensorRTRuntime
from lightning_robust.deployment.engines.torch import TorchRuntime
from lightning_robust.extensions import require_extension

_KINDS: dict[str, type[Runtime]] = {
    "torch": TorchRuntime,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVINORuntime,
    "emulated": EmulatedRuntime,
    "deployed": DeployedRuntime,
    "tensorrt": TensorRTRuntime,
    "tensorrt_rtx": TensorRTRuntime,
}
_INT8: dict[str, type[Runtime]] = {"onnxruntime-int8": OnnxRuntimeInt8, "emulated-int8": EmulatedInt8}
TARGETS: dict[str, type[Runtime]] = {name: _INT8.get(name, _KINDS[name.rsplit("-", 1)[0]]) for name in TARGET_NAMES}
BY_NAME = {
    "torch-fp32",
    "emulated-fp16acc",
    "tensorrt-tf32",
    *(target for target in TARGETS if target.endswith("-int8")),
}
"""Targets that ``"auto"`` leaves out on every machine."""


def runtime(target: str) -> Runtime:
    """The runtime of a target's name.

    Args:
        target: ``"<runtime>-<precision>"``, one of :data:`TARGETS` or of an installed package's.

    Raises:
        ValueError: For an unknown name; the message names the nearest.
        ImportError: For a package's that cannot be imported.

    Example:
        >>> runtime("emulated-fp16").precision
        'fp16'
    """
    check_known("a target", [target], sorted({*target_names(), *TARGETS}))
    name, _, precision = target.rpartition("-")
    kind = TARGETS.get(target) or require_extension("runtimes", target, _is_runtime, "a subclass of Runtime")
    made: Runtime = kind(name, precision)
    return made


def _is_runtime(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Runtime)


def available(targets: Literal["auto"] | list[str], settings: BuildSettings = DEFAULTS) -> list[Runtime]:
    """The runtimes of these names, or with ``"auto"`` all that can be built where the settings say, and deployed files.

    ``"auto"`` leaves out torch in half precision on a CPU, which the emulation covers at a lower cost, and
    ``emulated-fp16acc``, which takes ten times as long as ``emulated-fp16`` and more. It leaves out ``tensorrt-tf32``,
    one more build for what ``emulated-tf32`` tells, int8, which has to be calibrated, and runtimes of other packages.

    Args:
        targets: ``"auto"`` or names. A file that is deployed is measured whether it is named or not.
        settings: Which files are deployed.

    Raises:
        ValueError: For an unknown name, or a file for a target that takes none.

    Example:
        >>> [r.name for r in available(["torch-fp32", "emulated-fp16"])]
        ['torch-fp32', 'emulated-fp16']
        >>> [r.name for r in available([], BuildSettings(deployed="model_int8.onnx"))]
        ['deployed-int8']
    """
    check_texts(targets=targets)
    files = deployed_files(settings.deployed)
    given = [_of_file(target, file) for target, file in files.items()]
    if targets != "auto":
        return [*(runtime(target) for target in targets if target not in files), *given]
    skip = {*BY_NAME, *files}
    if not torch.cuda.is_available():
        skip |= {"torch-fp16", "torch-bf16"}
    return [*(made for made in map(runtime, TARGETS) if made.name not in skip and made.can_build(settings)), *given]


def _of_file(target: str, file: str) -> Runtime:
    """The runtime of a file that is deployed."""
    made = runtime(target)
    if isinstance(made, DeployedRuntime):
        return DeployedRuntime(made.runtime, made.precision, file)
    if isinstance(made, TensorRTRuntime):
        kind = GraphFileRuntime if file.endswith(".onnx") else EngineFileRuntime
        return kind(made.runtime, made.precision, file)
    names = [name for name, kind in TARGETS.items() if kind in (DeployedRuntime, TensorRTRuntime)]
    raise ValueError(f"Expected a target that takes a file, one of {names}, but got {target!r} for {file}.")
