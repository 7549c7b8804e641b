import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from lightning_robust.deployment.pixels.catalogue import CATALOGUE, FAMILIES, perturbations
from lightning_robust.deployment.pixels.operations import (
    BT601,
    BT709,
    brighten,
    camera_frame,
    crop,
    divided_by_256,
    fewer_levels,
    gamma,
    jpeg,
    keep_camera_frames,
    letterbox,
    noise,
    nv12,
    offset,
    other_normalisation,
    resize,
    shift,
    swap_channels,
    to_levels,
    truncated_resize,
    unexpanded_range,
    wrong_matrix,
    wrong_range,
)

TYPICAL = [
    "resize_bilinear",
    "resize_nearest",
    "resize_area",
    "resize_bicubic",
    "resize_align_corners",
    "shift_half_pixel",
    "crop",
    "color_matrix",
    "color_range",
    "nv12",
    "jpeg_90",
    "truncation",
    "bgr",
    "brightness",
    "gamma_09",
    "noise_2",
]
NAMES = list(CATALOGUE)
COLOUR_ONLY = {"color_matrix", "color_matrix_709", "nv12", "bgr"}


def picture(batch=2, channels=3, height=48, width=64):
    """Smooth shapes, fine texture and a hard edge, in 8 bits."""
    coarse = interpolate(torch.rand(batch, channels, 5, 6), size=(height, width), mode="bicubic").clamp(0, 1)
    x = 0.85 * coarse + 0.15 * torch.rand(batch, channels, height, width)
    x[..., height // 2 :, width // 3 : width // 3 + 3] = 0.95
    return to_levels(x)


def levels(pixels):
    """As 8-bit pictures (N, H, W, C) in numpy; fails unless the pixels are multiples of 1/255."""
    scaled = pixels.double() * 255
    assert (scaled - scaled.round()).abs().max() < 1e-4
    return scaled.round().byte().permute(0, 2, 3, 1).numpy()


def distance(ours, theirs):
    difference = np.abs(levels(ours).astype(float) - np.asarray(theirs, dtype=float))
    return difference.mean(), difference.max()


def flat(*rgb, height=8, width=8):
    return torch.tensor(rgb, dtype=torch.float64).div(255)[None, :, None, None].expand(1, len(rgb), height, width)


def one_level(pixels):
    """The level of each channel of a picture of one colour."""
    colours = np.unique(levels(pixels).reshape(-1, pixels.shape[1]), axis=0)
    assert len(colours) == 1
    return colours[0].tolist()


def test_names_and_order():
    assert len(NAMES) == 35
    assert [entry.name for entry in perturbations()] == TYPICAL
    assert [entry.name for entry in perturbations("all")] == NAMES
    assert perturbations("none") == perturbations([]) == ()
    assert {entry.family for entry in CATALOGUE.values()} == set(FAMILIES)
    assert {entry.name for entry in perturbations(["gamma", "noise"])} == {
        n for n in NAMES if n[:5] in ("gamma", "noise")
    }
    assert [entry.name for entry in perturbations(["color_range"])] == ["color_range"]  # the entry, not its family
    assert {name for name in NAMES if not CATALOGUE[name].in_levels} == {"scale_256", "mean_std"}
    assert [entry.name for entry in perturbations(["bgr", "nv12", "bgr"])] == ["nv12", "bgr"]


@pytest.mark.parametrize(
    ("name", "match"), [("resize_bilinar", "Did you mean 'resize_bilinear'"), ("jpeg90", "mean 'jpeg_90'")]
)
def test_rejects_unknown_names(name, match):
    with pytest.raises(ValueError, match=match):
        perturbations([name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 48, 64), (3, 37, 51), (1, 28, 28)])
def test_every_entry(name, channels, height, width):
    """Same shape and type, 8-bit levels in [0, 1], one by one as in a batch, input kept, and something does change.

    What goes wrong after the frame was turned into floating point lies on no levels, and says so.
    """
    entry = CATALOGUE[name]
    if not entry.applies_to(channels):
        assert name in COLOUR_ONLY
        return
    x = picture(3, channels, height, width)
    before = x.clone()
    results = entry.trained(x), entry.deployed(x)
    for result, side in zip(results, (entry.trained, entry.deployed), strict=True):
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        if side is entry.trained or entry.in_levels:
            assert 0 <= result.min() <= result.max() <= 1
            levels(result)
        assert torch.equal(result, torch.cat([side(one) for one in x.split(1)]))
        assert result.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    moved = (results[1] - results[0]).abs().mean().item() * 255
    assert moved > 0.3  # truncation, the smallest, moves half a level


@pytest.mark.parametrize("name", NAMES)
def test_double_precision_gives_the_same_levels(name):
    """Ties at half a level are exact, so that single precision rounds them as double precision does."""
    x = picture().double()
    wide, narrow = CATALOGUE[name].deployed(x), CATALOGUE[name].deployed(x.float())
    assert wide.dtype == torch.float64
    if not CATALOGUE[name].in_levels:
        torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-6)
        return
    assert (levels(wide) != levels(narrow)).mean() < 1e-3


def test_applies_to():
    assert {name for name, entry in CATALOGUE.items() if not entry.applies_to(1)} == COLOUR_ONLY
    assert all(entry.applies_to(3) for entry in CATALOGUE.values())
    assert not any(entry.applies_to(4) for entry in CATALOGUE.values())


