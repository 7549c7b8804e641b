"""Motions: content that is shifted, zoomed, turned and bent by a lens; ``registration.py`` finds them.

Pictures are ``(..., H, W)`` in fp64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

Kernel = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Motion:
    """Content bent by a lens, turned and zoomed about the centre of the picture, and then moved.

    Args:
        dx: Pixels to the right.
        dy: Pixels down.
        zoom_x: Factor of the content's width.
        zoom_y: Factor of its height.
        angle: Turn in radians, clockwise as seen.
        lens: The radial term ``k``: what lies at a distance ``r`` from the centre comes from ``r (1 + k r^2)``, where
            half the diagonal is 1. Positive for a barrel.

    Example:
        >>> Motion(dx=2.0).sources(1, 4)[1].tolist()
        [-2.0, -1.0, 0.0, 1.0]
    """

    dx: float = 0.0
    dy: float = 0.0
    zoom_x: float = 1.0
    zoom_y: float = 1.0
    angle: float = 0.0
    lens: float = 0.0

    @property
    def is_straight(self) -> bool:
        """Whether rows stay rows and columns stay columns."""
        return self.angle == 0.0 and self.lens == 0.0

    def sources(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows ``(height,)`` and columns ``(width,)`` from which the content of each pixel comes."""
        return _sources(height, self.dy, self.zoom_y), _sources(width, self.dx, self.zoom_x)

    def stretch(self, height: int, width: int) -> tuple[float, float]:
        """How far the zoom moves the right and the lower border outwards, in pixels."""
        return (self.zoom_x - 1) * width / 2, (self.zoom_y - 1) * height / 2

    def bend(self, height: int, width: int) -> tuple[float, float]:
        """How far the turn and the lens move the corners, in pixels."""
        corner = math.hypot(height, width) / 2
        return abs(self.angle) * corner, abs(self.lens) * corner

    def places(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows and columns from which the content of each pixel comes, ``(height, width)`` each."""
        rows, columns = self.sources(height, width)
        middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
        y, x = (rows - middle_y)[:, None], (columns - middle_x).expand(height, width)
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        across, down = cosine * x + sine * y, cosine * y - sine * x
        bent = 1 + self.lens * (across.square() + down.square()) / (middle_y**2 + middle_x**2)
        return down * bent + middle_y, across * bent + middle_x

    def inside(self, height: int, width: int, margin: int = 0) -> Tensor:
        """Mask ``(height, width)`` of pixels whose content was in the picture before, ``margin`` from both borders."""
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[margin : height - margin, margin : width - margin] = True
        for at, size in zip(self.places(height, width), (height, width), strict=True):
            mask = mask & (at >= margin) & (at <= size - 1 - margin)
        return mask


def _sources(size: int, by: float, zoom: float) -> Tensor:
    centre = (size - 1) / 2
    return (torch.arange(size, dtype=torch.float64) - centre - by) / zoom + centre


def warp(images: Tensor, motion: Motion, kernel: Kernel = "linear") -> Tensor:
    """Pictures ``(..., H, W)`` after a motion, fp64; beyond the border it is repeated.

    Args:
        images: The pictures.
        motion: Where the content goes.
        kernel: ``"linear"``, or ``"cubic"`` with ``a = -0.75`` as OpenCV and torch have it.
    """
    height, width = images.shape[-2:]
    if not motion.is_straight:
        return _sample(images, *motion.places(height, width), kernel)
    at_rows, at_columns = motion.sources(height, width)
    return _interpolation(at_rows, height, kernel) @ images @ _interpolation(at_columns, width, kernel).T


def _sample(images: Tensor, rows: Tensor, columns: Tensor, kernel: Kernel) -> Tensor:
    height, width = images.shape[-2:]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1)[None]
    flat = images.reshape(1, -1, height, width)
    mode = "bilinear" if kernel == "linear" else "bicubic"
    return grid_sample(flat, grid, mode=mode, padding_mode="border", align_corners=True).reshape(images.shape)


def _interpolation(at: Tensor, size: int, kernel: Kernel) -> Tensor:
    """Weights ``(len(at), size)`` of interpolation at fractional places."""
    reach = 1 if kernel == "linear" else 2
    weights = at.new_zeros(len(at), size)
    base = at.floor()
    for step in range(1 - reach, reach + 1):
        weight = _weight((at - base - step).abs(), kernel)
        weights.scatter_add_(1, (base + step).clamp(0, size - 1).long()[:, None], weight[:, None])
    return weights


def _weight(distance: Tensor, kernel: Kernel) -> Tensor:
    if kernel == "linear":
        return (1 - distance).clamp(min=0)
    a = -0.75  # as OpenCV and torch have it
    near = ((a + 2) * distance - (a + 3)) * distance.square() + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def least_squares(basis: Tensor, values: Tensor) -> Tensor:
    """Coefficients ``(columns, outputs)`` by the normal equations, with a ridge far below the precision of levels."""
    return solve_normal(basis.T @ basis, basis.T @ values)


def solve_normal(gram: Tensor, right: Tensor) -> Tensor:
    """Solution of normal equations, also where nothing varies."""
    ridge = 1e-9 * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, right)


def blurred(images: Tensor) -> Tensor:
    """``(N, H, W)`` after the binomial filter of five taps both ways, the border repeated."""
    taps = torch.tensor([1.0, 4, 6, 4, 1], dtype=images.dtype) / 16
    padded = pad(images[:, None], (2, 2, 2, 2), mode="replicate")
    return conv2d(conv2d(padded, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1))[:, 0]


def jitter(warped: Tensor, deployed: Tensor, mask: Tensor) -> tuple[float, float]:
    """The unevenness of the displacement of rows and columns after registration, in pixels, and the residual without.

    Sampling at the nearest pixel causes it. The displacement of each column and row is a least-squares fit along the
    slope across it. The unevenness is the smaller of the two standard deviations, estimated robustly from neighbours,
    which removes what is linear over the picture. The residual is the share of the mean square that is left when all
    rows and columns are put back.

    Args:
        warped: Trained pictures after the motion, ``(N, H, W)``.
        deployed: The deployed ones.
        mask: Pixels to use, ``(H, W)``.
    """
    rest = torch.where(mask, deployed - warped, 0.0)
    whole, spreads = rest.square().sum(), []
    for axis in (1, 2):
        slope = torch.where(mask, (warped.roll(1, axis) - warped.roll(-1, axis)) / 2, 0.0)
        along = tuple(d for d in (0, 1, 2) if d != axis)
        profile = (slope * rest).sum(along) / slope.square().sum(along).clamp(min=1e-9)
        rest = rest - slope * profile.unsqueeze(2 - axis)
        inside = profile[mask.any(2 - axis)]
        spreads.append(float(inside.diff().abs().median()) / math.sqrt(2) * 1.4826)
    return min(spreads), float(rest.square().sum() / whole.clamp(min=1e-9))
