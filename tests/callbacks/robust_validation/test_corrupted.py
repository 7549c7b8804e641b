"""Validation under corruptions and perturbations: metrics by hand, mCE by its definition, refusals, and its file."""

import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import AdversarialCallback, RobustValidationCallback
from lightning_robust.callbacks.conditions import name_of, named_entries
from lightning_robust.callbacks.robust_validation.corrupted import CorruptedValidation, judged_metric
from lightning_robust.callbacks.robust_validation.corruption_error import (
    errors,
    mean_corruption_error,
    mean_error,
    read_baseline,
)
from lightning_robust.callbacks.robust_validation.corruption_figure import corruption_figures
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.functional.pixels import PixelSpace

from ...boring import Boring, Pictures, make_trainer
from .test_callback import Scored, validate


def under(*names, **settings):
    return RobustValidationCallback([], under=list(names), **settings)


def test_matches_reference(tmp_path):
    """The metrics are those of the corrupted pictures by hand, averaged over severities, on the batches asked for."""
    module = Scored().eval()
    metrics = validate(tmp_path, [under("fog@2", "fog@5", "jpeg", batches=3)], module)
    images, labels = Pictures().images[:48], Pictures().labels[:48]
    found = {}
    for name, change in {
        "fog@2": Corruption("fog", 2),
        "fog@5": Corruption("fog", 5),
        "jpeg_90": CATALOGUE["jpeg_90"].deployed,
    }.items():
        with torch.no_grad():
            logits = module(change((images * 255).round() / 255))
        found[name] = nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean()
    for place, metric in enumerate(("val_loss", "val_acc")):
        fog = (found["fog@2"][place] + found["fog@5"][place]) / 2
        assert metrics[f"corruption/fog/{metric}"] == pytest.approx(float(fog), abs=1e-5)
        assert metrics[f"corruption/jpeg_90/{metric}"] == pytest.approx(float(found["jpeg_90"][place]), abs=1e-5)
    # accuracy counts before the loss; fog and JPEG count the same
    fog, jpeg = 1 - metrics["corruption/fog/val_acc"], 1 - metrics["corruption/jpeg_90/val_acc"]
    assert metrics["corruption/mean_error"] == pytest.approx((fog + jpeg) / 2, abs=1e-6)
    assert not any("adversarial" in name or "mce" in name for name in metrics)


def test_attacks_stay_beside_corruptions(tmp_path):
    alone = validate(tmp_path, [RobustValidationCallback(0.1, steps=2)], Scored().eval())
    module = Scored()
    both = validate(tmp_path, [RobustValidationCallback(0.1, steps=2, under="snow@3")], module)
    assert {name for name in both if name.startswith("adversarial/")} == {n for n in alone if n[:4] == "adve"}
    assert {name for name in both if name.startswith("corruption/")} == {
        *("corruption/snow/val_acc", "corruption/snow/val_loss", "corruption/mean_error")
    }


def test_mce_by_its_definition():
    """Sums over severities first, then quotients, then the mean over corruptions, whatever their severities."""
    found = {"clean": 0.1, "fog@1": 0.2, "fog@4": 0.6, "snow@3": 0.3, "bgr": 0.1}
    baseline = {"clean": 0.2, "fog@1": 0.4, "fog@4": 0.6, "snow@3": 0.2, "bgr": 0.4}
    assert mean_error(found) == pytest.approx((0.4 + 0.3 + 0.1) / 3)
    assert mean_corruption_error(found, baseline) == pytest.approx((0.8 / 1.0 + 1.5 + 0.25) / 3)
    assert mean_corruption_error(baseline, baseline) == pytest.approx(1)


def test_errors_of_accuracies_and_of_errors():
    measured = {"clean": {"px": 3.0, "acc": 0.9, "db": 30.0}, "fog@1": {"px": 4.0, "acc": 0.5, "db": 20.0}}
    assert errors(measured, "px", "min") == {"clean": 3.0, "fog@1": 4.0}
    assert errors(measured, "acc", "max") == {"clean": pytest.approx(0.1), "fog@1": 0.5}
    assert errors(measured, "db", "max") is None


def test_the_file_of_one_run_is_the_baseline_of_another(tmp_path):
    """Beside itself a network has mCE 1; beside numbers half as large, 2."""
    module, logger = Scored(), TensorBoardLogger(tmp_path)
    trainer = make_trainer(tmp_path, [under("fog@1", "fog@5", "dirt@3")], logger=logger)
    trainer.validate(module, verbose=False)
    (path,) = tmp_path.rglob("corruptions.json")
    assert path.parent.name == "robust_validation"
    content = json.loads(path.read_text())
    assert list(content) == ["clean", "fog@1", "fog@5", "dirt@3"]
    again = validate(tmp_path, [under("fog@1", "fog@5", "dirt@3", baseline=str(path))], module)
    assert again["corruption/mce"] == pytest.approx(1, abs=1e-6)
    half = {name: {"val/acc": 1 - (1 - metrics["val/acc"]) / 2} for name, metrics in content.items()}
    assert validate(tmp_path, [under("fog", "dirt@3", baseline=half | fives(half))], module)["corruption/mce"] > 1.5


