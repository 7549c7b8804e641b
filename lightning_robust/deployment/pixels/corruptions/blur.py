"""Motion and defocus blur: the closed forms of a moving camera's line and of a lens's disc."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.corruptions.patterns import PUBLISHED_HEIGHT, convolve, seeded, splat

_LENGTHS = (0.025, 0.045, 0.065, 0.085, 0.11)
_RADII = tuple(pixels / PUBLISHED_HEIGHT for pixels in (3, 4, 6, 8, 10))
_SAMPLES = 16  # points a pixel, so that the kernel is that of the line to a thousandth
_WIDEST_ANGLE = 45.0


def line_kernel(length: float, angle: float) -> Tensor:
    """The path of a point during the exposure of a camera that moves evenly.

    Along the path its variance is that of a line, ``length**2 / 12``, and what sharing points among pixels adds.

    Args:
        length: In pixels.
        angle: In degrees, 0 is horizontal.

    Example:
        >>> round(line_kernel(5, 30).sum().item(), 6)
        1.0
    """
    count = max(2, math.ceil(_SAMPLES * length))
    along = ((torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5) * length
    turn = math.radians(angle)
    points = torch.stack([along * math.cos(turn), -along * math.sin(turn)], 1)
    return splat(points, math.ceil(length / 2) + 1)


def disc_kernel(radius: float) -> Tensor:
    """The image of a point out of focus: a disc, of variance ``radius**2 / 4`` along each axis.

    Args:
        radius: In pixels.

    Example:
        >>> round(disc_kernel(2.5).sum().item(), 6)
        1.0
    """
    count = max(8, math.ceil(_SAMPLES * radius))
    line = ((torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5) * 2 * radius
    points = torch.cartesian_prod(line, line)
    return splat(points[points.norm(dim=1) <= radius], math.ceil(radius) + 1)


def motion_blur(pictures: Tensor, severity: int) -> Tensor:
    """Blurred along a line at an angle within 45 degrees of the horizontal, which the picture seeds."""
    draw = torch.rand((), generator=seeded("motion_blur", pictures)).item()
    length = _LENGTHS[severity - 1] * pictures.shape[-2]
    return convolve(pictures, line_kernel(length, _WIDEST_ANGLE * (2 * draw - 1)))


def defocus_blur(pictures: Tensor, severity: int) -> Tensor:
    """Blurred by a disc."""
    return convolve(pictures, disc_kernel(_RADII[severity - 1] * pictures.shape[-2]))
