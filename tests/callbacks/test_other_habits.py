"""Modules that train, freeze or gather their batches in their own ways: refused by name, or as right as any other."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from lightning_robust import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    InitialiseCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust.harness.trainers import NoEffectWarning

from ..boring import Boring, Manual, ManualWithLoss, Pictures, make_trainer

ATTACKS = {
    "robust validation": lambda: RobustValidationCallback("8/255", steps=2),
    "adversarial": lambda: AdversarialCallback(eps="8/255"),
    "datapath": lambda: DatapathCallback(["pgd"]),
    "criticality": lambda: LayerCriticalityCallback("val/loss", "min", under=["fgsm"]),
}


def trained(folder, module, *callbacks, **settings):
    pl.seed_everything(0, verbose=False)
    module = module()
    trainer = make_trainer(folder, callbacks, **settings)
    trainer.fit(module)
    return trainer, module


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_step_that_trains_is_not_run_to_attack(tmp_path, name):
    """Manual optimisation without a loss beside it is refused before the first batch."""
    with pytest.raises(MisconfigurationException, match="Expected a method `attack_loss"):
        trained(tmp_path, Manual, ATTACKS[name]())


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "adversarial"])
def test_with_a_loss_beside_the_step_training_is_as_without(tmp_path, name):
    _, plain = trained(tmp_path, ManualWithLoss)
    trainer, module = trained(tmp_path, ManualWithLoss, ATTACKS[name]())
    assert equal(plain, module)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**8)


def test_lazy_training_measures_what_needs_no_loss(tmp_path):
    """The movement; the effect of attacks needs one, and the training is as without."""
    _, plain = trained(tmp_path, Manual)
    lazy = LazyTrainingCallback(num_samples=8)
    with pytest.warns(UserWarning, match="attack_loss"):
        trainer, module = trained(tmp_path, Manual, lazy)
    assert equal(plain, module)
    assert trainer.callback_metrics["lazy/movement"] > 0
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**8)


class Detector(Boring):
    """Takes pictures one by one, as torchvision's detectors do."""

    whole = False

    def forward(self, images):
        return super().forward(torch.stack(list(images)))

    def _loss(self, batch):
        images, targets = zip(*batch, strict=True) if self.whole else batch
        return nn.functional.cross_entropy(self(images), torch.stack([target["label"] for target in targets]))

    def _loader(self, pictures):
        def collate(samples):
            pairs = [(image, {"label": label}) for image, label in samples]
            return pairs if self.whole else tuple(zip(*pairs, strict=True))

        return DataLoader(pictures, 16, collate_fn=collate)


class DetectorOfPairs(Detector):
    """A list with a picture and its target for each."""

    whole = True


@pytest.mark.parametrize("module", [Detector, DetectorOfPairs])
@pytest.mark.parametrize("name", ["adversarial", "robust validation"])
def test_pictures_one_by_one_are_not_attacked_in_part(tmp_path, module, name):
    """They were, the first of each batch alone."""
    with pytest.raises(MisconfigurationException, match=r"in one tensor \(N, C, H, W\), but got a list of 16"):
        trained(tmp_path, module, ATTACKS[name](), num_sanity_val_steps=1)


class Thawing(Boring):
    """The first epoch with a frozen backbone."""

    thaws = 1

    def on_train_epoch_start(self):
        frozen = self.current_epoch < self.thaws
        self.net[:2].requires_grad_(not frozen).train(not frozen)


class Frozen(Thawing):
    thaws = 9


def test_statistics_of_layers_that_thaw_are_those_of_the_average(tmp_path):
    """By an own pass over the training pictures, each once: every batch holds the same ones."""
    _, module = trained(tmp_path, Thawing, SWACallback(start=0), max_epochs=4)
    layer = module.net[1]
    found = module.net[0](Pictures(16).images)
    assert torch.allclose(layer.running_mean, found.mean((0, 2, 3)), atol=1e-5)


def test_frozen_statistics_stay(tmp_path):
    """Whenever the module has put them into evaluation mode."""
    _, plain = trained(tmp_path, Frozen)
    _, module = trained(tmp_path, Frozen, SWACallback(start=0))
    assert torch.equal(plain.net[1].running_mean, module.net[1].running_mean)
    assert plain.net[1].num_batches_tracked == module.net[1].num_batches_tracked


