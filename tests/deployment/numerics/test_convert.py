"""Facts about `to_half`: types, numbers, names, refusals, and that a real parser takes the result."""

import copy
import functools
import importlib.util
import platform
import random
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from lightning_robust.deployment.engines.builder import build_engine
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half

from ..graphs import graph

HAVE_RTX = (
    sys.platform == "linux"
    and platform.machine() in ("x86_64", "AMD64")
    and importlib.util.find_spec("tensorrt_rtx") is not None
)
needs_rtx = pytest.mark.skipif(not HAVE_RTX, reason='needs Linux x86-64 and: pip install "lightning-robust[rtx]"')
FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


class Upsampler(nn.Module):
    """Convolutions around a bilinear Resize, ending in a soft-argmax as lane heads do."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, image):
        x = F.interpolate(self.stem(image), scale_factor=2, mode="bilinear", align_corners=False)
        cells = torch.softmax(8 * self.head(x).mean(2), -1)
        return (cells * torch.arange(cells.shape[-1], dtype=cells.dtype)).sum(-1)


class Block(nn.Module):
    """A transformer block."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, image):
        x = image.flatten(2)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Warp(nn.Module):
    """Features sampled at coordinates that the network computes."""

    def __init__(self):
        super().__init__()
        self.features, self.offsets = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image):
        grid = torch.tanh(self.offsets(image)).permute(0, 2, 3, 1)
        return F.grid_sample(self.features(image), grid, align_corners=False)


SHAPES = {Upsampler: (3, 16, 16), Block: (6, 32), Warp: (3, 16, 16)}
MODULES = list(SHAPES)


@functools.cache
def exported(kind):
    """The module in eval mode, its fp32 ONNX and a batch of two."""
    torch.manual_seed(0)
    module, example = kind().eval(), torch.randn(2, *SHAPES[kind])
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["image"],
        output_names=["answer"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
    )
    return module, program.model_proto, example


def run(model, **inputs):
    return [output.numpy() for output in Session(model).run(inputs)]


