"""int8 and bf16 as they are executed, beside their emulation, on twelve networks.

Each engine takes the same int8 graph, calibrated on 32 pictures and measured on 32 others, as a relative L2 distance to
ONNX Runtime in fp32. Engines that are not installed are "unavailable".

    python benchmarks/int8.py                  # all; some minutes
    python benchmarks/int8.py --models lanes   # one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fp16_models import MODELS, settled
from torch import Tensor, nn
from torch.nn.functional import interpolate
from vision import SmallViT, large_resnet18

from lightning_robust.deployment.engines import BuildSettings, Subject, runtime
from lightning_robust.deployment.engines.execution import Execution, execute
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.tables import markdown

CALIBRATION, SAMPLES = 32, 32
INT8 = ("emulated-int8", "onnxruntime-int8", "openvino-int8")
BF16 = ("emulated-bf16", "openvino-bf16")
LARGE: Mapping[str, Callable[[], nn.Module]] = {"ResNet-18, 224 pixels": large_resnet18, "ViT-Ti/16": SmallViT}
"""Beside those of fp16_models.py, which take 64 pixels; random weights, with settled BatchNorm statistics."""


def large(name: str, samples: int) -> tuple[nn.Module, Tensor]:
    """A network of :data:`LARGE` and so many smooth pictures."""
    torch.manual_seed(0)
    module = LARGE[name]()
    pictures = interpolate(torch.rand(samples, 3, 8, 8), size=224, mode="bicubic").clamp(0, 1)
    pictures = (pictures + 0.05 * torch.randn_like(pictures)).clamp(0, 1)
    with torch.no_grad():
        for _ in range(20):
            module(pictures[:8])
    return module, pictures


def distance(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """The largest relative L2 of an output."""
    pairs = zip(outputs, reference, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)) for a, b in pairs)


def measure(name: str, method: str) -> dict[str, Any]:
    """The engines of one network: distances to fp32, and between engines; what they say that they ran."""
    module, pictures = (large if name in LARGE else settled)(name, CALIBRATION + SAMPLES)
    subject = Subject(
        frozen_copy(module),
        (pictures[CALIBRATION:],),
        BuildSettings(calibration=method, calibration_samples=CALIBRATION),  # type: ignore[arg-type]
        (pictures[:CALIBRATION],),
    )
    ran = {target: tried(target, subject) for target in ("onnxruntime-fp32", *INT8, *BF16)}
    exact = ran.pop("onnxruntime-fp32").outputs
    row: dict[str, Any] = {"products": f"{len(subject.quantised.nodes)} of {subject.quantised.of}"}
    for target, result in ran.items():
        row[target] = distance(result.outputs, exact) if result.outputs else result.status
        emulated = ran[INT8[0] if target in INT8 else BF16[0]].outputs
        row[f"{target} to emulated"] = distance(result.outputs, emulated) if result.outputs and emulated else "-"
        row[f"{target} layers"] = ", ".join(f"{count} {kind}" for kind, count in result.layers.items()) or "-"
    return row


def tried(target: str, subject: Subject) -> Execution:
    """One engine; that which has no name here, or no package, is unavailable."""
    try:
        made = runtime(target)
    except ValueError as error:
        return Execution("unavailable", note=str(error))
    result = execute(made, subject)
    if not result.outputs:
        print(f"{target}: {result.status}: {result.note}", flush=True)
    return result


def number(value: Any) -> str:
    """Two digits of a number; a word as it is."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*MODELS, *LARGE, "lanes"])
    parser.add_argument("--calibration", default="minmax", choices=["minmax", "percentile", "entropy"])
    given = parser.parse_args()
    rows = {}
    for name in given.models:
        rows[name] = measure(name, given.calibration)
        print(name, rows[name], flush=True)
    columns = ["products", *INT8, *(f"{target} to emulated" for target in INT8[1:]), *BF16]
    columns += [f"{target} layers" for target in (*INT8[1:], BF16[1])]
    lines = [[name, *(number(row[column]) for column in columns)] for name, row in rows.items()]
    print(markdown(["network", *columns], lines))


if __name__ == "__main__":
    main()
