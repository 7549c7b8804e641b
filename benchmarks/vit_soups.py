"""Uniform, greedy and learned soups and Model Stock of eight fine-tunings of a small pretrained transformer.

    python benchmarks/vit_soups.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/vit]

From the linear probe of ``vit.py``, the same for all seeds, eight fine-tunings by ``lightning-robust fit`` on 10,000
pictures of CIFAR-10, six epochs each: two rates, four augmentations. The soups are those of ``lightning-robust soup``,
judged on 2,000 pictures that nothing was trained on; so is the best single one. A row is the soup itself, also where
the command would have kept a better ingredient. Accuracy in percent on the 10,000 test pictures: clean, executed in
int8 by ONNX Runtime, and the mean over the twelve corruptions of the catalogue at severity 3, on the first 2,000. What
is done is kept in ``results.json`` and not done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from cifar import CALIBRATION, engine
from rows import Columns, Results, accuracies, checkpoint, options, quiet_trainer, run
from vit import CONFIG, CifarViT, ViTData, data_arguments, start

from lightning_robust import RobustValidationCallback
from lightning_robust.cli import RobustCLI

Recipe = Literal["uniform", "greedy", "learned", "stock"]
RATES = (3e-4, 1e-3)
AUGMENTATIONS: Mapping[str, Sequence[str]] = {
    "flips": [],
    "brightness": ["--data.gain=0.4"],
    "cutout": ["--data.cutout=12"],
    "smooth labels": ["--model.label_smoothing=0.1", "--data.shift=4"],
}
INGREDIENTS = {
    f"{name}, rate {rate:g}": [f"--model.learning_rate={rate}", *more]
    for rate in RATES
    for name, more in AUGMENTATIONS.items()
}
BEST, SEVERITY = "best single", 3
COLUMNS: Columns = {
    "validation": ("val/acc", 100, ".2f"),
    "clean": ("acc", 100, ".2f"),
    "corrupted": ("corrupted", 100, ".2f"),
    "int8": ("int8", 100, ".2f"),
    "barrier": ("barrier", 100, ".2f"),
    "cosine": ("cosine", 1, ".3f"),
    "CPU s": ("cpu_seconds", 1, ".0f"),
}


class Kitchen:
    """The rows of one seed.

    Args:
        results: Keeps them.
        archive: Of the pictures.
        seed: Of the fine-tunings.
    """

    def __init__(self, results: Results, archive: Path, seed: int) -> None:
        self.results, self.seed = results, seed
        self.start, self.data = start(results, archive), data_arguments(archive, results.folder)
        self.folder = results.folder / "fine_tuned" / str(seed)

    def fine_tuned(self) -> dict[str, dict[str, float]]:
        """The eight fine-tunings, by name."""
        return {
            name: self.results.get(name, self.seed, lambda number=number, more=more: self._fit(number, more))
            for number, (name, more) in enumerate(INGREDIENTS.items())
        }

    def _fit(self, number: int, more: Sequence[str]) -> dict[str, float]:
        began, weights = time.process_time(), f"--model.weights={self.start}"
        cli = run("fit", CONFIG, 100 * self.seed + number, self.folder / str(number), *self.data, weights, *more)
        return {
            "cpu_seconds": time.process_time() - began,
            "val/acc": float(cli.trainer.callback_metrics["val/acc"]),
        }

    def checkpoints(self) -> list[str]:
        """The files of the fine-tunings."""
        return [checkpoint(self.folder / str(number)) for number in range(len(INGREDIENTS))]

    def single(self) -> dict[str, float]:
        """The fine-tuning with the best validation, tested."""
        scores = [found["val/acc"] for found in self.fine_tuned().values()]
        best = max(range(len(scores)), key=scores.__getitem__)
        cli = self._built(f"--model.weights={self.checkpoints()[best]}")
        return {"val/acc": scores[best], "number": best} | tested(cli)

    def soup(self, recipe: Recipe) -> dict[str, float]:
        """A soup of all, tested; of the greedy one the highest barrier and the lowest cosine to the best as well."""
        began, folder = time.process_time(), self.results.folder / "soups" / str(self.seed) / recipe
        cli = self._built(f"--model.weights={self.start}")
        soup = cli.trainer.soup(
            cli.model,
            cli.datamodule,
            ingredients=self.checkpoints(),
            recipe=recipe,
            monitor="val/acc",
            mode="max",
            report_barriers=recipe == "greedy",
            dirpath=str(folder),
        )
        seconds = time.process_time() - began
        cli.model.load_state_dict(soup.state)
        told = json.loads((folder / "soup.json").read_text())["ingredients"]
        measured = [each for each in told if each["barrier"] is not None]
        basin = {
            "barrier": max((each["barrier"] for each in measured), default=float("nan")),
            "cosine": min((each["cosine"] for each in measured), default=float("nan")),
        }
        numbers = {"val/acc": float(soup.score), "ingredients": len(soup.ingredients), "cpu_seconds": seconds}
        return numbers | basin | tested(cli)

    def _built(self, *arguments: str) -> RobustCLI:
        args = ["-c", CONFIG, "--seed_everything=0", "--trainer.logger=false", "--trainer.callbacks=null"]
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        return RobustCLI(args=[*args, *quiet, *self.data, *arguments], run=False)


def tested(cli: RobustCLI) -> dict[str, float]:
    """Test accuracies of the weights that a module holds: clean, corrupted, in int8."""
    return accuracies(cli) | {"corrupted": corrupted(cli), "int8": int8(cli.model, cli.datamodule)}


def corrupted(cli: RobustCLI) -> float:
    """The mean accuracy under all corruptions, on the first eight batches."""
    robust = RobustValidationCallback([], under=f"corruptions@{SEVERITY}", batches=8)
    quiet_trainer([robust]).test(cli.model, cli.datamodule, verbose=False)
    found = [metrics["test/acc"] for name, metrics in robust.measured.items() if name != "clean"]
    return sum(found) / len(found)


@torch.no_grad()
def int8(module: CifarViT, data: ViTData) -> float:
    """Test accuracy of ONNX Runtime's int8, calibrated on training pictures."""
    known = data.train[list(range(CALIBRATION))][0]
    execute = engine(module.eval(), "onnxruntime-int8", data.normalise(known))
    (loader,) = data.test_dataloader()
    right = [(execute(data.normalise(images)).argmax(1) == labels).float() for images, labels in loader]
    return float(torch.cat(right).mean())


def cook(results: Results, archive: Path, seed: int) -> None:
    """All rows of a seed."""
    kitchen = Kitchen(results, archive, seed)
    kitchen.fine_tuned()
    results.get(BEST, seed, kitchen.single)
    for recipe in get_args(Recipe):
        results.get(f"{recipe} soup", seed, lambda recipe=recipe: kitchen.soup(recipe))


def main() -> None:
    """Do what is missing and print the tables."""
    given = options(__doc__, "runs/vit", files=["archive"])
    torch.set_num_threads(1)
    results = Results(given.out)
    for seed in given.seeds:
        cook(results, given.archive, seed)
    columns = {name: COLUMNS[name] for name in ("validation", "CPU s")}
    print("\n" + results.table(INGREDIENTS, given.seeds, columns))
    rows = [BEST, *(f"{recipe} soup" for recipe in get_args(Recipe))]
    columns = {name: COLUMNS[name] for name in ("validation", "clean", "corrupted", "int8")}
    print("\n" + results.table(rows, given.seeds, columns))
    columns = {name: COLUMNS[name] for name in ("barrier", "cosine", "CPU s")}
    print("\n" + results.table(["greedy soup"], given.seeds, columns))


if __name__ == "__main__":
    main()
