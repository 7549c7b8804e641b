"""Rendered roads: the same picture for the same index, whatever the batch; paint where the label says."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_robust.demo.lanes import render_roads
from lightning_robust.demo.lanes.anchors import row_anchors
from lightning_robust.demo.lanes.data import _Rendering
from lightning_robust.demo.lanes.sampling import sample_scene


def test_same_index_same_picture_in_any_batch():
    together = render_roads(range(13), seed=4)
    for index in (0, 5, 12):
        alone = render_roads([index], seed=4)
        assert torch.equal(alone.images[0], together.images[index])
        assert torch.equal(alone.columns[0].nan_to_num(-1), together.columns[index].nan_to_num(-1))
    shuffled = torch.randperm(13)
    assert torch.equal(render_roads(shuffled, seed=4).images, together.images[shuffled])


def test_same_index_same_picture_in_a_worker():
    indices = torch.arange(130)
    rendering = _Rendering(indices, torch.zeros_like(indices), 4, (144, 256))
    parts = list(DataLoader(rendering, batch_size=None, num_workers=1))
    assert torch.equal(torch.cat([part.images for part in parts])[::10], render_roads(indices[::10], seed=4).images)


def test_threads_are_restored():
    threads = torch.get_num_threads()
    render_roads([0])
    assert torch.get_num_threads() == threads


def test_seed_and_index_change_the_picture():
    one = render_roads([0, 1], seed=0).images
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, render_roads([0, 1], seed=1).images)


def test_paint_lies_under_the_labels():
    roads = render_roads(range(200), seed=6)
    green = roads.images[:, 1].float()
    rows = row_anchors(144).floor().long()  # anchors lie between two rows
    row_pair = (green[:, rows] + green[:, rows + 1]) / 2
    known = ~roads.columns.isnan() & (row_anchors(144) > 100)
    columns = roads.columns.nan_to_num(128).round().long()

    def brightness(shift):
        at = (columns + shift).clamp(0, 255)
        return torch.stack([row_pair.gather(2, at[:, line, :, None])[..., 0] for line in range(2)], 1)[known].mean()

    middle = brightness(0)
    for shift in (-8, 8):
        assert middle > brightness(shift) + 8  # grey values of 255, dashes and worn lines included
    assert abs(brightness(-2) - brightness(2)) < 0.2 * (middle - brightness(8))  # the label is in the middle


def test_frames_of_a_sequence_move_on_smoothly():
    frames = torch.arange(6)
    roads = render_roads(torch.full((6,), 11), seed=0, frame=frames)
    assert all(not torch.equal(roads.images[k], roads.images[k + 1]) for k in range(5))
    step = (roads.columns[1:] - roads.columns[:-1]).abs()
    assert step[~step.isnan()].max() < 6  # pixels of 256 in 1/25 s
    scene = sample_scene(torch.full((6,), 11), 0, frames, (144, 256))
    assert scene.paint.lane_width.unique().numel() == 1
    assert scene.paint.phase.diff().min() > 12 / 25 - 1e-9  # at least 12 m/s


def test_sizes():
    roads = render_roads([3, 4], height=96, width=160)
    assert roads.images.shape == (2, 3, 96, 160)
    assert roads.images.dtype == torch.uint8
    assert roads.columns.shape == (2, 2, len(row_anchors(96)))


def test_rejects_bad_sizes_and_no_index():
    with pytest.raises(ValueError, match="Expected multiples of 16"):
        render_roads([0], height=100)
    with pytest.raises(ValueError, match="Expected at least one index"):
        render_roads([])
