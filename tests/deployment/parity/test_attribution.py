"""Links of hand-made outputs: each shows what was planted between its two ends."""

import math

import pytest
import torch

from lightning_robust.deployment.parity.attribution import find_engine, fp16_metrics, neighbours
from lightning_robust.deployment.parity.links import chain_scalars
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.result import TargetResult

from ..reports import chain_between

SPREAD = 1.0


def targets(**distances):
    return {name.replace("_fp", "-fp"): TargetResult("measured", {"px": d}) for name, d in distances.items()}


def readout(values):
    return Readout([values], {"x_px": values})


@pytest.fixture
def outputs():
    """Exact outputs of spread 1, and the independent errors of fp16 on them, of size 3e-3."""
    torch.manual_seed(0)
    exact = torch.randn(200, 50).double()
    exact /= (exact - exact.mean()).norm() / math.sqrt(exact.numel())
    noise = torch.randn(200, 50).double()
    return exact, 3e-3 * noise / noise.norm() * math.sqrt(noise.numel())


def chain_of(exact, emulated, engine):
    readouts = {"torch-fp64": exact, "onnxruntime-fp32": exact, "emulated-fp16": emulated, "tensorrt-fp16": engine}
    links = chain_between({name: readout(values) for name, values in readouts.items()}, "torch-fp64", "rel_l2")
    return {link.name: link for link in links}


def faults(exact, noise):
    """What is wrong with the engine beside the emulation -> its outputs, the distance and the bias of the fault."""
    torch.manual_seed(1)
    other = torch.randn_like(noise)
    other *= noise.norm() / other.norm()
    emulated = exact + noise
    return {
        "bias": (emulated + 1.5e-3, 1.5e-3, 1.5e-3),
        "independent error": (emulated + other, 3e-3, 0.0),
        "other direction": (exact - noise, 6e-3, 0.0),
        "less rounding, and a bias": (exact + 0.5 * noise + 2.5e-3, math.hypot(1.5e-3, 2.5e-3), 2.5e-3),
    }


@pytest.mark.parametrize("fault", ["bias", "independent error", "other direction", "less rounding, and a bias"])
def test_a_planted_engine_fault_shows_within_a_tenth(outputs, fault):
    """Two of the four are no further from PyTorch than the emulation is, and read 0 as a difference of distances."""
    exact, noise = outputs
    engine, size, bias = faults(exact, noise)[fault]
    links = chain_of(exact, exact + noise, engine)
    assert list(links) == ["export", "fp16", "engine"]
    assert links["export"].value == 0
    assert links["fp16"].value == pytest.approx(3e-3, rel=0.01)
    link = links["engine"]
    assert (link.source, link.target, link.samples) == ("emulated-fp16", "tensorrt-fp16", 200)
    assert link.value == pytest.approx(size / SPREAD, rel=0.1)
    assert link.bias == pytest.approx(bias, rel=0.1, abs=1e-4)
    assert link.interval.low <= link.value <= link.interval.high
    assert link.interval.high - link.interval.low < 0.1 * link.value


def test_a_sound_engine_has_a_link_of_zero(outputs):
    exact, noise = outputs
    assert chain_of(exact, exact + noise, exact + noise)["engine"].value == 0


def test_in_the_task_s_unit_with_its_bias(outputs):
    """The outputs are cells of ten pixels, the unit is pixels."""
    exact, noise = outputs
    pixels = {"torch-fp64": exact, "emulated-fp16": exact + noise - 0.01}
    readouts = {name: Readout([values / 10], {"x_px": values}) for name, values in pixels.items()}
    (link,) = chain_between(readouts, "torch-fp64", "x_px_p99")
    assert link.value == readouts["torch-fp64"].distance(readouts["emulated-fp16"])["x_px_p99"]
    assert link.bias == pytest.approx(-0.01, rel=0.02)


