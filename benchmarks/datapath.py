"""How an attack grows through a classifier of Fashion-MNIST trained plainly and with PGD, and what looking at it costs.

    python benchmarks/datapath.py [--seed 0] [--out runs/datapath]

Both networks are trained by ``lightning-robust`` on 20,000 pictures for four epochs (checkpoints that are there already
are used); then 512 validation pictures are attacked by PGD with 20 steps at eps 0.1. Cost: the callback's defaults
beside an epoch of 55,000 pictures as 50 training steps on the same machine at the same time have it.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from rows import quiet_trainer, run

from lightning_robust import DatapathCallback
from lightning_robust.callbacks.datapath.figure import datapath_figures
from lightning_robust.callbacks.datapath.measure import Datapath
from lightning_robust.callbacks.datapath.report import datapath_tables
from lightning_robust.callbacks.datapath.words import describe_datapath
from lightning_robust.demo.fashion_mnist import FashionMNISTData, RobustImageClassifier
from lightning_robust.harness.checkpoints import read_state

CONFIG = "configs/fashion_mnist.yaml"
FEW = ["--data.num_train=20000", "--trainer.max_epochs=4"]
PGD = ["-c", "configs/techniques/adversarial.yaml", "--adversarial.method=pgd", "--adversarial.steps=5"]
ROWS = {"plain": FEW, "PGD-5": [*FEW, *PGD, "--adversarial.val_eps=[]"]}


class Timed(DatapathCallback):
    """Says how long it takes."""

    def analyze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Datapath]:
        """As the callback does."""
        began = time.perf_counter()
        found = super().analyze(trainer, pl_module)
        self.seconds = time.perf_counter() - began
        return found


def trained(folder: Path, seed: int, arguments: list[str]) -> RobustImageClassifier:
    """The network of a row, from its checkpoint if there is one."""
    if not list(folder.rglob("best.ckpt")):
        run("fit", CONFIG, seed, folder, *arguments)
    module = RobustImageClassifier()
    module.load_state_dict(read_state(str(next(folder.rglob("best.ckpt")))))
    return module


def look(module: RobustImageClassifier, **settings: object) -> Timed:
    """Measure on the validation pictures."""
    datapath = Timed(**({"eps": 0.1, "on_failure": "raise"} | settings))
    quiet_trainer([datapath]).validate(module, FashionMNISTData(), verbose=False)
    return datapath


def epoch_seconds() -> float:
    """Of 55,000 pictures, from 50 steps after 10 that warm up."""
    stamps: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            stamps.append(time.perf_counter())

    trainer = quiet_trainer([Clock()], max_steps=60, limit_val_batches=0)
    trainer.fit(RobustImageClassifier(), FashionMNISTData())
    return (stamps[59] - stamps[9]) / 50 * (55_000 // 128)


def main() -> None:
    """Train what is missing, print the tables, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/datapath"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, arguments in ROWS.items():
        module = trained(given.out / name, given.seed, arguments)
        torch.manual_seed(given.seed)
        datapath = look(module, under=["pgd", "fp16"], steps=20, num_samples=512, num_paths=256)
        for found in datapath.datapaths:
            print(f"\n{name}. {describe_datapath(found)}")
            for columns, rows in datapath_tables(found).values():
                print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
                print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)
            for end, draw in datapath_figures(found).items():
                draw().savefig(given.out / f"{name}-{found.condition}-{end}.png", dpi=120)
    epoch = epoch_seconds()
    for text, settings in (("defaults", {}), ("without critical channels", {"num_paths": 0})):
        seconds = look(module, **settings).seconds
        print(f"{text}: {seconds:.2f} s, {seconds / epoch:.1%} of an epoch of {epoch:.1f} s")


if __name__ == "__main__":
    main()
