"""Closed forms of the resize filters, shift, crop and letterbox; OpenCV and Pillow as oracles."""

import numpy as np
import pytest
import torch

from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.geometry import (
    camera_frame,
    crop,
    letterbox,
    resize,
    share_camera_frames,
    shift,
    truncated_resize,
)
from lightning_robust.deployment.pixels.operations import quantise

from .pictures import distance, levels, picture


@pytest.mark.parametrize(("height", "width", "frame"), [(48, 64, (120, 160)), (28, 28, (70, 70)), (37, 51, (92, 128))])
def test_camera_frame_is_two_and_a_half_times_as_large(height, width, frame):
    assert camera_frame(torch.rand(1, 3, height, width)).shape[-2:] == frame


@pytest.mark.parametrize(
    ("name", "flag", "mean", "largest"),
    [
        ("bilinear", "INTER_LINEAR", 0.15, 1),  # OpenCV weighs in 11-bit fixed point
        ("nearest", "INTER_NEAREST", 0, 0),
        ("area", "INTER_AREA", 0.001, 1),
        ("bicubic", "INTER_CUBIC", 0.001, 1),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 51)])
def test_resize_matches_opencv(name, flag, mean, largest, height, width):
    cv2 = pytest.importorskip("cv2")
    x = picture(height=height, width=width)
    theirs = [cv2.resize(f, (width, height), interpolation=getattr(cv2, flag)) for f in levels(camera_frame(x))]
    average, worst = distance(resize(x, name), theirs)
    assert average <= mean
    assert worst <= largest


def test_trained_resize_matches_pil():
    """PIL weighs in fixed point and rounds between the two passes: at most a level."""
    image = pytest.importorskip("PIL.Image")
    x = picture()
    theirs = [
        np.asarray(image.fromarray(f).resize((64, 48), image.Resampling.BILINEAR)) for f in levels(camera_frame(x))
    ]
    average, worst = distance(CATALOGUE["resize_bilinear"].trained(x), theirs)
    assert average < 0.2
    assert worst <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shared_frames_change_nothing(dtype):
    """Bit for bit, for two tensors in turn and in either order of the entries; nothing is kept afterwards."""
    tensors = [picture(2).to(dtype), picture(2, 1, 37, 51).to(dtype)]
    sides = [
        s for e in CATALOGUE.values() if e.family in ("resize_filter", "rounding") for s in (e.trained, e.deployed)
    ]
    plain = [[side(x) for x in tensors] for side in sides]
    with share_camera_frames({}):
        for order in (1, -1):
            for side, expected in list(zip(sides, plain, strict=True))[::order]:
                assert all(torch.equal(side(x), e) for x, e in zip(tensors, expected, strict=True))
    before = resize(tensors[0], "nearest")
    tensors[0].zero_()
    assert before.any()
    assert not resize(tensors[0], "nearest").any()


def test_align_corners_keeps_corners():
    x = picture()
    frame, small = camera_frame(x), resize(x, "align_corners")
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(small[..., row, column], frame[..., row, column])


def test_shift_closed_form():
    """A ramp of 4 levels a column and 2 a row, moved by half a pixel each way, falls by 3; the border is repeated."""
    rows, columns = torch.arange(10.0)[:, None], torch.arange(12.0)[None]
    ramp = ((2 * rows + 4 * columns + 20) / 255)[None, None]
    moved = (shift(ramp, 0.5) - ramp) * 255
    torch.testing.assert_close(moved[..., 1:, 1:], torch.full((1, 1, 9, 11), -3.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(moved[..., 0, 1:], torch.full((1, 1, 11), -2.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(moved[..., 1:, 0], torch.full((1, 1, 9), -1.0), rtol=0, atol=1e-3)
    assert moved[0, 0, 0, 0].abs() < 1e-3


def test_truncation_is_half_a_level_darker():
    x = picture(4)
    entry = CATALOGUE["truncation"]
    moved = (entry.deployed(x) - entry.trained(x)) * 255
    assert moved.mean().item() == pytest.approx(-0.5, abs=0.03)
    assert set(moved.round().unique().tolist()) == {-1.0, 0.0}


def test_truncation_keeps_flat_pictures():
    every = torch.arange(256.0).div(255)[:, None, None, None].expand(256, 1, 12, 20)
    torch.testing.assert_close(truncated_resize(every), every, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "flag"), [("pil_bicubic", "BICUBIC"), ("lanczos", "LANCZOS")])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_resizes_match_pil(name, flag, channels):
    image = pytest.importorskip("PIL.Image")
    x = picture(2, channels)
    frames = levels(camera_frame(x))
    theirs = [
        np.asarray(image.fromarray(f.squeeze()).resize((64, 48), image.Resampling[flag])).reshape(48, 64, channels)
        for f in frames
    ]
    assert distance(resize(x, name), theirs) == (0, 0)


def test_asymmetric_resize_closed_form():
    """A ramp of one level a column of the frame: half of (2.5 - 1) columns to the left of the half-pixel resize."""
    ramp = torch.linspace(0, 200, 64).expand(1, 1, 48, 64) / 255
    frame = levels(camera_frame(quantise(ramp)))[0, 20, :, 0].astype(float)
    got = levels(resize(quantise(ramp), "asymmetric"))[0, 20, :, 0]
    place = np.arange(64) * 2.5
    expected = np.interp(place, np.arange(160), frame)
    assert np.abs(got - expected).max() <= 0.5001


def test_resize_without_half_pixels_moves_the_picture():
    """By phase: the centre of mass of a blob lies 0.3 columns further right, (1 - 1 / 2.5) / 2."""
    x = torch.zeros(1, 1, 48, 64)
    columns, rows = torch.arange(64.0)[None], torch.arange(48.0)[:, None]
    x[0, 0] = torch.exp(-((columns - 30) ** 2 + (rows - 22) ** 2) / 18)
    centres = [
        float((side * columns).sum() / side.sum())
        for side in (CATALOGUE["resize_asymmetric"].trained(x)[0, 0], CATALOGUE["resize_asymmetric"].deployed(x)[0, 0])
    ]
    assert centres[1] - centres[0] == pytest.approx(0.3, abs=0.03)


def test_crop_and_letterbox_closed_forms():
    """A ramp of 2 levels a column: of 64 columns the inner 62 are stretched about the middle; bars hold 114."""
    ramp = quantise((20 + 2 * torch.arange(64.0)).expand(1, 1, 48, 64) / 255)
    cut = levels(crop(ramp, 0.0))[0, 20, :, 0].astype(float)
    place = (np.arange(64) + 0.5) * 62 / 64 - 0.5 + 1
    assert np.abs(cut[2:-2] - (20 + 2 * place)[2:-2]).max() <= 0.5001
    boxed = levels(letterbox(ramp, 0.1))[0, :, 30, 0]
    assert (boxed[:5] == 114).all()
    assert (boxed[-5:] == 114).all()
    assert (boxed[6:-6] == 80).all()
