"""Networks of other people's tables, for benchmarks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_robust import RegMixupMixin, RotationSSLMixin, UATMixin
from lightning_robust.demo.fashion_mnist import ImageClassifier
from lightning_robust.functional.mixing import regmixup_batch


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


class RobustFastNet(RegMixupMixin, RotationSSLMixin, UATMixin, FastNet):
    """The same with every mixin."""


class Mixup(ImageClassifier):
    """Trained on mixtures alone (Zhang et al. 2017), with shares from Beta(1, 1)."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one mixture of the batch."""
        mixed, labels, others, share = regmixup_batch(*batch, 1.0)
        logits = self(mixed)
        loss: Tensor = share * self.loss(logits, labels) + (1 - share) * self.loss(logits, others)
        return loss
