"""Conditions to evaluate weights under: clean batches, attacked ones, corrupted ones, another preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.attacked_batches import (
    AttackInputs,
    BatchPixels,
    Perturb,
    attack_batch,
    outside_inference,
)
from lightning_robust.callbacks.module_loss import ModuleLoss, own_step
from lightning_robust.checks import check_known
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation, perturbations
from lightning_robust.deployment.pixels.corruptions import Corruption, corruptions
from lightning_robust.deployment.pixels.corruptions.names import (
    ALL_CORRUPTIONS,
    CORRUPTION_FAMILIES,
    CORRUPTION_NAMES,
    is_corruption,
)
from lightning_robust.deployment.pixels.layout import ARRANGEMENTS, layout_of
from lightning_robust.deployment.pixels.names import FAMILIES, Names
from lightning_robust.deployment.pixels.perturb import InputPictures, perturb
from lightning_robust.extensions import extension_names
from lightning_robust.functional.attacks import fgsm, pgd
from lightning_robust.harness.evaluate import Transform
from lightning_robust.harness.inputs import first_input
from lightning_robust.harness.steps import call_step
from lightning_robust.harness.trainers import data_module
from lightning_robust.structures import Key, get_item, replace_items

ATTACK = "fgsm"
PGD = "pgd"
Entry = Perturbation | Corruption
"""What a name of a condition on pictures stands for."""
_WHOLE: dict[str, Names] = {"typical": "typical", "all": "all"}
_KNOWN = [*dict.fromkeys((*CORRUPTION_NAMES, *CORRUPTION_FAMILIES, ALL_CORRUPTIONS, *CATALOGUE, *FAMILIES, *_WHOLE))]


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


def named_entries(names: list[str], severity: int | None = None) -> list[Entry]:
    """Corruptions and perturbations by name, in the order of the names, each once.

    Corruptions have names (``"fog"``), families (``"weather"``) and severities (``"fog@3"``); ``"corruptions"`` is all
    of them. Perturbations have names, families, or the beginning of a name (``"jpeg"``: the typical ones of these);
    ``"typical"`` and ``"all"`` are those of the catalogue.

    Args:
        names: As above.
        severity: Of corruptions that are named without one; None takes all five.

    Raises:
        ValueError: For an unknown name, of which the message names the nearest, and a severity outside of 1 to 5.

    Example:
        >>> [name_of(entry) for entry in named_entries(["jpeg", "fog@2", "blur"], severity=3)]
        ['jpeg_90', 'fog@2', 'motion_blur@3', 'defocus_blur@3']
    """
    return list({name_of(entry): entry for name in names for entry in _entries_of(name, severity)}.values())


def _entries_of(name: str, severity: int | None) -> Sequence[Entry]:
    if is_corruption(name):
        return corruptions(name if severity is None or "@" in name else f"{name}@{severity}")
    alike = [e for key, e in CATALOGUE.items() if key.startswith(f"{name}_") and e.severity == "typical"]
    if alike and name not in CATALOGUE:
        return alike
    check_known("corruptions or perturbations", [name], [*_KNOWN, *extension_names("perturbations")])
    return perturbations(_WHOLE.get(name, [name]))


def name_of(entry: Entry) -> str:
    """As it is named in settings and tags, ``jpeg_90`` or ``fog@3``."""
    return str(entry) if isinstance(entry, Corruption) else entry.name


def sequence_length(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """How many pictures of a batch in a row are the frames of a sequence: as data module or module say, else 1."""
    lengths = (getattr(owner, "sequence_length", None) for owner in (data_module(trainer), pl_module))
    return next((length for length in lengths if isinstance(length, int) and length > 0), 1)


def pictured(trainer: pl.Trainer, pl_module: pl.LightningModule, entry: Entry, inputs: AttackInputs) -> Condition:
    """Pictures as a corruption or the deployed side's preprocessing makes them from the same pixels.

    Args:
        trainer: Its data module may say how pictures were normalised, and how many frames a sequence has.
        pl_module: The module that they go into.
        entry: The corruption or perturbation.
        inputs: Where in a batch the pictures are, and how they were normalised.
    """
    inputs.find_normalisation(trainer)
    frames = sequence_length(trainer, pl_module)

    def transform(batch: Any, index: int, loader: int) -> Any:
        key, images = _pictures(pl_module, batch, entry, inputs)
        if isinstance(entry, Perturbation):
            (sample,) = perturb(images, inputs.pixels, [entry])
            return replace_items(batch, {key: sample.deployed()})
        pictures = InputPictures.read(images, inputs.pixels)
        corrupted = entry(pictures.pixels.clamp(0, 1), pictures.layout.frames if pictures.layout.frames > 1 else frames)
        return replace_items(batch, {key: pictures.as_inputs(corrupted)})

    return Condition(name_of(entry), transform)


def require_pictures(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, entries: Sequence[Entry], inputs: AttackInputs
) -> None:
    """Refuse a batch that not all of these can be put on.

    Raises:
        ValueError: If it has no pictures, grey ones for what needs colours, or they were not normalised as stated.
    """
    inputs.find_normalisation(trainer)
    found = [_pictures(pl_module, batch, entry, inputs)[1] for entry in entries]
    if found:  # the same pictures for every entry
        InputPictures.read(found[0], inputs.pixels)


def _pictures(pl_module: pl.LightningModule, batch: Any, entry: Entry, inputs: AttackInputs) -> tuple[Key, Tensor]:
    try:
        key = inputs.in_batch(pl_module, batch).keys[0]
    except MisconfigurationException:
        key = first_input(pl_module, batch)  # bytes
    images = get_item(batch, key)
    layout = layout_of(images.shape) if isinstance(images, Tensor) else None
    if layout is None or not entry.applies_to(layout.channels):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        colour = isinstance(entry, Perturbation) and entry.colour
        raise ValueError(
            f"Expected pictures (N, {'3' if colour else '1 or 3'}, H, W) at input_key={key!r} for "
            f"{name_of(entry)!r}, but got {shape}; what can be read is {ARRANGEMENTS}. Set `input_key`, or take it out "
            "of `under`."
        )
    if inputs.pixels is None and images.dtype != torch.uint8:
        raise ValueError(
            f"Expected to know how pictures were normalised for {name_of(entry)!r}, but got bounds='none'. Give "
            "`mean` and `std` instead."
        )
    return key, images


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
