"""Draws what stands above the road: sky, hills, trees, walls and other cars."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.demo.lanes.camera import Camera, Ground, project
from lightning_robust.demo.lanes.scene import CARS, Backdrop, Cars, Scene
from lightning_robust.demo.lanes.textures import blend, look_up, tint, wide


def draw_backdrop(backdrop: Backdrop, above: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """Sky, hills and trees as if there were no road, (N, 3, h, w).

    Args:
        backdrop: What to draw.
        above: Height of each pixel above the horizon, in shares of the picture's height, (N, h, w).
        columns: Pixel columns, (w,).
        size: Height and width of the picture in pixels.
    """
    start = (backdrop.noise % 997).float() / 997
    x = (columns / size[1])[None, None] * 0.5 + start[:, :1, None]
    pattern = look_up(x.expand_as(above), above * 0.9 + start[:, 1, None, None], slice(0, 3))
    ramp = (above * 2.2).clamp(0.0, 1.0)[:, None]
    low, high = tint(backdrop.low_sky), tint(backdrop.zenith)
    picture = low + (high - low) * ramp + pattern[:, 2:] * tint(backdrop.clouds[:, None])
    line = torch.zeros_like(x)
    hills = look_up(x * 0.4, line + start[:, 1, None, None], slice(2, 3))[:, 0] * 0.03 + wide(backdrop.hill_height)
    sharp = size[0] / 1.5
    hill = ((hills - above) * sharp).clamp(0.0, 1.0)[:, None]
    picture = blend(picture, tint(backdrop.hill_colour), hill)
    outline = look_up(x, line + start[:, :1, None], slice(0, 3))
    trees = outline[:, 2] * wide(backdrop.tree_rough) + outline[:, 1] * 0.012 + wide(backdrop.tree_height)
    tree = ((trees - above) * sharp).clamp(0.0, 1.0)[:, None]
    leaves = tint(backdrop.tree_colour) * (1 + 0.25 * pattern[:, :1] + 0.3 * pattern[:, 1:2])
    return blend(picture, leaves, tree)


def draw_walls(picture: Tensor, backdrop: Backdrop, camera: Camera, hit: Ground) -> tuple[Tensor, Tensor]:
    """Barriers along both sides of the road, over what is drawn already, and the share of each pixel they cover.

    Args:
        picture: (N, 3, h, w).
        backdrop: What to draw.
        camera: Spread over pixels.
        hit: Where the pixels meet the ground.
    """
    across = hit.side - camera.yaw
    right = across > 0
    walls, heights = backdrop.walls.float(), backdrop.wall_height.float()
    position = torch.where(right, walls[:, 1, None, None], walls[:, 0, None, None]) + camera.offset
    ahead = position / torch.where(right, across.clamp(min=1e-4), across.clamp(max=-1e-4))
    for _ in range(2):
        bent = across - ahead.clamp(0.0, 150.0) * camera.curvature / 2
        bent = torch.where(right, bent.clamp(min=1e-3), bent.clamp(max=-1e-3))
        ahead = position / bent
    height = camera.height - hit.fall * ahead + camera.hill * ahead * ahead / 2
    top = torch.where(right, heights[:, 1, None, None], heights[:, 0, None, None])
    pixel = ahead.clamp(0.1, 300.0) / camera.focal
    cover = ((top - height) / pixel + 0.5).clamp(0.0, 1.0) * (height > wide(backdrop.wall_base) * top) * (ahead < 120.0)
    shade = 0.75 + 0.25 * (height / top).clamp(0.0, 1.0) + 0.1 * ((ahead * 0.25).floor() % 2)
    return blend(picture, tint(backdrop.wall_colour) * shade[:, None], cover[:, None]), cover


def draw_cars(picture: Tensor, scene: Scene, size: tuple[int, int]) -> Tensor:
    """Other cars seen from behind, farthest first, over what is drawn already, (N, 3, H, W)."""
    for number in range(CARS):
        cars = Cars(*(value[:, number] for value in scene.cars))
        rows, columns = project(scene.camera, cars.across, cars.ahead, size)
        metres = scene.camera.focal / cars.ahead
        boxes = torch.stack([rows, columns, metres * cars.width / 2, metres * cars.tall], 1).tolist()
        # cars beside us show their side: the body reaches towards the picture's edge
        sides = (cars.across / cars.ahead * 2.2).clamp(-1.6, 1.6).tolist()
        for index in cars.present.nonzero()[:, 0].tolist():
            _draw_car(picture[index], boxes[index], sides[index], cars.colour[index].float(), float(cars.lamps[index]))
    return picture


def _draw_car(picture: Tensor, box: list[float], side: float, colour: Tensor, lamps: float) -> None:
    """Draws one car into one picture (3, H, W), in place.

    Args:
        picture: Changed.
        box: Row of the wheels, column of the middle of the rear, half the width and the height, in pixels.
        side: How far the flank reaches beside the rear, in half widths.
        colour: Of the body, (3,).
        lamps: Brightness of the rear lights.
    """
    row, column, half, tall = box
    left, right = -1 + min(side, 0.0), 1 + max(side, 0.0)
    x_from, x_to = int(column + (left - 0.15) * half) - 1, int(column + (right + 0.15) * half) + 3
    y_from, y_to = int(row - 1.02 * tall) - 1, int(row + 0.12 * tall) + 3
    patch = picture[:, max(y_from, 0) : max(y_to, 0), max(x_from, 0) : max(x_to, 0)]
    if patch.numel() == 0:
        return
    y = (row - max(y_from, 0) - torch.arange(patch.shape[1])[:, None]) / tall
    # the cabin tapers towards the roof
    taper = 1 + 0.55 * (y - 0.58).clamp(min=0.0)
    x = (torch.arange(patch.shape[2]) + (max(x_from, 0) - column)) / half * taper

    def block(x_low: float, x_high: float, y_low: float, y_high: float) -> Tensor:
        across = torch.minimum(x - x_low, x_high - x).mul_(half).add_(0.5).clamp_(0.0, 1.0)
        up = torch.minimum(y - y_low, y_high - y).mul_(tall).add_(0.5).clamp_(0.0, 1.0)
        return up * across

    body = colour[:, None, None] * (0.8 + 0.35 * y.clamp(0.0, 1.0))
    dark, glass, plate = torch.tensor(0.03), torch.tensor(0.10), torch.tensor(0.65)
    lamp = torch.tensor([0.85, 0.12, 0.08])[:, None, None] * lamps
    patch.mul_(1 - 0.7 * block(left - 0.12, right + 0.12, -0.10, 0.10))
    parts = [
        (dark, (left + 0.02, left + 0.30, 0.0, 0.25)),
        (dark, (right - 0.30, right - 0.02, 0.0, 0.25)),
        (body, (left, right, 0.14, 0.60)),
        (body * 0.9, (left * 0.95, right * 0.95, 0.58, 1.0)),
        (glass, (left * 0.84, right * 0.84, 0.64, 0.92)),
        (lamp, (-0.97, -0.72, 0.40, 0.56)),
        (lamp, (0.72, 0.97, 0.40, 0.56)),
        (plate, (-0.22, 0.22, 0.30, 0.40)),
        (body * 0.45, (-0.98, 0.98, 0.14, 0.24)),
    ]
    for paint, corners in parts:
        blend(patch, paint, block(*corners))