class Normed(Boring):
    """Weights that are computed from others, of three kinds."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net[0] = nn.utils.spectral_norm(self.net[0])
        self.net[5] = nn.utils.parametrizations.weight_norm(self.net[5])


def test_weights_that_are_computed_are_named_and_left(tmp_path):
    before = Normed().state_dict()
    with pytest.warns(UserWarning, match=r"leaves net\.0, net\.5 as they are: their weights are computed"):
        trained(tmp_path, Normed, InitialiseCallback("orthogonal"), max_epochs=0)
    assert before.keys() == Normed().state_dict().keys()


class Unlearned(Boring):
    """Layers that know their size from the first batch."""

    def __init__(self):
        super().__init__()
        self.net[5] = nn.LazyLinear(4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), 0.01)


@pytest.mark.parametrize("callback", [lambda: SWACallback(start=0), lambda: AdversarialCallback(eps="8/255")])
def test_layers_without_weights_are_refused(tmp_path, callback):
    with pytest.raises(MisconfigurationException, match="got lazy layers, which have none before their first pass"):
        trained(tmp_path, Unlearned, callback())


class Unvalidated(Boring):
    """Has no validation."""

    validation_step = pl.LightningModule.validation_step


class Loaderless(Boring):
    val_dataloader = pl.LightningModule.val_dataloader


CHOOSERS = {
    "soup": lambda folder: GreedySoupCallback(monitor="val/loss", mode="min"),
    "WiSE-FT": lambda folder: WiSEFTCallback(monitor="val/loss", mode="min"),
    "criticality": lambda folder: LayerCriticalityCallback("val/loss", "min"),
}


@pytest.mark.filterwarnings("ignore:You defined a", "ignore:You passed in a")
@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize(("module", "told"), [(Unvalidated, "a `validation_step`"), (Loaderless, "validation loaders")])
def test_what_chooses_weights_asks_for_a_validation_before_training(tmp_path, name, module, told):
    with pytest.raises(MisconfigurationException, match=f"Expected .*{told}"):
        trained(tmp_path, module, CHOOSERS[name](tmp_path))


@pytest.mark.filterwarnings("ignore:You defined a")
def test_robust_validation_says_that_there_was_none(tmp_path):
    with pytest.warns(NoEffectWarning, match="measured nothing, since the fit has no validation"):
        trained(tmp_path, Loaderless, RobustValidationCallback("8/255", steps=1))


class Centred(Boring):
    """Normalises its pictures in the loader, and says so nowhere."""

    def _loader(self, pictures):
        for part in pictures.datasets if isinstance(pictures, ConcatDataset) else [pictures]:
            part.images = (part.images - 0.5) / 0.25
        return super()._loader(pictures)


def test_pictures_that_are_not_as_stated_are_refused_at_the_sanity_check(tmp_path):
    with pytest.raises(ValueError, match="Expected pixels in"):
        trained(tmp_path, Centred, RobustValidationCallback("8/255", steps=1), num_sanity_val_steps=1)


class Pair(Boring):
    """Returns its logits in a tuple."""

    def forward(self, images):
        return (super().forward(images),)

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0])[0], batch[1])


class Regression(Boring):
    def forward(self, images):
        return super().forward(images)[:, 0]

    def _loss(self, batch):
        return nn.functional.mse_loss(self(batch[0]), batch[1].float())


@pytest.mark.parametrize("method", ["trades", "mart"])
@pytest.mark.parametrize(("module", "what"), [(Pair, "tuple"), (Regression, "shape .16,.")])
def test_methods_for_classifiers_say_so(tmp_path, method, module, what):
    told = f"forward to return logits .N, classes., since TRADES and MART are for classifiers, but got {what}"
    with pytest.raises(MisconfigurationException, match=told):
        trained(tmp_path, module, AdversarialCallback(method, eps="8/255"))


class LossesWhileTraining(Boring):
    """As torchvision's detectors: losses in training mode, predictions in evaluation mode."""

    def forward(self, images):
        logits = super().forward(images)
        return {"logits": logits} if self.training else [logits]

    def _loss(self, batch):
        (logits,) = self(batch[0]).values()
        return nn.functional.cross_entropy(logits, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0])[0], batch[1]))


