import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.emulate import emulate, round_array

from ..models import OverflowingNorm, SmallCNN, images

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def binary(op, value, *, name="node"):
    """A graph x op constant."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    constant = numpy_helper.from_array(np.array([value], np.float32), "c")
    graph = helper.make_graph([helper.make_node(op, ["x", "c"], ["y"], name)], "g", [x], [y], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_matches_torch(precision):
    values = torch.cat([torch.randn(4000) * 10.0**k for k in range(-8, 9)])
    expected = values.to(HALF[precision]).float()
    assert np.array_equal(round_array(values.numpy(), precision), expected.numpy())


def test_tf32_rounding_closed_form():
    """10 mantissa bits: spacing 2^-10 in [1, 2), ties to even; infinity and NaN stay."""
    x = np.array([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-12, np.inf, -3e38], np.float32)
    assert round_array(x, "tf32")[:5].tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, 1.0, np.inf]
    assert np.isnan(round_array(np.array([np.nan], np.float32), "tf32"))[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_closed_form_on_one_node(precision):
    x = torch.randn(1000)
    expected = (x.to(HALF[precision]) * torch.tensor(0.1, dtype=HALF[precision])).float()
    assert torch.equal(run(emulate(binary("Mul", 0.1), precision), x), expected)


def test_tf32_leaves_elementwise_nodes_alone_and_rounds_matrix_products():
    x = torch.randn(1000)
    assert torch.equal(run(emulate(binary("Mul", 0.1), "tf32"), x), x * 0.1)
    layer = frozen_copy(nn.Linear(64, 8))
    rounded = frozen_copy(layer)
    rounded.weight.data = torch.from_numpy(round_array(layer.weight.detach().numpy(), "tf32"))
    x = torch.randn(4, 64)
    got = run(emulate(export(layer, (x,)).model, "tf32"), x)
    expected = rounded(torch.from_numpy(round_array(x.numpy(), "tf32")))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert (got - layer(x)).abs().max() > 1e-5


def test_tf32_split_on_a_graph_input_equals_bit_rounding():
    x = torch.cat([torch.randn(500) * 10.0**k for k in (-20, 0, 20)] + [torch.tensor([torch.inf, -3e38])])
    graph = export(frozen_copy(nn.Linear(1, 1, bias=False)), (x[:, None],))
    model = emulate(graph.model, "tf32")
    weight = next(t for t in model.graph.initializer if t.name.endswith("__tf32"))
    weight.CopyFrom(numpy_helper.from_array(np.ones((1, 1), np.float32), weight.name))
    expected = round_array(x.numpy(), "tf32")
    expected[-1] = x[-1]  # beyond 2^100 values pass unrounded
    assert np.array_equal(run(model, x[:, None])[:, 0].numpy(), expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_matches_torch_half_precision(precision):
    """Torch fuses or splits some operators: within a factor of two of its distance to fp64."""
    module = frozen_copy(SmallCNN())
    x = images(8)
    exact = frozen_copy(module).double()(x.double())
    half = frozen_copy(module).to(HALF[precision])(x.to(HALF[precision])).double()
    emulated = run(emulate(export(module, (x,)).model, precision), x).double()
    ratio = (emulated - exact).norm() / (half - exact).norm()
    assert 0.5 < ratio < 2.0


def test_catches_the_overflow_that_onnxruntime_hides():
    """A channel-wise norm whose squares exceed 65504: torch in half and the emulation break, an fp16 graph on
    ONNX Runtime's CPU provider looks fine."""
    from lightning_robust.deployment.numerics.convert import to_half

    module = frozen_copy(OverflowingNorm())
    x = images(2)
    expected = module(x)
    graph = export(module, (x,)).model
    half = frozen_copy(module).half()(x.half()).float()
    emulated = run(emulate(graph, "fp16"), x)
    hidden = run(to_half(graph), x)
    assert (hidden - expected).abs().max() < 5e-3
    assert (half - expected).abs().max() > 0.5
    assert (emulated - expected).abs().max() > 0.5
    assert torch.isfinite(emulated).all()


def test_keep_fp32_repairs_the_overflow():
    module = frozen_copy(OverflowingNorm())
    x = images(2)
    exported = export(module, (x,))
    keep = [node.name for node in exported.model.graph.node if node.op_type in ("Pow", "ReduceMean", "Add", "Sqrt")]
    error = (run(emulate(exported.model, "fp16", keep), x) - module(x)).abs().max()
    assert error < 1e-2


def test_keep_all_is_fp32():
    module = frozen_copy(SmallCNN())
    exported = export(module, (images(2),))
    kept = emulate(exported.model, "fp16", [node.name for node in exported.model.graph.node])
    x = images(4)
    assert torch.equal(run(kept, x), run(exported.model, x))


def test_inputs_and_outputs_stay_fp32_and_the_graph_is_valid():
    exported = export(frozen_copy(SmallCNN()), (images(2),))
    before = exported.model.SerializeToString()
    for precision in ("fp16", "bf16", "tf32"):
        model = emulate(exported.model, precision)
        onnx.checker.check_model(model, full_check=True)
        assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}
    assert exported.model.SerializeToString() == before


def test_rejects_unknown_precision():
    with pytest.raises(ValueError, match="'fp16', 'bf16' or 'tf32', but got 'int8'"):
        emulate(binary("Mul", 1.0), "int8")


def test_rejects_unknown_node():
    with pytest.raises(ValueError, match="nodes of the graph"):
        emulate(binary("Mul", 1.0), "fp16", ["nothing"])


def test_rejects_subgraphs():
    body = binary("Mul", 2.0).graph
    node = helper.make_node("If", ["x"], ["y"], "branch", then_branch=body, else_branch=body)
    model = binary("Mul", 1.0)
    model.graph.node[0].CopyFrom(node)
    with pytest.raises(ValueError, match=r"'branch' .If. has one"):
        emulate(model, "fp16")
