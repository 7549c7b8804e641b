"""The layers in tables and sentences."""

import dataclasses
import math

from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.numerics.trace import NodeTrace
from lightning_robust.deployment.report.layers import keep_rows, keep_sentence, layer_rows, layer_sentences

from ..reports import KEEP, layers, node, report


def drifting(drift=0.02, nonfinite=0.0):
    return dataclasses.replace(node("b", 0.2), trace=NodeTrace(drift, 0.0, nonfinite, 0.0))


def changed(**changes):
    """The sentence on a list that differs from the usual one."""
    return keep_sentence(report(layers=layers(node("a", 0.1)), keep=dataclasses.replace(KEEP, **changes)))


def test_a_drift_beyond_the_tolerance_is_told_in_the_summary():
    lines = layer_sentences(report(layers=layers(node("a", 0.1), drifting()), keep=KEEP))
    assert lines == [
        "neck.py:41 Pow in neck.b is the first whose values drift in fp16, by 2 % of their size.",
        "What fp16 hurts most: neck.py:41 Pow in neck.b, 0.2 x px (99th percentile) alone.",
        (
            "With 2 of 12 nodes kept in fp32 the distance falls from 0.3 to 0.02 x px (99th percentile) on 12 samples "
            "that the list was not found on (0.018 on the 4 it was). Aimed at: 0.06."
        ),
    ]


def test_no_drift_is_told_as_infinite_per_cent():
    first = {
        case: layer_sentences(report(layers=layers(drifting(*values))))[0].partition("whose values ")[2]
        for case, values in {"lost": (math.inf, 1.0), "zero": (math.inf, 0.0), "much": (1e9, 0.0)}.items()
    }
    assert first == {
        "lost": "are infinite or NaN in fp16: 100 % of them.",
        "zero": "are 0 in fp32 and not in fp16.",
        "much": "drift in fp16, by 1000000000 times their size.",
    }


def test_a_list_that_adds_nothing_or_is_everything_is_told_as_such():
    """Nodes that were kept before are no gain, and where nothing is left in fp16 there is none either."""
    before = changed(nodes=("kept", "move"), total=0.05, error=0.05)
    assert before.startswith(
        "No node beside the 2 that are kept already needs to be kept in fp32: the distance is 0.05"
    )
    assert changed(of=2).endswith("Nothing is left in fp16, which gains nothing.")


def test_an_aim_that_is_not_met_is_said():
    assert changed(error=0.07).endswith("on the 4 it was). The aim of 0.06 is not met there.")
    assert changed(error=0.07, found_error=0.065).endswith("The aim of 0.06 is not met, by no list.")
    assert changed(nodes=(), total=0.3, error=0.3, found_error=0.3) == (
        "No list of nodes to keep in fp32 brings the distance of 0.3 x px (99th percentile) down to 0.06."
    )


def test_a_list_that_is_not_needed_or_not_checked():
    assert changed(nodes=(), total=0.05, error=0.05, found_error=0.04).startswith(
        "No node needs to be kept in fp32: the distance is 0.05 x px (99th percentile) on 12 samples"
    )
    assert "on the 1 sample that the list was found on, and was not checked on others." in changed(samples=1, checked=0)
    assert keep_sentence(report()) == ""
    assert keep_rows(report()) == (["keep in fp32", "where"], [])


def test_nodes_that_were_not_measured_are_last_and_named_so():
    partial = layers(node("a", None, exact=False), node("b", 0.2, exact=False), complete=False)
    told = report(layers=partial, keep=KEEP)
    columns, rows = layer_rows(told.layers)
    costs = [row[columns.index("alone")] for row in rows]
    assert [(row[0], row[-1]) for row in rows] == [("2", "b"), ("1", "a")]  # the number is the place in the graph
    assert costs == ["at most about 0.2", "not measured"]
    assert layer_sentences(told)[-1] == "Time was up: 1 of 2 nodes were not measured, and are in no list."
    assert "0.2 x px (99th percentile) together with its neighbours" in layer_sentences(told)[0]
    assert "inf" not in f"{rows} {layer_sentences(told)}"
    coarse = report(layers=layers(node("a", 0.1, exact=False), complete=False), keep=KEEP)
    assert layer_sentences(coarse)[-1].startswith("Time was up before every block of nodes was taken apart")


def test_nothing_costs_anything():
    assert layer_sentences(report(layers=layers(node("a", 0.0)))) == ["No node costs anything alone in fp16."]
    assert layer_sentences(report(layers=layers())) == []


def test_places_stand_with_their_lines():
    where = Origin("neck.up", "neck.py:41", "x = self.up(x) + y")
    told = report(layers=layers(dataclasses.replace(node("a", 0.1), op="Add", origin=where)), keep=KEEP)
    columns, ((*cells,),) = layer_rows(told.layers)
    row = dict(zip(columns, cells, strict=True))
    assert (row["module"], row["where"], row["line"]) == ("neck.up", "neck.py:41 Add", "x = self.up(x) + y")
    assert keep_rows(told)[1] == [
        ["a", "neck.py:41 Add in neck.up (x = self.up(x) + y)"],
        ["b", "kept already, or moves values between the others"],
    ]
