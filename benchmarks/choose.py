"""``lightning-robust choose`` on the rows of the suite, beside all of them trained to the end.

    python benchmarks/choose.py [--seeds 0 1 2] [--out runs/suite] [--jobs 2]

The candidates are the rows of ``suite.py`` (5,000 pictures of Fashion-MNIST, ten epochs) but "plain, 500 labels", whose
epochs are others; the score is the accuracy on the 5,000 validation pictures, clean and under PGD with 20 steps at eps
8/255 (the first 2,048), one point of one for one of the other. The race has the default budget, a third of the cost of
all. All are the rows of the suite, every one with every seed, taken from ``results.json`` or run, and judged by
accuracy on test pictures, which the race never sees. Said: the choice, what it cost, and how far it is below the best
row of the suite, beside the spread over seeds of that row.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rows import Results, options, run_rows
from suite import CONFIG, EPS, RECIPE, ROWS, trained

from lightning_robust.cli import main as command
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.tables import markdown

CANDIDATES = {name: switches for name, switches in ROWS.items() if name != "plain, 500 labels"}
EPOCHS = "--trainer.max_epochs="
BASE = {
    "robust_validation": {"eps": EPS, "steps": 20, "batches": 16},
    "trainer": {"max_epochs": next(int(each.removeprefix(EPOCHS)) for each in RECIPE if each.startswith(EPOCHS))},
}
CRITERIA = {"val/acc": 1.0, f"adversarial/val_acc@{parse_fraction(EPS):g}": 1.0}
ON_TEST = ("test/acc", "test/acc_pgd20")
"""The same of the suite's rows."""


def as_values(switches: list[str]) -> dict[str, Any]:
    """Arguments of the command line as keys with their values."""
    pairs = (each.removeprefix("--").split("=", 1) for each in switches)
    return {key: yaml.safe_load(value) for key, value in pairs}


def race(folder: Path, names: Sequence[str], seeds: int, jobs: int) -> dict[str, Any]:
    """What ``choose`` finds among rows, with so many cores."""
    files = folder.with_suffix(".files")
    files.mkdir(parents=True, exist_ok=True)
    recipe = as_values([each for each in RECIPE if not each.startswith(EPOCHS)])
    base = BASE | {"data": {"init_args": {key.removeprefix("data."): value for key, value in recipe.items()}}}
    (files / "base.yaml").write_text(yaml.safe_dump(base), "utf-8")
    choice = {
        "configs": [str(Path(CONFIG).resolve()), "base.yaml"],
        "candidates": {name: as_values(CANDIDATES[name]) for name in names},
        "criteria": CRITERIA,
        "scaled": ["swa.start"],
        "seeds": seeds,
    }
    path = files / "choice.yaml"
    path.write_text(yaml.safe_dump(choice, sort_keys=False), "utf-8")
    command(["choose", str(path), f"--output={folder}", f"--cpus={jobs}"])
    told: dict[str, Any] = json.loads((folder / "choose.json").read_text("utf-8"))
    return told


def place(chosen: str, results: Results, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Rows by their score, and where the choice stands among them."""
    scores = {name: [sum(row[tag] for tag in ON_TEST) for row in results.of(name, seeds)] for name in names}
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    order = sorted(means, key=means.__getitem__, reverse=True)
    rows = [
        [name, *(f"{100 * each:.2f}" for each in (means[name], min(scores[name]), max(scores[name])))] for name in order
    ]
    best = order[0]
    return (
        markdown(["candidate", "score, mean", "least", "most"], rows)
        + f"\nchosen: {chosen}, place {order.index(chosen) + 1} of {len(order)}, "
        f"{100 * (means[best] - means[chosen]):.2f} points below {best}, whose seeds spread over "
        f"{100 * (max(scores[best]) - min(scores[best])):.2f}"
    )


def main() -> None:
    """Race, train all, compare."""
    given = options(__doc__, "runs/suite", CANDIDATES)
    found = race(given.out / "race", given.only, len(given.seeds), given.jobs)
    print(f"chosen: {found['winner']}, for {found['share']:.3f} of what all cost, in epochs", flush=True)
    print("\n" + place(found["winner"], run_rows(given, trained), given.only, given.seeds))


if __name__ == "__main__":
    main()
