import pytest
import torch
from torch import nn

from lightning_robust.functional.fresh import looks_untrained


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))


def transformer():
    return nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)


def zero_offsets():
    """As many recipes do: normal weights, offsets of zero."""
    network = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    for layer in network:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return network


MAKERS = [convolutional, transformer, zero_offsets, lambda: nn.Linear(64, 64)]


@pytest.mark.parametrize("make", MAKERS)
def test_every_fresh_network_is_known_and_one_step_of_training_too(make):
    """Twenty draws each: the range of uniform weights is closed, and one step takes some of them out of it."""
    for seed in range(20):
        torch.manual_seed(seed)
        network = make()
        assert looks_untrained(network), seed
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        shape = (8, 3, 8, 8) if make is convolutional else (8, 5, {transformer: 32, zero_offsets: 40}.get(make, 64))
        network(torch.randn(shape)).square().mean().backward()
        optimizer.step()
        assert not looks_untrained(network), seed


def test_one_trained_layer_is_enough_and_what_says_nothing_is_not_called_fresh():
    torch.manual_seed(0)
    backbone, head = convolutional(), nn.Linear(64, 10)
    with torch.no_grad():
        backbone[1].running_mean += 1e-3
    assert not looks_untrained(nn.Sequential(backbone, head))
    assert looks_untrained(head)
    for silent in (nn.ReLU(), nn.Embedding(10, 4), nn.BatchNorm1d(3, affine=False, track_running_stats=False)):
        assert not looks_untrained(silent)
    assert not looks_untrained(nn.Linear(2, 2, bias=False))
