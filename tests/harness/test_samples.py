import types

import pytest
import torch
from torch import nn

from lightning_robust.harness import samples
from lightning_robust.harness.samples import FirstInputs

NETWORK = nn.Linear(3, 1)


def test_the_first_samples_in_order():
    first = FirstInputs(5)
    for start in (0, 2, 4, 6):
        first.add(NETWORK, (torch.arange(start, start + 2.0)[:, None], "label"))
    (inputs,) = first.args()
    assert inputs[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_several_arguments_and_fewer_samples_than_wanted():
    first = FirstInputs(9, ["image", "scale"])
    first.add(NETWORK, {"image": torch.ones(2, 3), "scale": torch.tensor(4.0)})
    assert not first.complete
    image, scale = first.args()
    assert image.shape == (2, 3)
    assert float(scale) == 4.0


def test_what_has_no_row_for_each_sample_goes_in_whole():
    """A grid that all batches share; one that differs has no place among joined samples."""

    class Gridded(nn.Module):
        def forward(self, image, grid):
            return image

    first, grid = FirstInputs(8), torch.arange(10.0)
    for _ in range(2):
        first.add(Gridded(), {"image": torch.rand(4, 3), "grid": grid})
    image, found = first.spread(6)
    assert image.shape == (6, 3)
    assert torch.equal(found, grid)
    first.add(Gridded(), {"image": torch.rand(4, 3), "grid": grid})
    other = FirstInputs(8)
    for place in range(2):
        other.add(Gridded(), {"image": torch.rand(4, 3), "grid": grid + place})
    with pytest.raises(ValueError, match=r"the same in all batches, but one of shape \(10,\) is not"):
        other.args()


def test_batches_are_copied_and_other_shapes_left_out():
    first, batch = FirstInputs(4), torch.zeros(2, 3)
    first.add(NETWORK, [batch])
    batch += 1
    first.add(NETWORK, [torch.zeros(2, 4)])
    assert float(first.args()[0].sum()) == 0
    assert first.args()[0].shape == (2, 3)


def test_says_why_there_is_none():
    first = FirstInputs(4, "image")
    with pytest.raises(ValueError, match="no validation batch"):
        first.args()
    first.add(NETWORK, {"picture": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="image"):
        first.args()


def test_graphs_have_no_first_rows():
    first = FirstInputs(2)
    graphs = types.SimpleNamespace(x=torch.zeros(5, 3), y=torch.zeros(2), to=lambda device: graphs)
    first.add(NETWORK, graphs)
    with pytest.raises(ValueError, match=r"one row for each sample.*\[2, 5\] rows"):
        first.args()


def gathered(count, size):
    first = FirstInputs(count)
    for start in range(0, count, size):
        rows = torch.arange(start, min(start + size, count)).float()
        first.add(NETWORK, (rows[:, None], -rows), whole=True)
    return first


@pytest.mark.parametrize("count", [1, 2, 37, 64])
def test_a_part_lies_evenly_among_all(count):
    """Any quarter of the samples has gaps of at most eight; all of them are all; fewer come first of more."""
    (everything,) = gathered(count, 5).spread(count)
    assert sorted(everything[:, 0].tolist()) == list(range(count))
    (quarter,) = gathered(count, 5).spread(-(-count // 4))
    assert torch.equal(quarter, everything[: len(quarter)])
    places = sorted(quarter[:, 0].tolist())
    assert all(later - earlier <= 8 for earlier, later in zip(places, [*places[1:], count], strict=True))


def test_batches_hold_the_rows_of_the_samples():
    """The second part of each batch, at the places that it names, is that of the inputs there."""
    first = gathered(37, 5)
    (inputs,) = first.spread(20)
    for window in (slice(0, 16), slice(16, 20)):
        targets = torch.full((window.stop - window.start,), torch.nan)
        for places, (rows, negative) in first.batches(window):
            assert torch.equal(rows[:, 0], -negative)
            targets[places] = negative
        assert torch.equal(targets, -inputs[window, 0])


def test_no_more_is_kept_than_fits(monkeypatch):
    monkeypatch.setattr(samples, "_MOST_BYTES", 400)
    first = FirstInputs(1000, at_least=10)
    for _ in range(100):
        first.add(NETWORK, (torch.zeros(5, 3),))
    assert first.complete
    assert first.count == 35  # seven batches of 60 bytes
