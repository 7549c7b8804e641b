"""The network's decoding and loss: closed forms, and the same result in every precision and runtime."""

import numpy as np
import onnxruntime
import pytest
import torch

from lightning_robust.demo.lanes import LaneDetector, LaneNetwork
from lightning_robust.demo.lanes.anchors import row_anchors
from lightning_robust.demo.lanes.network import UNLABELLED, lane_loss, soft_columns


def peaked(cells, count=64, spread=0.7):
    """Logits of a Gaussian over the cells, with "absent" far away."""
    places = torch.arange(count, dtype=cells.dtype)
    logits = -((places - cells[..., None]) ** 2) / (2 * spread**2)
    return torch.cat([logits, torch.full_like(logits[..., :1], -20)], -1)


def test_soft_columns_finds_the_centre_of_a_peak():
    cells = torch.tensor([[[10.0, 31.3, 50.0 + 7 / 16]]], dtype=torch.float64)
    columns, presence = soft_columns(peaked(cells), frame_width=960)
    # a Gaussian sampled at whole cells and cut at +-3 cells (>= 3.6 deviations from the peak)
    torch.testing.assert_close(columns, (cells + 0.5) * 15 - 0.5, atol=0.02, rtol=0)
    assert presence.min() > 0.999


def test_soft_columns_ignores_a_second_peak():
    cells = torch.tensor([[[10.0]]])
    logits = torch.maximum(peaked(cells), peaked(cells + 30) - 1)
    assert abs(float(soft_columns(logits, 960).columns) - (10.5 * 15 - 0.5)) < 0.01


def test_loss_is_least_at_the_truth():
    truth = torch.tensor([[[300.0, 420.5], [torch.nan, 640.0]]])
    cells = (truth + 0.5) / 15 - 0.5

    def loss(shift):
        logits = peaked(cells.nan_to_num(0.0) + shift)
        absent = torch.full((65,), -20.0).index_fill(0, torch.tensor(64), 20.0)
        return float(lane_loss(torch.where(truth.isnan()[..., None], absent, logits), truth, 960))

    entropy = 3 / 4 * np.log(0.7 * np.sqrt(2 * np.pi * np.e))  # of a Gaussian in cells, for 3 of 4 points
    assert loss(0.0) == pytest.approx(entropy, abs=0.01)
    assert loss(0.0) < loss(0.05) < loss(0.5) < loss(3.0)
    assert loss(-0.05) > loss(0.0)


def test_loss_without_any_line_is_finite():
    logits = torch.randn(2, 2, 17, 65, requires_grad=True)
    loss = lane_loss(logits, torch.full((2, 2, 17), torch.nan), 960)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    expected = -torch.log_softmax(logits, -1)[..., -1].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_shapes_and_anchors():
    model = LaneDetector()
    images = torch.randn(2, 3, 144, 256)
    assert model.logits(images).shape == (2, 2, 17, 65)
    assert model.features(images).shape == (2, 256)
    rows = (row_anchors(144) + 0.5) / 144
    assert rows[0] == pytest.approx(0.5417, abs=1e-4)
    assert rows[-1] == pytest.approx(0.9861, abs=1e-4)
    assert model.rows[0] == pytest.approx(292.0)
    with pytest.raises(ValueError, match="Expected multiples of 16"):
        LaneNetwork(height=150)


def test_double_and_single_precision_agree():
    torch.manual_seed(0)
    model = LaneDetector().eval()
    images = torch.randn(2, 3, 144, 256)
    with torch.no_grad():
        single, half = model(images), model.to(torch.bfloat16)(images.bfloat16())
        logits = model.float().logits(images)
        model.double()
        double, logits64 = model(images.double()), model.logits(images.double())
    assert double.columns.dtype == torch.float64
    assert half.columns.dtype == torch.bfloat16
    torch.testing.assert_close(logits64.float(), logits, atol=5e-2, rtol=0)  # weights went through bfloat16
    same = (logits64[..., :-1].argmax(-1) == model.logits(images.double())[..., :-1].argmax(-1)).all()
    assert same
    assert single.columns.shape == double.columns.shape == (2, 2, 17)


def test_exported_graph_agrees(tmp_path):
    torch.manual_seed(0)
    model = LaneDetector().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    path = tmp_path / "lanes.onnx"
    program = torch.onnx.export(
        model,
        (torch.randn(2, 3, 144, 256),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 144, 256)
    columns, presence = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model(images)
    # one cell is 15 px; float32 kernels differ in the last bits only
    np.testing.assert_allclose(columns, expected.columns.numpy(), atol=0.05)
    np.testing.assert_allclose(presence, expected.presence.numpy(), atol=1e-4)


def test_pictures_without_labels_are_left_out_of_the_loss():
    """-1 stands for every column of such a picture; a supervised loss is of the others, and of none it is 0."""
    torch.manual_seed(0)
    logits = torch.randn(4, 2, 17, 41, requires_grad=True)
    columns = 960 * torch.rand(4, 2, 17)
    columns[2:] = UNLABELLED
    assert torch.equal(lane_loss(logits, columns, 960), lane_loss(logits[:2], columns[:2], 960))
    alone = lane_loss(logits[2:], columns[2:], 960)
    alone.backward()
    assert alone == 0
    assert not logits.grad.any()
