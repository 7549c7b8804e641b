"""Registration: the shift and zoom from one set of pictures to another, to hundredths of a pixel.

Pictures are grey, ``(N, H, W)`` in fp64.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

Kernel = Literal["linear", "cubic"]
_ZOOMS = (0.7, 0.78, 0.86, 0.93, 1.0, 1.08, 1.16, 1.28, 1.4)
_GOOD = 0.97  # correlation of pictures that are registered; filters, noise and JPEG leave 0.99


@dataclass(frozen=True)
class Motion:
    """Content zoomed about the centre of the picture and then moved.

    Args:
        dx: Pixels to the right.
        dy: Pixels down.
        zoom_x: Factor of the content's width.
        zoom_y: Factor of its height.

    Example:
        >>> Motion(dx=2.0).sources(1, 4)[1].tolist()
        [-2.0, -1.0, 0.0, 1.0]
    """

    dx: float = 0.0
    dy: float = 0.0
    zoom_x: float = 1.0
    zoom_y: float = 1.0

    def sources(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows ``(height,)`` and columns ``(width,)`` from which the content of each pixel comes."""
        return _sources(height, self.dy, self.zoom_y), _sources(width, self.dx, self.zoom_x)

    def stretch(self, height: int, width: int) -> tuple[float, float]:
        """How far the zoom moves the right and the lower border outwards, in pixels."""
        return (self.zoom_x - 1) * width / 2, (self.zoom_y - 1) * height / 2

    def inside(self, height: int, width: int, margin: int = 0) -> Tensor:
        """Mask ``(height, width)`` of pixels whose content was in the picture before, ``margin`` from both borders."""
        rows, columns = (
            (at >= margin)
            & (at <= size - 1 - margin)
            & (torch.arange(size) >= margin)
            & (torch.arange(size) < size - margin)
            for at, size in zip(self.sources(height, width), (height, width), strict=True)
        )
        return rows[:, None] & columns


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
    rows, columns = (
        _interpolation(at, size, kernel)
        for at, size in zip(motion.sources(*images.shape[-2:]), images.shape[-2:], strict=True)
    )
    return rows @ images @ columns.T


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


def phase_correlation(trained: Tensor, deployed: Tensor) -> tuple[float, float]:
    """Displacement ``(dx, dy)`` of the content in pixels, right and down, by the phase of the cross spectrum.

    The peak gives whole pixels; what is left comes from a plane through the phase at low frequencies, weighted by power
    (Stone et al., "A fast direct Fourier-based algorithm for subpixel registration of images", IEEE TGRS 2001).

    Example:
        >>> x = torch.rand(1, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> [round(v) for v in phase_correlation(x, x.roll((2, -3), (1, 2)))]
        [-3, 2]
    """
    height, width = trained.shape[-2:]
    window = torch.hann_window(height, dtype=torch.float64)[:, None] * torch.hann_window(width, dtype=torch.float64)
    before, after = (torch.fft.fft2((x - x.mean((1, 2), keepdim=True)) * window) for x in (trained, deployed))
    cross = (after * before.conj()).sum(0)
    peak = int(torch.fft.ifft2(cross / cross.abs().clamp(min=1e-9)).real.argmax())
    down, right = _signed(peak // width, height), _signed(peak % width, width)
    fy, fx = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width)), indexing="ij")
    turn = 2 * math.pi * (fy * down + fx * right)
    phase = (cross * torch.polar(torch.ones_like(turn), turn)).angle().flatten()
    weight = torch.where(fy.square() + fx.square() < 0.15**2, cross.abs(), 0.0).flatten()
    plane = torch.stack([fx, fy], -1).reshape(-1, 2)
    slope = least_squares(plane * weight.sqrt()[:, None], (phase * weight.sqrt())[:, None])[:, 0]
    rest = (-slope / (2 * math.pi)).tolist()
    return right + rest[0], down + rest[1]


def _signed(index: int, size: int) -> int:
    return index - size if index > size // 2 else index


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


def estimate_motion(trained: Tensor, deployed: Tensor) -> tuple[Motion, float]:
    """The motion, shared by all pictures, that best maps one set to the other, and the correlation after it.

    Gauss-Newton on shift and zoom of both axes with free contrast and brightness (Lucas and Kanade, 1981), coarse to
    fine, from rest and from phase correlation; where both fail, from a grid of zooms. Both sets are blurred first, so
    that a sharper filter, noise or JPEG does not pull the estimate.
    """
    correlation = itemgetter(1)
    best = _refine(trained, deployed, Motion())
    if best[1] < _GOOD:
        best = max(best, _refine(trained, deployed, Motion(*phase_correlation(trained, deployed))), key=correlation)
    if best[1] < _GOOD:
        starts = [_coarse(trained, deployed, zoom_x, zoom_y) for zoom_y in _ZOOMS for zoom_x in _ZOOMS]
        for start, _ in sorted(starts, key=correlation, reverse=True)[:3]:
            best = max(best, _refine(trained, deployed, start), key=correlation)
    return best


