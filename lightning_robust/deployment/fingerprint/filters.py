"""Closed-form estimates of how pictures differ in colour, sharpness, and traces of compression, once registered.

Pictures are levels of 8 bits in fp64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad, unfold

from lightning_robust.deployment.fingerprint.motion import blurred, solve_normal

_STRIP = 64  # rows of a picture whose patches are held at once
_ENOUGH = 2**17  # pixels from which taps are fitted; more make them no surer than rounding does


def mean_square(values: Tensor) -> float:
    """Mean of the squares."""
    return float(values.square().mean())


def fit_gains(trained: Tensor, deployed: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset of each channel, ``(C,)`` each, of colours ``(P, C)``."""
    mean, there = trained.mean(0), deployed.mean(0)
    spread = (trained - mean).square().mean(0).clamp(min=1e-9)
    gain = ((trained - mean) * (deployed - there)).mean(0) / spread
    return gain, there - gain * mean


def fit_gamma(trained: Tensor, deployed: Tensor) -> float:
    """The power in ``deployed = 255 (trained / 255) ** gamma``, from 0.2 to 5, by Gauss-Newton."""
    base, gamma = (trained / 255).clamp(1e-3, 1), 1.0
    for _ in range(6):
        curve = 255 * base**gamma
        slope = curve * base.log()
        gamma += float(((deployed - curve) * slope).sum() / slope.square().sum().clamp(min=1e-9))
        gamma = min(max(gamma, 0.2), 5.0)
    return gamma


