"""Ten small networks for keep_list.py: most of them such that fp16 hurts, each for a reason met in the wild.

All take pictures of 64 x 64 with values from 0 to 1 and have random weights, but for the lane detector, which has its
own size and is trained for a minute.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

WIDTH = 32


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def _backbone() -> nn.Sequential:
    """Down to an eighth."""
    return nn.Sequential(_block(3, 16, 2), _block(16, WIDTH, 2), _block(WIDTH, WIDTH, 2), _block(WIDTH, WIDTH))


class Block(nn.Module):
    """A transformer block that takes an additive mask."""

    def __init__(self, width: int = WIDTH, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores if mask is None else scores + mask
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class OutlierViT(nn.Module):
    """A vision transformer, one channel of whose residual stream is of size 3000, as trained ones have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.places = nn.Parameter(torch.randn(64, WIDTH))
        self.places.data[:, 7] = 3000.0
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Ten classes."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.places
        out: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return out


class WrittenNorm(nn.Module):
    """Normalises large activations over channels by powers and means, whose squares overflow, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.layers = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))
        self.out = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Two maps."""
        x = self.first(x)
        for layer in self.layers:
            x = 1000 * layer(x)
            x = x - x.mean(1, keepdim=True)
            x = (x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()).relu()
        out: Tensor = self.out(x)
        return out


class SoftArgmax(nn.Module):
    """Where eight rows have their maximum, in pixels of a picture of width 1920."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.rate = _backbone(), nn.Conv2d(WIDTH, 8, 1)
        self.register_buffer("columns", torch.arange(64) * 30.0)

    def forward(self, x: Tensor) -> Tensor:
        """Columns."""
        scores = interpolate(self.rate(self.backbone(x)), size=(8, 64), mode="bilinear").mean(2)
        weights = (8 * scores).softmax(-1)
        out: Tensor = (weights * self.columns).sum(-1)
        return out


class AnchorGrid(nn.Module):
    """Boxes of three scales as offsets to a grid of cells, in pixels of a picture of 1280."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.heads = _backbone(), nn.ModuleList(nn.Conv2d(WIDTH, 5, 1) for _ in range(3))
        for scale in range(3):
            cells = 8 >> scale
            grid = torch.stack(torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="xy"))
            self.register_buffer(f"grid{scale}", grid.float()[None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores."""
        x, boxes, scores = self.backbone(x), [], []
        for scale, head in enumerate(self.heads):
            x = x if scale == 0 else nn.functional.max_pool2d(x, 2)
            stride = 160.0 * 2**scale
            raw = head(x)
            centre = (raw[:, :2].sigmoid() * 2 - 0.5 + self.get_buffer(f"grid{scale}")) * stride
            size = (raw[:, 2:4].sigmoid() * 2) ** 2 * stride
            boxes.append(torch.cat([centre, size], 1).flatten(2))
            scores.append(raw[:, 4:].sigmoid().flatten(2))
        return torch.cat(boxes, 2), torch.cat(scores, 2)


class Masked(nn.Module):
    """A transformer over tokens of which some are masked by adding -1e9 to their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(3, WIDTH, 8, 8), nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Four values a token."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        mask = (x[..., :1].transpose(1, 2) < 0).float()[:, None] * -1e9
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.head(x)
        return out


class OutlierResidual(nn.Module):
    """A residual stream of convolutions of which one channel grows to thousands and is taken away again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.first.bias.data[5] = 2000.0
        self.branches = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)) for _ in range(5)
        )
        self.last = nn.Conv2d(WIDTH, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Six maps."""
        x = self.first(x)
        for branch in self.branches:
            x = x + branch(x)
        out: Tensor = self.last(x - x.mean((2, 3), keepdim=True))
        return out


class UNet(nn.Module):
    """Depth in metres from a U-Net: the exponential of what it predicts, up to a few hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, 16), _block(16, 32, 2), _block(32, 64, 2)])
        self.up = nn.ModuleList([_block(96, 32), _block(48, 16)])
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One map."""
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        for layer, skip in zip(self.up, skips[-2::-1], strict=True):
            x = layer(torch.cat([interpolate(x, scale_factor=2.0, mode="bilinear"), skip], 1))
        out: Tensor = (5 + self.out(x)).exp()
        return out


class ResNet(nn.Module):
    """Eight residual blocks and a linear head: nothing that fp16 hurts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _block(3, WIDTH, 2)
        self.branches = nn.ModuleList(
            nn.Sequential(_block(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH))
            for _ in range(8)
        )
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Ten classes."""
        x = self.first(x)
        for branch in self.branches:
            x = (x + branch(x)).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Encoder(nn.Module):
    """PyTorch's own transformer encoder on patches, two of whose values are places in pixels of 1024."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH - 2, 8, 8)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        steps = torch.arange(8) * 128.0 + 64
        self.register_buffer("places", torch.stack(torch.meshgrid(steps, steps, indexing="xy"))[None])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Two values a token."""
        maps = torch.cat([self.embed(x), self.places.expand(x.shape[0], -1, -1, -1)], 1)
        out: Tensor = self.head(self.encoder(maps.flatten(2).transpose(1, 2)))
        return out


def _lanes() -> tuple[nn.Module, Tensor]:
    """The demo's detector after a short training, and pictures of its validation."""
    from lightning_robust.demo.lanes.data import LaneData, normalise
    from lightning_robust.demo.lanes.detector import LaneDetector

    detector, data = LaneDetector(), LaneData(num_train=512, num_val=64)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(accelerator="cpu", max_epochs=6, enable_model_summary=False, **quiet)
        trainer.fit(detector, data)
    pictures = torch.cat([images for images, _ in data.val_dataloader()])
    return detector, normalise(pictures)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT with an outlier channel": OutlierViT,
    "written norm": WrittenNorm,
    "soft-argmax": SoftArgmax,
    "anchor grid": AnchorGrid,
    "masks of -1e9": Masked,
    "residual stream with an outlier": OutlierResidual,
    "U-Net, depth": UNet,
    "transformer encoder, places in pixels": Encoder,
    "ResNet": ResNet,
}


def settled(name: str, samples: int) -> tuple[nn.Module, Tensor]:
    """A network with BatchNorm statistics of its inputs, and so many samples.

    Args:
        name: A key of :data:`MODELS`, or ``"lanes"``.
        samples: How many pictures.
    """
    torch.manual_seed(0)
    if name == "lanes":
        module, pictures = _lanes()
        return module, pictures[:samples]
    module = MODELS[name]()
    smooth = interpolate(torch.rand(samples, 3, 8, 8), size=64, mode="bicubic").clamp(0, 1)
    pictures = (smooth + 0.05 * torch.randn(samples, 3, 64, 64)).clamp(0, 1)
    with torch.no_grad():
        for _ in range(20):
            module(pictures)
    return module, pictures