def fives(half):
    return {f"fog@{severity}": half["fog@5"] for severity in (2, 3, 4)}


def test_the_metric_that_counts(tmp_path):
    """The one that is watched, with its mode; else the first whose name says what is better, losses last."""
    trainer = make_trainer(tmp_path)
    assert judged_metric(trainer, ["val/loss", "val/depth", "val/lateral_px"]) == ("val/lateral_px", "min")
    assert judged_metric(trainer, ["val/depth", "val/loss"]) == ("val/loss", "min")
    assert judged_metric(trainer, ["val/depth"]) is None
    watched = ModelCheckpoint(tmp_path, monitor="val/depth", mode="max")
    trainer = make_trainer(tmp_path, [watched], enable_checkpointing=True)
    assert judged_metric(trainer, ["val/acc", "val/depth"]) == ("val/depth", "max")


def test_a_metric_without_direction_has_no_error_and_says_so(tmp_path):
    class Odd(Boring):
        def validation_step(self, batch, batch_idx):
            self.log("val/depth", self(batch[0]).mean())

    with pytest.warns(UserWarning, match="no mean corruption error is logged"):
        metrics = validate(tmp_path, [under("fog@3")], Odd())
    assert list(metrics) == ["val/depth", "corruption/fog/val_depth"]


def test_baselines_that_say_nothing_of_the_metric(tmp_path):
    with pytest.warns(UserWarning, match="the baseline has no val/acc"):
        validate(tmp_path, [under("fog@3", baseline={"fog@3": {"val/other": 0.5}})], Scored())
    with pytest.warns(UserWarning, match="makes no error in val/acc"):
        metrics = validate(tmp_path, [under("fog@3", baseline={"fog@3": {"val/acc": 1.0}})], Scored())
    assert "corruption/mce" not in metrics
    assert math.isfinite(metrics["corruption/mean_error"])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"under": ["fgo@3"]}, "Did you mean 'fog'"),
        ({"under": ["jpg_90"]}, "Did you mean 'jpeg_90'"),
        ({"under": "fog@6"}, "severity from 1 to 5"),
        ({"under": "fog@0"}, "severity from 1 to 5"),
        ({"under": ["jpeg_90@2"]}, "corruptions or perturbations out of"),
        ({"under": []}, "at least one corruption or perturbation in `under`"),
        ({"under": "none"}, "corruptions or perturbations out of"),
        ({"eps": []}, "at least one radius in `eps`"),
        ({"baseline": {"fog@1": {"val/acc": 0.5}}}, "`under` beside `baseline`"),
        ({"under": "fog", "baseline": {"fog@1": {"val/acc": 0.5}}}, "lacks fog@2, fog@3, fog@4 and 1 more"),
        ({"under": "fog@1", "baseline": {"fog@1": 0.5}}, "`baseline` as numbers by condition and metric"),
        ({"under": "fog@1", "baseline": {}}, "`baseline` as numbers by condition and metric"),
    ],
)
def test_rejects_bad_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        RobustValidationCallback(**settings)


def test_rejects_files_that_are_no_baseline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corruptions.json of another run for `baseline` at .*none.json"):
        under("fog@1", baseline=str(tmp_path / "none.json"))
    path = tmp_path / "report.json"
    path.write_text('{"maps": [1, 2]}')
    with pytest.raises(ValueError, match=r"numbers by condition and metric.*from .*report.json"):
        under("fog@1", baseline=str(path))
    path.write_text('{"fog@1": {"val/acc": 0.5}}')
    assert read_baseline(str(path), ["fog@1"], "baseline") == {"fog@1": {"val/acc": 0.5}}


class Grey(Boring):
    def _loss(self, batch):
        return super()._loss((batch[0].repeat(1, 3, 1, 1), batch[1]))

    def val_dataloader(self):
        return torch.utils.data.DataLoader([(image[:1], label) for image, label in Pictures()], 16)


class Vectors(Boring):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def val_dataloader(self):
        return torch.utils.data.DataLoader([(image.flatten(), label) for image, label in Pictures()], 16)


class Normalised(Boring):
    def val_dataloader(self):
        return torch.utils.data.DataLoader([(image * 4 - 2, label) for image, label in Pictures()], 16)


