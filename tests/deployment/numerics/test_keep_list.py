"""The nodes to keep in fp32: few, none of them needless, and right in numpy's own fp16."""

import dataclasses
import importlib.util
import json
import math
import re

import numpy as np
import onnx
import onnx.reference
import pytest
import torch

from lightning_robust.deployment.engines.builder import build_engine
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.keep_list import check_keep_list, find_keep_list
from lightning_robust.deployment.numerics.sweep import NodeSweep, relative_distance

from ..graphs import chain, graph, make, run, sweep


def test_keep_list_beats_all_fp16_fifty_times_on_an_outlier_channel():
    exported, x, s = sweep("vit")
    ranking = s.sensitivity()
    kept = find_keep_list(s, ranking, ranking.total / 50)
    assert kept.met
    assert len(kept.nodes) <= 5
    wide, fp16, mixed = (
        run(m, x)
        for m in (exported.model, emulate(exported.model, "fp16"), emulate(exported.model, "fp16", kept.nodes))
    )
    assert (mixed - wide).square().mean().sqrt() * 50 <= (fp16 - wide).square().mean().sqrt()
    assert set(kept.modules) == {"norm", "head", ""}


def test_keep_list_repairs_the_overflow_also_in_numpys_fp16():
    """The converted graph run by ONNX's reference evaluator, which computes in numpy's fp16: not our emulation."""
    exported, x, s = sweep("norm")
    kept = find_keep_list(s, s.sensitivity(), 2e-3)
    assert kept.met
    assert {"node_pow_1", "node_mean_1"} <= set(kept.nodes)
    wide = run(exported.model, x)

    def distance(keep):
        half = to_half(exported.model, "fp16", keep)
        with np.errstate(all="ignore"):
            got = onnx.reference.ReferenceEvaluator(half).run(None, {"input": x.numpy()})[0]
        return relative_distance([wide], [torch.from_numpy(got)])

    assert distance(()) > 0.5
    assert distance(kept.nodes) < 5e-3


def test_list_is_empty_where_fp16_is_good_enough_and_whole_where_nothing_may_be_lost():
    _, _, s = sweep("cnn")
    ranking = s.sensitivity()
    assert find_keep_list(s, ranking, 1.0).nodes == ()
    whole = find_keep_list(s, ranking, 0.0)
    assert whole.error == 0
    assert set(whole.nodes) == set(s.names)


def test_no_node_of_the_list_is_needless():
    _, _, s = sweep("vit", measure=lambda r, o: float((r[0] - o[0]).abs().max()), unit="max_abs")
    ranking = s.sensitivity()
    kept = find_keep_list(s, ranking, ranking.total / 20)
    for name in set(kept.nodes) & set(s.computing):
        assert s.cost_of_keeping(set(kept.nodes) - {name}) > kept.tolerance
    assert kept.unit == "max_abs"


def test_written_for_autocast(tmp_path):
    exported, _, s = sweep("norm")
    kept = find_keep_list(s, s.sensitivity(), 2e-3)
    kept.write(tmp_path / "keep_fp32.json")
    written = json.loads((tmp_path / "keep_fp32.json").read_text())
    assert written["nodes"] == list(kept.nodes)
    assert written["met"] is True
    names = [node.name for node in exported.model.graph.node]
    excluded = {n for n in names if any(re.match(pattern, n) for pattern in written["nodes_to_exclude"])}
    assert excluded == set(kept.nodes)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_rejects_tolerance(tolerance):
    s = NodeSweep(chain(("Exp", None)), {"v0": np.ones((1, 4), np.float32)})
    ranking = s.sensitivity()
    with pytest.raises(ValueError, match="from 0 up"):
        find_keep_list(s, ranking, tolerance)


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("kind", ["norm", "vit"])
def test_parser_takes_the_mixed_graph(kind, tmp_path):
    exported, x, s = sweep(kind)
    ranking = s.sensitivity()
    kept = find_keep_list(s, ranking, ranking.total / 50)
    shape = tuple(x.shape)
    engine = build_engine(
        to_half(exported.model, "fp16", kept.nodes).SerializeToString(),
        backend="tensorrt_rtx",
        profile={"input": ((1, *shape[1:]), shape, shape)},
        directory=tmp_path,
        time_limit=300,
    )
    assert engine.size > 1000


