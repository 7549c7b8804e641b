"""Fast adversarial trainings of a small ResNet on 10,000 pictures of CIFAR-10, with and without an average of weights.

    python benchmarks/fastat.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/fastat] [--only PGD]

FGSM-RS, N-FGSM, PGD and TRADES, four of the methods that the FastAT benchmark (arXiv 2604.22853) ranks, at its eps of
8/255. Here: 10,000 JPEG pictures brought down to 24 x 24 (``cifar.py``), a ResNet of seven convolutions, 15 epochs, so
the order of the methods compares, not their numbers. Each training has a second row, its exponential average
(half of it within half an epoch), which it does not see. Clean accuracy is on the 10,000 test pictures, `auto` is
``RobustValidationCallback(evaluator="auto")`` on every tenth of them. Finished rows are kept in ``results.json``.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from averages import accuracy, data_of, fitted, tensors
from cifar import CifarData, SmallResNet
from rows import Columns, Results, options, quiet_trainer

from lightning_robust import AdversarialCallback, RobustValidationCallback, SWACallback
from lightning_robust.functional.averaging import State

EPS = "8/255"
PER_CLASS, EPOCHS, RATE, STEPS = 1_000, 15, 0.1, 7
EVERY = 10
"""One in so many test pictures is attacked; they lie sorted by class."""
METHODS = {
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


def trained(results: Results, method: str, seed: int, archive: Path) -> None:
    """Both rows of a training, if one is missing."""
    names = names_of(method)
    if all(f"{name} | {seed}" in results.content for name in names):
        return
    data, _ = data_of(archive, results.folder, PER_CLASS, 0)
    attack = AdversarialCallback(eps=EPS, val_eps=[], **METHODS[method])
    began = time.process_time()
    states = fitted(seed, None, data, EPOCHS, RATE, attack, SWACallback(**AVERAGE))
    seconds = time.process_time() - began
    for name, state in zip(names, states, strict=True):
        results.put(name, seed, measured(state, data) | {"cpu_seconds": seconds})


def measured(state: State, data: CifarData) -> dict[str, float]:
    """Accuracy of weights, clean and under `auto`."""
    module = SmallResNet()
    module.load_state_dict(state)
    pictures, labels = data.test.pictures.numpy(), data.test.labels.numpy()
    clean = accuracy(module.eval(), tensors(data, pictures, labels))
    few = CifarData((pictures[:1], labels[:1]), (pictures[::EVERY], labels[::EVERY]))
    robust = RobustValidationCallback(EPS, evaluator="auto", batches=None)
    (found,) = quiet_trainer([robust]).validate(module, few, verbose=False)
    (attacked,) = (value for tag, value in found.items() if tag.startswith("adversarial/val_acc@"))
    return {"clean": clean, "auto": attacked}


def main() -> None:
    """Train what is missing and print the table and the order."""
    given = options(__doc__, "runs/fastat", METHODS, files=["archive"], parallel=False)
    torch.set_num_threads(1)
    results = Results(given.out)
    for seed in given.seeds:
        for method in given.only:
            trained(results, method, seed, given.archive)
    rows = [name for method in given.only for name in names_of(method)]
    print("\n" + results.table(rows, given.seeds, COLUMNS))
    for seed in given.seeds:
        ranked = sorted(rows, key=lambda name, seed=seed: results.content[f"{name} | {seed}"]["auto"])
        print(f"seed {seed}, by auto, rising: {' < '.join(ranked)}")


if __name__ == "__main__":
    main()
