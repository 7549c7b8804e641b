"""Pictures of predictions for the logger."""

from __future__ import annotations

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


class LanePictures(pl.Callback):
    """Logs the first pictures of every validation with their lines: true ones white, predicted ones red and blue.

    Args:
        count: Number of pictures.
        scale: Pixels of the logged picture for one of the network's input.
        tag: Name under which they are logged.
    """

    def __init__(self, count: int = 8, scale: int = 3, tag: str = "val/lanes") -> None:
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
        self._pictures.extend(draw_lines(images, columns, predicted, pl_module.frame_width, self.scale))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the pictures."""
        if self._pictures and trainer.is_global_zero and not trainer.sanity_checking:
            log_images(trainer, self.tag, torch.stack(self._pictures))


def draw_lines(images: Tensor, columns: Tensor, predicted: Tensor, frame_width: int, scale: int = 3) -> Tensor:
    """Pictures with the true lines in white under the predicted ones in red (left) and blue (right).

    Args:
        images: Normalised, (N, 3, H, W).
        columns: True columns in pixels of the original frame, (N, 2, R), NaN where absent.
        predicted: Predicted columns, (N, 2, R), NaN where absent.
        frame_width: Width of the original frame.
        scale: Enlargement.

    Returns:
        (N, 3, H * scale, W * scale) float32 in [0, 1], on the CPU.
    """
    height, width = images.shape[2:]
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    canvas = (images.detach().cpu().float() * std + mean).clamp(0.0, 1.0)
    canvas = functional.interpolate(canvas, scale_factor=float(scale), mode="bicubic").clamp(0.0, 1.0)
    rows = rescale(row_anchors(height), height, height * scale).float()
    for line in range(2):
        for source, colour, radius in ((columns, _TRUE, 0.9), (predicted, _PREDICTED[line], 0.55)):
            across = rescale(source[:, line].detach().cpu().float(), frame_width, width * scale)
            cover = _polyline(across, rows, (height * scale, width * scale), radius * scale)
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
