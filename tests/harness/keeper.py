"""A module that remembers in every way that users' modules do: nothing of it may change in a quiet run."""

import collections
import copy

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAUROC

from ..boring import Boring, RobustBoring


class AverageMeter:
    """As in a thousand repositories."""

    __slots__ = ("count", "total")

    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, value):
        self.total += value
        self.count += 1


class Keeper(Boring):
    """The classifier of pictures, which gathers, counts and queues at every step, with a momentum teacher."""

    def __init__(self, batch_form="tuple"):
        super().__init__(batch_form)
        self.teacher = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(32, 4))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.losses, self.outputs, self.seen = [], [], set()
        self.counts, self.recent = collections.Counter(), collections.deque(maxlen=5)
        self.meter, self.nested = AverageMeter(), {"a": {"b": [0]}}
        self.unregistered = {"auroc": BinaryAUROC()}
        self.mse = MeanSquaredError()
        self.running, self.histogram = torch.zeros(()), np.zeros(3)
        self.noise = torch.Generator().manual_seed(3)
        self.steps = self.correct = self.total = 0

    def _note(self, logits, labels, loss):
        value = float(loss.detach())
        self.steps += 1
        self.counts["steps"] += 1
        self.meter.update(value)
        self.seen.add(value)
        self.recent.append(value)
        self.running += loss.detach()
        self.histogram[0] += 1
        self.nested["a"]["b"][0] += 1
        self.nested["a"]["b"].append(value)
        torch.rand(1, generator=self.noise)
        self.unregistered["auroc"].update(logits.detach().softmax(1)[:, 0], (labels == 0).long())
        self.mse(logits[:, 0], labels.float())
        start = int(self.pointer)
        self.queue[(start + torch.arange(len(logits))) % 32] = logits.detach()
        self.pointer.fill_((start + len(logits)) % 32)

    def training_step(self, batch, i):
        logits = self(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.log("train/loss", loss)
        self._note(logits, batch[1], loss)
        self.losses.append(loss)
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(0.1)
            self.teacher.bias.data = self.teacher.bias.data * 0.9 + 0.1
        return loss

    def validation_step(self, batch, i):
        logits = self(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.log("val/loss", loss, sync_dist=True)
        right = (logits.argmax(1) == batch[1]).float()
        self.outputs.append(right)
        self.correct += int(right.sum())
        self.total += len(right)
        self._note(logits, batch[1], loss)

    def on_validation_epoch_end(self):
        """The usual way of gathering in Lightning 2; without outputs it fails."""
        self.log("val/acc", torch.cat(self.outputs).mean())
        self.log("val/counted", self.correct / self.total)
        self.outputs.clear()
        self.correct = self.total = 0

    def remembered(self, *, values=True):
        """What it remembers; without the values that depend on its weights, only how much."""
        counts = {
            "losses": len(self.losses),
            "outputs": len(self.outputs),
            "steps": self.steps,
            "counts": dict(self.counts),
            "meter": self.meter.count,
            "nested": (self.nested["a"]["b"][0], len(self.nested["a"]["b"])),
            "recent": len(self.recent),
            "histogram": self.histogram.tolist(),
            "noise": self.noise.get_state().tolist(),
            "pointer": int(self.pointer),
            "teacher": [parameter.tolist() for parameter in self.teacher.parameters()],
            "auroc": (self.unregistered["auroc"].update_count, len(self.unregistered["auroc"].preds)),
            "mse": self.mse.update_count,
        }
        if not values:
            return counts
        return counts | {
            "seen": sorted(self.seen),
            "meter": (self.meter.count, self.meter.total),
            "nested": copy.deepcopy(self.nested),
            "recent": list(self.recent),
            "running": float(self.running),
            "queue": self.queue.tolist(),
            "mse": float(self.mse.sum_squared_error),
            "losses": [float(loss.detach()) for loss in self.losses],
            "statistics": self.net[1].running_mean.tolist(),
        }


class RobustKeeper(RobustBoring, Keeper):
    """The same with every mixin."""
