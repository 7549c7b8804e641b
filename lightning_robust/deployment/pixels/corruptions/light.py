"""Too much light and too little: glare and low light."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.corruptions.patterns import coloured, kept, places, seeded

GAINS = (0.9, 0.65, 0.45, 0.3, 0.2)
PHOTONS = (600.0, 250.0, 120.0, 60.0, 30.0)
READ_NOISE = (0.008, 0.012, 0.018, 0.026, 0.038)
"""Of low light: the brightness that is left of white, its photons a pixel, and the deviation of the sensor's noise."""
# radius of the source and of its halo as shares of the height, brightness of the veil
_GLARE = ((0.03, 0.10, 0.10), (0.04, 0.15, 0.16), (0.05, 0.21, 0.23), (0.06, 0.28, 0.31), (0.08, 0.36, 0.40))
_SOURCE = (0.3, 0.62)  # of the height and of the width
_WARM = (1.0, 0.97, 0.88)


@kept
def glare_light(height: int, width: int, severity: int) -> Tensor:
    """The light that a low sun scatters over the picture, ``(H, W)`` in [0, 1].

    A disc, a halo ``1 / (1 + (r / r0)**2)`` that falls as the veil of a bright source in the eye or in a lens does
    (CIE: with the square of the angle), and an even veil.
    """
    source, halo, veil = _GLARE[severity - 1]
    rows, columns = places(height, width)
    distance = ((rows - _SOURCE[0]) ** 2 + (columns - _SOURCE[1] * width / height) ** 2).sqrt()
    spread = 1 / (1 + (distance - source).clamp(min=0) ** 2 / halo**2)
    return veil + (1 - veil) * spread


def glare(pictures: Tensor, severity: int) -> Tensor:
    """A low sun in the picture, at the same place in all: ``picture + light * (1 - picture)``."""
    height, width = pictures.shape[-2:]
    light = glare_light(height, width, severity).to(pictures)
    return pictures + light * (coloured(_WARM, pictures) - pictures).clamp(min=0)


def low_light(pictures: Tensor, severity: int) -> Tensor:
    """Darker by a gain and a gamma of two, with the noise of few photons and of the sensor; the picture seeds it.

    With ``y = gain * picture**2`` the mean is ``y`` and the variance ``y / photons + read_noise**2``, before values
    are cut to [0, 1].
    """
    gain, photons, deviation = (each[severity - 1] for each in (GAINS, PHOTONS, READ_NOISE))
    generator = seeded("low_light", pictures)
    dark = gain * pictures.float().cpu() ** 2
    counted = torch.poisson(dark * photons, generator=generator) / photons
    noise = torch.randn(dark.shape, generator=generator)
    return (counted + deviation * noise).to(pictures)
