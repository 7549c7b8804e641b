"""Clean against attacked, raw against averaged: the curves are the logged numbers, over a resumed run too."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_robust import AdversarialCallback, RobustValidationCallback, SWACallback
from lightning_robust.callbacks.averaging.figure import averaging_figures
from lightning_robust.callbacks.metric_curves import MetricCurves
from lightning_robust.callbacks.robust_validation.figure import robust_figures
from tests.boring import Boring, make_trainer


class Tape(pl.Callback):
    """What each validation logged."""

    def __init__(self):
        self.found = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def techniques(brought_along):
    settings = {"steps": 1, "batches": 1, "bounds": "none"}
    attack = RobustValidationCallback([0.01, 0.1], **settings)
    if brought_along:
        attack = AdversarialCallback(
            "fgsm", eps=0.0, val_eps=[0.01, 0.1], val_steps=1, val_batches=1, bounds="none", guard_every_n_steps=0
        )
    return attack, SWACallback(start=1, also={"last2": {"kind": "lawa", "window": 2}})


def fit(folder, callbacks, epochs, ckpt_path=None, logger=True):
    pl.seed_everything(1)
    tape, keeper = Tape(), ModelCheckpoint(folder, "last", save_top_k=-1, enable_version_counter=False)
    logger = CSVLogger(folder) if logger else False
    trainer = make_trainer(
        folder, [*callbacks, tape, keeper], max_epochs=epochs, logger=logger, enable_checkpointing=True
    )
    trainer.fit(Boring(), ckpt_path=ckpt_path)
    return tape


def points_of(attack, swa):
    states = attack.state_dict(), swa.state_dict()
    robust = states[0].get("validation", states[0])["curves"]
    return robust, states[1]["curves"]


@pytest.mark.filterwarnings("ignore:(AdversarialCallback|RobustValidationCallback|The dirpath)")
@pytest.mark.parametrize("brought_along", [False, True])
def test_curves_are_what_was_logged_and_go_on_in_a_resumed_run(tmp_path, brought_along):
    whole = techniques(brought_along)
    tape = fit(tmp_path / "whole", whole, 3).found
    robust, averaged = points_of(*whole)
    assert robust == {
        "val/loss": {
            "0": [[n + 1.0, each["val/loss"]] for n, each in enumerate(tape)],
            "0.01": [[n + 1.0, each["adversarial/val_loss@0.01"]] for n, each in enumerate(tape)],
            "0.1": [[n + 1.0, each["adversarial/val_loss@0.1"]] for n, each in enumerate(tape)],
        }
    }
    # the first snapshot is that of the end of the second epoch
    series = averaged["val/loss"]
    assert series["average"] == [[n + 1.0, tape[n]["val/loss"]] for n in (1, 2)]
    later = [[n + 1.0, pytest.approx(tape[n]["swa/raw/val/loss"])] for n in (1, 2)]
    assert series["raw"] == [[1.0, tape[0]["val/loss"]], *later]
    assert series["last2"] == [[n + 1.0, pytest.approx(tape[n]["swa/last2/val/loss"])] for n in (1, 2)]
    names = sorted(path.name for path in (tmp_path / "whole").rglob("*_over_*.png"))
    assert [name.split("-")[0] for name in names] == [
        "val_loss_over_epochs",
        "val_loss_over_epochs",
        "val_loss_over_eps",
    ]

    first, second = techniques(brought_along), techniques(brought_along)
    fit(tmp_path / "parts", first, 2)
    saved = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]
    (last,) = fit(tmp_path / "parts", second, 3, ckpt_path=tmp_path / "parts" / "last.ckpt").found
    resumed, averaged = points_of(*second)
    for name, tag in (("0", "val/loss"), ("0.1", "adversarial/val_loss@0.1")):
        assert resumed["val/loss"][name] == [*robust["val/loss"][name][:2], [3.0, last[tag]]]
    assert averaged["val/loss"]["raw"][:2] == series["raw"][:2]
    assert averaged["val/loss"]["average"] == [series["average"][0], [3.0, last["val/loss"]]]


@pytest.mark.filterwarnings("ignore:(AdversarialCallback|RobustValidationCallback)")
def test_without_a_logger_nothing_is_kept_or_drawn(tmp_path, monkeypatch):
    for module in ("averaging.curves.averaging_figures", "robust_validation.callback.robust_figures"):
        monkeypatch.setattr(f"lightning_robust.callbacks.{module}", lambda *_: {"x": lambda: 1 / 0})
    callbacks = techniques(brought_along=False)
    fit(tmp_path, callbacks, 2, logger=False)
    assert points_of(*callbacks) == ({}, {})
    assert not list(tmp_path.rglob("*.png"))


def test_a_figure_that_fails_leaves_the_average_in_the_module(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_robust.callbacks.averaging.curves.averaging_figures", lambda *_: {"x": lambda: 1 / 0}
    )
    swa = SWACallback(start=1)
    with pytest.warns(UserWarning, match="SWACallback: the figures are not drawn. ZeroDivisionError"):
        fit(tmp_path, [swa], 3)
    assert swa.main.running.count == 2


def test_titles_and_marks():
    curves = MetricCurves()
    for epoch, raw, average in ((1, 0.5, None), (2, 0.6, 0.7), (3, 0.65, 0.75)):
        curves.note(epoch, "raw", {"acc": raw, "loss": float("nan")})
        if average is not None:
            curves.note(epoch, "average", {"acc": average})
    assert list(curves.points) == ["acc"]
    figure = averaging_figures(curves, ["acc"])["swa/acc_over_epochs"]()
    assert figure.get_suptitle() == "acc: 0.75 with the average, 0.65 with the raw weights"
    lines = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines}
    assert list(lines) == ["raw weights", "average", "average begins"]
    assert list(lines["average begins"]) == [2, 2]
    robust = MetricCurves()
    for radius, value in (("0", 0.9), ("0.0313725", 0.3), ("0.1", 0.1)):
        robust.note(1, radius, {"acc": value})
    figures = robust_figures(robust, ["acc"], 8)
    assert list(figures) == ["adversarial/acc_over_epochs", "adversarial/acc_over_eps"]
    over_eps = figures["adversarial/acc_over_eps"]()
    assert over_eps.get_suptitle() == "acc: 0.9 clean, 0.1 under attack (eps 0.1)"
    assert over_eps.axes[0].lines[0].get_xydata().tolist() == [[0, 0.9], [0.0313725, 0.3], [0.1, 0.1]]
    labels = figures["adversarial/acc_over_epochs"]().axes[0].get_legend_handles_labels()[1]
    assert labels == ["clean, all batches", "eps 8/255, 8 batches", "eps 0.1, 8 batches"]
