"""Averages on two processes that were seeded differently."""

import lightning.pytorch as pl
import torch

from lightning_robust import SWACallback

from ...boring import Boring, TwoProcesses, make_trainer


class SeedsOfItsOwn(pl.Callback):
    """As processes that nobody seeded: each rank draws other numbers."""

    def on_fit_start(self, trainer, pl_module):
        torch.manual_seed(100 + trainer.global_rank)


class WriteState(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save(dict(pl_module.state_dict()), self.folder / f"rank{trainer.global_rank}.pt")


def test_low_precision_rounds_weights_alike_on_all_ranks(tmp_path):
    """Replicas that round by other random numbers would drift apart from the first step on."""
    module = Boring()
    module.net[4] = torch.nn.Identity()  # dropout differs on purpose, and only in gradients, which are averaged
    swalp = SWACallback(start=0, every=1, word_length=8, bn_refresh=False)
    callbacks = [SeedsOfItsOwn(), WriteState(tmp_path), swalp]
    trainer = make_trainer(tmp_path, callbacks, strategy=TwoProcesses(), devices=2, max_epochs=1)
    trainer.fit(module)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    parameters = [name for name, _ in module.named_parameters()]
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    assert not torch.equal(first["net.5.weight"], Boring().net[5].weight)