def types(model):
    """Tensor -> "fp32", "fp16" or "bf16", for every floating-point tensor."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    found = {value.name: FLOATS.get(value.type.tensor_type.elem_type) for value in values}
    found |= {tensor.name: FLOATS.get(tensor.data_type) for tensor in model.graph.initializer}
    return {name: kind for name, kind in found.items() if kind}


def computed_in(model):
    """Node -> the type of its first output, for every node but the casts."""
    kinds = types(model)
    return {n.name: kinds[n.output[0]] for n in model.graph.node if n.op_type != "Cast" and n.output[0] in kinds}


def casts(model):
    return [node for node in model.graph.node if node.op_type == "Cast"]


def relative(value, reference):
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference - reference.mean()))


@pytest.mark.parametrize("kind", MODULES)
def test_matches_reference(kind):
    # 5e-3 is the tolerance of the fp16 targets; of two fp16 computations each may be that far from the fp32 one.
    # Measured: 3.4e-4, 1.0e-4, 1.7e-3 from fp32 and 4.3e-3, 3.5e-4, 5.0e-3 from module.half(), which rounds more often
    # than ONNX Runtime does.
    module, model, example = exported(kind)
    (answer,) = run(to_half(model), image=example.numpy())
    with torch.no_grad():
        full = module(example).numpy()
        half = copy.deepcopy(module).half()(example.half()).float().numpy()
    assert answer.dtype == np.float32
    assert relative(answer, half) < 1e-2
    assert 1e-6 < relative(answer, full) < 5e-3


@pytest.mark.parametrize("kind", MODULES)
def test_every_node_is_half_and_the_borders_are_float(kind):
    _, model, _ = exported(kind)
    half = to_half(model)
    assert set(computed_in(half).values()) == {"fp16"}
    assert [types(half)[value.name] for value in (*half.graph.input, *half.graph.output)] == ["fp32", "fp32"]
    # one cast in, one out
    assert len(casts(half)) - len(casts(model)) == 2


@pytest.mark.parametrize("kind", MODULES)
def test_names_round_trip(kind):
    _, model, _ = exported(kind)
    before = model.SerializeToString()
    half = to_half(model)
    names = [node.name for node in model.graph.node if node.op_type != "Constant"]
    kept = [node for node in half.graph.node if node.name in names]
    assert [node.name for node in kept] == names
    assert all(node.metadata_props for node in kept)
    assert [value.name for value in (*half.graph.input, *half.graph.output)] == ["image", "answer"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("kind", MODULES)
def test_keeps_exactly_the_named_nodes(kind):
    _, model, _ = exported(kind)
    names = list(computed_in(to_half(model)))
    generator = random.Random(0)
    for _ in range(10):
        keep = set(generator.sample(names, generator.randint(1, len(names))))
        kinds = computed_in(to_half(model, keep_fp32=keep))
        assert {name for name, kept in kinds.items() if kept == "fp32"} == keep
        assert {name for name, kept in kinds.items() if kept == "fp16"} == set(names) - keep


@pytest.mark.parametrize("kind", MODULES)
def test_off_is_bit_identical(kind):
    _, model, example = exported(kind)
    same = to_half(model, keep_fp32=[node.name for node in model.graph.node])
    assert len(casts(same)) == len(casts(model))
    assert np.array_equal(run(same, image=example.numpy())[0], run(model, image=example.numpy())[0])


def test_weights_are_those_of_half():
    module, model, _ = exported(Block)
    stored = {t.name: numpy_helper.to_array(t) for t in to_half(model).graph.initializer}
    found = {name: p for name, p in module.half().named_parameters() if name in stored}
    module.float()
    assert len(found) >= 4
    assert all(np.array_equal(stored[name], p.detach().numpy()) for name, p in found.items())


def test_closed_form():
    # fp16 has 10 bits of mantissa: 1 + 2^-11 and 1 + 3 * 2^-11 are ties and go to the even neighbour; 65520 is half
    # way from the largest number to the one that does not exist; 2^-25 is half the smallest subnormal.
    weights = [1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, -1e9, 2**-25, 1.1 * 2**-25]
    model = graph("g (float[7] x) => (float[7] y) { y = Mul(x, w) }", w=np.array(weights, np.float32))
    (stored,) = to_half(model, out_of_range="inf").graph.initializer
    expected = [1, 1 + 2**-9, 65504, np.inf, -np.inf, 0, 2**-24]
    assert numpy_helper.to_array(stored).tolist() == expected
    # TensorRT's builder takes the nearest finite number, and the smallest subnormal for what is not zero
    (stored,) = to_half(model).graph.initializer
    assert numpy_helper.to_array(stored).tolist() == [1, 1 + 2**-9, 65504, 65504, -65504, 2**-24, 2**-24]
    (stored,) = to_half(model, out_of_range="keep").graph.initializer
    assert numpy_helper.to_array(stored).tolist() == np.float32(weights).tolist()


def test_tied_weights_keep_both_versions():
    model = graph(
        "g (float[2] x) => (float[2] y) { [half] a = Mul(x, w)  [full] b = Add(a, w)  [last] y = Mul(b, w) }",
        w=np.array([1 + 2**-20, 2.0], np.float32),
    )
    half = to_half(model, keep_fp32=["full"])
    stored = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert {name: value.dtype.name for name, value in stored.items()} == {"w": "float32", "w_fp16": "float16"}
    assert stored["w"][0] == np.float32(1 + 2**-20)
    assert stored["w_fp16"][0] == 1
    assert computed_in(half) == {"half": "fp16", "full": "fp32", "last": "fp16"}


def test_no_tensor_is_cast_twice():
    model = graph(
        """g (float[2] x) => (float[2] y, float[2] a) {
            [one] a = Relu(x) [two] b = Relu(x) [three] c = Sum(a, a, b) [four] d = Neg(a) [five] y = Mul(c, d) }"""
    )
    half = to_half(model, keep_fp32=["three", "four"])
    # x down; a up (an output, and read by both kept nodes); b up; c and d down; y up
    assert sorted(node.input[0] for node in casts(half)) == ["a_fp16", "b", "c", "d", "x", "y_fp16"]
    assert np.array_equal(run(half, x=np.float32([1, 2]))[0], np.float32([-3, -12]))


def test_integers_reach_kept_nodes_unrounded():
    text = "g (int64[1] n) => (float[1] y) { [up] f = Cast<to = 1>(n) [divide] y = Div(f, k) }"
    model = graph(text, k=np.array([70_001], np.float32))
    n = np.array([70_001])
    assert run(to_half(model, keep_fp32=["divide"]), n=n)[0] == 1.0
    # ONNX Runtime would hide it: it computes fp16 graphs in fp32
    with np.errstate(all="ignore"):
        infinite = to_half(model, out_of_range="inf")
        assert np.isnan(ReferenceEvaluator(infinite).run(None, {"n": n})[0])  # inf / inf


def test_operators_that_demand_float():
    model = graph(
        """g (float[1,1,4,4] x) => (float[1,1,8,8] y, float[3] r, float[2] o, float[2] c) {
            [resize] y = Resize<mode = "linear">(x, , scales)
            start = Constant<value_float = 0.0>()
            end = Constant<value_float = 3.0>()
            step = Constant<value_float = 1.0>()
            [range] r = Range(start, end, step)
            [zeros] z = ConstantOfShape(two)
            [ones] o = ConstantOfShape<value = float[1] {1.5}>(two)
            pair = Constant<value_floats = [0.1, 0.2]>()
            [add] c = Add(z, pair) }""",
        scales=np.float32([1, 1, 2, 2]),
        two=np.array([2]),
    )
    half = to_half(model)
    assert computed_in(half) == {"resize": "fp16", "range": "fp32", "zeros": "fp16", "ones": "fp16", "add": "fp16"}
    assert types(half)["scales"] == "fp32"
    x = np.ones((1, 1, 4, 4), np.float32)
    _, steps, ones, pair = run(half, x=x)
    assert steps.tolist() == [0, 1, 2]
    assert ones.tolist() == [1.5, 1.5]
    assert pair.tolist() == np.float32(np.float16([0.1, 0.2])).tolist()


def test_quantisation_scales_are_left_alone():
    scale = np.float32(0.1)
    text = """g (float[2] x) => (float[2] y) {
        [a] a = Relu(x) [q] q = QuantizeLinear(a, s) [d] d = DequantizeLinear(q, s) [y] y = Relu(d) }"""
    half = to_half(graph(text, s=scale))
    (stored,) = half.graph.initializer
    assert numpy_helper.to_array(stored) == scale
    assert computed_in(half) == {"a": "fp16", "d": "fp32", "y": "fp16"}


CUSTOM = 'ir_version: 10, opset_import: ["" : 20, "plugins" : 1]'


def test_operators_of_other_domains_stay_float():
    text = "g (float[2] x) => (float[2] y) <float[2] b> { [a] a = Relu(x) [b] b = plugins.Warp(a) [c] y = Neg(b) }"
    half = to_half(onnx.parser.parse_model(f"<{CUSTOM}> {text}"))
    assert computed_in(half) == {"a": "fp16", "b": "fp32", "c": "fp16"}


def test_rejects_unknown_tensors():
    text = "g (float[2] x) => (float[2] y) { [b] b = plugins.Warp(x) [c] y = Neg(b) }"
    with pytest.raises(ValueError, match=r"is that of 'b', computed by node 'b' of type plugins\.Warp"):
        to_half(onnx.parser.parse_model(f"<{CUSTOM}> {text}"))


@pytest.mark.parametrize("kind", MODULES)
def test_bf16_is_raised_to_opset_22(kind):
    _, model, _ = exported(kind)
    assert model.opset_import[0].version == 20
    half = to_half(model, "bf16")
    assert half.opset_import[0].version == 22
    assert set(computed_in(half).values()) == {"bf16"}
    assert [node.name for node in half.graph.node if node.metadata_props] == [node.name for node in model.graph.node]


def test_bf16_closed_form():
    # 7 bits of mantissa: 1 + 2^-8 is a tie; 1e9 fits
    model = graph("g (float[3] x) => (float[3] y) { y = Mul(x, w) }", w=np.float32([1 + 2**-8, 1 + 3 * 2**-8, 2**30]))
    (stored,) = to_half(model, "bf16").graph.initializer
    assert numpy_helper.to_array(stored).astype(np.float32).tolist() == [1, 1 + 2**-6, 2**30]


def test_rejects_unknown_names():
    with pytest.raises(ValueError, match=r"got 'node_reluu'. Did you mean 'node_relu'"):
        to_half(exported(Upsampler)[1], keep_fp32=["node_reluu"])


def test_rejects_unknown_types():
    with pytest.raises(ValueError, match=r"one of \['bf16', 'fp16'\], but got 'fp8'"):
        to_half(exported(Upsampler)[1], "fp8")


def test_rejects_sequences():
    model = graph(
        """g (float[1] x) => (float[1] y) {
            [s] s = SequenceConstruct(x, x) i = Constant<value_int = 0>() y = SequenceAt(s, i) }"""
    )
    with pytest.raises(ValueError, match="tensors only, but node 's' is of type SequenceConstruct"):
        to_half(model)


@pytest.mark.rtx
@needs_rtx
@pytest.mark.parametrize(("dtype", "name"), [("fp16", "HALF"), ("bf16", "BF16")])
@pytest.mark.parametrize("kind", MODULES)
def test_engine_computes_in_the_types_asked_for(kind, dtype, name, tmp_path):
    _, model, _ = exported(kind)
    nodes = list(computed_in(to_half(model)))
    keep = nodes[1::3]
    shape = SHAPES[kind]
    engine = build_engine(
        to_half(model, dtype, keep).SerializeToString(),
        backend="tensorrt_rtx",
        profile={"image": ((1, *shape), (2, *shape), (8, *shape))},
        directory=tmp_path,
    )
    layers = {node: engine.layers[node] for node in nodes if node in engine.layers}
    assert len(layers) > len(nodes) / 2
    assert layers == {node: "FLOAT" if node in keep else name for node in layers}
