"""Modules whose weights come into being late, and one with a low-rank adapter."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def late(base, hook, *args):
    """A module of a class that makes its weight in ``setup`` or ``configure_model``."""

    def build(self, stage=None):
        if not hasattr(self, "w"):
            self.w = self.w_made_late

    class Late(base):
        def __init__(self, *args):
            super().__init__(*args)
            object.__setattr__(self, "w_made_late", self.w)
            del self.w

    setattr(Late, hook, build)
    return Late(*args)


class LazyScalar(pl.LightningModule):
    """One weight, made in the first pass, that each step moves by 1."""

    def __init__(self):
        super().__init__()
        self.net = nn.LazyLinear(1, bias=False)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return -self(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", -self(batch).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1.0)

    def train_dataloader(self):
        return DataLoader(torch.ones(1, 1))

    val_dataloader = train_dataloader


class Adapted(pl.LightningModule):
    """A regression by a linear layer under peft's LoRA."""

    def __init__(self, **settings):
        super().__init__()
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        settings = {"r": 2, "target_modules": ["0"]} | settings
        self.net = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), peft.LoraConfig(**settings))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(64, size, generator=generator) for size in (6, 5)]
        return DataLoader(TensorDataset(*tensors), 16)

    val_dataloader = train_dataloader

    def update(self):
        """The product of the factors."""
        layer = self.net.base_model.model[0]
        return layer.get_delta_weight("default").detach().clone()
