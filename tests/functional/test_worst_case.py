"""The union of attacks: what each sees, what it costs, and closed forms on linear classifiers."""

import itertools
import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.apgd import apgd
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.worst_case import worst_loss, worst_prediction

cross_entropy = nn.functional.cross_entropy


class LinearClassifier:
    """Random weights, whose robustness is known: ``|w_y - w_i|`` in the dual norm times eps against the margin."""

    def __init__(self, classes, samples=60, seed=0):
        torch.manual_seed(seed)
        self.net, self.x = nn.Linear(12, classes), torch.rand(samples, 3, 2, 2)
        self.y = self.logits(self.x).argmax(1)
        self.y[:5] = (self.y[:5] + 1) % classes
        self.seen = []

    def logits(self, x, rows=None):
        return self.net(x.flatten(1))

    def counted(self, x, rows):
        self.seen.append((x.requires_grad, rows.tolist()))
        return self.logits(x)

    def slack(self, eps, norm):
        """How far the right class stays above each other one, at the least, ``(samples, classes)``."""
        w, logits = self.net.weight.detach(), self.logits(self.x).detach()
        gaps = w[self.y][:, None] - w[None]
        reach = gaps.abs().sum(2) if norm == "linf" else gaps.norm(dim=2)
        slack = logits.gather(1, self.y[:, None]) - logits - eps * reach
        return slack.scatter(1, self.y[:, None], math.inf)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3)])
def test_closed_form_on_a_linear_classifier(classes, norm, eps):
    """Exactly the samples fall that some corner of the ball brings across a border; too few classes for DLR too."""
    task = LinearClassifier(classes)
    found = worst_prediction(task.logits, task.x, task.y, eps, steps=30, queries=0, norm=norm)
    slack = task.slack(eps, norm).amin(1)
    certain = slack.abs() > 1e-3
    assert torch.equal(found.solved[certain], slack[certain] < 0)
    assert 0.05 < found.solved.float().mean() < 0.95
    assert torch.equal(task.logits(found.inputs).argmax(1) != task.y, found.solved)
    assert found.robust_share == pytest.approx(1 - found.solved.float().mean().item())
    assert found.found["no attack"] >= 5
    assert sum(found.found.values()) == found.solved.sum()


