"""Layer criticality: the paper's findings on a small network; and, as a part of ``speed.py``, what it costs.

    python benchmarks/criticality.py [--seeds 0 1 2] [--figure benchmarks/layer_criticality.png] [--root mnist]
    python benchmarks/criticality.py --speed

:func:`speed` measures the map of the demo's classifier (5,000 held-out pictures of Fashion-MNIST) and of a ResNet-18
(512 random pictures of 32 x 32) by validation accuracy, every cell in full and with cells that stop once they are
settled (``value_range``). The command trains a fully connected network with three hidden layers of 256 units on
Fashion-MNIST and prints what each layer minds. ``--root`` names a folder with other files of that format, such as
MNIST's digits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from models import FullyConnected, ResNet18
from rows import quiet, quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import LayerCriticalityCallback
from lightning_robust.callbacks.layer_criticality.figure import criticality_figures
from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap
from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier


class Twice(pl.Callback):
    """Measures the map when training has ended, in full and settled; for both, the time."""

    def __init__(self, criticality: LayerCriticalityCallback) -> None:
        self.criticality = criticality
        self.maps: list[CriticalityMap] = []
        self.seconds: list[float] = []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure with and without a range of values."""
        for span in (None, [0.0, 1.0]):
            self.criticality.value_range = span
            began = time.process_time()
            self.maps += self.criticality.analyze(trainer, pl_module)
            self.seconds.append(time.process_time() - began)


def compare(name: str, module: pl.LightningModule, **fit: Any) -> None:
    """Both ways, as a line of a table."""
    criticality = LayerCriticalityCallback("val/acc", "max", checkpoints=[1], on_failure="raise")
    criticality.on_train_end = lambda *_: None  # type: ignore[method-assign]
    twice = Twice(criticality)
    quiet_trainer([criticality, twice], max_epochs=2).fit(module, **fit)
    (full, settled), (whole, part) = twice.maps, twice.seconds
    pairs = list(zip([*full.rows, full.whole], [*settled.rows, settled.whole], strict=True))
    seen = [cell.seen for _, row in pairs for cell in (*row.cells[:-1], *row.random)]
    same = sum(one.verdict == other.verdict for one, other in pairs)
    print(
        f"| {name} | {len(full.rows)} | {full.evaluations} | {whole:.1f} | {1000 * whole / full.evaluations:.0f} | "
        f"{part:.1f} | {1000 * part / full.evaluations:.0f} | {whole / part:.1f} x | {statistics.mean(seen):.0%} | "
        f"{same} of {len(pairs)} |",
        flush=True,
    )


def speed() -> None:
    """The table of costs."""
    heads = ("network", "layers", "evaluated", "in full, s", "a cell, ms", "settled, s", "a cell, ms", "ratio", "read")
    print(f"\nLayer criticality\n\n| {' | '.join(heads)} | same verdicts |\n|{' --- |' * (len(heads) + 1)}")
    pl.seed_everything(0)
    compare("demo classifier", ImageClassifier(), datamodule=FashionMNISTData(num_train=2000))
    pl.seed_everything(0)
    pictures = TensorDataset(torch.rand(512, 3, 32, 32), torch.randint(10, (512,)))
    loaders = {"train_dataloaders": DataLoader(pictures, 32), "val_dataloaders": DataLoader(pictures, 16)}
    compare("ResNet-18", ResNet18(), **loaders)


def findings(seeds: list[int], figure: Path | None, root: str | None) -> None:
    """The table of findings: medians over seeds of accuracies in per cent."""
    maps = []
    for seed in seeds:
        pl.seed_everything(seed)
        criticality = LayerCriticalityCallback("val/acc", "max", draws=5, on_failure="raise")
        trainer = quiet_trainer([criticality], max_epochs=20)
        trainer.fit(FullyConnected(), datamodule=FashionMNISTData(root, flip=False))
        maps += criticality.maps
        if figure is not None and seed == seeds[0]:
            for tag, draw in criticality_figures(criticality.maps).items():
                draw().savefig(figure.with_stem(f"{figure.stem}-{tag.partition('/')[2]}"), dpi=120)
    print("| layer | random | " + " | ".join(maps[0].labels) + " | verdict | 2-norm distance | max-norm |")
    print("| --- |" + " --- |" * (len(maps[0].labels) + 4))
    for index in range(len(maps[0].rows) + 1):
        print("| " + " | ".join(_line(maps, index)) + " |")


def _line(maps: list[CriticalityMap], index: int) -> list[str]:
    rows = [(*found.rows, found.whole)[index] for found in maps]
    columns = [
        [row.randomised.value for row in rows],
        *zip(*[[c.value for c in row.cells] for row in rows], strict=True),
    ]
    verdicts = sorted({row.verdict for row in rows}) if index < len(maps[0].rows) else []
    return [
        rows[0].name,
        *(_percent(list(values)) for values in columns),
        ", ".join(verdicts),
        f"{statistics.median(row.l2[-1] for row in rows):.3g}",
        f"{statistics.median(row.linf[-1] for row in rows):.3g}",
    ]


def _percent(values: list[float]) -> str:
    return f"{100 * statistics.median(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--root")
    parser.add_argument("--speed", action="store_true", help="only what it costs")
    given = parser.parse_args()
    quiet()
    if given.speed:
        speed()
        return
    findings(given.seeds, given.figure, given.root)


if __name__ == "__main__":
    main()
