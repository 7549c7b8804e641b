"""From the road to pixels and back, heights in closed form, the lens by its polynomial."""

import torch

from lightning_robust.demo.lanes.camera import Camera, ground
from lightning_robust.demo.lanes.sampling import sample_scene
from lightning_robust.demo.traffic.drawing import place_vehicle
from lightning_robust.demo.traffic.models import vehicle_model
from lightning_robust.demo.traffic.objects import SALOON, Vehicles
from lightning_robust.demo.traffic.projection import project_points

SIZE = (144, 256)


def cameras(count):
    numbers = torch.arange(count)
    return sample_scene(numbers, 5, torch.zeros_like(numbers), SIZE).camera.spread(1, torch.float64)


def plain(**changes):
    values = {name: torch.zeros(1, dtype=torch.float64) for name in Camera._fields}
    values |= {"focal": values["focal"] + 200, "height": values["height"] + 1.5}
    return Camera(**(values | {name: torch.tensor([value], dtype=torch.float64) for name, value in changes.items()}))


def test_the_road_is_met_where_it_was_projected():
    """Of points on the road that are in the picture, by `ground`, which draws the road."""
    camera = cameras(64)
    ahead, across = torch.meshgrid(torch.linspace(6, 40, 8), torch.linspace(-6, 6, 7), indexing="ij")
    ahead, across = (value.reshape(1, -1).double().expand(64, -1) for value in (ahead, across))
    rows, columns = project_points(camera, across, ahead, torch.zeros_like(ahead), SIZE)
    hit = ground(camera, rows, columns, SIZE)
    seen = (columns > 0) & (columns < 255) & (rows < 143) & hit.valid
    assert seen.sum() > 1500
    torch.testing.assert_close(hit.ahead[seen], ahead[seen], rtol=1e-6, atol=0)
    torch.testing.assert_close(hit.across[seen], across[seen], rtol=0, atol=1e-5)


def test_the_lens_bends_rays_by_its_polynomial():
    """A pixel at radius p belongs to the ray at p (1 + distortion p^2), in half widths of 128 pixels."""
    for distortion in (-0.09, 0.0, 0.09):
        camera = plain(distortion=distortion).spread(1, torch.float64)
        across = torch.linspace(-9, 9, 19, dtype=torch.float64)[None]
        rows, columns = project_points(camera, across, torch.full_like(across, 10), torch.full_like(across, 1.5), SIZE)
        place, ray = (columns - 127.5) / 128, across / 10 * 200 / 128
        inner = place.abs() < 1.3
        assert inner.sum() >= 15
        torch.testing.assert_close((place * (1 + distortion * place**2))[inner], ray[inner], rtol=0, atol=1e-9)
        torch.testing.assert_close(rows, torch.full_like(rows, 71.5))
        assert (columns.diff() > 0).all(), "what is farther out stays farther out"


def one_vehicle(**changes):
    values = {
        "present": 1, "across": 3.0, "ahead": 10.0, "width": 1.8, "tall": 1.5, "length": 5.0, "kind": SALOON,
        "oncoming": 0, "colour": 0.5, "lamps": 0.5,
    } | changes  # fmt: skip
    return Vehicles(*(torch.tensor([value], dtype=torch.float64) for value in values.values()))


class Scene:
    """What placing needs of a scene."""

    def __init__(self, camera):
        self.camera = camera


def test_closed_form_of_a_vehicle():
    """The eight corners of its box: focal 200, 1.5 m above a flat road, the middle of the picture at (127.5, 71.5)."""
    corners = torch.tensor([[[u, v, w] for u in (-1, 1) for v in (0, 1) for w in (0, 1)]], dtype=torch.float64)
    for oncoming in (0, 1):
        placed = place_vehicle(corners, one_vehicle(oncoming=oncoming), Scene(plain()), torch.tensor([0]), SIZE)[0, 0]
        for (u, v, w), (column, row) in zip(corners[0].tolist(), placed.tolist(), strict=True):
            u, w = (-u, 1 - w) if oncoming else (u, w)
            ahead = 10 + 5 * w
            assert abs(column - (127.5 + 200 * (3.0 + 0.9 * u) / ahead)) < 1e-9
            assert abs(row - (71.5 + 200 * (1.5 - 1.5 * v) / ahead)) < 1e-9


def test_wheels_stand_on_the_road_and_the_roof_is_the_highest():
    for kind in range(4):
        model = vehicle_model(kind)
        v = torch.cat([model.quads.reshape(-1, 3), model.rounds.reshape(-1, 3)])[:, 1]
        assert float(v.max()) == 1.0
        assert -0.01 <= float(v.min()) <= 0.001
