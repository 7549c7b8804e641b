"""The benchmarks of averages: their trainings, what they measure of losses and answers that are known, empty sets."""

import io
import math
import tarfile

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.graph.export import frozen_copy


@pytest.fixture(scope="module")
def archive(benchmark, tmp_path_factory):
    """Grey pictures that say their class and their number: 10 * class + number in training."""
    path, cifar = tmp_path_factory.mktemp("archive") / "pictures.tar.gz", benchmark("cifar")
    with tarfile.open(path, "w:gz") as files:
        for label, name in enumerate(cifar.CLASSES):
            for part, count in (("train", 18), ("test", 2)):
                for number in range(count):
                    stream = io.BytesIO()
                    Image.new("RGB", (32, 32), (20 * label + number,) * 3).save(stream, "JPEG", quality=95)
                    entry = tarfile.TarInfo(f"{part}/{name}/{number:04d}.jpg")
                    entry.size = stream.tell()
                    files.addfile(entry, io.BytesIO(stream.getvalue()))
    return path


@pytest.fixture
def averages(benchmark, monkeypatch):
    module = benchmark("averages")
    for name, value in {
        "PER_CLASS": 18,
        "HELD_OUT": 4,
        "EPOCHS": 1,
        "MORE": 2,
        "EMA": module.EMA | {"bn_samples": 128},
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_pictures_to_judge_on_are_not_trained_on(averages, archive, tmp_path):
    data, (images, labels) = averages.data_of(archive, tmp_path)
    levels = (images[:, 0, 12, 12] * 0.235 + 0.491).mul(255).round().int()
    trained = {20 * int(label) + number for label in range(10) for number in range(14)}
    assert set(data.train.pictures[:, 12, 12, 0].tolist()) == trained
    assert set(levels.tolist()) == {20 * label + number for label in range(10) for number in range(14, 18)}
    assert labels.bincount().tolist() == [4] * 10
    assert (len(data.train), len(data.test)) == (140, 20)


def test_raw_weights_are_those_of_a_training_without_an_average(averages, archive, tmp_path):
    """Bit for bit; the average is another one, and what was trained is not trained again."""
    start = averages.weights_of(averages.START, 3, archive, tmp_path)
    raw, average = (averages.weights_of(name, 3, archive, tmp_path) for name in averages.RUNS["falling rate"])
    data, _ = averages.data_of(archive, tmp_path)
    plain, returned = averages.fitted(3, start, data, averages.MORE, averages.PEAK)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in raw.items())
    assert all(torch.equal(tensor, plain[name]) for name, tensor in returned.items())
    assert not torch.equal(average["head.weight"], raw["head.weight"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "weights").rglob("*.pt")}
    assert {path.parent.name for path in files} == {"the_start", "falling_rate"}
    averages.weights_of("EMA", 3, archive, tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_profiles_of_a_paraboloid(benchmark):
    """|w|**2 rises by t**2 |w|**2 along directions whose filters are as long, and is a parabola on the line."""
    landscape = benchmark("landscape")
    state, base = ({"w": torch.randn(6, 5, dtype=torch.float64)} for _ in range(2))
    found = landscape.profiles(lambda s: s["w"].square().sum(), state, base)
    square = state["w"].square().sum().item()
    assert found["0"] == found["line 1"] == pytest.approx(square)
    assert found["line 0"] == pytest.approx(base["w"].square().sum().item())
    for distance in (0.25, 0.5):
        assert found[f"rise {distance:g}"] == pytest.approx(distance**2 * square)
    middle = ((base["w"] + state["w"]) / 2).square().sum().item()
    assert found["line 0.5"] == pytest.approx(middle)


def test_what_quantisation_changes_of_answers(benchmark):
    quantised = benchmark("quantised_averages")
    labels = torch.tensor([0, 1, 2, 0])
    right = 5 * torch.eye(3)[labels]
    other = right.clone()
    other[3] = torch.tensor([0.0, 1.0, 0.0])
    forms = {form: [right] for form in quantised.FORMS} | {"fp32": [right], "4 bits": [other], "openvino-int8": []}
    found = quantised.of_classes(forms, labels)
    assert (found["fp32"], found["lost/4 bits"], found["changed/4 bits"]) == (1.0, 0.25, 0.25)
    assert (found["lost/8 bits"], found["changed/8 bits"]) == (0, 0)
    assert math.isnan(found["lost/openvino-int8"])
    assert {tag for tags in (quantised.CIFAR_COLUMNS,) for tag, _, _ in tags.values()} == set(found)


def test_how_far_quantisation_moves_lines(benchmark):
    """One of four points is 3 px further, one is lost."""
    quantised = benchmark("quantised_averages")
    truth = torch.tensor([[[100.0, 200.0], [300.0, 400.0]]])
    present = torch.ones_like(truth)
    moved, fewer = truth + torch.tensor([[0.0, 3.0], [0.0, 0.0]]), present.clone()
    fewer[0, 1, 1] = 0.0

    def decode(outputs):
        return {"lateral_px": outputs[0].masked_fill(outputs[1] < 0.5, torch.nan)}

    forms = {form: [truth, present] for form in quantised.FORMS} | {
        "fp32": [truth + 1, present],
        "6 bits": [moved, fewer],
    }
    found = quantised.of_lines(forms, truth, decode)
    assert (found["fp32"], found["error/8 bits"], found["distance/8 bits"]) == (1, 0, 1)
    assert found["error/6 bits"] == pytest.approx(1.0)
    assert found["distance/6 bits"] == pytest.approx((1 + 2 + 1) / 3)
    assert found["lost/6 bits"] == 0.25
    assert found["p99/6 bits"] == pytest.approx(np.quantile([1, 2, 1], 0.99))


def test_weights_of_eight_bits_are_those_of_the_int8_engines(benchmark):
    """What DequantizeLinear gives back, channel by channel, in the graph that all int8 engines take."""
    quantised = benchmark("quantised_averages")
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4)).eval()
    images = torch.randn(8, 3, 6, 6)
    graph = Subject(frozen_copy(module), (images,)).quantised.model.graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held and held[node.input[0]].ndim > 1:
            levels, scales = held[node.input[0]].astype(np.float32), held[node.input[1]]
            shape = [
                -1 if axis == next(a.i for a in node.attribute if a.name == "axis") else 1
                for axis in range(levels.ndim)
            ]
            weights.append(torch.from_numpy(levels * scales.reshape(shape)))
    rounded = quantised.rounded(module, 8)
    assert len(weights) == 2
    for layer, found in zip((rounded[0], rounded[3]), weights, strict=True):
        expected = layer.weight.detach()
        found = found if found.shape == expected.shape else found.T
        assert torch.allclose(found, expected, atol=1e-7)
    assert not torch.equal(module[0].weight, rounded[0].weight), "the module keeps its own"


