import itertools
import threading

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score

from lightning_robust.harness.memory import ModuleMemory, require_reversible, untouched

from .keeper import Keeper


def keeper():
    """Without a Trainer, which logs."""
    module = Keeper()
    module.log = lambda *_, **__: None
    return module


def batch_of(module):
    return next(iter(module.train_dataloader()))


def test_a_step_leaves_nothing_behind():
    """Every kind of memory, after three training steps in the block, the first of them in training mode."""
    module = keeper()
    batch = batch_of(module)
    module.training_step(batch, 0)
    module.validation_step(batch, 0)
    module.eval()
    before, objects = module.remembered(), [id(module.losses), id(module.nested), id(module.queue), id(module.mse)]
    with untouched(module):
        for index in range(3):
            module.training_step(batch, index)
        inside = module.remembered()
    assert module.remembered() == before
    assert [id(module.losses), id(module.nested), id(module.queue), id(module.mse)] == objects
    assert all(inside[name] != before[name] for name in before.keys() - {"outputs", "statistics"})


def test_an_error_inside_leaves_nothing_behind_either():
    module = keeper().eval()
    before = module.remembered()

    @untouched(module)
    def fail():
        module.training_step(batch_of(module), 0)
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        fail()
    assert module.remembered() == before


def test_metrics_are_empty_inside_and_never_copied():
    """Of 4,000 gathered updates not one tensor is cloned, nor is a state with a graph, which cannot be."""

    class Metered(nn.Module):
        def __init__(self):
            super().__init__()
            self.auroc, self.mean = BinaryAUROC(), MeanMetric()
            self.several = MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)])

    module = Metered()
    for _ in range(4000):
        module.auroc.update(torch.rand(2), torch.tensor([0, 1]))
    weight = torch.ones(1, requires_grad=True)
    module.mean.update(weight * 2)
    logits, labels = torch.eye(3), torch.arange(3)
    module.several.update(logits, labels)
    module.several.update(logits.roll(1, 0), labels)
    states, computed = list(module.auroc.preds), {k: float(v) for k, v in module.several.compute().items()}
    with untouched(module):
        assert module.auroc.preds == []
        module.auroc.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
        module.mean.update(7.0)
        module.several.update(logits, labels)
        assert float(module.auroc.compute()) == 1.0
        assert float(module.mean.compute()) == 7.0
        assert set(map(float, module.several.compute().values())) == {1.0}
    assert len(module.auroc.preds) == 4000
    assert all(now is then for now, then in zip(module.auroc.preds, states, strict=True))
    assert float(module.mean.compute().detach()) == 2.0
    assert {k: float(v) for k, v in module.several.compute().items()} == computed


def test_a_block_can_begin_with_an_earlier_memory():
    module = keeper()
    since = ModuleMemory(module)
    module.validation_step(batch_of(module), 0)
    with untouched(module, since=since):
        assert module.outputs == []
        assert module.total == 0
        module.validation_step(batch_of(module), 0)
        assert module.total == 16
    assert len(module.outputs) == 1
    assert module.total == 16


def test_attributes_made_inside_are_gone_and_those_deleted_are_back():
    module = nn.Module()
    module.kept = [1]
    with untouched(module):
        module.made = 3
        module.register_buffer("later", torch.ones(1))
        module.layer = nn.Linear(2, 2)
        del module.kept
    assert module.kept == [1]
    assert not any(hasattr(module, name) for name in ("made", "later", "layer"))


def test_hooks_that_a_first_pass_installs_are_not_installed_twice():
    """As networks of transformers do, which note on the module that they have: note and hook go together."""

    class Capturing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.installed, self.captured = nn.Linear(1, 1), False, []

        def forward(self, x):
            self.captured.clear()
            if not self.installed:
                self.layer.register_forward_hook(lambda *_: self.captured.append(1))
                self.installed = True
            return self.layer(x)

    module = Capturing()
    with untouched(module):
        module(torch.zeros(1, 1))
    assert not module.installed
    module(torch.zeros(1, 1))
    with untouched(module):
        module(torch.zeros(1, 1))
    module(torch.zeros(1, 1))
    assert module.captured == [1]


def test_statistics_move_in_training_mode():
    """A mixin's further loss is a part of training: only the host's own records are put back."""
    module = keeper().train()
    before = module.net[1].running_mean.clone()
    with untouched(module):
        module.training_step(batch_of(module), 0)
    assert not torch.equal(module.net[1].running_mean, before)
    assert module.steps == 0


@pytest.mark.parametrize(
    "value",
    [iter([1, 2]), (i for i in range(3)), itertools.count(), [itertools.cycle([1])]],
    ids=["iterator", "generator", "count", "in a list"],
)
def test_rejects_what_only_goes_forward(value):
    module = Keeper()
    module.stream = value
    with pytest.raises(MisconfigurationException, match=r"`Keeper\.stream.*only goes forward. Keep it outside"):
        require_reversible(module)


def test_rejects_an_open_file(tmp_path):
    module = Keeper()
    with (tmp_path / "log.txt").open("w") as module.file, pytest.raises(MisconfigurationException, match="TextIO"):
        require_reversible(module)


def test_long_lists_are_not_copied_and_must_not_be_changed_in_place():
    module = nn.Module()
    module.bank = [torch.zeros(1) for _ in range(100)]
    first = module.bank[0]
    with untouched(module):
        module.bank[0] = torch.ones(1)
        module.bank.append(torch.ones(1))
    assert module.bank[0] is first
    assert len(module.bank) == 100
    with (
        pytest.raises(RuntimeError, match=r"Expected Module.bank\[3\] to stay.*Keep it as a buffer"),
        untouched(module),
    ):
        module.bank[3] += 1


def test_objects_with_a_life_of_their_own_are_left_alone():
    """Data sets, callbacks, and objects that hold more than data, as loggers do."""

    class Words(Dataset):
        position = 0

    class Run:
        def __init__(self):
            self.lock, self.sent = threading.Lock(), [1]

    class Watch(pl.Callback):
        seen = 0

    module = nn.Module()
    module.words, module.run, module.watch = Words(), Run(), Watch()
    with untouched(module):
        module.words.position = module.watch.seen = 5
        module.run.sent.append(1)
    assert (module.words.position, module.watch.seen, len(module.run.sent)) == (5, 5, 2)


def test_aliases_stay_aliases():
    """Two names of one tensor are one tensor inside, too."""
    module = nn.Module()
    module.count = torch.zeros(1)
    module.shared = {"count": module.count}
    with untouched(module):
        module.count += 1
        assert float(module.shared["count"]) == 1.0
    assert float(module.count) == 0.0
    assert module.shared["count"] is module.count


def test_weights_that_a_step_moves_later_are_found_in_a_new_period():
    """The teacher begins to move in the second epoch."""
    module = nn.Linear(2, 2)
    for period in (0, 1):
        before = module.weight.detach().clone()
        for _ in range(2):
            with untouched(module, period):
                if period == 1:
                    module.weight.data.mul_(2)
            assert torch.equal(module.weight, before)
