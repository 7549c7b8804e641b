"""The conventions of docs/conventions.md, each pinned by one test with its numbers."""

import math
import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from lightning_robust import AdversarialCallback
from lightning_robust.decoding import Boxes, detr_boxes, heatmap_keypoints
from lightning_robust.deployment.engines.execution import STATUS_CODES
from lightning_robust.deployment.fingerprint import fingerprint
from lightning_robust.deployment.numerics.quantise import quantise_products
from lightning_robust.deployment.numerics.rounding import round_array
from lightning_robust.deployment.parity.distance import compare_decoded, compare_outputs
from lightning_robust.deployment.pixels import motions
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.corruptions.names import SEVERITIES
from lightning_robust.deployment.pixels.geometry import FILTERS, crop, letterbox, shift
from lightning_robust.deployment.pixels.operations import (
    BT601,
    BT709,
    BT2020,
    brighten,
    divided_by_256,
    fewer_levels,
    gamma,
    nv12,
    offset,
    other_normalisation,
    quantise,
    unexpanded_range,
    wrong_matrix,
    wrong_range,
)
from lightning_robust.deployment.replay.frames import read_picture
from lightning_robust.functional import (
    PixelSpace,
    RunningAverage,
    interpolate,
    move_masks,
    move_points,
    pgd,
    regmixup_batch,
    rescale_motion,
    rotate_quadrants,
)
from lightning_robust.statistics import mean_interval

from .deployment.graphs import graph

PAGE = (Path(__file__).parents[1] / "docs" / "conventions.md").read_text()


def levels(*values):
    """A grey picture with these levels of 255 in one row."""
    return torch.tensor([[[values]]], dtype=torch.float64) / 255


def colour(red, green, blue):
    return torch.tensor([red, green, blue], dtype=torch.float64).view(1, 3, 1, 1) / 255


def whole(pixels):
    return (pixels * 255).flatten().round(decimals=6).tolist()


def test_the_page_names_every_test_and_no_other():
    own = {name for name in globals() if name.startswith("test_convention_")}
    assert {*re.findall(r"`(test_convention_\w+)`", PAGE)} == own
    assert len(own) >= 25


def test_convention_channel_order(tmp_path):
    Image.new("RGB", (2, 1), (255, 128, 0)).save(tmp_path / "orange.png")
    picture = read_picture(tmp_path / "orange.png")
    assert picture.shape == (1, 2, 3)
    assert picture[0, 0].tolist() == [255, 128, 0]
    assert whole(CATALOGUE["bgr"].deployed(colour(255, 128, 0))) == [0, 128, 255]


def test_convention_pixel_range():
    space = PixelSpace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    white = torch.tensor([2.2489, 2.4286, 2.64]).view(1, 3, 1, 1)  # (1 - mean) / std
    assert space.to_pixels(white).flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    bytes_ = PixelSpace(mean=127.5, std=127.5, high=255.0)
    assert bytes_.to_pixels(torch.tensor([[-1.0], [0.0], [1.0]])).flatten().tolist() == [0, 0.5, 1]


def test_convention_eps(tmp_path):
    """8/255 is eight levels of pixels, whatever they were normalised with."""
    seen = []

    class Linear(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(12, 1)

        def forward(self, x):
            return self.layer(x.flatten(1))

        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return self(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    grey = torch.zeros(4, 3, 2, 2)  # the pixel 0.5
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(grey), batch_size=4)
    callback = AdversarialCallback("fgsm", eps="8/255", mean=0.5, std=0.25, val_eps=[])
    settings = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, log_every_n_steps=1, **settings)
    trainer.fit(Linear(), loader)
    assert (seen[-1] * 0.25 * 255).abs().flatten().tolist() == pytest.approx([8] * 48, rel=1e-5)


