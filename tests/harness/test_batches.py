import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_robust.harness.batches import copied, first_training_batch, validation_batches

from ..boring import Boring, Pictures, make_trainer
from .runs import Data, TwoLoaders, run


@pytest.mark.parametrize("source", ["module", "data", "given", "several"])
def test_the_first_training_batch_before_training(tmp_path, source):
    """Wherever the loaders are; Lightning's own attribute for given ones is not public."""

    class Early(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            self.batch = first_training_batch(trainer, pl_module)

    class Both(Boring):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["labelled"], batch_idx)

    early, loader = Early(), DataLoader(Pictures(16), 16)
    trainer = make_trainer(tmp_path, [early], max_epochs=1, limit_val_batches=0)
    if source == "several":
        trainer.fit(Both(), {"labelled": loader, "unlabelled": DataLoader(Pictures(8), 4)}, loader)
        assert early.batch["unlabelled"][0].shape == (4, 3, 8, 8)
        assert torch.equal(early.batch["labelled"][0], Pictures(16).images)
        return
    given = {"module": {}, "data": {"datamodule": Data()}, "given": {"train_dataloaders": loader}}[source]
    trainer.fit(Boring(), **given)
    if source == "data":
        assert early.batch[0].shape == (16, 3, 8, 8)
    else:
        assert torch.equal(early.batch[0], Pictures(16).images)


def test_only_the_first_validation_loader(tmp_path):
    sizes = run(
        tmp_path, lambda trainer, module: [len(b[0]) for b in validation_batches(trainer, module)], TwoLoaders(), Data()
    )
    assert sizes == [16, 8]


class Counting:
    """A loader with a state."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        for index in range(4):
            self.given += 1
            yield torch.tensor([index])


def test_loaders_in_use_are_left_alone():
    stateful, persistent = Counting(), DataLoader(range(8), 2, num_workers=1, persistent_workers=True)
    running = iter(persistent)
    assert next(running).tolist() == [0, 1]
    other = copied({"a": [stateful], "b": persistent})
    assert [len(list(loader)) for loader in (*other["a"], other["b"])] == [4, 4]
    assert stateful.given == 0
    assert [batch.tolist() for batch in running] == [[2, 3], [4, 5], [6, 7]]
