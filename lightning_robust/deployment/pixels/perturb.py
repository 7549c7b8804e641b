"""The loop over perturbations: one batch of network inputs, as training and as the deployed side preprocess it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.catalogue import Perturbation, Pixels
from lightning_robust.deployment.pixels.geometry import share_camera_frames
from lightning_robust.deployment.pixels.layout import ARRANGEMENTS, Layout, layout_of
from lightning_robust.deployment.pixels.operations import quantise, whole_levels
from lightning_robust.functional.pixels import PixelSpace

T = TypeVar("T")
_BYTES = PixelSpace(high=255.0)
_CALLS = 16  # more than the calls of one pass, in which each set of samples is perturbed once


@dataclass(frozen=True)
class InputPictures:
    """The pictures of a network's input, in whatever arrangement, and the way back.

    Args:
        pixels: ``(N, C, H, W)`` in [0, 1], in fp32 at least; the frames of a clip follow each other.
        layout: How the input arranges them.
        space: How it was normalised; bytes are levels by themselves.
        dtype: Its type.

    Example:
        >>> pictures = InputPictures.read(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), None)
        >>> pictures.pixels.shape, pictures.as_inputs(pictures.pixels / 2)[0, 0, 0].tolist()
        (torch.Size([1, 3, 2, 2]), [128, 128, 128])
    """

    pixels: Tensor
    layout: Layout
    space: PixelSpace
    dtype: torch.dtype

    @classmethod
    def read(cls, inputs: Tensor, space: PixelSpace | None) -> InputPictures:
        """The pictures of an input.

        Args:
            inputs: In one of the arrangements of :func:`~.layout.layout_of`, floating or uint8.
            space: How it was normalised; nothing of uint8, which the network itself normalises.

        Raises:
            ValueError: If it holds no pictures, nothing is stated, or it was not normalised as stated.
        """
        in_bytes, layout = inputs.dtype == torch.uint8, layout_of(inputs.shape)
        if layout is None or not (inputs.is_floating_point() or in_bytes):
            raise ValueError(
                f"the network's first input is no image batch {ARRANGEMENTS} in floating point or uint8, but "
                f"{tuple(inputs.shape)} in {str(inputs.dtype).removeprefix('torch.')}."
            )
        images = layout.pictures(inputs)
        if in_bytes:
            return cls(_BYTES.to_pixels(images.float()), layout, _BYTES, inputs.dtype)
        if space is None:
            raise ValueError("it is not known how pixels are normalised. Give `mean` and `std`.")
        space.check(images)
        pixels = space.to_pixels(images if images.dtype == torch.float64 else images.float())
        return cls(pixels, layout, space, inputs.dtype)

    def as_inputs(self, pixels: Tensor) -> Tensor:
        """Other pixels as the network takes them; bytes are rounded and clipped."""
        inputs = self.space.from_pixels(pixels)
        if not self.dtype.is_floating_point:
            inputs = inputs.round_().clamp_(0, 255)
        return self.layout.arrange(inputs.to(self.dtype))


@dataclass(frozen=True)
class _Batch:
    """The pictures of one batch, and what its perturbations share: camera frames and outcomes on training's side."""

    pictures: InputPictures
    pixels: Tensor
    kept: KeptPixels | None = None
    key: bytes = b""
    frames: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    outcomes: dict[Pixels, Any] = field(default_factory=dict)

    def inputs(self, operation: Pixels) -> Tensor:
        pixels = self.compute(operation) if self.kept is None else self.kept.take(self, operation)
        return self.pictures.as_inputs(pixels)

    def compute(self, operation: Pixels) -> Tensor:
        with share_camera_frames(self.frames):
            return operation(self.pixels)


@dataclass(frozen=True)
class PerturbedImages:
    """A batch of network inputs under one entry of the catalogue. Each side is computed on demand.

    Attributes:
        entry: The perturbation.
    """

    entry: Perturbation
    _batch: _Batch = field(repr=False)

    def deployed(self) -> Tensor:
        """Network inputs as the deployed side preprocesses them."""
        return self._batch.inputs(self.entry.deployed)

    def trained(self) -> Tensor:
        """Network inputs as training preprocesses them."""
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
        images: Network inputs in one of the arrangements of :func:`~.layout.layout_of`, with one or three channels,
            floating or uint8. Each frame of a clip is perturbed by itself.
        space: How they were normalised; nothing of uint8, which the network itself normalises.
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
    return _handles(images, space, entries, None)


class KeptPixels:
    """Perturbed pixels that are computed once for the same samples, as at every validation of a run.

    Pixels on the 256 levels of 8 bits are kept as bytes, from which they come back bit for bit; others are computed
    each time. Memory: at most `limit`; a byte for each value of the samples under each perturbation, as 30 MB for 16
    pictures of 144 x 256 under the typical ones. What does not fit is computed each time; what was not asked for in a
    while makes room.

    Args:
        limit: Bytes.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import perturbations
        >>> kept, images = KeptPixels(), torch.tensor([1.0, 0.6, 0.0]).view(1, 3, 1, 1)
        >>> for _ in range(2):
        ...     (swapped,) = kept.perturb(images, PixelSpace(), perturbations(["bgr"]))
        ...     print(swapped.deployed().flatten().tolist(), kept.size)
        [0.0, 0.6000000238418579, 1.0] 3
        [0.0, 0.6000000238418579, 1.0] 3
    """

    def __init__(self, limit: int = 128 * 2**20) -> None:
        self._limit = limit
        self._levels: dict[tuple[bytes, Pixels], Tensor] = {}
        self._used: dict[tuple[bytes, Pixels], int] = {}
        self._calls = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(levels.numel() for levels in self._levels.values())

    def perturb(
        self, images: Tensor, space: PixelSpace | None, entries: Iterable[Perturbation]
    ) -> list[PerturbedImages]:
        """As :func:`perturb`, which says what is raised."""
        self._calls += 1
        return _handles(images, space, entries, self)

    def take(self, batch: _Batch, operation: Pixels) -> Tensor:
        """The pixels of a batch after an operation, computed where they are not kept."""
        place = (batch.key, operation)
        self._used[place] = self._calls
        if place in self._levels:
            return self._levels[place].to(batch.pixels.dtype).div_(255)
        pixels = batch.compute(operation)
        levels = whole_levels(pixels).to(torch.uint8)
        if self._has_room(pixels.numel()) and torch.equal(levels.to(pixels.dtype).div_(255), pixels):
            self._levels[place] = levels
        return pixels

    def _has_room(self, size: int) -> bool:
        if self.size + size > self._limit:
            old = [place for place, call in self._used.items() if call < self._calls - _CALLS]
            for place in old:
                del self._used[place]
                self._levels.pop(place, None)
        return self.size + size <= self._limit


def _handles(
    images: Tensor, space: PixelSpace | None, entries: Iterable[Perturbation], kept: KeptPixels | None
) -> list[PerturbedImages]:
    pictures = InputPictures.read(images, space)
    pixels = quantise(pictures.pixels)
    batch = _Batch(pictures, pixels, kept, b"" if kept is None else _digest(pixels))
    return [PerturbedImages(entry, batch) for entry in entries if entry.applies_to(pictures.layout.channels)]


def _digest(pixels: Tensor) -> bytes:
    told = f"{pixels.dtype} {tuple(pixels.shape)}".encode()
    return hashlib.sha256(told + whole_levels(pixels).to(torch.uint8).contiguous().numpy().tobytes()).digest()
