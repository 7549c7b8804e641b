"""The emulation rounds the tensors that the conversion makes half, and no others; seen in both results, operator by
operator."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.plan import Plan
from lightning_robust.deployment.numerics.prepare import prepare
from lightning_robust.deployment.numerics.rounding import round_array

from .operators import GRAPHS, INPUT, one

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
RAISED = "_v_"  # what the names begin with that raising the operator set brings in
EXACT_ANYWAY = {"casts", "a cast that is read in both"}  # graphs with fp32 tensors whose numbers half precision holds


def half_tensors(model, precision):
    """Tensors of the original that the converted model computes or stores in half; and those that it keeps in fp32."""
    values = [*model.graph.value_info, *model.graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    outputs = {value.name for value in model.graph.output}
    half, wide = set(), set()
    for node in model.graph.node:
        for name in node.output:
            if node.op_type == "Cast" and node.name == f"{name}_cast":  # of the conversion
                continue
            original = name.removesuffix(f"_{precision}")
            (half if kinds.get(name) == KINDS[precision] else wide).add(original if original in outputs else name)
    return half, wide


def values_of(model, names, feeds):
    """The numbers of tensors within a graph."""
    wider = onnx.ModelProto.FromString(model.SerializeToString())
    del wider.graph.output[:]
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, (output.numpy() for output in Session(wider, optimise=False).run(feeds)), strict=True))


def is_rounded(values, precision):
    return np.array_equal(round_array(values, precision), values, equal_nan=True)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("precision", KINDS)
def test_emulation_and_conversion_agree(name, precision):
    model, feeds = GRAPHS[name]
    half, wide = half_tensors(to_half(model, precision), precision)
    emulated = emulate(model, precision)
    # who reads an integer in half rounds it, so that its cast is not rounded
    originals = {output for node in model.graph.node if node.op_type != "Cast" for output in node.output}
    made = {output for node in emulated.graph.node for output in node.output}
    found = values_of(emulated, sorted(originals & made), feeds)
    floats = {
        tensor: values for tensor, values in found.items() if values.dtype == np.float32 and np.isfinite(values).all()
    }
    assert {tensor for tensor in floats if tensor in half} <= {t for t, v in floats.items() if is_rounded(v, precision)}
    if name not in EXACT_ANYWAY:
        assert not [tensor for tensor in wide & floats.keys() if is_rounded(floats[tensor], precision)]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("precision", KINDS)
def test_weights_agree(name, precision):
    """The same weights are rounded, to the same numbers, and the same ones are read as they are."""
    model, _ = GRAPHS[name]
    weights = [t for t in to_half(model, precision).graph.initializer if not t.name.startswith(RAISED)]
    converted = {t.name: onnx.numpy_helper.to_array(t) for t in weights}
    emulated = {t.name: onnx.numpy_helper.to_array(t) for t in emulate(model, precision).graph.initializer}
    mark = f"__{precision}"
    rounded = {name.removesuffix(mark): values for name, values in emulated.items() if name.endswith(mark)}
    half = {n.removesuffix(f"_{precision}"): v for n, v in converted.items() if v.dtype.itemsize == 2}
    written_out = {name for name in rounded if name not in half}
    assert rounded.keys() - written_out == half.keys()
    assert all("/" in name for name in written_out)  # the parts of a norm that the parser writes out itself
    for weight, values in half.items():
        assert np.array_equal(values.astype(np.float32), rounded[weight]), weight
        assert values.shape == rounded[weight].shape
    kept = {n for n, v in converted.items() if v.dtype == np.float32}
    assert kept <= {n for n, v in emulated.items() if v.dtype == np.float32}


def test_every_kind_that_stays_fp32_is_among_the_graphs():
    """What the conversion keeps in fp32, by operator: the list that a reader may rely on."""
    kept = set()
    for name, (model, _) in GRAPHS.items():
        graph = prepare(model, "fp16")
        plan = Plan(graph, "fp16", "clamp")
        for node in graph.graph:
            floats = [*map(graph.is_float, node.inputs), *map(graph.is_float, node.outputs)]
            low = [*plan.reads[node], *plan.writes[node]]
            if any(f and not half for f, half in zip(floats, low, strict=True)):
                kept.add(node.op_type if name != "casts" else "Cast")
    assert kept == {
        "Cast", "DequantizeLinear", "FusedMatMul", "Gelu", "If", "LayerNormalization", "Loop", "QLinearMatMul",
        "QuantizeLinear", "Range", "Resize", "Scan", "Upsample",
    }  # fmt: skip


def test_kept_nodes_are_those_that_read_what_is_beyond_the_range():
    """Through nodes that only move values, up to the first that computes with them."""
    model, _ = GRAPHS["mask by Where"]
    graph = prepare(model, "fp16")
    assert {node.name for node in Plan(graph, "fp16", "keep").beyond} == {"e", "w", "a"}
    assert not Plan(graph, "fp16", "clamp").beyond
    assert not Plan(prepare(model, "bf16"), "bf16", "keep").beyond  # 1e9 is within bfloat16


def test_rejects_operators_that_onnx_does_not_know():
    model, _ = one("[op] y = Swish(x)", 20)
    with pytest.raises(ValueError, match="'op' is of type Swish, unknown to opset 20"):
        Plan(prepare(model, "fp16"), "fp16", "clamp")
    assert INPUT["x"].dtype == np.float32
