"""Networks and tasks for benchmarks, in torch alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Residual(nn.Module):
    """A basic block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        straight = stride == 1 and inputs == outputs
        self.short = nn.Identity() if straight else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return torch.relu(self.body(x) + self.short(x))


def resnet18(*, large: bool = False) -> nn.Module:
    """ResNet-18 for pictures of 32 pixels, or with ImageNet's stem for large ones."""
    plan = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Residual(*sizes) for sizes in [*plan, (512, 512, 1)]]
    kernel, stride = (7, 2) if large else (3, 1)
    stem = [nn.Conv2d(3, 64, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    pool = [nn.MaxPool2d(3, 2, 1)] if large else []
    return nn.Sequential(*stem, *pool, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Attention(nn.Module):
    """A transformer block: attention and two layers, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mix = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """The block, ``(N, tokens, width)`` to the same."""
        query, key, value = self.qkv(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        x = x + self.out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        mixed: Tensor = self.mix(self.after(x))
        return x + mixed


class SmallViT(nn.Module):
    """The 5.5 million parameters of ViT-Ti/16 (Touvron et al. 2021), with the mean of the tokens for the head.

    Takes ``(N, 3, size, size)``.
    """

    def __init__(self, size: int = 224, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // 16) ** 2, width))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def small_cnn() -> nn.Module:
    """The network of the MNIST challenge (Madry et al. 2017)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )


def vit_s() -> nn.Module:
    """The 21.5 million parameters of ViT-S/16, with ten classes."""
    return SmallViT(width=384, heads=6)


def large_resnet18() -> nn.Module:
    """The 11.2 million parameters of ImageNet's ResNet-18, with ten classes."""
    return resnet18(large=True)


def _task(build: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, Tensor, Tensor]:
    return build().eval(), torch.rand(shape), torch.randint(10, shape[:1])


TASKS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "small CNN, 256 x 1 x 28 x 28": lambda: _task(small_cnn, 256, 1, 28, 28),
    "ResNet-18, 32 x 3 x 32 x 32": lambda: _task(resnet18, 32, 3, 32, 32),
}
"""Networks in evaluation mode, a batch of random pictures, labels."""
