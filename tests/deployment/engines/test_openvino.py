"""OpenVINO executed for real; bf16 only where this CPU has it."""

import copy
import functools
import gc
import importlib.util
import multiprocessing
import os
import platform
import weakref

import numpy as np
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Subject, available, runtime
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.engines.openvino_model import OpenVINOModel, openvino_core
from lightning_robust.deployment.engines.targets import TARGETS
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject
from lightning_robust.deployment.parity import measure_parity
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.functional.pixels import PixelSpace

from ..models import Attention, OutlierViT, OverflowingNorm, SmallCNN
from ..numerics.int8 import HAS_VNNI, channel_scales, conv2d, draw, to_int8

openvino = pytest.importorskip("openvino")
int8 = pytest.mark.skipif(not runtime("openvino-int8").can_build(), reason="this CPU does not execute int8")
exact_int8 = pytest.mark.skipif(not HAS_VNNI, reason="without VNNI sums saturate")
bf16 = pytest.mark.skipif(not runtime("openvino-bf16").can_build(), reason="this CPU does not execute bf16")


class Mixed(nn.Module):
    """Grouped and transposed convolutions, pooling, resizing, a softmax at the end."""

    def __init__(self):
        super().__init__()
        self.first, self.group = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up, self.last = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = nn.functional.silu(self.group(nn.functional.max_pool2d(self.first(x), 2)))
        x = nn.functional.interpolate(self.up(x), scale_factor=2, mode="bilinear")
        return self.last(nn.functional.hardswish(x)).flatten(2).softmax(-1) * 64


PICTURES, TOKENS = (8, 3, 16, 16), (8, 16, 32)
NETS = [
    (SmallCNN, PICTURES),
    (Attention, TOKENS),
    (OverflowingNorm, PICTURES),
    (OutlierViT, PICTURES),
    (Mixed, PICTURES),
]


@functools.cache
def exported_once(net, shape):
    torch.manual_seed(0)
    subject = Subject(frozen_copy(net()), (torch.randn(shape),))
    assert subject.exported
    return subject


def subject_of(net, shape, **settings):
    subject = copy.copy(exported_once(net, shape))
    subject.settings = BuildSettings(**settings)
    return subject


def relative(output, exact):
    return float((output.double() - exact).norm() / exact.norm())


def exact_of(subject):
    with torch.no_grad():
        exact = subject.module.double()(subject.example[0].double())
        subject.module.float()
    return exact


def graph(text, weights=None, **inputs):
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "own" : 1]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    return GraphSubject(model, inputs)


# fp32.


@pytest.mark.parametrize(("net", "shape"), NETS)
def test_fp32_matches_torch(net, shape):
    subject = subject_of(net, shape)
    made = execute(runtime("openvino-fp32"), subject)
    assert relative(made.outputs[0], exact_of(subject)) < 1e-5
    assert set(made.layers) == {"fp32"}


@pytest.mark.parametrize("batch", [1, 3, 8, 16])
def test_any_number_of_samples_goes_through_the_deployed_batch(batch):
    """8 samples: one by one, in threes with a rest, at once, and fewer than a batch."""
    made = execute(runtime("openvino-fp32"), subject_of(SmallCNN, PICTURES, batch=batch), timed=True)
    expected = execute(runtime("torch-fp32"), subject_of(SmallCNN, PICTURES))
    torch.testing.assert_close(made.outputs[0], expected.outputs[0], rtol=1e-4, atol=1e-5)
    assert (made.latency.batch, 0 < made.latency.median <= made.latency.p99) == (batch, True)


def test_a_graph_of_a_fixed_batch_is_left_as_it_is():
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    subject = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Exp(x) }", x=x)
    made = execute(runtime("openvino-fp32"), subject, timed=True)
    torch.testing.assert_close(made.outputs[0], torch.from_numpy(np.exp(x)))
    assert made.latency.batch == 2


def test_integers_booleans_and_halves_come_out_as_they_are():
    subject = graph(
        "g (int64[N, 2] a, bool[N, 2] b, float[N, 2] x)"
        "=> (int64[N, 2] c, bool[N, 2] d, bfloat16[N, 2] e, float16[N, 2] f)"
        "{ c = Add(a, a) d = Not(b) y = Exp(x) e = Cast<to = 16>(y) f = Cast<to = 10>(y) }",
        a=np.array([[1, -(2**29)], [3, 4]]),
        b=np.array([[True, False], [False, True]]),
        x=np.array([[0, 1], [2, 3]], np.float32),
    )
    made = execute(runtime("openvino-fp32"), subject)
    assert made.status == "measured", made.note
    c, d, e, f = made.outputs
    exact = subject.example[2].exp()
    assert (c[0].tolist(), d.tolist()) == ([2, -(2**30)], [[False, True], [True, False]])
    assert (e.dtype, f.dtype) == (torch.bfloat16, torch.float16)
    cut_off = not runtime("openvino-bf16").can_build()  # where the CPU has no bf16 the cast does not round
    torch.testing.assert_close(e.float(), exact, rtol=2**-7 if cut_off else 2**-8, atol=0)
    torch.testing.assert_close(f.float(), exact, rtol=2**-10, atol=0)


