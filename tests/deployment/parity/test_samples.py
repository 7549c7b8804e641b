"""Windows of samples, and outputs that are computed once."""

import pytest
import torch

from lightning_robust.deployment.parity.samples import Outputs, windows


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 64, 100, 1000])
def test_windows_cover_all_samples_once(samples):
    found = list(windows(samples))
    assert [i for window in found for i in range(samples)[window]] == list(range(samples))
    assert found[0].stop == min(16, samples)
    assert len(found) <= 8


def test_large_outputs_take_fewer_samples_but_never_fewer_than_the_first():
    assert list(windows(1000, 2**20)) == [slice(0, 16), slice(16, 32), slice(32, 64)]
    assert list(windows(1000, 2**30)) == [slice(0, 16)]


def test_nothing_is_computed_twice():
    asked = []

    def run(window):
        asked.append(window)
        return [torch.arange(window.start, window.stop), torch.tensor(7)]

    outputs = Outputs(run)
    for window in windows(40):
        rows, constant = outputs.up_to(window)
        assert torch.equal(rows, torch.arange(window.stop))
        assert constant == 7
    assert len(outputs.up_to(slice(0, 16))[0]) == 16
    assert asked == [slice(0, 16), slice(16, 32), slice(32, 40)]


@pytest.mark.parametrize("length", [8, 20, 48])
def test_what_no_sample_changes_is_given_whole(length):
    """Anchors beside rows of samples, and three rows for each sample, as of lines."""
    anchors = torch.arange(length) / 7

    def run(window):
        return [torch.arange(window.start, window.stop), anchors, torch.arange(3 * window.start, 3 * window.stop)]

    outputs = Outputs(run)
    for window in (*windows(40), slice(0, 16)):
        rows, same, lines = outputs.up_to(window)
        assert torch.equal(rows, torch.arange(window.stop))
        assert torch.equal(same, anchors)
        assert torch.equal(lines, torch.arange(3 * window.stop))
