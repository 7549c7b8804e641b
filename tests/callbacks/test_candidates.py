"""What the callbacks that choose weights share."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_robust.callbacks.candidates import Candidates, require_last, save_chosen
from lightning_robust.callbacks.judging import JudgingCallback

from ..boring import Boring, make_trainer


def judging(monitor, mode):
    callback = JudgingCallback()
    callback.monitor, callback.mode = monitor, mode
    return callback


def test_metric_and_mode_come_from_what_watches_already(tmp_path):
    first, second = EarlyStopping("val/loss", mode="max"), ModelCheckpoint(tmp_path, monitor="val/acc", mode="max")
    trainer = make_trainer(tmp_path, [first, second], enable_checkpointing=True)
    assert judging(None, None).judged_by(trainer) == ("val/loss", "max")
    assert judging("val/loss", "min").judged_by(trainer) == ("val/loss", "min")
    assert judging(["val/acc", "val/loss"], None).judged_by(trainer) == ("val/acc", "max")
    with pytest.raises(MisconfigurationException, match=r"JudgingCallback: .*monitor='val/f1' with mode=None"):
        judging("val/f1", None).judged_by(trainer)


@pytest.mark.parametrize(
    ("monitor", "told"),
    [
        ("val/los", r"'val/los' is not what the sanity check logged \(val/loss\).*Did you mean 'val/loss'"),
        ("val/loss", ""),
    ],
)
def test_a_metric_that_is_not_logged_is_told_before_training(tmp_path, monitor, told):
    trainer = make_trainer(tmp_path, [judging(monitor, "min")], num_sanity_val_steps=1, max_steps=0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(Boring())
    said = [str(each.message) for each in found if "sanity check" in str(each.message)]
    assert len(said) == bool(told)
    assert all(re.search(told, each) for each in said)


def test_rejects_a_callback_that_comes_later(tmp_path):
    class Chooses(Callback):
        pass

    chooses, other = Chooses(), EarlyStopping("val/loss")
    require_last(make_trainer(tmp_path, [other, chooses]), chooses, EarlyStopping)
    with pytest.raises(MisconfigurationException, match="Expected EarlyStopping before Chooses"):
        require_last(make_trainer(tmp_path, [chooses, other]), chooses, EarlyStopping)


def test_best_means_the_chosen_weights_where_the_metric_is_the_same(tmp_path):
    keepers = [ModelCheckpoint(tmp_path, monitor=name) for name in ("val/loss", "val/acc")]
    for keeper in keepers:
        keeper.best_model_score = torch.tensor(1.0)
    trainer = SimpleNamespace(
        callbacks=keepers,
        world_size=1,
        strategy=SimpleNamespace(barrier=None),
        fast_dev_run=False,
        lightning_module=Boring(),
        save_checkpoint=lambda path, weights_only: None,
    )
    save_chosen(trainer, tmp_path / "soup.ckpt", monitor="val/loss", score=0.25)
    assert [keeper.best_model_path for keeper in keepers] == [str(tmp_path / "soup.ckpt"), ""]
    assert [keeper.best_model_score.item() for keeper in keepers] == [0.25, 1.0]


def test_layers_that_were_frozen_keep_their_statistics(tmp_path):
    """Of two BatchNorm layers the first has the same statistics in all states that are mixed, the second has others."""
    results = {}

    class Mixes(Callback):
        def on_train_end(self, trainer, pl_module):
            candidates = Candidates(trainer, pl_module, "val/loss", "min")
            one, other = candidates.present(), candidates.present()
            other["second.running_mean"] = other["second.running_mean"] + 1
            candidates.mixing([one, other])
            middle = {name: (tensor + other[name]) / 2 for name, tensor in one.items()}
            results["frozen"] = middle["first.running_mean"]
            candidates.install(middle, mixed=True)
            results["mean"] = middle["second.running_mean"]

    class Two(Boring):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
            self.first.running_mean += 0.3

        def forward(self, images):
            return super().forward(self.second(self.first(images)))

        def on_train_batch_start(self, *_):
            self.first.eval()

    module = Two()
    make_trainer(tmp_path, [Mixes()], max_epochs=1).fit(module)
    assert torch.equal(module.first.running_mean, results["frozen"])
    assert torch.equal(module.first.running_mean, torch.full((3,), 0.3))
    assert (module.second.running_mean - results["mean"]).abs().min() > 0.3


def test_states_are_judged_in_the_module_and_leave_no_trace(tmp_path):
    """The weights of another module are scored as validating that module does."""
    results = {}

    class Judge(Callback):
        def on_train_end(self, trainer, pl_module):
            before = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
            candidates = Candidates(trainer, pl_module, "val/loss", "min")
            torch.manual_seed(5)
            other = Boring()
            results["score"] = candidates.score(other.state_dict(), mixed=False)
            results["other"] = other
            assert all(torch.equal(tensor, before[name]) for name, tensor in pl_module.state_dict().items())
            with pytest.raises(ValueError, match="Expected a DeploymentParityCallback"):
                Candidates(trainer, pl_module, "parity/x/rel_l2", "min").score(before, mixed=False)

    make_trainer(tmp_path, [Judge()], max_epochs=1).fit(Boring())
    (expected,) = make_trainer(tmp_path).validate(results["other"], verbose=False)
    assert results["score"] == pytest.approx(expected["val/loss"], rel=1e-6)