def test_convention_norms():
    """linf is of each value, l2 of the whole sample; both in the units of the inputs of a function."""
    inputs = torch.zeros(2, 3, 4, 4)
    found = pgd(lambda x: x.sum(), inputs, 0.25, steps=4, random_start=False)
    assert found.unique().tolist() == [0.25]
    found = pgd(lambda x: x.sum(), inputs, 0.25, steps=4, norm="l2", random_start=False)
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([0.25, 0.25], rel=1e-5)
    assert found.unique().tolist() == pytest.approx([0.25 / math.sqrt(48)], rel=1e-5)


def test_convention_rounding_of_pixels():
    assert whole(quantise(levels(2.5, 3.5, 3.51, -4, 300))) == [2, 4, 4, 0, 255]
    assert whole(fewer_levels(levels(3, 4, 255), bits=6)) == [0, 4, 252]


def test_convention_pixel_centres():
    """0 is the centre of the first pixel: x of 256 columns is (x + 0.5) * 3.75 - 0.5 of 960."""
    identity = torch.eye(3, dtype=torch.float64)
    half = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    assert rescale_motion(half, (144, 256), (540, 960))[0].tolist() == [1, 0, 1.875]
    assert torch.equal(rescale_motion(identity, (144, 256), (540, 960)), identity)
    twice = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    assert move_points(torch.tensor([[0.0, -0.5]]), twice).tolist() == [[0.5, -0.5]]


def test_convention_align_corners():
    """A ramp of ten pixels brought to four, by where each filter thinks that a pixel lies."""
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)
    row = {name: FILTERS[name](ramp, size=(10, 4))[0, 0, 0].tolist() for name in FILTERS if "pil" not in name}
    assert row["bilinear"] == pytest.approx([0.75, 3.25, 5.75, 8.25])  # (x + 0.5) * 2.5 - 0.5
    assert row["align_corners"] == pytest.approx([0, 3, 6, 9])  # x * 9 / 3
    assert row["asymmetric"] == pytest.approx([0, 2.5, 5, 7.5])  # x * 2.5
    assert row["nearest"] == [0, 2, 5, 7]  # floor(x * 2.5)
    assert row["area"] == pytest.approx([0.8, 3.2, 5.8, 8.2])  # pixels count by the share that is covered
    assert row["antialias"][1] == pytest.approx(3.25, abs=0.1)


def test_convention_direction_of_motion():
    """Positive is right and down, of the content, from training's picture to the deployed one."""
    point = torch.zeros(1, 1, 4, 4)
    point[..., 1, 1] = 1
    assert shift(point, 1.0)[0, 0].nonzero().tolist() == [[2, 2]]
    assert CATALOGUE["shift_half_pixel"].matrix(4, 4)[0].tolist() == [1, 0, 0.5]
    pictures = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)
    named = fingerprint(smooth, shift(smooth, 0.5))
    assert named.causes[0].name == "shift"
    assert "+0.50 px to the right" in str(named)


def test_convention_crop_and_letterbox():
    """2 % of 100 pixels are two at each side; bars are grey 114."""
    ramp = torch.arange(100.0).expand(1, 1, 100, 100) / 255
    assert whole(crop(ramp, 0.02)[..., 50, :1]) == [2]
    assert motions.cropped(100, 100, 0.02)[0].tolist() == pytest.approx([100 / 96, 0, (0.5 - 2) * 100 / 96 - 0.5])
    assert whole(letterbox(ramp, 0.05)[..., [0, 4, 95, 99], 0]) == [114] * 4


def test_convention_boxes():
    """As COCO has them: 0 is the picture's left edge, so that a whole picture is [0, 0, width, height]."""
    logits = torch.tensor([[[9.0, 0.0]]])
    found = detr_boxes((logits, torch.tensor([[[0.5, 0.5, 1.0, 1.0]]])), height=10, width=20)
    assert found.xyxy.tolist() == [[[0, 0, 20, 10]]]
    twice = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # a picture of twice the size, by pixel centres
    pixel = Boxes(torch.tensor([[[0.0, 0, 1, 1]]]), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))
    assert pixel.moved(twice).xyxy.tolist() == [[[0, 0, 2, 2]]]


