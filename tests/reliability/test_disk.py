"""A disk that is nearly full or read-only: pictures are left out, and the training writes what it has to write."""

import contextlib
import errno
import os
import subprocess
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_robust.harness import logging as log
from tests.boring import Boring, make_trainer

from .faults import examined, parity


@pytest.mark.parametrize(("free", "room"), [(0, False), (log.ROOM - 1, False), (log.ROOM, True)])
def test_what_is_left_to_the_training(tmp_path, monkeypatch, free, room):
    """32 MB, of the disk of the nearest folder that exists; another place than a path is not looked at."""
    asked = []
    monkeypatch.setattr(log.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=free))
    log.require_room("s3://bucket/runs")
    assert asked == []
    with contextlib.nullcontext() if room else pytest.raises(OSError, match="kept for the training") as caught:
        log.require_room(tmp_path / "version_0" / "parity")
    assert room or caught.value.errno == errno.ENOSPC
    assert asked == [tmp_path]


def test_what_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(log.os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OSError, match="Nothing can be written") as caught:
        log.require_room(tmp_path)
    assert caught.value.errno == errno.EROFS


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 kB, for those who may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class TurnsReadOnly(pl.Callback):
    """As a disk does on which an error was found."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        trainer.logger.experiment.flush()
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.mark.filterwarnings("ignore:DeploymentParityCallback")
@pytest.mark.parametrize("fault", ["nearly full", "read-only"])
def test_the_training_ends_as_without_pictures(tmp_path, disk, fault):
    ends = {}
    for name in ("plain", "with parity"):
        torch.manual_seed(0)
        module = Boring()
        callbacks = [examined() if fault == "read-only" else parity()] if name == "with parity" else []
        if name == "with parity" and fault == "read-only":
            subprocess.run(["mount", "-o", "remount,size=128m", disk], check=True)
            callbacks.insert(0, TurnsReadOnly(disk))
        logger = TensorBoardLogger(disk if callbacks else tmp_path / name)
        with pytest.warns(UserWarning, match="could not store") if callbacks else contextlib.nullcontext():
            make_trainer(tmp_path, callbacks, logger=logger, max_epochs=1, log_every_n_steps=1).fit(module)
        ends[name] = module.state_dict()
    for name, tensor in ends["plain"].items():
        assert torch.equal(ends["with parity"][name], tensor), name
