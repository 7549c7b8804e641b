"""The split of a parity distance into its causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_robust.deployment.parity.result import TargetResult

History = Sequence[tuple[int, dict[str, float]]]
"""``(epoch, attribution)`` of each pass of a run."""
CAUSES = ("export", "tf32", "fp16", "engine", "preprocessing")
FP16_ENGINES = ("tensorrt-fp16", "tensorrt_rtx-fp16")
_FP16 = (*FP16_ENGINES, "torch-fp16", "emulated-fp16")


def attribute(
    targets: Mapping[str, TargetResult], sensitivity: Mapping[str, Mapping[str, float]], unit: str
) -> dict[str, float]:
    """Cause -> distance in ``unit``, for the causes that were measured.

    ``export``, ``tf32`` and ``fp16`` are the distances of ONNX Runtime in fp32 and of the emulated precisions;
    ``engine`` is what an executed fp16 engine has beyond the emulation, ``preprocessing`` the median perturbation.
    """

    def distance(name: str) -> float | None:
        return targets[name].metrics.get(unit) if name in targets else None

    causes = {
        "export": distance("onnxruntime-fp32"),
        "tf32": distance("emulated-tf32"),
        "fp16": distance("emulated-fp16"),
    }
    engine = next((d for d in map(distance, FP16_ENGINES) if d is not None), None)
    if engine is not None and causes["fp16"] is not None:
        causes["engine"] = max(0.0, engine - causes["fp16"])
    if sensitivity:
        causes["preprocessing"] = sorted(metrics[unit] for metrics in sensitivity.values())[len(sensitivity) // 2]
    return {cause: value for cause, value in causes.items() if value is not None}


def fp16_metrics(targets: Mapping[str, TargetResult]) -> dict[str, float]:
    """Metrics of fp16 as it deploys: of an executed engine before PyTorch's or the emulation; empty without any."""
    return next((targets[name].metrics for name in _FP16 if name in targets and targets[name].metrics), {})
