"""Key points of maps whose peak is known."""

import pytest
import torch

from lightning_robust.decoding import heatmap_keypoints


def parabola(x, y, rows=12, columns=16):
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    return (10 - 0.3 * (column - x) ** 2 - 0.7 * (row - y) ** 2)[None, None]


@pytest.mark.parametrize(("x", "y"), [(5.0, 3.0), (5.3, 3.4), (9.8, 7.1)])
def test_closed_form(x, y):
    found = heatmap_keypoints(parabola(x, y), 4 * 12, 4 * 16)[0, 0].tolist()
    assert found == pytest.approx([4 * (x + 0.5) - 0.5, 4 * (y + 0.5) - 0.5], abs=1e-4)


def test_peaks_at_the_border_and_flat_maps_stay_in_their_cell():
    assert heatmap_keypoints(parabola(0.0, 11.0), 12, 16).tolist() == [[[0.0, 11.0]]]
    assert heatmap_keypoints(torch.ones(1, 1, 4, 4), 4, 4).tolist() == [[[0.0, 0.0]]]


def test_low_and_broken_peaks_are_no_points():
    maps = torch.cat([parabola(5.0, 3.0), parabola(5.0, 3.0) / 10, torch.full((1, 1, 12, 16), torch.nan)], 1)
    assert heatmap_keypoints(maps, 12, 16, threshold=2.0).isnan().any(-1).tolist() == [[False, True, True]]
    assert heatmap_keypoints(maps, 12, 16).isnan().any(-1).tolist() == [[False, False, True]]


def test_half_precision_moves_it_by_fractions_of_a_pixel():
    exact = heatmap_keypoints(parabola(5.3, 3.4).double(), 48, 64)
    half = heatmap_keypoints(parabola(5.3, 3.4).half(), 48, 64)
    # values of up to 10 err by 2**-9 at most, three of them over a curvature of 0.6 at least, in cells of 4 px
    assert 0 < (half - exact).abs().max() < 4 * 2 * 2**-9 / 0.6
