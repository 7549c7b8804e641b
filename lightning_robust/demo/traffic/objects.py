"""What stands on and beside a road: vehicles and signs, drawn at random from the number of a picture alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_robust.demo.lanes.camera import Camera
from lightning_robust.demo.lanes.draws import Draws, mix
from lightning_robust.demo.lanes.scene import LINES, Scene

CLASSES = ("car", "limit", "warning", "stop", "parking")
"""What is detected: vehicles of all kinds, and four signs."""
VEHICLES, SIGNS = 7, 4
"""At most in a scene."""
HATCHBACK, SALOON, VAN, LORRY = range(4)
_LEFT = LINES // 2 - 1
_FARTHEST = 110.0


class Vehicles(NamedTuple):
    """Other vehicles: (N, VEHICLES), colours (N, VEHICLES, 3); lengths in metres.

    Args:
        present: Whether there is one.
        across: Its middle, to the right of the lane's centre.
        ahead: Its nearest face.
        width: Of the body.
        tall: From the road to the roof.
        length: From the nearest face to the farthest.
        kind: `HATCHBACK`, `SALOON`, `VAN` or `LORRY`.
        oncoming: Whether the nearest face is its front.
        colour: Of the body.
        lamps: Brightness of the lamps.
    """

    present: Tensor
    across: Tensor
    ahead: Tensor
    width: Tensor
    tall: Tensor
    length: Tensor
    kind: Tensor
    oncoming: Tensor
    colour: Tensor
    lamps: Tensor


class Signs(NamedTuple):
    """Signs on posts, facing us: (N, SIGNS); lengths in metres.

    Args:
        present: Whether there is one.
        across: Its middle, to the right of the lane's centre.
        ahead: Its distance.
        above: Height of its middle above the road.
        radius: Half its height.
        kind: Number among `CLASSES`, from 1.
        wear: How much of its colour is gone.
    """

    present: Tensor
    across: Tensor
    ahead: Tensor
    above: Tensor
    radius: Tensor
    kind: Tensor
    wear: Tensor


class Objects(NamedTuple):
    """All that is detected in each picture."""

    vehicles: Vehicles
    signs: Signs


def sample_objects(indices: Tensor, seed: int, scene: Scene) -> Objects:
    """Draws vehicles into the lanes of a scene and signs beside its road.

    Apparent widths are spread evenly over their logarithm, so that there are near and far ones at any focal length.

    Args:
        indices: Numbers of the pictures, int64, (N,).
        seed: Another seed gives other objects.
        scene: The road.
    """
    draws = Draws(mix(indices), seed)
    return Objects(_vehicles(draws, scene), _signs(draws, scene))


def _visible_road(camera: Camera) -> Tensor:
    """Metres up to which the road is seen: the crest of a hill hides what is behind it, (N,)."""
    crest = (2 * camera.height / camera.hill.clamp(min=1e-9)).sqrt()
    return torch.where(camera.hill > 0, crest, _FARTHEST).clamp(max=_FARTHEST)


def _vehicles(draws: Draws, scene: Scene) -> Vehicles:
    painted = scene.paint.half_width > 0
    number = torch.arange(LINES)
    first = torch.where(painted, number, LINES).amin(1).clamp(max=_LEFT)
    last = torch.where(painted, number, -1).amax(1).clamp(min=_LEFT + 1)
    two_way = draws.chance(0.5)
    farthest, busy = _visible_road(scene.camera), draws.uniform(0.25, 0.95)
    columns: list[tuple[Tensor, ...]] = []
    for _ in range(VEHICLES):
        lane = (first + draws.uniform() * (last - first)).floor() - _LEFT
        lorry, van = draws.chance(0.14), draws.chance(0.2)
        kind = torch.where(lorry > 0, LORRY, torch.where(van > 0, VAN, draws.chance(0.5)))
        width = draws.uniform(1.68, 1.9) + 0.12 * van * (1 - lorry) + 0.62 * lorry
        tall = draws.uniform(1.38, 1.56) + van * (1 - lorry) * draws.uniform(0.2, 0.6) + lorry * draws.uniform(1.3, 2.2)
        length = draws.uniform(3.9, 4.8) + lorry * draws.uniform(2.0, 8.0)
        near = torch.where(lane == 0, draws.uniform(8, 11), draws.uniform(3, 7))
        apparent = 9 * (100 / 9) ** draws.uniform()
        ahead = torch.maximum(width * scene.camera.focal / apparent, near)
        ahead = torch.minimum(ahead, farthest)
        across = lane * scene.paint.lane_width + draws.centred(0.35)
        present = (draws.uniform() < busy).double()
        oncoming = two_way * (lane < 0)
        columns.append((present, across, ahead, width, tall, length, kind, oncoming, _paintwork(draws), _lamps(draws)))
        present.mul_(_is_free(columns))
    return Vehicles(*(torch.stack(values, 1) for values in zip(*columns, strict=True)))


def _is_free(columns: list[tuple[Tensor, ...]]) -> Tensor:
    """Whether the last vehicle has room between those before it, (N,)."""
    _, across, ahead, _, _, length, *_ = columns[-1]
    free = torch.ones_like(ahead)
    for present, other_across, start, _, _, other_length, *_ in columns[:-1]:
        beside = (across - other_across).abs() > 2.6
        apart = (ahead > start + other_length + 1.5) | (start > ahead + length + 1.5)
        free = free * (beside | apart | (present == 0))
    return free


def _paintwork(draws: Draws) -> Tensor:
    """Grey from black to white, or a colour."""
    grey = draws.colour((0.04, 0.04, 0.05), (0.88, 0.88, 0.90))
    colour = grey
    for probability, low, high in (
        (0.16, (0.30, 0.03, 0.04), (0.66, 0.12, 0.08)),
        (0.16, (0.04, 0.08, 0.22), (0.18, 0.34, 0.62)),
        (0.07, (0.05, 0.16, 0.08), (0.30, 0.42, 0.26)),
        (0.05, (0.62, 0.46, 0.08), (0.86, 0.72, 0.30)),
    ):
        colour = colour + (draws.colour(low, high) - colour) * draws.chance(probability)[:, None]
    return colour


def _lamps(draws: Draws) -> Tensor:
    return draws.uniform(0.35, 1.0)


def _signs(draws: Draws, scene: Scene) -> Signs:
    edges, camera = scene.surface.edges, scene.camera
    farthest = _visible_road(camera)
    columns = []
    for _ in range(SIGNS):
        side = draws.chance(0.62)
        edge = torch.where(side > 0, edges[:, 1], edges[:, 0])
        across = edge + (2 * side - 1) * draws.uniform(0.5, 1.8)
        # wide roads have large signs
        radius = draws.uniform(0.32, 0.46) * (1 + across.abs() / 12)
        apparent = 9 * (36 / 9) ** draws.uniform()
        ahead = (2 * radius * camera.focal / apparent).clamp(min=4.0).minimum(farthest)
        above = draws.uniform(1.9, 2.7) + radius
        kind = 1 + (4 * draws.uniform()).floor()
        columns.append((draws.chance(0.6), across, ahead, above, radius, kind, draws.uniform() ** 2 * 0.5))
    return Signs(*(torch.stack(values, 1) for values in zip(*columns, strict=True)))
