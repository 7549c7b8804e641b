"""What was planted is what is named: every entry of the catalogue, pairs, none; and pictures that tell nothing.

The full matrix of pairs, also on a recording, is benchmarks/fingerprint.py.
"""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from lightning_robust.demo.lanes import LaneData
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.functional.pixels import PixelSpace
from tests.deployment.fingerprint.samples import scenes

PIPELINE = (
    *("compression", "color_matrix", "color_range", "shift", "crop", "resize_filter", "rounding", "noise"),
    *("gamma", "channel_order", "gain_offset"),
)
PAIRS = [(a, b) for a, b in itertools.combinations(CATALOGUE.values(), 2) if a.family != b.family]


@pytest.fixture(scope="module")
def roads():
    """Two rendered roads on 256 levels; more would be surer and slower."""
    data = LaneData(num_train=2, num_val=8)
    data.setup("fit")
    images = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0][:2]
    return (PixelSpace(data.mean, data.std).to_pixels(images) * 255).round().clamp(0, 255) / 255


def names(found):
    return [cause.name for cause in found.causes]


def test_every_single_cause_is_named_first(roads):
    """At least 95 % of them: 34 of 35; and hardly a cause that was not planted."""
    found = {name: fingerprint(e.trained(roads), e.deployed(roads)) for name, e in CATALOGUE.items()}
    wrong = {name: names(f) for name, f in found.items() if names(f)[:1] != [CATALOGUE[name].family]}
    assert len(wrong) <= 1, wrong
    needless = {name: names(f) for name, f in found.items() if set(names(f)) - {CATALOGUE[name].family}}
    assert len(needless) <= 3, needless
    for result in found.values():
        confidences = [cause.confidence for cause in result.causes]
        assert confidences == sorted(confidences, reverse=True)
        assert all(0.5 <= value <= 1 for value in confidences)
        assert result.unexplained <= 1.01 * result.distance


@pytest.mark.parametrize(("offset", "cut"), [(0.0, False), (-0.3, False), (-0.5, True)])
def test_half_a_level_is_seen_under_noise(roads, offset, cut):
    """Noise of six levels hides it from a fit of colours: of its mean square half a level is less than a hundredth."""
    noisy = CATALOGUE["noise_6"].deployed(roads + offset / 255)
    assert names(fingerprint(roads, noisy)) == (["noise", "rounding"] if cut else ["noise"])


def test_pairs_of_causes_are_named(roads):
    """At least 80 % of a fixed sample of 15 pairs from different families, on two pictures alone."""
    right = 0
    sample = random.Random(0).sample(PAIRS, 15)
    for pair in sample:
        a, b = sorted(pair, key=lambda entry: PIPELINE.index(entry.family))
        found = fingerprint(b.trained(a.trained(roads)), b.deployed(a.deployed(roads)))
        right += set(names(found)) == {a.family, b.family}
    assert right >= 12, right


def test_every_family_is_known_to_the_pipeline():
    assert set(PIPELINE) == set(FAMILIES)


@pytest.mark.parametrize("form", ["floats", "bytes", "normalised", "half", "numpy"])
def test_no_difference_is_none(roads, form):
    x = {
        "floats": roads,
        "bytes": (roads * 255).round().byte(),
        "normalised": PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]).from_pixels(roads),
        "half": roads.half(),
        "numpy": roads.numpy(),
    }[form]
    found = fingerprint(x, x)
    assert found.causes == ()
    assert "No difference." in found.note


def test_parameters_are_those_that_were_planted(roads):
    shift = fingerprint(roads, CATALOGUE["shift_half_pixel"].deployed(roads)).causes[0].parameters
    assert (shift["dx"], shift["dy"]) == pytest.approx((0.5, 0.5), abs=0.05)
    gain = fingerprint(roads, CATALOGUE["gain_080"].deployed(roads)).causes[0].parameters
    gains = [value for key, value in gain.items() if key.startswith("gain")]
    assert gains == pytest.approx([0.8] * len(gains), abs=0.01)
    gamma = fingerprint(roads, CATALOGUE["gamma_09"].deployed(roads)).causes[0].parameters
    assert gamma["gamma"] == pytest.approx(0.9, abs=0.01)
    order = fingerprint(roads, roads.flip(1)).causes[0].parameters
    assert order["order"] == "BGR"


def test_a_filter_is_told_from_the_kernel_of_a_shift(roads):
    """Moved bilinearly and sharpened looks nearly as if moved bicubically, which is no filter besides."""
    shift, resize = CATALOGUE["shift_quarter_pixel"], CATALOGUE["resize_lanczos"]
    both = fingerprint(resize.trained(roads), resize.deployed(shift.deployed(roads)))
    assert set(names(both)) == {"shift", "resize_filter"}
    rows = torch.tensor([[1, 0, -0.5 / 256], [0, 1, -0.5 / 144]])
    grid = affine_grid(rows.expand(len(roads), 2, 3), list(roads.shape), align_corners=False)
    moved = grid_sample(roads, grid, mode="bicubic", padding_mode="border", align_corners=False)
    assert names(fingerprint(roads, (moved * 255).round().clamp(0, 255) / 255)) == ["shift"]


