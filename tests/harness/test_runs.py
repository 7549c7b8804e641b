import pytest
import torch
import yaml

from lightning_robust.harness.runs import find_config, load_data, load_module
from tests.boring import Boring


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
    with pytest.raises(ValueError, match=r"no file at .*nothing\.yaml. Name it with --config"):
        load_module(checkpoint, tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match=r"Expected `data: \{class_path"):
        load_data(checkpoint)
    config.unlink()
    with pytest.raises(ValueError, match="found none"):
        load_module(checkpoint)


def test_rejects_weights_of_another_model(run):
    _, checkpoint, _ = run
    torch.save({"state_dict": {"other": torch.zeros(1)}}, checkpoint)
    with pytest.raises(ValueError, match="do not fit the model"):
        load_module(checkpoint)
    torch.save({"weights": {}}, checkpoint)
    with pytest.raises(ValueError, match=r"holds \['weights'\]"):
        load_module(checkpoint)
