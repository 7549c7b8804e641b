"""What a parity pass costs beside the training between two of them, on the lane demo with its own settings.

    python benchmarks/parity_cost.py [--epochs 3] [--num_train 6000]

Prints the median and the spread over the epochs of one run; the ratio is what counts, seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import lightning.pytorch as pl

from lightning_robust import DeploymentParityCallback
from lightning_robust.demo.lanes import LaneData, LaneDetector


class Timed(DeploymentParityCallback):
    """Counts the seconds of each pass, the figure and the tables included."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.passes: list[float] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The pass."""
        start = time.perf_counter()
        super().on_validation_epoch_end(trainer, pl_module)
        self.passes.append(time.perf_counter() - start)


class Epochs(pl.Callback):
    """Counts the seconds of each training epoch without its validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--num_train", type=int, default=6000)
    arguments = parser.parse_args()
    pl.seed_everything(0)
    parity, epochs = Timed(), Epochs()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=arguments.epochs,
        callbacks=[parity, epochs],
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir="runs",
    )
    trainer.fit(LaneDetector(), datamodule=LaneData(num_train=arguments.num_train))
    for name, values in (("training epoch", epochs.seconds), ("parity pass", parity.passes)):
        print(f"{name:15s} median {statistics.median(values):6.2f} s   {min(values):.2f} to {max(values):.2f} s")
    ratios = [spent / epoch for spent, epoch in zip(parity.passes, epochs.seconds, strict=True)]
    print(f"{'ratio':15s} median {statistics.median(ratios):6.1%}     {min(ratios):.1%} to {max(ratios):.1%}")


if __name__ == "__main__":
    main()
