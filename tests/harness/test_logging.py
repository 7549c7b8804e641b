"""Each logger is a fake that records; private attributes of Lightning that are read are checked to exist."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_robust.harness import logging as log
from tests.boring import Boring, make_trainer


class Recorder:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def fake(cls, monkeypatch):
    """A logger of a class whose package need not be installed."""
    logger, recorder = object.__new__(cls), Recorder()
    for name in ("log_image", "log_table"):
        if hasattr(cls, name):
            monkeypatch.setattr(cls, name, getattr(recorder, name))
    monkeypatch.setattr(cls, "experiment", recorder)
    monkeypatch.setattr(cls, "run_id", "7", raising=False)
    return logger, recorder


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path)


@pytest.fixture
def figure():
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (TensorBoardLogger, ["add_figure", "add_images", "add_text"]),
        (WandbLogger, ["log_image", "log_image", "log_table"]),
        (MLFlowLogger, ["log_figure", "log_image", "log_image", "log_text"]),
    ],
)
def test_each_logger_gets_its_own_call(trainer, figure, monkeypatch, cls, names):
    logger, recorder = fake(cls, monkeypatch)
    trainer.loggers = [logger]
    log.log_figure(trainer, "a/b", figure)
    log.log_images(trainer, "a/c", torch.rand(2, 3, 4, 4))
    log.log_table(trainer, "a/d", ["x"], [[1]])
    assert [name for name, _, _ in recorder.calls] == names


def test_files_where_a_logger_takes_none(trainer, figure, tmp_path):
    trainer.loggers = [CSVLogger(tmp_path)]
    log.log_figure(trainer, "a/b", figure)
    log.log_images(trainer, "a/c", torch.zeros(2, 3, 4, 5))
    log.log_table(trainer, "a/d", ["x", "y"], [[1, 2]])
    folder = Path(trainer.log_dir) / "figures" / "a"
    assert {path.name for path in folder.iterdir()} == {"b-0.png", "c-0.png", "d-0.csv"}
    assert list(csv.reader((folder / "d-0.csv").read_text().splitlines())) == [["x", "y"], ["1", "2"]]
    from PIL import Image

    with Image.open(folder / "c-0.png") as picture:
        assert picture.size == (10, 4)


def test_pages_and_json_files_are_sent_to_those_that_keep_files(trainer, monkeypatch, tmp_path):
    """MLflow takes artifacts, W&B files and a panel for a page; weights are left where they are."""
    folder = tmp_path / "parity"
    folder.mkdir()
    for name in ("parity.html", "parity.json", "weights.ckpt"):
        (folder / name).write_text(name)
    panels = SimpleNamespace(Html=lambda path, inject: f"page {Path(path).name}")
    monkeypatch.setitem(sys.modules, "wandb", panels)
    calls = {}
    for cls in (MLFlowLogger, WandbLogger, TensorBoardLogger):
        logger, recorder = fake(cls, monkeypatch)
        trainer.loggers = [logger]
        log.log_files(trainer, folder)
        calls[cls] = recorder.calls
    assert calls[MLFlowLogger] == [
        ("log_artifact", ("7", str(folder / name), "parity"), {}) for name in ("parity.html", "parity.json")
    ]
    kept = {"base_path": str(tmp_path), "policy": "now"}
    assert calls[WandbLogger] == [
        ("save", (str(folder / "parity.html"),), kept),
        ("log", ({"parity/parity": "page parity.html"},), {}),
        ("save", (str(folder / "parity.json"),), kept),
    ]
    assert calls[TensorBoardLogger] == []


def test_other_ranks_and_fast_dev_run_draw_nothing(tmp_path, figure, monkeypatch):
    logger, recorder = fake(TensorBoardLogger, monkeypatch)
    trainer = make_trainer(tmp_path)
    trainer.loggers = [logger]
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    log.log_figure(trainer, "a", figure)
    log.add_layout(trainer, "parity", {"x": ["a"]})
    log.write_layout(trainer)
    assert recorder.calls == []


def test_layout_is_written_once_with_all_contributions(trainer, monkeypatch):
    logger, recorder = fake(TensorBoardLogger, monkeypatch)
    trainer.loggers = [logger]
    log.add_layout(trainer, "parity", {"distance": ["parity/.*"]})
    log.add_layout(trainer, "soup", {"score": ["soup/a", "soup/b"]})
    log.write_layout(trainer)
    log.write_layout(trainer)
    expected = {
        "parity": {"distance": ["Multiline", ["parity/.*"]]},
        "soup": {"score": ["Multiline", ["soup/a", "soup/b"]]},
    }
    assert recorder.calls == [("add_custom_scalars", (expected,), {})]


def test_log_step_is_the_one_lightning_uses(tmp_path):
    """The private counter exists and counts optimizer steps: 4 batches an epoch, accumulated by 2."""
    trainer = make_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(Boring())
    assert log.log_step(trainer) == 2


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 4)])
def test_rejects_what_is_no_picture(trainer, shape):
    with pytest.raises(ValueError, match=r"shape .N, 1 or 3, H, W., but got"):
        log.log_images(trainer, "a", torch.zeros(shape))
