"""Products switched to int8 one by one: exactly those of the quantised graph, and the shortest list to leave out."""

import itertools

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.calibration import calibrate
from lightning_robust.deployment.numerics.int8_sweep import Int8Sweep, switchable_int8
from lightning_robust.deployment.numerics.keep_list import check_keep_list, find_keep_list
from lightning_robust.deployment.numerics.quantise import operands, quantise_products
from lightning_robust.deployment.numerics.sweep import relative_distance
from lightning_robust.deployment.numerics.switches import SWITCHES

from ..graphs import graph, make


def ranges_of(model, feeds):
    prepared, tensors = operands(model)
    return calibrate(prepared, feeds, tensors)


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ODD = {
    "shared operand and weight": (
        (
            "g (float[n, 4] x) => (float[n, 4] y) { [a] p = MatMul(x, w) [b] q = MatMul(x, w) [c] r = MatMul(p, w)"
            "[s] s = Add(q, r) [t] y = Tanh(s) }"
        ),
        {"w": drawn(4, 4)},
    ),
    "gemm": (
        "g (float[n, 4] x) => (float[n, 3] y) { [a] y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b) }",
        {"w": drawn(3, 4), "b": drawn(3)},
    ),
    "two activations": (
        "g (float[n, 4] x) => (float[n, 4] y) { [t] z = Transpose(x) [a] m = MatMul(z, x) [b] y = MatMul(x, m) }",
        {},
    ),
    "transposed convolution": (
        (
            "g (float[n, 2, 4, 4] x) => (float[n, 3, 6, 6] y) { [a] z = Conv<pads = [1, 1, 1, 1]>(x, v)"
            "[b] y = ConvTranspose(z, w) }"
        ),
        {"v": drawn(2, 2, 3, 3), "w": drawn(2, 3, 3, 3)},
    ),
    "batch norm": (
        (
            "g (float[n, 2, 4, 4] x) => (float[n, 3, 2, 2] y) { [a] z = Conv(x, w)"
            "[norm] y = BatchNormalization(z, s, b, m, v) }"
        ),
        {"w": drawn(3, 2, 3, 3), "s": drawn(3), "b": drawn(3), "m": drawn(3), "v": np.abs(drawn(3))},
    ),
    "first operand is a weight": ("g (float[4, n] x) => (float[3, n] y) { [a] y = MatMul(w, x) }", {"w": drawn(3, 4)}),
}


