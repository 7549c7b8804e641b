"""One row of ``wild.py``, in a process of its own and in the environment that has the packages.

python wild_row.py inputs FILE ARRAYS.npz       inputs that an ONNX file takes
python wild_row.py judge FILE ARRAYS.npz OUT    its distance in fp16 as ONNX Runtime executes the converted file
python wild_row.py network NAME OUT             the distance of a network, emulated and in PyTorch's half precision
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype
from PIL import Image, ImageDraw
from torch import Tensor, nn

SAMPLES, TARGETS = 2, ("emulated-fp16", "torch-fp16")
SIZES = {3: (160, 320), 1: (64, 160)}
"""Channels -> height and width for a file that takes any size."""
HEIGHTS = {"v2_rec": 32, "rec": 48, "cls": 48}
"""What is in the name of a file that reads single lines -> their height."""


class _Stands(type):
    """A class any of whose attributes is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stands(name, (), {})


class NoTorchvision(MetaPathFinder, Loader):
    """Empty modules in place of torchvision, which does not import beside a CPU build of torch.

    timm and segmentation_models_pytorch import it at once and need it for none of the networks here.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Of torchvision and all that is in it."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """A module any of whose names is a class."""
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(_Stands("torchvision", (), {}), name)


def page(channels: int, height: int, width: int) -> NDArray[np.float32]:
    """Black text on white in [-1, 1], (channels, height, width): to noise a reader of text answers nothing."""
    picture = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(picture)
    size = max(10, min(height // 3, 24))
    for row, top in enumerate(range(size // 2, height - size, 2 * size)):
        draw.text((8, top), f"The number of line {row} is {row * 7919}", fill=0, font_size=size)
    return np.repeat(np.asarray(picture, np.float32)[None] / 127.5 - 1, channels, 0)


def inputs(path: str, arrays: str) -> None:
    """Text for inputs that are pictures with channels first, noise and zeros for the rest."""
    from lightning_robust.deployment.graph.files import load_graph, make_inputs

    shapes: dict[str, list[int]] = {}
    model = load_graph(path)
    for value in model.graph.input:
        sizes = [dim.dim_value if dim.dim_value > 0 else 0 for dim in value.type.tensor_type.shape.dim]
        if len(sizes) == 4 and sizes[1] in SIZES:
            height = next((height for part, height in HEIGHTS.items() if part in Path(path).stem), 0)
            usual = (height, 4 * height) if height else SIZES[sizes[1]]
            sizes[2:] = [given or size for given, size in zip(sizes[2:], usual, strict=True)]
        elif len(sizes) == 2:  # sound at 16 kHz: a second, or the window of a detector of voices
            sizes[1] = sizes[1] or (512 if "silero" in path else 16000)
        elif len(sizes) == 4:
            sizes[1:] = [given or 64 for given in sizes[1:]]
        if len(sizes) == 3 and not sizes[1]:
            sizes[1] = SAMPLES
        shapes[value.name] = [size or SAMPLES for size in sizes]
    made = make_inputs(model, SAMPLES, {name: shape for name, shape in shapes.items() if shape})
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[1] in SIZES:
            made[name] = np.stack([np.roll(page(*shape[1:]), 7 * n, 1) for n in range(shape[0])]).astype(np.float32)
    if "sr" in made:
        made["sr"] = np.array(16000, np.int64)
    np.savez(arrays, **made)


def judge(path: str, arrays: str, out: str) -> None:
    """The relative L2 distance of the converted file to the file, both executed by ONNX Runtime."""
    from lightning_robust.deployment.graph.files import load_graph
    from lightning_robust.deployment.graph.session import Session
    from lightning_robust.deployment.numerics.convert import to_half

    model, feeds = load_graph(path), dict(np.load(arrays))
    exact, converted = Session(model).run(feeds), to_half(model)
    types = {value.name: tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in converted.graph.input}
    rounded = Session(converted, optimise=False).run({name: feeds[name].astype(kind) for name, kind in types.items()})
    pairs = [(a.double(), b.double()) for a, b in zip(exact, rounded, strict=True) if a.is_floating_point()]
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    Path(out).write_text(json.dumps({"judge": (error / sum(float(a.square().sum()) for a, _ in pairs)) ** 0.5}))


class First(nn.Module):
    """The first tensor that a network returns.

    Args:
        network: Any network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """What the network returns, its first tensor."""
        result = self.network(x)
        while not isinstance(result, Tensor):
            result = result[0] if isinstance(result, tuple | list) else next(iter(result.values()))
        return result


def of_timm(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network of timm and pictures."""
    import timm

    return timm.create_model(name, pretrained=False), torch.rand(SAMPLES, 3, size, size)


def of_segmentation(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A decoder of segmentation_models_pytorch on a small encoder, and pictures."""
    import segmentation_models_pytorch

    decoder = getattr(segmentation_models_pytorch, name)
    return decoder("timm-mobilenetv3_small_minimal_100", encoder_weights=None), torch.rand(SAMPLES, 3, size, size)


def of_transformers(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A model of transformers with four layers at most, and what it takes: tokens, pictures or sound."""
    import transformers

    config = getattr(transformers, f"{name}Config")()
    for depth in ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers"):
        if hasattr(config, depth):
            setattr(config, depth, min(4, getattr(config, depth)))
    config.use_cache = False
    model = getattr(transformers, f"{name}Model")(config)
    x = torch.rand(SAMPLES, 3, size, size)
    if model.main_input_name == "input_ids":
        x = torch.randint(5, 1000, (SAMPLES, size))
    elif model.main_input_name == "input_values":
        x = torch.randn(SAMPLES, 16000)
    return First(model), x


def of_torch(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A few layers of torch.nn, and pictures or sequences."""
    made: Callable[[], nn.Module] = {
        "TransformerEncoder": lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 4
        ),
        "LSTM": lambda: First(nn.LSTM(64, 64, 2, batch_first=True)),
        "GRU": lambda: First(nn.GRU(64, 64, 2, batch_first=True)),
        "GroupNorm": lambda: nn.Sequential(nn.Linear(64, 64), nn.GroupNorm(4, size), nn.SiLU(), nn.Linear(64, 4)),
        "ConvTranspose": lambda: nn.Sequential(
            nn.Unflatten(2, (8, 8)), nn.Conv2d(size, 16, 3), nn.PReLU(), nn.ConvTranspose2d(16, 4, 4, 2), nn.Sigmoid()
        ),
    }[name]
    return made(), torch.randn(SAMPLES, size, 64)


def network(name: str, out: str) -> None:
    """The relative L2 distances of one network, with random weights, to PyTorch in fp64."""
    from lightning_robust.deployment.engines import Subject, available
    from lightning_robust.deployment.graph.export import frozen_copy
    from lightning_robust.deployment.parity import measure_parity

    kind, name, size = name.split(":")
    torch.manual_seed(0)
    makers = {"timm": of_timm, "smp": of_segmentation, "transformers": of_transformers, "torch": of_torch}
    module, x = makers[kind](name, int(size))
    subject = Subject(frozen_copy(module), (x,))
    report = measure_parity(subject, available(list(TARGETS)), time_limit=300.0)
    result: dict[str, Any] = {"rules": sorted({finding.rule for finding in report.findings})}
    for target, measured in report.targets.items():
        result[target] = measured.metrics.get("rel_l2")
        if measured.status != "measured":
            result["note"] = measured.note
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, NoTorchvision())
    {"inputs": inputs, "judge": judge, "network": network}[sys.argv[1]](*sys.argv[2:])
