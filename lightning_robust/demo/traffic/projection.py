"""From points above the road to pixels: heights and the lens included, so that cars stand where the road is drawn."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.demo.lanes.camera import Camera, centre

_OUTERMOST = 1.3
"""Radius in half widths up to which the lens is inverted; the corner of a picture of 16:9 lies at 1.15."""


def project_points(
    camera: Camera, across: Tensor, ahead: Tensor, above: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Pixel rows and columns of points above the road, the inverse of `ground` for points on it.

    Args:
        camera: Spread to the number of dimensions of the points.
        across: Metres to the right of the lane's centre.
        ahead: Metres ahead, above 0.
        above: Metres above the road.
        size: Height and width of the picture in pixels.
    """
    side = (across + centre(camera, ahead)) / ahead
    fall = camera.horizon + (camera.height - above) / ahead + camera.hill * ahead / 2
    turn = 1 + camera.roll * camera.roll
    x, y = (side + camera.roll * fall) / turn, (fall - camera.roll * side) / turn
    half_width = size[1] / 2 / camera.focal
    shrink = _shrink((x * x + y * y).sqrt() / half_width, camera.distortion)
    rows, columns = y * shrink * camera.focal, x * shrink * camera.focal
    return rows + (size[0] - 1) / 2, columns + (size[1] - 1) / 2


def _shrink(radius: Tensor, distortion: Tensor) -> Tensor:
    """What the lens makes of a ray's radius r, relative to it: p / r with r = p (1 + distortion p^2), by Newton.

    Beyond `_OUTERMOST`, where the polynomial may turn back, the ratio stays.
    """
    place = radius.clamp(max=_OUTERMOST)
    for _ in range(6):
        square = distortion * place * place
        place = ((radius + 2 * place * square) / (1 + 3 * square)).clamp(max=_OUTERMOST)
    return 1 / (1 + distortion * place * place)
