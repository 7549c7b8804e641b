"""Does width help a network that is trained on attacked pictures?

    python benchmarks/width.py [--seeds 0 1 2] [--out runs/width] [--jobs 2]

"Adversarial robustness is at odds with lazy training" (Wang et al. 2022) for networks that training made robust: the
two-layer networks of ``lazy_training.py``, lazy and not, 64 to 4,096 wide, on 10,000 pictures of Fashion-MNIST of
length 1, ten epochs, plainly and by PGD with three steps of a quarter of eps or of all of it. eps is 0.0035, about
8/255 of a picture of usual length. Accuracy on 5,000 held-out pictures, under PGD with 20 steps on 2,000 of them; how
far the weights moved, of their length, and which share of the rectifiers changed sides. Finished rows are kept in
``results.json``; beside it is the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lazy_training import EPOCHS, REGIMES, WIDTHS
from rows import Columns, Results, options, quiet_trainer, run_rows

from lightning_robust import AdversarialCallback, LazyTrainingCallback
from lightning_robust.demo.fashion_mnist.two_layers import TwoLayerClassifier, UnitFashionMNISTData
from lightning_robust.figures import COLOURS, add_legend, name_axes, panel, use_plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS, STEPS, PICTURES = 0.0035, 3, 10_000
TRAININGS: dict[str, float | None] = {"plain": None, "PGD-3, steps of eps / 4": 0.25, "PGD-3, steps of eps": 1.0}
"""Length of an attack's step, of eps."""
ROWS = {
    f"{regime}, {width}, {training}": (width, power, share)
    for training, share in TRAININGS.items()
    for regime, power in REGIMES.items()
    for width in WIDTHS
}
COLUMNS: Columns = {
    "clean": ("clean", 100, ".1f"),
    "PGD-20": ("attacked", 100, ".1f"),
    "moved": ("movement", 1, ".3g"),
    "signs": ("sign_changes", 1, ".3f"),
    "gap": ("linearization_gap", 1, ".3f"),
}


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """Train a row's network and measure it."""
    width, power, share = ROWS[name]
    pl.seed_everything(seed, verbose=False)
    data, module = UnitFashionMNISTData(num_train=PICTURES), TwoLayerClassifier(width, power)
    lazy = LazyTrainingCallback(
        [1.0], EPS, num_samples=1000, every_n_epochs=EPOCHS, bounds="none", lazy_below=0.0, on_failure="raise"
    )
    attacks: list[pl.Callback] = []
    if share is not None:
        attacks = [AdversarialCallback("pgd", eps=EPS, steps=STEPS, step_size=share * EPS, bounds="none", val_eps=[])]
    quiet_trainer([lazy, *attacks], max_epochs=EPOCHS).fit(module, datamodule=data)
    judge = AdversarialCallback(eps=EPS, bounds="none", val_eps=[EPS], val_steps=20, val_batches=2)
    (found,) = quiet_trainer([judge]).validate(module, data, verbose=False)
    numbers = {tag: lazy.history[-1].numbers[tag] for tag in ("movement", "sign_changes", "linearization_gap")}
    return numbers | {"clean": found["val/acc"], "attacked": found[f"adversarial/val_acc@{EPS:g}"]}


def draw(results: Results, seeds: Sequence[int]) -> Figure:
    """Accuracy under attack by width, medians over the seeds that are there; full lines are lazy networks."""
    figure, axes = panel(5.2, "Does width help under attack?")
    for (training, _), colour in zip(TRAININGS.items(), COLOURS, strict=False):
        for regime, line, marker in zip(REGIMES, ("-", "--"), "os", strict=True):
            values = [results.median(f"{regime}, {width}, {training}", seeds, "attacked") for width in WIDTHS]
            points = [(width, 100 * value) for width, value in zip(WIDTHS, values, strict=True) if value is not None]
            if points:
                name = f"{training}, {regime.partition(',')[0]}"
                axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, label=name)
    use_plain_log_ticks(axes, "x", (1,))
    name_axes(axes, "width", "right under PGD-20, %")
    add_legend(axes, 1)
    return figure


def main() -> None:
    """Run what is missing, print the table and draw the figure."""
    given = options(__doc__, "runs/width", ROWS)
    results = run_rows(given, trained)
    print("\n" + results.table(given.only, given.seeds, COLUMNS))
    draw(results, given.seeds).savefig(results.folder / "width.png", dpi=120)


if __name__ == "__main__":
    main()
