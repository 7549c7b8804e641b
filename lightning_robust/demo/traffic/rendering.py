"""Renders road scenes with vehicles and signs, their boxes and the drivable area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_robust.demo.lanes.rendering import EmptyRoad, draw_road, one_thread, photograph, picture_numbers
from lightning_robust.demo.lanes.sampling import sample_scene
from lightning_robust.demo.lanes.scene import Scene
from lightning_robust.demo.lanes.sensor import bonnet_cover
from lightning_robust.demo.traffic.drawing import DrawnObject, project_objects
from lightning_robust.demo.traffic.objects import SIGNS, VEHICLES, sample_objects
from lightning_robust.demo.traffic.polygons import composite, cover_polygons

_CHUNK = 4
_SHADOW = 0.65
"""Opacity of a vehicle's shadow."""
SMALLEST = 6
"""Pixels that the visible part of an object is wide and high at least."""
VISIBLE = 0.4
"""Share of what is in the picture of an object that is not hidden, at least."""
INSIDE = 0.3
"""Share of the box around a whole object that lies in the picture, at least."""


class Traffic(NamedTuple):
    """Rendered pictures and their labels.

    Args:
        images: RGB, uint8, (N, 3, H, W).
        boxes: (left, top, right, bottom) of the visible part of each object, float32, (N, 11, 4), the nearest first,
            NaN behind the last one. Pixel 0 alone reaches from 0 to 1, as in COCO.
        labels: Number of each among `CLASSES`, -1 behind the last one, int64, (N, 11).
        drivable: 1 where a pixel shows the road's surface, else 0, uint8, (N, H, W).
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    drivable: Tensor


@torch.no_grad()
def render_traffic(indices: Sequence[int] | Tensor, *, seed: int = 0, height: int = 144, width: int = 256) -> Traffic:
    """Renders one road scene for each index: the roads of `render_roads` with other vehicles, signs and their labels.

    A picture depends on its index, the seed and the size alone, bit for bit. An object of which less than 6 pixels,
    `VISIBLE` of its silhouette or `INSIDE` of its box would be seen is not there at all, so that all that are drawn
    have a box, and no box is a guess. The drivable area is the road between its edges, shoulders included, up to 250 m,
    without what vehicles, signs, barriers and our own bonnet hide.

    Args:
        indices: Numbers of the pictures, (N,); any integers.
        seed: Another seed gives another set of pictures.
        height: Height of the pictures in pixels, a multiple of 16.
        width: Width of the pictures in pixels, a multiple of 16.

    Raises:
        ValueError: If there is no index, or height or width is not a multiple of 16.

    Example:
        >>> traffic = render_traffic([0, 1], seed=3)
        >>> tuple(traffic.images.shape), tuple(traffic.boxes.shape), tuple(traffic.drivable.shape)
        ((2, 3, 144, 256), (2, 11, 4), (2, 144, 256))
    """
    numbers = picture_numbers(indices, height, width)
    size = (height, width)
    with one_thread():
        scene = sample_scene(numbers, seed, torch.zeros_like(numbers), size)
        objects = project_objects(sample_objects(numbers, seed, scene), scene, size)
        starts = range(0, len(numbers), _CHUNK)
        parts = [_render_part(scene.part(at, at + _CHUNK), objects[at : at + _CHUNK], size) for at in starts]
    return Traffic(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Cover(NamedTuple):
    """Where an object lies in a picture.

    Args:
        window: Rows and columns of the picture that it may touch.
        layers: Opacity of its faces from the bottom up, (P, h, w).
        solid: Pixels of which it hides at least half, bool, (h, w).
        labelled: Pixels of which what the box is drawn around covers at least half, bool, (h, w).
    """

    window: tuple[slice, slice]
    layers: Tensor
    solid: Tensor
    labelled: Tensor


def _render_part(scene: Scene, objects: list[list[DrawnObject]], size: tuple[int, int]) -> Traffic:
    """Some pictures."""
    road = draw_road(scene, size)
    bonnet = bonnet_cover(scene.sensor, size)[:, 0] > 0.5
    free, boxes, labels = _drivable(scene, road, size) & ~bonnet, [], []
    for number, drawn in enumerate(objects):
        hidden = bonnet[number].clone()
        kept = keep_visible(drawn, hidden)
        for each, cover, _ in reversed(kept):
            composite(road.picture[number][:, *cover.window], each.colours, cover.layers)
            free[number][cover.window] &= ~cover.solid
        boxes.append(_padded([box for _, _, box in kept], (4,), torch.nan, torch.float32))
        labels.append(_padded([each.label for each, _, _ in kept], (), -1, torch.int64))
    images = photograph(road.picture, scene)
    return Traffic(images, torch.stack(boxes), torch.stack(labels), free.to(torch.uint8))


def _drivable(scene: Scene, road: EmptyRoad, size: tuple[int, int]) -> Tensor:
    """Pixels of which at least half shows the road between its edges, as if nothing stood on it, bool, (N, H, W)."""
    edges = scene.surface.edges.float()[:, :, None, None]
    inside = (road.hit.across > edges[:, 0]) & (road.hit.across < edges[:, 1])
    free = torch.zeros(len(edges), *size, dtype=torch.bool)
    free[:, size[0] // 4 :] = road.hit.valid & inside & (road.walls < 0.5)
    return free


def keep_visible(drawn: list[DrawnObject], hidden: Tensor) -> list[tuple[DrawnObject, Cover, list[int]]]:
    """The objects of which enough is seen, and the boxes of their visible parts.

    Args:
        drawn: The nearest first.
        hidden: Pixels that something nearer hides, bool, (H, W); those that the objects hide are added.
    """
    kept = []
    for each in drawn:
        cover = cover_object(each, (hidden.shape[0], hidden.shape[1]))
        if cover is None:
            continue
        visible = cover.labelled & ~hidden[cover.window]
        box = _box_around(visible, cover.window)
        large = min(box[2] - box[0], box[3] - box[1]) >= SMALLEST
        if large and int(visible.sum()) >= VISIBLE * int(cover.labelled.sum()):
            hidden[cover.window] |= cover.solid
            kept.append((each, cover, box))
    return kept


def cover_object(drawn: DrawnObject, size: tuple[int, int]) -> Cover | None:
    """Where an object lies; None if too little of it is in the picture."""
    corners = [part.reshape(-1, 2) for part in drawn.polygons]
    (left, top), (right, bottom) = (ends.tolist() for ends in torch.cat(corners).aminmax(dim=0))
    wide = min(right, size[1] - 0.5) - max(left, -0.5)
    high = min(bottom, size[0] - 0.5) - max(top, -0.5)
    if min(wide, high) <= 0 or wide * high < INSIDE * (right - left) * (bottom - top):
        return None
    rows = slice(max(int(top) - 1, 0), min(int(bottom) + 3, size[0]))
    columns = slice(max(int(left) - 1, 0), min(int(right) + 3, size[1]))
    pixels = torch.arange(rows.start, rows.stop, dtype=torch.float32), torch.arange(columns.start, columns.stop)
    covers = torch.cat([cover_polygons(part, *pixels) for part in drawn.polygons])[drawn.order]
    layers = covers * torch.where(drawn.solid, 1.0, _SHADOW)[:, None, None]
    solid, labelled = (_at_least_half(layers[which]) for which in (drawn.solid, drawn.labelled))
    return Cover((rows, columns), layers, solid, labelled)


def _at_least_half(layers: Tensor) -> Tensor:
    return (1 - layers).prod(0) <= 0.5


def _box_around(mask: Tensor, window: tuple[slice, slice]) -> list[int]:
    """The outer edges of the pixels of a mask in the picture; without a pixel, a box of no size."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if len(rows) == 0:
        return [0] * 4
    top, left = window[0].start, window[1].start
    return [left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1]


def _padded(values: list[Any], shape: tuple[int, ...], filler: float, dtype: torch.dtype) -> Tensor:
    """A row for each object, fillers behind the last one."""
    found = torch.full((VEHICLES + SIGNS, *shape), filler, dtype=dtype)
    if values:
        found[: len(values)] = torch.tensor(values, dtype=dtype)
    return found
