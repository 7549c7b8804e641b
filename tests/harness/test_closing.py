import re
import warnings

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_robust import (
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    LayerCriticalityCallback,
    SWACallback,
    WiSEFTCallback,
    progress,
)
from lightning_robust.harness.closing import ClosingSummary
from lightning_robust.harness.digest import digest

from ..boring import Boring, make_trainer


def fit(folder, callbacks, module, **kwargs):
    trainer = make_trainer(folder, callbacks, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module)
    return trainer


def summaries(caplog):
    return [r.getMessage() for r in caplog.records if "Closing summary" in r.getMessage()]


def part(summary, title):
    """The lines below a title."""
    _, _, rest = summary.partition(f"{title}:\n")
    return re.match(r"((?:  .*(?:\n|$))*)", rest)[0].splitlines()


class NoMetric(Boring):
    def validation_step(self, batch, batch_idx):
        """Logs another name in quiet runs."""
        self.log("val/other" if "log" in vars(self) else "val/loss", self._loss(batch))


def test_one_summary_at_the_end_repeats_every_loss_once(tmp_path, caplog):
    soup = GreedySoupCallback(monitor="val/loss", mode="min", ingredients="epochs", report_barriers=False)
    datapath = DatapathCallback(under=["jpeg", "fgsm"], every_n_epochs=1, input_key=1)
    trainer = fit(tmp_path, [datapath, soup], NoMetric())
    (summary,) = summaries(caplog)
    lines = part(summary, "Warnings")
    assert len(lines) == len(set(lines)) >= 2
    assert any("GreedySoupCallback: no soup" in line for line in lines)
    assert any("DatapathCallback" in line for line in lines)
    assert not any(isinstance(callback, ClosingSummary) for callback in trainer.callbacks)
    assert trainer.callbacks[:2] == [datapath, soup]


def test_techniques_in_the_order_they_ran_on_the_weights_they_measured(tmp_path, caplog):
    """Criticality and datapath measure the raw weights, parity those that the soup left; each by its own digest."""
    seen = {}

    class Watch(DatapathCallback):
        def on_train_end(self, trainer, pl_module):
            seen[self.under[0]] = digest(pl_module.state_dict())
            super().on_train_end(trainer, pl_module)

    criticality = LayerCriticalityCallback(monitor="val/loss", mode="min")
    parity = DeploymentParityCallback(["onnxruntime-fp32"], perturbations="none", localise=True)
    soup = GreedySoupCallback(monitor="val/loss", mode="min", ingredients="epochs", recipe="uniform")
    wise_ft = WiSEFTCallback(monitor="val/loss", mode="min", alphas=[0.5])
    order = [
        criticality,
        Watch(under=["fgsm"]),
        SWACallback(start=0.5),
        Watch(under=["gamma_09"]),
        soup,
        wise_ft,
        parity,
    ]
    module = Boring()
    fit(tmp_path, order, module)
    (summary,) = summaries(caplog)
    steps = [re.sub(r"^  \d+\. ", "", line) for line in part(summary, "What ran, in this order")]
    names = ["layer_criticality", "datapath", "swa", "datapath", "greedy_soup", "wise_ft", "deployment_parity"]
    assert [re.match(r"\w+", step)[0] for step in steps] == names
    raw, average, last = seen["fgsm"], seen["gamma_09"], digest(module.state_dict())
    assert raw != average
    assert f", on the weights as trained (epoch 1, step 8, {raw}): " in steps[0]
    assert f", on the weights as trained (epoch 1, step 8, {raw}): " in steps[1]
    assert re.search(rf", on the average of \d snapshots? \(epoch 1, step 8, {average}\): ", steps[3])
    held = re.search(r"The module holds (.*)\.\n", summary)[1]
    assert re.fullmatch(rf"\S.* \(epoch 1, step 8, {last}\)", held)
    assert f", on {held}: " in steps[5]
    assert f", on {held}: " in steps[6]
    assert (
        part(summary, "Files")[-1]
        == f"  {tmp_path}/parity-0: {', '.join(sorted(p.name for p in (tmp_path / 'parity-0').iterdir()))}"
    )


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_as_the_trainer_shows_its_own(tmp_path, monkeypatch, shown):
    """Every phase after the fit and at validation ends has one; a fit with enable_progress_bar=False has none."""
    seen = []

    class Silent:
        def update(self, progress):
            pass

        def close(self, progress, *, finished):
            seen.append((progress.what, progress.done, progress.total))

    monkeypatch.setattr(progress, "_DELAY", 0.0)
    monkeypatch.setattr(progress, "_display", lambda progress: Silent())
    soup = GreedySoupCallback(monitor="val/loss", mode="min", ingredients="epochs")
    wise_ft = WiSEFTCallback(monitor="val/loss", mode="min", alphas=[0.5])
    parity = DeploymentParityCallback(["emulated-fp16"], perturbations=["bgr"], num_samples=4)
    criticality = LayerCriticalityCallback(monitor="val/loss", mode="min")
    callbacks = [criticality, DatapathCallback(under=["fgsm"]), soup, wise_ft, parity]
    fit(tmp_path, [*callbacks, TQDMProgressBar()][: None if shown else -1], Boring(), enable_progress_bar=shown)
    phases = {what: (done, total) for what, done, total in seen}
    assert bool(phases) == shown
    if shown:
        assert phases["Soup"] == (3, 3)  # a barrier, a mixture, the weights as trained
        assert phases["WiSE-FT"] == (3, 3)
        assert phases["Layer criticality, clean"] == (4, 4)
        assert phases["Datapath"] == (1, 1)
        assert phases["Running the targets"] == (1, 1)
        assert phases["Measuring perturbations"] == (1, 1)


def test_no_warnings_no_heading(tmp_path, caplog):
    fit(tmp_path, [DatapathCallback(under=["fgsm"])], Boring())
    (summary,) = summaries(caplog)
    assert "Warnings" not in summary
    assert len(part(summary, "What ran, in this order")) == 1


def test_plain_lightning_says_nothing(tmp_path, caplog):
    fit(tmp_path, [], Boring())
    assert summaries(caplog) == []


def test_a_second_fit_has_a_summary_of_its_own(tmp_path, caplog):
    """Warnings of the first are not repeated in it."""
    module, folder = NoMetric(), tmp_path / "runs"
    fit(folder, [DatapathCallback(under=["fgsm"], input_key=1)], module)
    fit(folder, [DatapathCallback(under=["fgsm"])], Boring())
    first, second = summaries(caplog)
    assert "Warnings" in first
    assert "Warnings" not in second


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
