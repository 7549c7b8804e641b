"""The emulator's prediction beside half precision that was really executed, on whatever this machine has.

    python benchmarks/gpu_parity.py [--device cuda] [--only lanes resnet18] [--samples 16] [--lanes CHECKPOINT]

Four models: the lane detector and the Fashion-MNIST classifier (trained for a minute each unless checkpoints of
``lightning-robust fit`` are given), a ResNet-18 and a ViT-Ti with random weights and measured BatchNorm statistics.
Executed are PyTorch in fp16 and bf16 (and with TF32 on a GPU), ONNX Runtime's CUDA provider, TensorRT and TensorRT-RTX,
each where it is found. Distances are relative L2 to PyTorch in fp64, on the outputs less their mean; the worst output
counts. An executed distance of at most three times the emulated one is the precision's own; beyond it is a fault of the
engine (or of its accumulators). A head that decides (the lanes' argmax) can turn a difference in the last place into a
jump on one side: look at the outputs before blaming anyone, whether the ratio is large or small.

Without onnx and onnxruntime the last two models are still compared, with an emulation in PyTorch that rounds the result
of every operator.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from vision import SmallViT, resnet18

BUDGET = 3.0
FP32_LIMIT = 1e-4  # this library's tolerance for engines in fp32, for which there is nothing to emulate
HEAD = ("model", "executed", "emulated rel_l2", "executed rel_l2", "ratio", "verdict")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
Outputs = list[Tensor]
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


def run(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Outputs:
    """The outputs of a copy in another type on a device."""
    copied = copy.deepcopy(model).to(device, dtype)
    with torch.no_grad():
        outputs = copied(x.to(device, dtype))
    return [out.cpu() for out in ((outputs,) if isinstance(outputs, Tensor) else outputs)]


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TF32 in products and convolutions of PyTorch on CUDA."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Rounding(TorchDispatchMode):
    """Rounds what every operator returns to another type, computing in fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call and round."""
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            return result.copy_(result.to(self.dtype)) if isinstance(result, Tensor) else result
        return tree_map(self._round, result)

    def _round(self, value: Any) -> Any:
        wide = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(self.dtype).float() if wide else value


def emulated_in_torch(model: nn.Module, x: Tensor) -> dict[str, Outputs]:
    """What PyTorch gives where every result is rounded, weights and inputs included."""
    outputs = {}
    for name, dtype in DTYPES.items():
        rounded = copy.deepcopy(model).to(dtype).float()
        with Rounding(dtype):
            outputs[name] = run(rounded, x.to(dtype).float())
    return outputs


def executed_in_torch(model: nn.Module, x: Tensor, device: str) -> dict[str, Outputs | str]:
    """PyTorch's own half precision, and on CUDA fp32 with and without TF32."""
    wanted = {f"torch-{name}": (dtype, nullcontext()) for name, dtype in DTYPES.items()}
    if device.startswith("cuda"):
        wanted |= {"torch-fp32": (torch.float32, tf32(False)), "torch-tf32": (torch.float32, tf32(True))}
    outputs: dict[str, Outputs | str] = {}
    for name, (dtype, context) in wanted.items():
        try:
            with context:
                outputs[name] = run(model, x, dtype, device)
        except RuntimeError as error:
            outputs[name] = f"not run: {str(error).splitlines()[0]}"
    return outputs


def with_onnx(model: nn.Module, x: Tensor, device: str) -> tuple[dict[str, Outputs], dict[str, Outputs | str]]:
    """Through this library: what the emulator predicts, and what engines give."""
    from lightning_robust.deployment.engines import TARGETS, Subject, runtime
    from lightning_robust.deployment.engines.execution import execute

    subject = Subject(model, (x,), max_batch=len(x), device=device, time_limit=600.0)
    emulated, executed = {}, {}
    for target in TARGETS:
        name, precision = target.rsplit("-", 1)
        if name == "torch" or target == "onnxruntime-fp32":
            continue
        execution = execute(runtime(target), subject)
        if execution.run is None:
            executed[target] = f"not run ({execution.status}): {execution.note.split('. ')[0]}"
        elif name == "emulated":
            emulated[precision] = execution.outputs
        else:
            executed[target] = execution.outputs
    return emulated, executed | onnxruntime_on_cuda(subject)


