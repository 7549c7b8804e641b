"""What a training step costs with each mixin, as a ratio to the plain step of the same run.

    python benchmarks/objective_cost.py [--rounds 7] [--threads 2]

A step is the loss, its backward pass and SGD. Unlabelled batches are as large as labelled ones. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from attacks import small
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vision import resnet18
from weights import race, table

from lightning_robust import RegMixupMixin, RotationSSLMixin, UATMixin

STEPS = 5
UAT = {"uat_ot_weight": 1.0, "uat_unlabelled_key": "unlabelled", "uat_eps": 0.1, "uat_steps": STEPS}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "RegMixup": {"regmixup_weight": 1.0},
    "RegMixup, separate": {"regmixup_weight": 1.0, "regmixup_forward": "separate"},
    "rotation, one turn": {"rotation_weight": 0.5},
    "rotation, four turns": {"rotation_weight": 0.5, "rotation_turns": "all"},
    f"UAT-OT, {STEPS} steps": UAT,
}


class Host(pl.LightningModule):
    """A network whose last layer is the head."""

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trunk, self.head = net[:-1], net[-1]

    def features(self, images: Tensor) -> Tensor:
        """``(N, F)``."""
        found: Tensor = self.trunk(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return cross_entropy(self(batch[0]), batch[1])


class Robust(RegMixupMixin, RotationSSLMixin, UATMixin, Host):
    """With every mixin."""


def stepping(net: nn.Module, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> Callable[[], None]:
    """One training step."""
    module = Robust(net=net, **settings)
    if "rotation_weight" in settings:
        module._make_head(module.head.in_features)
    object.__setattr__(module, "log_dict", lambda *_, **__: None)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    labelled = (images, labels)
    batch = {"labelled": labelled, "unlabelled": images.flip(0)} if "uat_ot_weight" in settings else labelled

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    return step


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, build, shape in (("small CNN", small, (256, 1, 28, 28)), ("ResNet-18", resnet18, (32, 3, 32, 32))):
        images, labels = torch.rand(shape), torch.randint(10, shape[:1])
        steps = {row: stepping(build(), images, labels, settings) for row, settings in ROWS.items()}
        table(f"{name}, {' x '.join(map(str, shape))}", race(steps, options.rounds))


if __name__ == "__main__":
    main()
