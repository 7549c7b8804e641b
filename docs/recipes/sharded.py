"""Sharded weights: torchrun --nproc_per_node=2 sharded.py."""

import os

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from steering import Frames, Steering
from torch.distributed.fsdp import fully_shard

from lightning_robust import SWACallback, load_averaged


class ShardedSteering(Steering):
    """The same module; each rank holds a part of every weight."""

    def configure_model(self) -> None:
        """Shard, once the strategy has arranged the ranks."""
        if self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


if __name__ == "__main__":
    pl.seed_everything(0)
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    strategy = ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    swa = SWACallback(start=1)
    trainer = pl.Trainer(max_epochs=2, callbacks=[swa], accelerator="cpu", strategy=strategy, devices=processes)
    trainer.fit(ShardedSteering(), Frames())
    trainer.save_checkpoint("runs/sharded.ckpt")
    if trainer.is_global_zero:
        average = load_averaged("runs/sharded.ckpt")
        print(f"average: {sum(weight.double().sum().item() for weight in average.values()):.12f}")
