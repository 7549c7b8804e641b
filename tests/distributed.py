"""What distributed runs load: a module without randomness, and a callback that keeps what each rank ends with."""

import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Deterministic(pl.LightningModule):
    """Regression on 64 fixed samples; the loss is a mean, so that two ranks with 32 each average to one with all."""

    def __init__(self, batch_size: int = 64):
        super().__init__()
        self.batch_size = batch_size
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.log("train/loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val/loss", nn.functional.mse_loss(self.net(inputs), targets), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.02)

    def _loader(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(64, 5, generator=generator)
        return DataLoader(TensorDataset(inputs, inputs.pow(2).sum(1, keepdim=True)), self.batch_size, shuffle=False)

    train_dataloader = val_dataloader = _loader


class KeepWeights(pl.Callback):
    """Each rank writes what it holds after the fit: ``rank0.pt``, ``rank1.pt``."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def teardown(self, trainer, pl_module, stage):
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")


class Fragile(Deterministic):
    """Kills its own process like the kernel does when memory runs out, as its second epoch begins.

    Notes the epochs that it begins in ``epochs.txt``, in the folder that it runs in.
    """

    def __init__(self, dies: str = "never", lr: float = 0.02):
        super().__init__()
        self.dies, self.lr = dies, lr

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)

    def on_train_epoch_start(self):
        log = Path("epochs.txt")
        begun = log.read_text().split() if log.exists() else []
        log.write_text(" ".join([*begun, str(self.current_epoch)]))
        if self.current_epoch == 1 and (self.dies == "always" or (self.dies == "once" and "1" not in begun)):
            os.kill(os.getpid(), signal.SIGKILL)
