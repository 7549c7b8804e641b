"""What a training step costs with each mixin beside the plain step of the same run, as a part of ``speed.py``.

A step is the loss, its backward pass and SGD. Unlabelled batches are as large as labelled ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from racing import race, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vision import TASKS

from lightning_robust import PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin

STEPS = 5
UAT = {"uat_ot_weight": 1.0, "uat_unlabelled_key": "unlabelled", "uat_eps": 0.1, "uat_steps": STEPS}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "preprocessing": {"preprocessing_weight": 1.0},
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


class Robust(PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin, Host):
    """With every mixin."""


def stepping(net: nn.Module, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> Callable[[], None]:
    """One training step."""
    module = Robust(net=net.train(), **settings)
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


def objectives(rounds: int) -> None:
    """Print the tables."""
    for task in TASKS:
        steps = {}
        for row, settings in ROWS.items():
            net, images, labels = TASKS[task]()
            steps[row] = stepping(net, images, labels, settings)
        table(f"Training step, {task}", race(steps, rounds))
