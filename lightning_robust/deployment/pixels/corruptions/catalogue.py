"""The catalogue of corruptions that a camera meets, in five severities each.

Each is a function of pictures ``(N, C, H, W)`` in [0, 1], colour or grey, of any size from 28 pixels. It is
deterministic, draws nothing from the global generators, and a picture's result does not depend on its batch. README.md
says where the definitions differ from published ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.corruptions.blur import defocus_blur, motion_blur
from lightning_robust.deployment.pixels.corruptions.lens import dirt, drops
from lightning_robust.deployment.pixels.corruptions.light import glare, low_light
from lightning_robust.deployment.pixels.corruptions.names import (
    ALL_CORRUPTIONS,
    CORRUPTION_FAMILIES,
    SEVERITIES,
    split_severity,
)
from lightning_robust.deployment.pixels.corruptions.sequences import exposure_lag, frame_loss, rolling_shutter
from lightning_robust.deployment.pixels.corruptions.weather import fog, rain, snow
from lightning_robust.deployment.pixels.operations import quantise

_CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "motion_blur": motion_blur,
    "defocus_blur": defocus_blur,
    "fog": fog,
    "snow": snow,
    "rain": rain,
    "glare": glare,
    "low_light": low_light,
    "dirt": dirt,
    "drops": drops,
    "exposure_lag": exposure_lag,
    "rolling_shutter": rolling_shutter,
    "frame_loss": frame_loss,
}


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity.

    Args:
        name: As in ``corruption/<name>/...``.
        severity: 1 to 5.

    Example:
        >>> grey = torch.full((1, 1, 28, 28), 0.5)
        >>> round(Corruption("exposure_lag", 1)(grey).mean().item(), 2)  # half a stop brighter
        0.59
    """

    name: str
    severity: int

    def __str__(self) -> str:
        """As it is named in settings, ``fog@3``."""
        return f"{self.name}@{self.severity}"

    @property
    def in_time(self) -> bool:
        """Whether a frame's result depends on the frames before it in its sequence."""
        return self.name in CORRUPTION_FAMILIES["time"]

    def applies_to(self, channels: int) -> bool:
        """Whether pictures with this number of channels can be corrupted: colour and grey ones."""
        return channels in (1, 3)

    def __call__(self, pixels: Tensor, sequence_length: int = 1) -> Tensor:
        """Corrupted pictures of the same shape and type, on the 256 levels of 8 bits, to which they are rounded first.

        Args:
            pixels: Pictures ``(N, C, H, W)`` in [0, 1] with one or three channels.
            sequence_length: How many pictures in a row are the frames of a sequence; 1 for pictures of their own. The
                last sequence may be shorter.

        Raises:
            ValueError: If these are no such pictures.
        """
        _check(pixels, sequence_length)
        wide = quantise(pixels if pixels.dtype == torch.float64 else pixels.float()).contiguous()
        if not len(wide):
            return wide.to(pixels.dtype)
        change = _CHANGES[self.name]
        # one by one, so that no result depends on how many pictures came together
        parts = torch.split(wide, sequence_length if self.in_time else 1)
        changed = [quantise(change(part, self.severity).clamp(0, 1)) for part in parts]
        return torch.cat(changed).to(pixels.dtype)


def _check(pixels: Tensor, sequence_length: int) -> None:
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.is_floating_point():
        raise ValueError(
            f"Expected pictures (N, 1 or 3, H, W) in floating point, but got {tuple(pixels.shape)} of {pixels.dtype}."
        )
    if sequence_length < 1:
        raise ValueError(f"Expected `sequence_length` of at least 1, but got {sequence_length}.")


def corruptions(names: str | Sequence[str] = ALL_CORRUPTIONS) -> tuple[Corruption, ...]:
    """Corruptions in the order of the catalogue, each once.

    Args:
        names: Names (``"fog"``: all five severities), names with a severity (``"fog@3"``), families (``"weather"``,
            ``"weather@3"``), ``"all"`` or ``"corruptions"`` for all of them, or ``"none"``.

    Raises:
        ValueError: For no name, an unknown one, of which the message names the nearest, or a severity outside of 1 to
            5.

    Example:
        >>> [str(each) for each in corruptions(["snow@2", "blur@5", "snow@2"])]
        ['motion_blur@5', 'defocus_blur@5', 'snow@2']
        >>> len(corruptions())
        60
    """
    if names == "none":
        return ()
    given = [ALL_CORRUPTIONS if each == "all" else each for each in ([names] if isinstance(names, str) else names)]
    if not given:
        raise ValueError("Expected at least one corruption, but got none. Name some, 'all' or 'none'.")
    chosen: set[tuple[str, int]] = set().union(*(itertools.product(*split_severity(each)) for each in given))
    return tuple(each for each in CORRUPTIONS if (each.name, each.severity) in chosen)


CORRUPTIONS = tuple(itertools.starmap(Corruption, itertools.product(_CHANGES, SEVERITIES)))
"""All of them, in the order of the names and of the severities."""
