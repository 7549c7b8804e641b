"""RegMixup against a few lines of independent code, for any criterion."""

from typing import ClassVar

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import RegMixupMixin
from lightning_robust.demo.lanes import RobustLaneDetector
from lightning_robust.functional.mixing import regmixup_batch

from ...boring import Boring, Pictures, make_trainer


class Plain(Boring):
    """Without dropout, so that a second pass gives the same."""

    def __init__(self):
        super().__init__()
        self.net[4] = nn.Identity()


class Mixed(RegMixupMixin, Plain):
    def __init__(self, **settings):
        seed_everything(0)
        super().__init__(**settings)


def batch(count=8):
    return Pictures(count).images, Pictures(count).labels


def mixture(module, inputs, targets, **settings):
    return regmixup_batch(inputs, targets, module.regmixup_alpha, module._generator(1), **settings)


def step(module, given):
    module.train()
    module.log = lambda *_, **__: None
    return module.training_step(given, 0)


def test_is_twice_the_loss_of_the_authors_code():
    """One pass over clean and mixed inputs, lambda CE(y, y_a) + (1 - lambda) CE(y, y_b), the mean over both halves."""
    module = Mixed(regmixup_weight=1.0)
    x, y = batch()
    mixed, _, other, share = mixture(module, x, y)
    logits = Mixed().train()(torch.cat([x, mixed]))
    labels = [torch.cat([y, y]), torch.cat([y, other])]
    each = [nn.functional.cross_entropy(logits, label, reduction="none") for label in labels]
    shares = torch.cat([torch.ones(8), torch.full((8,), share)])
    expected = 2 * (shares * each[0] + (1 - shares) * each[1]).mean()
    assert step(module, (x, y)).item() == pytest.approx(expected.item(), abs=2e-6)


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_paper_is_a_sum_of_two_means(forward):
    module = Mixed(regmixup_weight=0.7, regmixup_forward=forward)
    x, y = batch()
    mixed, _, other, share = mixture(module, x, y)
    twin = Mixed().train()
    clean, moved = twin(torch.cat([x, mixed])).chunk(2) if forward == "joint" else (twin(x), twin(mixed))
    loss = nn.functional.cross_entropy
    expected = loss(clean, y) + 0.7 * (share * loss(moved, y) + (1 - share) * loss(moved, other))
    assert step(module, (x, y)).item() == pytest.approx(expected.item(), abs=1e-6)
    # BatchNorm has seen what the forward passes say
    torch.testing.assert_close(module.net[1].running_mean, twin.net[1].running_mean)
    assert module.net[1].num_batches_tracked == (1 if forward == "joint" else 2)


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_a_step_is_two_passes(forward):
    passed = []
    module = Mixed(regmixup_weight=1.0, regmixup_forward=forward)
    module.net.register_forward_hook(lambda _, args, __: passed.append(len(args[0])))
    step(module, batch())
    assert passed == ([16] if forward == "joint" else [8, 8])


def test_a_host_that_changes_its_inputs_gets_its_own_passes():
    """What is not the batch's very inputs is never taken for them."""

    class Augments(Plain):
        def training_step(self, given, batch_idx):
            return nn.functional.cross_entropy(self(given[0].flip(3)), given[1])

    class MixedAugments(RegMixupMixin, Augments):
        pass

    seed_everything(0)
    module = MixedAugments(regmixup_weight=1.0)
    x, y = batch()
    mixed, _, other, share = mixture(module, x, y)
    twin, loss = Mixed().train(), nn.functional.cross_entropy
    moved = twin(mixed.flip(3))
    expected = loss(twin(x.flip(3)), y) + share * loss(moved, y) + (1 - share) * loss(moved, other)
    with pytest.warns(UserWarning, match="each loss takes a pass of its own"):
        found = step(module, (x, y))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_host_that_passes_its_inputs_twice_gets_two_passes():
    """As R-Drop does, whose loss compares two dropout masks; each loss of a mixture sees the same two passes."""

    class Twice(Boring):
        def training_step(self, given, batch_idx):
            one, two = self(given[0]), self(given[0])
            self.gaps.append((one - two).abs().max().item())
            return nn.functional.cross_entropy(one, given[1]) + nn.functional.cross_entropy(two, given[1])

    class MixedTwice(RegMixupMixin, Twice):
        gaps: ClassVar = []

    for forward in ("joint", "separate"):
        passed = []
        module = MixedTwice(regmixup_weight=1.0, regmixup_forward=forward)
        module.net[4].p = 0.5
        module.net.register_forward_hook(lambda _, args, __, passed=passed: passed.append(len(args[0])))
        module.gaps.clear()
        step(module, batch())
        assert min(module.gaps) > 0
        # both losses of the mixture are of the same two passes
        assert module.gaps[1] == module.gaps[2] != module.gaps[0]
        assert sum(passed) == 32