def test_the_same_engine_gives_the_same_bits():
    first, again = (execute(runtime("openvino-fp32"), subject_of(OutlierViT, PICTURES)) for _ in range(2))
    assert torch.equal(first.outputs[0], again.outputs[0])


# bf16.


@bf16
@pytest.mark.parametrize(("net", "shape"), NETS)
def test_executed_bf16_is_as_far_away_as_emulated(net, shape):
    subject = subject_of(net, shape)
    executed, emulated = (execute(runtime(f"{name}-bf16"), subject) for name in ("openvino", "emulated"))
    exact = exact_of(subject)
    assert 0.5 < relative(executed.outputs[0], exact) / relative(emulated.outputs[0], exact) < 2
    assert set(executed.layers) == {"bf16"}  # up to the outputs


@bf16
def test_what_is_kept_runs_in_fp32():
    """A softmax after a convolution: its 64 values sum to 64, to bf16's last bit or to fp32's."""
    subject = subject_of(Mixed, PICTURES)
    tail = [node.name for node in subject.exported.model.graph.node if node.op_type in ("Softmax", "Mul")][-2:]
    rounded, kept = (execute(runtime("openvino-bf16"), each) for each in (subject, subject.keeping(tail)))
    error = [float((made.outputs[0].double().sum(-1) - 64).abs().max()) / 64 for made in (rounded, kept)]
    assert error[0] > 1e-4
    assert error[1] < 1e-6
    assert kept.note == "2 nodes kept, in 2 pieces"
    assert kept.layers == {"bf16": rounded.layers["bf16"] - 2, "fp32": 2}


@bf16
@pytest.mark.parametrize(("net", "shape"), [NETS[1], NETS[-1]])
def test_keeping_everything_is_fp32_and_keeping_half_is_what_the_emulation_says(net, shape):
    subject = subject_of(net, shape)
    names = [node.name for node in subject.exported.model.graph.node]
    half = subject.keeping(names[::2])
    exact = exact_of(subject)
    executed, emulated = (execute(runtime(f"{name}-bf16"), half) for name in ("openvino", "emulated"))
    assert 0.5 < relative(executed.outputs[0], exact) / relative(emulated.outputs[0], exact) < 2
    assert set(executed.layers) == {"bf16", "fp32"}
    whole = execute(runtime("openvino-bf16"), subject.keeping(names))
    assert whole.note.startswith("EngineError: No layer computes in bf16 on this CPU: ")


# int8.


def integer_conv(x, weight, scale):
    """Quantise, convolve in int32 and scale: (x / scale) * (w / scales), each rounded to int8."""
    scales = channel_scales(weight, 0)
    sums = conv2d(to_int8(x, scale), to_int8(weight, scales), padding=1)
    return sums * (scale * scales.reshape(1, -1, 1, 1))


@exact_int8
@pytest.mark.parametrize("size", [3, 16, 33])
def test_int8_closed_form(size):
    """One convolution per channel: what numpy computes in int32 and scales once. No input lies between two integers."""
    steps = np.clip(np.rint(40 * draw(4, 3, size, size)), -127, 127)
    steps[0, 0, 0, 0] = 127
    x, weight = (steps / 32).astype(np.float32), draw(5, 3, 3, 3)
    text = f"x) => (float[N, 5, {size}, {size}] y) {{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }}"
    subject = graph(f"g (float[N, 3, {size}, {size}] {text}", {"w": weight}, x=x)
    made = execute(runtime("openvino-int8"), subject)
    assert made.layers == {"int8": 1}
    np.testing.assert_allclose(
        made.outputs[0].numpy(), integer_conv(x, weight, np.float32(1 / 32)), rtol=1e-5, atol=1e-4
    )


@exact_int8
@pytest.mark.parametrize(("net", "shape"), NETS)
def test_executed_int8_is_the_emulation_of_the_same_graph(net, shape):
    """Integers are exact: the two differ by the rounding of scales, a thousandth of what int8 costs and less."""
    subject = subject_of(net, shape)
    executed, emulated = (
        execute(runtime(f"{name}-int8"), subject).outputs[0].double() for name in ("openvino", "emulated")
    )
    exact = exact_of(subject)
    assert (executed - emulated).norm() < 1e-3 * (emulated - exact).norm()
    layers = execute(runtime("openvino-int8"), subject).layers
    assert layers["int8"] >= 0.8 * len(subject.quantised.nodes)  # two products of one attention are one layer


