"""Tolerances of a parity pass: what holds where nothing is said, what is beyond, and what holds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning_robust.gate.check import size

DEFAULT_TOLERANCES: dict[str, float] = {
    "torch-fp32": 1e-5,
    "torch-fp16": 5e-3,
    "torch-bf16": 4e-2,
    "onnxruntime-fp32": 1e-5,
    "openvino-fp32": 1e-5,
    "openvino-bf16": 4e-2,
    "openvino-int8": 5e-2,
    "onnxruntime-int8": 5e-2,
    "emulated-tf32": 3e-3,
    "emulated-fp16": 5e-3,
    "emulated-fp16acc": 5e-2,
    "emulated-bf16": 4e-2,
    "deployed-fp32": 1e-4,
    "deployed-fp16": 5e-3,
    "deployed-bf16": 4e-2,
    "deployed-int8": 5e-2,
    "emulated-int8": 5e-2,
    "tensorrt-fp32": 1e-4,
    "tensorrt-tf32": 3e-3,
    "tensorrt-fp16": 5e-3,
    "tensorrt-bf16": 4e-2,
    "tensorrt-int8": 5e-2,
    "tensorrt_rtx-fp32": 1e-4,
    "tensorrt_rtx-fp16": 5e-3,
    "tensorrt_rtx-int8": 5e-2,
}
"""Largest ``rel_l2`` of a sound model: about three times what small untrained networks show. Those of TensorRT are set
by the arithmetic, not by measurement. Set your own in the task's units."""


class Violation(NamedTuple):
    """A number beyond its tolerance."""

    tag: str
    value: float
    limit: float

    def __str__(self) -> str:
        """One clause for a message."""
        return f"{self.tag} is {self.value:.3g}, allowed is {self.limit:.3g}"


def check_tolerances(tolerance: Mapping[str, float] | None) -> None:
    """Refuse limits that no distance can be held against.

    Raises:
        ValueError: For one that is no number from 0; the message names it.

    Example:
        >>> check_tolerances({"emulated-fp16": 0.01, "emulated-fp16/max_abs": 0})
    """
    for name, limit in (tolerance or {}).items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
            raise ValueError(f"Expected the tolerance of {name!r} to be a number from 0, but got {limit!r}.")


def without_metric(scalars: Mapping[str, float], tolerance: Mapping[str, float] | None) -> list[str]:
    """The tags of tolerances that hold nothing: their target was measured and has no such metric.

    Example:
        >>> found = {"parity/torch-bf16/status": 0, "parity/torch-bf16/rel_l2": 0.1}
        >>> without_metric(found, {"torch-bf16": 1, "torch-bf16/lateral_p99": 1})
        ['parity/torch-bf16/lateral_p99']
    """
    measured = {tag.removesuffix("/status") for tag, code in scalars.items() if tag.endswith("/status") and code == 0}
    return [tag for tag in limits_by_tag(tolerance or {}) if tag not in scalars and tag.rpartition("/")[0] in measured]


def violations(scalars: Mapping[str, float], tolerance: Mapping[str, float] | None = None) -> list[Violation]:
    """The numbers beyond their tolerance, NaN included; those with a sign by :func:`~.check.size`.

    Args:
        scalars: Values by tag, from :meth:`~.result.ParityReport.scalars`.
        tolerance: As for :func:`~.verdict.judge_parity`.

    Example:
        >>> [str(violation) for violation in violations({"parity/emulated-fp16/rel_l2": 0.1})]
        ['parity/emulated-fp16/rel_l2 is 0.1, allowed is 0.005']
    """
    tags = limits_by_tag(DEFAULT_TOLERANCES if tolerance is None else tolerance)
    return [
        Violation(tag, scalars[tag], limit)
        for tag, limit in tags.items()
        if tag in scalars and not size(tag, scalars[tag]) <= limit
    ]


def limits_by_tag(tolerance: Mapping[str, float]) -> dict[str, float]:
    """Tag -> limit, of tolerances by target or by target and metric.

    Example:
        >>> limits_by_tag({"emulated-fp16": 5e-3, "tensorrt-fp16/x_px_max": 0.5})
        {'parity/emulated-fp16/rel_l2': 0.005, 'parity/tensorrt-fp16/x_px_max': 0.5}
    """
    return {f"parity/{key}" if "/" in key else f"parity/{key}/rel_l2": limit for key, limit in tolerance.items()}
