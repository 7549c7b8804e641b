"""Rotation self-supervision: its loss by definition, the head, attacks on both losses, pictures from elsewhere."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialCallback, PreprocessingMixin, RegMixupMixin, RotationSSLMixin
from lightning_robust.demo.lanes import RobustLaneDetector
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.functional.rotation import rotate_each, rotate_quadrants
from lightning_robust.mixins.rotation_ssl.metric import OutOfDistributionAUROC

from ...boring import Boring, Pictures, make_trainer


class Host(Boring):
    """Without BatchNorm and dropout, whose results depend on what else is in a batch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classes = nn.Linear(24, 4)

    def features(self, images):
        return self.net(images)

    def forward(self, images):
        return self.classes(self.features(images))


class Turned(RotationSSLMixin, Host):
    def __init__(self, **settings):
        seed_everything(0)
        super().__init__(**settings)


def fit(tmp_path, module, callbacks=(), **settings):
    seed_everything(1)
    trainer = make_trainer(tmp_path, callbacks, **({"max_epochs": 1} | settings))
    trainer.fit(module)
    return trainer, module


def prepared(tmp_path, cls=Turned, **settings):
    """A module whose head is made, in training mode, and no Trainer."""
    module = cls(**settings)
    fit(tmp_path, module, max_epochs=0, limit_val_batches=0)
    module.train()
    module._trainer = None
    module.log = lambda *_, **__: None
    return module


@pytest.mark.parametrize("turns", ["one", "all"])
def test_loss_is_its_definition(tmp_path, turns):
    module = prepared(tmp_path, rotation_weight=0.5, rotation_turns=turns)
    x, y = Pictures(8).images, Pictures(8).labels
    if turns == "all":
        turned, labels = rotate_quadrants(x)
    else:
        labels = torch.randint(4, (8,), generator=module._generator(2))
        turned = rotate_each(x, labels)
    entropy = nn.functional.cross_entropy
    expected = entropy(module(x), y) + 0.5 * entropy(module.rotation_head(module.features(turned)), labels)
    assert module.training_step((x, y), 0).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("turns", "mixin", "expected"), [("all", False, 4), ("one", False, None), ("all", True, 5)])
def test_the_upright_copy_is_passed_through_once(tmp_path, turns, mixin, expected):
    """4 N pictures for four turns, N and those that are turned for one; with joint mixtures N more."""

    class Both(RegMixupMixin, Turned):
        pass

    module = prepared(
        tmp_path,
        Both if mixin else Turned,
        rotation_weight=0.5,
        rotation_turns=turns,
        **({"regmixup_weight": 1.0} if mixin else {}),
    )
    passed = []
    module.net.register_forward_hook(lambda _, args, __: passed.append(len(args[0])))
    module.training_step((Pictures(8).images, Pictures(8).labels), 0)
    turned = torch.randint(4, (8,), generator=module._generator(2)).count_nonzero().item()
    assert 0 < turned < 8
    assert sum(passed) == (8 + turned if expected is None else expected * 8)


def test_the_upright_pictures_are_the_clean_ones_where_a_pass_is_split(tmp_path):
    """From 32 pictures on PreprocessingMixin shares two passes, each with a half of the clean and of the other ones."""

    class Both(PreprocessingMixin, Turned):
        pass

    settings = {"preprocessing_weight": 1.0, "preprocessing_entries": ["bgr", "gamma"]}
    module = prepared(tmp_path, Both, rotation_weight=0.5, **settings)
    logged, x = {}, Pictures(32).images
    module._log_means = logged.update
    module.training_step((x, Pictures(32).labels), 0)
    labels = torch.randint(4, (32,), generator=module._generator(2))
    logits = module.rotation_head(module.features(rotate_each(x, labels)))
    assert logged["rotation/loss"].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)


def test_one_turned_picture_is_not_passed_alone(tmp_path, monkeypatch):
    """BatchNorm takes no batch of one vector."""

    class Normalised(Turned):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.net.append(nn.BatchNorm1d(24))

    module = prepared(tmp_path, Normalised, rotation_weight=0.5)
    x, turns = Pictures(3).images, torch.tensor([0, 2, 0])
    monkeypatch.setattr(module, "_turned", lambda images: (rotate_each(images, turns), turns))
    assert module.training_step((x, Pictures(3).labels), 0).isfinite()


