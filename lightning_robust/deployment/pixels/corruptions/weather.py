"""Fog, snow and rain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_robust.deployment.pixels.corruptions.blur import line_kernel
from lightning_robust.deployment.pixels.corruptions.patterns import (
    PUBLISHED_HEIGHT,
    cloud,
    convolve,
    kept,
    luma,
    seeded,
)

TRANSMISSIONS = (0.7, 0.55, 0.42, 0.31, 0.22)
"""Of fog: the share of the scene's light that reaches the camera."""
_ROUGHNESS = 2.0  # published: 2 to 1.4

# density of flakes, size and blur in pixels of the published height, whitening, opacity
_SNOW = (
    (0.008, 2.0, 8.0, 0.06, 0.75),
    (0.016, 2.25, 9.0, 0.12, 0.8),
    (0.026, 2.5, 10.0, 0.18, 0.85),
    (0.04, 2.75, 11.0, 0.25, 0.9),
    (0.06, 3.0, 12.0, 0.33, 0.95),
)
# streaks for each square of the height, length as a share of the height, opacity, contrast of the scene
_RAIN = (
    (150, 0.05, 0.25, 0.95),
    (250, 0.06, 0.3, 0.9),
    (400, 0.07, 0.35, 0.83),
    (600, 0.08, 0.4, 0.76),
    (850, 0.1, 0.45, 0.68),
)
_RAIN_LIGHT, _RAIN_VEIL = 0.85, 0.55
_STREAK_WIDTH = 1.2  # pixels of the published height


@kept
def airlight(height: int, width: int) -> Tensor:
    """The light of the fog itself, ``(H, W)`` in [0.7, 0.9]; the same for all pictures of a size."""
    return 0.7 + 0.2 * cloud((height, width), seeded("fog"), _ROUGHNESS)


def fog(pictures: Tensor, severity: int) -> Tensor:
    """The picture through fog: ``t * picture + (1 - t) * airlight`` (Koschmieder) with one transmission ``t``."""
    transmission = TRANSMISSIONS[severity - 1]
    return transmission * pictures + (1 - transmission) * airlight(*pictures.shape[-2:]).to(pictures)


def snow(pictures: Tensor, severity: int) -> Tensor:
    """Falling flakes, blurred along their way, before a whitened scene; the picture seeds them."""
    density, size, length, whitening, opacity = _SNOW[severity - 1]
    height, width = pictures.shape[-2:]
    scale = height / PUBLISHED_HEIGHT
    generator = seeded("snow", pictures)
    angle = -90 + 45 * (2 * torch.rand((), generator=generator).item() - 1)
    layer = _flakes(height, width, density, max(1.0, size * scale), generator)
    layer = convolve(layer.to(pictures), line_kernel(length * scale, angle))
    # a flake is as bright in its middle as before it was blurred
    layer = (layer * opacity * max(1.0, length / size / 2)).clamp(0, opacity)
    white = pictures.maximum(1.5 * luma(pictures) + 0.5).clamp(max=1.0)
    scene = (1 - whitening) * pictures + whitening * white
    return scene + layer * (1 - scene)


def _flakes(height: int, width: int, density: float, size: float, generator: torch.Generator) -> Tensor:
    """Soft grains that cover a share of the picture, ``(1, 1, H, W)``; more of the same at a higher density."""
    grid = torch.rand(1, 1, max(2, math.ceil(height / size)), max(2, math.ceil(width / size)), generator=generator)
    smooth = interpolate((grid - (1 - 2 * density)).clamp(min=0) / density, size=(height, width), mode="bilinear")
    return smooth.clamp(max=1.0)


def rain(pictures: Tensor, severity: int) -> Tensor:
    """Streaks of falling drops, near the vertical, before a scene that has lost contrast; the picture seeds them."""
    density, length, opacity, contrast = _RAIN[severity - 1]
    height, width = pictures.shape[-2:]
    generator = seeded("rain", pictures)
    angle = 90 + 15 * (2 * torch.rand((), generator=generator).item() - 1)
    pixels = length * height
    starts = torch.rand(round(_RAIN[-1][0] * width / height), 3, generator=generator)
    row, column, strength = starts[: round(density * width / height)].unbind(1)
    place = (row * height).long() * width + (column * width).long()
    layer = torch.zeros(height * width).index_add_(0, place, 0.4 + 0.6 * strength).view(1, 1, height, width)
    thickness = _STREAK_WIDTH * height / PUBLISHED_HEIGHT
    # the brightest line along a streak has the brightness of its drop
    streaks = convolve(layer.to(pictures), line_kernel(pixels, angle)) * max(1.0, pixels)
    if thickness > 1:
        streaks = convolve(streaks, line_kernel(thickness, angle - 90)) * thickness
    # a streak thinner than a pixel covers a part of it
    alpha = (opacity * min(1.0, thickness) * streaks).clamp(0, opacity)
    scene = contrast * pictures + (1 - contrast) * _RAIN_VEIL
    return scene + alpha * (_RAIN_LIGHT - scene)
