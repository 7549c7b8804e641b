"""Every technique alone, three combinations, and ways to initialise, under one recipe on Fashion-MNIST.

    python benchmarks/suite.py [--seeds 0 1 2] [--out runs/suite] [--only plain EMA]

Every row is a command of ``lightning-robust`` over 5,000 pictures and ten epochs; finished ones are kept in
``results.json`` and not run again. Measured on the test pictures: clean and shifted (``objectives.py``), attacked by
one FGSM step and by PGD with 20 steps at eps 8/255 (the first 2,000), the distance of emulated fp16 and tf32 from
PyTorch (relative L2 of the logits, 64 pictures), and the seconds that training took. WiSE-FT needs a model to
fine-tune and has its own table (``weight_space.py``); the diagnostics leave weights alone.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
from objectives import looked_at
from rows import Results, options, quiet_trainer, run, summary
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_robust import AdversarialCallback, measure_parity
from lightning_robust.cli import RobustCLI
from lightning_robust.demo.fashion_mnist import RobustImageClassifier
from lightning_robust.deployment.export import frozen_copy
from lightning_robust.deployment.runtimes import Subject, available
from lightning_robust.functional.rotation import rotate_quadrants

CONFIG = "configs/fashion_mnist.yaml"
RECIPE = ["--data.num_train=5000", "--trainer.max_epochs=10"]
EPS = "8/255"
ADVERSARIAL = ["--adversarial.eps=0.05", "--adversarial.val_eps=[]"]
FGSM = [*ADVERSARIAL, "--adversarial.method=fgsm_rs"]
EMA = ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.5 epochs", "--swa.bn_samples=5000"]
SWA = ["--swa.start=7", "--swa.bn_samples=5000"]
REGMIXUP = ["--model.regmixup_weight=1"]
SOUP = ["--greedy_soup.ingredients=epochs", "--greedy_soup.monitor=val/acc", "--greedy_soup.mode=max"]
REWIND = ["monitor=val/acc", "mode=max", "rewind=true", "threshold=0.5", "tolerance=0.1", "checkpoints=[]", "draws=1"]
ROWS = {
    "plain": [],
    "FGSM-RS": FGSM,
    "PGD-5": [*ADVERSARIAL, "--adversarial.method=pgd", "--adversarial.steps=5", "--adversarial.step_size=0.02"],
    "TRADES": [*ADVERSARIAL, "--adversarial.method=trades", "--adversarial.steps=5", "--adversarial.step_size=0.02"],
    "SWA": SWA,
    "EMA": EMA,
    "SWALP, 8 bits": [*SWA, "--swa.word_length=8"],
    "greedy soup of epochs": SOUP,
    "RegMixup": REGMIXUP,
    "rotation": ["--model.rotation_weight=0.5"],
    "UAT-OT": ["--model.uat_ot_weight=5", "--model.uat_eps=0.05", "--model.uat_steps=3"],
    "FGSM-RS, EMA": [*FGSM, *EMA],
    "FGSM-RS, RegMixup": [*FGSM, *REGMIXUP],
    "RegMixup, EMA": [*REGMIXUP, *EMA],
}
REWOUND = "ambient layers rewound"


def kaiming(module: nn.Module) -> None:
    """Normal, fan in, no bias (He et al., 2015)."""
    for part in _layers(module):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        nn.init.zeros_(part.bias)


def orthogonal(module: nn.Module) -> None:
    """Orthogonal with the gain of a rectifier (Saxe et al., 2014)."""
    for part in _layers(module):
        nn.init.orthogonal_(part.weight, nn.init.calculate_gain("relu"))
        nn.init.zeros_(part.bias)


@torch.no_grad()
def small(module: nn.Module) -> None:
    """PyTorch's, a tenth as large."""
    for part in _layers(module):
        part.weight.mul_(0.1)
        part.bias.mul_(0.1)


def rotated(module: RobustImageClassifier) -> None:
    """The trunk trained for three epochs to tell four rotations of the training pictures apart, without labels."""
    from lightning_robust.demo.fashion_mnist import FashionMNISTData

    quiet_trainer([], max_epochs=3).fit(
        _Rotations(module.trunk, module.head.in_features), FashionMNISTData(num_train=5000)
    )