@pytest.mark.parametrize(
    ("module", "settings", "complaint"),
    [
        (Vectors(), {}, r"Expected pictures \(N, 1 or 3, H, W\) at input_key=0 for 'fog@3', but got \(16, 192\)"),
        (Grey(), {"under": ["fog@3", "bgr"]}, r"Expected pictures \(N, 3, H, W\).*'bgr'"),
        (Normalised(), {}, r"Expected pixels in \[0, 1\] after undoing"),
        (Boring(), {"bounds": "none"}, "how pictures were normalised for 'fog@3'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Boring) else "",
)
def test_rejects_batches_at_the_sanity_check(tmp_path, module, settings, complaint):
    callback = RobustValidationCallback([], **({"under": "fog@3"} | settings))
    trainer = make_trainer(tmp_path, [callback], num_sanity_val_steps=1)
    with pytest.raises(ValueError, match=complaint):
        trainer.fit(module)
    assert trainer.global_step == 0


def test_grey_pictures_and_the_right_normalisation_pass(tmp_path):
    assert "corruption/fog/val_loss" in validate(tmp_path, [under("corruptions@3", batches=1)], Grey())
    metrics = validate(tmp_path, [under("fog@3", mean=0.5, std=0.25)], Normalised())
    assert "corruption/fog/val_loss" in metrics


def test_brought_along_equals_alone(tmp_path):
    module = Scored()
    alone = validate(tmp_path, [RobustValidationCallback(0.1, steps=2, under=["fog@2", "crop"])], module)
    along = validate(
        tmp_path, [AdversarialCallback("fgsm", eps=0.1, ratio=0.0, val_steps=2, val_under=["fog@2", "crop"])], module
    )
    assert alone == along
    only = validate(tmp_path, [AdversarialCallback("fgsm", eps=0.1, val_eps=[], val_under="fog@2")], module)
    assert set(only) == {"val/acc", "val/loss", *(n for n in alone if "/fog/" in n or n == "corruption/mean_error")}
    with pytest.raises(ValueError, match="`val_under` beside `val_baseline`"):
        AdversarialCallback("fgsm", eps=0.1, val_baseline={"fog@1": {"val/acc": 0.5}})


def test_sequences_are_those_of_the_data(tmp_path):
    """A module that says how many frames a sequence has gets them; another gets pictures of their own."""

    class Frames(Scored):
        sequence_length = 8

    frames, alone = Frames().eval(), Scored().eval()
    frames.load_state_dict(alone.state_dict())
    found = [validate(tmp_path, [under("exposure_lag@5")], module) for module in (frames, alone)]
    images = (Pictures().images * 255).round() / 255
    for module, metrics, length in ((frames, found[0], 8), (alone, found[1], 1)):
        with torch.no_grad():
            logits = module(Corruption("exposure_lag", 5)(images, length))
        expected = nn.functional.cross_entropy(logits, Pictures().labels).item()
        assert metrics["corruption/exposure_lag/val_loss"] == pytest.approx(expected, abs=1e-5)


def test_batches_that_cut_sequences_are_warned_about(tmp_path, recwarn):
    class Frames(Scored):
        sequence_length = 5

    validate(tmp_path, [under("fog@3")], Frames())
    assert not [each for each in recwarn if "cut sequences" in str(each.message)]
    with pytest.warns(UserWarning, match="batches of 16 pictures cut sequences of 5 frames"):
        validate(tmp_path, [under("frame_loss@3")], Frames())


class Levels(Scored):
    """Pictures on the levels of 8 bits."""

    def val_dataloader(self):
        batches = [(self.levels(images), labels) for images, labels in super().val_dataloader()]
        return DataLoader(batches, batch_size=None)

    def levels(self, images):
        return (images * 255).round() / 255


class Bytes(Levels):
    def levels(self, images):
        return (images * 255).round().byte()

    def forward(self, images):
        return super().forward(images / 255)


def test_bytes_are_the_same_pictures(tmp_path):
    """A network that takes bytes and normalises them itself, against its twin that takes floats in [0, 1]."""
    names = ["fog@3", "motion_blur@2", "bgr", "jpeg_90", "noise_6"]
    torch.manual_seed(0)
    floats = Levels()
    levels = Bytes()
    levels.load_state_dict(floats.state_dict())
    expected = validate(tmp_path, [under(*names)], floats)
    found = validate(tmp_path, [under(*names)], levels)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 4) for key, value in expected.items() if "val_loss" in key}) == len(names)


class Shifted(Levels):
    """Normalised channel by channel."""

    mean, std = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]

    def levels(self, images):
        return PixelSpace(self.mean, self.std).from_pixels(super().levels(images))


class ChannelsLast(Shifted):
    """Takes pictures as many libraries outside of torch hold them."""

    def levels(self, images):
        return super().levels(images).movedim(1, 3)

    def forward(self, images):
        return super().forward(images.movedim(3, 1))


