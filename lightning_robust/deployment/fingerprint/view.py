"""Two sets of pictures registered and brought to the same colours, and what remains between them.

Pictures are levels of 8 bits, ``(N, C, H, W)`` in fp64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor
from torch.nn.functional import pad

from lightning_robust.deployment.fingerprint.blocks import block_colors
from lightning_robust.deployment.fingerprint.colours import Colors, fit_colors
from lightning_robust.deployment.fingerprint.filters import (
    apply_filter,
    fit_filter,
    fit_gains,
    mean_square,
    noise_power,
    sharpness,
)
from lightning_robust.deployment.fingerprint.motion import Kernel, Motion, warp
from lightning_robust.deployment.fingerprint.registration import estimate_motion, polish

SHIFT_LIMIT = 0.04  # pixels; compression and filters move content by a hundredth
STRETCH_LIMIT = 0.1  # pixels at the border
BEND_LIMIT = 0.15  # pixels by which a turn or a lens moves the corner
DETAIL_LIMIT = 0.06  # logarithm of the gain at high frequencies
FILTER_LIMIT = 20.0  # what a filter explains, in multiples of what its taps explain by chance
WHITE = 0.15
"""Correlation from pixel to pixel up to which what is left is noise."""
_MOST_OF_LOSS = 0.5
_KERNEL = 1.15  # error of an interpolation alone over that of another one and a filter
_LEAST_ERROR = 0.02  # levels squared; rounding leaves as much
_OFF = 0.01  # levels that black and white of normalised pictures may be off by
_RADIUS = 3
_TAPS = (2 * _RADIUS + 1) ** 2


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
        colored_first: Whether colours change, and are clipped, before content moves.
    """

    deployed: Tensor
    motion: Motion
    kernel: Kernel
    colors: Colors
    predicted: Tensor
    mask: Tensor
    taps: Tensor
    rest: Tensor
    colored_first: bool = False

    @cached_property
    def filter_evidence(self) -> float:
        """What a filter explains in multiples of chance, or how it changes detail in multiples of what counts.

        The smallest of them: taps that explain something without a change of detail follow another mistake, and where
        detail is lost beyond what noise hides, most of the loss must be a filter's; a codec's is not.
        """
        pixels = int(self.mask.sum()) * len(self.deployed)
        gain = self.plain_error / max(self.filtered_error, _LEAST_ERROR) - 1
        detail = math.log(max(sharpness(self.taps), 1e-3))
        evidence = min(gain * pixels / _TAPS / FILTER_LIMIT, abs(detail) / DETAIL_LIMIT)
        return evidence if detail > 0 or evidence < 1 else min(evidence, self._share_of_loss / _MOST_OF_LOSS)

    @property
    def _share_of_loss(self) -> float:
        """What the filter explains, of what noise does not."""
        power, correlation, _ = noise_power(self.rest, self.predicted.mean(1), self.mask)
        noise = power if abs(correlation) < WHITE else 0.0
        lost = max(self.plain_error - noise, _LEAST_ERROR)
        return max(lost - max(self.filtered_error - noise, 0.0), 0.0) / lost

    @property
    def filtered(self) -> Tensor:
        """The prediction, filtered if the view needs a filter."""
        if not self.needs_filter:
            return self.predicted
        # a filter overshoots beside edges, where the deployed side is clipped
        return _clip_like(self.deployed, apply_filter(self.predicted, self.taps))

    @property
    def needs_filter(self) -> bool:
        """Whether a filter explains more than motion and colours alone, by more than chance."""
        return self.filter_evidence > 1

    @cached_property
    def plain_error(self) -> float:
        """Grey mean square without a filter, after the best gain and offset, since a filter could be just that."""
        before, after = (side.mean(1)[:, self.mask].reshape(-1, 1) for side in (self.predicted, self.deployed))
        gain, offset = fit_gains(before, after)
        return mean_square(after - gain * before - offset)

    @cached_property
    def filtered_error(self) -> float:
        """Grey mean square with a filter."""
        return mean_square(self.rest[..., self.mask])

    @property
    def residual(self) -> Tensor:
        """The deployed grey pictures minus the prediction ``(N, H, W)``, filtered if the view needs a filter."""
        return self.rest if self.needs_filter else (self.deployed - self.predicted).mean(1)

    @cached_property
    def unfiltered_error(self) -> float:
        """Mean square that motion and colours do not explain."""
        return mean_square((self.deployed - self.predicted)[..., self.mask])

    @property
    def error(self) -> float:
        """Mean square that motion, colours and the filter, if the view needs one, do not explain."""
        return self.unfiltered_error * (self.filtered_error / self.plain_error if self.needs_filter else 1.0)

    def error_from(self, source: Tensor) -> float:
        """Mean square where others take the place of training's first pictures; motion, colours and filter stay."""
        predicted = self.predict(source)
        if self.needs_filter:
            predicted = apply_filter(predicted, self.taps)
        return mean_square((self.deployed[: len(source)] - predicted)[..., self.mask])

    def predict(self, source: Tensor) -> Tensor:
        """Others in the place of training's first pictures, after motion and colour change."""
        predict = _predict_colored_first if self.colored_first else _predict_deployed
        return predict(source, self.deployed[: len(source)], self.motion, self.kernel, self.colors)

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
    if not filtered.needs_filter:
        # moved by one kernel and then sharpened, content looks as if another one had moved it, but for a little
        sharper = (v for v in views if v.needs_filter and v.filtered_error * _KERNEL < plain.plain_error)
        filtered = next(sharper, filtered)
    if not filtered.needs_filter:
        return plain, correlation
    # a filter changes the contrast of small regions: without it colours are told apart from it
    source = apply_filter(trained, filtered.taps / filtered.taps.sum())
    colors = _fit_view_colors(source, deployed, filtered.motion)
    return _make_view(trained, deployed, filtered.motion, filtered.kernel, colors), correlation