def test_convention_key_points():
    """0 is the centre of the first pixel of the picture: cell 5 of four pixels each is at 21.5."""
    maps = torch.zeros(1, 1, 4, 8)
    maps[0, 0, 2, 5] = 1
    assert heatmap_keypoints(maps, 16, 32).tolist() == [[[21.5, 9.5]]]


def test_convention_masks():
    """A moved mask takes the nearest pixel and repeats the border."""
    right = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])
    assert move_masks(torch.tensor([[1, 2, 3]]), right).tolist() == [[1, 1, 2]]


def test_convention_color_matrices():
    for matrix, red, blue in ((BT601, 0.299, 0.114), (BT709, 0.2126, 0.0722), (BT2020, 0.2627, 0.0593)):
        assert matrix[0].tolist() == pytest.approx([red, 1 - red - blue, blue])
        assert matrix[1].tolist()[2] == matrix[2].tolist()[0] == 0.5  # Cb of blue, Cr of red
        assert matrix[1:].sum(1).tolist() == pytest.approx([0, 0], abs=1e-12)
    # red: Y 0.299, Cb -0.1687, Cr 0.5; BT.709: R = Y + 1.5748 Cr, G = Y - 0.1873 Cb - 0.4681 Cr, B = Y + 1.8556 Cb
    green = 255 * (0.299 - 0.18732 * -0.168736 - 0.46812 * 0.5)
    assert whole(wrong_matrix(colour(255, 0, 0))) == [255, round(green), 0] == [255, 25, 0]
    assert whole(wrong_matrix(colour(90, 90, 90))) == [90, 90, 90]


def test_convention_color_range():
    """Limited range is 16 to 235 for luma, 16 to 240 around 128 for chroma."""
    assert whole(wrong_range(levels(16, 128, 235))) == [0, round((128 - 16) * 255 / 219), 255]
    assert whole(unexpanded_range(levels(0, 255))) == [16, 235]
    assert whole(nv12(colour(0, 0, 0))) + whole(nv12(colour(255, 255, 255))) == [0] * 3 + [255] * 3


def test_convention_chroma():
    """NV12 averages the chroma of two by two pixels and repeats it; luma is each pixel's own."""
    pair = torch.cat([colour(255, 0, 0), colour(0, 0, 255)], 3).expand(1, 3, 2, 2)
    found = nv12(pair)
    chroma = torch.einsum("ij,njhw->nihw", BT601, found)[:, 1:]
    assert (chroma[..., 0] - chroma[..., 1]).abs().max() < 0.15  # but for the clipping of pixels to 0 and 255
    luma = torch.einsum("j,njhw->nhw", BT601[0], nv12(colour(90, 90, 90).expand(1, 3, 2, 2)))
    assert (luma * 255 - 90).abs().max() <= 0.6


def test_convention_gain_offset_and_gamma():
    assert whole(brighten(levels(100, 240), 1.1)) == [110, 255]
    assert whole(offset(levels(100, 250), 8)) == [108, 255]
    assert whole(gamma(levels(64), 0.9)) == [round(255 * (64 / 255) ** 0.9)] == [73]  # below 1 is brighter
    assert divided_by_256(torch.ones(1)).item() == 255 / 256
    halves = torch.full((1, 3, 1, 1), 0.5)
    assert other_normalisation(halves).flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_convention_severities():
    assert tuple(SEVERITIES) == (1, 2, 3, 4, 5)
    assert {entry.severity for entry in CATALOGUE.values()} == {"mild", "typical", "severe"}


def test_convention_signs():
    """A deviation is what is deployed minus the reference."""
    found = compare_outputs([torch.tensor([0.0, 2.0])], [torch.tensor([0.5, 2.5])])
    assert found["bias"] == 0.5
    decoded = compare_decoded({"x": torch.tensor([0.0, 2.0])}, {"x": torch.tensor([-1.0, 1.0])})
    assert (decoded["x_bias"], decoded["x_mean"]) == (-1.0, 1.0)


