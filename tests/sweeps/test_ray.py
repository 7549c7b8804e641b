"""A trial in this process, in place of a worker of Ray's: what it goes on from and what it leaves."""

import json

import pytest
import yaml
from lightning.pytorch import Callback

from lightning_robust.sweeps import ray as ray_module

CONFIG = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False},
    "model": {"class_path": "tests.boring.Boring"},
}


class Report(Callback):
    """Saves as Ray's callback does; dies at the end of a fit for as long as there are lives."""

    lives = 1

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.training:
            trainer.save_checkpoint(f"checkpoint_{trainer.current_epoch:06d}/last.ckpt")

    def on_fit_end(self, trainer, pl_module):
        if Report.lives:
            Report.lives -= 1
            raise MemoryError("no room for the figure")


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Trains the one trial of a sweep; gives what it left."""
    tune = pytest.importorskip("ray.tune", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray_module, "report_callback", Report)

    def run():
        ray_module.train({"trial": 0}, configs={0: yaml.safe_dump(CONFIG)}, folder=str(tmp_path))
        return json.loads((tmp_path / "000" / ray_module.RESULT).read_text())

    return run


def test_one_that_died_behind_its_last_epoch_is_trained_again(trial, tmp_path):
    with pytest.raises(MemoryError):
        trial()
    assert len([*tmp_path.glob("000/checkpoint_*/last.ckpt")]) == 2
    died = trial()["metrics"]
    assert trial()["metrics"] == died
    assert died["val/loss"] > 0
