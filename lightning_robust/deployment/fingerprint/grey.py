"""Grey in three channels on one side where the other has colour, and the luma that made it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.filters import fit_gains, mean_square, pooled
from lightning_robust.deployment.fingerprint.motion import warp
from lightning_robust.deployment.fingerprint.registration import estimate_motion
from lightning_robust.deployment.pixels.operations import BT601, BT709, BT2020

_GREY, _COLORED = 0.75, 1.5  # levels between channels, root mean square
LUMAS = {
    "the luma of BT.601": BT601[0],
    "the luma of BT.709": BT709[0],
    "the luma of BT.2020": BT2020[0],
    "the mean of the channels": torch.full((3,), 1 / 3).double(),
    "red alone": torch.tensor([1.0, 0, 0]).double(),
    "green alone": torch.tensor([0, 1.0, 0]).double(),
    "blue alone": torch.tensor([0, 0, 1.0]).double(),
}
"""What a fingerprint calls a luma -> its weights of red, green and blue."""


def greyed(trained: Tensor, deployed: Tensor) -> tuple[Evidence, Tensor, Tensor] | None:
    """Evidence that one side is grey and the other is not, and both sides in one channel ``(N, 1, H, W)``.

    Args:
        trained: ``(N, C, H, W)`` in levels.
        deployed: In the same shape.
    """
    if trained.shape[1] == 1:
        return None
    here, there = _color_of(trained), _color_of(deployed)
    if here > _COLORED and there < _GREY:
        luma, grey = _nearest_luma(trained, deployed[:, :1])
        return Evidence("grey", {"kind": "deployed", "luma": luma}, here / _COLORED), grey, deployed[:, :1]
    if there > _COLORED and here < _GREY:
        luma, grey = _nearest_luma(deployed, trained[:, :1])
        return Evidence("grey", {"kind": "trained", "luma": luma}, there / _COLORED), trained[:, :1], grey
    return None


def _color_of(images: Tensor) -> float:
    return mean_square(images - images.mean(1, keepdim=True)) ** 0.5


def _nearest_luma(colored: Tensor, grey: Tensor) -> tuple[str, Tensor]:
    """The luma of colours that is nearest to a grey side, after the best motion, gain and offset."""
    motion, _ = estimate_motion(colored.mean(1), grey[:, 0])
    use = motion.inside(*grey.shape[-2:]).expand(len(grey), -1, -1)
    colours, there = pooled(warp(colored, motion), use), pooled(grey, use)

    def error(name: str) -> float:
        luma = (colours @ LUMAS[name])[:, None]
        gain, offset = fit_gains(luma, there)
        return mean_square(there - gain * luma - offset) + 1e-6 * mean_square(there - luma)

    best = min(LUMAS, key=error)
    return best, torch.einsum("c,nchw->nhw", LUMAS[best], colored)[:, None]
