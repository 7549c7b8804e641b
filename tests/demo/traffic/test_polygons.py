"""Polygons on pixels against their area, and layers against one blend after the other."""

import math

import pytest
import torch

from lightning_robust.demo.traffic.polygons import _INFLATE, composite, cover_polygons, is_facing


@pytest.mark.parametrize("turn", [0.0, 0.3, 1.1])
@pytest.mark.parametrize(("wide", "high"), [(12.0, 7.0), (9.0, 0.3)])
def test_cover_is_the_area(turn, wide, high):
    """The covers add up to the area of the polygon grown by a fifth of a pixel, wherever it lies, thin ones too."""
    corners = torch.tensor([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) / 2
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    vertices = corners @ rotation + torch.tensor([12.3, 11.8])
    cover = cover_polygons(vertices[None], torch.arange(24.0), torch.arange(24.0))
    expected = (wide + 2 * _INFLATE) * (high + 2 * _INFLATE)
    assert float(cover.sum()) == pytest.approx(expected, rel=0.06)  # both ends of a thin one count in full
    assert float(cover.max()) <= 1.0


def test_a_corner_given_twice_bounds_nothing():
    triangle = torch.tensor([[[5.0, 1], [9, 9], [1, 9], [1, 9]]])
    cover = cover_polygons(triangle, torch.arange(12.0), torch.arange(12.0))[0]
    assert float(cover.sum()) == pytest.approx(32 + _INFLATE * (8 + 2 * math.hypot(4, 8)), rel=0.04)


def test_facing_is_clockwise_as_seen():
    square = torch.tensor([[0.0, 0], [2, 0], [2, 2], [0, 2]])
    assert is_facing(torch.stack([square, square.flip(0)])).tolist() == [True, False]


def test_composite_matches_one_blend_after_the_other():
    generator = torch.Generator().manual_seed(0)
    patch, colours, covers = (torch.rand(*s, generator=generator) for s in ((3, 4, 5), (6, 3), (6, 4, 5)))
    expected = patch.clone()
    for colour, cover in zip(colours, covers, strict=True):
        expected = expected + (colour[:, None, None] - expected) * cover
    composite(patch, colours, covers)
    torch.testing.assert_close(patch, expected)
