"""Small models that the deployment tests share."""

from dataclasses import dataclass

import torch
from torch import nn


class SmallCNN(nn.Module):
    """Convolution, BatchNorm, ReLU and a linear head: (N, 3, 16, 16) -> (N, 4)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 8 * 8, 4)

    def forward(self, images):
        return self.head(self.drop(self.stem(images).flatten(1)))


class OverflowingNorm(nn.Module):
    """LayerNorm over channels written as x.pow(2).mean on large activations: overflows in fp16, silently."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, images):
        x = self.conv(images) * 1000
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        return self.out(centred / (variance + 1e-6).sqrt())


class Attention(nn.Module):
    """A transformer block of width 32 with four heads."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class OutlierViT(nn.Module):
    """A small vision transformer, one channel of whose residual stream is of size 3000, as trained ones have them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.position = nn.Parameter(torch.randn(16, 32))
        self.position.data[:, 7] = 3000.0
        self.blocks = nn.Sequential(*(Attention() for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


@dataclass
class Detection:
    scores: torch.Tensor
    boxes: torch.Tensor


class Structured(nn.Module):
    """Takes a dict and a second argument, returns what ``kind`` says."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(3, 2)

    def forward(self, batch, scale):
        y = self.layer(batch["x"]) * scale
        return {
            "tuple": (y, y.sum(1)),
            "dict": {"scores": y, "total": y.sum(1)},
            "dataclass": Detection(y, y.sum(1)),
        }[self.kind]


def images(count=4, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
