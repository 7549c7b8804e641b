"""A small convolutional classifier, alone and with every mixin."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_robust.demo.optimisation import one_cycle_length
from lightning_robust.functional.weights import load_same
from lightning_robust.harness.checkpoints import read_state
from lightning_robust.mixins import PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin

Batch = tuple[Tensor, Tensor]

_RISE = 0.25
"""Share of the run in which the learning rate rises."""


class ImageClassifier(pl.LightningModule):
    """Three convolution blocks and one linear layer, AdamW with a one-cycle schedule.

    Args:
        classes: Number of classes.
        channels: Channels of the input.
        width: Channels of the first block; the others have two and four times as many.
        learning_rate: Peak of the schedule.
        weight_decay: Weight decay of AdamW.
        weights: Checkpoint to begin from; None begins from random weights.
        label_smoothing: Share of probability spread over all classes.
        **kwargs: Passed on to the bases that follow.

    Example:
        >>> ImageClassifier()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 1,
        width: int = 16,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.02,
        label_smoothing: float = 0.0,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.trunk = nn.Sequential(
            _block(channels, width), _block(width, 2 * width), _block(2 * width, 4 * width), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(4 * width, classes)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        if weights is not None:
            load_same(self, read_state(weights), weights)

    def features(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to features ``(N, 4 * width)``."""
        pooled: Tensor = self.trunk(images)
        return pooled.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, classes)``."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy."""
        images, labels = batch
        loss: Tensor = self.loss(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``val/loss`` and ``val/acc``, for each loader."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``test/loss`` and ``test/acc``, for each loader."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        images, labels = batch
        logits = self(images)
        self.log(f"{stage}/loss", self.loss(logits, labels), sync_dist=True)
        self.log(f"{stage}/acc", (logits.argmax(1) == labels).float().mean(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a one-cycle schedule over the whole run.

        Raises:
            MisconfigurationException: If the length of the run is not known beforehand.
        """
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        length = one_cycle_length(self.trainer, _RISE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, length, pct_start=_RISE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RobustImageClassifier(PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin, ImageClassifier):
    """The classifier with every mixin, each off until its weight is set; arguments are theirs and the classifier's.

    Example:
        >>> RobustImageClassifier(regmixup_weight=1.0, width=8)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
    )
