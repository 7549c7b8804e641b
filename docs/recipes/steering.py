"""A module and its data, which the recipes train."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Steering(pl.LightningModule):
    """An angle of each frame."""

    def __init__(self, rate: float = 1e-3) -> None:
        super().__init__()
        self.rate = rate
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Frames ``(N, 3, 32, 32)`` to ``(N,)``."""
        return self.net(image)[:, 0]

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """In degrees."""
        return {"steering_deg": 57.3 * outputs}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The squared error."""
        return nn.functional.mse_loss(self(batch["image"]), batch["angle"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same, logged."""
        self.log("val_loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.rate)


class Frames(pl.LightningDataModule):
    """Frames of noise."""

    def train_dataloader(self) -> DataLoader:
        """Four batches."""
        draw = torch.Generator().manual_seed(0)
        frames = [{"image": torch.rand(3, 32, 32, generator=draw), "angle": torch.tensor(0.1 * i)} for i in range(64)]
        return DataLoader(frames, batch_size=16)

    val_dataloader = train_dataloader
