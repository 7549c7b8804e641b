"""The loss of a module as a function of its weights: means, BatchNorm, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_robust.functional.state_loss import mean_loss, module_loss

SIZES = (7, 3, 5)


def judged(module, batch):
    return cross_entropy(module(batch[0]), batch[1], reduction="none")


def batches():
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator}
    return [(torch.randn(n, 6, **draw), torch.randint(4, (n,), **draw)) for n in SIZES]


def normalised():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_mean_is_over_samples_not_batches():
    module = nn.Linear(6, 4)
    every = [torch.cat(parts) for parts in zip(*batches(), strict=True)]
    expected = cross_entropy(module(every[0]), every[1]).item()
    assert mean_loss(module_loss(module, batches, judged), module.state_dict()) == pytest.approx(expected, rel=1e-6)
    # one number a batch: each batch counts alike
    alike = module_loss(module, batches, lambda m, b: cross_entropy(m(b[0]), b[1]))
    expected = sum(cross_entropy(module(x), y).item() for x, y in batches()) / len(SIZES)
    assert mean_loss(alike, module.state_dict()) == pytest.approx(expected, rel=1e-6)


def test_statistics_belong_to_the_weights():
    """One batch: with refreshed statistics it is normalised by its own mean and (n - 1) variance, whatever was kept."""
    module, (inputs, labels) = normalised(), batches()[0]
    module[1].running_mean.fill_(50.0)
    weights, affine, head = (dict(module[number].named_parameters()) for number in (0, 1, 4))
    hidden = inputs @ weights["weight"].T + weights["bias"]
    found = {}
    for correction in (0, 1):
        scaled = (hidden - hidden.mean(0)) / (hidden.var(0, correction=correction) + module[1].eps).sqrt()
        logits = (scaled * affine["weight"] + affine["bias"]).relu() @ head["weight"].T + head["bias"]
        found[correction] = cross_entropy(logits, labels).item()
    for batchnorm, correction in (("refresh", 1), ("batch", 0)):
        loss = module_loss(module, lambda: [(inputs, labels)], judged, batchnorm=batchnorm)
        assert mean_loss(loss, module.state_dict()) == pytest.approx(found[correction], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("batchnorm", ["refresh", "batch"])
def test_the_module_keeps_everything(batchnorm):
    module = normalised().train()
    before, modes = snapshot(module), [part.training for part in module.modules()]
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    kept = {name: tensor.clone() for name, tensor in other.items()}
    random = torch.get_rng_state()
    for state in (other, {name: other[name] for name in dict(module.named_parameters())}):
        mean_loss(module_loss(module, batches, judged, batchnorm=batchnorm), state)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())
    assert all(torch.equal(tensor, other[name]) for name, tensor in kept.items())
    assert modes == [part.training for part in module.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert module[1].track_running_stats


def test_tied_weights_move_together():
    layer = nn.Linear(3, 3, bias=False)
    twice = nn.Sequential(layer, layer)
    inputs = torch.randn(5, 3)
    loss = module_loss(twice, lambda: [inputs], lambda m, x: m(x).square().sum(1))
    new = torch.randn(3, 3)
    expected = (inputs @ new.T @ new.T).square().sum(1).mean().item()
    for state in ({"0.weight": new}, {"0.weight": new, "1.weight": new}):
        assert mean_loss(loss, state) == pytest.approx(expected, rel=1e-6)


def test_derivatives_reach_the_weights():
    module, (inputs, targets) = nn.Linear(6, 2), (torch.randn(9, 6), torch.randn(9, 2))
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in module.named_parameters()}
    loss = module_loss(module, lambda: [(inputs, targets)], lambda m, b: (m(b[0]) - b[1]).square().mean(1))
    (losses,) = loss(state)
    losses.mean().backward()
    mse_loss(module(inputs), targets).backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(state[name].grad, parameter.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"weight": torch.zeros(4, 5)}, r"Expected weight of shape \(4, 6\), as Linear has it, but got \(4, 5\)"),
        ({"wieght": torch.zeros(4, 6)}, "Expected names of tensors of Linear, but got 'wieght'.*weight"),
    ],
)
def test_rejects_other_weights(state, says):
    with pytest.raises(ValueError, match=says):
        mean_loss(module_loss(nn.Linear(6, 4), batches, judged), state)


@pytest.mark.parametrize("module", [nn.Linear(6, 4), normalised()], ids=["plain", "batchnorm"])
def test_rejects_data_that_is_not_there(module):
    with pytest.raises(ValueError, match=r"Expected batches to .* but got none"):
        mean_loss(module_loss(module, list, judged), module.state_dict())


def test_rejects_empty_batches_and_unknown_statistics():
    module = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="Expected samples in every batch, but batch 1 has none"):
        mean_loss(lambda state: [torch.ones(2), torch.ones(0)], {})
    with pytest.raises(ValueError, match="Expected `batchnorm` to be 'refresh' or 'batch', but got 'keep'"):
        module_loss(module, batches, judged, batchnorm="keep")
