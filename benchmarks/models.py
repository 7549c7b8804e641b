"""Networks of other people's tables, for benchmarks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rows import MIXED, quiet_trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_robust import PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin
from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier, RobustImageClassifier
from lightning_robust.demo.lanes import LaneData, RobustLaneDetector
from lightning_robust.functional.mixing import regmixup_batch
from lightning_robust.functional.rotation import rotate_quadrants, square


class FastNet(ImageClassifier):
    """The 166,406 parameters of fast adversarial training's MNIST network (Wong et al. 2020), without BatchNorm.

    Takes ``(N, 1, 28, 28)``; arguments as of :class:`ImageClassifier`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 100),
            nn.ReLU(),
        )
        self.head = nn.Linear(100, 10)

    def features(self, images: Tensor) -> Tensor:
        """Images ``(N, 1, 28, 28)`` to features ``(N, 100)``."""
        features: Tensor = self.trunk(images)
        return features


class RobustFastNet(PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin, FastNet):
    """The same with every mixin."""


class Mixup(ImageClassifier):
    """Trained on mixtures alone (Zhang et al. 2017), with shares from Beta(1, 1)."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one mixture of the batch."""
        mixed, labels, others, share = regmixup_batch(*batch, 1.0)
        logits = self(mixed)
        loss: Tensor = share * self.loss(logits, labels) + (1 - share) * self.loss(logits, others)
        return loss


class FullyConnected(ImageClassifier):
    """Three hidden layers of 256 units, trained by SGD as in "Are All Layers Created Equal?" (Zhang et al. 2022).

    Takes ``(N, 1, 28, 28)``; arguments as of :class:`ImageClassifier`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"learning_rate": 0.1} | kwargs))
        sizes = (784, 256, 256, 256)
        hidden = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
        self.trunk = nn.Sequential(nn.Flatten(), *hidden)
        self.head = nn.Linear(256, 10)

    def features(self, images: Tensor) -> Tensor:
        """Images ``(N, 1, 28, 28)`` to features ``(N, 256)``."""
        features: Tensor = self.trunk(images)
        return features

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with momentum and a cosine schedule."""
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


class ResNet18(ImageClassifier):
    """The ImageNet network: 11.7 million parameters, ``(N, 3, H, W)`` to 10 classes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"channels": 3} | kwargs))
        widths = (64, 64, 128, 256, 512)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(i, o, 1 if i == o else 2), BasicBlock(o, o, 1)) for i, o in pairwise(widths)
        )
        self.head = nn.Linear(512, 10)

    def features(self, images: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to features ``(N, 512)``."""
        x: Tensor = self.trunk(images)
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))


class PretrainedByRotation(RobustImageClassifier):
    """The demo's classifier whose trunk first learns to tell four rotations of the training pictures apart.

    Three epochs, without labels (Gidaris et al. 2018); arguments as of :class:`RobustImageClassifier`.
    """

    def on_fit_start(self) -> None:
        """Train the trunk on rotations."""
        super().on_fit_start()
        data = FashionMNISTData(num_train=self.trainer.datamodule.num_train)
        quiet_trainer([], max_epochs=3).fit(Rotations(self.trunk, self.head.in_features), data)


class LanesPretrainedByRotation(RobustLaneDetector):
    """The demo's lane detector whose convolutions first learn to tell four rotations of the pictures' middles apart.

    Three epochs without labels; arguments as of :class:`RobustLaneDetector`.
    """

    def on_fit_start(self) -> None:
        """Train the convolutions on rotations."""
        super().on_fit_start()
        network, given = self.network, self.trainer.datamodule
        trunk = nn.Sequential(network.fine, network.middle, network.coarse, nn.AdaptiveAvgPool2d(1))
        width = network.squeeze.in_channels
        data = LaneData(num_train=given.num_train, num_val=given.sequence_length, seed=given.seed)
        quiet_trainer([], max_epochs=3, precision=MIXED).fit(Rotations(trunk, width), data)


class Rotations(pl.LightningModule):
    """A trunk that tells four rotations apart."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk, self.turns = trunk, nn.Linear(width, 4)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy over the turns."""
        images, turns = rotate_quadrants(square(batch[0]))
        return cross_entropy(self.turns(self.trunk(images).flatten(1)), turns)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3)
