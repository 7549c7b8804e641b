"""Draws scenes at random, each from the number of its picture alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_robust.demo.lanes.camera import Camera
from lightning_robust.demo.lanes.draws import Draws
from lightning_robust.demo.lanes.scene import CARS, LINES, Backdrop, Cars, Light, Paint, Scene, Sensor, Surface

_LEFT, _RIGHT = LINES // 2 - 1, LINES // 2


def sample_scene(indices: Tensor, seed: int, frame: Tensor, size: tuple[int, int]) -> Scene:
    """Draws the scenes.

    Args:
        indices: Numbers of the pictures, int64, (N,).
        seed: Another seed gives another set of pictures.
        frame: Number of the frame at 25 frames a second, (N,): moves camera, dashes and cars, keeps the scene.
        size: Height and width of the picture in pixels.
    """
    draws = Draws(indices, seed)
    time = frame.double() / 25
    travelled = time * draws.uniform(12, 38)
    camera = _camera(draws, time, size)
    brightness = draws.uniform(0.13, 0.55)
    paint, outer = _paint(draws, travelled, brightness)
    surface = _surface(draws, travelled, paint, outer, brightness)
    light = _light(draws, travelled)
    backdrop = _backdrop(draws, surface)
    cars = _cars(draws, paint, outer, time)
    sensor = _sensor(draws, indices, seed, frame)
    return Scene(camera, paint, surface, light, backdrop, cars, sensor)


def _camera(draws: Draws, time: Tensor, size: tuple[int, int]) -> Camera:
    def swaying(scale: float, power: float, sway: float) -> Tensor:
        mean, swing, speed, phase = (
            draws.centred(scale, power),
            draws.centred(sway),
            draws.uniform(0.5, 8),
            draws.uniform(),
        )
        return mean + swing * (speed * time + 2 * math.pi * phase).sin()

    focal = size[1] * draws.uniform(0.55, 1.5)
    height = 1 / draws.uniform(0.55, 1.2)
    horizon_row = 0.5 + swaying(0.15, 1.3, 0.004)
    horizon = (horizon_row - 0.5) * size[0] / focal
    roll = swaying(0.04, 1.6, 0.002)
    # the vanishing point lies within a fifth of the picture's width of the centre
    yaw = swaying(0.17, 1.5, 0.003) * size[1] / focal
    offset = swaying(0.75, 1.3, 0.05)
    curvature = draws.centred(1 / 180, 2.5)
    change = draws.centred(1 / 180 / 100, 3)
    hill = draws.centred(1 / 1500, 2)
    distortion = draws.centred(0.09, 1.5)
    return Camera(focal, height, horizon, roll, -yaw, offset, curvature, change, hill, distortion)


def _per_line(draws: Draws, low: float, high: float) -> Tensor:
    return torch.stack([draws.uniform(low, high) for _ in range(LINES)], 1)


def _choose(draws: Draws, probability: float) -> Tensor:
    return torch.stack([draws.chance(probability) for _ in range(LINES)], 1)


def _paint(draws: Draws, travelled: Tensor, brightness: Tensor) -> tuple[Paint, Tensor]:
    """The lines, and the numbers of the outermost ones left and right, (N, 2)."""
    lane_width = draws.uniform(2.8, 4.1)
    outer = torch.stack([_LEFT - (draws.uniform(0, 3.6)).floor(), _RIGHT + (draws.uniform(0, 3.6)).floor()], 1)
    number = torch.arange(LINES).expand(len(outer), -1)
    inside = (number >= outer[:, :1]) & (number <= outer[:, 1:])
    edge = (number == outer[:, :1]) | (number == outer[:, 1:])
    solid = torch.where(edge, _choose(draws, 0.85), _choose(draws, 0.2))
    period = draws.uniform(4, 18)
    dash = draws.uniform(0.15, 0.6)[:, None].expand(-1, LINES)
    duty = torch.where(solid > 0, torch.ones_like(dash), dash)
    half_width = draws.uniform(0.045, 0.115)[:, None] * (1 + 0.6 * solid * draws.chance(0.3)[:, None])
    missing = draws.chance(0.06)[:, None] * (number == (_LEFT + draws.chance(0.5))[:, None])
    half_width = half_width * inside * (1 - missing)
    gap = _choose(draws, 0.08) * draws.uniform(0.09, 0.2)[:, None]
    strength = _per_line(draws, 0.55, 1.0) * draws.uniform(0.6, 1.0)[:, None]
    side = draws.chance(0.5)[:, None]
    yellow = draws.chance(0.3)[:, None] * torch.where(side > 0, number <= _LEFT, number >= _RIGHT)
    yellow = torch.maximum(yellow, draws.chance(0.04)[:, None].expand(-1, LINES))
    phase = draws.uniform(0, 15) + travelled
    studs = draws.uniform(0.08, 0.2) / period * draws.chance(0.3)
    wear = draws.uniform(0, 0.85) * draws.chance(0.5)
    colour = brightness + (1.1 - brightness) * draws.uniform(0.3, 1.0)
    return Paint(lane_width, half_width, gap, duty, period, phase, strength, yellow, studs, wear, colour), outer


def _surface(draws: Draws, travelled: Tensor, paint: Paint, outer: Tensor, brightness: Tensor) -> Surface:
    shoulders = torch.stack([draws.uniform(0.25, 3.5), draws.uniform(0.25, 3.5)], 1)
    edges = (outer - (_LEFT + 0.5)) * paint.lane_width[:, None] + shoulders * torch.tensor([-1.0, 1.0])
    tint = 1 + draws.colour((-0.05, 0.0, 0.05), (0.07, 0.0, -0.07)).sub(0.02) * draws.chance(0.8)[:, None]
    verge = draws.colour((0.10, 0.18, 0.06), (0.72, 0.62, 0.42))
    verge_two = draws.colour((0.20, 0.26, 0.10), (0.55, 0.50, 0.42))
    seams = torch.stack([draws.centred(0.16) - paint.lane_width / 2, draws.centred(4.5), draws.centred(2.2)], 1)
    seam_strength = torch.stack([draws.centred(0.25) * draws.chance(0.3) for _ in range(3)], 1)
    patch = [
        draws.centred(4),
        draws.uniform(0.3, 2.2),
        draws.uniform(4, 45),
        draws.uniform(0.5, 12),
        draws.centred(0.14),
    ]
    mark = [
        draws.centred(0.8),
        draws.uniform(0.1, 0.6),
        draws.uniform(5, 35),
        draws.uniform(0.15, 2.5),
        draws.chance(0.12),
    ]
    patch[4], patch[2] = patch[4] * draws.chance(0.4), patch[2] - travelled
    mark[4], mark[2] = mark[4] * draws.uniform(0.3, 0.9), mark[2] - travelled
    shift = torch.stack([draws.uniform(), draws.uniform(), travelled], 1)
    return Surface(
        brightness=brightness,
        tint=tint,
        lanes=1 + torch.stack([draws.centred(0.18, 2) for _ in range(LINES + 1)], 1),
        edges=edges,
        verge=verge,
        verge_two=verge_two,
        kerb=draws.centred(0.35, 1.5),
        grain=draws.uniform(0.005, 0.08),
        blotches=draws.uniform() ** 2 * 0.10 + 0.003,
        veins=draws.uniform(0.0, 0.4) * draws.chance(0.3),
        tracks=draws.centred(0.16, 1.4),
        gauge=draws.uniform(0.65, 0.95),
        seams=seams,
        seam_strength=seam_strength,
        joint=draws.uniform(4, 25),
        joint_strength=draws.centred(0.25) * draws.chance(0.35),
        patches=torch.stack(patch, 1),
        marks=torch.stack(mark, 1),
        scale=torch.stack([draws.uniform(0.25, 0.6), draws.uniform(0.03, 0.12)], 1),
        shift=shift,
    )


def _light(draws: Draws, travelled: Tensor) -> Light:
    bars = [draws.uniform(4, 60) - travelled, draws.uniform(0.2, 6), draws.centred(1.2, 2), draws.uniform(0.3, 0.8)]
    bars[3] = bars[3] * draws.chance(0.2)
    return Light(
        shadow=draws.uniform(0.2, 0.7) * draws.chance(0.3),
        shadow_level=draws.uniform(-0.8, 1.0),
        shadow_size=draws.uniform(0.02, 0.09),
        bars=torch.stack(bars, 1),
        haze=draws.uniform(0.0, 1.0) ** 4 / 30 + draws.uniform(0.0, 1 / 500),
        haze_colour=draws.colour((0.55, 0.60, 0.68), (0.92, 0.90, 0.86)),
        glare=draws.uniform(0.1, 0.7) * draws.chance(0.2),
        glare_column=draws.uniform(0.0, 1.0),
        glare_row=draws.uniform(0.05, 0.6),
        glare_width=draws.uniform(0.06, 0.3),
        wet=draws.uniform(0.1, 0.5) * draws.chance(0.15),
    )


def _backdrop(draws: Draws, surface: Surface) -> Backdrop:
    grey = draws.chance(0.35)[:, None]
    blue = draws.colour((0.22, 0.42, 0.72), (0.45, 0.66, 0.92))
    cloudy = draws.colour((0.45, 0.47, 0.50), (0.86, 0.87, 0.90))
    zenith = blue + (cloudy - blue) * grey
    low_sky = (
        zenith + (draws.colour((0.72, 0.80, 0.88), (0.96, 0.95, 0.93)) - zenith) * draws.uniform(0.3, 0.9)[:, None]
    )
    walls = torch.stack([_wall(draws, surface.edges[:, 0], -1.0), _wall(draws, surface.edges[:, 1], 1.0)], 1)
    return Backdrop(
        zenith=zenith,
        low_sky=low_sky,
        clouds=draws.uniform(0.0, 0.12),
        hill_colour=draws.colour((0.18, 0.26, 0.32), (0.48, 0.52, 0.58)),
        hill_height=draws.uniform(-0.02, 0.12),
        tree_colour=draws.colour((0.05, 0.11, 0.04), (0.30, 0.33, 0.20)),
        tree_height=draws.uniform(-0.05, 0.13),
        tree_rough=draws.uniform(0.01, 0.08),
        walls=walls,
        wall_height=torch.stack([draws.uniform(0.35, 1.3), draws.uniform(0.35, 1.3) + draws.chance(0.15) * 2.5], 1),
        wall_colour=draws.colour((0.20, 0.20, 0.20), (0.78, 0.76, 0.72)),
        wall_base=draws.uniform(0.0, 0.55) * draws.chance(0.6),
        noise=torch.stack([draws.integers(), draws.integers()], 1),
    )


def _wall(draws: Draws, edge: Tensor, side: float) -> Tensor:
    """Lateral position of a barrier beside the road, far away where there is none."""
    return edge + side * (draws.uniform(0.05, 2.5) + 500 * draws.chance(0.45))


def _cars(draws: Draws, paint: Paint, outer: Tensor, time: Tensor) -> Cars:
    columns: list[tuple[Tensor, ...]] = []
    for number in range(CARS):
        lane = (outer[:, 0] + draws.uniform() * (outer[:, 1] - outer[:, 0])).floor() - _LEFT
        ego = lane == 0
        near = torch.where(ego, draws.uniform(11, 25), draws.uniform(4.5, 9))
        ahead = near + 60 * draws.uniform() ** 2 + draws.centred(3) * time
        present = draws.chance((0.55, 0.45, 0.35, 0.25)[number])
        across = lane * paint.lane_width + draws.centred(0.4)
        lorry = draws.chance(0.15)
        width = draws.uniform(1.65, 1.95) + 0.6 * lorry
        tall = draws.uniform(1.35, 1.8) + lorry * draws.uniform(0.6, 2.0)
        colour = draws.colour((0.03, 0.03, 0.04), (0.92, 0.92, 0.93))
        red = draws.chance(0.25)[:, None]
        colour = colour + (draws.colour((0.35, 0.03, 0.04), (0.60, 0.12, 0.08)) - colour) * red
        columns.append((present, across, ahead.clamp(min=3.5), width, tall, colour, draws.uniform(0.2, 1.0)))
    # the farthest first, so that near cars hide far ones
    stacked = [torch.stack(values, 1) for values in zip(*columns, strict=True)]
    order = stacked[2].argsort(1, descending=True)
    sorted_ = [v.gather(1, order if v.ndim == 2 else order[:, :, None].expand(-1, -1, 3)) for v in stacked]
    return Cars(*sorted_)


def _sensor(draws: Draws, indices: Tensor, seed: int, frame: Tensor) -> Sensor:
    fresh = Draws(indices * 4096 + frame, seed + 1)
    return Sensor(
        blur=draws.uniform() ** 2 * 0.24,
        motion=draws.uniform() ** 3 * 0.3,
        vignette=draws.uniform(0.0, 0.45) * draws.chance(0.6),
        gain=1 + draws.centred(0.4, 1.3),
        pivot=draws.uniform(0.2, 0.7),
        gamma=draws.uniform(-0.5, 0.9),
        balance=1 + torch.stack([draws.centred(0.1), draws.centred(0.03), draws.centred(0.12)], 1),
        saturation=draws.uniform(0.3, 1.4),
        noise=draws.uniform() ** 3 * 0.045,
        noise_at=fresh.integers(),
        codec=draws.uniform(0.01, 0.10) * draws.chance(0.4),
        sharpen=draws.uniform(0.0, 0.5) * draws.chance(0.4),
        bonnet=draws.uniform(0.01, 0.09) * draws.chance(0.25),
        bonnet_colour=draws.colour((0.02, 0.02, 0.02), (0.5, 0.5, 0.55)),
    )