def test_an_optimizer_without_the_head_trains_it_too(tmp_path):
    """As that of a LightningCLI, which is made before the head; a run goes on with its state."""

    class OfTheNet(Turned):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD([*self.net.parameters(), *self.classes.parameters()], 0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            self.head = pl_module.rotation_head.weight.detach().clone()

    looks = Looks()
    trainer, module = fit(tmp_path, OfTheNet(rotation_weight=0.5), [looks], max_epochs=2)
    assert not torch.equal(looks.head, module.rotation_head.weight)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = make_trainer(tmp_path, [looks], max_epochs=3)
    again.fit(OfTheNet(rotation_weight=0.5), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(looks.head, module.rotation_head.weight)
    assert len(again.optimizers[0].state) == 6


def test_the_head_is_sized_trained_saved_and_loaded(tmp_path):
    start = Turned(rotation_weight=0.5)
    assert not hasattr(start, "rotation_head")
    trainer, module = fit(tmp_path, start, max_epochs=3)
    assert module.rotation_head.in_features == 24
    groups = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert any(p is module.rotation_head.weight for p in groups)
    twin = Turned(rotation_weight=0.5)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin.rotation_head.bias, module.rotation_head.bias)
    # resumed, with the head made once
    _, resumed = fit(tmp_path, module, max_epochs=4)
    assert resumed.rotation_head.in_features == 24


def test_the_head_is_sized_where_the_weights_lie(tmp_path):
    """In `setup` Lightning names the device of the training, and moves the weights there only afterwards."""

    class Early(Turned):
        moved = False

        @property
        def device(self):
            return torch.device("cpu" if self.moved else "meta")

        def on_fit_start(self):
            self.moved = True

    _, module = fit(tmp_path, Early(rotation_weight=0.5, rotation_features="net.0"))
    assert module.rotation_head.weight.shape == (4, 6)


def test_without_weight_nothing_is_there(tmp_path):
    seed_everything(0)
    plain = fit(tmp_path, Host())[1]
    off = fit(tmp_path, Turned())[1]
    assert plain.state_dict().keys() == off.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, off.state_dict()[name])


def test_the_exported_graph_does_not_hold_the_head(tmp_path):
    module = prepared(tmp_path, rotation_weight=0.5)
    graph = export(frozen_copy(module), (Pictures(2).images,)).model.graph
    names = [tensor.name for tensor in graph.initializer]
    assert [name for name in names if name.startswith("module.")] == [
        f"module.{name}" for name in ("net.0.weight", "net.0.bias", "classes.weight", "classes.bias")
    ]


@pytest.mark.parametrize("path", ["net.1", "net"])
def test_features_of_a_named_module(tmp_path, path):
    """Maps are averaged over their places; the pass ends at the module."""
    module = prepared(tmp_path, rotation_weight=1.0, rotation_features=path, rotation_turns="all")
    reached = []
    module.classes.register_forward_hook(lambda *_: reached.append(1))
    x, y = Pictures(8).images, Pictures(8).labels
    turned, labels = rotate_quadrants(x)
    found = module.get_submodule(path)(turned) if path == "net" else module.net[:2](turned).mean((2, 3))
    entropy = nn.functional.cross_entropy
    expected = entropy(module.classes(module.net(x)), y) + entropy(module.rotation_head(found), labels)
    reached.clear()
    assert module.training_step((x, y), 0).item() == pytest.approx(expected.item(), abs=1e-6)
    assert len(reached) == 1


def test_pictures_that_are_not_square_on_the_lane_detector(tmp_path):
    for fit_to, side in (("crop", 64), ("pad", 96)):
        settings = {"height": 64, "width": 96, "channels": 8, "hidden": 16, "rotation_fit": fit_to}
        seed_everything(0)
        module = RobustLaneDetector(rotation_weight=0.5, **settings)
        images, columns = torch.rand(6, 3, 64, 96), torch.rand(6, 2, module.network.anchors) * 900
        seen = []
        module.network.coarse.register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0].shape[-1] * 8))
        trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
        loader = DataLoader(TensorDataset(images, columns), 6)
        trainer.fit(module, loader, loader)
        assert module.rotation_head.in_features == 24
        assert set(seen) == {96, side}
        assert trainer.callback_metrics["rotation/loss"] > 0