def _coarse(trained: Tensor, deployed: Tensor, zoom_x: float, zoom_y: float) -> tuple[Motion, float]:
    factor = 4 if min(trained.shape[-2:]) >= 64 else 1
    small = [avg_pool2d(x[:, None], factor)[:, 0] for x in (trained, deployed)]
    dx, dy = phase_correlation(warp(small[0], Motion(0, 0, zoom_x, zoom_y)), small[1])
    correlation = _correlation(small[0], small[1], Motion(dx, dy, zoom_x, zoom_y))
    return Motion(factor * dx, factor * dy, zoom_x, zoom_y), correlation


def _correlation(trained: Tensor, deployed: Tensor, motion: Motion) -> float:
    mask = motion.inside(trained.shape[-2], trained.shape[-1], margin=1)
    if int(mask.sum()) < 0.25 * mask.numel():
        return -1.0
    before, after = warp(trained, motion)[:, mask], deployed[:, mask]
    before, after = before - before.mean(), after - after.mean()
    return float((before * after).sum() / (before.norm() * after.norm()).clamp(min=1e-9))


def _refine(trained: Tensor, deployed: Tensor, motion: Motion) -> tuple[Motion, float]:
    for factor in (4, 2, 1):
        if min(trained.shape[-2:]) < 16 * factor:
            continue
        before, after = (
            blurred(avg_pool2d(x[:, None], factor)[:, 0] if factor > 1 else x) for x in (trained, deployed)
        )
        local = Motion(motion.dx / factor, motion.dy / factor, motion.zoom_x, motion.zoom_y)
        for _ in range(12):
            step, local = _gauss_newton(before, after, local, "cubic")
            if step < 1e-3:
                break
        motion = Motion(local.dx * factor, local.dy * factor, local.zoom_x, local.zoom_y)
    return motion, _correlation(blurred(trained), blurred(deployed), motion)


def polish(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel) -> Motion:
    """The same motion for unblurred pictures and one kernel: exact where the deployed side interpolated with it."""
    for _ in range(6):
        step, motion = _gauss_newton(trained, deployed, motion, kernel)
        if step < 1e-3:
            break
    return motion


def _gauss_newton(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel) -> tuple[float, Motion]:
    """One step: its length in pixels at the border, and the motion after it."""
    height, width = trained.shape[-2:]
    mask = motion.inside(height, width, margin=2)
    if int(mask.sum()) < 64:
        return 0.0, motion
    warped, across, down = _slopes(trained, motion, kernel)
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    columns = [across, across * x, down, down * y, warped, torch.ones_like(warped)]
    basis = torch.stack([column[:, mask].flatten() for column in columns], 1)
    solution = least_squares(basis, deployed[:, mask].reshape(-1, 1))[:, 0]
    contrast = float(solution[4]) or 1.0
    ax, zx, ay, zy = (-solution[:4] / contrast).clamp(-4, 4).tolist()
    changed = Motion(
        motion.dx + ax,
        motion.dy + ay,
        motion.zoom_x * (1 + zx * 2 / (width - 1)),
        motion.zoom_y * (1 + zy * 2 / (height - 1)),
    )
    return max(map(abs, (ax, zx, ay, zy))), changed


def _slopes(images: Tensor, motion: Motion, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Warped pictures and their derivatives to the right and down; for the linear kernel, of the kernel itself."""
    warped = warp(images, motion, kernel)
    if kernel == "cubic":
        return warped, (warped.roll(-1, 2) - warped.roll(1, 2)) / 2, (warped.roll(-1, 1) - warped.roll(1, 1)) / 2
    nudge = 0.02
    across, down = (
        (
            warp(images, dataclasses.replace(motion, **{axis: by - nudge}), kernel)
            - warp(images, dataclasses.replace(motion, **{axis: by + nudge}), kernel)
        )
        / (2 * nudge)
        for axis, by in (("dx", motion.dx), ("dy", motion.dy))
    )
    return warped, across, down


def jitter(warped: Tensor, deployed: Tensor, mask: Tensor) -> float:
    """The unevenness of the displacement of rows and columns after registration, in pixels.

    Sampling at the nearest pixel causes it. The displacement of each column and row is a least-squares fit along the
    slope across it. The result is the smaller of the two standard deviations, estimated robustly from neighbours, which
    removes what is linear over the picture.

    Args:
        warped: Trained pictures after the motion.
        deployed: The deployed ones.
        mask: Pixels to use, ``(H, W)``.
    """
    rest = torch.where(mask, deployed - warped, 0.0)
    spreads = []
    for axis in (1, 2):
        slope = torch.where(mask, (warped.roll(1, axis) - warped.roll(-1, axis)) / 2, 0.0)
        along = tuple(d for d in (0, 1, 2) if d != axis)
        profile = (slope * rest).sum(along) / slope.square().sum(along).clamp(min=1e-9)
        profile = profile[mask.any(2 - axis)]
        neighbours = profile[1:] - profile[:-1]
        spreads.append(float(neighbours.abs().median()) / math.sqrt(2) * 1.4826)
    return min(spreads)
