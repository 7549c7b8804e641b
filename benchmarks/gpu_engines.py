"""Low precision that a device really executes beside what the emulator predicted, as parts of ``gpu_day.py``.

Distances are relative L2 to PyTorch in fp64, on the outputs less their mean; the worst output counts. Predictions are
made by ``gpu_day.py --predict`` on a CPU and kept in ``gpu_predictions.json``. Weights and pictures come from the CPU's
generator, so that another machine has the same; their sums stand beside the predictions, and a model that differs is
refused. Nothing is kept in fp32, on either side. A head that decides (the lanes' argmax) can turn a difference in the
last place into a jump on one side: look at the outputs before blaming anyone, whether the ratio is large or small.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fp16_models
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from vision import SmallViT, resnet18, small_cnn

from lightning_robust.demo.lanes import LaneDetector
from lightning_robust.deployment.engines import TARGETS, Subject, run_module, runtime
from lightning_robust.deployment.engines.base import feed
from lightning_robust.deployment.engines.execution import Execution, execute
from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.deployment.graph.export import frozen_copy, to_args
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.parity.distance import compare_outputs

PREDICTIONS = Path(__file__).with_name("gpu_predictions.json")
SAMPLES, SEED, SECONDS = 16, 0, 120.0
PRECISIONS = ("fp16", "bf16", "tf32", "fp16acc")
FP32_LIMIT = 1e-4  # for fp32 there is nothing to emulate: this library's tolerance
NEAR = (0.5, 2.0)
Numbers = dict[str, Any]
Case = tuple[nn.Module, Tensor]


# The models


class Separable(nn.Module):
    """Depthwise convolutions, hard swishes and gates over channels, as MobileNetV3 has them."""

    def __init__(self, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        self.spatial, self.gates, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(depth):
            depthwise = nn.Conv2d(width, width, 5, 1, 2, groups=width, bias=False)
            self.spatial.append(nn.Sequential(depthwise, nn.BatchNorm2d(width), nn.Hardswish()))
            squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 4, 1), nn.ReLU()]
            self.gates.append(nn.Sequential(*squeeze, nn.Conv2d(width // 4, width, 1), nn.Hardsigmoid()))
            self.mixes.append(nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Ten classes of pictures of 64 x 64."""
        x = self.first(x)
        for spatial, gate, mix in zip(self.spatial, self.gates, self.mixes, strict=True):
            y = spatial(x)
            x = x + mix(y * gate(y))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def long_sums() -> nn.Module:
    """Fully connected: sums over 12,288 and 1024 products, which an accumulator in fp16 would feel."""
    layers = [nn.Linear(3 * 64 * 64, 1024), nn.GELU(), nn.LayerNorm(1024), nn.Linear(1024, 1024), nn.GELU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(1024, 10))


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "depthwise, hard swish, gates": (Separable, (3, 64, 64)),
    "fully connected, sums of 12,288": (long_sums, (3, 64, 64)),
    "small CNN": (small_cnn, (1, 28, 28)),
    "lane detector, random weights": (LaneDetector, (3, 144, 256)),
    "ResNet-18, 224 pixels": (functools.partial(resnet18, large=True), (3, 224, 224)),
    "ViT-Ti/16, 224 pixels": (SmallViT, (3, 224, 224)),
}
NAMES = (*(name for name in fp16_models.MODELS if name != "masks of -1e9"), *OTHERS)
"""That network types its mask as fp32, which PyTorch does not multiply with fp16."""


