"""The emulator's prediction beside half precision that was really executed, on whatever this machine has.

    python benchmarks/gpu_parity.py [--device cuda] [--only lanes resnet18] [--samples 16] [--lanes CHECKPOINT]

Four models: the lane detector and the Fashion-MNIST classifier (trained for a minute each unless checkpoints of
``lightning-robust fit`` are given), a ResNet-18 and a ViT-Ti with random weights and measured BatchNorm statistics.
Executed are PyTorch in fp16 and bf16 (and with TF32 on a GPU), ONNX Runtime's CUDA provider, TensorRT and TensorRT-RTX,
each where it is found. Distances are relative L2 to PyTorch in fp64, on the outputs less their mean; the worst output
counts. An executed distance of at most three times the emulated one is the precision's own; beyond it is a fault of the
engine (or of its accumulators). A head that decides (the lanes' argmax) can turn a difference in the last place into a
jump on one side: look at the outputs before blaming anyone, whether the ratio is large or small.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from vision import SmallViT, resnet18

from lightning_robust.deployment.engines import TARGETS, BuildSettings, Subject, run_module, runtime
from lightning_robust.deployment.engines.base import feed
from lightning_robust.deployment.engines.execution import Execution, execute, one_line
from lightning_robust.deployment.graph.export import frozen_copy, to_args
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.parity.distance import compare_outputs

BUDGET = 3.0
FP32_LIMIT = 1e-4  # this library's tolerance for engines in fp32, for which there is nothing to emulate
HEAD = ("model", "executed", "emulated rel_l2", "executed rel_l2", "ratio", "verdict")
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
Case = tuple[nn.Module, Tensor]


# The models


def lanes(samples: int, checkpoint: Path | None) -> Case:
    """The lane detector of the demo and rendered roads."""
    from lightning_robust.demo.lanes import LaneData, LaneDetector

    data = LaneData(num_train=1500, num_val=64)
    return _trained(LaneDetector(), data, 3, checkpoint), _pictures(data, samples)


def fashion_mnist(samples: int, checkpoint: Path | None) -> Case:
    """The classifier of the demo and real pictures."""
    from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier

    data = FashionMNISTData(num_train=10_000)
    return _trained(ImageClassifier(), data, 2, checkpoint), _pictures(data, samples)


def _trained(module: Any, data: Any, epochs: int, checkpoint: Path | None) -> nn.Module:
    import lightning.pytorch as pl

    from lightning_robust.harness.runs import load_module

    if checkpoint is not None:
        data.prepare_data()
        data.setup("fit")
        return load_module(checkpoint)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    trainer = pl.Trainer(max_epochs=epochs, enable_model_summary=False, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, datamodule=data)
    return copy.deepcopy(module)


def _pictures(data: Any, samples: int) -> Tensor:
    images: Tensor = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0]
    return images[:samples]


def resnet(samples: int, checkpoint: Path | None) -> Case:
    """ResNet-18 on smooth noise of 224 pixels."""
    model, x = resnet18(large=True), _noise(samples)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None  # the plain mean over what it sees
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.2)
        model.train()(_noise(8 + samples))
    return model, x


def vit(samples: int, checkpoint: Path | None) -> Case:
    """ViT-Ti on smooth noise of 224 pixels."""
    return SmallViT(), _noise(samples)


def _noise(samples: int) -> Tensor:
    coarse = torch.randn(samples, 3, 28, 28, generator=torch.Generator().manual_seed(samples))
    return interpolate(coarse, size=(224, 224), mode="bicubic")


MODELS: dict[str, Callable[[int, Path | None], Case]] = {
    "lanes": lanes,
    "fashion_mnist": fashion_mnist,
    "resnet18": resnet,
    "vit": vit,
}


# What is executed


def torch_on_cuda(subject: Subject) -> dict[str, Execution]:
    """PyTorch in fp32 on the GPU, without and with TF32; nothing without a GPU."""
    if not str(subject.settings.device).startswith("cuda"):
        return {}
    executions = {}
    for name, allowed in (("torch_cuda-fp32", False), ("torch_cuda-tf32", True)):
        with tf32(allowed):
            module = copy.deepcopy(subject.module).to(str(subject.settings.device))
            outputs = run_module(module, to_args(subject.example, torch.float32, str(subject.settings.device)))
        executions[name] = Execution("measured", outputs)
    return executions


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TF32 in products and convolutions of PyTorch on CUDA."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def onnxruntime_on_cuda(subject: Subject) -> dict[str, Execution]:
    """ONNX Runtime's CUDA provider, in fp32 without TF32, with TF32, and in fp16."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return {"onnxruntime_cuda-fp16": Execution("unavailable", note="this onnxruntime has no CUDA provider")}
    exported = subject.exported
    models = {name: (exported.model, name == "tf32") for name in ("fp32", "tf32")}
    models["fp16"] = to_half(exported.model), False
    executions = {}
    for name, (model, use_tf32) in models.items():
        options = {"use_tf32": str(int(use_tf32))}
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=[("CUDAExecutionProvider", options)]
            )
            if session.get_providers()[0] != "CUDAExecutionProvider":
                raise RuntimeError("the CUDA provider could not be loaded")
            results = session.run(list(exported.outputs), feed(subject.example, exported))
            executions[f"onnxruntime_cuda-{name}"] = Execution("measured", [torch.from_numpy(a) for a in results])
        except Exception as error:
            executions[f"onnxruntime_cuda-{name}"] = Execution("failed", note=one_line(error))
    return executions


