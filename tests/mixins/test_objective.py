"""What all mixins share: the order of bases, the host's step, attacks and averages on one module."""

import itertools

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from lightning_robust import (
    AdversarialCallback,
    PreprocessingMixin,
    RegMixupMixin,
    RotationSSLMixin,
    SWACallback,
    UATMixin,
)
from lightning_robust.demo.fashion_mnist import RobustImageClassifier

from ..boring import Boring, Pictures, RobustBoring, make_trainer

MIXINS = (PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin)
ALL_ON = {
    "regmixup_weight": 1.0,
    "rotation_weight": 0.5,
    "uat_ot_weight": 1.0,
    "uat_steps": 2,
    "uat_eps": 0.1,
    "preprocessing_weight": 0.5,
    "preprocessing_groups": 2,
    "preprocessing_entries": ["gain_offset", "crop"],
}
ORDERS = [
    (*order[: place % 4], PreprocessingMixin, *order[place % 4 :])
    for place, order in enumerate(itertools.permutations(MIXINS[1:]))
]
"""Every order of three mixins, with the fourth at each place."""


class Host(Boring):
    """Some of its pictures have no label."""

    def features(self, images):
        return self.net[:4](images)

    def forward(self, images):
        return self.net[4:](self.features(images))

    def train_dataloader(self):
        pictures = Pictures(32)
        labels = torch.where(torch.arange(32) % 4 < 3, pictures.labels, -1)
        return DataLoader(TensorDataset(pictures.images, labels), 8)


class Robust(*MIXINS, Host):
    pass


def fit(tmp_path, module, callbacks=(), **settings):
    pl.seed_everything(1)
    trainer = make_trainer(tmp_path, callbacks, **({"max_epochs": 2} | settings))
    trainer.fit(module)
    return trainer, module


def built(cls, **settings):
    pl.seed_everything(0)
    return cls(**settings)


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: "-".join(c.__name__ for c in o))
def test_any_order_of_the_mixins_trains_the_same(tmp_path, order):

    class Still(Host):
        """Nothing in it depends on the order of forward passes."""

        def __init__(self):
            super().__init__()
            self.net[1], self.net[4] = nn.Identity(), nn.Identity()

    _, expected = fit(tmp_path, built(type("Usual", (*MIXINS, Still), {}), **ALL_ON))
    _, found = fit(tmp_path, built(type("Ordered", (*order, Still), {}), **ALL_ON))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_each_term_is_logged_and_moves_the_weights(tmp_path):
    trainer, _ = fit(tmp_path, built(Robust, **ALL_ON))
    assert {"regmixup/loss", "rotation/loss", "rotation/acc", "uat/ot", "uat/share", "train/loss"} <= set(
        trainer.callback_metrics
    )
    assert {"preprocessing/loss", "preprocessing/consistency"} <= set(trainer.callback_metrics)
    _, everything = fit(tmp_path, built(Robust, **ALL_ON))
    for name in ("preprocessing_weight", "regmixup_weight", "rotation_weight", "uat_ot_weight"):
        _, without = fit(tmp_path, built(Robust, **(ALL_ON | {name: 0.0, "uat_ft_weight": 1e-9})))
        assert not torch.equal(without.net[0].weight, everything.net[0].weight), name


@pytest.mark.parametrize(
    "bases", [(Boring, RegMixupMixin), (RegMixupMixin, Boring, UATMixin), (RegMixupMixin, pl.LightningModule)]
)
def test_an_order_that_leaves_a_mixin_without_effect_is_refused(bases):
    def training_step(self, batch, batch_idx):
        return None

    own = {} if Boring in bases else {"training_step": training_step}
    with pytest.raises(TypeError, match=r"Expected the mixins before the LightningModule .* hides them"):
        type("Bad", bases, own)


def test_a_class_on_top_may_add_to_the_step(tmp_path):
    class Longer(Robust):
        def training_step(self, batch, batch_idx):
            self.reached = True
            return super().training_step(batch, batch_idx)

    _, module = fit(tmp_path, built(Longer, **ALL_ON), max_epochs=1)
    assert module.reached


