"""Names and numbers as Lightning's own logging gives them; whole validations are compared in test_evaluate.py."""

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.recorder import Recorder

from ..boring import Boring, make_trainer


def test_means_are_weighted_by_samples_and_others_reduced(tmp_path):
    recorder, trainer = Recorder(1), make_trainer(tmp_path)
    for size, value in ((3, 1.0), (1, 5.0)):
        recorder.enter(size, 0)
        recorder.log("mean", torch.tensor(value), prog_bar=True)
        recorder.log("own size", value, batch_size=1)
        recorder.log_dict({"sum": value, "max": value}, reduce_fx="sum")
        recorder.log("largest", value, reduce_fx=torch.max)
        recorder.log("median", value, reduce_fx=torch.median)
    results = {name: entry.result(trainer) for name, entry in recorder.entries.items()}
    assert results == {"mean": 2.0, "own size": 3.0, "sum": 6.0, "max": 6.0, "largest": 5.0, "median": 1.0}
    assert [name for name, entry in recorder.entries.items() if entry.is_mean_over_samples] == ["mean", "own size"]


def test_several_loaders_have_names_of_their_own():
    recorder = Recorder(2)
    for loader in range(2):
        recorder.enter(1, loader)
        recorder.log("loss", float(loader))
        recorder.log("shared", float(loader), add_dataloader_idx=False)
    recorder.leave_loaders()
    recorder.log("epoch", 7.0)
    assert list(recorder.entries) == ["loss/dataloader_idx_0", "shared", "loss/dataloader_idx_1", "epoch"]
    assert recorder.entries["shared"].mean() == 0.5


@pytest.mark.parametrize("settings", [{"on_step": True}, {"on_step": True, "on_epoch": True}, {"on_epoch": True}, {}])
@pytest.mark.parametrize("loaders", [1, 2])
def test_names_are_those_that_lightnings_monitors_know(tmp_path, settings, loaders):
    class Forked(Boring):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val/loss", self._loss(batch) + dataloader_idx, **settings)

        def val_dataloader(self):
            return [super().val_dataloader()] * loaders if loaders > 1 else super().val_dataloader()

    found = {}

    class Measures(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            found.update(Evaluator(trainer, pl_module).metrics())

    trainer = make_trainer(tmp_path, [Measures()], max_epochs=1)
    trainer.fit(Forked())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if "val/" in name}
    assert found == pytest.approx(logged, rel=1e-5)
    assert len(found) == loaders * (2 if settings.get("on_step") else 1)


def test_a_metric_object_is_read_before_the_next_loader_updates_it(tmp_path):
    recorder, metric = Recorder(2), MulticlassAccuracy(2, average="micro")
    recorder.enter(2, 0)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    recorder.log("acc", metric, add_dataloader_idx=False)
    assert recorder.entries["acc"].is_mean_over_samples
    recorder.enter(2, 1)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert recorder.entries["acc"].result(make_trainer(tmp_path)) == pytest.approx(0.5)
