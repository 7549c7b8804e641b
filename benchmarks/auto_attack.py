"""What `auto` leaves of five classifiers, beside the pieces of AutoAttack in torchattacks, and what both cost.

    pip install --no-deps torchattacks
    python benchmarks/auto_attack.py --archive cifar10-jpeg.tar.gz [--seeds 0] [--out runs/fastat]

Three networks on Fashion-MNIST, trained plainly, by FGSM-RS and by PGD as ``input_space.py`` trains them, and two small
ResNets of ``fastat.py`` on CIFAR-10 from JPEG files, trained plainly and by PGD. Both sides attack the same test
pictures, linf, inputs in [0, 1], fp32: 1,000 of Fashion-MNIST, and every twentieth of CIFAR-10's, which lie sorted by
class. AutoAttack's pieces have the settings of its paper (APGD and FAB with 100 steps, nine targets, Square with 5,000
queries) and, as there, each attacks what the ones before have left. A pass is one picture forward, or one back to the
inputs. Finished rows are kept in ``results.json``, trained weights beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import input_space
import torch
from averages import data_of
from cifar import CifarData, SmallResNet, kept_weights
from fastat import WIDTHS, weights_of
from models import FastNet
from rows import Results, options, run, slug
from torch import Tensor, nn

from lightning_robust.demo.fashion_mnist import FashionMNISTData
from lightning_robust.functional.averaging import State
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.functional.worst_case import worst_prediction
from lightning_robust.tables import markdown

STEPS, QUERIES, CLASSES = 100, 5_000, 10
"""Of AutoAttack."""
CLOTHES, EVERY = 1_000, 20
"""Pictures of Fashion-MNIST; one in so many of CIFAR-10."""


@dataclass(frozen=True)
class Row:
    """A network and the radius that it is attacked with.

    Args:
        trained: Name of the training, in ``input_space.py`` or ``fastat.py``.
        eps: The radius.
        cifar: Whether it is one of ``fastat.py``.
    """

    trained: str
    eps: float
    cifar: bool = False


ROWS = {
    "Fashion-MNIST, plain": Row("plain", 0.02),
    "Fashion-MNIST, FGSM-RS": Row("fgsm_rs", 0.1),
    "Fashion-MNIST, PGD": Row("pgd, 7 steps", 0.1),
    "CIFAR-10, plain": Row("plain", 1 / 255, cifar=True),
    "CIFAR-10, PGD": Row("PGD", 8 / 255, cifar=True),
}


class Counted(nn.Module):
    """A network of pixels in [0, 1] that counts pictures forward and back to its inputs."""

    def __init__(self, network: nn.Module, pixels: PixelSpace) -> None:
        super().__init__()
        self.network, self.pixels, self.passes = network, pixels, 0
        self.eval()  # as a whole, for torchattacks puts the mode of the whole back behind each attack

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        self.passes += len(images)
        if images.requires_grad and torch.is_grad_enabled():
            images = images * 1  # its gradient is computed once for each pass back, however it is asked for
            images.register_hook(self._count)
        logits: Tensor = self.network(self.pixels.from_pixels(images))
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.passes += len(gradient)


def by_auto(network: Counted, images: Tensor, labels: Tensor, eps: float, seed: int) -> dict[str, float]:
    """What ``evaluator="auto"`` leaves with its defaults, in one batch."""
    generator = torch.Generator().manual_seed(seed)
    found = worst_prediction(
        lambda pixels, rows: network(pixels), images, labels, eps, bounds=(0, 1), generator=generator
    )
    each = {f"solved by {name}": count / len(images) for name, count in found.found.items()}
    return {"acc": found.robust_share, "passes": network.passes / len(images), **each}


def pieces(network: Counted, eps: float, seed: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The attacks of torchattacks that AutoAttack consists of, with the settings of its paper.

    Raises:
        SystemExit: If torchattacks is not installed.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise SystemExit(f"{error}. Install it: pip install --no-deps torchattacks") from error
    common: dict[str, Any] = {"eps": eps, "norm": "Linf", "seed": seed}
    return {
        "APGD-CE": torchattacks.APGD(network, steps=STEPS, loss="ce", **common),
        "APGD-T": torchattacks.APGDT(network, steps=STEPS, n_classes=CLASSES, **common),
        "FAB-T": torchattacks.FAB(network, steps=STEPS, multi_targeted=True, n_classes=CLASSES, **common),
        "Square": torchattacks.Square(network, n_queries=QUERIES, **common),
    }


def by_torchattacks(network: Counted, images: Tensor, labels: Tensor, eps: float, seed: int) -> dict[str, float]:
    """What the pieces leave, one after the other."""
    numbers: dict[str, float] = {}
    with torch.no_grad():
        left = torch.nonzero(network(images).argmax(1) == labels).flatten()
    numbers["clean"] = len(left) / len(images)
    for name, attack in pieces(network, eps, seed).items():
        if len(left):
            attacked = attack(images[left], labels[left])
            passes = network.passes
            with torch.no_grad():
                left = left[network(attacked).argmax(1) == labels[left]]
            network.passes = passes  # the look is the table's
        numbers |= {f"after {name}": len(left) / len(images)}
    return numbers | {"acc": len(left) / len(images), "passes": network.passes / len(images)}


SIDES = {"auto": by_auto, "AutoAttack": by_torchattacks}


def attacked_task(name: str, seed: int, given: argparse.Namespace) -> tuple[Counted, Tensor, Tensor]:
    """A trained network, and the pictures in [0, 1] and labels that it is attacked on."""
    row = ROWS[name]
    if row.cifar:
        kept = weights_of(row.trained, seed, given.archive, given.out)
        data, _ = data_of(given.archive, given.out, 1, 0)
        network = SmallResNet(widths=WIDTHS)
        network.load_state_dict(kept["states"][row.trained])
        pictures, labels = data.test[list(range(0, len(data.test), EVERY))]
        images = pictures.contiguous().float() / 255  # torchattacks' FAB views them, which channels last forbid
        return Counted(network, PixelSpace(CifarData.mean, CifarData.std)), images, labels
    clothes = FashionMNISTData(eval_batch_size=CLOTHES)
    clothes.setup("test")
    images, labels = next(iter(clothes.test_dataloader()))
    net = FastNet()
    net.load_state_dict(clothes_weights(row.trained, seed, given.out))
    return Counted(net, PixelSpace(clothes.mean, clothes.std)), images.float() / 255, labels


def clothes_weights(trained: str, seed: int, out: Path) -> State:
    """Weights of a training of ``input_space.py``; trained at the first call."""

    def made() -> State:
        epochs, switches = input_space.ROWS[trained]
        attack = [f"--adversarial.eps={input_space.EPS}", "--adversarial.val_eps=[]"] if switches else []
        arguments = [*input_space.RECIPE, f"--trainer.max_epochs={epochs}", *switches, *attack]
        cli = run("fit", input_space.CONFIG, seed, out / "trainings" / slug(trained) / str(seed), *arguments)
        return state_on_cpu(cli.model)

    return kept_weights(out / "weights" / slug(trained) / f"{seed}.pt", made)


def measured(name: str, side: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """One row: a network under one side's attacks."""
    network, images, labels = attacked_task(name, seed, given)
    return SIDES[side](network, images, labels, ROWS[name].eps, seed)


