"""The data module: normalisation, flips, order, sequences, taking up a run in mid-epoch."""

import lightning.pytorch as pl
import pytest
import torch

from lightning_robust.demo.lanes import LaneData, LaneDetector, render_roads
from lightning_robust.demo.lanes.loading import BlockSampler, EpochSampler


@pytest.fixture(scope="module")
def data():
    module = LaneData(num_train=40, num_val=16, batch_size=8, render_workers=0)
    module.setup("fit")
    return module


def test_normalise_closed_form(data):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    columns = torch.zeros(1, 2, 17)
    normalised, same = data.on_after_batch_transfer((images, columns), 0)
    expected = (images.double() / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    torch.testing.assert_close(normalised.double(), expected, atol=1e-6, rtol=0)
    assert normalised.dtype == torch.float32
    assert same is columns


def test_statistics_describe_the_pictures():
    images = render_roads(range(120), seed=9).images.double() / 255
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    # means of single pictures deviate by 0.15, so that of 120 by 0.014
    assert (mean - torch.tensor(LaneData.mean)).abs().max() < 0.06
    assert (std - torch.tensor(LaneData.std)).abs().max() < 0.06


def test_flip_mirrors_picture_and_lines(data):
    plain, keys = data._train, torch.arange(40)
    images, columns = plain.__getitems__(keys.tolist())
    turned = (images != plain.roads.images).flatten(1).any(1)
    assert 8 < turned.sum() < 32
    assert torch.equal(images[turned].flip(3), plain.roads.images[turned])
    mirrored = 959 - plain.roads.columns[turned].flip(1)
    torch.testing.assert_close(columns[turned], mirrored, equal_nan=True)
    again, _ = plain.__getitems__(keys.tolist())
    assert torch.equal(images, again)
    other_epoch, _ = plain.__getitems__((keys + 40).tolist())
    assert not torch.equal(images, other_epoch)


def test_training_batches_are_bytes_of_every_index_once(data):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    assert sorted(loader.sampler) == list(range(120, 160))
    images, columns = next(iter(loader))
    assert images.dtype == torch.uint8
    assert images.shape == (8, 3, 144, 256)
    assert columns.shape == (8, 2, 17)


def test_validation_consists_of_sequences(data):
    images, columns = zip(*data.val_dataloader(), strict=True)
    columns = torch.cat(columns)
    assert len(columns) == 16
    step = (columns[1:] - columns[:-1]).abs().nan_to_num(0.0).amax((1, 2))
    assert step[7] > 3 * step[torch.arange(15) != 7].max()  # a new scene begins with frame 8
    assert torch.cat(images).shape == (16, 3, 144, 256)


def test_columns_are_in_pixels_of_the_frame(data):
    roads = render_roads(range(40), seed=0)
    torch.testing.assert_close(data._train.roads.columns, (roads.columns + 0.5) * 3.75 - 0.5, equal_nan=True)


def test_ranks_share_the_work(data):
    own = [list(EpochSampler(data._train, num_replicas=2, rank=rank, shuffle=True, seed=0)) for rank in range(2)]
    assert sorted(own[0] + own[1]) == list(range(40))
    blocks = [list(BlockSampler(data._val, 8, 2, rank)) for rank in range(2)]
    assert blocks == [list(range(8)), list(range(8, 16))]


class SaveAt(pl.Callback):
    """Saves a checkpoint after a number of steps, in the middle of an epoch or at its end."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data, path=None, callbacks=(), **options):
    pl.seed_everything(1)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **options,
    )
    model = LaneDetector(height=64, width=64, channels=8, hidden=16)
    trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True if path else None)
    return trainer, model


def test_resume(tmp_path):
    """Five batches an epoch: taken up in the middle of the first, after its last batch, in the middle of the second."""
    data = LaneData(num_train=40, num_val=8, batch_size=8, height=64, width=64, render_workers=0)
    saves = [SaveAt(step, tmp_path / f"{step}.ckpt") for step in (3, 5, 7)]
    _, whole = fit(data, callbacks=saves)
    for save in saves:
        resumed, model = fit(data, str(save.path))
        assert resumed.global_step == 10
        for expected, got in zip(whole.parameters(), model.parameters(), strict=True):
            assert torch.equal(expected, got)


def test_resume_where_the_trainer_ends_epochs_early(tmp_path):
    """Three of five batches: taken up at the end of the first epoch, and in the middle of the second."""
    data = LaneData(num_train=40, num_val=8, batch_size=8, height=64, width=64, render_workers=0)
    saves = [SaveAt(step, tmp_path / f"{step}.ckpt") for step in (3, 4)]
    _, whole = fit(data, callbacks=saves, limit_train_batches=3)
    for save in saves:
        resumed, model = fit(data, str(save.path), limit_train_batches=3)
        assert resumed.global_step == 6
        for expected, got in zip(whole.parameters(), model.parameters(), strict=True):
            assert torch.equal(expected, got)


@pytest.mark.parametrize("settings", [{"sequence_length": 0}, {"num_train": 0}])
def test_rejects_numbers_below_one(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` to be positive, but got 0"):
        LaneData(**settings)


def test_pictures_without_a_label_have_columns_of_minus_one():
    data = LaneData(num_train=12, num_val=8, height=64, width=96, batch_size=12, render_workers=0, num_labelled=5)
    data.setup("fit")
    whole = LaneData(num_train=12, num_val=8, height=64, width=96, batch_size=12, render_workers=0)
    whole.setup("fit")
    (images, columns), (same, known) = next(iter(data.train_dataloader())), next(iter(whole.train_dataloader()))
    assert torch.equal(images, same)
    without = (columns == -1).flatten(1).all(1)
    assert without.sum() == 7
    assert torch.equal(columns[~without].nan_to_num(), known[~without].nan_to_num())
    with pytest.raises(ValueError, match="`num_labelled` from 1 to num_train=12, but got 13"):
        LaneData(num_train=12, num_labelled=13)


def test_rejects_too_few_validation_pictures():
    with pytest.raises(ValueError, match="at least one sequence"):
        LaneData(num_val=3)
    with pytest.raises(RuntimeError, match="setup"):
        LaneData().train_dataloader()
