"""What PreprocessingMixin costs beside a plain training step of the lane detector, and the perturbations alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from racing import race, table

from lightning_robust.demo.lanes.data import MEAN, STD, normalise
from lightning_robust.demo.lanes.detector import RobustLaneDetector
from lightning_robust.demo.lanes.rendering import render_roads
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.pixels.draws import draw
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.mixins.preprocessing.groups import Group, perturb_groups, rows_of_groups

ON = {"preprocessing_weight": 1.0, "preprocessing_mean": list(MEAN), "preprocessing_std": list(STD)}
ROWS: dict[str, dict[str, Any]] = {
    "plain step": {},
    "random, share 0.5": ON,
    "random, share 0": ON | {"preprocessing_share": 0.0},
    "worst of 3": ON | {"preprocessing_draw": "worst"},
}


def stepping(images: torch.Tensor, columns: torch.Tensor, settings: dict[str, Any]) -> Callable[[], None]:
    """One training step; each call draws other perturbations."""
    module = RobustLaneDetector(**settings).train()
    module._preprocessing._space = PixelSpace(MEAN, STD)
    for name in ("log", "log_dict"):
        object.__setattr__(module, name, lambda *_, **__: None)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    module._seed = 0

    def step() -> None:
        module._seed = (module._seed or 0) + 1
        optimizer.zero_grad()
        module.training_step((images, columns), 0).backward()
        optimizer.step()

    return step


def perturbing(images: torch.Tensor) -> Callable[[], None]:
    """All typical entries, four a batch as in a step, so that each round costs the mean of a step."""
    entries, space, generator = perturbations("typical"), PixelSpace(MEAN, STD), torch.Generator()
    height, width = images.shape[-2:]
    number = 0

    def perturb() -> None:
        nonlocal number
        rows = rows_of_groups(len(images), 4)
        chosen = [entries[(number + place) % len(entries)] for place in range(4)]
        size = (len(images) // 4, height, width)
        groups = [Group(part, draw(entry, size, None, generator)) for part, entry in zip(rows, chosen, strict=True)]
        space.check(images)
        perturb_groups(images, space, groups)
        number += 4

    return perturb


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    roads = render_roads(torch.arange(options.batch), seed=0, height=144, width=256)
    images, columns = normalise(roads.images.float()), roads.columns * 960 / 256
    steps = {row: stepping(images, columns, settings) for row, settings in ROWS.items()}
    steps["perturbations alone"] = perturbing(images)
    table(f"Lane detector, batch of {options.batch}", race(steps, options.rounds))


if __name__ == "__main__":
    main()