def test_attacks_climb_both_losses_in_training_and_one_in_validation(tmp_path):
    """The first attacked batch is FGSM on cross entropy + w rotation loss; robust validation is the host's."""

    class Seen(Turned):
        def __init__(self, **settings):
            super().__init__(**settings)
            type(self).inputs = []  # no quiet run puts it back there

        def training_step(self, batch, batch_idx):
            if self.training:
                self.inputs.append(batch[0].detach().clone())
            return super().training_step(batch, batch_idx)

    attack = {"eps": 0.1, "attack_precision": "32", "guard_every_n_steps": 0}
    module = Seen(rotation_weight=0.5, rotation_turns="all")
    fit(tmp_path, module, max_epochs=0, limit_val_batches=0)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fit(tmp_path, module, [AdversarialCallback("fgsm", val_eps=[], **attack)])
    reference = prepared(tmp_path, rotation_weight=0.5)
    reference.load_state_dict(start)
    images, labels = next(iter(module.train_dataloader()))
    x = images.clone().requires_grad_()
    turned, turns = rotate_quadrants(x)
    entropy = nn.functional.cross_entropy
    (entropy(reference(x), labels) + 0.5 * entropy(reference.turn_logits(turned), turns)).backward()
    expected = (images + 0.1 * x.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(module.inputs[0], expected, rtol=0, atol=1e-6)

    found = {}
    for weight in (0.0, 5.0):
        module.rotation_weight = weight
        callback = AdversarialCallback("fgsm", val_eps=[0.1], val_steps=3, **attack)
        (found[weight],) = make_trainer(tmp_path, [callback]).validate(module, verbose=False)
    assert found[0.0]["adversarial/val_loss@0.1"] == found[5.0]["adversarial/val_loss@0.1"]


def test_pictures_from_elsewhere_are_told_apart(tmp_path):
    """Training pictures are bright at one corner; blurred noise is not, and its turns cannot be told."""

    class Corners(Turned):
        def _pictures(self, count, seed):
            generator = torch.Generator().manual_seed(seed)
            images = 0.1 * torch.rand(count, 3, 8, 8, generator=generator)
            images[:, :, :4, :4] += 0.7
            return DataLoader(TensorDataset(images, torch.arange(count) % 4), 16)

        def train_dataloader(self):
            return self._pictures(256, 0)

        def val_dataloader(self):
            noise = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(5))
            return [self._pictures(64, 1), DataLoader(TensorDataset(noise, torch.zeros(64, dtype=torch.long)), 16)]

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    module = Corners(rotation_weight=1.0, rotation_ood_loader=1)
    trainer, _ = fit(tmp_path, module, max_epochs=4)
    assert float(trainer.callback_metrics["rotation/ood_auroc"]) > 0.95
    assert trainer.callback_metrics["rotation/acc"] > 0.9


def test_auroc_counts_pairs():
    """The share of pairs in the right order, ties by half; scores of any size."""
    generator = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(40, generator=generator) * 100, torch.randn(30, generator=generator) * 100 + 80
    outside[:5] = inside[:5]
    metric = OutOfDistributionAUROC()
    metric.update(inside[:7], False)
    assert torch.isnan(metric.compute())
    metric.update(outside, True)
    metric.update(inside[7:], False)
    gap = outside[:, None] - inside[None]
    expected = ((gap > 0).float() + 0.5 * (gap == 0).float()).mean()
    assert metric.compute().item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rotation_weight": -0.5}, "`rotation_weight` of at least 0"),
        ({"rotation_turns": "two"}, "'one' or 'all'"),
        ({"rotation_fit": "stretch"}, "'crop' or 'pad'"),
    ],
)
def test_rejects_bad_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Turned(**settings)


def test_features_that_are_not_there_are_named(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"rotation_features='nett', .* Near are \['net'"):
        fit(tmp_path, Turned(rotation_weight=0.5, rotation_features="nett"))

    class NoFeatures(RotationSSLMixin, Boring):
        pass

    with pytest.raises(MisconfigurationException, match=r"a method `features\(inputs\)` on NoFeatures"):
        fit(tmp_path, NoFeatures(rotation_weight=0.5))

    class Volumes(Turned):
        def features(self, images):
            return images[..., None]

    with pytest.raises(
        ValueError, match=r"features \(N, F\), tokens .* or maps \(N, F, H, W\) .* got \(2, 3, 8, 8, 1\)"
    ):
        fit(tmp_path, Volumes(rotation_weight=0.5))
