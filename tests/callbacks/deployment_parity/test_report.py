"""What of a report goes to loggers."""

from dataclasses import replace

from lightning_robust.callbacks.deployment_parity.report import layers_report
from lightning_robust.deployment.parity.result import Examination

from ...deployment.reports import KEEP, layers, node, report


def test_layers_of_both_precisions_have_their_own_tags():
    int8 = Examination(replace(layers(node("conv", 0.1)), precision="int8"), replace(KEEP, precision="int8"))
    shown = layers_report(report(layers=layers(node("a", 0.2)), keep=KEEP, int8=int8))
    assert list(shown.tables) == ["parity/layers", "parity/keep_fp32", "parity/layers_int8", "parity/exclude_int8"]
    assert list(shown.figures) == ["parity/layers", "parity/layers_int8"]
    assert [rows[0][0] for _, rows in shown.tables.values()] == ["a", "a", "conv", "a"]
    assert shown.figures["parity/layers_int8"]().axes[0].get_title() == "Cost of one node alone in int8"


def test_nothing_where_nothing_was_measured():
    assert layers_report(report()) == layers_report(report(layers=None))
    assert not layers_report(report()).tables