def table(results: Results, names: list[str], seeds: list[int]) -> str:
    """Both sides of each network and seed."""
    lines = []
    for name in names:
        for seed in seeds:
            ours, theirs = (results.content.get(f"{name}, {side} | {seed}") for side in SIDES)
            if ours is None or theirs is None:
                continue
            points = [
                100 * theirs["clean"],
                100 * ours["acc"],
                100 * theirs["acc"],
                100 * (ours["acc"] - theirs["acc"]),
            ]
            cells = [f"{point:.1f}" for point in points]
            cells += [f"{ours['passes']:.0f}", f"{theirs['passes']:.0f}", f"{ours['passes'] / theirs['passes']:.2f}"]
            lines.append([name, seed, f"{ROWS[name].eps:.4g}", *cells])
    heads = ["network", "seed", "eps", "clean", "auto", "AutoAttack", "difference", "passes", "AutoAttack's", "ratio"]
    return markdown(heads, lines)


def main() -> None:
    """Do what is missing and print the table."""
    given = options(__doc__, "runs/fastat", ROWS, files=["archive"], parallel=False)
    torch.set_num_threads(1)
    results = Results(given.out)
    for seed in given.seeds:
        for name in given.only:
            for side in SIDES:
                results.get(
                    f"{name}, {side}", seed, lambda name=name, side=side, seed=seed: measured(name, side, seed, given)
                )
    print("\n" + table(results, given.only, given.seeds))


if __name__ == "__main__":
    main()