@exact_int8
@pytest.mark.parametrize(
    "joined",
    [
        "c = Concat<axis = 1>(x, z)",
        "u = Relu(x) v = Relu(z) c = Concat<axis = 1>(u, v)",
        "u = Tanh(x) c = Concat<axis = 1>(u, z)",
    ],
)
def test_a_convolution_of_joined_tensors_is_right(joined):
    """OpenVINO loses the zero points of signed activations there, and is wrong by a third."""
    text = f"g (float[N, 4, 9, 9] x, float[N, 4, 9, 9] z) => (float[N, 5, A, B] y) {{ {joined} y = Conv(c, w) }}"
    subject = graph(text, {"w": draw(5, 8, 3, 3)}, x=draw(6, 4, 9, 9), z=draw(6, 9, 4, 9).transpose(0, 2, 1, 3).copy())
    made, emulated = (execute(runtime(f"{name}-int8"), subject) for name in ("openvino", "emulated"))
    exact = execute(runtime("onnxruntime-fp32"), subject).outputs[0]
    assert (made.outputs[0] - emulated.outputs[0]).norm() < 1e-3 * (emulated.outputs[0] - exact).norm()
    assert made.layers["int8"] == 1
    assert "1 joined activations given as unsigned" in made.note


@exact_int8
@pytest.mark.parametrize(("net", "shape"), NETS)
def test_the_three_int8_runtimes_are_as_far_away(net, shape):
    subject = subject_of(net, shape)
    exact = exact_of(subject)
    made = [execute(runtime(f"{name}-int8"), subject) for name in ("openvino", "onnxruntime", "emulated")]
    assert [each.note for each in made if not each.outputs] == []
    distances = [relative(each.outputs[0], exact) for each in made]
    assert max(distances) < 2 * min(distances)


@int8
@pytest.mark.skipif(platform.machine() != "x86_64", reason="VNNI is of x86")
def test_sums_of_ones_and_what_is_said_where_they_saturate():
    """Without VNNI twice 255 x 127 ends at 32,767, eight times; 128 x 127 sixteen times is taken off for the shift."""
    ones = {"w": np.ones((4, 16, 1, 1), np.float32)}
    subject = graph(
        "g (float[N, 16, 4, 4] x) => (float[N, 4, 4, 4] y) { y = Conv(x, w) }",
        ones,
        x=np.ones((2, 16, 4, 4), np.float32),
    )
    made = execute(runtime("openvino-int8"), subject)
    saturated = (8 * 32767 - 16 * 128 * 127) / 127**2
    expected = 16.0 if HAS_VNNI else saturated
    torch.testing.assert_close(made.outputs[0], torch.full((2, 4, 4, 4), expected), rtol=1e-3, atol=0)
    assert ("without VNNI" in made.note) == (not HAS_VNNI)


@exact_int8
def test_what_is_excluded_from_int8_runs_in_fp32():
    subject = subject_of(SmallCNN, PICTURES).excluding_only(["stem"])
    made, plain = execute(runtime("openvino-int8"), subject), execute(runtime("openvino-fp32"), subject)
    assert made.layers == {"int8": 1, "fp32": 1}
    assert "1 of 2 products in int8" in made.note
    whole = execute(runtime("openvino-int8"), subject_of(SmallCNN, PICTURES))
    near, far = ((each.outputs[0] - plain.outputs[0]).norm() for each in (made, whole))
    assert 0 < near < far


@exact_int8
def test_a_graph_with_zero_points_that_is_quantised_already_is_taken_as_it_is():
    """Unsigned activations with a zero point of 128 and a bias in int32, as ONNX Runtime's own defaults have them."""
    text = """g (float[N, 4] x) => (float[N, 3] y)
        <float s = {0.05}, uint8 z = {128}, float t = {0.01}, int8 n = {0}, int32[3] b = {100, -200, 300},
         float u = {0.0005}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, t, n)
          c = DequantizeLinear(b, u) p = MatMul(d, v) y = Add(p, c) }"""
    weight = np.array([[1, -2, 3], [4, -5, 6], [7, 8, -9], [10, 11, -12]], np.int8)
    x = draw(6, 4)
    made = execute(runtime("openvino-int8"), graph(text, {"w": weight}, x=x))
    assert made.status == "measured", made.note
    exact = (np.rint(x / np.float32(0.05)).clip(-128, 127) @ weight + [100, -200, 300]) * 0.0005
    np.testing.assert_allclose(made.outputs[0].numpy(), exact, rtol=1e-5, atol=1e-6)
    assert made.layers["int8"] >= 1


