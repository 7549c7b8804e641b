"""Rendered traffic: the same picture for the same index, boxes and masks against another rasteriser, who hides whom."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lightning_robust.demo.lanes.camera import ground
from lightning_robust.demo.lanes.sampling import sample_scene
from lightning_robust.demo.traffic import render_traffic
from lightning_robust.demo.traffic.drawing import project_objects
from lightning_robust.demo.traffic.objects import CLASSES, sample_objects
from lightning_robust.demo.traffic.rendering import SMALLEST, VISIBLE, keep_visible

SIZE = (144, 256)


@pytest.fixture(scope="module")
def pictures():
    return render_traffic(range(8), seed=4)


def drawn_objects(count, seed):
    numbers = torch.arange(count)
    scene = sample_scene(numbers, seed, torch.zeros_like(numbers), SIZE)
    return scene, project_objects(sample_objects(numbers, seed, scene), scene, SIZE)


def silhouette(drawn, chosen):
    """The chosen faces of an object by another rasteriser, four times as fine, bool (144, 256)."""
    canvas = Image.new("1", (1024, 576))
    pen, start = ImageDraw.Draw(canvas), 0
    wanted = set(drawn.order[chosen].tolist())
    for part in drawn.polygons:
        for number, corners in enumerate(part.tolist(), start):
            if number in wanted:
                pen.polygon([(4 * x + 1.5, 4 * y + 1.5) for x, y in corners], fill=1)
        start += len(part)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32).reshape(144, 4, 256, 4).mean((1, 3)) > 0.5)


def test_same_index_same_picture_in_any_batch(pictures):
    for index in (0, 7):
        alone = render_traffic([index], seed=4)
        for one, many in zip(alone, pictures, strict=True):
            assert torch.equal(one[0].nan_to_num(-1), many[index].nan_to_num(-1))
    assert not torch.equal(render_traffic([0], seed=5).images, pictures.images[:1])


def test_boxes_and_drivable_area_match_another_rasteriser(pictures):
    """To a pixel each: the visible part of every object, and the road between its edges that nothing hides."""
    scene, objects = drawn_objects(8, 4)
    compared, wrong = 0, []
    for number in range(8):
        bonnet = torch.zeros(SIZE, dtype=torch.bool)
        kept = keep_visible(objects[number], bonnet.clone())
        hidden = bonnet.clone()
        labels = pictures.labels[number]
        if float(scene.sensor.bonnet[number]) > 0:
            continue
        assert labels[: len(kept)].tolist() == [drawn.label for drawn, _, _ in kept]
        for place, (drawn, _, _) in enumerate(kept):
            rows, columns = (silhouette(drawn, drawn.labelled) & ~hidden).nonzero().unbind(1)
            hidden |= silhouette(drawn, drawn.solid)
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            deviation = (torch.tensor([float(edge) for edge in edges]) - pictures.boxes[number, place]).abs()
            wrong.append(float(deviation.max()))
            compared += 1
        camera = scene.part(number, number + 1).camera.spread(2, torch.float64)
        rows, columns = torch.arange(144.0, dtype=torch.float64)[:, None], torch.arange(256.0, dtype=torch.float64)
        hit = ground(camera, rows, columns, SIZE)
        left, right = scene.surface.edges[number]
        road = (hit.valid & (hit.across > left) & (hit.across < right))[0] & ~hidden
        assert (road != pictures.drivable[number].bool()).float().mean() < 0.02  # barriers hide some of it
        assert not (pictures.drivable[number].bool() & ~road).float().mean() > 0.004  # the seam of a silhouette
    assert compared > 15
    assert np.quantile(wrong, 0.9) <= 1.0
    assert max(wrong) <= 2.0


def test_every_object_that_is_drawn_has_a_box_of_some_size(pictures):
    present = pictures.labels >= 0
    assert torch.equal(present, ~pictures.boxes.isnan().any(2))
    boxes = pictures.boxes[present]
    sides = boxes[:, 2:] - boxes[:, :2]
    assert float(sides.min()) >= SMALLEST
    assert float(boxes.min()) >= 0
    assert float(boxes[:, 0::2].max()) <= 256
    assert float(boxes[:, 1::2].max()) <= 144
    assert set(pictures.labels[present].tolist()) == set(range(len(CLASSES)))


def largest(objects):
    """The widest vehicle that is whole in its picture."""
    found = [each for listed in objects for each in listed if each.label == 0]

    def width(each):
        low, high = torch.cat([part.reshape(-1, 2) for part in each.polygons]).aminmax(dim=0)
        whole = low.min() > 0 and high[0] < 255 and high[1] < 143
        return float(high[0] - low[0]) if whole else 0.0

    return max(found, key=width)


def test_the_nearer_one_hides_the_farther_one():
    """An object behind itself is gone; half a width further it has the part that is left."""
    _, objects = drawn_objects(6, 4)
    near = largest(objects)
    far = near._replace(ahead=near.ahead + 5)
    hidden = torch.zeros(SIZE, dtype=torch.bool)
    ((kept, cover, box),) = keep_visible([near, far], hidden)
    assert kept is near
    assert int(hidden.sum()) == int(cover.solid.sum())
    half = (box[2] - box[0]) // 2
    aside = far._replace(polygons=tuple(part + torch.tensor([float(half), 0.0]) for part in far.polygons))
    hidden = torch.zeros(SIZE, dtype=torch.bool)
    (_, _, first), (_, behind, second) = keep_visible([near, aside], hidden)
    assert first == box
    assert second[2] == box[2] + half
    added = int(hidden.sum()) - int(cover.solid.sum())
    assert 0.4 < added / int(behind.solid.sum()) < 0.75  # half of it, but for what is seen under the near one
    (_, _, whole), *_ = keep_visible([aside, near], torch.zeros(SIZE, dtype=torch.bool))
    assert whole == [box[0] + half, box[1], box[2] + half, box[3]]


def test_what_is_hardly_seen_is_not_there():
    """Four fifths behind a barrier: the rule asks for two fifths."""
    _, objects = drawn_objects(6, 4)
    near = largest(objects)
    ((_, _, box),) = keep_visible([near], torch.zeros(SIZE, dtype=torch.bool))
    for share, count in ((0.2, 1), (1 - VISIBLE / 2, 0)):  # of its height
        hidden = torch.zeros(SIZE, dtype=torch.bool)
        hidden[: int(box[1] + share * (box[3] - box[1]))] = True
        assert len(keep_visible([near], hidden)) == count


def test_rejects_bad_sizes_and_no_index():
    with pytest.raises(ValueError, match="Expected multiples of 16"):
        render_traffic([0], height=100)
    with pytest.raises(ValueError, match="Expected at least one index"):
        render_traffic([])