@pytest.mark.parametrize("kind", ["soft", "smoothed", "multilabel", "regression"])
def test_any_criterion(kind):
    criterion = {
        "soft": nn.functional.cross_entropy,
        "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
        "multilabel": nn.functional.binary_cross_entropy_with_logits,
        "regression": nn.functional.smooth_l1_loss,
    }[kind]
    x, y = batch()
    y = {
        "soft": torch.rand(8, 4).softmax(1),
        "smoothed": y,
        "multilabel": torch.rand(8, 4).round(),
        "regression": torch.randn(8, 4),
    }[kind]

    class Host(Plain):
        def training_step(self, given, batch_idx):
            return criterion(self(given[0]), given[1])

    class MixedHost(RegMixupMixin, Host):
        pass

    seed_everything(0)
    module = MixedHost(regmixup_weight=1.0)
    mixed, _, other, share = mixture(module, x, y)
    clean, moved = Mixed().train()(torch.cat([x, mixed])).chunk(2)
    expected = criterion(clean, y) + share * criterion(moved, y) + (1 - share) * criterion(moved, other)
    assert step(module, (x, y)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_lane_detector():
    """Losses over cells, with lines that are absent."""
    seed_everything(0)
    module = RobustLaneDetector(height=64, width=64, channels=8, hidden=16, regmixup_weight=1.0)
    x = torch.rand(4, 3, 64, 64)
    columns = torch.rand(4, 2, module.network.anchors) * 900
    columns[1, 0] = torch.nan
    mixed, _, other, share = mixture(module, x, columns)
    twin = RobustLaneDetector(height=64, width=64, channels=8, hidden=16)
    twin.load_state_dict(module.state_dict())
    clean, moved = twin.train().logits(torch.cat([x, mixed])).chunk(2)
    expected = twin.loss(clean, columns) + share * twin.loss(moved, columns) + (1 - share) * twin.loss(moved, other)
    assert step(module, (x, columns)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_hosts_metrics_are_of_clean_inputs(tmp_path):
    """The first step's train/loss is that of plain training; the mixture's is beside it."""
    found = {}
    for settings in ({}, {"regmixup_weight": 1.0, "regmixup_forward": "separate"}):
        trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
        trainer.fit(Mixed(**settings))
        found[len(settings)] = trainer.callback_metrics
    assert torch.equal(found[0]["train/loss"], found[2]["train/loss"])
    assert found[2]["regmixup/loss"] > 0
    assert "regmixup/loss" not in found[0]


def test_a_batch_of_one_is_mixed_with_itself():
    module, (x, y) = Mixed(regmixup_weight=1.0), batch(1)
    twin = Mixed().train()
    expected = 2 * nn.functional.cross_entropy(twin(torch.cat([x, x])), torch.cat([y, y]))
    assert step(module, (x, y)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_ranks_and_steps_draw_differently(tmp_path):
    module = Mixed(regmixup_weight=1.0)
    shares = []

    class Look(Mixed):
        def _mixture_loss(self, step, mixture):
            shares.append(mixture[3])
            return super()._mixture_loss(step, mixture)

    make_trainer(tmp_path, max_epochs=1).fit(Look(regmixup_weight=1.0))
    assert len(set(shares)) == 4
    seeds = {module._generator(stream).initial_seed() for stream in range(5)}
    assert len(seeds) == 5


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"regmixup_weight": -1.0}, "`regmixup_weight` of at least 0"),
        ({"regmixup_weight": float("nan")}, "`regmixup_weight` of at least 0"),
        ({"regmixup_alpha": 0.0}, "`regmixup_alpha` to be positive"),
        ({"regmixup_forward": "both"}, "'joint' or 'separate'"),
    ],
)
def test_rejects_bad_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Mixed(**settings)


def test_targets_that_cannot_be_mixed_are_named(tmp_path):
    x, y = batch()
    with pytest.raises(TypeError, match=r"target_key=1, but got a dict with \['boxes'\]\. Set `target_key`"):
        step(Mixed(regmixup_weight=1.0), (x, {"boxes": y}))
    with pytest.raises(TypeError, match=r"for each of 8 samples at target_key=1, but got shape \(3,\)"):
        step(Mixed(regmixup_weight=1.0), (x, y[:3]))
    with pytest.raises(TypeError, match="a tensor at input_key=0, but got list"):
        step(Mixed(regmixup_weight=1.0), ([x], y))


def test_improves_what_it_is_for_on_little_data(tmp_path):
    """Confidence on noise is lower than that of plain training."""
    found = {}
    for weight in (0.0, 1.0):
        seed_everything(0)
        module = Mixed(regmixup_weight=weight)
        loader = DataLoader(TensorDataset(*batch(64)), 16, shuffle=True)
        make_trainer(tmp_path, max_epochs=15).fit(module, loader)
        noise = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found[weight] = module.eval()(noise).softmax(1).amax(1).mean().item()
    assert found[1.0] < found[0.0] - 0.02