class Hidden(nn.Module):
    """A classifier that gives its logits in steps: no gradient leads anywhere."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))

    def forward(self, x):
        logits = self.net(x)
        return logits.round(decimals=2).detach() + 0 * logits


def test_square_finds_what_gradients_do_not():
    torch.manual_seed(2)
    net, x = Hidden(), torch.rand(40, 1, 6, 6)
    y = net(x).argmax(1)
    settings = {"steps": 5, "bounds": (0, 1), "generator": torch.Generator().manual_seed(0)}
    found = worst_prediction(lambda z, rows: net(z), x, y, 0.2, queries=200, **settings)
    assert found.found["APGD-CE"] < found.found["Square"]
    assert found.found["Square"] > 10
    assert found.record.zero_share > 0.9


def test_each_attack_sees_only_what_is_left():
    """Rows only leave; the passes recorded are those that were made, sample by sample."""
    task = LinearClassifier(5)
    record = AttackRecord()
    found = worst_prediction(task.counted, task.x, task.y, 0.06, steps=10, targets=2, queries=20, record=record)
    rows = [set(each) for _, each in task.seen]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rows))
    assert rows[0] == set(range(60))
    left = set(torch.nonzero(~found.solved).flatten().tolist())
    assert rows[-1] == left != set()
    assert found.record.forwards == record.forwards == sum(len(each) for each in rows)
    assert found.record.samples == sum(len(each) for graph, each in task.seen if graph)
    # one look, three ascents of ten gradients and a forward pass, twenty queries
    assert len(rows) == found.record.passes == 1 + 3 * 11 + 20
    everything = 60 * (1 + 3 * 21 + 20)
    assert found.record.forwards + found.record.samples < 0.8 * everything


def test_a_larger_radius_goes_on_from_a_smaller_one():
    task = LinearClassifier(5)
    small = worst_prediction(task.logits, task.x, task.y, 0.05, steps=10, queries=0)
    large = worst_prediction(task.logits, task.x, task.y, 0.1, steps=10, queries=0, start=small.inputs)
    assert (large.solved | ~small.solved).all()
    assert large.found["no attack"] == small.solved.sum()
    assert (task.logits(large.inputs).argmax(1) != task.y)[small.solved].all()


def test_what_withstands_ends_at_its_highest_cross_entropy():
    task = LinearClassifier(5)
    found = worst_prediction(task.logits, task.x, task.y, 0.05, steps=10)
    losses = [cross_entropy(task.logits(each), task.y, reduction="none") for each in (task.x, found.inputs)]
    withstood = ~found.solved
    assert (losses[1] > losses[0])[withstood].all()
    # the corner against the other classes' mean slope is where a linear classifier's cross entropy is highest
    assert ((found.inputs - task.x).abs().amax((1, 2, 3))[withstood] > 0.0499).all()


def test_a_radius_of_zero_moves_nothing():
    task = LinearClassifier(4)
    found = worst_prediction(task.logits, task.x, task.y, 0.0, steps=3, queries=3)
    assert torch.equal(found.inputs, task.x)
    assert found.solved.sum() == found.found["no attack"] == (task.logits(task.x).argmax(1) != task.y).sum()


def test_any_loss():
    """Each sample ends at the best of both attacks; with solved ones, where they were first."""
    torch.manual_seed(0)
    x, w = torch.rand(20, 1, 6, 6), torch.randn(1, 6, 6)

    def loss(z):
        return torch.sin(3 * (z * w).flatten(1).sum(1))

    settings = {"steps": 10, "queries": 50}
    found = worst_loss(loss, x, 0.2, generator=torch.Generator().manual_seed(0), **settings)
    alone = apgd(loss, x, 0.2, steps=10, generator=torch.Generator().manual_seed(0))
    assert (loss(found.inputs) >= loss(alone) - 1e-6).all()
    assert (loss(found.inputs) > 0.98).all()
    assert not found.solved.any()
    assert found.record.forwards == 20 * (1 + 2 * 11 + 50)
    stopped = worst_loss(lambda z, rows: (loss(z), loss(z) > 0.5), x, 0.2, drop_solved=True, **settings)
    assert stopped.solved.all()
    assert (loss(stopped.inputs) > 0.5).all()
    assert stopped.record.forwards < found.record.forwards / 5
    untouched = loss(x) > 0.5
    assert torch.equal(stopped.inputs[untouched], x[untouched])


def test_within_three_tenths_of_a_point_of_torchattacks_at_a_quarter_of_its_passes():
    """A small convolutional net, trained here, on 150 points; AutoAttack with half its queries, without FAB."""
    attacks = pytest.importorskip("torchattacks")
    net, x, y = trained_net()
    counted = Counted(net)
    found = worst_prediction(lambda z, rows: counted(z), x, y, 0.06, bounds=(0, 1))
    ours, counted.passes = counted.passes, 0
    assert found.record.forwards + found.record.samples == ours
    kind = {"norm": "Linf", "eps": 0.06, "seed": 0}
    pieces = [
        attacks.APGD(counted, steps=100, loss="ce", **kind),
        attacks.APGDT(counted, steps=100, n_classes=4, **kind),
        attacks.Square(counted, n_queries=2500, **kind),
    ]
    left = torch.nonzero(net(x).argmax(1) == y).flatten()
    for piece in pieces:
        left = left[net(piece(x[left], y[left])).argmax(1) == y[left]]
    assert 0.1 < found.robust_share < 0.9
    assert abs(found.robust_share - len(left) / len(x)) <= 0.003 + 1e-6
    assert ours <= counted.passes / 4


class Counted(nn.Module):
    """Counts samples forward and back."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x):
        self.passes += len(x)
        if x.requires_grad:
            x = x * 1
            x.register_hook(self.count)
        return self.net(x)

    def count(self, gradient):
        self.passes += len(gradient)


def trained_net():
    """Four kinds of bars in noise, 6 x 6, in a moment."""
    torch.manual_seed(0)
    y = torch.arange(150) % 4
    bars = torch.zeros(4, 1, 6, 6)
    bars[0, 0, 1], bars[1, 0, 4], bars[2, 0, :, 1], bars[3, 0, :, 4] = 0.15, 0.15, 0.15, 0.15
    x = 0.35 + 0.3 * torch.rand(150, 1, 6, 6) + bars[y]
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x, y


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": -1}, "`targets` and `queries` of at least 0"),
        ({"steps": 0}, "at least one step"),
        ({"eps": math.inf}, "`eps` to be finite"),
        ({"classes": torch.full((60,), 7)}, "classes from 0 to 3"),
    ],
)
def test_rejects_bad_arguments(settings, message):
    task = LinearClassifier(4)
    given = {"eps": 0.1, "classes": task.y} | settings
    with pytest.raises(ValueError, match=message):
        worst_prediction(task.logits, task.x, **given)
    with pytest.raises(ValueError, match="`restarts` of at least 1"):
        worst_loss(lambda z: z.flatten(1).sum(1), task.x, 0.1, restarts=0)
    with pytest.raises(ValueError, match="one loss for each of 60 samples"):
        worst_loss(lambda z: z.sum(), task.x, 0.1)
