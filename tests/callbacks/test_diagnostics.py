"""The report that diagnostics share, and the conditions that they name."""

import math

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_robust import DatapathCallback, DeploymentParityCallback, LayerCriticalityCallback
from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.conditions import ATTACK, PGD
from lightning_robust.callbacks.diagnostics import NamedConditions, Report, check_at_least, finite, show

from ..boring import Boring, make_trainer


def test_a_figure_that_fails_leaves_the_scalars_and_the_tables(tmp_path):
    trainer = make_trainer(tmp_path, [], logger=CSVLogger(tmp_path, version=0))
    report = Report({"a/b": 0.5}, {"a/table": (["x"], [["1"]])}, {"a/figure": lambda: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        show(trainer, report)
    assert trainer.callback_metrics["a/b"] == 0.5
    assert (tmp_path / "lightning_logs/version_0/figures/a/table-0.csv").read_text().split() == ["x", "1"]


def test_without_a_logger_no_figure_is_drawn(tmp_path):
    trainer = make_trainer(tmp_path, [])
    assert not trainer.loggers
    show(trainer, Report({"a": 1.0}, figures={"b": lambda: 1 / 0}))
    assert trainer.callback_metrics["a"] == 1


def test_numbers_that_are_not_finite_are_left_out():
    assert finite({"a": 1.0, "b": math.inf, "c": math.nan}) == {"a": 1.0}


def test_conditions_come_in_the_order_of_their_names_and_once(tmp_path):
    inputs = AttackInputs([0], None, None, "pixels")
    names = ["fp16", "pgd", "jpeg", "jpeg_90", "fgsm"]
    named = NamedConditions(names, inputs, "8/255", attacks=(ATTACK, PGD), others=("fp16",))
    built = named.build(make_trainer(tmp_path, []), Boring())
    assert [condition.name for condition in built] == ["fp16", "pgd", "jpeg_90", "fgsm"]
    assert built[0].transform is None


@pytest.mark.parametrize("name", ["jepg", "pgd", "fp16"])
def test_rejects_conditions_that_a_callback_does_not_have(name):
    with pytest.raises(ValueError, match=f"got '{name}'"):
        NamedConditions(name, AttackInputs([0], None, None, "pixels"), 0.1)


def test_rejects_numbers_below_their_least():
    check_at_least(1, draws=1)
    with pytest.raises(ValueError, match="Expected `draws` of at least 1, but got 0"):
        check_at_least(1, draws=0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DatapathCallback([None]), "under"),
        (lambda: DatapathCallback(-1), "under"),
        (lambda: LayerCriticalityCallback("val/loss", "min", under=[3]), "under"),
        (lambda: DeploymentParityCallback([None]), "targets"),
    ],
)
def test_names_that_are_no_text_are_refused_by_the_argument(make, name):
    with pytest.raises(TypeError, match=f"Expected `{name}` to be text or a list of it, but got"):
        make()
