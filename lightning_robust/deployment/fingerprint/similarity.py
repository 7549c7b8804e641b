"""How alike pictures are before anything is registered or fitted: cheap correlations of small grey copies.

Nothing here depends on the units: each channel is brought to mean 0 and deviation 1 first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from lightning_robust.deployment.fingerprint.motion import warp
from lightning_robust.deployment.fingerprint.registration import estimate_motion

_COARSE, _FINE = 32, 64  # pixels of the shorter side
_TILE, _REACH = 16, 4
_TEXTURED = 0.1  # deviation of a tile over the picture's


def small_grey(images: Tensor, known: Tensor, side: int = _FINE) -> tuple[Tensor, Tensor]:
    """Small grey copies ``(N, h, w)`` of pictures ``(N, C, H, W)``, and which of their pixels are known.

    Args:
        images: The pictures.
        known: Which values are, ``(C, H, W)``.
        side: About how many pixels the shorter side keeps.
    """
    count = known.sum((1, 2)).clamp(min=1)[:, None, None]
    values = images.double() * known
    mean = values.sum((0, 2, 3))[:, None, None] / (count * len(images))
    centred = (images.double() - mean) * known
    spread = (centred.square().sum((0, 2, 3))[:, None, None] / (count * len(images))).sqrt()
    grey = (centred / spread.clamp(min=1e-9)).sum(1, keepdim=True)
    factor = max(1, min(images.shape[-2:]) // side)
    share = avg_pool2d(known.double().sum(0)[None, None], factor)[0, 0]
    return avg_pool2d(grey, factor)[:, 0] / share.clamp(min=1e-9), share > len(known) / 2


def coarse(images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors ``(N, P)`` of very small grey copies, and which of their values are known ``(P,)``."""
    grey, mask = small_grey(images, known, _COARSE)
    return grey.flatten(1), mask.flatten()


def cross_correlations(first: Tensor, second: Tensor) -> Tensor:
    """Correlations ``(N, M)`` of each of the vectors ``(N, P)`` with each of ``(M, P)``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, -1.0]])
        >>> cross_correlations(x, x).round().tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    unit_first, unit_second = (_unit(side) for side in (first, second))
    return unit_first @ unit_second.T


def _unit(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-9)


def agreement(trained: Tensor, deployed: Tensor, known: Tensor) -> tuple[float, float]:
    """How well grey pictures agree once they are registered, and how well small tiles of them do, from -1 to 1.

    The first is the correlation after a shift and a zoom. The second is the median over textured tiles of the best
    correlation within a few pixels. What moves content by a little, such as a rotation by three degrees, blurs it or
    adds noise leaves 0.9 of it; a mirrored picture of a road has 0.8, and another scene 0.7.

    Args:
        trained: ``(N, h, w)``, small.
        deployed: ``(N, h, w)``.
        known: Pixels to use, ``(h, w)``.
    """
    filled = torch.where(known, deployed, trained)
    motion, _ = estimate_motion(trained.mean(0, keepdim=True), filled.mean(0, keepdim=True))
    moved, inside = warp(trained, motion), known & motion.inside(*known.shape)
    correlations = [
        float(cross_correlations(side[:, mask], filled[:, mask]).diagonal().mean())
        for side, mask in ((trained, known), (moved, inside))
    ]
    tiles = [_found_again(side, filled, mask) for side, mask in ((trained, known), (moved, inside))]
    return max(correlations), max(tiles)


def _found_again(trained: Tensor, deployed: Tensor, known: Tensor) -> float:
    """The mean over pictures of the median over tiles."""
    windows, tiles, use = _cut_tiles(trained, deployed, known)
    scores = [
        float(best[textured & use].median()) if bool((textured & use).any()) else 0.0
        for best, textured in (_search_tiles(w, t) for w, t in zip(windows, tiles, strict=True))
    ]
    return sum(scores) / len(scores)


def _cut_tiles(trained: Tensor, deployed: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows ``(N, T, 24, 24)``, tiles ``(N, T, 16, 16)`` in their centres, and which are known as a whole."""
    wide = _TILE + 2 * _REACH
    windows = trained.unfold(1, wide, _TILE).unfold(2, wide, _TILE).flatten(1, 2)
    inner = deployed[:, _REACH : deployed.shape[1] - _REACH, _REACH : deployed.shape[2] - _REACH]
    tiles = inner.unfold(1, _TILE, _TILE).unfold(2, _TILE, _TILE).flatten(1, 2)
    shown = known[_REACH : known.shape[0] - _REACH, _REACH : known.shape[1] - _REACH]
    return windows, tiles, shown.unfold(0, _TILE, _TILE).unfold(1, _TILE, _TILE).flatten(0, 1).all(-1).all(-1)


def _search_tiles(windows: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """The best correlation of each tile within its window, and whether the tile has texture."""
    tiles = tiles - tiles.mean((1, 2), keepdim=True)
    norm = tiles.flatten(1).norm(dim=1)[:, None, None]
    products = conv2d(windows[None], tiles[:, None], groups=len(tiles))[0]
    means, squares = (avg_pool2d(w[:, None], _TILE, 1)[:, 0] for w in (windows, windows.square()))
    spread = ((squares - means.square()).clamp(min=0) * _TILE**2).sqrt()
    best = (products / (spread * norm).clamp(min=1e-9)).flatten(1).amax(1)
    return best, norm.flatten() / _TILE > _TEXTURED
