"""The targets by name: one engine at one precision each."""

from __future__ import annotations

from typing import Literal

import torch

from lightning_robust.deployment.engines.base import Runtime
from lightning_robust.deployment.engines.emulated import EmulatedRuntime
from lightning_robust.deployment.engines.onnxruntime import OnnxRuntime
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.tensorrt import TensorRTRuntime
from lightning_robust.deployment.engines.torch import TorchRuntime
from lightning_robust.suggest import did_you_mean

TARGETS: dict[str, type[Runtime]] = {
    "torch-fp32": TorchRuntime,
    "torch-fp16": TorchRuntime,
    "torch-bf16": TorchRuntime,
    "onnxruntime-fp32": OnnxRuntime,
    "emulated-tf32": EmulatedRuntime,
    "emulated-fp16": EmulatedRuntime,
    "emulated-fp16acc": EmulatedRuntime,
    "emulated-bf16": EmulatedRuntime,
    "tensorrt-fp32": TensorRTRuntime,
    "tensorrt-fp16": TensorRTRuntime,
    "tensorrt-bf16": TensorRTRuntime,
    "tensorrt_rtx-fp32": TensorRTRuntime,
    "tensorrt_rtx-fp16": TensorRTRuntime,
}


def runtime(target: str) -> Runtime:
    """The runtime of a target's name.

    Args:
        target: ``"<runtime>-<precision>"``, one of :data:`TARGETS`.

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> runtime("emulated-fp16").precision
        'fp16'
    """
    if target not in TARGETS:
        hint = did_you_mean(target, TARGETS)
        raise ValueError(f"Expected a target out of {sorted(TARGETS)}, but got {target!r}.{hint}")
    name, precision = target.rsplit("-", 1)
    return TARGETS[target](name, precision)


def available(targets: Literal["auto"] | list[str], settings: BuildSettings = DEFAULTS) -> list[Runtime]:
    """The runtimes of these names, or with ``"auto"`` all that can be built where the settings say.

    ``"auto"`` leaves out torch in half precision on a CPU, which the emulation covers at a lower cost, and
    ``emulated-fp16acc``, which takes ten times as long as ``emulated-fp16`` and more.

    Example:
        >>> [r.name for r in available(["torch-fp32", "emulated-fp16"])]
        ['torch-fp32', 'emulated-fp16']
    """
    if targets != "auto":
        return [runtime(target) for target in targets]
    skip = {"torch-fp32", "emulated-fp16acc"}
    if not torch.cuda.is_available():
        skip |= {"torch-fp16", "torch-bf16"}
    return [made for made in map(runtime, TARGETS) if made.name not in skip and made.can_build(settings)]
