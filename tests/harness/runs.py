"""Short runs in which a function is called at the end of training."""

import lightning.pytorch as pl
from torch.utils.data import DataLoader

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


class TwoLoaders(Boring):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)