def test_entries_with_one_training_share_it():
    """`parity.py` keeps the outputs of a training side by the function object."""
    assert len({id(entry.trained) for entry in CATALOGUE.values()}) == 2


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
def test_kept_frames_change_nothing(dtype):
    """Bit for bit, for two tensors in turn and in either order of the entries; nothing is kept afterwards."""
    tensors = [picture(2).to(dtype), picture(2, 1, 37, 51).to(dtype)]
    sides = [
        s for e in CATALOGUE.values() if e.family in ("resize_filter", "rounding") for s in (e.trained, e.deployed)
    ]
    plain = [[side(x) for x in tensors] for side in sides]
    with keep_camera_frames():
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


def test_truncation_is_half_a_level_darker():
    x = picture(4)
    entry = CATALOGUE["truncation"]
    moved = (entry.deployed(x) - entry.trained(x)) * 255
    assert moved.mean().item() == pytest.approx(-0.5, abs=0.03)
    assert set(moved.round().unique().tolist()) == {-1.0, 0.0}


def test_truncation_keeps_flat_pictures():
    every = torch.arange(256.0).div(255)[:, None, None, None].expand(256, 1, 12, 20)
    torch.testing.assert_close(truncated_resize(every), every, rtol=0, atol=1e-6)


def test_bgr_is_an_involution():
    x = picture()
    assert torch.equal(swap_channels(x)[:, 0], x[:, 2])
    assert torch.equal(swap_channels(swap_channels(x)), x)


def test_brightness_closed_form():
    assert one_level(brighten(flat(0, 100, 240), 1.1)) == [0, 110, 255]


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
    frame = levels(camera_frame(to_levels(ramp)))[0, 20, :, 0].astype(float)
    got = levels(resize(to_levels(ramp), "asymmetric"))[0, 20, :, 0]
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
    x = to_levels(torch.full((2, 3, 64, 64), 0.5))
    x[1, 0, 0, 0] = 0
    noisy = noise(x, 6.0)
    difference = (noisy - x)[0] * 255
    assert difference.std().item() == pytest.approx(6.0, rel=0.05)
    assert difference.mean().abs() < 0.3
    assert torch.equal(noise(x[1:], 6.0), noisy[1:])
    assert not torch.equal(noisy[0, 1], noisy[1, 1])


def test_crop_and_letterbox_closed_forms():
    """A ramp of 2 levels a column: of 64 columns the inner 62 are stretched about the middle; bars hold 114."""
    ramp = to_levels((20 + 2 * torch.arange(64.0)).expand(1, 1, 48, 64) / 255)
    cut = levels(crop(ramp, 0.0))[0, 20, :, 0].astype(float)
    place = (np.arange(64) + 0.5) * 62 / 64 - 0.5 + 1
    assert np.abs(cut[2:-2] - (20 + 2 * place)[2:-2]).max() <= 0.5001
    boxed = levels(letterbox(ramp, 0.1))[0, :, 30, 0]
    assert (boxed[:5] == 114).all()
    assert (boxed[-5:] == 114).all()
    assert (boxed[6:-6] == 80).all()


KINDS = [
    ("shift_quarter_pixel", "shift_half_pixel", "shift_one_pixel"),
    ("jpeg_95", "jpeg_90", "jpeg_75"),
    ("gain_105", "brightness", "gain_080"),
    ("offset_8", "brightness", "mean_std"),
    ("scale_256", "brightness"),
    ("truncation", "levels_6_bit"),
    ("noise_2", "noise_6"),
    ("gamma_11", "gamma_09", "gamma_07"),
    ("resize_pil_bicubic", "resize_bilinear", "resize_asymmetric"),
    ("resize_lanczos", "resize_bilinear"),
    ("crop", "letterbox"),
    ("color_matrix", "color_matrix_709"),
    ("color_range_limited", "color_range"),
]


def test_every_severity_is_compared():
    """Each entry that a pass leaves out unless told otherwise stands in `KINDS` beside one that it measures."""
    compared = {name for kind in KINDS for name in kind}
    assert {name for name in NAMES if name not in TYPICAL} <= compared
    assert all(any(name in TYPICAL for name in kind) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_severity_is_monotone(kind):
    order = ["mild", "typical", "severe"]
    severities = [order.index(CATALOGUE[name].severity) for name in kind]
    assert severities == sorted(severities)
    assert len(set(severities)) == len(kind)
    x = picture(4)
    moved = [(CATALOGUE[n].deployed(x) - CATALOGUE[n].trained(x)).abs().mean().item() for n in kind]
    assert moved == sorted(moved)


def test_magnitudes():
    """Mean distance in levels: a wrong filter costs more than a wrong rounding, a wrong channel order more than all."""
    x = picture(4, height=96, width=128)
    moved = {name: (e.deployed(x) - e.trained(x)).abs().mean().item() * 255 for name, e in CATALOGUE.items()}
    typical = {name: moved[name] for name in TYPICAL}
    assert max(typical, key=typical.__getitem__) == "bgr"
    assert min(typical, key=typical.__getitem__) == "truncation"
    assert moved["resize_area"] < moved["resize_bilinear"] < moved["resize_nearest"]
