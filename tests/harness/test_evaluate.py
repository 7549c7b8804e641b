"""A quiet evaluation gives what Lightning's own validation gives, and leaves no trace."""

import random

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.ranks import RankError

from ..boring import Boring, Pictures, TwoProcesses, make_trainer


class Rich(Boring):
    """Logs in every way there is, over two loaders of uneven batches."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(4, average="micro")
        self.several = MetricCollection({"f1": MulticlassF1Score(4), "macro": MulticlassAccuracy(4)})
        self.seen = []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        logits = self(batch[0])
        loss = torch.nn.functional.cross_entropy(logits, batch[1])
        self.log("val/loss", loss)
        self.log("val/sum", loss, reduce_fx="sum")
        self.log("val/max", loss, reduce_fx=torch.max)
        self.log_dict({"val/a": loss * 2, "val/b": len(batch[0])}, batch_size=1)
        if dataloader_idx == 0:
            self.accuracy(logits, batch[1])
            self.log("val/acc", self.accuracy, add_dataloader_idx=False)
            self.several(logits, batch[1])
            self.log_dict(self.several, add_dataloader_idx=False)
        self.seen.append(loss)

    def on_validation_epoch_end(self):
        self.log("val/mean_of_batches", torch.stack(self.seen).mean())
        self.seen.clear()

    def val_dataloader(self):
        return [DataLoader(Pictures(50), 16), DataLoader(Pictures(21), 8)]


class Compare(pl.Callback):
    """Evaluates before Lightning's own validation and when training has ended."""

    def on_validation_start(self, trainer, pl_module):
        self.before = Evaluator(trainer, pl_module).metrics()

    def on_train_end(self, trainer, pl_module):
        self.plain = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.after = Evaluator(trainer, pl_module).metrics()


