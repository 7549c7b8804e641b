"""What each attack in training buys on Fashion-MNIST, and how a plainly trained network falls with eps.

    python benchmarks/input_space.py [--seeds 0 1 2] [--out runs/input_space]

The network, the optimizer and the numbers of epochs are those of fast adversarial training's MNIST code. Every row is a
command of ``lightning-robust`` (with this folder on PYTHONPATH); finished ones are kept in ``results.json``. Accuracy
is on the 10,000 test pictures, and on the first 2,000 of them under attack.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lightning.pytorch as pl
from rows import Results, options, run, slug, summary

from lightning_robust import AdversarialCallback

CONFIG = "configs/fashion_mnist.yaml"
RECIPE = [
    "--model=models.FastNet",
    "--model.learning_rate=5e-3",
    "--model.weight_decay=0",
    "--data.batch_size=100",
    "--data.flip=false",
]
UNGUARDED = ["--adversarial.guard_every_n_steps=0"]
EPS, CURVE = 0.1, (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
ROWS = {
    "plain": (5, []),
    "fgsm": (3, ["--adversarial.method=fgsm", *UNGUARDED]),
    "fgsm_rs": (5, ["--adversarial.method=fgsm_rs", *UNGUARDED]),
    "nfgsm": (3, ["--adversarial.method=nfgsm", *UNGUARDED]),
    "pgd, 7 steps": (3, ["--adversarial.method=pgd", "--adversarial.step_size=0.025"]),
    "free, 4 replays": (8, ["--adversarial.method=free", "--adversarial.steps=4"]),
    "trades, 5 steps": (2, ["--adversarial.method=trades", "--adversarial.steps=5"]),
}


def row(results: Results, name: str, seed: int) -> None:
    """Train, then test clean, under FGSM and under PGD-40."""
    folder = results.folder / slug(name) / str(seed)
    epochs, switches = ROWS[name]
    common = [f"--adversarial.eps={EPS}", "--adversarial.val_eps=[]"]

    def fit() -> dict[str, float]:
        start = time.perf_counter()
        arguments = [*RECIPE, f"--trainer.max_epochs={epochs}", *switches, *(common if switches else [])]
        cli = run("fit", CONFIG, seed, folder, *arguments)
        seconds = time.perf_counter() - start
        curve = list(CURVE) if name == "plain" else [EPS]
        numbers = {"seconds": seconds}
        for label, steps, radii in (("FGSM", 0, curve), ("PGD-40", 40, [EPS])):
            attack = AdversarialCallback(eps=EPS, val_eps=radii, val_steps=steps, val_batches=20)
            trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[attack], enable_progress_bar=False)
            (found,) = trainer.test(cli.model, cli.datamodule, verbose=False)
            numbers["clean"] = found["test/acc"]
            numbers |= {f"{label}@{radius:g}": found[f"adversarial/test_acc@{radius:g}"] for radius in radii}
        return numbers

    results.get(name, seed, fit)


def main() -> None:
    """Run what is missing and print the tables."""
    sys.path.insert(0, str(Path(__file__).parent))
    given = options(__doc__, "runs/input_space")
    results, seeds = Results(given.out), given.seeds
    for seed in seeds:
        for name in ROWS:
            row(results, name, seed)

    def cell(name: str, key: str) -> str:
        return summary([results.content[f"{name} | {seed}"][key] for seed in seeds])

    print(f"\n| training, eps {EPS} | clean | FGSM | PGD-40 |\n| --- | --- | --- | --- |")
    for name in ROWS:
        print(f"| {name} | {' | '.join(cell(name, key) for key in ('clean', f'FGSM@{EPS}', f'PGD-40@{EPS}'))} |")
    print("\n| eps | accuracy of plain training under FGSM |\n| --- | --- |")
    for radius in CURVE:
        print(f"| {radius} | {cell('plain', f'FGSM@{radius:g}')} |")


if __name__ == "__main__":
    main()
