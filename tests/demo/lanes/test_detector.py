"""The LightningModule: what it logs, how it decodes, its pictures."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust.demo.lanes import LaneData, LaneDetector, LanePictures
from lightning_robust.demo.lanes.network import LaneOutput
from lightning_robust.demo.lanes.pictures import arrange, draw_lines


@pytest.fixture(scope="module")
def data():
    module = LaneData(num_train=32, num_val=16, batch_size=16, height=64, width=64, render_workers=0)
    module.setup("fit")
    return module


def test_fit_logs_and_saves(data, tmp_path):
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    model = LaneDetector(height=64, width=64, channels=8, hidden=16)
    trainer.fit(model, datamodule=data)
    expected = {"train/loss", "val/loss", "val/lateral_px", "val/bend_px", "val/swing_px", "val/found"}
    assert expected <= set(trainer.callback_metrics)
    assert 0 <= trainer.callback_metrics["val/found"] <= 1
    path = tmp_path / "lanes.ckpt"
    trainer.save_checkpoint(path)
    loaded = LaneDetector.load_from_checkpoint(path, weights_only=True)
    assert loaded.hparams.channels == 8
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_batch_can_be_learnt(data):
    torch.manual_seed(0)
    model = LaneDetector(height=64, width=64, channels=8, hidden=16)
    images, columns = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = model.loss(model.logits(images), columns)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_decode_masks_absent_lines():
    outputs = LaneOutput(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, 0.49]]]))
    decoded = LaneDetector(height=64, width=64, channels=8, hidden=16).decode(outputs)
    assert decoded["present"].tolist() == [[[True, False]]]
    assert decoded["lateral_px"].isnan().tolist() == [[[False, True]]]


def test_decay_leaves_biases_and_norms_alone():
    model = LaneDetector(height=64, width=64, channels=8, hidden=16, weight_decay=0.3)
    model.trainer = SimpleNamespace(estimated_stepping_batches=10)
    optimizer = model.configure_optimizers()["optimizer"]
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3
    assert all(p.ndim > 1 for p in decayed["params"])
    assert free["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_drawn_line_lies_on_its_columns():
    images = torch.zeros(1, 3, 144, 256)
    columns = torch.full((1, 2, 17), torch.nan)
    columns[0, 0] = 479.5  # the middle of the picture
    drawn = draw_lines(images, columns, torch.full_like(columns, torch.nan), 960, scale=2)
    assert drawn.shape == (1, 3, 288, 512)
    line = drawn[0, :, 200].mean(0)
    assert line[255:257].min() > 0.99  # columns 255 and 256 are the middle two of 512
    assert line[100] == pytest.approx(float(line[400]), abs=1e-6)
    assert line[100] < 0.6


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 2), (8, 3), (16, 4)])
def test_frames_stand_in_a_grid_above_their_legend(count, columns):
    """Each frame is where its row and column say, whole; the strip below has the colour of each line, and words."""
    frames = (torch.arange(count) + 1.0)[:, None, None, None].expand(-1, 3, 45, 80) / 20
    grid = arrange(frames)
    rows = -(-count // columns)
    assert grid.shape[2] == columns * 86 + 6
    for index in range(count):
        row, column = divmod(index, columns)
        cell = grid[:, 6 + row * 51 : 51 + row * 51, 6 + column * 86 : 86 + column * 86]
        assert torch.equal(cell, frames[index])
    strip = grid[:, rows * 51 + 6 :].flatten(1).T
    for colour in ((1.0, 1.0, 1.0), (1.0, 0.30, 0.25), (0.20, 0.85, 1.0)):
        assert (strip - torch.tensor(colour)).abs().amax(1).min() < 0.01


def test_sixteen_frames_of_any_size_fit_1400_pixels(monkeypatch):
    for width in (64, 256, 640):
        callback, model = LanePictures(), LaneDetector(height=64, width=width, channels=8, hidden=16)
        frames = torch.zeros(20, 3, 64, width), torch.full((20, 2, len(model.rows)), torch.nan)
        model.sequence_length = 1
        callback.on_validation_batch_end(SimpleNamespace(is_global_zero=True), model, None, frames, 0)
        assert len(callback._pictures) == 16
        widest = arrange(torch.stack(callback._pictures)).shape[2]
        assert widest <= 1400
        assert widest == 4 * 64 * 3 + 30 or widest > 1390


def test_pictures_are_logged_once_a_validation(data, monkeypatch):
    logged = []
    callback = LanePictures(count=2, scale=2)
    monkeypatch.setattr("lightning_robust.demo.lanes.pictures.log_images", lambda *arguments: logged.append(arguments))
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback]
    )
    trainer.validate(LaneDetector(height=64, width=64, channels=8, hidden=16), datamodule=data, verbose=False)
    assert [entry[1] for entry in logged] == ["val/lanes"]
    assert logged[0][2].shape[:2] == (1, 3)
    assert logged[0][2].shape[3] == 2 * 128 + 3 * 6
    assert 0 <= logged[0][2].min() <= logged[0][2].max() <= 1


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 10), (0.2, 5), (0.25, 4), (0.5, 1), (0.15, 1)])
def test_the_schedule_fits_any_length(warmup, steps):
    """torch's divides by zero where the rise ends in the second step."""
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    images, columns = torch.rand(8, 3, 64, 64), torch.full((8, 2, 8), torch.nan)
    batches = DataLoader(TensorDataset(images, columns), batch_size=2)
    trainer.fit(LaneDetector(height=64, width=64, channels=8, hidden=16, warmup=warmup), batches, batches)
    assert trainer.global_step == steps
