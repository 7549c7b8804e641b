"""How wide the optima are that SGD, SWA, EMA, a soup, SWALP and adversarial training find: profiles and sharpness.

    python benchmarks/landscape.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/averages] [--jobs 1]

Of the weights that ``averages.py`` trains, and keeps in the folder that ``quantised_averages.py`` shares. Each row:
the accuracy on all test pictures; the cross entropy on 1,000 test and 1,000 training pictures, its mean rise along
four random filter-normalised directions (the same draws for every row) a quarter and a half of the filters' length
away; and on 500 of the training pictures the largest eigenvalue of the Hessian, and that in units of the filters'
lengths, which a rescaled network shares. BatchNorm statistics are taken anew for each set of weights from the
pictures that it is judged on; in the Hessian BatchNorm normalises by the batch, as in training. Last, the loss on the
line from SGD (0) to each of the others (1). Finished rows are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from averages import ROWS, accuracy, data_of, seconds_of, tensors, weights_of
from cifar import Batch, SmallResNet
from rows import Columns, options, run_rows
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_robust.functional.averaging import State
from lightning_robust.functional.landscape import filter_norms, loss_along, loss_between, random_direction
from lightning_robust.functional.sharpness import largest_curvature
from lightning_robust.functional.state_loss import StateLoss, Statistics, module_loss

DISTANCES = (-0.5, -0.25, 0.0, 0.25, 0.5)
POSITIONS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
DIRECTIONS, PICTURES, CURVED = 4, 1_000, 500
BASE = "SGD"
COLUMNS: Columns = {
    "accuracy": ("test/acc", 100, ".2f"),
    "loss, train": ("train/0", 1, ".3f"),
    "loss, test": ("test/0", 1, ".3f"),
    "rise at 0.25, train": ("train/rise 0.25", 1, ".3f"),
    "test": ("test/rise 0.25", 1, ".3f"),
    "rise at 0.5, train": ("train/rise 0.5", 1, ".3f"),
    "at 0.5, test": ("test/rise 0.5", 1, ".3f"),
    "eigenvalue": ("sharpness", 1, ".1f"),
    "its residual": ("sharpness/residual", 1, ".1f"),
    "by filters": ("sharpness/filters", 1, ".2f"),
    "residual": ("sharpness/filters/residual", 1, ".2f"),
    "CPU s": ("cpu_seconds", 1, ".0f"),
}
LINE: Columns = {
    f"{part} {position:g}": (f"{part}/line {position:g}", 1, ".3f")
    for part in ("train", "test")
    for position in POSITIONS
}


def judged(module: SmallResNet, batch: Batch) -> Tensor:
    """The cross entropy of each picture."""
    return cross_entropy(module(batch[0]), batch[1], reduction="none")


def loss_of(batch: Batch, size: int = 250, batchnorm: Statistics = "refresh") -> StateLoss:
    """The loss of the small ResNet on some pictures."""
    batches = list(zip(batch[0].split(size), batch[1].split(size), strict=True))
    return module_loss(SmallResNet(), lambda: batches, judged, batchnorm=batchnorm)


def parameters(state: State) -> State:
    """Without statistics, which belong to no other weights."""
    return {name: state[name] for name, _ in SmallResNet().named_parameters()}


def profiles(loss: StateLoss, state: State, base: State) -> dict[str, float]:
    """The loss, its mean rise over directions by distance, and the line from the base."""
    found = []
    for number in range(DIRECTIONS):
        direction = random_direction(state, torch.Generator().manual_seed(number))
        found.append(loss_along(loss, state, direction, DISTANCES))
    losses = torch.stack(found).mean(0).tolist()
    by_distance = dict(zip(DISTANCES, losses, strict=True))
    line = loss_between(loss, base, state, POSITIONS).tolist()
    return {
        **{f"{distance:g}": value for distance, value in by_distance.items()},
        **{f"rise {d:g}": (by_distance[d] + by_distance[-d]) / 2 - by_distance[0.0] for d in DISTANCES if d > 0},
        **{f"line {position:g}": value for position, value in zip(POSITIONS, line, strict=True)},
    }


def curvatures(batch: Batch, state: State) -> dict[str, float]:
    """The largest eigenvalue, plain and in units of the filters' lengths, and how exact both are."""
    loss, numbers = loss_of((batch[0][:CURVED], batch[1][:CURVED]), batchnorm="batch"), {}
    for name, scales in (("sharpness", None), ("sharpness/filters", filter_norms(state))):
        start = torch.Generator().manual_seed(0)
        found = largest_curvature(loss, state, steps=40, tolerance=0.05, scales=scales, generator=start)
        numbers |= {name: found.eigenvalue, f"{name}/residual": found.residual, f"{name}/products": found.products}
    return numbers


def measured(name: str, seed: int, folder: Path, archive: Path) -> dict[str, float]:
    """One row: train where that is missing, then measure."""
    torch.set_num_threads(1)
    out = folder.parents[2]
    whole = weights_of(name, seed, archive, out)
    state, base = parameters(whole), parameters(weights_of(BASE, seed, archive, out))
    data, _ = data_of(archive, out)
    module = SmallResNet().eval()
    module.load_state_dict(whole)
    test = tensors(data, data.test.pictures.numpy(), data.test.labels.numpy())
    numbers = {"test/acc": accuracy(module, test), "cpu_seconds": seconds_of(name, seed, archive, out)}
    for part, pictures in (("train", data.train), ("test", data.test)):
        chosen = np.random.default_rng(0).permutation(len(pictures))[:PICTURES]
        batch = tensors(data, pictures.pictures.numpy()[chosen], pictures.labels.numpy()[chosen])
        numbers |= {f"{part}/{tag}": value for tag, value in profiles(loss_of(batch), state, base).items()}
        if part == "train":
            numbers |= curvatures(batch, state)
    return numbers


def main() -> None:
    """Run what is missing and print the tables."""
    given = options(__doc__, "runs/averages", ROWS, files=["archive"])
    own = argparse.Namespace(**{**vars(given), "out": given.out / "landscape"})
    results = run_rows(own, measured, given.archive)
    print("\n" + results.table(given.only, given.seeds, COLUMNS))
    print("\n" + results.table([name for name in given.only if name != BASE], given.seeds, LINE))


if __name__ == "__main__":
    main()
