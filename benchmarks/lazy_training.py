"""Lazy training: are wide networks that stay at their start fooled by one gradient step, and what measuring it costs.

    OMP_NUM_THREADS=1 python benchmarks/lazy_training.py sweep [--seeds 0 1 2] [--out runs/lazy_training]
    OMP_NUM_THREADS=1 python benchmarks/lazy_training.py cost

``sweep`` trains the demo's ``TwoLayerClassifier`` on 10,000 pictures of Fashion-MNIST, each of length 1: p = 1/2 is the
theorem's network and lazy for large m; p = 1 is the mean-field scaling, which is not. 1,000 held-out pictures are
attacked. The theorem is about two classes and networks of suitable width, so the table is about its direction. Finished
runs are kept in ``--out``; ``configs/sweeps/lazy.yaml`` trains the same networks as a sweep. ``cost`` is the share of
an epoch that the callback takes on the demo's classifier, with its defaults.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from rows import Results, quiet_trainer

from lightning_robust import LazyTrainingCallback
from lightning_robust.callbacks.lazy_training.figure import laziness_figures
from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier
from lightning_robust.demo.fashion_mnist.two_layers import TwoLayerClassifier, UnitFashionMNISTData
from lightning_robust.tables import markdown

WIDTHS = (64, 256, 1024, 4096)
REGIMES = {"lazy, m^-1/2": 0.5, "mean field, 1/m": 1.0}
EPOCHS = 10
COLUMNS = {
    "movement": "moved, share of length",
    "neuron_movement": "C0",
    "linearization_gap": "gap",
    "sign_changes": "signs",
    "acc": "clean",
    "single_step@1": "fooled, beta 1",
    "single_step@2": "beta 2",
    "single_step@5": "beta 5",
    "fgsm": "FGSM",
}


def measure(width: int, power: float, seed: int, figure: Path | None = None) -> dict[str, float]:
    """One run; 0.0035 is about 8/255 of a picture of usual length."""
    pl.seed_everything(seed)
    lazy = LazyTrainingCallback(
        [1.0, 2.0, 5.0],
        0.0035,
        num_samples=1000,
        every_n_epochs=1 if figure is not None else EPOCHS,
        bounds="none",
        on_failure="raise",
    )
    trainer = quiet_trainer([lazy], max_epochs=EPOCHS)
    trainer.fit(TwoLayerClassifier(width, power), datamodule=UnitFashionMNISTData(num_train=10_000))
    if figure is not None:
        for tag, draw in laziness_figures(lazy.history, lazy.lazy_below, lazy.vulnerable_above).items():
            draw().savefig(figure.with_stem(f"{figure.stem}-{tag.partition('/')[2]}"), dpi=120)
    return {**lazy.history[-1].numbers, "acc": float(trainer.callback_metrics["val/acc"])}


def sweep(seeds: Sequence[int], folder: Path, widths: Sequence[int]) -> None:
    """The table: medians over seeds, with the range of what is attacked."""
    results = Results(folder)
    rows = []
    for name, power in REGIMES.items():
        for width in widths:
            runs = []
            for seed in seeds:
                figure = folder / f"{width}-{power}.png" if seed == seeds[0] else None
                runs.append(
                    results.get(
                        f"{name} | {width}", seed, lambda w=width, p=power, s=seed, f=figure: measure(w, p, s, f)
                    )
                )
            rows.append([name, str(width), *(_cell(tag, [run[tag] for run in runs]) for tag in COLUMNS)])
    print(markdown(["scaling", "width", *COLUMNS.values()], rows))


def _cell(tag: str, values: list[float]) -> str:
    middle = statistics.median(values)
    if tag in ("movement", "neuron_movement", "linearization_gap", "sign_changes"):
        return f"{middle:.3g}"
    return f"{100 * middle:.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


class Timed(LazyTrainingCallback):
    """Counts the seconds of its measurements."""

    seconds = 0.0

    def _log_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        began = time.perf_counter()
        super()._log_epoch(trainer, pl_module)
        self.seconds += time.perf_counter() - began


def cost() -> None:
    """Seconds of the measurements beside those of the fit, for all pictures and for 10,000."""
    rows = []
    for pictures, epochs in ((55_000, 2), (10_000, 5)):
        pl.seed_everything(0)
        lazy = Timed(on_failure="raise")
        trainer = quiet_trainer([lazy], max_epochs=epochs)
        began = time.perf_counter()
        trainer.fit(ImageClassifier(), datamodule=FashionMNISTData(num_train=pictures))
        whole = (time.perf_counter() - began - lazy.seconds) / epochs
        each = lazy.seconds / epochs
        rows.append([f"{pictures:,}", f"{whole:.1f}", f"{each:.3f}", f"{100 * each / whole:.1f} %"])
    print(markdown(["training pictures", "epoch without it, s", "one measurement, s", "share"], rows))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sweep", "cost"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--out", type=Path, default=Path("runs/lazy_training"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sweep(given.seeds, given.out, given.widths) if given.what == "sweep" else cost()


if __name__ == "__main__":
    main()
