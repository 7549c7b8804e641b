import warnings

import pytest

from lightning_robust import DatapathCallback, GreedySoupCallback
from lightning_robust.harness.closing import ClosingSummary

from ..boring import Boring, make_trainer


def fit(folder, callbacks, module):
    trainer = make_trainer(folder, callbacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module)
    return trainer


class NoMetric(Boring):
    def validation_step(self, batch, batch_idx):
        """Logs another name in quiet runs."""
        self.log("val/other" if "log" in vars(self) else "val/loss", self._loss(batch))


def test_one_summary_at_the_end_repeats_every_loss_once(tmp_path, caplog):
    soup = GreedySoupCallback(monitor="val/loss", mode="min", ingredients="epochs", report_barriers=False)
    datapath = DatapathCallback(under=["jpeg", "fgsm"], every_n_epochs=1, input_key=1)
    trainer = fit(tmp_path, [datapath, soup], NoMetric())
    (summary,) = [r.getMessage() for r in caplog.records if "Not all that was switched on" in r.getMessage()]
    lines = summary.splitlines()[1:]
    assert len(lines) == len(set(lines)) >= 2
    assert any("GreedySoupCallback: no soup" in line for line in lines)
    assert any("DatapathCallback" in line for line in lines)
    assert not any(isinstance(callback, ClosingSummary) for callback in trainer.callbacks)
    assert trainer.callbacks[:2] == [datapath, soup]


def test_nothing_lost_nothing_said(tmp_path, caplog):
    fit(tmp_path, [DatapathCallback(under=["fgsm"])], Boring())
    assert not [r for r in caplog.records if "Not all" in r.getMessage()]


@pytest.mark.filterwarnings("ignore")
def test_leaves_after_an_exception(tmp_path):
    class Breaks(NoMetric):
        def on_train_epoch_end(self):
            if self.current_epoch == 1:
                raise KeyError("planted")

    trainer = make_trainer(tmp_path, [DatapathCallback(under=["fgsm"], every_n_epochs=1, input_key=1)])
    with pytest.raises(KeyError, match="planted"):
        trainer.fit(Breaks())
    assert not any(isinstance(callback, ClosingSummary) for callback in trainer.callbacks)
