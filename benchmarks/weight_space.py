"""What averaging weights buys on Fashion-MNIST: SWA, EMA, SWALP, soups and WiSE-FT beside their baselines.

    python benchmarks/weight_space.py [--seeds 0 1 2] [--out runs/weight_space]

Every row is a command of ``lightning-robust``; finished ones are kept in ``results.json`` and not run again. Accuracy
is that of the weights that training returns, on the 10,000 test pictures.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

from lightning_robust import load_averaged
from lightning_robust.cli import RobustCLI

BASE = ["-c", "configs/fashion_mnist_sgd.yaml"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
AVERAGED = ["--swa.start=8", "--swa.lr=0.05", "--swa.bn_samples=5000"]
ROWS = {
    "SGD, cosine schedule": [],
    "SWA": AVERAGED,
    "SWA, lr 0.02": ["--swa.start=8", "--swa.lr=0.02", "--swa.bn_samples=5000"],
    "EMA": ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.5 epochs", "--swa.bn_samples=5000"],
    "8-bit SGD": ["--swa.word_length=8", "--swa.start=1000"],
    "SWALP, 8 bits": [*AVERAGED, "--swa.word_length=8"],
}
AVERAGES = ("SWA", "SWA, lr 0.02", "EMA", "SWALP, 8 bits")
RATES = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2)
JUDGE = ["--monitor=val/acc", "--mode=max"]


class Results:
    """Numbers by row and seed, in a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "results.json"
        self.content = json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, row: str, seed: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The numbers of a row, from the file or by running it."""
        key = f"{row} | {seed}"
        if key not in self.content:
            self.content[key] = run()
            self.path.write_text(json.dumps(self.content, indent=1))
            print(key, self.content[key], flush=True)
        return self.content[key]


def run(command: str, seed: int, folder: Path, *arguments: str) -> RobustCLI:
    """One command of ``lightning-robust``; what an interrupted one left behind goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    args = [command, *BASE, *QUIET, f"--seed_everything={seed}", f"--trainer.logger.save_dir={folder}", *arguments]
    return RobustCLI(args=args)


def accuracies(cli: RobustCLI, ckpt_path: str | None = None) -> dict[str, float]:
    """Test accuracies of what the run returned, by loader."""
    found = cli.trainer.test(
        cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True
    )
    return {key.replace("test/acc", "acc"): value for part in found for key, value in part.items() if "acc" in key}


def checkpoint(folder: Path) -> str:
    """The one checkpoint of a run."""
    (path,) = folder.rglob("last.ckpt")
    return str(path)


def averaging(results: Results, row: str, seed: int) -> None:
    """A row of the first table."""
    folder = results.folder / row.replace(" ", "_").replace(",", "") / str(seed)

    def raw() -> dict[str, float]:
        cli = run("validate", seed, folder / "raw")
        cli.model.load_state_dict(load_averaged(checkpoint(folder), "raw"))
        return accuracies(cli)

    results.get(row, seed, lambda: accuracies(run("fit", seed, folder, *ROWS[row])))
    if row in AVERAGES:
        results.get(f"{row}, its raw weights", seed, raw)


def soup(results: Results, seed: int) -> None:
    """Eight short runs from the first row's weights, their best, their uniform and their greedy soup."""
    start = checkpoint(results.folder / "SGD_cosine_schedule" / str(seed))
    folder = results.folder / "soup" / str(seed)
    for index, rate in enumerate(RATES):
        arguments = [
            f"--model.weights={start}",
            "--trainer.max_epochs=3",
            "--lr_scheduler.T_max=3",
            f"--optimizer.lr={rate}",
        ]

        def fit(index: int = index, arguments: list[str] = arguments) -> dict[str, float]:
            cli = run("fit", 100 * seed + index, folder / f"run{index}", *arguments)
            val = float(cli.trainer.callback_metrics["val/acc"])
            return accuracies(cli) | {"val": val}

        results.get(f"ingredient {index} (lr {rate})", seed, fit)
    for recipe in ("uniform", "greedy"):

        def cook(recipe: str = recipe) -> dict[str, float]:
            where = f"--dirpath={folder / recipe / 'soup'}"
            cli = run(
                "soup",
                seed,
                folder / recipe,
                f"--ingredients={folder}/run*/**/last.ckpt",
                f"--recipe={recipe}",
                where,
                *JUDGE,
            )
            content = json.loads((folder / recipe / "soup" / "soup.json").read_text())
            return accuracies(cli) | {"val": content["score"], "ingredients": len(content["order"])}

        results.get(f"{recipe} soup", seed, cook)


