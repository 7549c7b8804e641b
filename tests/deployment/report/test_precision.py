"""The page on a model in mixed precision: what it says of the budget and what that rests on."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_robust.deployment.mixed_precision import MixedModel
from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.parity.baseline import Measured
from lightning_robust.deployment.report.precision import budget_sentence, evidence_sentences, write_precision
from lightning_robust.statistics import Interval

from ..reports import layers, node

LAYERS = replace(layers(node("a", 0.5, overflow=0.25), node("b", 0.1)), precision="fp16", unit="rel_l2")
KEEP = KeepList(("a", "move"), 4, (), 0.5, 2e-3, 1e-3, 5e-3, "fp16", "rel_l2", 4, 8, True)


def mixed(distance=2e-3, high=3e-3, **keep):
    measured = Measured({"rel_l2": distance}, {"rel_l2": Interval(1e-3, high)}, 8)
    return MixedModel(
        *(Path("net_fp16.onnx"), 10, LAYERS, replace(KEEP, **keep), ("mine",), measured, None, None, False),
        "trtexec --onnx=net_fp16.onnx --stronglyTyped --noTF32",
    )


def test_page(tmp_path):
    page = write_precision(
        mixed(), tmp_path, notes=["The inputs are noise."], provenance={"model": "<net>"}
    ).read_text()
    for text in (
        "Budget met in emulated fp16: 0.002 (0.001 to 0.003) relative L2 distance, allowed is 0.005",
        "With 2 of 4 nodes kept in fp32 the distance falls from 0.5 to 0.002",
        "<td>a</td>",
        "<td>move</td><td>moves values between them</td>",
        "<td>mine</td><td>excluded by you</td>",
        "trtexec --onnx=net_fp16.onnx --stronglyTyped --noTF32",
        "The inputs are noise.",
        "&lt;net&gt;",
        "prefers-color-scheme: dark",
    ):
        assert text in page, text
    assert "src=" not in page
    assert json.loads((tmp_path / "keep_fp32.json").read_text())["nodes_to_exclude"] == ["^a$", "^move$"]
    assert json.loads((tmp_path / "precision.json").read_text())["provenance"]["model"] == "<net>"


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (mixed(), "That gave 0.002 on 8 samples, which the list was not found on, as the search said."),
        (mixed(4e-3), "That gave 0.004 on 8 samples, which the list was not found on, where the search said 0.002."),
        (mixed(checked=0), "That gave 0.002 on 8 samples, the ones that the list was found on, as the search said."),
        (mixed(high=6e-3), "The interval reaches 0.006, beyond the budget: more samples are needed to be sure."),
        (mixed(of=2), "Nothing is left in fp16: it takes every node in fp32 to meet the budget."),
        (mixed(6e-3), "The list met the budget where it was found, 0.001 on 4 samples, and does not on others. "),
        (mixed(6e-3, found_error=6e-3), "No list meets it, not even every node in fp32. Give a larger budget."),
        (
            replace(mixed(6e-3, found_error=6e-3), tf32=True),
            "No list meets it, not even every node in fp32: it multiplies in TF32, which --tf32 allows. Give a larger",
        ),
        (mixed(6e-3, found_error=6e-3, complete=False), "Time was up before every node was measured."),
        (mixed(), "and was not executed."),
    ],
)
def test_what_the_verdict_rests_on(found, sentence):
    assert any(sentence in line for line in evidence_sentences(found)), evidence_sentences(found)


def quantised(distance=2e-3, executed=2.1e-3, high=3e-3):
    layers = replace(LAYERS, precision="int8")
    ran = Measured({"rel_l2": executed}, {"rel_l2": Interval(1e-3, high)}, 8)
    return replace(mixed(distance, precision="int8"), layers=layers, executed=ran)


def test_an_executed_file_is_judged_by_what_was_executed(tmp_path):
    """Green only where the whole interval of what was executed is within the budget."""
    page = write_precision(quantised(), tmp_path).read_text()
    assert "Budget met in int8, executed by ONNX Runtime: 0.0021 (0.001 to 0.003) relative L2 distance" in page
    assert "No engine of TensorRT was executed" in page
    assert 'class="verdict good"' in page
    assert (tmp_path / "exclude_int8.json").is_file()
    assert 'class="verdict mind"' in write_precision(quantised(high=6e-3), tmp_path).read_text()
    assert 'class="verdict mind"' in write_precision(mixed(), tmp_path).read_text()
    assert 'class="verdict bad"' in write_precision(quantised(executed=6e-3), tmp_path).read_text()
    assert not quantised(executed=math.nan).met


def test_outputs_that_are_lost_are_no_budget_that_is_met():
    lost = mixed(math.nan)
    assert lost.distance == math.inf
    assert not lost.met
    assert budget_sentence(lost).startswith("Budget not met: inf")
