"""Modules that come with Lightning, and steps with signatures that it takes."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel, RandomDataset
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import nn
from torch.utils.data import DataLoader

from .guest import BATCH, TRAIN, VAL, Guest, loaders


class Boring(BoringModel):
    """BoringModel as users extend it; its batch is a tensor."""

    def validation_step(self, batch, i):
        output = super().validation_step(batch, i)
        self.log("val_loss", output["x"])
        return output


class Demo(DemoModel):
    """DemoModel with a validation."""

    def validation_step(self, *args):
        self.log("val_loss", self(args[0]).square().mean())


class OddSteps(pl.LightningModule):
    """Steps without an index or with another name for it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, vector):
        return self.net(vector)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, i):
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())
        self.index = i

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Words(LightningTransformer):
    """Lightning's own language model in small, with a validation and without a download."""

    def __init__(self):
        pl.LightningModule.__init__(self)
        self.model = Transformer(vocab_size=20, ninp=8, nhead=2, nhid=8, nlayers=1)

    def prepare_data(self):
        pass

    def validation_step(self, batch, batch_idx):
        inputs, target = batch
        self.log("val_loss", nn.functional.nll_loss(self(inputs, target), target.view(-1)))


def vectors():
    return DataLoader(RandomDataset(32, TRAIN), BATCH), DataLoader(RandomDataset(32, VAL), BATCH)


def labelled(generator, index):
    return torch.randn(8, generator=generator) + index % 3, torch.tensor(index % 3)


def sentence(generator, index):
    words = torch.randint(20, (6,), generator=generator)
    return words[:-1], words[1:]


GUESTS = [
    Guest("boring", lambda: (Boring(), *vectors()), "numbers", ("",)),
    Guest("demo", lambda: (Demo(out_dim=4), *vectors()), "numbers", ("",)),
    Guest("odd_steps", lambda: (OddSteps(), *loaders(labelled)), "numbers", (0,), classes=1),
    Guest(
        "words",
        lambda: (Words(), *loaders(sentence)),
        "tokens",
        (),
        embedding="model.embedding",
        forward=lambda m, b: m(b[0], b[1]),
    ),
]