def test_normalised_pictures_are_compared_in_levels(roads):
    space = PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    found = fingerprint(
        space.from_pixels(roads), space.from_pixels(roads.flip(1)), mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3]
    )
    assert names(found) == ["channel_order"]
    plain = fingerprint(roads, roads.flip(1))
    assert found.distance == pytest.approx(plain.distance, rel=1e-4)


def test_clipped_levels_are_seen_in_normalised_pictures():
    """Black of normalised pictures lies a rounding below 0, and white one above 255."""
    x = ((scenes(2) - 0.5) * 1.6 + 0.5).mul(255).round().clamp(0, 255) / 255
    clipped = CATALOGUE["color_range"].deployed(x)
    assert clipped.min() == 0
    space = PixelSpace([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    plain = fingerprint(x, clipped)
    found = fingerprint(space.from_pixels(x), space.from_pixels(clipped))
    assert names(found) == ["color_range"]
    assert found.unexplained == pytest.approx(plain.unexplained, rel=1e-2)


def test_a_forgotten_normalisation_is_told(roads):
    """The car feeds pixels in [0, 1] where training normalises."""
    space = PixelSpace([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert names(fingerprint(space.from_pixels(roads), roads))[:1] == ["gain_offset"]
    assert names(fingerprint(roads, roads * 255))[:1] == ["gain_offset"]


def test_a_difference_in_the_last_of_many_pictures_is_seen():
    """Half a million pixels are searched: of 40 pictures of 128 x 128 and of three of 736 x 736 not all."""
    generator = torch.Generator().manual_seed(0)
    for count, side in ((40, 128), (3, 736)):
        trained = interpolate(torch.rand(count, 3, 24, 24, generator=generator), size=(side, side), mode="bilinear")
        deployed = trained.clone()
        deployed[-(count // 5 + 1) :] = deployed[-(count // 5 + 1) :] ** 0.6
        assert fingerprint(trained, deployed).differs


def test_units_of_the_deployed_side_are_told():
    """Gain and offset are in training's levels, and a black that was guessed is said."""
    trained = avg_pool2d(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 5, 1, 2)
    found = fingerprint(trained, (trained - 0.4) / 0.1)
    (cause,) = (cause for cause in found.causes if cause.name == "gain_offset")
    assert "The deployed side's pictures are normalised with an unknown mean and std; its darkest" in found.note
    black = float(((trained - 0.4) / 0.1).amin((0, 2, 3))[0])
    assert cause.parameters["offset"] == pytest.approx(255 * black, rel=1e-3)


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("change", ["flip", "noise", "gamma"])
def test_the_smallest_pictures(side, change):
    generator = torch.Generator().manual_seed(0)
    trained = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    deployed = {
        "flip": trained.flip(3),
        "noise": (trained + 9 * torch.randn(trained.shape, generator=generator)).clamp(0, 255).to(torch.uint8),
        "gamma": (255 * (trained / 255) ** 0.8).round().to(torch.uint8),
    }[change]
    assert fingerprint(trained, deployed).differs
    with pytest.raises(ValueError, match="at least 28 x 28 pixels"):
        fingerprint(trained[..., :27], deployed[..., :27])


def test_constant_pictures_cannot_tell():
    flat = torch.full((2, 3, 32, 32), 0.5)
    found = fingerprint(flat, flat + 0.1)
    assert found.causes == ()
    assert "Cannot tell: the pictures are (nearly) constant." in found.note


def test_other_pictures_cannot_tell(roads):
    found = fingerprint(roads, torch.rand(roads.shape, generator=torch.Generator().manual_seed(0)))
    assert found.causes == ()
    assert "do not show the same content" in found.note


UNNAMED = {
    "vignette": lambda x: x * (1 - 0.4 * torch.linspace(-1, 1, x.shape[-1]).square()),
    "half mirrored": lambda x: torch.cat([x[..., :128], x[..., :128].flip(-1)], -1),
    "hue": lambda x: x + 0.3 * (x.roll(1, 1) - x.roll(2, 1)),
    "solarised": lambda x: torch.where(x > 0.6, 1 - x, x),
    "rows waving": lambda x: torch.stack([row.roll(i // 7 % 4, -1) for i, row in enumerate(x.unbind(-2))], -2),
    "dead pixels": lambda x: torch.where(torch.rand(x.shape[-2:], generator=torch.Generator()) < 0.003, 1.0, x),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_what_has_no_name_gets_none_with_confidence(roads, name):
    found = fingerprint(roads, (UNNAMED[name](roads) * 255).round().clamp(0, 255) / 255)
    assert all(cause.confidence <= 0.5 for cause in found.causes), found
    assert found.differs or not found.conclusive
    if found.causes:
        assert str(found).startswith("Most of it is not explained")


DEPENDS = {
    "brightness": lambda x: torch.where(x > 0.5, 0.5 + (x - 0.5) * 0.5, x),
    "the place": lambda x: x * (1 - 0.3 * torch.linspace(-1, 1, x.shape[-1]).square()),
    "the picture": lambda x: x * torch.linspace(0.8, 1.1, len(x))[:, None, None, None],
}


@pytest.mark.parametrize("what", DEPENDS)
def test_what_is_left_is_said_to_depend_on_what_it_does(roads, what):
    """A known function of brightness, place or picture explains it, whatever the causes that come nearest."""
    found = fingerprint(roads, (DEPENDS[what](roads) * 255).round().clamp(0, 255) / 255)
    assert f"What is left depends on {what}" in found.note
    assert all(cause.confidence <= 0.5 for cause in found.causes)


def test_a_crop_at_one_side_is_no_shift_besides(roads):
    cut = interpolate(roads[..., 14:, :], roads.shape[-2:], mode="bilinear", antialias=True)
    (cause,) = fingerprint(roads, (cut * 255).round() / 255).causes
    assert (cause.name, cause.parameters["kind"]) == ("crop", "crop")
    assert [cause.parameters[side] for side in ("top", "bottom")] == pytest.approx([14, 144], abs=0.3)
    assert "a crop without training's top" in cause.sentence


def covered(x):
    x = x.clone()
    x[..., 20:40, 30:90] = 0.9
    return x


def turned(x, degrees):
    a, ratio = math.radians(degrees), 143 / 255
    rows = torch.tensor([[math.cos(a), math.sin(a) * ratio, 0], [-math.sin(a) / ratio, math.cos(a), 0]])
    grid = affine_grid(rows.expand(len(x), 2, 3), list(x.shape), align_corners=True)
    return (grid_sample(x, grid, padding_mode="border", align_corners=True) * 255).round() / 255


def test_what_is_covered_is_boxed(roads):
    for trained, deployed in ((roads, covered(roads)), (roads, covered((roads * 1.1).clamp(0, 1)))):
        found = fingerprint(trained, deployed)
        cause = next(c for c in found.causes if c.name == "overlay")
        box = [cause.parameters[side] for side in ("top", "bottom", "left", "right")]
        assert box == pytest.approx([20, 40, 30, 90], abs=1)
        assert not found.mostly_unexplained
    assert names(fingerprint(roads, covered(roads))) == ["overlay"]


def test_a_turn_is_named(roads):
    found = fingerprint(roads, turned(roads, 1.5))
    assert names(found) == ["rotation"]
    assert found.causes[0].parameters["degrees"] == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(("kr", "kb", "luma"), [(0.299, 0.114, "BT.601"), (0.2126, 0.0722, "BT.709")])
def test_grey_for_colour_is_named_with_its_luma(roads, kr, kb, luma):
    weights = torch.tensor([kr, 1 - kr - kb, kb])[:, None, None]
    grey = ((roads * weights).sum(1, keepdim=True) * 255).round().expand_as(roads) / 255
    for sides, kind in (((roads, grey), "deployed"), ((grey, roads), "trained")):
        (cause,) = fingerprint(*sides).causes
        assert (cause.name, cause.parameters) == ("grey", {"kind": kind, "luma": f"the luma of {luma}"})


def test_a_letterbox_has_a_direction(roads):
    boxed = CATALOGUE["letterbox"].deployed(roads)
    cropped = CATALOGUE["crop"].deployed(roads)
    for trained, deployed, kind in (
        (roads, boxed, "letterbox"),
        (boxed, roads, "bars cut"),
        (roads, cropped, "crop"),
        (cropped, roads, "wider"),
    ):
        cause = next(c for c in fingerprint(trained, deployed).causes if c.name == "crop")
        assert cause.parameters["kind"] == kind


def test_the_text_gives_sentence_and_line(roads):
    text = str(fingerprint(roads, roads.flip(1)))
    assert "the deployed side feeds channels as BGR where training has RGB" in text
    assert "cv2.COLOR_BGR2RGB" in text


@pytest.mark.parametrize(
    ("trained", "deployed", "error", "match"),
    [
        (torch.rand(3, 32, 32), torch.rand(3, 32, 32), ValueError, r"images\[None\]"),
        (torch.rand(1, 32, 32, 3), torch.rand(1, 32, 32, 3), ValueError, "Channels seem to come last"),
        (torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 48), ValueError, "of training's shape"),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), ValueError, "at least 28 x 28"),
        (torch.ones(1, 3, 32, 32).int(), torch.ones(1, 3, 32, 32).int(), TypeError, "uint8 or floating"),
        (torch.full((1, 3, 32, 32), torch.nan), torch.rand(1, 3, 32, 32), ValueError, "Expected finite"),
    ],
)
def test_rejects(trained, deployed, error, match):
    with pytest.raises(error, match=match):
        fingerprint(trained, deployed)


def test_grey_pictures(roads):
    grey = roads.mean(1, keepdim=True).mul(255).round() / 255
    assert names(fingerprint(grey, CATALOGUE["shift_half_pixel"].deployed(grey)))[:1] == ["shift"]
    assert names(fingerprint(grey.numpy(), CATALOGUE["gamma_07"].deployed(grey).numpy()))[:1] == ["gamma"]
    assert np.isfinite(fingerprint(grey, grey).distance)
