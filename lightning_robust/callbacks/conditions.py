"""Conditions to evaluate weights under: clean batches, attacked ones, or the preprocessing of the deployed side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.attacked_batches import (
    AttackInputs,
    BatchPixels,
    ModuleLoss,
    Perturb,
    attack_batch,
    outside_inference,
    own_step,
)
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation, perturbations
from lightning_robust.deployment.pixels.perturb import perturb
from lightning_robust.functional.attacks import fgsm, pgd
from lightning_robust.harness.evaluate import Transform
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.steps import call_step
from lightning_robust.structures import get_item, replace_items

ATTACK = "fgsm"
PGD = "pgd"


@dataclass(frozen=True)
class Condition:
    """What is done to held-out batches before they are evaluated.

    Args:
        name: As in figures and tags.
        transform: Nothing if None.
    """

    name: str
    transform: Transform | None = None


CLEAN = Condition("clean")


def named_perturbations(names: list[str]) -> list[Perturbation]:
    """Entries of the catalogue by name, family, or the beginning of a name (``"jpeg"``: the typical ones of these).

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> [entry.name for entry in named_perturbations(["jpeg"])]
        ['jpeg_90']
    """
    entries: dict[str, Perturbation] = {}
    for name in names:
        alike = [e for key, e in CATALOGUE.items() if key.startswith(f"{name}_") and e.severity == "typical"]
        chosen = alike if alike and name not in CATALOGUE else perturbations([name])
        entries |= {entry.name: entry for entry in chosen}
    return list(entries.values())


def preprocessed(
    trainer: pl.Trainer, pl_module: pl.LightningModule, entry: Perturbation, inputs: AttackInputs
) -> Condition:
    """Pictures as the deployed side's preprocessing makes them from the same pixels.

    Args:
        trainer: Its data module may say how pictures were normalised.
        pl_module: The module that they go into.
        entry: The perturbation, from the catalogue.
        inputs: Where in a batch the pictures are, and how they were normalised.
    """
    space = pixel_space(trainer, inputs.mean, inputs.std)

    def transform(batch: Any, index: int, loader: int) -> Any:
        key = inputs.in_batch(pl_module, batch).keys[0]
        images = get_item(batch, key)
        if not isinstance(images, Tensor) or images.ndim != 4 or not entry.applies_to(images.shape[1]):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"Expected pictures (N, {'3' if entry.colour else '1 or 3'}, H, W) at input_key={key!r} for "
                f"{entry.name!r}, but got {shape}. Set `input_key`, or take it out of `under`."
            )
        (sample,) = perturb(images, space, [entry])
        return replace_items(batch, {key: sample.deployed()})

    return Condition(entry.name, transform)


def attacked(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    inputs: AttackInputs,
    eps: float,
    *,
    steps: int | None = None,
    seed: int = 0,
    perturb: Perturb | None = None,
) -> Condition:
    """Inputs perturbed to raise the loss of the network as it is when it is evaluated.

    Args:
        trainer: Its data module may say how pictures were normalised.
        pl_module: The module.
        inputs: What of a batch is perturbed.
        eps: Radius of each input, in pixels.
        steps: Of PGD from a random start; None takes a single FGSM step.
        seed: With the index of the batch, decides the random start.
        perturb: Another attack instead of these two.
    """
    step = own_step(pl_module)
    inputs.find_normalisation(trainer)

    def transform(batch: Any, index: int, loader: int) -> Any:
        perturbed = inputs.in_batch(pl_module, batch)
        view = BatchPixels(perturbed, outside_inference(batch), [eps] * len(perturbed.keys))

        def climb(loss: Callable[..., Tensor], pixels: Tensor, radius: Tensor) -> Tensor:
            if steps is None:
                return fgsm(loss, pixels, radius, bounds=view.range)
            generator = torch.Generator(pixels.device).manual_seed(seed + index)
            return pgd(loss, pixels, radius, steps=steps, bounds=view.range, generator=generator)

        loss = ModuleLoss(pl_module, lambda part: call_step(step, part, index))
        return attack_batch(trainer, view, perturb or climb, loss, stage="validating")

    return Condition(ATTACK if steps is None else PGD, transform)
