"""The network that theorems on lazy training are about, and pictures of length 1 for it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_robust.demo.fashion_mnist.data import Batch, FashionMNISTData


class TwoLayerClassifier(pl.LightningModule):
    r"""Rectifiers under a layer of random signs that stay, without biases, trained by SGD.

    .. math:: f(x) = m^{-p} \sum_{s=1}^{m} a_s \max(0, w_s \cdot x), \quad w_s \sim N(0, 1), \quad a_s = \pm 1

    p = 1/2 is lazy for large m; p = 1 is the mean-field scaling, which is not ("Adversarial robustness is at odds with
    lazy training", Wang et al., 2022; there with one output, here with one for each class).

    Args:
        width: m.
        power: p.
        learning_rate: At p = 1/2; others take :math:`m^{2p - 1}` times it, which moves outputs as fast.
        classes: Number of classes.

    Example:
        >>> TwoLayerClassifier(64)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int, power: float = 0.5, learning_rate: float = 4.0, classes: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hidden = nn.Linear(28 * 28, width, bias=False)
        nn.init.normal_(self.hidden.weight)
        self.register_buffer("signs", torch.randint(2, (classes, width)) * 2.0 - 1)
        self.scale = width**-power
        self.learning_rate = learning_rate * width ** (2 * power - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, 1, 28, 28)`` to logits ``(N, classes)``."""
        return self.scale * self.hidden(images.flatten(1)).relu() @ self.signs.T

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/acc``."""
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD at a constant rate."""
        return torch.optim.SGD(self.parameters(), self.learning_rate)


class UnitFashionMNISTData(FashionMNISTData):
    """Pictures ``(N, 1, 28, 28)`` of length 1, not flipped, with ``(N,)`` labels; held-out ones by the thousand.

    Args:
        root: See :class:`FashionMNISTData`.
        batch_size: Pictures in a batch.
        num_train: Number of training pictures, the first ones of the files; all if None.
    """

    def __init__(self, root: str | None = None, *, batch_size: int = 128, num_train: int | None = None) -> None:
        super().__init__(
            root,
            batch_size=batch_size,
            eval_batch_size=1000,
            num_train=num_train,
            flip=False,
            mean=(0.0,),
            std=(1.0,),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to floats of length 1."""
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        return nn.functional.normalize(images.flatten(1)).reshape(images.shape), labels
