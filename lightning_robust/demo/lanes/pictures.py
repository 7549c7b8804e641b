"""Pictures of predictions for the logger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from lightning_robust.demo.lanes.anchors import rescale, row_anchors
from lightning_robust.demo.lanes.data import MEAN, STD
from lightning_robust.demo.lanes.detector import LaneDetector
from lightning_robust.harness.logging import log_images

_TRUE = (1.0, 1.0, 1.0)
_PREDICTED = ((1.0, 0.30, 0.25), (0.20, 0.85, 1.0))
_LEGEND = ((_TRUE, "true lines"), (_PREDICTED[0], "predicted left"), (_PREDICTED[1], "predicted right"))
_BACKGROUND = (0.11, 0.12, 0.14)
_WIDEST, _GAP = 1400, 6
"""Pixels: of the logged picture at most, and between two frames."""
_THICKNESS = 2.2
"""Of lines that are still seen on a card of 350 pixels."""


class LanePictures(pl.Callback):
    """Logs the first frames of every validation as one picture of at most 1400 pixels, with their lines and a legend.

    Args:
        count: Number of frames; a square number fills the picture.
        scale: Pixels of the logged picture for one of the network's input, where there is room for so many.
        tag: Name under which they are logged.
    """

    def __init__(self, count: int = 16, scale: int = 3, tag: str = "val/lanes") -> None:
        self.count, self.scale, self.tag = count, scale, tag
        self._pictures: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the pictures of the last validation."""
        self._pictures = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws pictures of a batch until there are enough, one from each sequence."""
        needed = self.count - len(self._pictures)
        if needed <= 0 or not trainer.is_global_zero or not isinstance(pl_module, LaneDetector):
            return
        step = pl_module.sequence_length if len(batch[0]) > pl_module.sequence_length else 1
        images, columns = batch[0][::step][:needed], batch[1][::step][:needed]
        with torch.no_grad():
            predicted = pl_module.decode(pl_module(images))["lateral_px"]
        room = (_WIDEST - _GAP) / _columns(self.count) - _GAP
        scale = min(self.scale, room / images.shape[-1])
        self._pictures.extend(draw_lines(images, columns, predicted, pl_module.frame_width, scale, _THICKNESS))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the pictures."""
        if self._pictures and trainer.is_global_zero and not trainer.sanity_checking:
            log_images(trainer, self.tag, arrange(torch.stack(self._pictures))[None])


def arrange(pictures: Tensor) -> Tensor:
    """Pictures row by row in a grid that is about square, with a legend of the lines below.

    Args:
        pictures: (N, 3, H, W) in [0, 1], on the CPU.

    Returns:
        (3, height, width) in [0, 1].

    Example:
        >>> arrange(torch.zeros(3, 3, 90, 160)).shape  # two rows of two, gaps of 6 pixels, a legend
        torch.Size([3, 220, 338])
    """
    count, _, height, width = pictures.shape
    columns = _columns(count)
    rows = math.ceil(count / columns)
    size = rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP
    canvas = torch.tensor(_BACKGROUND)[:, None, None].repeat(1, *size)
    for index, picture in enumerate(pictures):
        top, left = (
            _GAP + place * (side + _GAP) for place, side in zip(divmod(index, columns), (height, width), strict=True)
        )
        canvas[:, top : top + height, left : left + width] = picture
    return torch.cat([canvas, _draw_legend(size[1])], 1)


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _draw_legend(width: int) -> Tensor:
    """A strip with the colour and the meaning of each line."""
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    size = max(width // 36, 10)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
    lengths = [4 * size + int(font.getlength(text)) for _, text in _LEGEND]
    stacked = sum(lengths) + 2 * _GAP > width
    line = 5 * size // 3
    background, *colours = (tuple(round(255 * v) for v in colour) for colour in (_BACKGROUND, *(c for c, _ in _LEGEND)))
    strip = Image.new("RGB", (width, line * (len(_LEGEND) if stacked else 1) + _GAP), background)
    pen, left, middle = ImageDraw.Draw(strip), 2 * _GAP, line // 2
    for colour, (_, text), length in zip(colours, _LEGEND, lengths, strict=True):
        pen.line((left, middle, left + 2 * size, middle), colour, max(size // 5, 2))
        pen.text((left + 5 * size // 2, middle), text, (255, 255, 255), font, "lm")
        left, middle = (left, middle + line) if stacked else (left + length, middle)
    return torch.from_numpy(np.asarray(strip).copy()).permute(2, 0, 1) / 255


def draw_lines(
    images: Tensor, columns: Tensor, predicted: Tensor, frame_width: int, scale: float = 3, thickness: float = 1.0
) -> Tensor:
    """Pictures with the true lines in white under the predicted ones in red (left) and cyan (right).

    Args:
        images: Normalised, (N, 3, H, W).
        columns: True columns in pixels of the original frame, (N, 2, R), NaN where absent.
        predicted: Predicted columns, (N, 2, R), NaN where absent.
        frame_width: Width of the original frame.
        scale: Enlargement.
        thickness: Of the lines, 1 being 1.8 pixels of the given pictures for the true ones.

    Returns:
        (N, 3, H * scale, W * scale) float32 in [0, 1], on the CPU.
    """
    size = round(images.shape[2] * scale), round(images.shape[3] * scale)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    canvas = (images.detach().cpu().float() * std + mean).clamp(0.0, 1.0)
    canvas = functional.interpolate(canvas, size, mode="bicubic").clamp(0.0, 1.0)
    rows = rescale(row_anchors(images.shape[2]), images.shape[2], size[0]).float()
    for line in range(2):
        for source, colour, radius in ((columns, _TRUE, 0.9), (predicted, _PREDICTED[line], 0.55)):
            across = rescale(source[:, line].detach().cpu().float(), frame_width, size[1])
            cover = _polyline(across, rows, size, radius * scale * thickness)
            canvas += (torch.tensor(colour)[:, None, None] - canvas) * cover[:, None]
    return canvas


def _polyline(columns: Tensor, rows: Tensor, size: tuple[int, int], radius: float) -> Tensor:
    """Opacity of lines through the points, with soft edges, (N, H, W); a gap where a point is NaN."""
    y = torch.arange(size[0], dtype=torch.float32)
    step = rows[1] - rows[0]
    lower = ((y - rows[0]) / step).floor().long().clamp(0, len(rows) - 2)
    share = ((y - rows[lower]) / step).clamp(0.0, 1.0)
    inside = (y >= rows[0]) & (y <= rows[-1])
    first, second = columns[:, lower], columns[:, lower + 1]
    middle = first + (second - first) * share
    slant = ((second - first) / step).nan_to_num(0.0).abs()
    x = torch.arange(size[1], dtype=torch.float32)
    distance = (x[None, None] - middle[:, :, None]).abs() / (1 + slant * slant).sqrt()[:, :, None]
    return (radius + 0.5 - distance).clamp(0.0, 1.0).nan_to_num(0.0) * inside[None, :, None]