def _make_views(trained: Tensor, deployed: Tensor) -> tuple[list[View], float]:
    """One view, or one for each interpolation kernel where content moved; and the correlation."""
    motion, correlation = estimate_motion(trained.mean(1), deployed.mean(1))
    if not _is_motion(motion, *deployed.shape[-2:]):
        motion = Motion()
    colors = _fit_view_colors(trained, deployed, motion)
    if motion != Motion():
        # a curve of colours pulls the estimated motion along, which its inverse takes back
        recolored, after = _clip_like(deployed, colors.apply(trained)).mean(1), deployed.mean(1)
        kernels: tuple[Kernel, ...] = ("linear", "cubic")
        motions = {kernel: polish(recolored, after, motion, kernel) for kernel in kernels}
        if _is_motion(motions["linear"], *deployed.shape[-2:]):
            if colors.gamma != 1.0:
                colors = _fit_view_colors(trained, deployed, motions["linear"])
            return [_make_view(trained, deployed, motions[k], k, colors) for k in kernels], correlation
        colors = _fit_view_colors(trained, deployed, Motion())
    return [_make_view(trained, deployed, Motion(), "linear", colors)], correlation


def _is_motion(motion: Motion, height: int, width: int) -> bool:
    shift, stretch = max(abs(motion.dx), abs(motion.dy)), max(map(abs, motion.stretch(height, width)))
    return shift >= SHIFT_LIMIT or stretch >= STRETCH_LIMIT or max(motion.bend(height, width)) >= BEND_LIMIT


def _fit_view_colors(trained: Tensor, deployed: Tensor, motion: Motion) -> Colors:
    return fit_colors(block_colors(warp(trained, motion), deployed, motion))


def _make_view(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> View:
    predicted = _predict_deployed(trained, deployed, motion, kernel, colors)
    mask = motion.inside(trained.shape[-2], trained.shape[-1], margin=_RADIUS)
    colored_first = False
    if motion != Motion() and colors.causes:
        other = _predict_colored_first(trained, deployed, motion, kernel, colors)
        errors = [mean_square((deployed - p)[..., mask]) for p in (predicted, other)]
        colored_first = errors[1] < errors[0]
        predicted = other if colored_first else predicted
    taps, rest = fit_filter(predicted.mean(1), deployed.mean(1), mask, _RADIUS)
    padded = pad(rest, [_RADIUS] * 4)
    return View(deployed, motion, kernel, colors, predicted, mask, taps, padded, colored_first)


def _predict_deployed(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> Tensor:
    return _clip_like(deployed, colors.apply(trained if motion == Motion() else warp(trained, motion, kernel)))


def _predict_colored_first(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> Tensor:
    return _clip_like(deployed, warp(_clip_like(deployed, colors.apply(trained)), motion, kernel))


def _clip_like(deployed: Tensor, predicted: Tensor) -> Tensor:
    clipped = float(deployed.min()) > -_OFF and float(deployed.max()) < 255 + _OFF
    return predicted.clamp(0, 255) if clipped else predicted
