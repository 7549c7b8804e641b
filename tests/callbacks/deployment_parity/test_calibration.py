"""The training inputs that int8 is calibrated on: which they are, and that gathering them leaves no trace."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_robust import DeploymentParityCallback
from lightning_robust.callbacks.deployment_parity import calibration as room
from lightning_robust.callbacks.deployment_parity.calibration import CalibrationInputs, calibration_of_run
from lightning_robust.deployment.engines import BuildSettings, Built, Runtime, run_module, targets
from tests.boring import Boring, Pictures, make_trainer

SEEN = []


class Quantised(Runtime):
    """Stands for a quantised target, and keeps what it was given to be calibrated on."""

    def build(self, subject):
        SEEN.append(subject.calibration)
        return Built(lambda args: run_module(subject.module, args))


@pytest.fixture(autouse=True)
def quantised(monkeypatch):
    SEEN.clear()
    monkeypatch.setitem(targets.TARGETS, "onnxruntime-int8", Quantised)


def callback(**settings):
    settings = {"perturbations": "none", "localise": False, "calibration_samples": 6} | settings
    return DeploymentParityCallback(["onnxruntime-int8"], **settings)


def loader():
    return DataLoader(Pictures(), 4)


def first(count):
    return torch.stack([Pictures()[index][0] for index in range(count)])


def test_the_first_training_inputs_of_a_fit(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[callback()])
    trainer.fit(Boring(), loader(), loader())
    assert len(SEEN) >= 2
    for (pictures,) in SEEN:
        assert torch.equal(pictures, first(6))
        assert pictures.device.type == "cpu"


def test_a_lone_validation_takes_those_that_training_would_begin_with(tmp_path):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Pictures(), 4, shuffle=True)

        def val_dataloader(self):
            return loader()

    states = []
    for callbacks in ([], [callback()], [callback()]):
        module = Boring()
        torch.manual_seed(1)
        make_trainer(tmp_path, callbacks=callbacks).validate(module, datamodule=Data(), verbose=False)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    (one,), (two,) = SEEN
    assert torch.equal(one, two)  # the same inputs each time
    assert len(one) == 6
    assert not torch.equal(one, first(6))
    every = first(len(Pictures()))
    assert all(any(torch.equal(picture, each) for each in every) for picture in one)


def test_without_training_data_there_are_none(tmp_path):
    class Bare(Boring):
        train_dataloader = pl.LightningModule.train_dataloader

    make_trainer(tmp_path, callbacks=[callback()]).validate(Bare(), loader(), verbose=False)
    assert SEEN == [None]


def test_inputs_of_another_shape_are_none(tmp_path):
    inputs = CalibrationInputs(["emulated-int8"], BuildSettings(), None)
    trainer = make_trainer(tmp_path)
    inputs.add(trainer, Boring(), (torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)))
    assert inputs.args((torch.rand(4, 3, 8, 8),)) is None
    assert inputs.args((torch.rand(4, 3, 16, 16),))[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("names", "settings", "wanted"),
    [
        (["emulated-fp16"], {}, False),
        (["deployed-int8"], {}, False),
        (["emulated-int8"], {}, True),
        ("auto", {}, False),  # which leaves int8 to who asks for it
        (["tensorrt-fp16", "onnxruntime-int8"], {}, True),
        (["onnxruntime-int8"], {"calibration_data": __file__}, False),
    ],
)
def test_nothing_is_gathered_that_nobody_needs(tmp_path, names, settings, wanted):
    inputs = CalibrationInputs(names, BuildSettings(**settings), None)
    assert inputs.wanted == wanted
    inputs.add(make_trainer(tmp_path), Boring(), next(iter(loader())))
    assert (inputs.args() is not None) == wanted


def test_training_is_bit_identical(tmp_path):
    states = []
    for callbacks in ([], [callback()]):
        pl.seed_everything(5, verbose=False)
        module = Boring()
        train = DataLoader(Pictures(), 4, shuffle=True)
        make_trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(module, train, loader())
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_without_a_configuration_has_none(tmp_path, monkeypatch):
    assert calibration_of_run(str(tmp_path / "none.ckpt"), None, ["emulated-int8"], BuildSettings()) is None
    monkeypatch.setattr(room, "load_module", lambda *_: pytest.fail("nothing asked for it"))
    assert calibration_of_run("none.ckpt", None, ["emulated-fp16"], BuildSettings()) is None


def test_a_batch_without_inputs_is_passed_over(tmp_path):
    inputs = CalibrationInputs(["emulated-int8"], BuildSettings(), "picture")
    inputs.add(make_trainer(tmp_path), Boring(), {"image": torch.rand(2, 3, 8, 8)})
    assert inputs.args() is None
