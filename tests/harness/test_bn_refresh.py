import copy

import torch
from torch.utils.data import DataLoader

from lightning_robust.harness.bn_refresh import refresh_statistics

from ..boring import Boring, Pictures
from .runs import Data, TwoLoaders, run


def test_statistics_are_those_of_training_batches(tmp_path):
    def refreshed(trainer, module):
        stage = trainer.state.stage
        assert refresh_statistics(trainer, module) == 1
        assert trainer.state.stage == stage
        with torch.no_grad():
            inputs = module.net[0](2 * Pictures(40).images)
        torch.testing.assert_close(module.net[1].running_mean, inputs.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(module.net[1].running_var, inputs.var((0, 2, 3)), rtol=1e-6, atol=1e-6)

    run(tmp_path, refreshed, TwoLoaders(), Data())


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

    one, two = run(tmp_path, twice, TwoLoaders(), Data())
    assert torch.equal(one, two)


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
