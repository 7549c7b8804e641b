"""Sweeps over nodes on many samples, on graphs of fixed batch, and on what cannot be swept."""

import math

import numpy as np
import pytest
import torch

from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.sweep import NodeSweep, relative_distance

from ..graphs import chain, graph, make, run


def test_many_samples_are_run_in_parts():
    """As in one run of the emulation, up to the order in which a batch of another size is summed."""
    exported, x = make("cnn", 40)
    sweep = NodeSweep(exported.model, {"input": x.numpy()})
    whole = relative_distance([run(exported.model, x)], [run(emulate(exported.model, "fp16"), x)])
    assert sweep.samples == 40
    assert sweep.cost_of_keeping(()) == pytest.approx(whole, rel=1e-3)
    assert sweep.output_bytes == 40 * 4 * 4


def test_other_samples_and_another_unit():
    exported, x = make("cnn", 12)
    first = NodeSweep(exported.model, {"input": x[:4].numpy()})
    others = first.on({"input": x[4:].numpy()}, measure=lambda r, o: float((r[0] - o[0]).abs().max()))
    exact, half = run(exported.model, x[4:]), run(emulate(exported.model, "fp16"), x[4:])
    assert others.cost_of_keeping(()) == pytest.approx(float((exact - half).abs().max()), rel=1e-3)
    assert (first.samples, others.samples) == (4, 8)


def test_a_fixed_batch_is_run_batch_by_batch():
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { [scale] y = Mul(x, c) }", c=np.float32(1 + 2**-9))
    x = np.random.default_rng(0).random((6, 4), np.float32)
    exact, half = (torch.from_numpy((x.astype(t) * t(1 + 2**-9)).astype(np.float32)) for t in (np.float32, np.float16))
    assert NodeSweep(model, {"x": x}).cost(["scale"]) == pytest.approx(relative_distance([exact], [half]), rel=1e-3)


def test_an_output_of_all_samples_together_is_computed_in_one_run():
    model = graph("g (float[n, 4] x) => (float y) { [sum] y = ReduceSum<keepdims = 0>(x) }")
    ones = np.ones((20, 4), np.float32)
    ones[0] += 2**-5  # the sum is 80.125, where numbers of fp16 are 0.0625 apart
    ones[1] += 2**-9
    sweep = NodeSweep(model, {"x": ones})
    assert sweep.cost(["sum"]) == pytest.approx(abs(80.125 - 80.1328125) / 80.1328125, rel=1e-3)


def test_constants_are_no_layers():
    """Exporters other than torch's write weights as nodes."""
    model = graph(
        "g (float[n, 4] x) => (float[n, 4] y) {"
        "[weight] c = Constant<value = float {3.1}>() [scale] a = Mul(x, c) [bend] y = Tanh(a) }"
    )
    sweep = NodeSweep(model, {"x": np.ones((2, 4), np.float32)})
    assert sweep.computing == ["scale", "bend"]
    assert [node.name for node in sweep.sensitivity().nodes] == ["scale", "bend"]


def test_nodes_without_names_are_swept_one_by_one():
    model = chain(("Mul", 1.0), ("Add", 2**-12), ("Mul", 2.0))
    for node in model.graph.node:
        node.name = ""
    found = NodeSweep(model, {"v0": np.ones((2, 4), np.float32)}).sensitivity()
    assert [node.name for node in found.nodes] == ["Mul_0", "Add_1", "Mul_2"]
    assert found.nodes[0].isolated == 0
    assert found.nodes[1].isolated > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rejects_a_model_that_diverged(value):
    with pytest.raises(ValueError, match=r"compared in rel_l2, but on these 2 samples they are infinite or NaN"):
        NodeSweep(chain(("Mul", value)), {"v0": np.ones((2, 4), np.float32)})


def test_a_constant_output_costs_nothing_or_everything():
    """Zeros stay zeros; what is zero in fp32 alone has no size to relate an error to."""
    zeros = NodeSweep(chain(("Mul", 0.0)), {"v0": np.ones((2, 4), np.float32)})
    assert zeros.sensitivity().total == 0
    lost = NodeSweep(chain(("Add", 2**-12), ("Sub", 1.0), ("Sub", 2**-12)), {"v0": np.ones((2, 4), np.float32)})
    assert lost.cost(["n0"]) == np.inf


def test_what_stays_fp32_anyway_is_no_candidate():
    """With half of the nodes kept from the start the rest costs what the emulation with that list says."""
    exported, x = make("cnn", 6)
    names = [node.name for node in exported.model.graph.node]
    kept = names[len(names) // 2 :]
    sweep = NodeSweep(exported.model, {"input": x.numpy()}, kept=kept)
    assert set(sweep.computing).isdisjoint(kept)
    assert sweep.computing
    emulated = run(emulate(exported.model, "fp16", kept), x)
    assert sweep.cost_of_keeping(()) == pytest.approx(relative_distance([run(exported.model, x)], [emulated]), rel=1e-3)
    assert [node.name for node in sweep.sensitivity().nodes] == sweep.computing
    assert set(kept) & set(sweep.names) <= set(sweep.with_moves(()))


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("out_of_range", ["clamp", "keep"])
def test_what_is_kept_multiplies_in_tf32_where_that_is_allowed(kind, out_of_range):
    """As the emulation says of any list; what a node costs alone is beside true fp32."""
    exported, x = make(kind, 6)
    settings = {"out_of_range": out_of_range}
    allowed, plain = (NodeSweep(exported.model, {"input": x.numpy()}, tf32=tf32, **settings) for tf32 in (True, False))
    reference = run(exported.model, x)
    for keep in (allowed.computing, allowed.computing[::2], allowed.computing[1::3]):
        emulated = run(emulate(exported.model, "fp16", allowed.with_moves(keep), tf32=True, **settings), x)
        assert allowed.cost_of_keeping(keep) == pytest.approx(relative_distance([reference], [emulated]), rel=1e-2)
    assert allowed.cost_of_keeping(allowed.names) > 10 * plain.cost_of_keeping(plain.names)
    assert allowed.cost(()) == 0
    assert allowed.cost(allowed.computing[:1]) == plain.cost(plain.computing[:1])


def test_infinity_in_fp32_is_no_distance():
    """As masked logits have it; what is finite counts."""
    masked = [torch.tensor([3.0, 4.0, -math.inf])]
    assert relative_distance(masked, masked) == 0
    assert relative_distance(masked, [torch.tensor([3.0, 4.5, -6e4])]) == 0.1
    assert relative_distance(masked, [torch.tensor([3.0, math.inf, -math.inf])]) == math.inf
    assert relative_distance([torch.tensor([math.nan])], [torch.tensor([math.nan])]) == math.inf