def test_a_step_that_fails_in_evaluation_mode_says_what_to_define(tmp_path):
    with pytest.raises(AttributeError) as found:
        trained(tmp_path, LossesWhileTraining, AdversarialCallback(eps="8/255"))
    (note,) = found.value.__notes__
    assert "define `attack_loss(batch)`" in note
    with pytest.warns(UserWarning, match="robust validation failed.*define `attack_loss"):
        trained(tmp_path, LossesWhileTraining, RobustValidationCallback("8/255", steps=1))


@pytest.mark.parametrize("settings", [{"method": "mart"}, {"method": "trades"}, {"method": "awp"}, {"ratio": 0.5}])
def test_what_has_to_be_optimised_is_refused_where_the_step_optimises(tmp_path, settings):
    with pytest.raises(MisconfigurationException, match="manual optimisation"):
        trained(tmp_path, ManualWithLoss, AdversarialCallback(eps="8/255", **settings))


class Masked(Boring):
    """Keeps a mask of -inf among its buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))


def test_a_mask_is_averaged_to_itself(tmp_path):
    _, module = trained(tmp_path, Masked, SWACallback(start=0))
    assert torch.equal(module.mask, torch.full((4, 4), -torch.inf).triu(1))


class TwoLoaders(Boring):
    def val_dataloader(self):
        return [super().val_dataloader(), super().val_dataloader()]

    def validation_step(self, batch, batch_idx, dataloader_idx):
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("monitor", ["val/loss", "val/loss/dataloader_idx_0"])
def test_wise_ft_counts_all_loaders_whichever_is_named(tmp_path, monitor):
    """And the sanity check finds the metric under the names of the loaders."""
    callback = WiSEFTCallback(monitor=monitor, mode="min", dirpath=str(tmp_path))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trained(tmp_path, TwoLoaders, callback, num_sanity_val_steps=1)
    assert not [each for each in found if "sanity check" in str(each.message)]
    assert (tmp_path / "wise_ft.ckpt").is_file()


class Remembering(Boring):
    """A state dict with more than tensors."""

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        pass


def test_extra_state_ends_no_fit(tmp_path):
    trainer, _ = trained(tmp_path, Remembering, RobustValidationCallback("8/255", steps=1, batches=1))
    assert trainer.state.finished


class Named(Boring):
    """Batches are dicts, and `forward` takes a part of them."""

    def __init__(self):
        super().__init__(batch_form="dict")

    def forward(self, image):
        return self.net(image)


class ByNameAlone(Named):
    def forward(self, *, image):
        return self.net(image)

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(image=batch["image"]), batch["label"])


TIMES = {"adversarial/time_share", "parity/seconds"}


@pytest.mark.parametrize(
    ("make", "logged"),
    [
        (lambda: SWACallback(start=0), "val/loss"),
        (lambda: AdversarialCallback("trades", eps="8/255", steps=1, val_eps=[]), "adversarial/divergence"),
        (lambda: AdversarialCallback("mart", eps="8/255", steps=1, val_eps=[]), "adversarial/divergence"),
        (lambda: RobustValidationCallback("8/255", drop_solved=True), "adversarial/val_loss@0.0313725"),
        (
            lambda: RobustValidationCallback("8/255", evaluator="auto", steps=2, targets=1, queries=3),
            "adversarial/val_loss@0.0313725",
        ),
        (lambda: LazyTrainingCallback(num_samples=8), "lazy/fgsm"),
        (lambda: DatapathCallback(["pgd"], num_samples=8), "datapath/pgd/critical"),
        (lambda: InitialiseCallback("lsuv"), "val/loss"),
        (lambda: GreedySoupCallback(monitor="val/loss", mode="min"), "val/loss"),
        (
            lambda: DeploymentParityCallback(["torch-bf16"], num_samples=8, perturbations=["gamma"]),
            "parity/torch-bf16/rel_l2",
        ),
    ],
)
def test_inputs_by_name_alone_change_no_number(tmp_path, make, logged):
    """The classes are found in the dict by their name."""
    one, module = trained(tmp_path / "1", Named, make())
    other, by_name = trained(tmp_path / "2", ByNameAlone, make())
    assert equal(module, by_name)
    assert logged in one.callback_metrics
    assert one.callback_metrics.keys() == other.callback_metrics.keys()
    for name, value in one.callback_metrics.items():
        assert torch.equal(value, other.callback_metrics[name]) or name in TIMES, name