def case(name: str) -> Case:
    """A network with random weights and measured BatchNorm statistics, and its pictures; seed 0."""
    if name in fp16_models.MODELS:
        model, pictures = fp16_models.settled(name, SAMPLES)
        return model.eval(), pictures
    build, shape = OTHERS[name]
    torch.manual_seed(SEED)
    model = build()
    coarse = torch.randn(SAMPLES, shape[0], *(max(size // 8, 1) for size in shape[1:]))
    pictures = interpolate(coarse, size=shape[1:], mode="bicubic")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain mean over what it sees
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
    with torch.no_grad():
        model.train()(pictures)
    return model.eval(), pictures


class Scene(NamedTuple):
    """A model on a device with its reference."""

    subject: Subject
    reference: list[Tensor]
    sums: dict[str, float]


@functools.lru_cache(maxsize=1)
def scene(name: str, device: str) -> Scene:
    """The model as engines take it, and its outputs in fp64; of the last model asked for, once."""
    model, pictures = case(name)
    settings = BuildSettings(keep_fp32=[], device=device, time_limit=SECONDS)
    subject = Subject(frozen_copy(model), (pictures,), settings)
    reference = run_module(copy.deepcopy(subject.module).double().to(device), (pictures.double().to(device),))
    tensors = {"weights": list(subject.module.state_dict().values()), "pictures": [pictures], "outputs": reference}
    sums = {part: sum(float(t.double().abs().sum()) for t in found) for part, found in tensors.items()}
    return Scene(subject, reference, sums)


# The predictions


def predict(name: str) -> Numbers:
    """The emulator's distances of one model, by precision, and the sums that tell the model from another."""
    found = scene(name, "cpu")
    numbers: Numbers = {"sums": found.sums}
    for precision in PRECISIONS:
        execution = execute(runtime(f"emulated-{precision}"), found.subject)
        if execution.status != "measured":
            raise RuntimeError(f"emulated-{precision} of {name}: {execution.note}")
        numbers[precision] = distance(found, execution.outputs)
    return numbers


def distance(found: Scene, outputs: list[Tensor]) -> float:
    """Relative L2 to fp64."""
    return compare_outputs(found.reference, outputs)["rel_l2"]


@functools.cache
def predictions() -> dict[str, Numbers]:
    """What is kept, by model."""
    content: dict[str, Numbers] = json.loads(PREDICTIONS.read_text())["models"]
    return content


def require_same(name: str, sums: dict[str, float]) -> None:
    """Refuse a model that is not the one of the prediction.

    Raises:
        ValueError: If weights, pictures or outputs add up to something else.
    """
    for part, value in predictions()[name]["sums"].items():
        if not math.isclose(value, sums[part], rel_tol=1e-3):
            raise ValueError(
                f"Expected the {part} of the prediction, which add up to {value:.9g}, got {sums[part]:.9g}."
            )


# What is executed


@contextmanager
def torch_flags(*, tf32: bool = False, fp16_accumulators: bool = False) -> Iterator[None]:
    """TF32 in products and convolutions, and fp16 accumulators in products, of PyTorch on CUDA."""
    settings = [
        (torch.backends.cuda.matmul, "allow_tf32", tf32),
        (torch.backends.cudnn, "allow_tf32", tf32),
        (torch.backends.cuda.matmul, "allow_fp16_accumulation", fp16_accumulators),
    ]
    before = [getattr(place, name) for place, name, _ in settings]
    for place, name, value in settings:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(settings, before, strict=True):
            setattr(place, name, value)


def run_torch(precision: str, subject: Subject) -> Execution:
    """PyTorch on the subject's device."""
    device = subject.settings.device or "cpu"
    dtype = {"fp16": torch.float16, "fp16acc": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    with torch_flags(tf32=precision == "tf32", fp16_accumulators=precision == "fp16acc"):
        module = copy.deepcopy(subject.module).to(device, dtype)
        return Execution("measured", run_module(module, to_args(subject.example, dtype, device)))


def run_onnxruntime(precision: str, subject: Subject) -> Execution:
    """ONNX Runtime's CUDA provider."""
    exported = subject.exported
    model = to_half(exported.model) if precision == "fp16" else exported.model
    options = {"use_tf32": str(int(precision == "tf32"))}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[("CUDAExecutionProvider", options)])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return Execution("unavailable", note="the CUDA provider could not be loaded")
    results = session.run(list(exported.outputs), feed(subject.example, exported))
    return Execution("measured", [torch.from_numpy(array) for array in results])


def run_target(target: str, subject: Subject) -> Execution:
    """A target of the package."""
    return execute(runtime(target), subject, timed=True)


TORCH: dict[str, Callable[[Subject], Execution]] = {
    f"torch-{precision}": functools.partial(run_torch, precision) for precision in ("fp32", *PRECISIONS)
}
ENGINES: dict[str, Callable[[Subject], Execution]] = {
    **{f"onnxruntime_cuda-{p}": functools.partial(run_onnxruntime, p) for p in ("fp32", "tf32", "fp16")},
    **{
        target: functools.partial(run_target, target)
        for target in TARGETS
        if target.startswith("tensorrt") and target.rpartition("-")[2] in ("fp32", *PRECISIONS)
    },
}


def missing(engine: str, device: str) -> str:
    """Why an engine can run on no model here, '' where it can."""
    if engine.startswith("torch"):
        alone = engine in ("torch-tf32", "torch-fp16acc") and not device.startswith("cuda")
        return "needs a CUDA device" if alone else ""
    if engine.startswith("onnxruntime_cuda"):
        provided = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return "" if provided else "this onnxruntime has no CUDA provider"
    made = runtime(engine)
    return made.can_build().reason or made.can_run().reason


def measure(name: str, engine: str, device: str) -> Numbers:
    """Predicted and executed distance of one model on one engine, their ratio, and what it says."""
    run = {**TORCH, **ENGINES}[engine]
    found = scene(name, device)
    require_same(name, found.sums)
    execution = run(found.subject)
    if execution.status != "measured":
        return {"status": execution.status, "note": execution.note}
    precision = engine.rpartition("-")[2]
    known = predictions()[name]
    predicted, executed = known.get(precision), distance(found, execution.outputs)
    ratio = None if predicted is None else executed / predicted
    says = verdict(executed, predicted, known.get("fp16acc") if precision == "fp16" else None)
    numbers = {"status": "ok", "predicted": predicted, "executed": executed, "ratio": ratio, "verdict": says}
    if execution.latency is not None:
        numbers["ms"] = 1e3 * execution.latency.median
    return numbers | {"layers": dict(execution.layers), "bytes": execution.size, "note": execution.note}


def verdict(executed: float, predicted: float | None, accumulated: float | None = None) -> str:
    """What an executed distance says of the prediction.

    Args:
        executed: The distance of the engine.
        predicted: That of the emulation; None for fp32, which needs none.
        accumulated: That of the emulation with fp16 accumulators, where it is known.
    """
    if predicted is None:
        return "fine" if executed <= FP32_LIMIT else f"beyond {FP32_LIMIT:g}"
    if not math.isfinite(predicted):
        return "not finite, as predicted" if not math.isfinite(executed) else "finite, against the prediction"
    if executed <= NEAR[1] * predicted:
        return "as predicted" if executed >= NEAR[0] * predicted else "nearer than predicted"
    if accumulated is None:
        return "beyond the emulation"
    if executed <= NEAR[1] * accumulated:
        return "between emulated-fp16 and emulated-fp16acc"
    return "beyond both"
