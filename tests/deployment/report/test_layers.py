"""The layers in tables and sentences."""

import dataclasses

from lightning_robust.deployment.numerics.trace import NodeTrace
from lightning_robust.deployment.report.layers import layer_sentences

from ..reports import KEEP, layers, node, report


def test_a_drift_beyond_the_tolerance_is_told_in_the_summary():
    drifting = dataclasses.replace(node("b", 0.2), trace=NodeTrace(0.02, 0.0, 0.0, 0.0))
    lines = layer_sentences(report(layers=layers(node("a", 0.1), drifting), keep=KEEP))
    assert lines[0] == "neck.b (neck.py:41) (Pow) is the first whose values drift in fp16, by 2 %."
    assert lines[1].startswith("What fp16 hurts most: neck.b")
    assert lines[2].startswith("With 2 nodes kept in fp32 the distance falls from 0.3 to 0.02")
