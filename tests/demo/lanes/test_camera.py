"""The projection: closed forms for a straight flat road, and labels that lie on the drawn ground."""

import math

import torch

from lightning_robust.demo.lanes.anchors import rescale, row_anchors
from lightning_robust.demo.lanes.camera import Camera, columns_of_lines, ground, project
from lightning_robust.demo.lanes.sampling import sample_scene

SIZE = (144, 256)


def camera(**changes):
    values = {
        "focal": 220.0, "height": 1.2, "horizon": 0.03, "roll": 0.0, "yaw": 0.05, "offset": 0.3,
        "curvature": 0.0, "change": 0.0, "hill": 0.0, "distortion": 0.0,
    }  # fmt: skip
    return Camera(
        **{name: torch.tensor([changes.get(name, value)], dtype=torch.float64) for name, value in values.items()}
    )


def test_closed_form_straight_road():
    # x / z = yaw + (d - offset) / z and z = h / (fall): a line in the picture, linear in the row
    rows = row_anchors(144)
    rows = rows[rows > 90]
    columns = columns_of_lines(camera(), torch.tensor([[-1.8, 1.8]], dtype=torch.float64), rows, SIZE)
    fall = (rows - 71.5) / 220 - 0.03
    for line, across in enumerate((-1.8, 1.8)):
        expected = 127.5 + 220 * (0.05 + (across - 0.3) * fall / 1.2)
        shown = (expected > -0.5) & (expected < 255.5)
        assert torch.equal(columns[0, line].isnan(), ~shown)
        torch.testing.assert_close(columns[0, line][shown], expected[shown], atol=1e-9, rtol=0)


def test_straight_lines_meet_at_the_vanishing_point():
    rows = torch.tensor([100.0, 120.0], dtype=torch.float64)
    for roll in (0.0, 0.03):
        lines = columns_of_lines(camera(roll=roll), torch.tensor([[-1.8, 1.8]], dtype=torch.float64), rows, SIZE)[0]
        slope = (lines[:, 1] - lines[:, 0]) / 20
        meeting_row = 100 - (lines[1, 0] - lines[0, 0]) / (slope[1] - slope[0])
        meeting_column = lines[0, 0] + slope[0] * (meeting_row - 100)
        # x - roll y = yaw and y + roll x = horizon, solved for x and y
        y = (0.03 - roll * 0.05) / (1 + roll**2)
        x = 0.05 + roll * y
        assert math.isclose(meeting_row, 71.5 + 220 * y, abs_tol=1e-6)
        assert math.isclose(meeting_column, 127.5 + 220 * x, abs_tol=1e-6)


def test_labels_lie_on_the_ground():
    scene = sample_scene(torch.arange(200), 5, torch.zeros(200, dtype=torch.long), SIZE)
    half = scene.paint.lane_width / 2
    across = torch.stack([-half, half], 1)
    rows = row_anchors(144)
    columns = columns_of_lines(scene.camera, across, rows, SIZE)
    hit = ground(scene.camera.spread(2, torch.float64), rows.expand_as(columns), columns.nan_to_num(0.0), SIZE)
    known = ~columns.isnan()
    off = ((hit.across - across[:, :, None]) * scene.camera.focal[:, None, None] / hit.ahead)[known]
    assert off.abs().max() <= 0.01  # pixels; columns_of_lines drops what has not converged to this
    assert known.double().mean() > 0.7


def test_project_inverts_ground():
    bent = camera(curvature=1 / 400, change=1e-5, hill=1 / 3000)
    row, column = project(bent, torch.tensor([1.5]).double(), torch.tensor([20.0]).double(), SIZE)
    hit = ground(bent, row, column, SIZE)
    torch.testing.assert_close(hit.ahead, torch.tensor([20.0]).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(hit.across, torch.tensor([1.5]).double(), atol=1e-9, rtol=0)


def test_rescale_keeps_edges_and_inverts():
    edges = torch.tensor([-0.5, 255.5], dtype=torch.float64)
    torch.testing.assert_close(rescale(edges, 256, 960), torch.tensor([-0.5, 959.5], dtype=torch.float64))
    torch.testing.assert_close(rescale(rescale(edges, 256, 333), 333, 256), edges)
