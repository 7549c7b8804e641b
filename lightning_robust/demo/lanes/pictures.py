"""Pictures of predictions for the logger.

Metrics are logged by the detector itself.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from lightning_robust.demo.lanes.anchors import rescale
from lightning_robust.demo.lanes.data import MEAN, STD
from lightning_robust.demo.lanes.detector import LaneDetector

_TRUE = (1.0, 1.0, 1.0)
_FOUND = ((1.0, 0.30, 0.25), (0.20, 0.85, 1.0))


class LanePictures(pl.Callback):
    """Logs the first pictures of every validation with their lines: true ones white, found ones red and blue.

    Args:
        count: Number of pictures.
        scale: Pixels of the logged picture for one of the network's input.
        tag: Name under which they are logged.
    """

    def __init__(self, count: int = 8, scale: int = 3, tag: str = "val/lanes") -> None:
        self.count, self.scale, self.tag = count, scale, tag
        self._kept: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the pictures of the last validation."""
        self._kept = []

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
        missing = self.count - len(self._kept)
        if missing <= 0 or not trainer.is_global_zero or not isinstance(pl_module, LaneDetector):
            return
        step = pl_module.sequence_length if len(batch[0]) > pl_module.sequence_length else 1
        images, columns = batch[0][::step][:missing], batch[1][::step][:missing]
        with torch.no_grad():
            found = pl_module.decode(pl_module(images))["lateral_px"]
        self._kept.extend(draw_lines(images, columns, found, pl_module.frame_width, self.scale))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hands the pictures to the loggers."""
        if self._kept and trainer.is_global_zero and not trainer.sanity_checking:
            from lightning_robust.harness.logging import log_images

            log_images(trainer, self.tag, torch.stack(self._kept))


def draw_lines(images: Tensor, columns: Tensor, found: Tensor, frame_width: int, scale: int = 3) -> Tensor:
    """Pictures with the true lines in white under the found ones in red (left) and blue (right).

    Args:
        images: Normalised, (N, 3, H, W).
        columns: True columns in pixels of the original frame, (N, 2, R), NaN where absent.
        found: Predicted columns, likewise.
        frame_width: Width of the original frame.
        scale: Enlargement.

    Returns:
        (N, 3, H * scale, W * scale) float32 in [0, 1], on the CPU.
    """
    from lightning_robust.demo.lanes.anchors import row_anchors

    height, width = images.shape[2:]
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    canvas = (images.detach().cpu().float() * std + mean).clamp(0.0, 1.0)
    canvas = functional.interpolate(canvas, scale_factor=float(scale), mode="bicubic").clamp(0.0, 1.0)
    rows = rescale(row_anchors(height), height, height * scale).float()
    for line in range(2):
        for source, colour, radius in ((columns, _TRUE, 0.9), (found, _FOUND[line], 0.55)):
            across = rescale(source[:, line].detach().cpu().float(), frame_width, width * scale)
            cover = _polyline(across, rows, (height * scale, width * scale), radius * scale)
            canvas += (torch.tensor(colour)[:, None, None] - canvas) * cover[:, None]
    return canvas


def _polyline(columns: Tensor, rows: Tensor, size: tuple[int, int], radius: float) -> Tensor:
    """Opacity of lines through the points, softly rimmed, (N, H, W); a gap where a point is NaN."""
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
