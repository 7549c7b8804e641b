"""Several processes: torchrun --nproc_per_node=2 several_processes.py."""

import os

import lightning.pytorch as pl
from steering import Frames, Steering

from lightning_robust import SWACallback

if __name__ == "__main__":
    pl.seed_everything(0)
    processes, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    swa = SWACallback(start=1)
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[swa], accelerator="cpu", strategy="ddp", devices=processes, num_nodes=nodes
    )
    module = Steering()
    trainer.fit(module, Frames())
    print(f"rank {trainer.global_rank}: {sum(weight.double().sum().item() for weight in module.parameters()):.12f}")
