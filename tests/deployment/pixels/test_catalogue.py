"""The catalogue: names, families, severities, and what every entry promises."""

import pytest
import torch

from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.deployment.pixels.perturb import perturb
from lightning_robust.functional.pixels import PixelSpace

from .pictures import levels, picture

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


def test_names_and_order():
    assert len(NAMES) == 35
    assert [entry.name for entry in perturbations()] == TYPICAL
    assert [entry.name for entry in perturbations("all")] == NAMES
    assert perturbations("none") == ()
    assert {entry.family for entry in CATALOGUE.values()} == set(FAMILIES)
    assert [(entry.family, entry.name) for entry in CATALOGUE.values()] == [
        (family, name) for family, names in FAMILIES.items() for name in names
    ]
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


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_no_picture_in_gives_no_picture_out(name):
    """As the last batch of a filter may have it."""
    (changed,) = perturb(torch.rand(0, 3, 16, 16), PixelSpace(), perturbations([name]))
    assert [len(side) for side in changed.through(lambda pictures: pictures)] == [0, 0]
