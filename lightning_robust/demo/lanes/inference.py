"""From recorded frames to lines: `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_robust.checks import check_positive
from lightning_robust.demo.lanes.anchors import rescale
from lightning_robust.demo.lanes.detector import LaneDetector, RobustLaneDetector
from lightning_robust.functional.batchnorm import evaluating


class Lanes(NamedTuple):
    """Lines in frames, in pixels of these frames; pixel 0 is the centre of the first pixel.

    Args:
        rows: Rows at which lines are located, float64, (R,).
        columns: Column of the left and the right ego line at each row, float64, (N, 2, R); a guess where it is absent.
        present: Whether the line is present, bool, (N, 2, R).
    """

    rows: np.ndarray
    columns: np.ndarray
    present: np.ndarray


def predict(checkpoint: str | Path | LaneDetector, frames: np.ndarray | Tensor, *, batch_size: int = 32) -> Lanes:
    """Finds the two ego lines in recorded frames.

    Args:
        checkpoint: Path of a Lightning checkpoint of `LaneDetector` (read with ``weights_only=True``), or the module.
        frames: RGB, uint8, (N, H, W, 3), any height and width of the camera's picture.
        batch_size: Frames at a time; bounds the memory.

    Raises:
        TypeError: If the frames are no uint8 array or tensor.
        ValueError: If their shape is not (N, H, W, 3), or ``batch_size`` is below 1.
    """
    check_positive(batch_size=batch_size)
    pictures = _as_pictures(frames)
    model = checkpoint if isinstance(checkpoint, LaneDetector) else load_detector(checkpoint)
    height, width = pictures.shape[1:3]
    with torch.inference_mode(), evaluating(model):
        parts = [_locate_lines(model, part) for part in torch.split(pictures, batch_size)]
    empty = (0, 2, len(model.rows))
    columns = torch.cat([c for c, _ in parts]) if parts else torch.zeros(empty, dtype=torch.float64)
    present = torch.cat([p for _, p in parts]) if parts else torch.zeros(empty, dtype=torch.bool)
    rows = rescale(model.rows, model.frame_height, height)
    columns = rescale(columns, model.frame_width, width)
    return Lanes(rows.numpy(), columns.numpy(), present.numpy())


def load_detector(checkpoint: str | Path) -> LaneDetector:
    """The detector of a Lightning checkpoint, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"Expected a checkpoint of LaneDetector at {checkpoint}, but there is no such file.")
    # reads both classes, and a head of rotation self-supervision
    model = RobustLaneDetector.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    return model.eval()


def _as_pictures(frames: np.ndarray | Tensor) -> Tensor:
    if not isinstance(frames, (np.ndarray, Tensor)):
        raise TypeError(f"Expected frames as a uint8 array or tensor, but got {type(frames).__name__}.")
    pictures = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    if pictures.dtype != torch.uint8:
        raise TypeError(f"Expected frames in uint8, 0 to 255, but got {pictures.dtype}. Scale and convert them.")
    if pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(
            f"Expected RGB frames of shape (N, H, W, 3), but got {tuple(pictures.shape)}. "
            "Stack the frames, channels last."
        )
    return pictures


def _locate_lines(model: LaneDetector, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in pixels of the model's original frame and presence of frames (N, H, W, 3)."""
    outputs = model(model.preprocess(frames.to(model.device)))
    return outputs.columns.double().cpu(), model.decode(outputs)["present"].cpu()
