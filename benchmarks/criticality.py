"""Layer criticality: the paper's findings on a small network; and, as a part of ``speed.py``, what it costs.

    python benchmarks/criticality.py [--seeds 0 1 2] [--figure benchmarks/layer_criticality.png] [--root mnist]

:func:`speed` measures the map of the demo's classifier (5,000 held-out pictures of Fashion-MNIST) and of a ResNet-18
(64 random pictures of 64 x 64), with the callback's defaults and with one full evaluation of the Trainer's loader for
each of L x (C + R) cells, the same draws, in one run, and compares all numbers. The command trains a fully connected
network with three hidden layers of 256 units on Fashion-MNIST and prints what each layer minds. ``--root`` names a
folder with other files of that format, such as MNIST's digits.
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
from lightning_robust.callbacks.layer_criticality.draws import Draws
from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap
from lightning_robust.callbacks.layer_criticality.report import draw
from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.layers import find_layers


class Naive(pl.Callback):
    """Evaluates every cell in full when training has ended, in the order of the map; for both, the time."""

    def __init__(self, criticality: LayerCriticalityCallback) -> None:
        self.criticality = criticality

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and compare."""
        evaluator, monitor = Evaluator(trainer, pl_module), str(self.criticality.monitor)
        evaluator.score(monitor)
        began = time.process_time()
        self.numbers = self._numbers(evaluator, monitor, pl_module)
        self.seconds = time.process_time() - began
        self.limit = self._from_each_layer_on(evaluator, monitor, pl_module)
        began = time.process_time()
        (found,) = self.criticality.analyze(trainer, pl_module)
        self.fast_seconds = time.process_time() - began
        self.fast_numbers = [c.value for row in found.rows for c in (*row.cells[:-1], *row.random)]
        self.evaluations, self.layers = found.evaluations, len(found.rows)
        self.limit *= found.evaluations / self.layers

    def _from_each_layer_on(self, evaluator: Evaluator, monitor: str, pl_module: pl.LightningModule) -> float:
        """Seconds of the network behind the first part of each layer, summed over layers: no map is faster."""
        layers = {layer.name: layer.parameters[0].rpartition(".")[0] for layer in find_layers(pl_module)}
        begun: dict[str, float] = {}
        total = 0.0

        def note(name: str) -> None:
            begun.setdefault(name, time.process_time())

        def add(*_: Any) -> None:
            nonlocal total
            total += sum(time.process_time() - start for start in begun.values())
            begun.clear()

        hooks = [
            pl_module.get_submodule(path).register_forward_pre_hook(lambda *_, name=name: note(name))
            for name, path in layers.items()
        ]
        hooks.append(pl_module.register_forward_hook(add))
        evaluator.score(monitor)
        for hook in hooks:
            hook.remove()
        return total

    def _numbers(self, evaluator: Evaluator, monitor: str, pl_module: pl.LightningModule) -> list[float]:
        states = self.criticality._trajectory.states
        layers = find_layers(pl_module)
        draws = Draws(pl_module, layers, states[0], "permute", None, self.criticality.draws, 0)
        numbers = []
        for layer in layers:
            weights = Weights(pl_module, layer.tensors)
            for state in (*states, *draws.of(layer)):
                with weights.exchanged([state[name] for name in weights.names]):
                    numbers.append(evaluator.score(monitor))
        return numbers


def compare(name: str, module: pl.LightningModule, **fit: Any) -> None:
    """Both ways, as a line of a table."""
    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[1], on_failure="raise")
    criticality.on_train_end = lambda *_: None  # type: ignore[method-assign]
    naive = Naive(criticality)
    quiet_trainer([criticality, naive], max_epochs=2).fit(module, **fit)
    worst = max(abs(a - b) for a, b in zip(naive.numbers, naive.fast_numbers, strict=True))
    print(
        f"| {name} | {naive.layers} | {len(naive.numbers)} | {naive.seconds:.1f} | {naive.evaluations} | "
        f"{naive.fast_seconds:.1f} | {naive.seconds / naive.fast_seconds:.1f} x | {naive.limit:.1f} | "
        f"{naive.fast_seconds / naive.limit:.2f} x | {worst:g} |",
        flush=True,
    )


def speed() -> None:
    """The table of costs."""
    heads = ("network", "layers", "cells", "in full, s", "evaluated", "callback, s", "ratio", "limit, s", "x limit")
    print(f"\nLayer criticality\n\n| {' | '.join(heads)} | largest difference |\n|{' --- |' * (len(heads) + 1)}")
    pl.seed_everything(0)
    compare("demo classifier", ImageClassifier(), datamodule=FashionMNISTData(num_train=2000))
    pl.seed_everything(0)
    pictures = TensorDataset(torch.rand(64, 3, 64, 64), torch.randint(10, (64,)))
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
            draw(criticality.maps).savefig(figure, dpi=110)
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
    given = parser.parse_args()
    quiet()
    findings(given.seeds, given.figure, given.root)


if __name__ == "__main__":
    main()
