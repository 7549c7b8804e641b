"""Metrics against closed forms in numpy."""

import numpy as np
import pytest
import torch

from lightning_robust.demo.lanes import Bend, LateralError, Swing
from lightning_robust.demo.lanes.metrics import Found


@pytest.fixture
def lines():
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(12, 2, 9, generator=generator) * 900
    truth = found + torch.randn(12, 2, 9, generator=generator)
    found[torch.rand(found.shape, generator=generator) < 0.2] = torch.nan
    truth[torch.rand(found.shape, generator=generator) < 0.2] = torch.nan
    return found, truth


def feed(metric, found, truth, *extra, size=5):
    for start in range(0, len(found), size):
        metric.update(*(value[start : start + size] for value in (found, truth, *extra)))
    return float(metric.compute())


def test_lateral_error_and_found(lines):
    error = np.abs((lines[0] - lines[1]).numpy().astype(np.float64))
    metric = LateralError()
    assert feed(metric, *lines) == pytest.approx(np.nanmean(error), rel=1e-6)
    known = ~np.isnan(lines[1].numpy())
    share = (known & ~np.isnan(lines[0].numpy())).sum() / known.sum()
    assert float(metric.found()) == pytest.approx(share)
    assert feed(Found(), *lines) == pytest.approx(share)


def test_bend(lines):
    error = (lines[0] - lines[1]).numpy()
    assert feed(Bend(), *lines) == pytest.approx(np.nanmean(np.abs(np.diff(error, n=2, axis=2))), rel=1e-5)
    ramp = torch.arange(9.0) * 3 - 7
    metric = Bend()
    metric.update(lines[1] + ramp, lines[1])
    assert float(metric.compute()) < 1e-3  # a shift and a tilt are no bend; float32 columns near 900


def test_swing(lines):
    sequence = torch.arange(12) // 4
    error = (lines[0] - lines[1]).numpy().reshape(3, 4, 2, 9)
    expected = np.nanmean(np.abs(np.diff(error, axis=1)))
    for size in (1, 5, 12):  # sequences may be cut by batches anywhere
        assert feed(Swing(), *lines, sequence, size=size) == pytest.approx(expected, rel=1e-5)


def test_swing_of_a_constant_error_is_zero(lines):
    metric = Swing()
    metric.update(lines[1] + 4, lines[1], torch.zeros(12))
    assert float(metric.compute()) < 1e-3
    metric.reset()
    metric.update(lines[1][:1], lines[1][:1], torch.zeros(1))
    assert float(metric.compute()) == 0.0


def test_rejects_shapes(lines):
    for metric in (LateralError(), Bend()):
        with pytest.raises(ValueError, match="one shape"):
            metric.update(lines[0], lines[1][:, :1])
    with pytest.raises(ValueError, match="one sequence number a frame"):
        Swing().update(*lines, torch.zeros(3))


def test_states_in_half_precision_keep_counting(lines):
    metric = LateralError().to(torch.bfloat16)
    for _ in range(5):
        metric.update(*lines)
    error = np.abs((lines[0] - lines[1]).numpy())
    assert float(metric.compute()) == pytest.approx(np.nanmean(error), rel=1e-5)
