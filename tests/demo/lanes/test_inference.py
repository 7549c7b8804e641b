"""predict: any frame size, pixels of the given frames, clear refusals."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust.demo.lanes import LaneDetector, RobustLaneDetector, predict

from ...boring import make_trainer


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = LaneDetector(channels=8, hidden=16)
    with torch.no_grad():
        model.network.absent.bias.fill_(-5.0)
    return model


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 270, 480, 3), dtype=np.uint8)


def test_rows_and_shapes(detector, frames):
    rows, columns, present = predict(detector, frames)
    expected = ((64 + 4 * np.arange(3, 20) + 1.5) + 0.5) * 270 / 144 - 0.5
    np.testing.assert_allclose(rows, expected, atol=1e-9)
    assert columns.shape == present.shape == (5, 2, 17)
    assert present.dtype == bool
    assert ((columns > -0.5) & (columns < 479.5)).all()


@pytest.mark.parametrize("weight", [None, 0.0, 0.5])
def test_checkpoints_of_both_detectors_are_read(frames, tmp_path, weight):
    """Of the plain one, and of the one with mixins, also with the head of rotation self-supervision."""
    torch.manual_seed(0)
    small = {"height": 64, "width": 96, "channels": 8, "hidden": 16}
    model = LaneDetector(**small) if weight is None else RobustLaneDetector(rotation_weight=weight, **small)
    pictures = torch.zeros(4, 3, 64, 96)
    loader = DataLoader(TensorDataset(pictures, torch.full((4, 2, model.network.anchors), 300.0)), 4)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(model, loader, loader)
    trainer.save_checkpoint(tmp_path / "lanes.ckpt")
    found, expected = predict(tmp_path / "lanes.ckpt", frames), predict(model, frames)
    np.testing.assert_array_equal(found.columns, expected.columns)


def test_columns_scale_with_the_frame(detector, frames):
    # doubling every pixel keeps the picture: a column c becomes 2 c + 0.5
    small = predict(detector, frames)
    large = predict(detector, frames.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(large.rows, 2 * small.rows + 0.5, atol=1e-9)
    # the antialiasing kernel of the smaller picture is sampled more coarsely, so pictures differ a little
    assert np.median(np.abs(large.columns - (2 * small.columns + 0.5))) < 0.5


def test_frames_at_the_networks_size_pass_unchanged(detector):
    from lightning_robust.demo.lanes.data import normalise

    images = torch.randint(0, 256, (2, 144, 256, 3), dtype=torch.uint8)
    detector.eval()
    with torch.no_grad():
        expected = detector(normalise(images.permute(0, 3, 1, 2)))
    columns = predict(detector, images).columns
    np.testing.assert_allclose(columns, (expected.columns.double().numpy() + 0.5) * 256 / 960 - 0.5, atol=1e-4)


def test_batches_do_not_matter(detector, frames):
    one, many = predict(detector, frames, batch_size=2), predict(detector, torch.from_numpy(frames))
    np.testing.assert_allclose(one.columns, many.columns, atol=1e-2)
    np.testing.assert_array_equal(one.present, many.present)
    assert predict(detector, frames[:0]).columns.shape == (0, 2, 17)


def test_from_checkpoint(detector, frames, tmp_path):
    path = tmp_path / "lanes.ckpt"

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(detector)
    trainer.save_checkpoint(path, weights_only=True)
    np.testing.assert_allclose(predict(path, frames).columns, predict(detector, frames).columns, atol=1e-4)


def test_mode_is_restored(detector, frames):
    """Of each part: one that the user froze stays in evaluation mode; after an error too."""
    detector.train()
    detector.network.fine.eval()
    predict(detector, frames)
    with pytest.raises(ValueError, match="`batch_size` to be positive"):
        predict(detector, frames, batch_size=0)
    assert detector.training
    assert not detector.network.fine.training


def test_rejects_wrong_frames(detector, frames):
    with pytest.raises(TypeError, match=r"uint8, 0 to 255, but got torch\.float32"):
        predict(detector, frames.astype(np.float32))
    with pytest.raises(TypeError, match="got list"):
        predict(detector, [1, 2])
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\), but got \(270, 480, 3\)"):
        predict(detector, frames[0])
    with pytest.raises(FileNotFoundError, match="no such file"):
        predict("/nowhere/lanes.ckpt", frames)