def test_time_limit_leaves_the_list_unshortened():
    """It is marked, and still meets the tolerance."""
    _, _, s = sweep("cnn")
    ranking = s.sensitivity()
    hurried = find_keep_list(s, ranking, ranking.total / 3, time_limit=0.0)
    assert not hurried.complete
    assert hurried.met
    assert set(find_keep_list(s, ranking, ranking.total / 3).nodes) <= set(hurried.nodes)


def test_the_list_is_checked_on_samples_that_it_was_not_found_on():
    """As the emulation of the whole graph says, which knows no switches."""
    exported, x = make("vit", 12)
    s = NodeSweep(exported.model, {"input": x[:4].numpy()}, origins=exported.origins)
    ranking = s.sensitivity()
    found = find_keep_list(s, ranking, ranking.total / 10)
    assert (found.samples, found.checked, found.error, found.total) == (4, 0, found.found_error, ranking.total)
    kept = check_keep_list(found, s.on({"input": x[4:].numpy()}))
    wide = run(exported.model, x[4:])
    total, error = (
        relative_distance([wide], [run(emulate(exported.model, "fp16", keep), x[4:])]) for keep in ((), kept.nodes)
    )
    assert (kept.total, kept.error) == (pytest.approx(total, rel=0.01), pytest.approx(error, rel=0.1))
    assert kept.error != kept.found_error == found.error <= found.tolerance
    assert (kept.nodes, kept.checked, kept.of) == (found.nodes, 8, len(s.names))


def test_nodes_that_were_not_measured_are_in_no_list():
    _, _, s = sweep("vit")
    ranking = s.sensitivity()
    worst = ranking.ranked()[0].name
    nodes = tuple(dataclasses.replace(n, isolated=None) if n.name == worst else n for n in ranking.nodes)
    partial = dataclasses.replace(ranking, nodes=nodes, complete=False)
    assert partial.ranked()[-1].name == worst
    kept = find_keep_list(s, partial, ranking.total / 50)
    assert worst not in kept.nodes
    assert not kept.complete
    assert find_keep_list(s, dataclasses.replace(ranking, nodes=()), ranking.total / 50).nodes == ()


def test_an_aim_that_no_list_meets():
    """1 + 2**-12 and 1 + 2**-13 are both 1 in fp16. Nobody had time for the second: the list repairs the first."""
    model = graph(
        "g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { [one] y = Add(x, c) [other] z = Add(x, d) }",
        c=np.float32(2**-12),
        d=np.float32(2**-13),
    )
    s = NodeSweep(model, {"x": np.ones((2, 4), np.float32)})
    ranking = s.sensitivity()
    nodes = tuple(dataclasses.replace(n, isolated=None) if n.name == "other" else n for n in ranking.nodes)
    kept = find_keep_list(s, dataclasses.replace(ranking, nodes=nodes), 1e-6)
    assert kept.nodes == ("one",)
    assert (kept.met, kept.found_met) == (False, False)
    assert kept.error == pytest.approx(2**-13 / math.hypot(1 + 2**-12, 1 + 2**-13))


def test_written_json_is_strict_where_values_are_lost(tmp_path):
    _, _, s = sweep("norm")
    kept = dataclasses.replace(find_keep_list(s, s.sensitivity(), 2e-3), total=math.inf)
    kept.write(tmp_path / "keep_fp32.json")
    assert json.loads((tmp_path / "keep_fp32.json").read_text(), parse_constant=pytest.fail)["total"] == "inf"
