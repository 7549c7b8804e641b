"""Convex polygons on pixels: how much of each pixel they cover, and how a stack of them looks."""

from __future__ import annotations

import torch
from torch import Tensor

_INFLATE = 0.2
"""Pixels by which a polygon grows, so that no gap shows between two that share an edge."""


def is_facing(vertices: Tensor) -> Tensor:
    """Whether polygons (..., V, 2) of (column, row) run clockwise as seen: faces whose outside is turned to us."""
    x, y = vertices.unbind(-1)
    return (x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(-1) > 0


def cover_polygons(vertices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Share of each pixel that convex polygons cover, (P, h, w).

    The distance to each edge says how much of the pixel lies on its inner side; of two opposite edges both shares
    count, so that a polygon thinner than a pixel covers as little as it should.

    Args:
        vertices: Columns and rows of the corners, clockwise as seen, an even number V of them; a corner may be given
            twice, (P, V, 2).
        rows: Pixel rows, (h,).
        columns: Pixel columns, (w,).

    Example:
        >>> square = torch.tensor([[[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5]]])
        >>> cover_polygons(square, torch.arange(3.0), torch.arange(4.0))[0].mul(10).round().int().tolist()
        [[2, 2, 2, 2], [2, 10, 10, 2], [2, 10, 10, 2]]
    """
    edge = vertices.roll(-1, 1) - vertices
    length = edge.norm(dim=-1)
    # an edge without length bounds nothing
    bounds = length > 1e-6
    normal = torch.stack([-edge[..., 1], edge[..., 0]], -1) / length.clamp(min=1e-6)[..., None]
    offset = torch.where(bounds, _INFLATE + 0.5 - (normal * vertices).sum(-1), 1.0)
    normal = normal * bounds[..., None]
    along = normal[..., 0, None] * columns + offset[..., None]
    inside = along[:, :, None, :] + normal[..., 1, None, None] * rows[:, None]
    inside = inside.clamp_(0.0, 1.0)
    half = vertices.shape[1] // 2
    cover = (inside[:, :half] + inside[:, half:] - 1).amin(1).clamp_(min=0.0)
    # a sharp corner that grew would reach far beyond itself
    low, high = vertices.amin(1)[..., None], vertices.amax(1)[..., None]
    across, down = (_span_share(low[:, k], high[:, k], at) for k, at in enumerate((columns, rows)))
    return cover.minimum(across[:, None]).minimum(down[..., None])


def _span_share(low: Tensor, high: Tensor, places: Tensor) -> Tensor:
    """Share of each pixel of a row or column that lies between two ends."""
    slack = 0.5 + _INFLATE
    return ((places - low + slack).clamp(0.0, 1.0) + (high - places + slack).clamp(0.0, 1.0) - 1).clamp(min=0.0)


def composite(patch: Tensor, colours: Tensor, covers: Tensor) -> None:
    """Puts layers over a patch, the last one on top, in place.

    Args:
        patch: (3, h, w), changed.
        colours: (P, 3).
        covers: Opacity of each layer, (P, h, w).
    """
    through = (1 - covers).flip(0).cumprod(0).flip(0)
    seen = covers[:-1] * through[1:]
    patch.mul_(through[0])
    patch.add_(torch.einsum("pc,phw->chw", colours, torch.cat([seen, covers[-1:]])))