def wise_ft(results: Results, seed: int) -> None:
    """Fine-tuning on turned and noisy pictures, clean ones being the shift."""
    start = checkpoint(results.folder / "SGD_cosine_schedule" / str(seed))
    folder = results.folder / "wise_ft" / str(seed)
    corrupted = ["--data.corruption=rotated_noisy", f"--model.weights={start}"]

    def zero_shot() -> dict[str, float]:
        cli = run("validate", seed, folder / "zero_shot", *corrupted)
        return accuracies(cli)

    def fit(name: str, *settings: str) -> dict[str, float]:
        short = ["--trainer.max_epochs=5", "--lr_scheduler.T_max=5", "--optimizer.lr=0.05"]
        judge = ["--wise_ft.monitor=val/acc", "--wise_ft.mode=max", *settings]
        cli = run("fit", seed, folder / name, *corrupted, *short, *judge)
        numbers = {"alpha": float(cli.trainer.callback_metrics["wise_ft/alpha"])} | accuracies(cli)
        fine_tuned = accuracies(cli, checkpoint(folder / name))
        return numbers | {f"fine_tuned {key}": value for key, value in fine_tuned.items()}

    results.get("zero-shot", seed, zero_shot)
    results.get("WiSE-FT", seed, lambda: fit("fit", "--wise_ft.bn_samples=5000"))
    results.get("WiSE-FT, mixed BatchNorm", seed, lambda: fit("mixed", "--wise_ft.bn_refresh=false"))


def summary(values: list[float]) -> str:
    """Median and spread in percent."""
    return f"{100 * statistics.median(values):.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/weight_space"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results, seeds = Results(options.out), options.seeds
    for seed in seeds:
        for row in ROWS:
            averaging(results, row, seed)
        soup(results, seed)
        wise_ft(results, seed)
    print("\n| row | test accuracy, % |\n| --- | --- |")
    averaged = [name for row in ROWS for name in (row, f"{row}, its raw weights")[: 2 if row in AVERAGES else 1]]
    for row in [*averaged, "uniform soup", "greedy soup"]:
        print(f"| {row} | {summary([results.content[f'{row} | {seed}']['acc'] for seed in seeds])} |")
    best = [
        max(
            (v for k, v in results.content.items() if k.startswith("ingredient") and k.endswith(f"| {seed}")),
            key=lambda v: v["val"],
        )
        for seed in seeds
    ]
    print(f"| best ingredient | {summary([entry['acc'] for entry in best])} |")
    for loader in ("acc/dataloader_idx_0", "acc/dataloader_idx_1"):
        for label, row, key in (
            ("zero-shot", "zero-shot", loader),
            ("fine-tuned", "WiSE-FT", f"fine_tuned {loader}"),
            ("WiSE-FT", "WiSE-FT", loader),
            ("WiSE-FT, mixed BatchNorm", "WiSE-FT, mixed BatchNorm", loader),
        ):
            print(f"| {label}, {loader} | {summary([results.content[f'{row} | {seed}'][key] for seed in seeds])} |")
    for row in ("WiSE-FT", "WiSE-FT, mixed BatchNorm"):
        print(f"alpha of {row}:", [round(results.content[f"{row} | {seed}"]["alpha"], 2) for seed in seeds])


if __name__ == "__main__":
    main()
