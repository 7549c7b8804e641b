"""Renders pictures of roads with the columns of the two ego lines, from a scene of `sampling.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_robust.demo.lanes.anchors import row_anchors
from lightning_robust.demo.lanes.backdrop import draw_backdrop, draw_cars, draw_walls
from lightning_robust.demo.lanes.camera import Ground, columns_of_lines, ground
from lightning_robust.demo.lanes.sampling import sample_scene
from lightning_robust.demo.lanes.scene import Scene
from lightning_robust.demo.lanes.sensor import add_glare, digitise, draw_bonnet, expose
from lightning_robust.demo.lanes.surface import draw_surface
from lightning_robust.demo.lanes.textures import blend

_CHUNK = 4


class Roads(NamedTuple):
    """Rendered pictures and their labels.

    Args:
        images: RGB, uint8, (N, 3, H, W).
        columns: Pixel column of the left and the right ego line at each row anchor, float32, (N, 2, R), where 0 is the
            centre of the first column; NaN where the line is not there.
    """

    images: Tensor
    columns: Tensor


@torch.no_grad()
def render_roads(
    indices: Sequence[int] | Tensor,
    *,
    seed: int = 0,
    height: int = 144,
    width: int = 256,
    frame: int | Tensor = 0,
) -> Roads:
    """Renders one road picture for each index.

    A picture depends on its index, the seed, the frame and the size alone: bit for bit the same in any batch and in
    any process. Costs about 10 ms of one CPU core for a picture of 144 x 256.

    Args:
        indices: Numbers of the pictures, (N,); any integers.
        seed: Another seed gives another set of pictures.
        height: Height of the pictures in pixels, a multiple of 16.
        width: Width of the pictures in pixels, a multiple of 16.
        frame: Number of the frame within a sequence at 25 frames a second, one for all or (N,): the same scene with
            camera, dashes and cars moved on.

    Raises:
        ValueError: If there is no index, or height or width is not a multiple of 16.

    Example:
        >>> roads = render_roads([0, 1], seed=3)
        >>> tuple(roads.images.shape), tuple(roads.columns.shape)
        ((2, 3, 144, 256), (2, 2, 17))
    """
    numbers = picture_numbers(indices, height, width)
    frames = torch.as_tensor(frame, dtype=torch.int64).expand(len(numbers))
    size = (height, width)
    with one_thread():
        scene = sample_scene(numbers, seed, frames, size)
        chunks = [_render(scene.part(start, start + _CHUNK), size) for start in range(0, len(numbers), _CHUNK)]
        return Roads(torch.cat(chunks), _labels(scene, size))


def picture_numbers(indices: Sequence[int] | Tensor, height: int, width: int) -> Tensor:
    """The numbers of the pictures to render, int64, (N,); refuses none, and sizes that cannot be rendered."""
    numbers = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
    if len(numbers) == 0:
        raise ValueError("Expected at least one index, but got none. Pass the numbers of the pictures to render.")
    if height % 16 or width % 16 or height < 16 or width < 16:
        raise ValueError(f"Expected multiples of 16, but got height={height} and width={width}. Round them up.")
    return numbers


@contextmanager
def one_thread() -> Iterator[None]:
    """The operations are small: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _render(scene: Scene, size: tuple[int, int]) -> Tensor:
    return photograph(draw_cars(draw_road(scene, size).picture, scene, size), scene)


def photograph(picture: Tensor, scene: Scene) -> Tensor:
    """What the camera makes of the light of a scene, bytes (N, 3, H, W)."""
    picture = add_glare(picture, scene.light)
    picture = draw_bonnet(expose(picture, scene.sensor), scene.sensor)
    return digitise(picture, scene.sensor)


class EmptyRoad(NamedTuple):
    """A road without any car.

    Args:
        picture: Its light, (N, 3, H, W).
        hit: Where the pixels below the first quarter of the rows meet the ground.
        walls: The share of each of these pixels that barriers cover.
    """

    picture: Tensor
    hit: Ground
    walls: Tensor


def draw_road(scene: Scene, size: tuple[int, int]) -> EmptyRoad:
    """The picture without other cars; the ground is computed only in rows that can show it."""
    camera = scene.camera.spread(2)
    top, bottom = size[0] // 4, size[0] * 3 // 4
    columns = torch.arange(size[1], dtype=torch.float32)
    rows = torch.arange(size[0], dtype=torch.float32)[:, None]
    hit = ground(camera, rows, columns, size)
    above = -hit.fall * (camera.focal / size[0])
    picture = torch.zeros(len(above), 3, *size)
    picture[:, :, :bottom] = draw_backdrop(scene.backdrop, above[:, :bottom], columns, size)
    below = type(hit)(*(value[:, top:] for value in hit))
    surface = draw_surface(scene, camera, below)
    haze = (below.ahead * scene.light.haze.float()[:, None, None]).clamp(min=0.0)
    haze = (haze / (1 + haze))[:, None]
    veil = scene.light.haze_colour.float()[:, :, None, None]
    lower = torch.where(below.valid[:, None], blend(surface, veil, haze), picture[:, :, top:])
    picture[:, :, top:], walls = draw_walls(lower, scene.backdrop, camera, below)
    return EmptyRoad(picture, below, walls)


def _labels(scene: Scene, size: tuple[int, int]) -> Tensor:
    half = scene.paint.lane_width / 2
    columns = columns_of_lines(scene.camera, torch.stack([-half, half], 1), row_anchors(size[0]), size)
    painted = scene.paint.half_width[:, 3:5, None] > 0
    return columns.masked_fill(~painted, torch.nan).float()
