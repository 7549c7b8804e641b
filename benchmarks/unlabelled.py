"""Robust accuracy against the number of pictures without labels: unsupervised adversarial training on Fashion-MNIST.

    python benchmarks/unlabelled.py [--seeds 0 1 2] [--out runs/unlabelled] [--jobs 2]

The curve of Uesato et al. 2019 (arXiv:1905.13725): 500 and 4,000 labels, and none to 50,000 pictures more, whose
labels are not used; by online targets (OT), fixed targets (FT) and both (++). 2,000 steps in every row, of 100
pictures with labels, attacked by ``fgsm_rs``, and as many without, attacked by PGD with 5 steps, eps 0.1, on the
network of fast adversarial training's MNIST code. The target model of FT is the network after a quarter of the steps,
on labels alone. As the limit, the labels of all 54,000 pictures. Every row is a command of ``lightning-robust``;
finished ones are kept in ``results.json``, beside it is the figure. Clean accuracy is on the 10,000 test pictures,
that under PGD with 20 steps on the first 2,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from objectives import ATTACK, CONFIG, FAST, attacked
from rows import COST, Columns, Results, measured_run, options, run_rows

from lightning_robust.figures import COLOURS, GREY, add_legend, name_axes, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS, UNLABELLED = (500, 4_000), (0, 2_500, 10_000, 50_000)
STEPS, BATCH = 2_000, 100
METHODS = {
    "UAT-OT": ["--model.uat_ot_weight=5"],
    "UAT-FT": ["--model.uat_ft_weight=1"],
    "UAT++": ["--model.uat_ot_weight=5", "--model.uat_ft_weight=1"],
}
EVERY_LABEL = f"{max(LABELS) + max(UNLABELLED):,} labels"
COLUMNS: Columns = {
    "clean": ("clean", 100, ".1f"),
    "eps 0.05": ("0.05", 100, ".1f"),
    "eps 0.1": ("0.1", 100, ".1f"),
    "eps 0.15": ("0.15", 100, ".1f"),
    **COST,
}


def supervised(labels: int) -> list[str]:
    """Switches of a row that has labels only."""
    epochs = math.ceil(STEPS * BATCH / labels)
    return [
        f"--trainer.max_epochs={epochs}",
        f"--trainer.max_steps={STEPS}",
        f"--trainer.check_val_every_n_epoch={epochs}",
        f"--data.num_train={labels}",
    ]


def unsupervised(labels: int, unlabelled: int) -> list[str]:
    """Switches of a row that has both; an epoch ends with the longer loader."""
    epochs = STEPS * BATCH // max(labels, unlabelled)
    return [
        f"--trainer.max_epochs={epochs}",
        f"--trainer.check_val_every_n_epoch={epochs}",
        f"--data.num_train={labels + unlabelled}",
        f"--data.num_labelled={labels}",
        "--adversarial.input_key=labelled.0",
        "--model.uat_unlabelled_key=unlabelled.0",
        "--model.uat_index_key=unlabelled.1",
        "--model.uat_eps=0.1",
        "--model.uat_steps=5",
        f"--model.uat_target_epochs={epochs // 4}",
    ]


def name_of(labels: int, unlabelled: int, method: str) -> str:
    """A row."""
    return f"{labels:,} labels" + (f", {unlabelled:,} more, {method}" if unlabelled else "")


ROWS = {
    name_of(labels, unlabelled, method): unsupervised(labels, unlabelled) + switches
    if unlabelled
    else supervised(labels)
    for labels in LABELS
    for unlabelled in UNLABELLED
    for method, switches in METHODS.items()
} | {EVERY_LABEL: supervised(max(LABELS) + max(UNLABELLED))}


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One row: train by its command, then measure."""
    return measured_run(CONFIG, seed, folder, [*FAST, *ATTACK, "--adversarial.method=fgsm_rs", *ROWS[name]], attacked)


def draw(results: Results, seeds: Sequence[int]) -> Figure:
    """Accuracy under attack by pictures without labels, medians over the seeds that are there."""
    figure, axes = panel(5.2, "What pictures without labels buy")
    for labels, line, marker in zip(LABELS, ("--", "-"), "so", strict=True):
        for method, colour in zip(METHODS, COLOURS, strict=False):
            values = [results.median(name_of(labels, unlabelled, method), seeds, "0.1") for unlabelled in UNLABELLED]
            points = [(place, 100 * value) for place, value in enumerate(values) if value is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), line, color=colour, marker=marker, label=f"{method}, {labels:,} labels"
                )
    limit = results.median(EVERY_LABEL, seeds, "0.1")
    if limit is not None:
        axes.axhline(100 * limit, color=GREY, label=EVERY_LABEL)
    axes.set_xticks(range(len(UNLABELLED)), [f"{count:,}" for count in UNLABELLED])
    name_axes(axes, "pictures without labels", "right under PGD-20, %")
    add_legend(axes, 1)
    return figure


def main() -> None:
    """Run what is missing, print the table and draw the figure."""
    given = options(__doc__, "runs/unlabelled", ROWS)
    results = run_rows(given, trained)
    print("\n" + results.table(given.only, given.seeds, COLUMNS))
    draw(results, given.seeds).savefig(results.folder / "unlabelled.png", dpi=120)


if __name__ == "__main__":
    main()