# The table


def row(
    model: str, target: str, execution: Execution, reference: list[Tensor], emulated: dict[str, float]
) -> list[str]:
    """A line of the table."""
    precision = target.rsplit("-", 1)[1]
    predicted = emulated.get(precision)
    prediction = f"{predicted:.2e}" if predicted is not None else "-"
    if execution.status != "measured":
        return [
            model,
            target,
            prediction,
            "-",
            "-",
            f"not run ({execution.status}): {execution.note.removeprefix('not run: ').split('. ')[0]}",
        ]
    measured = compare_outputs(reference, execution.outputs)["rel_l2"]
    ratio = None if predicted is None else measured / predicted
    sound = measured <= FP32_LIMIT if ratio is None else ratio <= BUDGET
    verdict = "fine" if sound else "ENGINE FAULT"
    if ratio is None and precision != "fp32":
        verdict = "nothing to compare with"
    return [model, target, prediction, f"{measured:.2e}", "-" if ratio is None else f"{ratio:.2f}", verdict]


def compare(name: str, samples: int, checkpoint: Path | None, device: str) -> Iterator[list[str]]:
    """The lines of one model."""
    torch.manual_seed(0)
    model, x = MODELS[name](samples, checkpoint)
    subject = Subject(frozen_copy(model), (x,), BuildSettings(device=device, time_limit=600.0))
    reference = run_module(copy.deepcopy(subject.module).double(), (x.double(),))
    executions = {target: execute(runtime(target), subject) for target in TARGETS if target != "torch-fp32"}
    emulated = {
        target.removeprefix("emulated-"): compare_outputs(reference, executions.pop(target).outputs)["rel_l2"]
        for target in tuple(executions)
        if target.startswith("emulated-")
    }
    for target, execution in (executions | torch_on_cuda(subject) | onnxruntime_on_cuda(subject)).items():
        yield row(name, target, execution, reference, emulated)


def device_name(device: str) -> str:
    """The GPU's or the processor's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{named} ({torch.get_num_threads()} threads); no GPU was used"


def versions() -> str:
    """Of the packages that count and are here."""
    here = {name.metadata["Name"]: name.version for name in metadata.distributions()}
    return ", ".join(f"{name} {here[name]}" for name in PACKAGES if name in here)


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--lanes", type=Path, help="checkpoint of the lane detector")
    parser.add_argument("--fashion_mnist", type=Path, help="checkpoint of the classifier")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"Device: {device_name(options.device)}\nVersions: {versions()}, Python {platform.python_version()}")
    print(f"\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for name in options.only:
        for cells in compare(name, options.samples, getattr(options, name, None), options.device):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