@pytest.mark.parametrize("kind", ["cnn", "norm", "vit", *ODD])
def test_all_on_is_the_quantised_graph_and_all_off_the_fp32_graph(kind):
    if kind in ODD:
        text, weights = ODD[kind]
        model = graph(text, **weights)
        shape = [d.dim_value or 4 for d in model.graph.input[0].type.tensor_type.shape.dim]
        feeds = {"x": drawn(*shape, seed=1)}
    else:
        exported, x = make(kind)
        model, feeds = exported.model, {"input": x.numpy()}
    ranges = ranges_of(model, feeds)
    switched, switches = switchable_int8(model, ranges)
    quantised = quantise_products(model, ranges)
    assert tuple(switches) == quantised.nodes
    session = Session(switched, optimise=False)
    on, off = (session.run({**feeds, SWITCHES: np.full(len(switches), each)})[0] for each in (True, False))
    assert torch.equal(on, Session(quantised.model, optimise=False).run(feeds)[0])
    assert torch.allclose(off, Session(model, optimise=False).run(feeds)[0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(on, off)


@pytest.mark.parametrize("kind", ["cnn", "norm", "vit"])
def test_cost_of_keeping_is_that_of_the_graph_quantised_anew(kind):
    exported, x = make(kind)
    feeds = {"input": x.numpy()}
    ranges = ranges_of(exported.model, feeds)
    sweep = Int8Sweep(exported.model, feeds, ranges)
    reference = Session(exported.model).run(feeds)
    for keep in ([], sweep.computing[::2], sweep.computing[:1], sweep.computing[-1:]):
        anew = Session(quantise_products(exported.model, ranges, keep).model, optimise=False).run(feeds)
        assert sweep.cost_of_keeping(keep) == pytest.approx(relative_distance(reference, anew), rel=1e-3, abs=1e-7)


def chain_of(scales, size=16):
    """x through one product a scale; its first channel is so much larger, and its weights so much smaller there."""
    nodes, weights, last = [], [], "x"
    for index, scale in enumerate(scales):
        weight = drawn(size, size, seed=index) / np.float32(4)
        large, small = np.ones(size, np.float32), weight.copy()
        large[0], small[0] = scale, small[0] / scale
        weights += [numpy_helper.from_array(large, f"s{index}"), numpy_helper.from_array(small, f"w{index}")]
        nodes += [
            helper.make_node("Mul", [last, f"s{index}"], [f"a{index}"], f"scale_{index}"),
            helper.make_node("MatMul", [f"a{index}", f"w{index}"], [f"b{index}"], f"layer_{index}"),
        ]
        last = f"b{index}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name in ("x", last)]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def swept(scales, count=8):
    model = chain_of(scales)
    return Int8Sweep(model, {"x": drawn(count, 16, seed=9)}, ranges_of(model, {"x": drawn(1024, 16, seed=10)}))


def test_a_layer_with_an_outlier_channel_is_found_and_is_the_list():
    """One channel is a thousand times the others: they have no more than a level of 127 left."""
    sweep = swept([1, 1, 1000, 1])
    layers = sweep.sensitivity()
    assert layers.precision == "int8"
    worst, second = layers.ranked()[:2]
    assert (worst.name, worst.op) == ("layer_2", "MatMul")
    assert worst.isolated > 0.3
    assert worst.isolated > 10 * second.isolated
    keep = find_keep_list(sweep, layers, 0.05)
    assert (keep.nodes, keep.of, keep.setting) == (("layer_2",), 4, "exclude_int8")
    assert keep.met
    others = check_keep_list(keep, sweep.on({"x": drawn(32, 16, seed=11)}))
    assert others.checked == 32
    assert others.error < 0.05 < 0.3 < others.total
    traces = {node.name: node.trace for node in layers.nodes}
    assert traces["layer_1"].drift < 0.05 < 0.3 < traces["layer_2"].drift


@pytest.mark.parametrize("tolerance", [0.02, 0.05, 0.2, 0.5])
def test_no_shorter_list_exists(tolerance):
    """Of all 64 subsets of six products the smallest that meets the tolerance is as long as the list that is found."""
    sweep = swept([30, 1, 200, 10, 1, 1000])
    found = find_keep_list(sweep, sweep.sensitivity(), tolerance)
    enough = next(
        count
        for count in range(7)
        if any(sweep.cost_of_keeping(keep) <= tolerance for keep in itertools.combinations(sweep.computing, count))
    )
    assert len(found.nodes) == enough
    assert found.met


def test_what_the_user_excludes_is_no_candidate():
    model, feeds = chain_of([1, 1000, 1]), {"x": drawn(8, 16, seed=9)}
    ranges = ranges_of(model, feeds)
    sweep = Int8Sweep(model, feeds, ranges, kept=["layer_1"])
    assert sweep.computing == ["layer_0", "layer_2"]
    assert find_keep_list(sweep, sweep.sensitivity(), 1.0).nodes == ("layer_1",)
    anew = Session(quantise_products(model, ranges, ["layer_1"]).model, optimise=False).run(feeds)
    assert sweep.cost_of_keeping(()) == pytest.approx(relative_distance(Session(model).run(feeds), anew), rel=1e-3)
    assert "layer_1" not in {node.name for node in sweep.sensitivity().nodes}


def test_a_convolution_is_excluded_by_the_name_of_its_batch_norm():
    text, weights = ODD["batch norm"]
    model, feeds = graph(text, **weights), {"x": drawn(4, 2, 4, 4)}
    sweep = Int8Sweep(model, feeds, ranges_of(model, feeds), kept=["norm"])
    assert (sweep.names, sweep.computing) == (["a"], [])
    assert sweep.cost_of_keeping(()) == 0


def test_a_fixed_batch_is_run_batch_by_batch():
    model = graph("g (float[2, 4] x) => (float[2, 3] y) { [a] y = MatMul(x, w) }", w=drawn(4, 3))
    feeds = {"x": drawn(6, 4, seed=3)}
    layers = Int8Sweep(model, feeds, ranges_of(model, feeds)).sensitivity()
    assert (layers.samples, len(layers.nodes)) == (6, 1)
    assert 1e-4 < layers.total < 0.05


def test_rejects_a_graph_that_is_quantised_already():
    model, feeds = chain_of([1]), {"x": drawn(4, 16)}
    ranges = ranges_of(model, feeds)
    with pytest.raises(ValueError, match="this one is quantised already"):
        Int8Sweep(quantise_products(model, ranges).model, feeds, ranges)


def test_rejects_a_graph_without_products():
    model = graph("g (float[n, 4] x) => (float[n, 4] y) { y = Tanh(x) }")
    with pytest.raises(ValueError, match="Expected products to quantise, but got 0 of 0 products in int8"):
        Int8Sweep(model, {"x": drawn(2, 4)}, {})