class Manual(Robust):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(
        MisconfigurationException, match="automatic optimisation with PreprocessingMixin and RegMixupMixin and Rotation"
    ):
        fit(tmp_path, Manual(regmixup_weight=1.0))
    for method in ("trades", "mart"):
        with pytest.raises(MisconfigurationException, match="trades and mart have a loss of their own"):
            fit(tmp_path, Robust(regmixup_weight=1.0), [AdversarialCallback(method, eps=0.1)])
    with pytest.raises(TypeError, match="regmixup_wait"):
        Robust(regmixup_wait=1.0)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_steps_of_any_form(tmp_path):
    """A host without batch_idx, one that returns a dict, one that leaves batches out."""

    class Form(Host):
        def train_dataloader(self):
            return DataLoader(Pictures(16), 8)

    class Short(Form):
        def training_step(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    class Dict(Form):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "index": batch_idx}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            assert outputs["index"] == batch_idx

    found = {}
    for host in (Form, Short, Dict):
        module = built(type("Mixed", (RegMixupMixin, host), {}), regmixup_weight=1.0)
        found[host] = fit(tmp_path, module)[1].net[0].weight
    assert torch.equal(found[Form], found[Dict])
    assert torch.equal(found[Form], found[Short])

    class Skips(Form):
        def training_step(self, batch, batch_idx):
            return None

    module = built(type("Mixed", (RegMixupMixin, Skips), {}), regmixup_weight=1.0)
    before = [p.clone() for p in module.parameters()]
    fit(tmp_path, module)
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_attacks_climb_the_hosts_own_loss(tmp_path):
    """With AdversarialCallback the clean term is that of attacked inputs, found on the host alone."""

    class Seen(Host):
        def __init__(self):
            super().__init__()
            self.net[1], self.net[4] = nn.Identity(), nn.Identity()
            type(self).inputs = []  # no quiet run puts it back there

        def train_dataloader(self):
            return DataLoader(Pictures(16), 16)

        def training_step(self, batch, batch_idx):
            if self.training:
                self.inputs.append(batch[0].detach().clone())
            return super().training_step(batch, batch_idx)

    class SeenRobust(RegMixupMixin, Seen):
        pass

    attack = {"eps": 0.1, "val_eps": [], "attack_precision": "32", "guard_every_n_steps": 0}
    _, plain = fit(tmp_path, built(Seen), [AdversarialCallback("fgsm", **attack)], max_epochs=1)
    _, mixed = fit(
        tmp_path, built(SeenRobust, regmixup_weight=1.0), [AdversarialCallback("fgsm", **attack)], max_epochs=1
    )
    assert torch.equal(plain.inputs[0], mixed.inputs[0])
    # the two losses of the mixture of attacked inputs
    assert len(mixed.inputs) == 3
    assert torch.equal(mixed.inputs[1], mixed.inputs[2])


def test_everything_at_once(tmp_path):
    """Attacks, averages and three mixins on two loaders; resumed in the middle of an epoch, bit for bit."""

    class Two(Host):
        def train_dataloader(self):
            # equal batches: these loaders cannot go on in the middle
            pictures = Pictures(16)
            labelled = TensorDataset(pictures.images[:8], pictures.labels[:8])
            unlabelled = TensorDataset(pictures.images[8:])
            return {
                "labelled": DataLoader(ConcatDataset([labelled] * 2), 8),
                "unlabelled": DataLoader(ConcatDataset([unlabelled] * 4), 8),
            }

        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(1000 + self.global_step)

    class RobustTwo(*MIXINS, Two):
        pass

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    def make():
        settings = ALL_ON | {"uat_ft_weight": 0.5, "uat_target_epochs": 1, "uat_unlabelled_key": "unlabelled.0"}
        attack = AdversarialCallback("fgsm_rs", eps=0.05, input_key="labelled.0", val_eps=[], guard_every_n_steps=2)
        average = SWACallback(start=0, every=1, input_key="labelled.0")
        return built(RobustTwo, **settings), [attack, average]

    module, callbacks = make()
    trainer, whole = fit(tmp_path, module, callbacks)
    logged = {"uat/ot", "uat/ft", "preprocessing/loss", "regmixup/loss", "rotation/loss", "adversarial/passes"}
    assert logged <= set(trainer.callback_metrics)
    module, callbacks = make()
    fit(tmp_path, module, [*callbacks, Save()], max_steps=6, max_epochs=-1)
    module, callbacks = make()
    pl.seed_everything(77)
    trainer = make_trainer(tmp_path, callbacks, max_epochs=2)
    with pytest.warns(UserWarning, match="ended before the epoch ended"):
        trainer.fit(module, ckpt_path=tmp_path / "stopped.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_yaml_reaches_every_argument_and_checkpoints_know_them(tmp_path):
    pictures = DataLoader(TensorDataset(torch.rand(16, 1, 28, 28), torch.arange(16) % 10), 8)
    module = built(RobustImageClassifier, regmixup_weight=0.5, rotation_weight=0.5, width=4)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, pictures, pictures)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = RobustImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert again.regmixup_weight == again.rotation_weight == 0.5
    assert again.hparams.width == 4
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize("how", ["whole", "in place"])
def test_a_module_that_is_compiled_as_a_whole_is_refused(tmp_path, how):
    module = built(Robust, **ALL_ON)
    if how == "in place":
        module.compile(backend="eager")
    compiled = torch.compile(module, backend="eager") if how == "whole" else module
    with pytest.raises(MisconfigurationException, match=r"not to be compiled as a whole.*module\.net\.compile\(\)"):
        fit(tmp_path, compiled)


def test_a_network_that_is_compiled_inside_trains_as_the_plain_one(tmp_path):
    trained = []
    for compiles in (False, True):
        module = built(Robust, **ALL_ON)
        if compiles:
            module.net.compile(backend="eager")
        trained.append(fit(tmp_path, module)[1].state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, msg=name)


def test_means_of_an_interrupted_epoch_are_not_those_of_the_next_fit(tmp_path):
    module = RobustBoring(regmixup_weight=1.0)
    module._means.add({"regmixup/loss": torch.tensor(1e6)}, 1000)
    make_trainer(tmp_path, max_epochs=1).fit(module)
    assert module.trainer.callback_metrics["regmixup/loss"] < 100
