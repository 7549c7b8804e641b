"""What a parity pass costs beside the training between two of them, on the lane demo, as a part of ``speed.py``."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
from rows import quiet_trainer

from lightning_robust import DeploymentParityCallback
from lightning_robust.demo.lanes import LaneData, LaneDetector


class Timed(DeploymentParityCallback):
    """Counts the seconds of each pass, the figure and the tables included."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.passes: list[float] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The pass."""
        start = time.process_time()
        super().on_validation_epoch_end(trainer, pl_module)
        self.passes.append(time.process_time() - start)


class Epochs(pl.Callback):
    """Counts the seconds of each training epoch without its validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.seconds.append(time.process_time() - self._start)


def parity(epochs: int = 4) -> None:
    """Train, and print the table."""
    pl.seed_everything(0)
    passes, trained = Timed(), Epochs()
    trainer = quiet_trainer([passes, trained], max_epochs=epochs, num_sanity_val_steps=0)
    trainer.fit(LaneDetector(), datamodule=LaneData(num_train=3000))
    limit = len(trained.seconds) * [_forward_passes(passes)]
    # the first pass imports
    rows = {"training epoch": trained.seconds[1:], "parity pass": passes.passes[1:], "its forward passes": limit[1:]}
    print("\nParity pass, lanes, 3,000 pictures\n\n| | s | x epoch |\n| --- | --- | --- |")
    for name, values in rows.items():
        shares = [value / epoch for value, epoch in zip(values, rows["training epoch"], strict=True)]
        spread = f"{min(shares):.3f} to {max(shares):.3f}"
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(shares):.3f} ({spread}) |")


def _forward_passes(passes: Timed) -> float:
    """Seconds of the limit: a forward pass of the samples for the reference, each target and each perturbation."""
    report = passes.report
    pictures = torch.rand(report.samples, 3, 144, 256)
    model = LaneDetector().eval()
    count = 1 + sum(target.status == "measured" for target in report.targets.values()) + len(report.sensitivity)
    with torch.no_grad():
        model(pictures)
        start = time.process_time()
        for _ in range(count):
            model(pictures)
    return time.process_time() - start
