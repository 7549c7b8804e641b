"""Registration: the motion from one set of pictures to another, to hundredths of a pixel.

Pictures are grey, ``(N, H, W)`` in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lightning_robust.deployment.fingerprint.motion import Kernel, Motion, blurred, least_squares, warp

_ZOOMS = (0.7, 0.78, 0.86, 0.93, 1.0, 1.08, 1.16, 1.28, 1.4)
_GOOD = 0.97  # correlation of pictures that are registered; filters, noise and JPEG leave 0.99
_MOST_ZOOM = 2.0  # what would be magnified more is taken for no motion at all
_BENT = 0.12  # pixels at the corner by which a turn or a lens moves content before one is looked for
_WORTH = 1.1  # error of shift and zoom alone over the error with a turn and a lens


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


def estimate_motion(trained: Tensor, deployed: Tensor) -> tuple[Motion, float]:
    """The motion, shared by all pictures, that best maps one set to the other, and the correlation after it.

    Gauss-Newton on shift and zoom of both axes with free contrast and brightness (Lucas and Kanade, 1981), coarse to
    fine, from rest and from phase correlation; where both fail, from a grid of zooms. Both sets are blurred first, so
    that a sharper filter, noise or JPEG does not pull the estimate. A turn and a lens are added where they explain
    more.
    """
    correlation = itemgetter(1)
    best = _refine(trained, deployed, Motion())
    if best[1] < _GOOD:
        best = max(best, _refine(trained, deployed, Motion(*phase_correlation(trained, deployed))), key=correlation)
    if best[1] < _GOOD:
        starts = [_coarse(trained, deployed, zoom_x, zoom_y) for zoom_y in _ZOOMS for zoom_x in _ZOOMS]
        for start, _ in sorted(starts, key=correlation, reverse=True)[:3]:
            best = max(best, _refine(trained, deployed, start), key=correlation)
    if not all(1 / _MOST_ZOOM < zoom < _MOST_ZOOM for zoom in (best[0].zoom_x, best[0].zoom_y)):
        best = Motion(), _correlation(blurred(trained), blurred(deployed), Motion())
    return _turn_and_bend(trained, deployed, best)


def _turn_and_bend(trained: Tensor, deployed: Tensor, straight: tuple[Motion, float]) -> tuple[Motion, float]:
    """The motion with a turn and a lens, if one step towards them is long, and they explain more than chance."""
    height, width = trained.shape[-2:]
    step, _ = _gauss_newton(blurred(trained), blurred(deployed), straight[0], "linear", bent=True)
    if max(map(abs, step[4:])) < _BENT * min(height, width) / math.hypot(height, width):
        return straight
    best = max((_refine(trained, deployed, start, bent=True) for start in (straight[0], Motion())), key=itemgetter(1))
    return best if 1 - straight[1] > _WORTH * (1 - best[1]) else straight


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


def _refine(trained: Tensor, deployed: Tensor, motion: Motion, *, bent: bool = False) -> tuple[Motion, float]:
    for factor in (4, 2, 1):
        if min(trained.shape[-2:]) < 16 * factor:
            continue
        before, after = (
            blurred(avg_pool2d(x[:, None], factor)[:, 0] if factor > 1 else x) for x in (trained, deployed)
        )
        local = replace(motion, dx=motion.dx / factor, dy=motion.dy / factor)
        for _ in range(12):
            step, local = _gauss_newton(before, after, local, "linear" if bent else "cubic", bent=bent)
            if max(map(abs, step)) < 1e-3:
                break
        motion = replace(local, dx=local.dx * factor, dy=local.dy * factor)
    return motion, _correlation(blurred(trained), blurred(deployed), motion)


def polish(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel) -> Motion:
    """The same motion for unblurred pictures and one kernel: exact where the deployed side interpolated with it."""
    for _ in range(6):
        step, motion = _gauss_newton(trained, deployed, motion, kernel, bent=not motion.is_straight)
        if max(map(abs, step)) < 1e-3:
            break
    return motion


def _gauss_newton(
    trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, *, bent: bool = False
) -> tuple[list[float], Motion]:
    """One step, in pixels at the border (right, wider, down, higher, turned, bent), and the motion after it."""
    height, width = trained.shape[-2:]
    mask = motion.inside(height, width, margin=2)
    if int(mask.sum()) < 64:
        return [0.0] * 6, motion
    warped, across, down = _slopes(trained, motion, kernel)
    directions = list(_directions(across, down, bent=bent))
    columns = [*directions, warped, torch.ones_like(warped)]
    basis = torch.stack([column[:, mask].flatten() for column in columns], 1)
    solution = least_squares(basis, deployed[:, mask].reshape(-1, 1))[:, 0]
    contrast = float(solution[len(directions)]) or 1.0
    moves = (-solution[: len(directions)] / contrast).clamp(-4, 4).tolist()
    ax, zx, ay, zy, turn, bend = [*moves, 0.0, 0.0][:6]
    changed = Motion(
        motion.dx + ax,
        motion.dy + ay,
        motion.zoom_x * (1 + zx * 2 / (width - 1)),
        motion.zoom_y * (1 + zy * 2 / (height - 1)),
        motion.angle + turn * 2 / (height - 1),
        motion.lens - bend * 2 / (height - 1),
    )
    return [ax, zx, ay, zy, turn, bend], changed


def _directions(across: Tensor, down: Tensor, *, bent: bool) -> Iterator[Tensor]:
    """How pictures change as content moves by a pixel: at the border, for a turn and a lens at half the height."""
    height, width = across.shape[-2:]
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    yield from (across, across * x, down, down * y)
    if bent:
        ratio = (width - 1) / (height - 1)
        yield down * (x * ratio) - across * y
        square = (x.square() * ratio**2 + y.square()) / (1 + ratio**2)
        yield (across * (x * ratio) + down * y) * square


def _slopes(images: Tensor, motion: Motion, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Warped pictures and their derivatives to the right and down; for the linear kernel, of the kernel itself."""
    warped = warp(images, motion, kernel)
    if kernel == "cubic" or not motion.is_straight:
        return warped, (warped.roll(-1, 2) - warped.roll(1, 2)) / 2, (warped.roll(-1, 1) - warped.roll(1, 1)) / 2
    nudge = 0.02
    across, down = (
        (
            warp(images, replace(motion, **{axis: by - nudge}), kernel)
            - warp(images, replace(motion, **{axis: by + nudge}), kernel)
        )
        / (2 * nudge)
        for axis, by in (("dx", motion.dx), ("dy", motion.dy))
    )
    return warped, across, down
