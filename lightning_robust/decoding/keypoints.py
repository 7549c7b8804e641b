"""Key points from heat maps, to fractions of a pixel."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def heatmap_keypoints(
    heatmaps: Float[Tensor, "batch points rows columns"], height: float, width: float, threshold: float | None = None
) -> Float[Tensor, "batch points 2"]:
    """Where heat maps are largest, between their cells by the parabola through the peak and its neighbours.

    The place is continuous in the heat map, so that what half precision does to a map shows in fractions of a pixel and
    not in jumps of a cell.

    Args:
        heatmaps: A map for each point, of any size.
        height: Of the picture, in pixels in which points are to be.
        width: The same.
        threshold: The peak from which a point counts, none by default.

    Returns:
        ``(x, y)``, 0 in the centre of the first pixel, as :func:`~.picture_motion.move_points` takes it; NaN where
        the peak is lower or not finite.

    Example:
        >>> heatmaps = torch.zeros(1, 1, 4, 8)
        >>> heatmaps[0, 0, 2, 4:7] = torch.tensor([0.5, 1.0, 0.5])
        >>> heatmap_keypoints(heatmaps, 16, 32).tolist()  # cells of four pixels: the middle of cell 5 is at 22 - 0.5
        [[[21.5, 9.5]]]
    """
    maps = heatmaps if heatmaps.dtype == torch.float64 else heatmaps.float()
    rows, columns = maps.shape[-2:]
    peak, place = maps.flatten(-2).max(-1)
    row, column = place // columns, place % columns
    along, down = _line(maps, row, -2), _line(maps, column, -1)
    x, y = column + _vertex(along, column), row + _vertex(down, row)
    points = torch.stack([(x + 0.5) * (width / columns) - 0.5, (y + 0.5) * (height / rows) - 0.5], -1)
    gone = ~peak.isfinite() if threshold is None else ~(peak > threshold)
    return points.masked_fill(gone[..., None], torch.nan)


def _line(maps: Tensor, index: Tensor, dim: int) -> Tensor:
    """The row, or the column, of each map that goes through its peak."""
    moved = maps.movedim(dim, -2)
    return moved.gather(-2, index[..., None, None].expand(*index.shape, 1, moved.shape[-1]))[..., 0, :]


def _vertex(line: Tensor, peak: Tensor) -> Tensor:
    """How far from the peak the parabola through it and its neighbours is largest; 0 at a border."""
    last = line.shape[-1] - 1
    before, here, after = (line.gather(-1, (peak + step).clamp(0, last)[..., None])[..., 0] for step in (-1, 0, 1))
    curvature = 2 * here - before - after
    inside = (peak > 0) & (peak < last) & (curvature > 0)
    return torch.where(inside, (after - before) / (2 * torch.where(inside, curvature, 1.0)), 0.0)