# Where it cannot be done.


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    made = execute(runtime("openvino-fp32"), subject_of(SmallCNN, PICTURES))
    assert made.status == "unavailable"
    assert 'pip install "lightning-robust[openvino]"' in made.note


@pytest.mark.parametrize(("capabilities", "able"), [(["FP32"], ["fp32"]), (["FP32", "BF16"], ["fp32", "bf16"])])
def test_a_cpu_without_the_precision_is_unavailable(monkeypatch, capabilities, able):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *args: capabilities)
    found = {precision: runtime(f"openvino-{precision}").can_build() for precision in ("fp32", "bf16")}
    assert [precision for precision, ability in found.items() if ability] == able
    assert "openvino-fp32" in [made.name for made in available("auto")]
    assert ("openvino-bf16" in [made.name for made in available("auto")]) == ("bf16" in able)
    if "bf16" not in able:
        assert found["bf16"].reason == "OpenVINO does not execute bf16 on this CPU, only FP32"


def test_what_ran_in_another_precision_is_no_measurement():
    """Only values move here, whatever was asked for."""
    x = np.ones((3, 2), np.float32)
    subject = graph("g (float[N, 2] x) => (float[2, N] y) { y = Transpose(x) }", x=x)
    made = execute(runtime("openvino-fp32"), subject)
    assert (made.status, made.outputs) == ("unavailable", [])
    assert made.note == "EngineError: No layer computes in fp32 on this CPU: none computes at all."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = own.Strange(x)", "operations: own.Strange"),
        ("y = Reshape<allowzero = 0>(x, s)", "Requested output shape [7] is incompatible with input shape"),
    ],
)
def test_a_refused_graph_says_why_in_one_line(text, reason):
    model = f"g (float[2, 2] x) => (float[A, B] y) <int64[1] s = {{7}}> {{ {text} }}"
    parsed = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "own" : 1]> {model}')
    subject = subject_of(SmallCNN, PICTURES)
    subject._exported = GraphLike(parsed)
    made = execute(runtime("openvino-fp32"), subject)
    assert made.status == "failed"
    assert made.note.startswith("EngineError: OpenVINO does not take the graph: ")
    assert reason in made.note
    assert ".cpp" not in made.note


class GraphLike:
    """What an engine reads of an exported graph that no other engine would open."""

    def __init__(self, model):
        self.model, self.batch = model, None
        self.inputs, self.outputs = ("x",), ("y",)


# Beside forked workers.


def test_a_forked_process_neither_needs_nor_waits_for_its_threads():
    subject = subject_of(SmallCNN, PICTURES)
    made = execute(runtime("openvino-fp32"), subject)
    gc.collect()  # what other tests have left would wait for threads of its own
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=lambda: (gc.collect(), os._exit(7)))
    worker.start()
    worker.join(20)
    alive = worker.is_alive()
    worker.kill()
    assert not alive
    assert worker.exitcode == 7
    torch.testing.assert_close(made.run(subject.example)[0], made.outputs[0])


def test_one_core_lives_as_long_as_the_process(monkeypatch):
    """Its plugin gives the thread a stack for signals: without it the end of a loader's worker kills the process."""
    made, original = [], openvino.Core
    openvino_core.cache_clear()
    monkeypatch.setattr(openvino, "Core", lambda: made.append(original()) or made[-1])
    targets = [name for name in TARGETS if name.startswith("openvino") and runtime(name).can_build()]
    statuses = {execute(runtime(name), subject_of(SmallCNN, PICTURES)).status for name in (*targets, *targets)}
    assert (statuses, len(made)) == ({"measured"}, 1)


def test_no_compiled_model_waits_for_the_garbage_collector(monkeypatch):
    """Collected in a forked process it would wait there for threads that do not exist."""
    alive, original = weakref.WeakSet(), OpenVINOModel.__init__

    def remember(self, *args):
        alive.add(self)
        original(self, *args)

    monkeypatch.setattr(OpenVINOModel, "__init__", remember)
    subject = subject_of(SmallCNN, PICTURES)
    runtimes = available([name for name in TARGETS if name.startswith("openvino") and runtime(name).can_build()])
    gc.collect()
    gc.disable()
    try:
        made = execute(runtimes[0], subject, timed=True)
        assert len(alive) == 1
        del made
        report = measure_parity(subject, runtimes, perturbations=perturbations(["bgr"]), pixels=PixelSpace())
        assert {target.status for target in report.targets.values()} == {"measured"}
        assert len(alive) == 0
    finally:
        gc.enable()
