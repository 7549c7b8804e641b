"""A tiny LightningModule with everything that techniques trip over: BatchNorm, Dropout, any batch form."""

import multiprocessing
import os
from collections import namedtuple
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from lightning.fabric.strategies.launchers.multiprocessing import _disable_module_memory_sharing
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _GlobalStateSnapshot, _MultiProcessingLauncher
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from lightning_robust import PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin
from lightning_robust.harness.batches import count_samples

Pair = namedtuple("Pair", "image label")
BATCH_FORMS = {
    "tuple": (0, 1),
    "list": (0, 1),
    "dict": ("image", "label"),
    "namedtuple": (0, 1),
    "dataclass": (0, 1),
    "object": ("image", "label"),
}


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


class Frame:
    """A batch of a class of its own, which Lightning moves by its method ``to``."""

    def __init__(self, image, label):
        self.image, self.label = image, label

    def to(self, *args, **kwargs):
        return Frame(self.image.to(*args, **kwargs), self.label.to(*args, **kwargs))


def make_batch(form, images, labels):
    return {
        "tuple": lambda: (images, labels),
        "list": lambda: [images, labels],
        "dict": lambda: {"image": images, "label": labels},
        "namedtuple": lambda: Pair(images, labels),
        "dataclass": lambda: Sample(images, labels),
        "object": lambda: Frame(images, labels),
    }[form]()


class Pictures(Dataset):
    """64 random pictures of four classes; class k is brighter in quadrant k."""

    def __init__(self, count=64, size=8):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % 4
        self.images = torch.rand(count, 3, size, size, generator=generator) * 0.5
        half = size // 2
        for index, label in enumerate(self.labels.tolist()):
            row, column = divmod(label, 2)
            self.images[index, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.5

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Boring(pl.LightningModule):
    """A classifier of 8 x 8 pictures."""

    def __init__(self, batch_form="tuple", lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(256, 4),
        )

    def forward(self, images):
        return self.net(images)

    def _loss(self, batch):
        form = self.hparams.batch_form
        if form == "dict":
            images, labels = batch["image"], batch["label"]
        elif form in ("dataclass", "object"):
            images, labels = batch.image, batch.label
        else:
            images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def training_step(self, batch, batch_idx):
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=count_samples(batch))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self._loss(batch), sync_dist=True, batch_size=count_samples(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)

    def _loader(self, pictures):
        form = self.hparams.batch_form

        def collate(samples):
            images, labels = zip(*samples, strict=True)
            return make_batch(form, torch.stack(images), torch.stack(labels))

        return DataLoader(pictures, 16, collate_fn=collate)

    def train_dataloader(self):
        """Four equal batches, so that a loader that cannot be resumed inside an epoch does no harm."""
        return self._loader(ConcatDataset([Pictures(16)] * 4))

    def val_dataloader(self):
        return self._loader(Pictures())


class Manual(Boring):
    """Optimises by itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self._loss(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class ManualWithLoss(Manual):
    """Optimises by itself, and has a loss beside that."""

    def attack_loss(self, batch):
        return self._loss(batch)


class OnlyInSteps(Boring):
    """Its forward pass fails outside of its own steps, so that BatchNorm cannot be refreshed."""

    inside = False

    def forward(self, images):
        if not self.inside:
            raise RuntimeError("a forward pass outside of a step")
        return super().forward(images)

    def _loss(self, batch):
        self.inside = True
        try:
            return super()._loss(batch)
        finally:
            self.inside = False


class RobustBoring(PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin, Boring):
    """Every mixin; a quarter of the pictures comes without a label where one needs that."""

    def features(self, images):
        return self.net[:4](images)

    def train_dataloader(self):
        loader = super().train_dataloader()
        if self.uat_ot_weight + self.uat_ft_weight > 0:
            for pictures in loader.dataset.datasets:
                pictures.labels = torch.where(torch.arange(16) % 4 < 3, pictures.labels, -1)
        return loader


def make_trainer(folder, callbacks=(), **settings):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | settings))


def quick_context():
    """Processes that begin as spawned ones do, but from a server that has imported torch and the library once."""
    multiprocessing.set_forkserver_preload([__name__, "lightning_robust.cli"])
    return multiprocessing.get_context("forkserver")


class _Forked(_MultiProcessingLauncher):
    """Starts processes by :func:`quick_context`.

    What "forkserver" leaves out is done here: the environment and the generators are the parent's at the launch, and
    the weights of the ranks are not one piece of memory.
    """

    def __init__(self, strategy):
        super().__init__(strategy, start_method=quick_context().get_start_method())

    def launch(self, *args, **settings):
        self.environment, self.states = dict(os.environ), _GlobalStateSnapshot.capture()
        return super().launch(*args, **settings)

    def _wrapping_function(self, process_idx, trainer, function, args, kwargs, return_queue):
        os.environ.clear()
        os.environ.update(self.environment)
        args, kwargs = _disable_module_memory_sharing((args, kwargs))
        super()._wrapping_function(process_idx, trainer, function, args, kwargs, return_queue, self.states)


class TwoProcesses(DDPStrategy):
    """Processes that leave their group together: gloo's threads abort one that ends after its peer is gone."""

    def __init__(self, **settings):
        super().__init__(start_method="forkserver", **settings)

    def _configure_launcher(self):
        self._launcher = _Forked(self)

    def teardown(self):
        super().teardown()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
