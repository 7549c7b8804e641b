"""Fast adversarial trainings of a small ResNet on 10,000 pictures of CIFAR-10, with and without an average of weights.

    python benchmarks/fastat.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/fastat] [--only PGD]

FGSM-RS, N-FGSM, PGD and TRADES, four of the methods that the FastAT benchmark (arXiv 2604.22853) ranks, at its eps of
8/255, and plain training. Here: 10,000 JPEG pictures brought down to 24 x 24 (``cifar.py``), a ResNet of seven narrow
convolutions, 15 epochs in fp32, so the order of the methods compares, not their numbers. Each training has a second
row, its exponential average (half of it within half an epoch), which it does not see. Clean accuracy is on the 10,000
test pictures, `auto` is ``RobustValidationCallback(evaluator="auto")`` on every tenth of them. Trained weights are
kept, which ``auto_attack.py`` attacks, and finished rows in ``results.json``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from averages import accuracy, data_of, fitted, tensors
from cifar import CifarData, SmallResNet, kept_weights
from rows import Columns, Results, options, quiet_trainer, slug

from lightning_robust import AdversarialCallback, RobustValidationCallback, SWACallback

EPS = "8/255"
PER_CLASS, EPOCHS, RATE, STEPS = 1_000, 15, 0.1, 7
WIDTHS = (16, 32, 64, 128)
EVERY = 10
"""One in so many test pictures is attacked; they lie sorted by class."""
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "FGSM-RS": {"method": "fgsm_rs"},
    "N-FGSM": {"method": "nfgsm"},
    "PGD": {"method": "pgd", "steps": STEPS},
    "TRADES": {"method": "trades", "steps": STEPS},
}
AVERAGE = {"kind": "ema", "start": 0, "every": 1, "half_life": "0.5 epochs", "bn_samples": 5_000}
COLUMNS: Columns = {
    "clean": ("clean", 100, ".1f"),
    "auto": ("auto", 100, ".1f"),
    "CPU s": ("cpu_seconds", 1, ".0f"),
}


def names_of(method: str) -> tuple[str, str]:
    """The rows of a training: its own weights, and their average."""
    return method, f"{method}, EMA"


def weights_of(method: str, seed: int, archive: Path, out: Path) -> dict[str, Any]:
    """The states of both rows of a training, by name, and its processor seconds; trained at the first call."""

    def made() -> dict[str, Any]:
        data, _ = data_of(archive, out, PER_CLASS, 0)
        attack = [AdversarialCallback(eps=EPS, val_eps=[], **METHODS[method])] if METHODS[method] else []
        began = time.process_time()
        states = fitted(
            seed, None, data, EPOCHS, RATE, *attack, SWACallback(**AVERAGE), precision="32-true", widths=WIDTHS
        )
        seconds = time.process_time() - began
        return {"states": dict(zip(names_of(method), states, strict=True)), "cpu_seconds": seconds}

    return kept_weights(out / "fastat" / slug(method) / f"{seed}.pt", made)


def measured(name: str, method: str, seed: int, archive: Path, out: Path) -> dict[str, float]:
    """Accuracy of a row's weights, clean and under `auto`."""
    kept = weights_of(method, seed, archive, out)
    data, _ = data_of(archive, out, PER_CLASS, 0)
    module = SmallResNet(widths=WIDTHS)
    module.load_state_dict(kept["states"][name])
    pictures, labels = data.test.pictures.numpy(), data.test.labels.numpy()
    clean = accuracy(module.eval(), tensors(data, pictures, labels))
    few = CifarData((pictures[:1], labels[:1]), (pictures[::EVERY], labels[::EVERY]))
    robust = RobustValidationCallback(EPS, evaluator="auto", batches=None)
    (found,) = quiet_trainer([robust]).validate(module, few, verbose=False)
    (attacked,) = (value for tag, value in found.items() if tag.startswith("adversarial/val_acc@"))
    return {"clean": clean, "auto": attacked, "cpu_seconds": kept["cpu_seconds"]}


def main() -> None:
    """Train what is missing and print the table and the order."""
    given = options(__doc__, "runs/fastat", METHODS, files=["archive"], parallel=False)
    torch.set_num_threads(1)
    results = Results(given.out)
    for seed in given.seeds:
        for method in given.only:
            for name in names_of(method):
                results.get(
                    name,
                    seed,
                    lambda name=name, method=method, seed=seed: measured(name, method, seed, given.archive, given.out),
                )
    rows = [name for method in given.only for name in names_of(method)]
    print("\n" + results.table(rows, given.seeds, COLUMNS))
    for seed in given.seeds:
        ranked = sorted(rows, key=lambda name, seed=seed: results.content[f"{name} | {seed}"]["auto"])
        print(f"seed {seed}, by auto, rising: {' < '.join(ranked)}")


if __name__ == "__main__":
    main()
