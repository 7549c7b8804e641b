"""Mean corruption error of plain and of robust trainings, under all twelve corruptions in five severities.

    python benchmarks/corruptions.py [--seeds 0 1 2] [--out runs/corruptions] [--jobs 1]

Fashion-MNIST, 5,000 pictures, 5 epochs; errors in percent of the first 1,024 validation pictures. Every row is a
command of ``lightning-robust``; finished ones are kept in ``results.json`` and not run again. mCE is relative to the
plain training of the same seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from rows import Results, measured_run, options, quiet_trainer, run_rows

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

CONFIG = "configs/fashion_mnist.yaml"
RECIPE = ["--data.num_train=5000", "--trainer.max_epochs=5"]
ROWS: dict[str, list[str]] = {
    "plain": [],
    "RegMixup": ["--model.regmixup_weight=1"],
    "PreprocessingMixin": ["--model.preprocessing_weight=1"],
}


def measured(cli: RobustCLI) -> dict[str, float]:
    """The error clean and under each corruption and severity."""
    robust = RobustValidationCallback([], under="corruptions", batches=8)
    quiet_trainer([robust]).validate(cli.model, cli.datamodule, verbose=False)
    return errors(robust.measured, "val/acc", "max") or {}


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One row: train by its command, then measure."""
    return measured_run(CONFIG, seed, folder, [*RECIPE, *ROWS[name]], measured)


def told(results: Results, name: str, seed: int) -> dict[str, float]:
    """Clean error, mean error, mCE and the mean error of each corruption."""
    found, plain = (_errors(results.content[f"{row} | {seed}"]) for row in (name, "plain"))
    groups = by_corruption([condition for condition in found if condition != CLEAN_NAME])
    each = {corruption: statistics.mean(found[c] for c in conditions) for corruption, conditions in groups.items()}
    numbers = {"clean": found[CLEAN_NAME], "mean": mean_error(found), **each}
    return {"mCE": mean_corruption_error(found, plain)} | {key: 100 * value for key, value in numbers.items()}


def _errors(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name == CLEAN_NAME or "@" in name}


def main() -> None:
    """Run what is missing and print the table."""
    given = options(__doc__, "runs/corruptions", ROWS)
    results = run_rows(given, trained)
    rows = {name: [told(results, name, seed) for seed in given.seeds] for name in given.only}
    columns = list(next(iter(rows.values()))[0])
    lines = [[column, *(_cell([run[column] for run in runs]) for runs in rows.values())] for column in columns]
    print("\n" + markdown(["error", *rows], lines))


def _cell(values: list[float]) -> str:
    form = ".3f" if max(values) < 3 else ".1f"
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{spread}"


if __name__ == "__main__":
    main()
