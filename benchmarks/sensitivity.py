"""How long it takes to find the nodes that fp16 hurts, and what keeping a few of them in fp32 buys.

    python benchmarks/sensitivity.py [--only resnet18 vit norm]

A ResNet-18 at 224 x 224 with measured BatchNorm statistics, a ViT-Ti/16 one channel of whose residual stream is of size
3000, and a LayerNorm written out as powers and means whose squares overflow. Two samples each, random weights (seed 0).
Seconds are those of the ranking (all nodes) and of the search for the list; distances are relative L2 of the emulated
outputs to fp32. The list aims at a fiftieth of what the whole graph costs in fp16.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from vision import SmallViT, resnet18

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.keep_list import find_keep_list
from lightning_robust.deployment.numerics.sweep import NodeSweep
from lightning_robust.tables import markdown

HEAD = ("model", "nodes", "ranking, s", "list, s", "all fp16", "kept", "with the list", "factor")


class WrittenNorm(nn.Module):
    """Normalises over channels by powers and means of large activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Two maps."""
        x = self.conv(images) * 1000
        centred = x - x.mean(1, keepdim=True)
        maps: Tensor = self.out(centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt())
        return maps


def measured_resnet() -> nn.Module:
    """ResNet-18 with BatchNorm statistics of noise."""
    module = resnet18(large=True)
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 224, 224))
    return module


def outlier_vit() -> nn.Module:
    """ViT-Ti whose positions put 3000 on one channel."""
    module = SmallViT()
    module.places.data[..., 7] = 3000.0
    return module


MODELS = {"resnet18": measured_resnet, "vit": outlier_vit, "norm": WrittenNorm}


def row(name: str) -> list[str]:
    """One line of the table."""
    torch.manual_seed(0)
    module = frozen_copy(MODELS[name]())
    images = torch.randn(2, 3, 224, 224)
    exported = export(module, (images,))
    start = time.perf_counter()
    sweep = NodeSweep(exported.model, {exported.inputs[0]: images.numpy()}, origins=exported.origins)
    found = sweep.sensitivity()
    ranked = time.perf_counter()
    kept = find_keep_list(sweep, found, found.total / 50)
    listed = time.perf_counter()
    return [
        name,
        str(len(found.nodes)),
        f"{ranked - start:.1f}" + ("" if found.complete else " (partial)"),
        f"{listed - ranked:.1f}",
        f"{found.total:.2e}",
        f"{len(kept.nodes)} of {kept.of}",
        f"{kept.error:.2e}",
        f"{found.total / kept.error:.0f}" if kept.error else "exact",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    print(markdown(HEAD, [row(name) for name in parser.parse_args().only]))
