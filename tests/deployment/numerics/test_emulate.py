"""Emulated arithmetic: against torch in half precision, closed forms, and with a switch for every node."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.rounding import round_array
from lightning_robust.deployment.numerics.sweep import relative_distance
from lightning_robust.deployment.numerics.switches import SWITCHES, switchable

from ..graphs import MODULES, binary, chain, graph, make, run
from ..models import OverflowingNorm, SmallCNN, images
from .operators import GRAPHS

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


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
    with pytest.raises(ValueError, match=r"one of \['bf16', 'fp16', 'tf32'\], but got 'int8'"):
        emulate(binary("Mul", 1.0), "int8")


def test_rejects_unknown_node():
    with pytest.raises(ValueError, match="nodes of the graph"):
        emulate(binary("Mul", 1.0), "fp16", ["nothing"])


def switched(model, precision, x, narrow):
    graph, switches = switchable(model, precision)
    mask = np.zeros(1 + max(switches.values()), bool)
    mask[[switches[name] for name in narrow]] = True
    return Session(graph).run({model.graph.input[0].name: x.numpy(), SWITCHES: mask})[0], list(switches)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_all_switches_off_is_fp32_and_all_on_is_the_emulation(kind, precision):
    exported, x = make(kind)
    off, names = switched(exported.model, precision, x, ())
    torch.testing.assert_close(off, run(exported.model, x), rtol=1e-5, atol=1e-5 * float(off.abs().max()))
    on, _ = switched(exported.model, precision, x, names)
    emulated = run(emulate(exported.model, precision), x)
    scale = {"fp16": 2**-11, "bf16": 2**-8, "tf32": 2**-11}[precision]
    # fused kernels sum in another order, which may turn a rounding over
    assert (on - emulated).norm() <= 4 * scale * emulated.norm()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_one_switch_is_everything_else_kept(precision):
    model = chain(("Mul", 0.1), ("Exp", None), ("Add", 3.3))
    x = torch.randn(5, 4)
    for name in ("n0", "n1", "n2"):
        got, names = switched(model, precision, x, {name})
        assert torch.equal(got, run(emulate(model, precision, keep_fp32=set(names) - {name}), x))


def test_what_a_kept_node_reads_from_half_has_lost_its_bits():
    """1e5 is infinite in fp16, whether or not the next node computes in fp32."""
    model = chain(("Mul", 1e3), ("Mul", 1e-3))
    x = torch.full((2, 4), 100.0)
    assert run(emulate(model, "fp16", keep_fp32=["n1"]), x).isinf().all()
    assert run(emulate(model, "fp16", keep_fp32=["n0"]), x).isinf().all()
    torch.testing.assert_close(run(emulate(model, "fp16", keep_fp32=["n0", "n1"]), x), x)


def test_scalar_weights_stay_scalars():
    """Dropout's ratio and Range's limits must have no dimension."""
    text = """g (float[N] x) => (float[N] y) {
        a = Range(zero, four, one) d = Dropout(a, half) [add] b = Add(x, d) [scale] y = Mul(b, one) }"""
    model = graph(
        text, **{name: np.float32(value) for name, value in (("zero", 0), ("four", 4), ("one", 1), ("half", 0.5))}
    )
    for precision, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        emulated, converted = emulate(model, precision), to_half(model, precision)
        for tensor in (*emulated.graph.initializer, *converted.graph.initializer):
            assert list(tensor.dims) == [], tensor.name
        assert run(emulated, torch.zeros(4)).tolist() == [0, 1, 2, 3]
        assert {str(numpy_helper.to_array(t).dtype) for t in converted.graph.initializer} == {"float32", dtype}


def test_weights_are_rounded_once_and_dropped_where_nobody_reads_them():
    model = graph(
        "g (float[2] x) => (float[2] y, float[2] z) { [a] y = Mul(x, w) [b] p = Add(x, w) [c] z = Mul(p, w) }",
        w=np.float32([0.1, 1]),
    )

    def weights(keep):
        return sorted(tensor.name for tensor in emulate(model, "fp16", keep).graph.initializer)

    assert weights([]) == ["w__fp16"]
    assert weights(["b"]) == ["w", "w__fp16"]
    assert weights(["a", "b", "c"]) == ["w"]


def test_bf16_without_casts_rounds_as_casts_do():
    """Below operator set 13: values of all sizes up to 2**100, ties included; beyond, values pass unrounded."""
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 0.0, torch.inf])
    x = torch.cat([torch.randn(2000) * 10.0**k for k in (-30, -3, 0, 3, 29)] + [ties])
    model = graph("g (float[N] x) => (float[N] y) { [op] y = Neg(x) }", opset=12)
    expected = -x.to(torch.bfloat16).float()
    assert torch.equal(run(emulate(model, "bf16"), x), expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_integers_reach_kept_nodes_unrounded(precision):
    """As in the conversion: 70001 divided by itself is 1 where the division is kept."""
    text = "g (int64[1] n) => (float[1] y) { [up] f = Cast<to = 1>(n) [divide] y = Div(f, k) }"
    model = graph(text, k=np.float32([70_001]))
    n = torch.tensor([70_001])
    assert run(emulate(model, precision, ["divide"]), n).item() == 1
    assert run(emulate(model, precision, ["divide"], out_of_range="keep"), n).item() == 1
    assert run(emulate(model, "fp16", out_of_range="inf"), n).isnan().all()  # inf / inf


def test_dequantisation_scales_are_left_alone():
    model, feeds = GRAPHS["tiny scale"]
    for changed in (emulate(model, "fp16"), to_half(model)):
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
        assert stored["t"] == np.float32(1e-9)
    # 1e-9 times at most 127 is a subnormal of fp16, and rounded as one
    (exact,), (rounded,) = (Session(g).run(feeds) for g in (model, emulate(model, "bf16")))
    assert (rounded - exact).abs().max() < 2**-8


def test_rejects_unknown_choices():
    with pytest.raises(ValueError, match=r"`out_of_range` to be one of \['clamp', 'inf', 'keep'\], but got 'wrap'"):
        emulate(binary("Mul", 1.0), "fp16", out_of_range="wrap")


def test_sums_of_integers_are_scaled_in_fp32():
    """A dynamically quantised product: its sum of up to 8 million would overflow before it is scaled to 87."""
    text = """<ir_version: 8, opset_import: ["" : 13]>
        g (float[2, 256] x, uint8[256, 8] w, float[1] ws) => (float[2, 8] y) {
        [quantise] q, s, z = DynamicQuantizeLinear(x)
        [product] sum = MatMulInteger(q, w, z)
        [cast] wide = Cast<to = 1>(sum)
        [scales] scale = Mul(s, ws)
        [dequantise] y = Mul(wide, scale) }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    feeds = {
        "x": generator.random((2, 256)).astype(np.float32),
        "w": generator.integers(0, 127, (256, 8)).astype(np.uint8),
        "ws": np.array([0.01], np.float32),
    }
    (exact,), (emulated,) = (Session(each).run(feeds) for each in (model, emulate(model, "fp16")))
    assert relative_distance([exact], [emulated]) < 1e-3  # the input is rounded to fp16 before it is quantised
    (half,) = Session(to_half(model)).run(feeds)
    assert relative_distance([exact], [half]) < 1e-3