def test_equals_lightnings_validation(tmp_path):
    compare = Compare()
    make_trainer(tmp_path, [compare], max_epochs=1).fit(Rich())
    expected = {key: value for key, value in compare.plain.items() if not key.startswith("train")}
    assert compare.before.keys() == compare.after.keys() == expected.keys()
    assert len(expected) == 14
    for key, value in expected.items():
        assert compare.before[key] == pytest.approx(value, rel=1e-6), key
        assert compare.after[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize(
    "settings", [{"limit_val_batches": 2}, {"precision": "bf16-true"}, {"precision": "bf16-mixed"}]
)
def test_equals_it_under_trainer_flags(tmp_path, settings):
    compare = Compare()
    make_trainer(tmp_path, [compare], max_epochs=1, **settings).fit(Boring("dict"))
    assert compare.before["val/loss"] == pytest.approx(compare.plain["val/loss"], rel=1e-5)


def test_a_step_without_batch_index(tmp_path):
    class Short(Boring):
        def validation_step(self, batch):
            self.log("val/loss", self._loss(batch))

    compare = Compare()
    make_trainer(tmp_path, [compare], max_epochs=1).fit(Short())
    assert compare.before["val/loss"] == pytest.approx(compare.plain["val/loss"])


class Traces(pl.Callback):
    """What an evaluation must leave alone, before and after one that may break half way."""

    def __init__(self, breaks):
        self.breaks, self.pairs = breaks, []

    def look(self, trainer, module):
        return {
            "rng": (torch.get_rng_state().tolist(), random.getstate()),
            "modes": [part.training for part in module.modules()],
            "stage": (trainer.state.stage, trainer.state.fn),
            "loggers": [id(logger) for logger in trainer.loggers],
            "attributes": sorted(vars(module)),
            "metrics": (id(module.accuracy), module.accuracy.update_count, module.accuracy.metric_state["tp"].tolist()),
            "modules": [id(part) for part in module.modules()],
            "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        }

    def check(self, trainer, module):
        before = self.look(trainer, module)
        if self.breaks:
            module.validation_step, own = self.broken, module.validation_step
            with pytest.raises(KeyError, match="planted"):
                Evaluator(trainer, module).metrics()
            module.__dict__.pop("validation_step")
            assert own == module.validation_step
        else:
            Evaluator(trainer, module).metrics()
        self.pairs.append((before, self.look(trainer, module)))

    def broken(self, batch, batch_idx, dataloader_idx=0):
        torch.rand(3)
        if batch_idx == 2:
            raise KeyError("planted")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if (batch_idx, dataloader_idx) == (1, 0):
            self.check(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        pl_module.net[4].eval()
        self.check(trainer, pl_module)


@pytest.mark.parametrize("breaks", [False, True])
def test_leaves_no_trace(tmp_path, breaks):
    traces = Traces(breaks)
    make_trainer(tmp_path, [traces], max_epochs=1).fit(Rich())
    assert len(traces.pairs) == 2
    for before, after in traces.pairs:
        assert before == after


def test_running_scores_are_means_over_what_was_seen(tmp_path):
    class Run(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            evaluator = Evaluator(trainer, pl_module)
            self.unknown = list(evaluator.running_score("val/acc"))
            self.scores = {name: list(evaluator.running_score(name)) for name in ("val/acc", "val/loss", "f1")}
            self.best = {name: evaluator.best_possible(name) for name in ("val/acc", "val/loss", "f1")}
            self.batches = evaluator.batches

    class One(Rich):
        def val_dataloader(self):
            return DataLoader(Pictures(50), 16)

    run = Run()
    trainer = make_trainer(tmp_path, [run], max_epochs=1)
    trainer.fit(One())
    final = {name: float(trainer.callback_metrics[name]) for name in run.scores}
    assert run.unknown == [(pytest.approx(final["val/acc"]), 1.0)]
    assert [share for _, share in run.scores["val/loss"]] == pytest.approx([0.32, 0.64, 0.96, 1.0])
    for name in ("val/acc", "val/loss"):
        assert run.scores[name][-1] == (pytest.approx(final[name], rel=1e-6), 1.0)
    # a macro F1 is no mean over samples: a part of the data bounds nothing
    assert len(run.scores["f1"]) == 1
    assert run.best == {"val/acc": 1.0, "val/loss": None, "f1": None}
    assert run.batches == 16


def test_bad_requests_say_what_there_is(tmp_path):
    class Ask(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            with pytest.raises(ValueError, match=r"'val/accuracy', but validation logs \['val/loss'\]"):
                Evaluator(trainer, pl_module).score("val/accuracy")

    make_trainer(tmp_path, [Ask()], max_epochs=1).fit(Boring())

    class None_(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            with pytest.raises(ValueError, match="held-out loaders"):
                Evaluator(trainer, pl_module)

    make_trainer(tmp_path, [None_()], max_epochs=1, limit_val_batches=0).fit(Boring())


class Both(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_validation_start(self, trainer, pl_module):
        value = Evaluator(trainer, pl_module).metrics()["val/loss"]
        (self.folder / f"rank{trainer.global_rank}").write_text(repr(value))


def test_two_processes_pool_their_samples(tmp_path):
    trainer = make_trainer(tmp_path, [Both(tmp_path)], strategy=TwoProcesses(), devices=2, max_epochs=1)
    trainer.fit(Boring())
    values = [float((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert values[0] == values[1] == pytest.approx(float(trainer.callback_metrics["val/loss"]), rel=1e-5)


class FailsOnRankOne(pl.Callback):
    """Evaluates while rank 1 fails; each rank writes its error."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_epoch_end(self, trainer, pl_module):
        def transform(batch, index, loader):
            if trainer.global_rank == 1:
                raise OSError("a file is gone")
            return batch

        with pytest.raises(RankError) as caught:
            Evaluator(trainer, pl_module).metrics(transform)
        (self.folder / f"error{trainer.global_rank}").write_text(str(caught.value))


def test_a_rank_that_fails_leaves_no_other_waiting(tmp_path):
    callbacks = [FailsOnRankOne(tmp_path)]
    trainer = make_trainer(tmp_path, callbacks, strategy=TwoProcesses(), devices=2, max_epochs=1)
    trainer.fit(Boring())
    expected = "Validation failed on 1 of 2 ranks. rank 1: OSError: a file is gone"
    assert [(tmp_path / f"error{rank}").read_text() for rank in range(2)] == [expected, expected]
