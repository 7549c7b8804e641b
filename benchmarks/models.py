"""Networks of other people's tables, for benchmarks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_robust.demo.fashion_mnist import ImageClassifier


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
