"""The loop over perturbations: one batch of network inputs, as training and as the deployed side preprocess it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.catalogue import Perturbation, Pixels
from lightning_robust.deployment.pixels.geometry import share_camera_frames
from lightning_robust.deployment.pixels.operations import quantise
from lightning_robust.functional.pixels import PixelSpace

T = TypeVar("T")


@dataclass(frozen=True)
class _Batch:
    """The pixels of one batch, and what its perturbations share: camera frames and outcomes on training's side."""

    images: Tensor
    space: PixelSpace
    pixels: Tensor
    frames: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    outcomes: dict[Pixels, Any] = field(default_factory=dict)

    def inputs(self, operation: Pixels) -> Tensor:
        with share_camera_frames(self.frames):
            return self.space.from_pixels(operation(self.pixels)).to(self.images.dtype)


@dataclass(frozen=True)
class PerturbedImages:
    """A batch of network inputs under one entry of the catalogue. Each side is computed on demand.

    Attributes:
        entry: The perturbation.
    """

    entry: Perturbation
    _batch: _Batch = field(repr=False)

    def deployed(self) -> Tensor:
        """Network inputs ``(N, C, H, W)`` as the deployed side preprocesses them."""
        return self._batch.inputs(self.entry.deployed)

    def trained(self) -> Tensor:
        """Network inputs ``(N, C, H, W)`` as training preprocesses them."""
        return self._batch.inputs(self.entry.trained)

    def through(self, run: Callable[[Tensor], T]) -> tuple[T, T]:
        """What ``run`` makes of training's and of the deployed inputs.

        Training's outcome is computed once for all entries of a batch with the same training side, so pass the same
        ``run`` to all of them.
        """
        outcomes = self._batch.outcomes
        if self.entry.trained not in outcomes:
            outcomes[self.entry.trained] = run(self.trained())
        return outcomes[self.entry.trained], run(self.deployed())


def perturb(images: Tensor, space: PixelSpace | None, entries: Iterable[Perturbation]) -> list[PerturbedImages]:
    """One handle for each entry that applies to the images' number of channels, in order.

    Pixels are rounded to 256 levels first, as every entry of the catalogue expects.

    Args:
        images: Network inputs ``(N, C, H, W)`` with one or three channels, floating.
        space: How they were normalised.
        entries: From :func:`~.catalogue.perturbations`.

    Raises:
        ValueError: If the inputs are no images, or are not normalised as ``space`` says.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import perturbations
        >>> images = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
        >>> (swapped,) = perturb(images, PixelSpace(), perturbations(["bgr"]))
        >>> before, after = swapped.through(lambda inputs: [round(v, 3) for v in inputs.flatten().tolist()])
        >>> before, after
        ([1.0, 0.502, 0.0], [0.0, 0.502, 1.0])
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ValueError("the network's first input is no image batch (N, 1 or 3, H, W) in floating point.")
    if space is None:
        raise ValueError("it is not known how pixels are normalised. Give `mean` and `std`.")
    space.check(images)
    wide = images if images.dtype == torch.float64 else images.float()
    batch = _Batch(images, space, quantise(space.to_pixels(wide)))
    return [PerturbedImages(entry, batch) for entry in entries if entry.applies_to(images.shape[1])]