def test_channels_may_come_last(tmp_path):
    """Corrupted, perturbed and attacked like the twin that takes them first, each channel with a mean of its own."""
    names = ["fog@3", "motion_blur@2", "bgr", "jpeg_90"]
    torch.manual_seed(0)
    first, last = Shifted(), ChannelsLast()
    last.load_state_dict(first.state_dict())
    settings = {"mean": Shifted.mean, "std": Shifted.std, "under": names, "steps": 0}
    expected, found = (validate(tmp_path, [RobustValidationCallback(0.1, **settings)], each) for each in (first, last))
    assert found == pytest.approx(expected, abs=1e-4)
    assert expected["adversarial/val_loss@0.1"] > 1.1 * expected["val/loss"]
    assert len({round(value, 4) for key, value in expected.items() if "val_loss" in key}) == len(names) + 1


class Clips(Scored):
    """Two clips of eight frames a batch, of which the mean is classified."""

    def __init__(self, letters):
        super().__init__()
        self.letters = letters

    def val_dataloader(self):
        frames = ((Pictures().images * 255).round() / 255).unflatten(0, (4, 2, 8))
        order = ["NTCHW".index(letter) for letter in self.letters]
        clips = [(batch.permute(order), torch.tensor([0, 1])) for batch in frames]
        return DataLoader(clips, batch_size=None)

    def forward(self, clips):
        frames = clips.permute([self.letters.index(letter) for letter in "NTCHW"])
        return super().forward(frames.flatten(0, 1)).unflatten(0, (-1, 8)).mean(1)


@pytest.mark.parametrize("letters", ["NTCHW", "NCTHW", "NTHWC"])
def test_clips_are_sequences(tmp_path, letters):
    """Each is corrupted as one sequence, whatever the order of its dimensions, and perturbed frame by frame."""
    module = Clips(letters).eval()
    metrics = validate(tmp_path, [under("exposure_lag@5", "bgr")], module)
    frames = (Pictures().images * 255).round() / 255
    for name, changed in (("exposure_lag", Corruption("exposure_lag", 5)(frames, 8)), ("bgr", frames.flip(1))):
        with torch.no_grad():
            logits = Scored.forward(module, changed).unflatten(0, (-1, 8)).mean(1)
        expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1] * 4)).item()
        assert metrics[f"corruption/{name}/val_loss"] == pytest.approx(expected, abs=1e-5)


class OneInBytes(Levels):
    """The last batch is not scaled as the others are."""

    def val_dataloader(self):
        *batches, (images, labels) = super().val_dataloader()
        return DataLoader([*batches, (images * 255, labels)], batch_size=None)


@pytest.mark.parametrize("name", ["fog@3", "bgr"])
def test_every_batch_has_to_be_normalised_as_stated(tmp_path, name):
    with pytest.warns(UserWarning, match="robust validation failed, training continues"):
        metrics = validate(tmp_path, [under(name)], OneInBytes())
    assert not [key for key in metrics if key.startswith("corruption/")]


def test_a_failure_leaves_the_attack_and_the_training(tmp_path, monkeypatch):
    """Neither half of the validation takes the other with it."""

    def broken(self, evaluator):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(CorruptedValidation, "measure", broken)
    with pytest.warns(UserWarning, match="robust validation failed, training continues.*out of memory"):
        metrics = validate(tmp_path, [RobustValidationCallback(0.1, steps=2, under="fog@3")], Scored())
    assert "adversarial/val_acc@0.1" in metrics
    assert "corruption/fog/val_acc" not in metrics


def test_the_closing_summary_and_the_figures(tmp_path, caplog):
    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(tmp_path, [under("fog", "jpeg_90", batches=1)], logger=logger, max_epochs=1)
    with caplog.at_level("INFO"):
        trainer.fit(Scored())
    assert "robust_validation under corruptions, on the weights of the last validation" in caplog.text
    assert "val/acc" in caplog.text
    assert "in the mean over 2 corruptions, worst" in caplog.text
    assert "corruptions.json" in caplog.text
    assert trainer.callback_metrics["corruption/mean_error"] >= 0


def test_names_of_conditions():
    names = [name_of(entry) for entry in named_entries(["weather@2", "jpeg", "shift", "fog@2"])]
    assert names[:4] == ["fog@2", "snow@2", "rain@2", "jpeg_90"]
    assert len(names) == len(set(names))
    assert len(named_entries(["corruptions"])) == 60
    assert len(named_entries(["typical"])) == 16


def test_what_is_not_finite_is_not_drawn():
    measured = {
        "clean": {"px": 1.0, "bend": math.nan},
        "fog@5": {"px": math.nan, "bend": 2.0},
        "fog@1": {"px": 2.0, "bend": 1.0},
    }
    (tag,) = corruption_figures(measured, ["px", "bend"])
    assert tag == "corruption/px_by_corruption"
    assert list(corruption_figures(measured, ["px"])[tag].args[0]) == ["clean", "fog@1"]
