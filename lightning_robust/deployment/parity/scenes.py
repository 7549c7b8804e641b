"""The pictures of a pass on which a target is farthest from the reference, with what both sides found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_robust.decoding.alignment import Decoded
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.pixels.layout import layout_of
from lightning_robust.functional.pixels import PixelSpace

_COUNT = 3
_WIDEST = 1024  # pixels that are kept along a side


class WorstPicture(NamedTuple):
    """One picture.

    Args:
        target: Whose boxes and masks are beside the reference's.
        number: Place of the picture among those of the pass, from 0.
        samples: How many these are.
        picture: ``(height, width, 3)``, uint8, every second or third pixel of a large one.
        size: Height and width of the network's input, in pixels of which boxes are.
        reference: Boxes and masks by name, of this picture alone.
        deployed: The target's.
    """

    target: str
    number: int
    samples: int
    picture: Tensor
    size: tuple[int, int]
    reference: Mapping[str, Decoded]
    deployed: Mapping[str, Decoded]


def worst_scenes(
    target: str, reference: Readout, deployed: Readout, inputs: Sequence[Any], pixels: PixelSpace | None, unit: str
) -> tuple[WorstPicture, ...]:
    """The pictures on which a target is farthest off in the unit, the worst first; what is lost or new is farther.

    Args:
        target: The target's name.
        reference: What the reference found.
        deployed: What the target found.
        inputs: Arguments of ``forward`` for these samples; the first one holds the pictures.
        pixels: How they were normalised; None stretches what they hold.
        unit: The metric that stands for a distance.

    Returns:
        At most three; none where nothing is decoded as boxes or masks, or the inputs are no pictures.
    """
    pictures, ours, theirs = _pictures_in(inputs), _drawn_values(reference), _drawn_values(deployed)
    points = [each for each in reference.points(deployed) if ours and f"{each.name}_p99" == unit]
    if pictures is None or not points:
        return ()
    farthest = points[0].largest().argsort(descending=True, stable=True)[:_COUNT].tolist()
    return tuple(
        WorstPicture(
            target,
            number,
            points[0].samples,
            _as_bytes(pictures[number], pixels),
            (pictures.shape[2], pictures.shape[3]),
            {name: value[number : number + 1] for name, value in ours.items()},
            {name: value[number : number + 1] for name, value in theirs.items()},
        )
        for number in farthest
    )


def _pictures_in(inputs: Sequence[Any]) -> Tensor | None:
    """The pictures ``(N, C, H, W)``, grey or in colour, if the first argument holds one for each sample."""
    first = inputs[0] if inputs else None
    if not isinstance(first, Tensor):
        return None
    layout = layout_of(first.shape)
    return None if layout is None or "T" in layout.letters else layout.pictures(first)


def _drawn_values(readout: Readout) -> dict[str, Decoded]:
    return {name: value for name, value in readout.values.items() if isinstance(value, Decoded)}


def _as_bytes(picture: Tensor, pixels: PixelSpace | None) -> Tensor:
    if picture.dtype == torch.uint8:
        shown = picture / 255
    elif pixels is None:
        low, high = picture.min(), picture.max()
        shown = (picture - low) / (high - low).clamp(min=1e-12)
    else:
        shown = pixels.to_pixels(picture[None])[0]
    step = -(-max(picture.shape[1:]) // _WIDEST)
    shown = shown[:, ::step, ::step].clamp(0, 1)
    return (255 * shown).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
