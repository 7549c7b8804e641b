import copy

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_robust.harness.batches import (
    first_training_batch,
    isolated_rng,
    refresh_statistics,
    twins,
    validation_batches,
)

from ..boring import Boring, Pictures, make_trainer


class AtTheEnd(pl.Callback):
    def __init__(self, function):
        self.function = function

    def on_train_end(self, trainer, pl_module):
        self.result = self.function(trainer, pl_module)


def run(folder, function, module=None, datamodule=None):
    callback = AtTheEnd(function)
    make_trainer(folder, [callback], max_epochs=1).fit(module or Boring(), datamodule=datamodule)
    return callback.result


class Data(pl.LightningDataModule):
    """Brightens in its transfer hook, twice as much while training."""

    def train_dataloader(self):
        return DataLoader(Pictures(40), 16, shuffle=True)

    def val_dataloader(self):
        return [DataLoader(Pictures(24), 16), DataLoader(Pictures(8), 8)]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * (2 if self.trainer.training else 1), batch[1]


class Two(Boring):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)


def test_statistics_are_those_of_training_batches(tmp_path):
    def refreshed(trainer, module):
        stage = trainer.state.stage
        assert refresh_statistics(trainer, module) == 1
        assert trainer.state.stage == stage
        with torch.no_grad():
            inputs = module.net[0](2 * Pictures(40).images)
        torch.testing.assert_close(module.net[1].running_mean, inputs.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(module.net[1].running_var, inputs.var((0, 2, 3)), rtol=1e-6, atol=1e-6)

    run(tmp_path, refreshed, Two(), Data())


def test_a_part_of_the_samples_and_any_batch(tmp_path):
    def refreshed(trainer, module):
        refresh_statistics(trainer, module, input_key="image", samples=20)
        with torch.no_grad():
            inputs = module.net[0](torch.cat([Pictures(16).images] * 2))
        torch.testing.assert_close(module.net[1].running_mean, inputs.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)

    run(tmp_path, refreshed, Boring("dict"))


def test_several_loaders_are_combined_as_lightning_does(tmp_path):
    """The shorter one begins again: four batches of the first, the fourth being the first once more."""

    class Both(Boring):
        def train_dataloader(self):
            return {"labelled": DataLoader(Pictures(24), 8), "unlabelled": DataLoader(Pictures(32), 8)}

        def training_step(self, batch, batch_idx):
            return super().training_step(batch["labelled"], batch_idx)

    def refreshed(trainer, module):
        refresh_statistics(trainer, module, input_key="labelled.0")
        with torch.no_grad():
            inputs = module.net[0](torch.cat([Pictures(24).images, Pictures(24).images[:8]]))
        torch.testing.assert_close(module.net[1].running_mean, inputs.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)

    run(tmp_path, refreshed, Both())


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


def test_the_same_weights_give_the_same_statistics(tmp_path):
    def twice(trainer, module):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            refresh_statistics(trainer, module, samples=16)
            assert torch.equal(before, torch.get_rng_state())
            found.append(module.net[1].running_mean.clone())
        return found

    one, two = run(tmp_path, twice, Two(), Data())
    assert torch.equal(one, two)


def test_only_the_first_validation_loader(tmp_path):
    sizes = run(
        tmp_path, lambda trainer, module: [len(b[0]) for b in validation_batches(trainer, module)], Two(), Data()
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
    other = twins({"a": [stateful], "b": persistent})
    assert [len(list(loader)) for loader in (*other["a"], other["b"])] == [4, 4]
    assert stateful.given == 0
    assert [batch.tolist() for batch in running] == [[2, 3], [4, 5], [6, 7]]


def test_random_numbers_come_back_after_an_error():
    before = torch.get_rng_state()

    @isolated_rng()
    def fail():
        torch.rand(5)
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(before, torch.get_rng_state())


def test_the_users_own_generator_is_not_moved(tmp_path):
    generator = torch.Generator().manual_seed(3)

    class Own(Boring):
        def train_dataloader(self):
            return DataLoader(Pictures(32), 16, shuffle=True, generator=generator)

    def moved(trainer, module):
        before = copy.deepcopy(generator.get_state())
        refresh_statistics(trainer, module)
        return torch.equal(before, generator.get_state())

    assert run(tmp_path, moved, Own())
