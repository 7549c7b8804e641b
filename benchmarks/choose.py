"""``lightning-robust choose`` on the rows of the suite, beside all of them trained to the end.

    python benchmarks/choose.py [--seeds 0 1 2] [--out runs/choose]

The candidates are the rows of ``suite.py`` (5,000 pictures of Fashion-MNIST, ten epochs) but "plain, 500 labels", whose
epochs are others; the score is the accuracy on the 5,000 validation pictures, clean and under PGD with 20 steps at eps
8/255 (the first 2,048), one point of one for one of the other. The race has the default budget, a third of the cost of
all. Then a race with a budget of 1 trains every candidate with every seed to the end. Said of both: the choice, what it
cost, and how far the choice of the first is below the best of the second, beside the spread over seeds of that best.
What is done is kept, and not done again.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from rows import options
from suite import CONFIG, EPS, RECIPE, ROWS

from lightning_robust.cli import main as command
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.tables import markdown

LEFT_OUT = "plain, 500 labels"
EPOCHS = "--trainer.max_epochs="
BASE = {
    "robust_validation": {"eps": EPS, "steps": 20, "batches": 16},
    "trainer": {"max_epochs": next(int(each.removeprefix(EPOCHS)) for each in RECIPE if each.startswith(EPOCHS))},
}
CRITERIA = {"val/acc": 1.0, f"adversarial/val_acc@{parse_fraction(EPS):g}": 1.0}


def as_values(switches: list[str]) -> dict[str, Any]:
    """Arguments of the command line as keys with their values."""
    pairs = (each.removeprefix("--").split("=", 1) for each in switches)
    return {key: yaml.safe_load(value) for key, value in pairs}


def race(folder: Path, seeds: int, budget: float) -> dict[str, Any]:
    """What ``choose`` finds with a budget."""
    files = folder.with_suffix(".files")
    files.mkdir(parents=True, exist_ok=True)
    recipe = as_values([each for each in RECIPE if not each.startswith(EPOCHS)])
    base = BASE | {"data": {"init_args": {key.removeprefix("data."): value for key, value in recipe.items()}}}
    (files / "base.yaml").write_text(yaml.safe_dump(base), "utf-8")
    choice = {
        "configs": [str(Path(CONFIG).resolve()), "base.yaml"],
        "candidates": {name: as_values(switches) for name, switches in ROWS.items() if name != LEFT_OUT},
        "criteria": CRITERIA,
        "scaled": ["swa.start"],
        "budget": budget,
        "seeds": seeds,
    }
    path = files / "choice.yaml"
    path.write_text(yaml.safe_dump(choice, sort_keys=False), "utf-8")
    command(["choose", str(path), f"--output={folder}"])
    told: dict[str, Any] = json.loads((folder / "choose.json").read_text("utf-8"))
    return told


def main() -> None:
    """Race, train all, compare."""
    given = options(__doc__, "runs/choose")
    seeds = len(given.seeds)
    found, everything = (race(given.out / name, seeds, budget) for name, budget in (("race", 1 / 3), ("all", 1.0)))
    scores = everything["rounds"][-1]["scores"]
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    order = sorted(means, key=means.__getitem__, reverse=True)
    chosen, best = found["winner"], order[0]
    rows = [
        [name, *(f"{100 * each:.2f}" for each in (means[name], min(scores[name]), max(scores[name])))] for name in order
    ]
    print("\n" + markdown(["candidate", "score, mean", "least", "most"], rows))
    spread = max(scores[best]) - min(scores[best])
    print(
        f"chosen: {chosen}, place {order.index(chosen) + 1} of {len(order)}, {100 * (means[best] - means[chosen]):.2f} "
        f"points below {best}, whose seeds spread over {100 * spread:.2f}; cost {found['share']:.3f} of all"
    )


if __name__ == "__main__":
    main()
