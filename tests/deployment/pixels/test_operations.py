"""Closed forms of rounding, colour, compression and noise; OpenCV as an oracle."""

import numpy as np
import pytest
import torch

from lightning_robust.deployment.pixels.operations import (
    BT601,
    BT709,
    brighten,
    divided_by_256,
    fewer_levels,
    gamma,
    jpeg,
    noise,
    nv12,
    offset,
    other_normalisation,
    quantise,
    swap_channels,
    unexpanded_range,
    wrong_matrix,
    wrong_range,
)

from .pictures import distance, flat, levels, one_level, picture


def reread(rgb):
    """BT.601 written and BT.709 read, from the two standards' formulas for one colour."""
    red, green, blue = (value / 255 for value in rgb)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - y) / 1.772, (red - y) / 1.402
    back = y + 1.5748 * cr, y - 0.187324 * cb - 0.468124 * cr, y + 1.8556 * cb
    return [round(255 * min(max(value, 0), 1)) for value in back]


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (31, 77, 190)]


@pytest.mark.parametrize("rgb", COLOURS)
def test_color_matrix_closed_form(rgb):
    assert one_level(wrong_matrix(flat(*rgb))) == reread(rgb)


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_color_matrix_keeps_grey(level):
    assert one_level(wrong_matrix(flat(level, level, level))) == [level] * 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("level", "read"), [(0, 0), (16, 0), (17, 1), (100, 98), (235, 255), (255, 255)])
def test_color_range_of_grey_closed_form(channels, level, read):
    assert one_level(wrong_range(flat(*[level] * channels))) == [read] * channels


@pytest.mark.parametrize("rgb", COLOURS)
def test_color_range_of_colours_closed_form(rgb):
    """Luma is stretched by 255/219 about black at 16, the colour differences by 255/224."""
    y = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    expected = [(y - 16) * 255 / 219 + (value - y) * 255 / 224 for value in rgb]
    assert one_level(wrong_range(flat(*rgb))) == [round(min(max(value, 0), 255)) for value in expected]


@pytest.mark.parametrize("rgb", [(0, 0, 0), (255, 255, 255), (128, 128, 128), *COLOURS])
def test_nv12_of_one_colour(rgb):
    """Half a step of luma (1.16 levels) and of chroma (up to 2.02) are lost: at most 0.58 + 1.01 + 0.5 levels."""
    assert np.abs(np.subtract(one_level(nv12(flat(*rgb))), rgb)).max() <= 2


def test_nv12_loses_the_colour_of_a_checkerboard():
    """Red and cyan of 255 - red, pixel by pixel: each 2 x 2 block has no colour left, only each pixel's own luma."""
    board = (torch.arange(8)[:, None] + torch.arange(8)[None]) % 2
    x = torch.where(board.bool(), flat(255, 0, 0), flat(0, 255, 255))
    got = levels(nv12(x))[0].astype(int)
    assert np.ptp(got, axis=2).max() == 0
    assert set(np.unique(got)) <= {76, 77, 178, 179}  # luma 76.2 and 178.8, in steps of 1.16


def test_nv12_matches_opencv():
    """Written here in numpy from the standard, read by OpenCV, whose reader works in integers."""
    cv2 = pytest.importorskip("cv2")
    x = picture(1)
    rgb = levels(x)[0].astype(float)
    y = rgb @ [0.299, 0.587, 0.114]
    luma = np.round(16 + y * 219 / 255)
    cb, cr = ((rgb[..., i] - y) / scale * 224 / 255 for i, scale in ((2, 1.772), (0, 1.402)))
    chroma = [np.round(128 + c.reshape(24, 2, 32, 2).mean((1, 3))) for c in (cb, cr)]
    frame = np.concatenate([luma, np.stack(chroma, -1).reshape(24, 64)]).astype(np.uint8)
    average, worst = distance(nv12(x), cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12)[None])
    assert average < 0.5
    assert worst <= 2


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_matches_opencv(channels):
    """Another copy of libjpeg at the same quality; two of libjpeg-turbo do not differ, others may round otherwise."""
    cv2 = pytest.importorskip("cv2")
    x = picture(2, channels)
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    theirs = []
    for frame in levels(x):
        written = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        theirs.append(cv2.imdecode(written, flag).reshape(frame.shape)[..., ::-1])
    assert distance(jpeg(x, 90), theirs)[0] < 0.5


def test_jpeg_gets_worse_with_quality():
    x = picture()
    q95, q90, q75 = ((jpeg(x, quality) - x).abs().mean().item() for quality in (95, 90, 75))
    assert 0 < q95 < q90 < q75


def test_bgr_is_an_involution():
    x = picture()
    assert torch.equal(swap_channels(x)[:, 0], x[:, 2])
    assert torch.equal(swap_channels(swap_channels(x)), x)


def test_brightness_closed_form():
    assert one_level(brighten(flat(0, 100, 240), 1.1)) == [0, 110, 255]


@pytest.mark.parametrize("rgb", COLOURS)
def test_reverse_color_matrix_undoes_the_matrix(rgb):
    back = BT601.inverse() @ BT709 @ (BT709.inverse() @ BT601)
    torch.testing.assert_close(back, torch.eye(3).double())
    value = torch.tensor(rgb).double() / 255
    expected = (BT601.inverse() @ BT709 @ value).clamp(0, 1) * 255
    assert np.abs(np.array(one_level(wrong_matrix(flat(*rgb), reverse=True))) - expected.numpy()).max() <= 0.5001


@pytest.mark.parametrize(("level", "read"), [(0, 16), (255, 235), (100, 102)])
@pytest.mark.parametrize("channels", [1, 3])
def test_limited_range_read_as_full_closed_form(level, read, channels):
    assert one_level(unexpanded_range(flat(*[level] * channels))) == [read] * channels


def test_offset_gamma_and_levels_closed_forms():
    assert one_level(offset(flat(0, 100, 250), 8)) == [8, 108, 255]
    assert one_level(gamma(flat(0, 128, 255), 0.5)) == [0, 181, 255]  # 255 sqrt(128 / 255) = 180.7
    assert one_level(fewer_levels(flat(100, 101, 255), 7)) == [100, 100, 254]
    assert float(divided_by_256(torch.ones(1, 1, 1, 1))) == 255 / 256


def test_other_normalisation_closed_form():
    """The network gets (p - 0.5) / 0.5; undoing ImageNet's normalisation of the green channel gives this."""
    x = torch.full((1, 3, 1, 1), 0.8)
    seen = (other_normalisation(x)[0, 1, 0, 0] - 0.456) / 0.224
    assert float(seen) == pytest.approx(0.6, abs=1e-6)


def test_noise_has_its_deviation_and_belongs_to_the_picture():
    x = quantise(torch.full((2, 3, 64, 64), 0.5))
    x[1, 0, 0, 0] = 0
    noisy = noise(x, 6.0)
    difference = (noisy - x)[0] * 255
    assert difference.std().item() == pytest.approx(6.0, rel=0.05)
    assert difference.mean().abs() < 0.3
    assert torch.equal(noise(x[1:], 6.0), noisy[1:])
    assert not torch.equal(noisy[0, 1], noisy[1, 1])
