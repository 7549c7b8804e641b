"""Restarts with a loss of the whole batch, solved samples, counts and how often the host waits for them."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.attacks import fgsm, nfgsm, pgd

cross_entropy = nn.functional.cross_entropy


class Toy:
    """A classifier of 150 points with many hills in its loss, trained in a moment."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.seed, self.points = seed, torch.rand(150, 20)
        self.classes = (torch.sin(9 * self.points[:, :3]).sum(1) > 0).long()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 2))
        self.net[0].weight.data *= 4
        optimizer = torch.optim.Adam(self.net.parameters(), 0.01)
        for _ in range(200):
            optimizer.zero_grad()
            cross_entropy(self.net(self.points), self.classes).backward()
            optimizer.step()

    def scalar(self, points, rows=slice(None)):
        return cross_entropy(self.net(points), self.classes[rows]) * len(points)

    def each(self, points, rows=slice(None)):
        return cross_entropy(self.net(points), self.classes[rows], reduction="none")

    def one_by_one(self, points, rows):
        return torch.cat([self.scalar(one, row)[None] for one, row in zip(points.split(1), rows.split(1), strict=True)])

    def with_solved(self, loss):
        return lambda points, rows: (loss(points, rows), self.net(points).argmax(1) != self.classes[rows])

    def robust(self, loss, restarts, **settings):
        generator = torch.Generator().manual_seed(self.seed)
        attacked = pgd(loss, self.points, 0.06, steps=2, restarts=restarts, generator=generator, **settings)
        return (self.net(attacked).argmax(1) == self.classes).float().mean().item()


def test_restarts_with_a_scalar_loss_are_worth_those_with_a_loss_for_each():
    """Five seeds: the same accuracies at 1, 5 and 20 restarts, by single rows or by leaving out what is solved."""
    found = {}
    for seed in range(5):
        toy = Toy(seed)
        forms = {
            "each": (toy.each, {}),
            "by rows": (toy.scalar, {"row_losses": toy.one_by_one}),
            "solved": (toy.with_solved(toy.scalar), {"drop_solved": True}),
            "batch": (toy.scalar, {}),
        }
        for name, (loss, settings) in forms.items():
            found[name, seed] = [toy.robust(loss, restarts, **settings) for restarts in (1, 5, 20)]
    for seed in range(5):
        assert found["by rows", seed] == pytest.approx(found["each", seed], abs=1 / 150 + 1e-6)
        assert found["solved", seed] == pytest.approx(found["each", seed], abs=1 / 150 + 1e-6)
        assert found["each", seed] == sorted(found["each", seed], reverse=True)
    gain = {name: sum(found[name, seed][0] - found[name, seed][2] for seed in range(5)) / 5 for name in forms}
    assert gain["by rows"] > max(0.02, 3 * gain["batch"])


@pytest.mark.parametrize("losses", ["weighted", "none", "not a number"])
def test_rows_that_do_not_add_up_to_the_batch_are_not_believed(losses):
    toy = Toy(0)
    weights = torch.tensor([1.0, 5.0])

    def weighted(points, rows=slice(None)):
        return cross_entropy(toy.net(points), toy.classes[rows], weights) * len(points)

    def row_losses(points, rows):
        each = toy.each(points, rows)
        return None if losses == "none" else each * float("nan") if losses == "not a number" else each

    record = AttackRecord()
    batch = toy.robust(weighted, 3)
    assert toy.robust(weighted, 3, row_losses=row_losses, record=record) == batch
    assert record.compared_by_batch == 3


def test_what_a_restart_has_solved_no_other_undoes():
    """The loss of a solved sample is low at its point; random points of later restarts would have a higher one."""
    x = torch.zeros(50, 1)
    calls = []

    def loss(points, rows):
        calls.append(len(rows))
        return points.sum(), points[:, 0] < 0

    first = torch.where(torch.arange(50) % 2 == 0, -0.5, 0.5)[:, None]
    found = pgd(loss, x, 1.0, steps=3, step_size=0.01, start=first, restarts=4, drop_solved=True)
    assert torch.equal(found[::2], first[::2])
    # the 25 solved samples are neither attacked nor compared again: 3 steps and a comparison of the other half
    assert calls[:4] == [50, 25, 25, 50]
    assert max(calls[4:]) == 25


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a tensor; ``tolist`` is no operator."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, to_list = 0, torch.Tensor.tolist

        def tolist(tensor):
            self.count += 1
            return to_list(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
        self.count += func.name() in waiting
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("eps", [0.1, torch.full((1, 1), 0.1)])
def test_the_host_waits_three_times_at_most(monkeypatch, eps):
    """PGD-10 asks the device for the range of the inputs, the sign of a radius that is a tensor, and the counts."""
    net, x, waits, record = nn.Linear(5, 1), torch.rand(8, 5), Waits(monkeypatch), AttackRecord()
    with waits:
        pgd(lambda z: net(z).sum(1), x, eps, steps=10, bounds=(0, 1), record=record)
    assert waits.count == (3 if isinstance(eps, torch.Tensor) else 2)
    assert (record.passes, record.samples) == (10, 80)
    waits.count = 0
    with waits:
        fgsm(lambda z: net(z).sum(1), x, 0.1, step_size=0.125, bounds=(0, 1), random_start=True)
    assert waits.count == 2
    waits.count = 0
    with waits:
        nfgsm(lambda z: net(z).sum(1), x, 0.1, bounds=(0, 1))
    assert waits.count == 3
