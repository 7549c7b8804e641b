"""Draws the road itself, pixel by pixel: asphalt, paint, shoulders, shadows on it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.demo.lanes.camera import FAR, Camera, Ground
from lightning_robust.demo.lanes.scene import LINES, Light, Paint, Scene, Surface
from lightning_robust.demo.lanes.textures import blend, dashes, look_up, stripe, tint, wide


def _of_line(table: Tensor, number: Tensor) -> Tensor:
    """The entry of each pixel's line: table (N, K), numbers (N, h, w) int64 into the flattened table."""
    return table.float().flatten()[number]


def _pixel_size(camera: Camera, hit: Ground) -> tuple[Tensor, Tensor]:
    """How many metres across and ahead one pixel covers on the road."""
    ahead = hit.ahead.clamp(0.5, FAR)
    steep = (camera.height / (ahead * ahead) - camera.hill / 2).clamp(min=1e-5)
    along = 1 / (camera.focal * steep)
    across = ahead / camera.focal
    slant = hit.slope * along
    return (across * across + slant * slant).sqrt(), along


def draw_surface(scene: Scene, camera: Camera, hit: Ground) -> Tensor:
    """Colours of the road and its surroundings as if every pixel showed the ground, (N, 3, h, w).

    Args:
        scene: What to draw.
        camera: Spread over pixels.
        hit: Where the pixels meet the ground, (N, h, w).
    """
    across_size, along_size = _pixel_size(camera, hit)
    ahead, across = hit.ahead.clamp(0.5, FAR), hit.across.clamp(-90.0, 90.0)
    coarse = _texture(scene.surface, ahead, across, along_size / 2, 1, slice(0, 2))
    shade, verge = _asphalt(scene.surface, scene.paint, coarse[:, 1], ahead, across, across_size, along_size)
    paint, yellow = _paint_lines(scene.paint, ahead, across, across_size * 1.15, along_size)
    paint = torch.maximum(paint, _box(scene.surface.marks, ahead, across, across_size, along_size))
    paint = paint * (1 - verge)
    worn = shade / wide(scene.surface.brightness)
    gone = (wide(scene.paint.wear) * (2.2 - 1.5 * worn)).clamp(0.0, 0.9)
    paint = paint * (1 - gone)
    asphalt = shade[:, None] * tint(scene.surface.tint)
    beside = _verge(scene.surface, coarse)
    picture = blend(asphalt, beside, verge[:, None])
    picture = blend(picture, _paint_colour(scene.paint, yellow), paint[:, None])
    return picture.mul_(_shadows(scene.light, scene.surface, ahead, across, across_size, along_size)[:, None])


