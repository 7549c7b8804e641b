"""Which checkpoint of a run is best or last, on what Lightning itself wrote."""

import os
import re
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_robust.harness.kept_checkpoints import choose_checkpoint

from ..boring import Boring, make_trainer

SCORES = (4.0, 1.0, 3.0, 2.0)


class Scored(Boring):
    """Logs a known score at each epoch: the second is the least, the first the largest."""

    def on_validation_epoch_end(self):
        score = 9.0 if self.trainer.sanity_checking else SCORES[self.current_epoch]
        self.log("score", score)
        self.log("val/negated", -score)


def train(folder, *keepers):
    trainer = make_trainer(folder, [*keepers], enable_checkpointing=True, max_epochs=4)
    trainer.fit(Scored())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The best by a monitored score among three, and the last."""
    folder = tmp_path_factory.mktemp("kept") / "version_0"
    keeper = ModelCheckpoint(folder / "checkpoints", "{epoch}", "score", save_last=True, save_top_k=3)
    return train(folder, keeper)


def test_best_and_last(run):
    assert len(list((run / "checkpoints").iterdir())) == 4
    path, reason = choose_checkpoint(run, "best")
    assert (path.name, reason) == ("epoch=1.ckpt", "best score 1")
    path, reason = choose_checkpoint(run, "last")
    assert (path.name, reason) == ("last.ckpt", "last")
    assert torch.load(path, weights_only=True)["epoch"] == 3


def test_a_run_that_was_moved_and_lost_its_times(run, tmp_path):
    """The paths in the files are of another folder, and all files are as old."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    for path in (moved / "checkpoints").iterdir():
        os.utime(path, (0, 0))
    assert choose_checkpoint(moved, "best")[0] == moved / "checkpoints" / "epoch=1.ckpt"
    (moved / "checkpoints" / "last.ckpt").unlink()
    assert choose_checkpoint(moved, "best")[0].name == "epoch=1.ckpt"
    path, reason = choose_checkpoint(moved, "last")
    assert (path.name, reason) == ("epoch=3.ckpt", "the newest, none is named last")


def test_a_path_of_another_system(run, tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        state = {"ModelCheckpoint{}": {"best_model_path": "C:\\runs\\a.ckpt", "monitor": "x", "best_model_score": None}}
        torch.save({"state_dict": {}, "global_step": 1, "callbacks": state}, tmp_path / name)
    assert choose_checkpoint(tmp_path, "best") == (tmp_path / "a.ckpt", "best x")


def test_a_named_one(run):
    for name in ("epoch=2", "epoch=2.ckpt", "checkpoints/epoch=2.ckpt", str(run / "checkpoints" / "epoch=2.ckpt")):
        assert choose_checkpoint(run, name) == (run / "checkpoints" / "epoch=2.ckpt", "")
    told = r"but got 'epoch=9'\. There are: epoch=1\.ckpt, .*Did you mean 'epoch="
    with pytest.raises(FileNotFoundError, match=told):
        choose_checkpoint(run, "epoch=9")


def test_two_that_monitor(tmp_path):
    keepers = [
        ModelCheckpoint(tmp_path, "a", "score", enable_version_counter=False),
        ModelCheckpoint(tmp_path, "b", "val/negated", auto_insert_metric_name=False),
    ]
    train(tmp_path, *keepers)
    told = r"several are: a\.ckpt \(best score 1\); b\.ckpt \(best val/negated -4\)\. Name one with --ckpt\."
    with pytest.raises(ValueError, match=told):
        choose_checkpoint(tmp_path, "best")


def test_one_that_monitors_beside_one_that_does_not(tmp_path):
    train(tmp_path, ModelCheckpoint(tmp_path, "best", "score", save_last=True), ModelCheckpoint(tmp_path, "newest"))
    assert choose_checkpoint(tmp_path, "best") == (tmp_path / "best.ckpt", "best score 1")


def test_none_that_monitors(tmp_path):
    train(tmp_path / "one", ModelCheckpoint(tmp_path / "one"))
    assert choose_checkpoint(tmp_path / "one", "best")[1] == "the only one"
    train(tmp_path / "two", ModelCheckpoint(tmp_path / "two", "x", save_last=True))
    path, reason = choose_checkpoint(tmp_path / "two", "best")
    assert (path.name, reason) == ("x.ckpt", "the newest, no metric is monitored")
    weights = tmp_path / "weights"
    train(weights, ModelCheckpoint(weights, "{epoch}", save_top_k=-1, save_weights_only=True))
    told = "no ModelCheckpoint says which it is: epoch=0.ckpt, epoch=1.ckpt, epoch=2.ckpt, epoch=3.ckpt. Name one"
    with pytest.raises(ValueError, match=re.escape(told)):
        choose_checkpoint(weights, "best")
    (weights / "epoch=1.ckpt").rename(weights / "best.ckpt")
    assert choose_checkpoint(weights, "best") == (weights / "best.ckpt", "by its name")


def test_a_broken_one_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "epoch=1.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"epoch=1\.ckpt, but it is empty"):
        choose_checkpoint(tmp_path / "broken", "best")