def fit_filter(trained: Tensor, deployed: Tensor, mask: Tensor, radius: int = 3) -> tuple[Tensor, Tensor]:
    """The linear filter that best maps one set of grey pictures to the other, and its residual.

    Args:
        trained: ``(N, H, W)``.
        deployed: ``(N, H, W)``.
        mask: Pixels to use, ``(H, W)``; a border of ``radius`` pixels is never used.
        radius: Of the filter, which has ``2 radius + 1`` taps each way.

    Returns:
        Taps as correlated, ``(2 radius + 1, 2 radius + 1)``, and ``deployed`` minus the filtered pictures, without the
        border.
    """
    size, height = 2 * radius + 1, trained.shape[1]
    few = -(-_ENOUGH // max(int(mask.sum()), 1))
    gram = torch.zeros(size * size + 1, size * size + 1, dtype=torch.float64)
    right = torch.zeros(size * size + 1, 1, dtype=torch.float64)
    for top in range(0, height - 2 * radius, _STRIP):
        rows = slice(top, min(top + _STRIP + 2 * radius, height))
        use = mask[rows, :][radius:-radius, radius:-radius].flatten()
        for before, after in zip(trained[:few, rows], deployed[:few, rows], strict=True):
            patches = unfold(before[None, None], size)[0][:, use]
            basis = torch.cat([patches, torch.ones_like(patches[:1])])
            gram += basis @ basis.T
            right += basis @ after[radius:-radius, radius:-radius].reshape(-1, 1)[use]
    solution = solve_normal(gram, right)
    kernel = solution[:-1].reshape(size, size)
    filtered = _correlate(trained[:, None], kernel)[:, 0] + solution[-1]
    return kernel, deployed[:, radius:-radius, radius:-radius] - filtered


def apply_filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Pictures ``(N, C, H, W)`` after a filter, the border repeated."""
    radius = kernel.shape[0] // 2
    padded = pad(images.flatten(0, 1)[:, None], [radius] * 4, mode="replicate")
    return _correlate(padded, kernel).reshape(images.shape)


def _correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """In single precision, which is ten times as fast and exact to a thousandth of a level."""
    return conv2d(images.float(), kernel[None, None].float()).double()


def sharpness(kernel: Tensor) -> float:
    """Mean gain of a filter at 0.3 to 0.5 cycles a pixel: 1 keeps detail, above 1 sharpens, below 1 blurs."""
    frequency = torch.fft.fftfreq(32, dtype=torch.float64)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    return float(torch.fft.fft2(kernel, s=(32, 32)).abs()[(radius > 0.3) & (radius < 0.5)].mean())


def pooled(images: Tensor, mask: Tensor) -> Tensor:
    """Means ``(P, C)`` of 4 x 4 blocks of pictures ``(N, C, H, W)`` that lie in the mask ``(N, H, W)`` as a whole."""
    means = avg_pool2d(images, 4).permute(0, 2, 3, 1)
    return means[avg_pool2d(mask[:, None].double(), 4)[:, 0] > 1 - 1e-9]


def blockiness(images: Tensor) -> float:
    """The excess of missing high frequencies in 8 x 8 blocks on JPEG's grid over those on other grids, in [-1, 1].

    It compares the share of DCT coefficients below 0.7 levels. Pictures are grey, ``(N, H, W)``, and their grid starts
    in the corner.
    """
    corners = ((0, 0), (4, 4), (2, 5), (5, 3))
    aligned, *others = (_share_of_missing_frequencies(images[:, top:, left:]) for top, left in corners)
    return aligned - max(others)


def _share_of_missing_frequencies(images: Tensor) -> float:
    step = torch.arange(8, dtype=torch.float64)
    transform = torch.cos(math.pi * (2 * step + 1) * step[:, None] / 16) / 2
    transform[0] /= math.sqrt(2)
    rows, columns = (side // 8 for side in images.shape[-2:])
    blocks = images[:, : rows * 8, : columns * 8].reshape(-1, rows, 8, columns, 8).transpose(2, 3)
    high = step[:, None] + step >= 7
    return float(((transform @ blocks @ transform.T)[..., high].abs() < 0.7).double().mean())


def chroma_steps(images: Tensor) -> float:
    """Detail of colour inside 2 x 2 blocks on NV12's grid over that on the shifted grid, relative to brightness.

    Near 0 where colour has half the resolution, 1 where nothing favours a grid; pictures ``(N, 3, H, W)``.
    """
    colour = torch.stack([images[:, 0] - images[:, 1], images[:, 2] - images[:, 1]], 1)
    grey = images.mean(1, keepdim=True)
    return _grid_ratio(colour) / max(_grid_ratio(grey), 1e-6)


def _grid_ratio(images: Tensor) -> float:
    aligned, other = (_block_variance(images[..., start:, start:]) for start in (0, 1))
    return aligned / max(other, 1e-6)


def _block_variance(images: Tensor) -> float:
    rows, columns = (side // 2 for side in images.shape[-2:])
    blocks = images[..., : rows * 2, : columns * 2].reshape(*images.shape[:2], rows, 2, columns, 2)
    return float((blocks - blocks.mean((3, 5), keepdim=True)).square().mean())


def noise_power(residual: Tensor, clean: Tensor, mask: Tensor) -> tuple[float, float, float]:
    """Variance of a residual in the calmest quarter of the pictures, its correlation from pixel to pixel, its kurtosis.

    Noise is the same everywhere and white; the residual of a wrong filter or compression follows the content.

    Args:
        residual: ``(N, H, W)``.
        clean: The pictures without noise, ``(N, H, W)``.
        mask: Pixels to use, ``(H, W)``.
    """
    activity = (clean - blurred(clean)).abs() + (clean - clean.roll(1, 2)).abs() + (clean - clean.roll(1, 1)).abs()
    activity = blurred(activity)
    use = mask.expand_as(residual)
    calm = use & (activity <= activity[use].kthvalue(max(int(use.sum()) // 4, 1)).values)
    centred = residual - residual[calm].mean()
    power = float(centred[calm].square().mean())
    pairs = []
    for axis in (1, 2):
        both = calm & calm.roll(1, axis)
        product = (centred * centred.roll(1, axis))[both]
        pairs.append(float(product.mean()) / max(power, 1e-9) if product.numel() else 1.0)
    kurtosis = mean_square(centred[calm].square()) / max(power, 1e-9) ** 2
    return power, max(pairs, key=abs), kurtosis