class _Rotations(pl.LightningModule):
    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk, self.turns = trunk, nn.Linear(width, 4)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, turns = rotate_quadrants(batch[0])
        return cross_entropy(self.turns(self.trunk(images).flatten(1)), turns)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


SCHEMES: dict[str, Callable[[RobustImageClassifier], None]] = {
    "Kaiming": kaiming,
    "orthogonal": orthogonal,
    "small scale": small,
    "pretrained by rotation": rotated,
}


def _layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]


def begun(scheme: str, seed: int, folder: Path) -> list[str]:
    """The switch that begins from a scheme's weights."""
    pl.seed_everything(seed)
    module = RobustImageClassifier()
    SCHEMES[scheme](module)
    path = folder / f"{scheme.replace(' ', '_')}_{seed}.pt"
    torch.save(module.state_dict(), path)
    return [f"--model.weights={path}"]


def measured(cli: RobustCLI) -> dict[str, float]:
    """All columns but the time."""
    seen = looked_at(cli)
    attacks = {}
    for steps in (1, 20):
        attack = AdversarialCallback(eps=EPS, val_eps=[EPS], val_steps=steps, val_batches=20)
        (found,) = quiet_trainer([attack]).test(cli.model, cli.datamodule, verbose=False)
        (attacks[steps],) = (value for tag, value in found.items() if tag.startswith("adversarial/test_acc@"))
    images = next(iter(cli.datamodule.test_dataloader()))[0][:64]
    subject = Subject(frozen_copy(cli.model), (cli.datamodule.on_after_batch_transfer((images, images), 0)[0],))
    parity = measure_parity(subject, available(["emulated-fp16", "emulated-tf32"])).targets
    distances = {name: parity[f"emulated-{name}"].metrics["rel_l2"] for name in ("fp16", "tf32")}
    return {
        "clean": seen["clean"],
        "shifted": seen["shifted"],
        "FGSM": attacks[1],
        "PGD-20": attacks[20],
        **distances,
    }


def trained(arguments: list[str], seed: int, folder: Path) -> dict[str, float]:
    """Train by one command, then measure."""
    began = time.perf_counter()
    cli = run("fit", CONFIG, seed, folder, *RECIPE, *arguments)
    seconds = time.perf_counter() - began
    return {**measured(cli), "seconds": seconds}


def rows(folder: Path, seed: int) -> dict[str, Callable[[], list[str]]]:
    """Row -> what gives its switches; pretraining happens only where a row is run."""
    found: dict[str, Callable[[], list[str]]] = {name: functools.partial(list, args) for name, args in ROWS.items()}
    found |= {name: functools.partial(begun, name, seed, folder) for name in SCHEMES}
    return found | {REWOUND: lambda: [f"--layer_criticality.{setting}" for setting in REWIND]}


def main(given: argparse.Namespace) -> None:
    """Run what is missing and print the table."""
    results = Results(given.out)
    for seed in given.seeds:
        for name in given.only:
            switches = rows(results.folder, seed)[name]
            place = results.folder / name.replace(" ", "_").replace(",", "") / str(seed)
            results.get(name, seed, lambda s=switches, p=place, n=seed: trained(s(), n, p))  # type: ignore[misc]
    columns = ("clean", "shifted", "FGSM", "PGD-20")
    print(f"\n| training | {' | '.join(columns)} | fp16 | tf32 | seconds |\n|{' --- |' * 8}")
    for name in given.only:
        each = [results.content[f"{name} | {seed}"] for seed in given.seeds]
        middle = {key: sorted(numbers[key] for numbers in each)[len(each) // 2] for key in ("fp16", "tf32", "seconds")}
        cells = [summary([numbers[column] for numbers in each]) for column in columns]
        print(
            f"| {name} | {' | '.join(cells)} | {middle['fp16']:.1e} | {middle['tf32']:.1e} | {middle['seconds']:.0f} |"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(options(__doc__, "runs/suite", [*ROWS, *SCHEMES, REWOUND]))
