"""Two sets of pictures registered and brought to the same colours, and what remains between them.

Pictures are levels of 8 bits, ``(N, C, H, W)`` in fp64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lightning_robust.deployment.fingerprint.colours import Colors, fit_colors
from lightning_robust.deployment.fingerprint.filters import fit_filter, fit_gains, mean_square, pooled
from lightning_robust.deployment.fingerprint.motion import Kernel, Motion, estimate_motion, polish, warp

SHIFT_LIMIT = 0.04  # pixels; compression and filters move content by a hundredth
STRETCH_LIMIT = 0.1  # pixels at the border
FILTER_LIMIT = 1.3  # error of a motion alone over the error of a motion and a filter
_RADIUS = 3


@dataclass(frozen=True)
class View:
    """Both sides under one motion and colour change.

    Args:
        deployed: The deployed side's pictures.
        motion: From training's content to the deployed side's.
        kernel: Its interpolation.
        colors: The colour change.
        predicted: Training's pictures after motion and colour change.
        mask: Pixels whose content training has too, ``(H, W)``.
        taps: The filter from the prediction to the deployed pictures, on grey pictures.
        rest: The deployed grey pictures minus the filtered prediction, ``(N, H, W)``.
        filter_gain: The error of motion and colours over the error with a filter as well.
    """

    deployed: Tensor
    motion: Motion
    kernel: Kernel
    colors: Colors
    predicted: Tensor
    mask: Tensor
    taps: Tensor
    rest: Tensor
    filter_gain: float = 1.0

    @property
    def needs_filter(self) -> bool:
        """Whether a filter explains much more than motion and colours alone."""
        return self.filter_gain > FILTER_LIMIT

    @property
    def plain_error(self) -> float:
        """Grey mean square without a filter, after the best gain and offset, since a filter could be just that."""
        before, after = (side.mean(1)[:, self.mask].reshape(-1, 1) for side in (self.predicted, self.deployed))
        gain, offset = fit_gains(before, after)
        return mean_square(after - gain * before - offset)

    @property
    def filtered_error(self) -> float:
        """Grey mean square with a filter."""
        return mean_square(self.rest[..., self.mask])

    @property
    def residual(self) -> Tensor:
        """The deployed grey pictures minus the prediction ``(N, H, W)``, filtered if the view needs a filter."""
        return self.rest if self.needs_filter else (self.deployed - self.predicted).mean(1)

    @property
    def unfiltered_error(self) -> float:
        """Mean square that motion and colours do not explain."""
        return mean_square((self.deployed - self.predicted)[..., self.mask])

    @property
    def error(self) -> float:
        """Mean square that motion, colours and the filter, if the view needs one, do not explain."""
        return self.unfiltered_error * (self.filtered_error / self.plain_error if self.needs_filter else 1.0)

    def error_from(self, source: Tensor) -> float:
        """Mean square where other pictures take the place of training's, with the same motion, colours and filter."""
        predicted = _predict_deployed(source, self.deployed, self.motion, self.kernel, self.colors)
        if self.needs_filter:
            padded = pad(predicted.flatten(0, 1)[:, None], [_RADIUS] * 4, mode="replicate")
            predicted = conv2d(padded, self.taps[None, None]).reshape(predicted.shape)
        return mean_square((self.deployed - predicted)[..., self.mask])

    def polished(self, source: Tensor) -> View:
        """The view with the motion that fits other pictures in the place of training's."""
        if self.motion == Motion():
            return self
        motion = polish(self.colors.apply(source).mean(1), self.deployed.mean(1), self.motion, self.kernel)
        return replace(self, motion=motion)


def best_view(trained: Tensor, deployed: Tensor) -> tuple[View, float]:
    """The motion and colour change that explain most, and the correlation of the registered pictures."""
    views, correlation = _make_views(trained, deployed)
    plain, filtered = (min(views, key=key) for key in (lambda v: v.plain_error, lambda v: v.filtered_error))
    gain = plain.plain_error / max(filtered.filtered_error, 0.02)
    return replace(filtered if gain > FILTER_LIMIT else plain, filter_gain=gain), correlation


def _make_views(trained: Tensor, deployed: Tensor) -> tuple[list[View], float]:
    """One view, or one for each interpolation kernel where content moved; and the correlation."""
    before, after = trained.mean(1), deployed.mean(1)
    motion, correlation = estimate_motion(before, after)
    stretch = max(map(abs, motion.stretch(*before.shape[-2:])))
    if max(abs(motion.dx), abs(motion.dy)) < SHIFT_LIMIT and stretch < STRETCH_LIMIT:
        motion = Motion()
    colors = fit_colors(*_block_colours(warp(trained, motion), deployed, motion))
    if motion == Motion():
        return [_make_view(trained, deployed, motion, "linear", colors)], correlation
    kernels: tuple[Kernel, ...] = ("linear", "cubic")
    return [_make_view(trained, deployed, polish(before, after, motion, k), k, colors) for k in kernels], correlation


def _make_view(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> View:
    predicted = _predict_deployed(trained, deployed, motion, kernel, colors)
    mask = motion.inside(trained.shape[-2], trained.shape[-1], margin=_RADIUS)
    taps, rest = fit_filter(predicted.mean(1), deployed.mean(1), mask, _RADIUS)
    return View(deployed, motion, kernel, colors, predicted, mask, taps, pad(rest, [_RADIUS] * 4))


def _predict_deployed(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> Tensor:
    predicted = colors.apply(trained if motion == Motion() else warp(trained, motion, kernel))
    clipped = float(deployed.min()) >= 0 and float(deployed.max()) <= 255
    return predicted.clamp(0, 255) if clipped else predicted


def _block_colours(warped: Tensor, deployed: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Block means of both sides, without blocks in which the deployed side is clipped."""
    low, high = (bound(deployed, (0, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    unclipped = ((deployed > low + 0.5) & (deployed < high - 0.5)).all(1)
    use = motion.inside(*deployed.shape[-2:]) & unclipped
    if float(use.double().mean()) < 0.1:
        use = motion.inside(*deployed.shape[-2:]).expand_as(unclipped)
    return pooled(warped, use), pooled(deployed, use)
