"""Moved answers against closed forms and against each other."""

import torch

from lightning_robust.functional import move_boxes, move_columns, move_masks, move_points, rescale_motion

TURN = torch.tensor([[0.0, -1, 9], [1, 0, 2], [0, 0, 1]])  # a quarter turn, then a shift


def test_points_closed_form():
    points = torch.tensor([[1.0, 5.0], [-2.0, 0.5]])
    assert move_points(points, TURN).tolist() == [[4.0, 3.0], [8.5, 0.0]]


def test_the_corners_of_a_box_are_points():
    box = torch.tensor([[1.0, 5.0, 4.0, 7.0]])
    corners = move_points(torch.tensor([[1.0, 5.0], [4.0, 5.0], [1.0, 7.0], [4.0, 7.0]]), TURN)
    assert move_boxes(box, TURN)[0].tolist() == [*corners.amin(0).tolist(), *corners.amax(0).tolist()]


def test_a_mask_moves_with_its_points():
    """The one pixel that is set lies where the point lies."""
    mask = torch.zeros(2, 12, 12, dtype=torch.bool)
    mask[1, 5, 3] = True
    column, row = move_points(torch.tensor([3.0, 5.0]), TURN).int().tolist()
    moved = move_masks(mask, TURN)
    assert moved.sum() == 1
    assert moved[1, row, column]


def test_convention_pixel_centres_when_a_picture_is_resized():
    """The left edge at -0.5 stays where it is, and lengths scale."""
    shift = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])
    crop = torch.tensor([[1.25, 0, -0.5 * 1.25 - 0.5 + 1.25 * 0.5 - 0.75], [0, 1, 0], [0, 0, 1]])
    large = rescale_motion(shift, (4, 4), (16, 16))
    assert torch.allclose(large, torch.tensor([[1.0, 0, 4], [0, 1, 0], [0, 0, 1]]))
    place = torch.tensor([2.0, 0.0])
    ours = move_points(place, crop)
    theirs = move_points((place + 0.5) * 4 - 0.5, rescale_motion(crop, (4, 4), (16, 16)))
    assert torch.allclose((ours + 0.5) * 4 - 0.5, theirs)


def test_columns_of_straight_lines_closed_form():
    """A straight line under any affine motion is a straight line: slope and place follow from two of its points."""
    rows = torch.arange(0, 40, 4.0)
    matrix = torch.tensor([[1.1, 0.2, -3.0], [0.0, 0.9, 1.3], [0, 0, 1.0]])
    columns = torch.stack([2.0 * rows + 5, -0.5 * rows + 30]).double()
    found = move_columns(columns, rows, matrix)
    first, second = (move_points(torch.stack([columns[:, i], rows[i].expand(2)], -1), matrix) for i in (0, 9))
    slope = (second[:, 0] - first[:, 0]) / (second[:, 1] - first[:, 1])
    expected = first[:, :1] + slope[:, None] * (rows - first[:, 1:])
    assert torch.allclose(found, expected)


def test_columns_end_where_the_line_ends():
    rows = torch.arange(0, 40, 4.0)
    columns = rows.clone()
    columns[:3] = torch.nan
    up = torch.tensor([[1.0, 0, 0], [0, 1, -6.0], [0, 0, 1]])
    moved = move_columns(columns, rows, up)
    # the content of row r lies at r - 6: known from row 12, so from 6, and the next anchor is 8
    assert moved.isnan().tolist() == [True, True, *[False] * 6, False, True]
    assert torch.allclose(moved[2:9], rows[2:9] + 6)


def test_no_motion_changes_nothing():
    rows = torch.arange(5.0)
    columns = torch.tensor([1.0, 4.0, torch.nan, 2.0, 7.0])
    moved = move_columns(columns, rows, torch.eye(3))
    assert torch.equal(moved.nan_to_num(-1), columns.nan_to_num(-1))
