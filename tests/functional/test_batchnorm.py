import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_robust.functional.batchnorm import Ranks, batchnorm_layers, refresh_batchnorm


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
    )


def reference(module, data):
    """One pass over all data in one batch, momentum None, no dropout."""
    module = copy.deepcopy(module).eval()
    for layer in batchnorm_layers(module):
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None
    with torch.no_grad():
        module(data)
    return batchnorm_layers(module)


def assert_statistics(module, expected, tolerance=1e-6):
    for mine, theirs in zip(batchnorm_layers(module), expected, strict=True):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", [(30,), (7, 13, 10), (1, 28, 1)])
def test_layerwise_is_one_pass_over_everything_at_any_depth(sizes):
    module, data = network(), 3 + 2 * torch.randn(30, 2, 8, 8)
    assert refresh_batchnorm(module, lambda: data.split(list(sizes)), layerwise=True) == 3
    assert_statistics(module, reference(module, data))


def test_one_pass_is_exact_for_the_first_layer():
    module, data = network(), torch.randn(30, 2, 8, 8)
    refresh_batchnorm(module, lambda: data.split([7, 13, 10]))
    assert_statistics(module[:2], reference(module[:2], data))


def test_one_batch_is_exact_everywhere():
    module, data = network(), torch.randn(30, 2, 8, 8)
    refresh_batchnorm(module, lambda: [data])
    assert_statistics(module, reference(module, data))


def test_variance_between_batches_is_kept_where_torch_loses_it():
    """Batches with means -1 and 1 and no spread have variance 1 together, 0 each."""
    data = torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)])
    mine, theirs = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    refresh_batchnorm(mine, lambda: data.split(50))
    update_bn(data.split(50), theirs)
    assert mine.running_var.item() == pytest.approx(100 / 99)
    assert theirs.running_var.item() == 0


def test_differs_from_the_authors_pass_by_the_variance_between_batches():
    """Their loop weights batches by size; its mean is the same, its variance lacks what lies between batches."""
    batches = [torch.randn(9, 3) + 2, torch.randn(20, 3), torch.randn(6, 3) - 1]
    theirs, mine, seen = nn.BatchNorm1d(3), nn.BatchNorm1d(3), 0
    theirs.reset_running_stats()
    for batch in batches:
        theirs.momentum = len(batch) / (seen + len(batch))
        theirs(batch)
        seen += len(batch)
    refresh_batchnorm(mine, lambda: batches)
    torch.testing.assert_close(mine.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
    mean = torch.cat(batches).mean(0)
    between = sum(len(batch) * (batch.mean(0) - mean) ** 2 for batch in batches)
    within = sum((len(batch) - 1) * batch.var(0) for batch in batches)
    torch.testing.assert_close(mine.running_var, (within + between) / 34)
    expected = sum(len(batch) * batch.var(0) for batch in batches) / 35
    torch.testing.assert_close(theirs.running_var, expected)


def test_batches_count_by_their_size():
    layer = nn.BatchNorm1d(1)
    refresh_batchnorm(layer, lambda: [torch.zeros(9, 1), torch.full((1, 1), 10.0)])
    assert layer.running_mean.item() == pytest.approx(1.0)
    assert layer.running_var.item() == pytest.approx(10.0)


def test_large_means_do_not_cancel():
    """In fp32, the mean of squares less the square of the mean would have no digit left."""
    data = 1e4 + torch.randn(1000, 1)
    layer = nn.BatchNorm1d(1)
    refresh_batchnorm(layer, lambda: data.split(100))
    assert layer.running_var.item() == pytest.approx(data.double().var().item(), rel=1e-5)


@pytest.mark.parametrize("layerwise", [False, True])
def test_nothing_else_changes(layerwise):
    module, data = network(), torch.randn(12, 2, 8, 8)
    module[1].eval()
    before, modes = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    refresh_batchnorm(module, lambda: data.split(4), layerwise=layerwise)
    assert [part.training for part in module.modules()] == modes
    assert all(layer.track_running_stats for layer in batchnorm_layers(module))
    for name, tensor in module.state_dict().items():
        if "running" not in name:
            assert torch.equal(tensor, before[name]), name
    assert not any(part._forward_pre_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("layerwise", [False, True])
def test_an_error_leaves_the_statistics_as_they_were(layerwise):
    module, data = network(), torch.randn(12, 2, 8, 8)
    module(data)
    before = copy.deepcopy(module.state_dict())
    passes = []

    def batches():
        passes.append(1)
        yield data
        if len(passes) == (4 if layerwise else 1):
            raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        refresh_batchnorm(module, batches, layerwise=layerwise)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_frozen_layers_are_left_out():
    module, data = network(), torch.randn(12, 2, 8, 8)
    assert refresh_batchnorm(module, lambda: [data], layers=[module[5]]) == 1
    assert torch.equal(module[1].running_mean, torch.zeros(4))
    assert not torch.equal(module[5].running_mean, torch.zeros(4))


def test_ranks_are_pooled():
    """Two ranks with half of the data each; ``reduce`` adds what the other one sent in the same call."""
    data = torch.randn(20, 3)
    whole = reference(nn.BatchNorm1d(3), data)
    halves = [data[:6], data[6:]]
    moments = [
        torch.cat([torch.tensor([len(h)]).double(), h.double().sum(0), h.double().var(0, correction=0) * len(h)])
        for h in halves
    ]
    pooled = data.double().mean(0)
    between = [len(h) * (h.double().mean(0) - pooled) ** 2 for h in halves]
    answers = iter([moments[1], between[1]])
    layer = nn.BatchNorm1d(3)
    refresh_batchnorm(layer, lambda: [halves[0]], ranks=Ranks(lambda tensor: tensor + next(answers)))
    assert_statistics(layer, whole)


def test_any_batch_goes_through_forward():
    layer = nn.BatchNorm1d(2)
    data = torch.randn(8, 2)
    refresh_batchnorm(layer, lambda: [{"x": data}], forward=lambda batch: layer(batch["x"]))
    torch.testing.assert_close(layer.running_mean, data.mean(0))


def test_rejects_no_batch_and_says_nothing_where_there_is_no_layer():
    with pytest.raises(ValueError, match="at least one batch"):
        refresh_batchnorm(nn.BatchNorm1d(2), list)
    assert refresh_batchnorm(nn.Linear(2, 2), list) == 0


def test_layers_that_no_pass_uses_are_not_blamed_on_the_data():
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.BatchNorm1d(2)})
    with pytest.raises(ValueError, match="it used none of 1 layers that keep statistics, which stay") as caught:
        refresh_batchnorm(net, lambda: [torch.ones(4, 2)], forward=net["used"])
    assert "loader" not in str(caught.value)
    assert torch.equal(net["unused"].running_var, torch.ones(2))


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_an_empty_batch_adds_nothing(empty):
    """As a head without proposals has it, in whichever place."""
    batches = [torch.rand(4, 3, 2, 2), torch.rand(2, 3, 2, 2)]
    layer, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    refresh_batchnorm(layer, lambda: batches)
    refresh_batchnorm(other, lambda: [*batches[:empty], torch.rand(0, 3, 2, 2), *batches[empty:]])
    assert torch.equal(layer.running_mean, other.running_mean)
    assert torch.equal(layer.running_var, other.running_var)
