import types

import pytest
import torch
from torch import nn

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
