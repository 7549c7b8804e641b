from types import SimpleNamespace

import pytest
import torch

from lightning_robust.callbacks.averaging.learning_rate import CyclicRate


def test_closed_form():
    """A cycle of n steps begins high, ends low with the snapshot, and falls by equal amounts between."""
    rate = CyclicRate([0.07, 0.01])
    assert [rate.at(step, 4) for step in range(6)] == pytest.approx([0.07, 0.05, 0.03, 0.01, 0.01, 0.01])
    assert rate.at(0, 1) == 0.07
    assert [CyclicRate(0.05).at(step, 4) for step in range(4)] == [0.05] * 4


@pytest.mark.parametrize("lr", [-0.1, [0.1], [0.1, 0.2, 0.3], [0.1, -0.2]])
def test_rejects_other_rates(lr):
    with pytest.raises(ValueError, match=r"Expected `lr`"):
        CyclicRate(lr)


def test_a_group_that_comes_later_or_begins_at_zero_keeps_its_own_ratio():
    """A warm-up from 0 counts by the rate that it rises to; a group added in the run by the rate that it comes with."""
    weights = [torch.zeros(1, requires_grad=True) for _ in range(4)]
    groups = [{"params": [weights[0]], "lr": 0.0}, {"params": [weights[1]], "lr": 0.1}]
    optimizer = torch.optim.SGD([{**group, "initial_lr": 0.4} if group["lr"] == 0 else group for group in groups])
    trainer = SimpleNamespace(optimizers=[optimizer])
    average = SimpleNamespace(steps_since_update=lambda _: 0, cycle=lambda _: 4)
    rate = CyclicRate([0.8, 0.0])
    rate.apply(trainer, average)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.8, 0.2])
    optimizer.add_param_group({"params": [weights[2]], "lr": 0.04})
    rate.apply(trainer, average)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.8, 0.2, 0.08])
    frozen = torch.optim.SGD([{"params": [weights[3]], "lr": 0.0}])
    CyclicRate(0.5).apply(SimpleNamespace(optimizers=[frozen]), average)
    assert frozen.param_groups[0]["lr"] == 0.5
