"""What a parity pass costs beside the training between two of them, on the lane demo, as a part of ``speed.py``.

Asked for: a pass takes at most 5 % of the epochs between two, and 2.5 times its own forward passes; the first excepted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_robust import DeploymentParityCallback
from lightning_robust.demo.lanes import LaneData, LaneDetector


class Timed(DeploymentParityCallback):
    """Counts the seconds of each pass, the figure and the tables included, and of the closer look after the fit."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.passes: list[float] = []
        self.closing = 0.0

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The pass."""
        start = time.process_time()
        super().on_validation_epoch_end(trainer, pl_module)
        self.passes.append(time.process_time() - start)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The closer look."""
        start = time.process_time()
        super().on_fit_end(trainer, pl_module)
        self.closing = time.process_time() - start


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
    """Train as `make demo` does, and print the table."""
    pl.seed_everything(0)
    passes, trained = Timed(), Epochs()
    folder = tempfile.mkdtemp()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[passes, trained],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=TensorBoardLogger(folder),
        max_epochs=epochs,
        num_sanity_val_steps=0,
    )
    trainer.fit(LaneDetector(), datamodule=LaneData())
    own = _forward_passes(passes)
    later, between = passes.passes[1:], trained.seconds[1:]
    print(f"\nParity pass, lanes, {epochs} epochs of {trainer.datamodule.num_train} pictures\n")
    print("| | s | x epoch | x own forward passes |\n| --- | --- | --- | --- |")
    print(f"| training epoch | {_middle(between)} | | |")
    shares = [spent / epoch for spent, epoch in zip(later, between, strict=True)]
    print(f"| parity pass | {_middle(later)} | {_middle(shares)} | {_middle([spent / own for spent in later])} |")
    print(f"| its own forward passes | {own:.2f} | {own / statistics.median(between):.3f} | |")
    print(f"| the first pass | {passes.passes[0]:.2f} | | |\n| after the fit | {passes.closing:.2f} | | |")


def _middle(values: Sequence[float]) -> str:
    """The median, and the smallest to the largest."""
    digits = 3 if max(values) < 1 else 2
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def _forward_passes(passes: Timed) -> float:
    """Seconds of the limit: a forward pass of the samples for the reference, each target and each perturbation."""
    report = passes.report
    pictures = torch.rand(min(passes.pass_samples, report.samples), 3, 144, 256)
    model = LaneDetector().eval()
    count = 1 + sum(target.status == "measured" for target in report.targets.values()) + len(report.sensitivity)
    seconds = []
    with torch.no_grad():
        model(pictures)
        for _ in range(5):
            start = time.process_time()
            for _ in range(count):
                model(pictures)
            seconds.append(time.process_time() - start)
    return statistics.median(seconds)
