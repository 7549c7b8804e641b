"""The names of the targets, known before anything that runs them is imported."""

from __future__ import annotations

from typing import Literal

from lightning_robust.checks import check_known
from lightning_robust.extensions import extension_names

TARGET_NAMES = (
    *("torch-fp32", "torch-fp16", "torch-bf16"),
    *("onnxruntime-fp32", "openvino-fp32", "openvino-bf16", "openvino-int8", "onnxruntime-int8"),
    *("emulated-tf32", "emulated-fp16", "emulated-fp16acc", "emulated-bf16"),
    *("deployed-fp32", "deployed-fp16", "deployed-bf16", "deployed-int8", "emulated-int8"),
    *("tensorrt-fp32", "tensorrt-tf32", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8"),
    *("tensorrt_rtx-fp32", "tensorrt_rtx-fp16", "tensorrt_rtx-int8"),
)
"""``"<runtime>-<precision>"``, in the order of reports."""


def target_names() -> tuple[str, ...]:
    """The targets of this package, and those of installed packages (entry points ``lightning_robust.runtimes``).

    Example:
        >>> target_names()[:2]
        ('torch-fp32', 'torch-fp16')
    """
    return (*TARGET_NAMES, *(name for name in extension_names("runtimes") if name not in TARGET_NAMES))


def check_target_names(targets: Literal["auto"] | list[str]) -> None:
    """Refuse a name that is no target's.

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> check_target_names(["emulated-fp16"])
    """
    if targets != "auto":
        check_known("a target", targets, sorted(target_names()))