def test_convention_relative_distance():
    """Relative to the spread of the outputs, so that an offset that both share does not count."""
    reference = torch.tensor([0.0, 2.0], dtype=torch.float64)
    deployed = torch.tensor([0.0, 2.1], dtype=torch.float64)
    expected = 0.1 / math.sqrt(2)
    for shared in (0.0, 100.0):
        found = compare_outputs([reference + shared], [deployed + shared], "fp64")["rel_l2"]
        assert found == pytest.approx(expected)


def test_convention_percentiles():
    """The 99th percentile is the smallest value that 99 of 100 do not exceed; no interpolation."""
    zeros, errors = torch.zeros(100), torch.arange(1.0, 101.0)
    assert compare_outputs([torch.cat([zeros])], [errors])["p99_abs"] == 99


def test_convention_missing_values():
    """NaN is nothing there; lost is the share of places that have a value on one side only."""
    found = compare_decoded({"x": torch.tensor([1.0, math.nan])}, {"x": torch.tensor([1.5, 7.0])})
    assert (found["x_max"], found["x_lost"]) == (0.5, 0.5)


def test_convention_intervals():
    """95 %, by Student's t over seeds: of three, 4.303 standard errors."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.high - found.value == pytest.approx(4.302653 / math.sqrt(3))


def test_convention_status_codes():
    assert STATUS_CODES == {"measured": 0, "built": 1, "skipped": 2, "unavailable": 3, "failed": 4}


def test_convention_low_precision():
    """The nearest value, ties to even; what is out of range is clamped or becomes infinite."""
    ties = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 7e4], np.float32)
    assert round_array(ties, "fp16").tolist() == [1, 1 + 2.0**-9, 1 + 2.0**-8, math.inf]
    assert round_array(ties, "tf32")[:2].tolist() == [1, 1 + 2.0**-9]
    assert round_array(ties, "bf16")[:3].tolist() == [1, 1, 1]
    assert round_array(ties, "fp16", "clamp")[3] == 65504


def test_convention_int8():
    """Symmetric, zero point 0: weights by output channel with max |w| / 127, activations by tensor."""
    model = graph("g (float[n,2] x) => (float[n,2] y) { [op] y = MatMul(x, w) }", w=np.float32([[1, -4], [0.5, 2]]))
    made = quantise_products(model, {"x": 2.54}).model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    scales = sorted(float(v) for a in stored.values() if a.dtype == np.float32 for v in a.ravel())
    assert scales == pytest.approx([1 / 127, 2.54 / 127, 4 / 127])
    integers = [a for a in stored.values() if a.dtype == np.int8 and a.shape == (2, 2)]
    assert [a.tolist() for a in integers] == [[[127, -127], [64, 64]]]


def test_convention_quarter_turns():
    """Class 1 is a turn of 90 degrees counter-clockwise."""
    turned, classes = rotate_quadrants(torch.tensor([[[[1, 2], [3, 4]]]]))
    assert turned[1, 0].tolist() == [[2, 4], [1, 3]]
    assert classes.tolist() == [0, 1, 2, 3]


def test_convention_mixtures():
    """The share belongs to the sample itself, one minus it to its partner."""
    inputs = torch.tensor([[0.0], [1.0]])
    for seed in range(4):
        mixed, _, partner, share = regmixup_batch(
            inputs, torch.tensor([0, 1]), 0.5, torch.Generator().manual_seed(seed)
        )
        assert torch.allclose(mixed, share * inputs + (1 - share) * inputs[partner])


def test_convention_alpha():
    """0 is before fine-tuning, 1 after."""
    before, after = {"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}
    assert [interpolate(before, after, alpha)["w"].item() for alpha in (0, 0.25, 1)] == [0, 1, 4]


def test_convention_half_life():
    """Weights count half after it: a decay of 0.999 a step is a half-life of 693 steps."""
    assert math.log(0.5) / math.log(0.999) == pytest.approx(692.8, abs=0.05)
    average = RunningAverage("ema", half_life=2)
    for value in (1.0, 0.0, 0.0):
        average.update([torch.tensor(value)])
    weights = [0.5 ** (age / 2) for age in (2, 1, 0)]
    assert average.values()[0].item() == pytest.approx(weights[0] / sum(weights))
