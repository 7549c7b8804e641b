"""The camera: from pixels to the road surface and from lines on the road to pixel columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FAR = 250.0
"""Metres beyond which the road is not drawn."""
LABELLED = 75.0
"""Metres beyond which a line is not labelled."""


class Camera(NamedTuple):
    """A camera above a road, one number a picture, each (N,).

    A point `z` metres ahead and `x` metres to the right lies at ``x / z`` and ``horizon + height / z + hill * z / 2``
    of the ideal picture plane; the road's centre there is at ``yaw * z + curvature * z**2 / 2 + change * z**3 / 6 -
    offset``.

    Args:
        focal: Focal length in pixels of the rendered picture.
        height: Height above the road in metres.
        horizon: Row of the horizon on the picture plane, in focal lengths below the centre.
        roll: Rotation about the viewing direction in radians.
        yaw: Tangent of the angle between viewing direction and lane.
        offset: Metres the camera stands to the right of the lane's centre.
        curvature: Of the lane, per metre; positive bends to the right.
        change: Of the curvature, per square metre.
        hill: Vertical curvature of the road, per metre; positive falls away (a crest).
        distortion: Radial distortion: a pixel at radius r (in half widths) belongs to the ray at
            r (1 + distortion r^2).
    """

    focal: Tensor
    height: Tensor
    horizon: Tensor
    roll: Tensor
    yaw: Tensor
    offset: Tensor
    curvature: Tensor
    change: Tensor
    hill: Tensor
    distortion: Tensor

    def spread(self, dims: int, dtype: torch.dtype = torch.float32) -> Camera:
        """The same numbers as (N, 1, ..., 1) with `dims` trailing ones, to meet pixels."""
        return Camera(*(value.to(dtype).reshape(-1, *[1] * dims) for value in self))


class Ground(NamedTuple):
    """Where a pixel meets the road.

    Args:
        ahead: Metres ahead, infinite or negative where the ray never meets the road.
        across: Metres to the right of the lane's centre.
        slope: Change of the lateral position for one metre ahead along the ray, relative to the lane.
        fall: Rows on the ideal picture plane below the horizon of the flat road, in focal lengths.
        side: Tangent of the ray's angle to the right of the viewing direction.
        valid: Whether the pixel shows the ground at less than `FAR` metres.
    """

    ahead: Tensor
    across: Tensor
    slope: Tensor
    fall: Tensor
    side: Tensor
    valid: Tensor


def ground(camera: Camera, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Ground:
    """Follows the rays through the given pixels down to the road.

    Args:
        camera: Spread to the number of dimensions of `rows` and `columns`.
        rows: Pixel rows, where 0 is the centre of the first row.
        columns: Pixel columns, where 0 is the centre of the first column; broadcast against `rows` and the camera.
        size: Height and width of the picture in pixels.
    """
    x = (columns - (size[1] - 1) / 2) / camera.focal
    y = (rows - (size[0] - 1) / 2) / camera.focal
    half_width = size[1] / 2 / camera.focal
    stretch = 1 + camera.distortion * ((x * x + y * y) / (half_width * half_width))
    x, y = x * stretch, y * stretch
    # small angles: the sine is the angle, the cosine one
    side = x - camera.roll * y
    fall = y + camera.roll * x - camera.horizon
    root = (fall * fall - 2 * camera.hill * camera.height).clamp(min=0.0)
    down = fall + root.sqrt()
    valid = (down * FAR > 2 * camera.height) & (fall * fall > 2 * camera.hill * camera.height)
    ahead = 2 * camera.height / down.clamp(min=1e-6)
    across = ahead * side - centre(camera, ahead)
    slope = side - camera.yaw - ahead * (camera.curvature + camera.change * ahead / 2)
    return Ground(ahead, across, slope, fall, side, valid)


def centre(camera: Camera, ahead: Tensor) -> Tensor:
    """Lateral position of the lane's centre `ahead` metres in front of the camera, in metres to the right."""
    bend = ahead * (camera.curvature / 2 + camera.change * ahead / 6)
    return ahead * (camera.yaw + bend) - camera.offset


def columns_of_lines(camera: Camera, across: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixel column at which each line crosses each row, by fixed-point iteration of `ground`.

    Args:
        camera: One camera a picture, each value (N,).
        across: Metres of each line to the right of the lane's centre, (N, L).
        rows: Pixel rows, (R,).
        size: Height and width of the picture in pixels.

    Returns:
        (N, L, R) float64; NaN where the line is above the horizon, farther than `LABELLED` metres or outside the
        picture.
    """
    wide = camera.spread(2, torch.float64)
    target = across.double()[:, :, None]
    rows = rows.double().expand(target.shape[0], target.shape[1], -1)
    columns = torch.full_like(rows, (size[1] - 1) / 2)
    for _ in range(24):
        hit = ground(wide, rows, columns, size)
        columns = (columns + wide.focal * (target - hit.across) / hit.ahead).clamp(-4.0 * size[1], 5.0 * size[1])
    hit = ground(wide, rows, columns, size)
    missed = (hit.across - target).abs() * wide.focal / hit.ahead > 0.01
    outside = (columns < -0.5) | (columns > size[1] - 0.5)
    hidden = ~hit.valid | (hit.ahead > LABELLED) | missed | outside
    return columns.masked_fill(hidden, torch.nan)


def project(camera: Camera, across: Tensor, ahead: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixel row and column of points on the road, without lens distortion.

    Args:
        camera: One camera a picture, each value (N,).
        across: Metres to the right of the lane's centre, (N,).
        ahead: Metres ahead, (N,).
        size: Height and width of the picture in pixels.
    """
    side = (across + centre(camera, ahead)) / ahead
    fall = camera.horizon + camera.height / ahead + camera.hill * ahead / 2
    x, y = side + camera.roll * fall, fall - camera.roll * side
    return y * camera.focal + (size[0] - 1) / 2, x * camera.focal + (size[1] - 1) / 2