def test_rejects_empty_sets(benchmark):
    quantised, averages = benchmark("quantised_averages"), benchmark("averages")
    network, some = nn.Conv2d(3, 2, 3), torch.randn(4, 3, 8, 8)
    with pytest.raises(ValueError, match="Expected pictures to measure on, but got none"):
        quantised.outputs_of(network, some[:0], some)
    with pytest.raises(ValueError, match="Expected pictures to calibrate int8 on, but got none"):
        quantised.outputs_of(network, some, some[:0])
    with pytest.raises(ValueError, match="Expected convolutions or linear layers to quantise"):
        quantised.rounded(nn.BatchNorm2d(3), 8)
    with pytest.raises(ValueError, match="Expected pictures to measure the accuracy on, but got none"):
        averages.accuracy(network, (some[:0], torch.zeros(0)))


def test_rows_are_those_of_the_trainings(benchmark):
    quantised, averages, suite = (benchmark(name) for name in ("quantised_averages", "averages", "suite_lanes"))
    assert {name.removeprefix(quantised.CIFAR) for name in quantised.CIFAR_ROWS} < set(averages.ROWS)
    assert {name.removeprefix(quantised.LANES) for name in quantised.LANE_ROWS} < set(suite.ROWS)
    assert len(averages.ROWS) == sum(map(len, averages.RUNS.values())) == 9
