import re
import sys

import lightning.pytorch as pl
import pytest
import torch
import yaml
from safetensors.torch import save_file

from lightning_robust import DeploymentParityCallback
from lightning_robust.harness.run_folder import find_config
from lightning_robust.harness.runs import load_data, load_module, validate_once
from tests.boring import Boring
from tests.test_reading import BOMB


@pytest.fixture
def run(tmp_path):
    """A finished run: a configuration, and a checkpoint two folders below it."""
    content = {"model": {"class_path": "tests.boring.Boring", "init_args": {}}, "data": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    module = Boring()
    torch.save({"state_dict": {k: v + 1 for k, v in module.state_dict().items()}}, folder / "last.ckpt")
    return module, folder / "last.ckpt", tmp_path / "config.yaml"


def test_module_comes_back_with_its_weights(run):
    _, checkpoint, config = run
    assert find_config(checkpoint) == config
    loaded = load_module(checkpoint)
    assert isinstance(loaded, Boring)
    assert not loaded.training
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())


def test_rejects_what_is_not_there(run, tmp_path):
    _, checkpoint, config = run
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_module(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"Expected a configuration at .*nothing\.yaml, but there is no such"):
        load_module(checkpoint, tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match=r"Expected `data: \{class_path"):
        load_data(checkpoint)
    config.unlink()
    with pytest.raises(ValueError, match="found none"):
        load_module(checkpoint)


def test_rejects_weights_of_another_model(run):
    _, checkpoint, _ = run
    torch.save({"state_dict": {"other": torch.zeros(1)}}, checkpoint)
    told = r"The weights of .*last\.ckpt do not fit Boring of .*config\.yaml: it lacks net\.0\.bias, .* besides other"
    with pytest.raises(ValueError, match=told):
        load_module(checkpoint)
    weights = Boring().state_dict()
    torch.save({"state_dict": weights | {"net.5.bias": torch.zeros(7)}}, checkpoint)
    with pytest.raises(ValueError, match=r"config\.yaml: of another shape are net\.5\.bias \(7,\) for \(4,\)\.$"):
        load_module(checkpoint)
    torch.save({"weights": {}}, checkpoint)
    with pytest.raises(ValueError, match=r"last\.ckpt, but it holds weights\. Give"):
        load_module(checkpoint)


@pytest.mark.parametrize("form", ["plain.pt", "plain.safetensors", "safetensors.ckpt", "torch.safetensors"])
def test_weights_alone_with_a_configuration(run, tmp_path, form):
    """Any file of weights, whatever it is called; from the file itself nothing is imported."""
    module, _, config = run
    path = tmp_path / "weights" / form
    path.parent.mkdir()
    if form in ("plain.safetensors", "safetensors.ckpt"):
        save_file(module.state_dict(), path)
    else:
        torch.save(module.state_dict(), path)
    before = {name for name in sys.modules if name.startswith("tests.")}
    loaded = load_module(path, config)
    assert {name for name in sys.modules if name.startswith("tests.")} == before
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())


OTHER = "lightning.pytorch.demos.boring_classes.BoringModel"
CONFIGURATIONS = {
    "missing": (None, "Expected a configuration at"),
    "empty": (b"", "Expected keys and values in"),
    "garbage": (b"a: [", "Expected YAML in"),
    "binary": (b"\x80\x02\xff", "Expected YAML in"),
    "a tag": (b"model: !!python/object/apply:os.system [ls]", "Expected YAML in"),
    "a bomb": (BOMB.encode(), "Expected YAML in"),
    "a list": (b"- a", "Expected keys and values in"),
    "no model": (b"data: {}", "Expected `model: {class_path: ...}` in"),
    "a model without a class": (b"model: {init_args: {}}", "Expected `model: {class_path: ...}` in"),
    "a class of another number": (b"model: {class_path: [1]}", "Expected `model: {class_path: ...}` in"),
    "a class that is not there": (b"model: {class_path: no.Such}", "to build `model` of no.Such"),
    "a function": (b"model: {class_path: os.system}", "to build `model` of os.system"),
    "no module": (
        b"model: {class_path: torch.nn.Linear, init_args: {in_features: 1, out_features: 1}}",
        "to build `model`",
    ),
    "an unknown argument": (
        b"model: {class_path: tests.boring.Boring, init_args: {x: 1}}",
        "to build `model` of tests",
    ),
    "another model": (
        b"model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}",
        "do not fit BoringModel",
    ),
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_wrong_configuration_is_one_line_that_names_it(run, tmp_path, kind):
    _, checkpoint, _ = run
    content, told = CONFIGURATIONS[kind]
    path = tmp_path / "other.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told)) as caught:
        load_module(checkpoint, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class _Data(pl.LightningDataModule):
    def val_dataloader(self):
        return Boring().val_dataloader()


def test_a_look_at_validation_data_leaves_nothing_where_the_command_was_typed(tmp_path, monkeypatch):
    """The callback writes its page without a logger too; a command writes it where ``--output`` says."""
    monkeypatch.chdir(tmp_path)
    callback = DeploymentParityCallback(["torch-bf16"], perturbations="none", num_samples=4, localise=False)
    validate_once(Boring(), _Data(), callback, 4)
    assert callback.report.targets["torch-bf16"].status == "measured"
    assert list(tmp_path.iterdir()) == []
