"""What distributed runs load: a module without randomness, and a callback that keeps what each rank ends with."""

import faulthandler
import os
import signal
import socket
import traceback
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader, TensorDataset

from tests.boring import quick_context


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


class Sharded(pl.LightningModule):
    """A classifier whose layers FSDP2 shards where there are several ranks; their sizes fit no number of them."""

    def __init__(self, lr: float = 0.1, *, batchnorm: bool = True):
        super().__init__()
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(7)] if batchnorm else []
        self.net = nn.Sequential(nn.Linear(5, 7), *middle, nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))
        self.lr = lr

    def configure_model(self):
        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[0], mesh=mesh)
            # with the layers that are left, whose weights FSDP2 keeps whole after a validation
            fully_shard(self.net, mesh=mesh)

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)

    def train_dataloader(self):
        """48 samples in two steps; ranks take every second or third, so that their mean is that of all."""
        generator = torch.Generator().manual_seed(1)
        inputs, labels = torch.randn(48, 5, generator=generator), torch.randint(0, 3, (48,), generator=generator)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(TensorDataset(inputs[rank::world], labels[rank::world]), 24 // world)

    val_dataloader = train_dataloader


def _on_rank(rank: int, world: int, port: int, folder: str, work, args) -> None:
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in given.items()})
    os.environ.pop("PL_GLOBAL_SEED", None)  # of another test, by which Lightning would seed anew
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(100)  # where it hangs, if it does
    try:
        result = work(*args)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    faulthandler.cancel_dump_traceback_later()
    torch.save(result, Path(folder) / f"result{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_ranks(world: int, folder: Path, work, *args, dies: int | None = None) -> list:
    """What a function returns on each of several ranks that find each other over gloo; errors as text.

    One of them may be said to be killed; it returns nothing.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = quick_context()
    ranks = [
        context.Process(target=_on_rank, args=(rank, world, port, str(folder), work, args)) for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        if rank.is_alive():
            rank.kill()
    codes = [rank.exitcode for rank in ranks]
    assert codes == [-signal.SIGKILL if rank == dies else 0 for rank in range(world)], f"the ranks ended with {codes}"
    results = (folder / f"result{rank}.pt" for rank in range(world))
    return [torch.load(file, weights_only=False) if file.exists() else None for file in results]
