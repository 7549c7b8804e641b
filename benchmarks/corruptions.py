"""Mean corruption error of plain and of robust trainings, under all twelve corruptions in five severities.

    python benchmarks/corruptions.py --task fashion_mnist [--seeds 0 1 2] [--out runs/corruptions] [--jobs 1]
    python benchmarks/corruptions.py --task lanes --seeds 0 --only plain FGSM-RS

Every row is a command of ``lightning-robust``; finished ones are kept in ``results.json`` and not run again.
Fashion-MNIST: 5,000 pictures, 5 epochs, errors in percent of the first 1,024 validation pictures. Lanes: 1,500 rendered
pictures, 4 epochs in bf16-mixed, lateral error in pixels of 960 on 64 rendered pictures in eight sequences. mCE is
relative to the plain training of the same seed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping
from pathlib import Path

from rows import Results, measured_run, quiet, quiet_trainer, run_rows

from lightning_robust import RobustValidationCallback
from lightning_robust.callbacks.robust_validation.corruption_error import (
    CLEAN_NAME,
    by_corruption,
    errors,
    mean_corruption_error,
    mean_error,
)
from lightning_robust.cli import RobustCLI
from lightning_robust.tables import markdown

TASKS = {
    "fashion_mnist": ("configs/fashion_mnist.yaml", ["--data.num_train=5000", "--trainer.max_epochs=5"], "val/acc", 8),
    "lanes": ("configs/lanes.yaml", ["--data.num_train=1500", "--trainer.precision=bf16-mixed"], "val/lateral_px", 1),
}
ROWS: dict[str, list[str]] = {
    "plain": [],
    "RegMixup": ["--model.regmixup_weight=1"],
    "PreprocessingMixin": ["--model.preprocessing_weight=1"],
    "FGSM-RS": ["--adversarial.method=fgsm_rs", "--adversarial.eps=2/255", "--adversarial.val_eps=[]"],
}


def measured(cli: RobustCLI, task: str) -> dict[str, float]:
    """The error clean and under each corruption and severity."""
    _, _, metric, batches = TASKS[task]
    robust = RobustValidationCallback([], under="corruptions", batches=batches)
    quiet_trainer([robust]).validate(cli.model, cli.datamodule, verbose=False)
    found = errors(robust.measured, metric, "max" if metric == "val/acc" else "min")
    return found or {}


def trained(name: str, seed: int, folder: Path, task: str) -> dict[str, float]:
    """One row: train by its command, then measure."""
    config, recipe, _, _ = TASKS[task]
    return measured_run(config, seed, folder, [*recipe, *ROWS[name]], functools.partial(measured, task=task))


def told(results: Results, name: str, seed: int, percent: float) -> dict[str, float]:
    """Clean error, mean error, mCE and the mean error of each corruption."""
    found, plain = (_errors(results.content[f"{row} | {seed}"]) for row in (name, "plain"))
    groups = by_corruption([condition for condition in found if condition != CLEAN_NAME])
    each = {corruption: statistics.mean(found[c] for c in conditions) for corruption, conditions in groups.items()}
    numbers = {"clean": found[CLEAN_NAME], "mean": mean_error(found), **each}
    return {"mCE": mean_corruption_error(found, plain)} | {key: percent * value for key, value in numbers.items()}


def _errors(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name == CLEAN_NAME or "@" in name}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/corruptions"))
    parser.add_argument("--jobs", type=int, default=1)
    quiet()
    given = parser.parse_args()
    given.out = given.out / given.task
    results = run_rows(given, trained, given.task)
    percent = 100.0 if given.task == "fashion_mnist" else 1.0
    rows = {name: [told(results, name, seed, percent) for seed in given.seeds] for name in given.only}
    columns = list(next(iter(rows.values()))[0])
    lines = [[column, *(_cell([run[column] for run in runs]) for runs in rows.values())] for column in columns]
    print("\n" + markdown(["error", *rows], lines))


def _cell(values: list[float]) -> str:
    form = ".3f" if max(values) < 3 else ".1f"
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{spread}"


if __name__ == "__main__":
    main()