def _paint_lines(paint: Paint, ahead: Tensor, across: Tensor, width: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Share of paint and share of yellow of each pixel.

    The lines are parallel and evenly spaced, so a pixel needs only the line nearest to it.
    """
    spacing = wide(paint.lane_width)
    position = across / spacing + (LINES / 2 - 0.5)
    nearest = position.round().clamp(0, LINES - 1)
    number = nearest.long() + LINES * torch.arange(len(across))[:, None, None]
    beside = ((position - nearest) * spacing).abs()
    beside = (beside - _of_line(paint.gap, number)).abs()
    half_width = _of_line(paint.half_width, number)
    cover = stripe(beside, half_width, torch.maximum(width, half_width * 0.2 + 1e-3))
    period = wide(paint.period)
    turn = (ahead + wide(paint.phase)) / period
    duty = _of_line(paint.duty, number)
    studs = dashes(turn - (0.5 + duty / 2), wide(paint.studs), along / period)
    cover = cover * (dashes(turn, duty, along / period) + studs).clamp(max=1.0)
    return cover * _of_line(paint.strength, number), _of_line(paint.yellow, number)


def _paint_colour(paint: Paint, yellow: Tensor) -> Tensor:
    """White or yellow, (N, 3, h, w)."""
    white = wide(paint.colour)
    red, green, blue = white * (1 - 0.05 * yellow), white * (1 - 0.25 * yellow), white * (1 - 0.75 * yellow)
    return torch.stack([red, green, blue], 1)


def _box(box: Tensor, ahead: Tensor, across: Tensor, width: Tensor, along: Tensor) -> Tensor:
    """Rectangle on the road: centre across, half width, centre ahead, half length, strength; (N, 5)."""
    x, half_width, z, half_length, strength = (wide(value) for value in box.unbind(1))
    return stripe(across - x, half_width, width) * stripe(ahead - z, half_length, along) * strength


def _texture(surface: Surface, ahead: Tensor, across: Tensor, size: Tensor, which: int, channels: slice) -> Tensor:
    """Patterns fixed to the road, fading where a pixel covers more than a grain, (N, C, h, w)."""
    scale = wide(surface.scale[:, which])
    x = across * scale + wide(surface.shift[:, 0])
    y = (ahead + wide(surface.shift[:, 2])) * (scale / 2) + wide(surface.shift[:, 1])
    fade = (0.02 / scale / size).clamp(max=1.0)
    return look_up(x, y, channels) * fade[:, None]


def _asphalt(
    surface: Surface, paint: Paint, coarse: Tensor, ahead: Tensor, across: Tensor, width: Tensor, along: Tensor
) -> tuple[Tensor, Tensor]:
    """Brightness of the asphalt, and the share of a pixel that lies beside it."""
    spacing = wide(paint.lane_width)
    position = across / spacing + LINES / 2
    lane = position.floor().clamp(0, LINES)
    number = lane.long() + (LINES + 1) * torch.arange(len(across))[:, None, None]
    shade = _of_line(surface.lanes, number)
    wheel = (((position - lane - 0.5) * spacing).abs() - wide(surface.gauge)).abs()
    shade = shade + wide(surface.tracks) * (1 - wheel / 0.4).clamp(min=0.0)
    for k in range(surface.seams.shape[1]):
        seam = stripe(across - wide(surface.seams[:, k]), torch.full_like(spacing, 0.025), width)
        shade = shade + seam * wide(surface.seam_strength[:, k])
    joint = wide(surface.joint)
    turn = (ahead + wide(surface.shift[:, 2])) / joint
    shade = shade + dashes(turn, 0.08 / joint, along / joint) * wide(surface.joint_strength)
    shade = shade + _box(surface.patches, ahead, across, width, along)
    grain = _texture(surface, ahead, across, along / 2, 0, slice(0, 4))
    shade = shade + grain[:, 0] * wide(surface.grain) + (grain[:, 1] + coarse) * wide(surface.blotches)
    shade = shade - grain[:, 3] * wide(surface.veins)
    edges = surface.edges.float()
    middle, half = (edges[:, 0] + edges[:, 1]) / 2, (edges[:, 1] - edges[:, 0]) / 2
    ragged = across - middle[:, None, None] + 0.12 * grain[:, 1]
    verge = 1 - stripe(ragged, half[:, None, None], width)
    beyond = (ragged.abs() - half[:, None, None]).abs()
    kerb = (1 - beyond / 0.25).clamp(min=0.0) * wide(surface.kerb)
    shade = (shade + kerb).clamp(0.1, 2.5) * wide(surface.brightness)
    return shade, verge


def _verge(surface: Surface, pattern: Tensor) -> Tensor:
    """Grass, sand or earth beside the road, (N, 3, h, w)."""
    share = (0.5 + 0.35 * pattern[:, 1]).clamp(0.0, 1.0)[:, None]
    first, second = tint(surface.verge), tint(surface.verge_two)
    return (first + (second - first) * share).mul_(1 + 0.12 * pattern[:, :1])


def _shadows(light: Light, surface: Surface, ahead: Tensor, across: Tensor, width: Tensor, along: Tensor) -> Tensor:
    """Share of light that reaches each pixel: shadows of trees in blotches, of bridges and poles as bars."""
    size = wide(light.shadow_size)
    x = across * size + wide(surface.shift[:, 1])
    y = (ahead + wide(surface.shift[:, 2])) * (size * 0.6) + wide(surface.shift[:, 0])
    leaves = look_up(x, y, slice(2, 3))[:, 0] - wide(light.shadow_level)
    trees = (leaves * 6).clamp(0.0, 1.0) * wide(light.shadow)
    z, half, skew, depth = (wide(value) for value in light.bars.unbind(1))
    footprint = along + width * skew.abs()
    bar = stripe(ahead - z - skew * across, half, footprint) * depth
    return (1 - trees) * (1 - bar)
