"""Metrics of lines: swing, bend, dropouts, gaps in time."""

import math

import pytest
import torch

from lightning_robust.deployment.replay.line_metrics import deviation_metrics, line_metrics

NAN = torch.nan


def grid(frames=10, rows=6):
    """A straight line that moves evenly, float64 (frames, rows)."""
    return 2.0 * torch.arange(frames).double()[:, None] + 3.0 * torch.arange(rows).double()


def test_straight_and_even():
    assert line_metrics(grid()) == {"swing": 0.0, "bend": 0.0, "present": 1.0}


def test_closed_form():
    jumping = grid() + 1.5 * (-1.0) ** torch.arange(10)[:, None]
    curved = grid() + torch.arange(6).double() ** 2
    assert line_metrics(jumping) == pytest.approx({"swing": 3.0, "bend": 0.0, "present": 1.0})
    assert line_metrics(curved) == pytest.approx({"swing": 0.0, "bend": 2.0, "present": 1.0})


def test_undefined_is_absent():
    assert line_metrics(grid(frames=1)) == {"bend": 0.0, "present": 1.0}
    assert line_metrics(torch.full((5, 5), NAN)) == {"present": 0.0}
    assert "swing_beyond" not in deviation_metrics(grid(1), grid(1))


def test_what_overflows_moves_without_end():
    """In all frames or in one; a point that is lost is still none."""
    everywhere = torch.full_like(grid(), torch.inf)
    once, lost = grid().clone(), everywhere.clone()
    once[4, 2], lost[:] = -torch.inf, NAN
    for overflown in (everywhere, once):
        metrics = deviation_metrics(grid(), overflown)
        assert (metrics["swing_beyond"], metrics["bend_beyond"]) == (torch.inf, torch.inf)
        assert line_metrics(overflown) == {"swing": torch.inf, "bend": torch.inf, "present": 1.0}
    assert "swing_beyond" not in deviation_metrics(grid(), lost)


def test_no_movement_across_a_gap():
    # frames 3 to 7 are missing: the even movement seems to jump there, but nobody saw it
    places = torch.tensor([0, 1, 2, 8, 9])
    columns = grid()[places]
    assert line_metrics(columns, places)["swing"] == 0.0
    assert line_metrics(columns)["swing"] > 1.0
    reference = torch.zeros_like(columns)
    assert deviation_metrics(reference, columns, places)["swing_beyond"] == pytest.approx(2.0)


def test_places_may_begin_anywhere():
    columns = grid() + torch.rand(10, 6).double()
    assert line_metrics(columns, torch.arange(10) + 50) == line_metrics(columns)


def test_displacement_is_neither_swing_nor_bend():
    metrics = deviation_metrics(grid(), grid() + 4.0)
    assert metrics == {
        "mean": 4.0,
        "p99": 4.0,
        "max": 4.0,
        "bias": 4.0,
        "lost": 0.0,
        "gained": 0.0,
        "frames_lost": 0.0,
        "swing_beyond": 0.0,
        "bend_beyond": 0.0,
    }


def test_what_comes_on_top_of_the_reference():
    reference = grid() + torch.randn(10, 6).double()
    deployed = reference + 0.5 * (-1.0) ** torch.arange(10)[:, None] + 0.25 * (-1.0) ** torch.arange(6)
    metrics = deviation_metrics(reference, deployed)
    assert metrics["swing_beyond"] == pytest.approx(1.0)  # from -0.5 to 0.5
    assert metrics["bend_beyond"] == pytest.approx(1.0)  # 0.25, -0.25, 0.25: second difference 4 * 0.25
    own, other = line_metrics(reference), line_metrics(deployed)
    assert abs(other["swing"] - own["swing"]) <= metrics["swing_beyond"]
    assert abs(other["bend"] - own["bend"]) <= metrics["bend_beyond"]


def test_dropouts():
    reference, deployed = grid(4, 5), grid(4, 5)
    reference[0] = NAN  # 15 of 20 points are there
    deployed[1] = NAN  # one of three frames is lost altogether
    deployed[2, :2] = NAN  # and two points more
    deployed[0, 1:] = NAN  # one point where there should be none
    metrics = deviation_metrics(reference, deployed)
    assert metrics["lost"] == pytest.approx(7 / 15)
    assert metrics["gained"] == pytest.approx(1 / 5)
    assert metrics["frames_lost"] == pytest.approx(1 / 3)


def test_all_lost_is_infinitely_far():
    metrics = deviation_metrics(grid(), torch.full((10, 6), NAN))
    assert metrics["p99"] == math.inf
    assert metrics["lost"] == metrics["frames_lost"] == 1.0
