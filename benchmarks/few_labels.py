"""Does adversarial training with a small radius raise clean accuracy where labels are few?

    python benchmarks/few_labels.py [--seeds 0 1 2] [--out runs/few_labels] [--jobs 2]

The claim is that of "Explaining and harnessing adversarial examples" (Goodfellow et al. 2015): adversarial training is
a regulariser. 250, 1,000 and 5,000 pictures of Fashion-MNIST, drawn anew for each seed, the same ones for every radius;
1,500 steps of 50 pictures, whatever the number of labels; the network and the recipe of fast adversarial training's
MNIST code, attacked by ``fgsm_rs``. Every row is a command of ``lightning-robust``; finished ones are kept in
``results.json``. Clean accuracy is on the 10,000 test pictures, that under PGD with 20 steps at eps 0.02 on the first
1,000; gained is what clean accuracy has more than plain training on the same pictures from the same weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rows import Results, measured_run, options, quiet_trainer, run_rows, summary

from lightning_robust import AdversarialCallback
from lightning_robust.cli import RobustCLI
from lightning_robust.demo.fashion_mnist import FashionMNISTData
from lightning_robust.demo.fashion_mnist.data import Clothes
from lightning_robust.tables import markdown

CONFIG = "configs/fashion_mnist.yaml"
LABELS, RADII = (250, 1000, 5000), (0.0, 0.005, 0.01, 0.02, 0.05)
STEPS, BATCH = 1500, 50
ATTACKED = 0.02
RECIPE = [
    "--model=models.FastNet",
    "--model.learning_rate=5e-3",
    "--model.weight_decay=0",
    "--data=few_labels.DrawnFashionMNIST",
    f"--data.batch_size={BATCH}",
    "--data.eval_batch_size=500",
    "--data.flip=false",
]


class DrawnFashionMNIST(FashionMNISTData):
    """Fashion-MNIST of which the training pictures are drawn, by the seed of the run."""

    def setup(self, stage: str) -> None:
        """Draw ``num_train`` of the 55,000; those that are validated and tested stay."""
        wanted, self.num_train = self.num_train, None
        super().setup(stage)
        self.num_train, whole = wanted, self._parts["train"]
        if wanted is not None and len(whole) > wanted:
            generator = torch.Generator().manual_seed(torch.initial_seed())
            drawn = torch.randperm(len(whole), generator=generator)[:wanted]
            self._parts["train"] = Clothes(*whole.__getitems__(drawn.tolist()))


def name_of(labels: int, radius: float) -> str:
    """A row."""
    return f"{labels} labels, " + (f"eps {radius:g}" if radius else "plain")


def switches(labels: int, radius: float) -> list[str]:
    """What a row adds to the recipe; validation only at the end, where nothing is chosen by it."""
    epochs = STEPS * BATCH // labels
    length = [
        f"--data.num_train={labels}",
        f"--trainer.max_epochs={epochs}",
        f"--trainer.check_val_every_n_epoch={epochs}",
    ]
    attack = ["--adversarial.method=fgsm_rs", f"--adversarial.eps={radius:g}", "--adversarial.val_eps=[]"]
    return length + attack * bool(radius)


ROWS = {name_of(labels, radius): switches(labels, radius) for labels in LABELS for radius in RADII}


def measured(cli: RobustCLI) -> dict[str, float]:
    """Clean accuracy and that under PGD-20."""
    attack = AdversarialCallback(eps=ATTACKED, val_eps=[ATTACKED], val_steps=20, val_batches=2)
    (found,) = quiet_trainer([attack]).test(cli.model, cli.datamodule, verbose=False)
    return {"clean": found["test/acc"], "attacked": found[f"adversarial/test_acc@{ATTACKED:g}"]}


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One row: train by its command, then measure."""
    return measured_run(CONFIG, seed, folder, [*RECIPE, *ROWS[name]], measured)


def table(results: Results, seeds: Sequence[int]) -> str:
    """What there is, and what each radius gained, seed by seed."""
    lines = []
    for labels in LABELS:
        for radius in RADII:
            pairs = [(f"{name_of(labels, radius)} | {s}", f"{name_of(labels, 0.0)} | {s}") for s in seeds]
            found = [tuple(results.content[key] for key in pair) for pair in pairs if set(pair) <= {*results.content}]
            if found:
                gains = [100 * (one["clean"] - plain["clean"]) for one, plain in found]
                gained = f"{statistics.fmean(gains):+.2f} ({', '.join(f'{gain:+.2f}' for gain in gains)})"
                clean, attacked = (summary([one[key] for one, _ in found]) for key in ("clean", "attacked"))
                lines.append([f"{labels:,}", f"{radius:g}", len(found), clean, gained if radius else "-", attacked])
    return markdown(["labels", "eps", "seeds", "clean", "gained, points", f"PGD-20 at {ATTACKED}"], lines)


def main() -> None:
    """Run what is missing and print the table."""
    given = options(__doc__, "runs/few_labels", ROWS)
    print("\n" + table(run_rows(given, trained), given.seeds))


if __name__ == "__main__":
    main()