def test_neighbours_that_were_not_measured_are_passed_over(outputs):
    exact, noise = outputs
    half, tf32 = readout(exact + noise), readout(exact + 0.1 * noise)

    def names(**readouts):
        named = {"torch-fp64": readout(exact)} | {n.replace("_", "-"): r for n, r in readouts.items()}
        return [(link.name, link.source, link.target) for link in chain_between(named, "torch-fp64", "rel_l2")]

    assert names(emulated_bf16=half) == [("bf16", "torch-fp64", "emulated-bf16")]
    assert names(torch_fp16=half, tensorrt_fp16=half) == []
    assert names(emulated_tf32=tf32, onnxruntime_fp32=half) == [
        ("export", "torch-fp64", "onnxruntime-fp32"),
        ("tf32", "onnxruntime-fp32", "emulated-tf32"),
    ]


def test_each_precision_branches_off_the_graph_and_each_engine_off_its_precision(outputs):
    """Six targets, of which torch's is on no way to an engine, and an engine without its emulation has no link."""
    exact, noise = outputs
    shares = {
        "onnxruntime-fp32": 0.0,
        "emulated-fp16": 1.0,
        "emulated-bf16": 2.0,
        "emulated-int8": 4.0,
        "openvino-fp32": 0.5,
        "openvino-bf16": 3.0,
        "onnxruntime-int8": 4.0,
        "openvino-int8": 6.0,
        "deployed-int8": 7.0,
        "tensorrt-tf32": 9.0,
        "torch-bf16": 9.0,
    }
    readouts = {name: readout(exact + share * noise) for name, share in shares.items()}
    links = chain_between({"torch-fp64": readout(exact)} | readouts, "torch-fp64", "rel_l2")
    assert [(link.key, link.source, round(link.value / 3e-3, 2)) for link in links] == [
        ("export", "torch-fp64", 0.0),
        ("fp16", "onnxruntime-fp32", 1.0),
        ("bf16", "onnxruntime-fp32", 2.0),
        ("quantisation", "onnxruntime-fp32", 4.0),
        ("engine/openvino-bf16", "emulated-bf16", 1.0),
        ("engine/deployed-int8", "onnxruntime-fp32", 7.0),
        ("engine/openvino-int8", "emulated-int8", 2.0),
        ("engine/onnxruntime-int8", "emulated-int8", 0.0),
        ("engine/openvino-fp32", "onnxruntime-fp32", 0.5),
    ]
    assert set(neighbours(readouts, "torch-fp64")) == {"torch-fp64", *(link.target for link in links)}
    scalars = chain_scalars(links)
    assert scalars["attribution/engine"] == scalars["attribution/engine/openvino-bf16"]
    assert scalars["attribution/engine_bias"] == scalars["attribution/engine/openvino-bf16_bias"]
    assert len(scalars) == 2 * (len(links) + 1)


def test_a_graph_without_pytorch_is_its_own_reference(outputs):
    exact, noise = outputs
    readouts = {"onnxruntime-fp32": readout(exact), "openvino-fp32": readout(exact + noise)}
    (link,) = chain_between(readouts, "onnxruntime-fp32", "rel_l2")
    assert (link.key, link.source) == ("engine/openvino-fp32", "onnxruntime-fp32")


def test_fewer_samples_on_one_side_are_compared_with_the_first_of_the_other(outputs):
    exact, noise = outputs
    links = chain_between(
        {"torch-fp64": readout(exact), "emulated-fp16": readout((exact + noise)[:16])}, "torch-fp64", "rel_l2"
    )
    assert links[0].samples == 16
    first = readout(exact[:16]).distance(readout((exact + noise)[:16]), "fp16")
    assert links[0].value == first["rel_l2"]


def test_fp16_is_that_of_the_engine_if_there_is_one():
    measured = targets(emulated_fp16=0.5, torch_fp16=0.6, tensorrt_fp16=0.7)
    assert fp16_metrics(measured) == {"px": 0.7}
    assert find_engine(measured) == "tensorrt-fp16"
    built = measured | {"tensorrt-fp16": TargetResult("built")}
    assert fp16_metrics(built) == {"px": 0.6}
    assert find_engine(built) == ""
    assert fp16_metrics(targets(onnxruntime_fp32=0.1)) == {}
