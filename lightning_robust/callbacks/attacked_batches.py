"""What an attack in a LightningModule perturbs, in which units, and the loss that it raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.module_loss import BatchLoss, ModuleLoss
from lightning_robust.deployment.pixels.layout import channel_dimension
from lightning_robust.functional.norm_ball import as_radius
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.functional.weights import channels_last
from lightning_robust.harness.inputs import first_floating_input
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.quiet import quietly
from lightning_robust.rows import take_rows
from lightning_robust.structures import Key, get_item, map_tensors, replace_items

PixelBounds = list[float] | Literal["pixels", "none"]
Perturb = Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]
"""``perturb(loss, pixels, radius)`` gives perturbed pixels. ``loss(pixels)`` is the loss of the batch with other
pixels, ``loss(some, rows)`` that of some of its samples."""


class AttackInputs:
    """The parts of a batch that are perturbed, and how to turn them into pixels in [0, 1].

    Args:
        keys: Positions, names or paths of the inputs in a batch; None is the first floating-point input of the network.
        mean: Mean that pixels were normalised with; None takes ``mean`` of the data module if it has one, else 0.
        std: Standard deviation that pixels were normalised with; None takes ``std`` of the data module, else 1.
        bounds: Smallest and largest pixel value; ``"pixels"`` is [0, 1], ``"none"`` perturbs inputs as they are.
            ``"pictures"`` is [0, 1] except for vectors ``(N, D)`` of unknown normalisation, which are perturbed as they
            are: for callbacks that ask for no bounds.

    Raises:
        ValueError: For bounds that are none of these.
    """

    def __init__(
        self,
        keys: list[Key] | None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        bounds: PixelBounds | Literal["pictures"] = "pixels",
    ) -> None:
        limits = [0.0, 1.0] if bounds in ("pixels", "pictures") else bounds
        if isinstance(limits, list) and (len(limits) != 2 or not limits[0] < limits[1]):
            raise ValueError(f"Expected `bounds` as [smallest, largest], 'pixels' or 'none', but got {bounds}.")
        self.given = keys
        """The keys as given; None where each batch is asked."""
        self.keys: list[Key] = [0] if keys is None else keys
        self.mean, self.std = mean, std
        self._only_pictures = bounds == "pictures"
        self.bounds = limits if isinstance(limits, list) else None
        self.range = None if self.bounds is None else (0.0, 1.0)
        """Smallest and largest value of what is perturbed."""
        self.pixels: PixelSpace | None = None
        self.find_normalisation(None)

    def find_normalisation(self, trainer: pl.Trainer | None) -> None:
        """Take what was not given from the data module of the Trainer."""
        if self.bounds is not None:
            self.pixels = pixel_space(trainer, self.mean, self.std, *self.bounds)

    def in_batch(self, module: pl.LightningModule, batch: Any) -> AttackInputs:
        """The same with the keys of the inputs in this batch.

        Raises:
            MisconfigurationException: If there is no floating-point input, or no telling which.
        """
        return self if self.given is not None else self.at([first_floating_input(module, batch)])

    def at(self, keys: list[Key]) -> AttackInputs:
        """The same with these keys."""
        found = copy.copy(self)
        found.keys = keys
        return found

    def read(self, batch: Any) -> list[Tensor]:
        """The inputs, checked.

        Raises:
            TypeError: If they are not floating point.
            ValueError: If they were not normalised as stated.
        """
        inputs = []
        for key in self.keys:
            part = get_item(batch, key)
            if not isinstance(part, Tensor) or not part.is_floating_point():
                kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
                raise TypeError(
                    f"Expected a floating-point tensor at input_key={key!r} to perturb, but got {kind}. For token "
                    "indices set `embedding` to the module that embeds them; scale 8-bit pictures with / 255."
                )
            self._check(part)
            inputs.append(part)
        return inputs

    def space(self, part: Tensor) -> PixelSpace | None:
        """How an input was normalised; None where it is perturbed as it is."""
        as_it_is = self._only_pictures and part.ndim < 4 and self.pixels == PixelSpace()
        return None if as_it_is else self.pixels

    def to_pixels(self, part: Tensor) -> Tensor:
        """An input in the units of the perturbation."""
        space, place = self.space(part), channel_dimension(part.shape)
        return part if space is None else space.to_pixels(part.movedim(place, 1)).movedim(1, place).clamp(0, 1)

    def from_pixels(self, part: Tensor) -> Tensor:
        """An input in the units of the network."""
        space, place = self.space(part), channel_dimension(part.shape)
        return part if space is None else space.from_pixels(part.movedim(place, 1)).movedim(1, place)

    def _check(self, part: Tensor) -> None:
        space = self.space(part)
        try:
            if space is not None:
                space.check(part.movedim(channel_dimension(part.shape), 1))
        except ValueError as error:
            if part.ndim > 2:
                raise
            hint = "Inputs that are no pictures are perturbed as they are with bounds='none'."
            raise ValueError(f"{error} {hint}") from error


class BatchPixels:
    """The attacked inputs of one batch as one tensor; the batch itself is never changed.

    Args:
        inputs: Which parts of the batch.
        batch: The batch.
        radii: Radius of each input, in pixels.
    """

    def __init__(self, inputs: AttackInputs, batch: Any, radii: list[float]) -> None:
        self._inputs, self.batch = inputs, batch
        self._parts = inputs.read(batch)
        self.range = None if any(inputs.space(part) is None for part in self._parts) else inputs.range
        """Smallest and largest value of the pixels."""
        pixels = [inputs.to_pixels(part.detach()) for part in self._parts]
        if len(pixels) == 1:
            self.pixels = pixels[0]
            """``(batch, ...)`` of a single input; several are flattened and joined to ``(batch, elements)``."""
            self.radius = as_radius(radii[0], self.pixels, "eps")
            """Broadcasts to the pixels."""
        else:
            self.pixels = torch.cat([part.flatten(1) for part in pixels], 1)
            flat = zip(pixels, radii, strict=True)
            self.radius = torch.cat([as_radius(r, p.flatten(1), "eps").expand(1, p[0].numel()) for p, r in flat], 1)

    def batch_with(self, pixels: Tensor, rows: Tensor | None = None) -> Any:
        """The batch, or some of its rows, with other pixels."""
        batch = self.batch if rows is None else take_rows(self.batch, rows, len(self.pixels))
        parts = [pixels] if len(self._parts) == 1 else self._split(pixels)
        new = {}
        for key, part, old in zip(self._inputs.keys, parts, self._parts, strict=True):
            new[key] = self._inputs.from_pixels(part).to(old.dtype)
        return replace_items(batch, new)

    def _split(self, pixels: Tensor) -> list[Tensor]:
        shapes = [part.shape[1:] for part in self._parts]
        parts = torch.split(pixels, [shape.numel() for shape in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def attack_batch(
    trainer: pl.Trainer,
    view: BatchPixels,
    perturb: Perturb,
    loss: ModuleLoss,
    *,
    raised: BatchLoss | None = None,
    stage: Literal["training", "validating"] = "training",
) -> Any:
    """A batch with perturbed inputs; the passes through the module leave no trace on it.

    Args:
        trainer: The Trainer.
        view: The batch, its pixels and the radius.
        perturb: The attack.
        loss: The loss of the module.
        raised: Another function of the batch that the attack raises instead.
        stage: What the Trainer says it does meanwhile; an ``attack_loss`` may differ between training and validation.
    """
    batch_loss = raised or loss

    def loss_of(pixels: Tensor, rows: Tensor | None = None) -> Tensor:
        return batch_loss(view.batch_with(pixels, rows), len(pixels))

    with quietly(trainer, loss.module, stage), channels_last(loss.module) if loss.in_bf16 else nullcontext():
        pixels = perturb(loss_of, view.pixels, view.radius)
    return view.batch_with(pixels)


def outside_inference(batch: Any) -> Any:
    """The batch with clones of its inference tensors, which cannot take part in autograd."""
    return map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, batch)