def onnxruntime_on_cuda(subject: Any) -> dict[str, Outputs | str]:
    """ONNX Runtime's CUDA provider, in fp32 without TF32, with TF32, and in fp16."""
    import onnxruntime

    from lightning_robust.deployment.engines.base import feed
    from lightning_robust.deployment.numerics.convert import to_half

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return {"onnxruntime_cuda-fp16": "not run (unavailable): this onnxruntime has no CUDA provider"}
    exported = subject.exported
    models = {name: (exported.model, name == "tf32") for name in ("fp32", "tf32")}
    models["fp16"] = to_half(exported.model), False
    outputs: dict[str, Outputs | str] = {}
    for name, (model, use_tf32) in models.items():
        options = {"use_tf32": str(int(use_tf32))}
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=[("CUDAExecutionProvider", options)]
            )
            if session.get_providers()[0] != "CUDAExecutionProvider":
                raise RuntimeError("the CUDA provider could not be loaded")
            results = session.run(list(exported.outputs), feed(subject.example, exported))
            outputs[f"onnxruntime_cuda-{name}"] = [torch.from_numpy(array) for array in results]
        except Exception as error:
            outputs[f"onnxruntime_cuda-{name}"] = f"not run (failed): {str(error).splitlines()[0]}"
    return outputs


# The table


def distance(reference: Outputs, outputs: Outputs) -> float:
    """Relative L2 on the outputs less their mean; the worst output counts, and one that is not finite is infinite."""
    worst = 0.0
    for exact, got in zip(reference, outputs, strict=True):
        moved = (got.double() - exact).norm() / (exact - exact.mean()).norm()
        worst = max(worst, float(moved) if bool(moved.isfinite()) else float("inf"))
    return worst


def row(model: str, target: str, got: Outputs | str, reference: Outputs, emulated: dict[str, float]) -> list[str]:
    """A line of the table."""
    precision = target.rsplit("-", 1)[1]
    predicted = emulated.get(precision)
    told = f"{predicted:.2e}" if predicted is not None else "-"
    if isinstance(got, str):
        return [model, target, told, "-", "-", got]
    measured = distance(reference, got)
    ratio = None if predicted is None else measured / predicted
    sound = measured <= FP32_LIMIT if ratio is None else ratio <= BUDGET
    verdict = "fine" if sound else "ENGINE FAULT"
    if target.startswith("emulated"):
        verdict = "second emulation"
    elif ratio is None and precision != "fp32":
        verdict = "nothing to compare with"
    return [model, target, told, f"{measured:.2e}", "-" if ratio is None else f"{ratio:.2f}", verdict]


def compare(name: str, samples: int, checkpoint: Path | None, device: str, onnx: bool) -> Iterator[list[str]]:
    """The lines of one model."""
    torch.manual_seed(0)
    model, x = MODELS[name](samples, checkpoint)
    model = model.cpu().float().eval().requires_grad_(False)
    reference = run(model, x.double(), torch.float64)
    executed = executed_in_torch(model, x, device)
    in_torch = emulated_in_torch(model, x)
    predicted, engines = with_onnx(model, x, device) if onnx else (in_torch, {})
    emulated = {precision: distance(reference, outputs) for precision, outputs in predicted.items()}
    for target, got in (executed | engines).items():
        yield row(name, target, got, reference, emulated)
    if onnx:
        for precision, outputs in in_torch.items():
            yield row(name, f"emulated_in_torch-{precision}", outputs, reference, emulated)


def device_name(device: str) -> str:
    """The GPU's or the processor's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{named} ({torch.get_num_threads()} threads); no GPU was used"


def missing() -> str:
    """Why the library cannot be imported here, '' where it can."""
    try:
        import onnxruntime  # noqa: F401

        import lightning_robust  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


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
    absent = missing()
    print(f"Device: {device_name(options.device)}\nVersions: {versions()}, Python {platform.python_version()}")
    if absent:
        print(
            f"Emulated in PyTorch, and without lanes and fashion_mnist: lightning_robust is not usable here ({absent})"
        )
    print(f"\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for name in options.only:
        if absent and name in ("lanes", "fashion_mnist"):
            continue
        for cells in compare(name, options.samples, getattr(options, name, None), options.device, not absent):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
