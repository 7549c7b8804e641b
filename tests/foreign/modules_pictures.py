"""Modules on pictures as users write them: gathered outputs, metrics, a queue and a teacher, two inputs, U-Net, GAN."""

import copy

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from .guest import Guest, encoder, loaders, picture


class Gathering(pl.LightningModule):
    """The idiom of Lightning 2: outputs in lists, emptied at the epoch's end."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.net = nn.Sequential(encoder(), nn.Linear(4, 3))
        self.training_step_outputs = []
        self.validation_step_outputs = []
        self.seen = 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.training_step_outputs.append(loss)
        self.seen += len(x)
        return loss

    def on_train_epoch_end(self):
        assert len(self.training_step_outputs) == self.trainer.global_step - 2 * self.current_epoch
        self.log("training_epoch_average", torch.stack(self.training_step_outputs).mean())
        self.training_step_outputs.clear()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.validation_step_outputs.append((logits, y))
        return logits

    def on_validation_epoch_end(self):
        logits, y = (torch.cat(part) for part in zip(*self.validation_step_outputs, strict=True))
        self.log("val_loss", cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())
        self.validation_step_outputs.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class Measuring(pl.LightningModule):
    """As torchmetrics' page on Lightning: a collection for each stage, and a mean of the loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.backbone = encoder(batchnorm=False)
        self.head = nn.Linear(4, 3)
        metrics = MetricCollection({"acc": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)})
        self.train_metrics = metrics.clone(prefix="train_")
        self.valid_metrics = metrics.clone(prefix="val_")
        self.mean_loss = MeanMetric()

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log_dict(self.train_metrics(logits, y))
        return cross_entropy(logits, y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.valid_metrics.update(logits, y)
        self.mean_loss.update(cross_entropy(logits, y), weight=len(x))

    def on_validation_epoch_end(self):
        self.log_dict(self.valid_metrics.compute())
        self.valid_metrics.reset()
        self.log("val_loss", self.mean_loss.compute())
        self.mean_loss.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class Queueing(pl.LightningModule):
    """MoCo in small: a momentum teacher moved and a queue filled in the training step."""

    def __init__(self, size=16, momentum=0.9, temperature=0.2):
        super().__init__()
        self.encoder_q = encoder()
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad = False
        self.momentum, self.temperature, self.size = momentum, temperature, size
        self.register_buffer("queue", nn.functional.normalize(torch.randn(4, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update(self):
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = k.data * self.momentum + q.data * (1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys):
        place = int(self.queue_ptr)
        self.queue[:, place : place + len(keys)] = keys.T
        self.queue_ptr[0] = (place + len(keys)) % self.size

    def forward(self, img_q, img_k):
        q = nn.functional.normalize(self.encoder_q(img_q), dim=1)
        with torch.no_grad():
            k = nn.functional.normalize(self.encoder_k(img_k), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        return torch.cat([positive, q @ self.queue.clone()], 1) / self.temperature, k

    def training_step(self, batch, batch_idx):
        self._momentum_update()
        logits, keys = self(img_q=batch[0], img_k=batch[1])
        self._enqueue(keys)
        return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    def validation_step(self, batch, batch_idx):
        logits, _ = self(img_q=batch[0], img_k=batch[1])
        self.log("val_loss", cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.encoder_q.parameters(), 0.05)


class WithMetadata(pl.LightningModule):
    """A picture and a vector of metadata, in a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.backbone, self.head = encoder(), nn.Linear(6, 3)

    def forward(self, image, metadata):
        return self.head(torch.cat([self.backbone(image), metadata], 1))

    def training_step(self, batch, _):
        return cross_entropy(self(batch["image"], batch["metadata"]), batch["target"])

    def validation_step(self, batch, _):
        logits = self(batch["image"], batch["metadata"])
        self.log("val_loss", cross_entropy(logits, batch["target"]))
        self.log("val_acc", (logits.argmax(1) == batch["target"]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class UNet(pl.LightningModule):
    """Segmentation by hand: one level down, one up, joined."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.bottom(skip))], 1))

    def training_step(self, batch, batch_idx):
        images, masks = batch
        return {"loss": cross_entropy(self(images), masks)}

    def validation_step(self, batch, batch_idx):
        images, masks = batch
        logits = self(images)
        self.log_dict({"val_loss": cross_entropy(logits, masks), "val_acc": (logits.argmax(1) == masks).float().mean()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class Gan(pl.LightningModule):
    """As Lightning's GAN example: manual optimisation, two optimizers, ``forward`` takes noise."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(4, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 192),
            nn.Sigmoid(),
            nn.Unflatten(1, (3, 8, 8)),
        )
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, y_hat, real):
        return binary_cross_entropy_with_logits(y_hat, torch.full_like(y_hat, float(real)))

    def attack_loss(self, batch):
        return self.adversarial_loss(self.discriminator(batch[0]), real=True)

    def training_step(self, batch):
        imgs, _ = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(imgs.shape[0], 4).type_as(imgs)
        self.toggle_optimizer(optimizer_g)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), real=True)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)
        self.toggle_optimizer(optimizer_d)
        real = self.adversarial_loss(self.discriminator(imgs), real=True)
        fake = self.adversarial_loss(self.discriminator(self(z).detach()), real=False)
        self.log("d_loss", (real + fake) / 2, prog_bar=True)
        self.manual_backward((real + fake) / 2)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def validation_step(self, batch):
        self.log("val_loss", self.adversarial_loss(self.discriminator(batch[0]), real=True))

    def configure_optimizers(self):
        return (
            [
                torch.optim.Adam(self.generator.parameters(), 0.01),
                torch.optim.Adam(self.discriminator.parameters(), 0.01),
            ],
            [],
        )


def small(generator, index):
    return picture(generator, index, size=8)


def views(generator, index):
    image, _ = picture(generator, index, size=8)
    return image, (image + 0.05).clamp(0, 1)


def with_metadata(generator, index):
    image, label = small(generator, index)
    return {"image": image, "metadata": torch.randn(2, generator=generator), "target": label}


def masks(generator, index):
    image, _ = small(generator, index)
    return image, (image.mean(0) * 3).long().clamp(0, 2)


GUESTS = [
    Guest("gathering", lambda: (Gathering(), *loaders(small)), classes=1, features="net.0", host=Gathering),
    Guest("measuring", lambda: (Measuring(), *loaders(small)), classes=1, features="backbone", host=Measuring),
    Guest("queueing", lambda: (Queueing(), *loaders(views)), forward=lambda m, b: m(b[0], b[1])),
    Guest(
        "metadata",
        lambda: (WithMetadata(), *loaders(with_metadata)),
        inputs=("image",),
        forward=lambda m, b: m(b["image"], b["metadata"]),
        classes="target",
        features="backbone",
        host=WithMetadata,
    ),
    Guest("unet", lambda: (UNet(), *loaders(masks)), classes=1, features="bottom", host=UNet),
    Guest("gan", lambda: (Gan(), *loaders(small))),
]
