"""What a right answer becomes when the picture moves: points, boxes, masks, and lines given by their columns.

A motion is a matrix ``(3, 3)`` that takes a place ``(x, y, 1)``, in pixels with 0 in the centre of the first one, to
where its content lies in the moved picture. Shears and rotations are motions too; projective ones are not.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Motion = Float[Tensor, "3 3"]


def rescale_motion(matrix: Motion, source: tuple[float, float], target: tuple[float, float]) -> Motion:
    """The same motion in the pixels of a picture of another size.

    Args:
        matrix: A motion in pixels of the first picture.
        source: Height and width of the first picture.
        target: Height and width of the second.

    Example:
        >>> half = torch.tensor([[1.0, 0, 0.5], [0, 1, 0], [0, 0, 1]])  # half a pixel to the right
        >>> rescale_motion(half, (144, 256), (540, 960))[0].tolist()
        [1.0, 0.0, 1.875]
    """
    (high, wide), (higher, wider) = source, target
    x, y = wider / wide, higher / high
    # pixel centres: (place + 0.5) scales
    scale = matrix.new_tensor([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1]])
    return scale @ matrix @ torch.linalg.inv(scale)


def move_points(points: Float[Tensor, "*points 2"], matrix: Motion) -> Float[Tensor, "*points 2"]:
    """Points ``(x, y)``, key points for instance, in the moved picture.

    Example:
        >>> right = torch.tensor([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]])
        >>> move_points(torch.tensor([[1.0, 5.0]]), right).tolist()
        [[3.0, 5.0]]
    """
    matrix = matrix.to(points)
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def move_boxes(boxes: Float[Tensor, "*boxes 4"], matrix: Motion) -> Float[Tensor, "*boxes 4"]:
    """Boxes ``(left, top, right, bottom)``: the smallest upright boxes around the moved ones.

    Edges are places like others, so that a box around pixel 0 alone reaches from -0.5 to 0.5.

    Example:
        >>> twice = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 1]])
        >>> move_boxes(torch.tensor([1.0, 0.0, 4.0, 3.0]), twice).tolist()
        [2.0, 0.0, 8.0, 3.0]
    """
    left, top, right, bottom = boxes.unbind(-1)
    corners = torch.stack([left, top, right, top, left, bottom, right, bottom], -1).reshape(*boxes.shape[:-1], 4, 2)
    moved = move_points(corners, matrix)
    return torch.cat([moved.amin(-2), moved.amax(-2)], -1)


def move_masks(masks: Shaped[Tensor, "*masks height width"], matrix: Motion) -> Shaped[Tensor, "*masks height width"]:
    """Masks, label maps or maps of numbers: each pixel takes the value of the nearest one that lies there.

    Beyond the border the border is repeated.

    Args:
        masks: Values by row and column, of any type; ``matrix`` is in their own pixels.
        matrix: The motion, which has an inverse.

    Example:
        >>> down = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 1]])
        >>> move_masks(torch.tensor([[1, 2], [3, 4]]), down).tolist()
        [[1, 2], [1, 2]]
    """
    height, width = masks.shape[-2:]
    rows, columns = torch.arange(height, device=masks.device), torch.arange(width, device=masks.device)
    places = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1).double()
    sources = move_points(places, torch.linalg.inv(matrix.double().to(masks.device))).round().long()
    return masks[..., sources[..., 1].clamp(0, height - 1), sources[..., 0].clamp(0, width - 1)]


def move_columns(
    columns: Float[Tensor, "*lines rows"], rows: Float[Tensor, " rows"], matrix: Motion
) -> Float[Tensor, "*lines rows"]:
    """Lines given by their column at fixed rows, a road's lanes for instance, in the moved picture at the same rows.

    Between two points a line is straight. At its ends it goes on straight, for less than the distance of two rows;
    further out, where a neighbour is missing, and where it turns back, it is NaN.

    Args:
        columns: Columns, NaN where there is no line.
        rows: The rows in pixels, ascending.
        matrix: The motion, in the pixels of rows and columns.

    Example:
        >>> up = torch.tensor([[1.0, 0, 0], [0, 1, -1], [0, 0, 1]])
        >>> move_columns(torch.tensor([10.0, 14.0, 22.0]), torch.tensor([0.0, 4.0, 8.0]), up).tolist()
        [11.0, 16.0, 24.0]
    """
    missing = columns.isnan()
    # a missing point keeps its place among the rows; a number in its stead has a gradient of 0, where NaN has NaN
    points = torch.stack([columns.masked_fill(missing, 0.0), rows.to(columns).expand_as(columns)], -1).double()
    moved, wanted = move_points(points, matrix.double().to(columns.device)), rows.to(columns.device).double()
    places, lines = moved[..., 1], moved[..., 0]
    places = torch.where(missing, move_points(_upright(rows), matrix.double())[:, 1].to(places), places).contiguous()
    after = torch.searchsorted(places.detach(), wanted.expand_as(places).contiguous()).clamp(1, len(rows) - 1)
    (low, high), (start, end) = ((each.gather(-1, after - 1), each.gather(-1, after)) for each in (places, lines))
    rises = high > low
    share = (wanted - low) / torch.where(rises, high - low, 1.0)
    # a row that meets a point does not ask for its other neighbour
    gone = (missing.gather(-1, after - 1) & (share != 1)) | (missing.gather(-1, after) & (share != 0))
    found = torch.where(share == 0, start, torch.where(share == 1, end, start + share * (end - start)))
    return found.masked_fill(gone | ~rises | (share <= -1) | (share >= 2), torch.nan).to(columns.dtype)


def _upright(rows: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(rows), rows], -1).double()
