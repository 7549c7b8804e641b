"""Objects of a scene as flat coloured polygons on the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_robust.demo.lanes.scene import Scene
from lightning_robust.demo.traffic.models import Model, sign_model, vehicle_model
from lightning_robust.demo.traffic.objects import Objects, Signs, Vehicles
from lightning_robust.demo.traffic.polygons import is_facing
from lightning_robust.demo.traffic.projection import project_points

_KINDS = 4


class DrawnObject(NamedTuple):
    """One object of one picture, projected.

    Args:
        picture: Number of the picture in the batch.
        label: Number among `CLASSES`.
        ahead: Its distance, by which one hides the other.
        polygons: Faces that are turned to us: corners in (column, row), (P, V, 2) for each V.
        order: Which of all polygons, one after the other, is at the bottom, and so on up, (P,).
        colours: In that order, (P, 3).
        solid: In that order: which hide what is behind them, (P,).
        labelled: In that order: which ones the box is drawn around, (P,).
    """

    picture: int
    label: int
    ahead: float
    polygons: tuple[Tensor, ...]
    order: Tensor
    colours: Tensor
    solid: Tensor
    labelled: Tensor


def project_objects(objects: Objects, scene: Scene, size: tuple[int, int]) -> list[list[DrawnObject]]:
    """The objects of each picture, the nearest first."""
    found: list[list[DrawnObject]] = [[] for _ in range(len(scene.camera.focal))]
    for kind in range(_KINDS):
        for drawn in (
            *_vehicles_of(kind, objects.vehicles, scene, size),
            *_signs_of(kind + 1, objects.signs, scene, size),
        ):
            found[drawn.picture].append(drawn)
    return [sorted(each, key=lambda drawn: drawn.ahead) for each in found]


def _vehicles_of(kind: int, vehicles: Vehicles, scene: Scene, size: tuple[int, int]) -> list[DrawnObject]:
    """All vehicles of a kind."""
    at = ((vehicles.kind == kind) & (vehicles.present > 0)).nonzero(as_tuple=True)
    chosen = Vehicles(*(value[at] for value in vehicles))
    model = vehicle_model(kind)
    polygons = [place_vehicle(corners, chosen, scene, at[0], size) for corners in (model.quads, model.rounds)]
    body = chosen.colour[:, None]
    lamps = chosen.lamps[:, None, None]
    grey = torch.ones_like(body)
    table = torch.cat(
        [
            grey * 0.02,
            body * 0.86,
            body * 0.68,
            body * 1.06 + 0.03,
            grey * torch.tensor([0.09, 0.11, 0.13]),
            grey * 0.035,
            grey * torch.tensor([0.9, 0.12, 0.08]) * lamps,
            grey * torch.tensor([0.95, 0.94, 0.88]) * (0.6 + 0.5 * lamps),
            grey * 0.66,
            body * 0.4 + 0.02,
            grey * 0.3,
        ],
        1,
    )
    return _objects(model, polygons, table, at[0], torch.zeros_like(chosen.kind), chosen.ahead, scene)


def place_vehicle(corners: Tensor, vehicles: Vehicles, scene: Scene, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners of a model (P, V, 3) as columns and rows of the picture, (n, P, V, 2).

    Args:
        corners: In shares of half the width, the height and the length, from the rear.
        vehicles: One number a vehicle, (n,).
        scene: With their cameras.
        pictures: In which picture each of them is, (n,).
        size: Height and width of the picture in pixels.
    """
    values = [value[:, None, None] for value in vehicles[1:8]]
    across, ahead, width, tall, length, _, oncoming = values
    turned = 1 - 2 * oncoming
    u, v, w = (corners[None, ..., k] for k in range(3))
    along = torch.where(oncoming > 0, 1 - w, w)
    camera = type(scene.camera)(*(value[pictures] for value in scene.camera)).spread(2, torch.float64)
    place = across + turned * u * width / 2, ahead + along * length, v * tall
    rows, columns = project_points(camera, *place, size)
    return torch.stack([columns, rows], -1)


def _signs_of(kind: int, signs: Signs, scene: Scene, size: tuple[int, int]) -> list[DrawnObject]:
    """All signs of a kind."""
    at = ((signs.kind == kind) & (signs.present > 0)).nonzero(as_tuple=True)
    chosen = Signs(*(value[at] for value in signs))
    model = sign_model(kind)
    polygons = [place_sign(corners, chosen, scene, at[0], size) for corners in (model.quads, model.rounds)]
    colours = torch.tensor([[0.38, 0.38, 0.37], [0.76, 0.07, 0.09], [0.93, 0.93, 0.92], [0.06, 0.24, 0.62], [0.05] * 3])
    table = colours + (torch.tensor(0.55) - colours) * chosen.wear[:, None, None]
    return _objects(model, polygons, table, at[0], chosen.kind, chosen.ahead, scene)


def place_sign(corners: Tensor, signs: Signs, scene: Scene, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners of a model (P, V, 3) as columns and rows of the picture, (n, P, V, 2); as `place_vehicle`."""
    _, across, ahead, above, radius, *_ = (value[:, None, None] for value in signs)
    p, q, down = (corners[None, ..., k] for k in range(3))
    camera = type(scene.camera)(*(value[pictures] for value in scene.camera)).spread(2, torch.float64)
    height = (above + q * radius) * (1 - down)
    rows, columns = project_points(camera, across + p * radius, ahead.expand_as(height), height, size)
    return torch.stack([columns, rows], -1)


def _objects(
    model: Model, polygons: list[Tensor], table: Tensor, pictures: Tensor, labels: Tensor, ahead: Tensor, scene: Scene
) -> list[DrawnObject]:
    """Objects of one model, with haze between them and us."""
    haze = (ahead * scene.light.haze[pictures])[:, None, None]
    veil = scene.light.haze_colour[pictures][:, None]
    colours = (table + (veil - table) * haze / (1 + haze))[:, model.material].float()
    parts = [part.float() for part in polygons]
    facing = [is_facing(part) for part in parts]
    listed = zip(pictures.tolist(), labels.long().tolist(), ahead.tolist(), strict=True)
    return [
        _seen(which, model, [part[k] for part in parts], [part[k] for part in facing], colours[k])
        for k, which in enumerate(listed)
    ]


def _seen(
    which: tuple[int, int, float], model: Model, polygons: list[Tensor], facing: list[Tensor], colours: Tensor
) -> DrawnObject:
    """One object without the faces that are turned away."""
    every = torch.cat(facing)
    seen = every[model.order]
    order = (every.cumsum(0) - 1)[model.order[seen]]
    parts = tuple(part[chosen] for part, chosen in zip(polygons, facing, strict=True))
    return DrawnObject(*which, parts, order, colours[seen], model.solid[seen], model.labelled[seen])
